//! firewalld, as Debian packages it, on a machine of its own, and what `deploy/README.md` has its operator type: the relay's
//! port is open and not tracked, and stays so when firewalld reloads and starts anew.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use xtask::workspace::Workspace;

use super::doctor::finding_in;
use super::machine::Machine;
use super::untracked::Flooded;
use super::walk::Walk;
use super::world::{RELAY, World, wait_for};

/// It takes the page's steps for firewalld.
pub const STEPS: &str =
    "firewalld_lets_the_port_in_untracked_by_the_pages_steps_also_after_a_reload_and_a_restart";

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn firewalld_lets_the_port_in_untracked_by_the_pages_steps_also_after_a_reload_and_a_restart() {
    let Some(world) = World::new(STEPS) else { return };
    let machine = Machine::start(world.lab.relay.host(), world.lab.directory(), "firewalld");
    let root = Workspace::find().unwrap().root().to_owned();
    for file in ["firewalld.sh", "nftables.conf"].map(|name| format!("deploy/firewall/{name}")) {
        machine.put(&root.join(&file), &file);
    }
    machine.put(&world.binary, "atlas-relay");
    machine.type_in("apt-get install --yes --no-install-recommends /var/cache/apt/archives/*.deb");
    await_firewalld(&machine);
    assert_kept_out(&world, RELAY);

    let closed = doctor(&machine, "firewalld");
    assert_eq!((&*closed.0, &*closed.1), ("warning", "running; its rules keep the port out"));
    machine.type_in(&closed.2);
    await_firewalld(&machine);
    let flooded = Flooded::start(&world);
    flooded.assert_tracked();
    let (level, found, _) = doctor(&machine, "conntrack");
    assert_eq!(level, "note", "{found}");
    machine.type_in("firewall-cmd --permanent --remove-port=4433/udp && firewall-cmd --reload");

    let walk = Walk::new(STEPS);
    let [_, ports, table] = walk.take(&machine, "Firewall", 1).try_into().unwrap();
    assert_eq!(ports.trim(), "4433/udp");
    assert_eq!(table.matches("notrack").count(), 2, "{table}");
    walk.finish();
    machine.type_in("sh deploy/firewall/firewalld.sh"); // again
    flooded.assert_untracked();
    assert_told_and_kept_out(&world, &machine);

    machine.type_in("firewall-cmd --reload");
    await_firewalld(&machine);
    flooded.assert_flood_untracked();
    assert_told_and_kept_out(&world, &machine);

    // As after a start of the host.
    machine.type_in("systemctl stop firewalld");
    machine.type_in("nft flush ruleset");
    let (level, found, _) = doctor(&machine, "firewalld");
    assert_eq!((&*level, &*found), ("ok", "not running"));
    machine.type_in("systemctl start firewalld");
    await_firewalld(&machine);
    flooded.assert_flood_untracked();
    assert_told_and_kept_out(&world, &machine);

    machine.type_in("systemctl restart firewalld");
    await_firewalld(&machine);
    flooded.assert_flood_untracked();
    assert_told_and_kept_out(&world, &machine);
}

/// Its service has started before its rules are in the kernel.
fn await_firewalld(machine: &Machine) {
    machine.wait_until("firewalld's rules", || {
        machine.try_type("firewall-cmd --state && nft list chain inet firewalld filter_INPUT").ok()
    });
}

fn assert_told_and_kept_out(world: &World, machine: &Machine) {
    let (level, found, _) = doctor(machine, "firewalld");
    assert_eq!((&*level, &*found), ("ok", "running; its rules let the port in"));
    let (level, found, _) = doctor(machine, "conntrack");
    assert!(level == "ok" && found.ends_with("the port is not tracked"), "{level}: {found}");
    let (level, found, _) = doctor(machine, "firewall");
    assert_eq!(level, "ok", "{found}");
    assert_kept_out(world, SocketAddr::new(RELAY.ip(), RELAY.port() + 1));
}

/// firewalld tells who sends to a closed port that it is prohibited; without it, the host would say that nobody listens.
fn assert_kept_out(world: &World, port: SocketAddr) {
    let told = world.lab.router.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect(port).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        wait_for("word of what is sent", PATIENCE, || {
            let error = socket.send(b"to a closed port").and_then(|_| socket.recv(&mut [0])).unwrap_err();
            (!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)).then(|| error.kind())
        })
    });
    assert_eq!(told.unwrap(), ErrorKind::HostUnreachable);
}

/// What `doctor` says there of one check: its level, what was found, and what mends it.
fn doctor(machine: &Machine, check: &str) -> (String, String, String) {
    // It exits with the code of the worst finding, whichever that is.
    let said = machine.type_in("ATLAS_ROOT=/root/doctor ./atlas-relay doctor --json || test $? -le 2");
    let mut texts = finding_in(&said, check);
    let mut text = |name: &str| texts.remove(name).unwrap_or_default();
    (text("level"), text("found"), text("mend"))
}
