//! The firewall's snippets of `deploy/firewall`: a flood of senders leaves no entry in the relay's connection tracking.
//! That for firewalld is in `firewalld.rs`.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use xtask::tool::Tool;
use xtask::workspace::Workspace;

use super::doctor::finding_in;
use super::world::{RELAY, USERSPACE, World, wait_for};

/// Senders of one datagram each, each with a port of its own.
const SENDERS: u64 = 500;

#[test]
fn a_flood_of_misses_leaves_no_entry_in_connection_tracking_with_the_snippet_for_nftables() {
    const NAME: &str =
        "a_flood_of_misses_leaves_no_entry_in_connection_tracking_with_the_snippet_for_nftables";
    let Some(world) = World::new(NAME) else { return };
    usual_firewall(&world);
    let flooded = Flooded::start(&world);
    flooded.assert_tracked();
    let load = Tool::new("nft").arg("-f").arg(snippet("nftables.conf"));
    for _again in 0..2 {
        world.lab.relay.run(&load).unwrap();
    }
    flooded.assert_untracked();
    let word = flooded.doctors_word();
    assert!(word.contains("the port is not tracked"), "{word}");
}

#[test]
fn a_flood_of_misses_leaves_no_entry_in_connection_tracking_with_the_rules_for_ufw() {
    const NAME: &str = "a_flood_of_misses_leaves_no_entry_in_connection_tracking_with_the_rules_for_ufw";
    let Some(world) = World::new(NAME) else { return };
    let ufw = Ufw::of(&world);
    ufw.run("ufw --force enable");
    ufw.run("ufw allow 4433/udp");
    let flooded = Flooded::start(&world);
    flooded.assert_tracked();
    let rules = snippet("ufw.rules");
    for file in ["before.rules", "before6.rules"] {
        ufw.run(&format!("cat {} >> /etc/ufw/{file}", rules.display()));
    }
    for _again in 0..2 {
        ufw.run("ufw reload");
    }
    for list in ["iptables", "ip6tables"] {
        let loaded = ufw.run(&format!("{list} --table raw --list-rules"));
        assert!(loaded.contains("-A PREROUTING") && loaded.contains("-A OUTPUT"), "{loaded}");
    }
    let status = ufw.run("ufw status verbose");
    assert!(status.contains("Status: active") && status.contains("deny (incoming)"), "{status}");
    flooded.assert_untracked();
    let word = flooded.doctors_word();
    assert!(word.contains("which cannot be told"), "nft shows no more of such rules: {word}");
}

/// A firewall of nobody's in particular that asks for the state of connections.
fn usual_firewall(world: &World) {
    let firewall = "table inet usual {\n chain input {\n type filter hook input priority filter; policy drop;\n \
                    ct state established,related accept\n ct state invalid drop\n iif lo accept\n \
                    meta l4proto { icmp, ipv6-icmp } accept\n udp dport 4433 accept\n }\n}\n";
    world.lab.relay.run(&Tool::new("nft").words("-f -").input(firewall)).unwrap();
}

/// ufw on the relay's host. It has this machine's files, of which it gets a copy for itself.
struct Ufw<'a> {
    world: &'a World,
    files: PathBuf,
}

impl Ufw<'_> {
    fn of(world: &World) -> Ufw<'_> {
        let files = world.lab.directory().join("ufw");
        Tool::new("cp").words("--archive /etc/ufw").arg(&files).output().unwrap();
        Ufw { world, files }
    }

    /// Runs what would be typed there.
    fn run(&self, line: &str) -> String {
        let script = format!("mount --bind {} /etc/ufw && {line}", self.files.display());
        let tool = Tool::new("unshare").words("--mount sh -ec").arg(script);
        self.world.lab.relay.run(&tool).unwrap_or_else(|error| panic!("{line}: {error:#}"))
    }
}

/// A relay whose host tracks connections, as every host does whose firewall asks for their state.
pub struct Flooded<'a> {
    world: &'a World,
    _relay: xtask::lab::Process,
}

impl Flooded<'_> {
    /// Starts the relay, behind a firewall that lets its port in already.
    pub fn start(world: &World) -> Flooded<'_> {
        // In userspace all of the flood comes by the firewall, not what the XDP program passes up alone.
        let relay = world.deployment.start_relay(None, USERSPACE).unwrap();
        Flooded { world, _relay: relay }
    }

    /// Otherwise the rest would prove nothing.
    pub fn assert_tracked(&self) {
        self.flood();
        assert!(self.tracked() >= SENDERS, "{} of {SENDERS} senders are tracked", self.tracked());
        self.world.lab.relay.run(&Tool::new("conntrack").arg("--flush")).unwrap();
        assert_eq!(self.tracked(), 0);
    }

    /// What doctor has found of connection tracking.
    fn doctors_word(&self) -> String {
        let relay = &self.world.deployment.relay;
        let looked =
            Tool::new("sh").args(["-c", "\"$0\" doctor --json || test $? -le 2"]).arg(&self.world.binary);
        let said = relay.host().run(&looked.env("ATLAS_ROOT", relay.directory())).unwrap();
        finding_in(&said, "conntrack").remove("found").unwrap()
    }

    /// The agents' own datagrams leave no entry either, and still get through.
    pub fn assert_untracked(&self) {
        self.assert_flood_untracked();
        let _target = self.world.deployment.start_target().unwrap();
        assert_eq!(self.tracked(), 0, "{:?}", self.entries());
    }

    /// All of the flood reaches the relay.
    pub fn assert_flood_untracked(&self) {
        self.flood();
        assert_eq!(self.tracked(), 0, "{:?}", self.entries());
    }

    /// Sends from many ports, as many at once as the interface's queue holds, and waits until the relay has counted all.
    fn flood(&self) {
        let missed = || self.world.status().userspace["no_flow"];
        let before = missed();
        let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        // All are open until the last has sent: none has another's port.
        let senders: Vec<UdpSocket> =
            self.world.lab.router.inside(|| (0..SENDERS).map(|_| bind()).collect()).unwrap();
        let mut sent = before;
        for some in senders.chunks(50) {
            for sender in some {
                sender.send_to(b"from nobody it knows", RELAY).unwrap();
                sent += 1;
            }
            wait_for("the flood to be counted", Duration::from_secs(20), || (missed() >= sent).then_some(()));
        }
        assert_eq!(sent, before + SENDERS);
    }

    /// Entries of the relay's host about its port.
    fn tracked(&self) -> u64 {
        self.entries().len() as u64
    }

    fn entries(&self) -> Vec<String> {
        let list = Tool::new("conntrack").words("--dump --proto udp --orig-port-dst 4433");
        let listed = self.world.lab.relay.run(&list).unwrap();
        listed.lines().map(str::to_owned).collect()
    }
}

fn snippet(name: &str) -> PathBuf {
    Workspace::find().unwrap().root().join("deploy/firewall").join(name)
}
