//! The unit files under a real systemd, with all that they take away: nothing that the daemons need is missing.
//!
//! systemd is PID 1 of a machine of its own made of namespaces (see `machine.sh`), so that the real one need not run it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use xtask::answers::{Pings, Status};
use xtask::deployment::{Node, relay_configuration_with};
use xtask::interrupt;
use xtask::lab::Process;
use xtask::tool::{Tool, find};

use super::world::{World, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);

/// A user and group that own nothing else.
const USER: &str = "64990";

#[test]
fn under_its_unit_the_relay_relays_natively_with_nothing_refused_that_it_needs() {
    let name = "under_its_unit_the_relay_relays_natively_with_nothing_refused_that_it_needs";
    let Some(world) = World::new(name) else { return };
    let relay = &world.deployment.relay;
    let datapath = "mode = \"xdp-native\"\ninterfaces = [\"r0\"]\n";
    relay.configure(&relay_configuration_with(0, datapath)).unwrap();
    let machine = Machine::start(&world, relay, "atlas-relay");

    machine.run("systemctl start atlas-relay");

    // It has returned, so the relay has said that it is ready.
    assert_native(relay);
    let confined = machine.status_of("atlas");
    assert!(confined.contains("Seccomp:\t2"), "its system calls are filtered: {confined}");
    assert!(confined.contains(&format!("Uid:\t{USER}\t")), "{confined}");
    world.copy_a_file().assert_by_kernel();

    relay.configure(&relay_configuration_with(5_000_000, datapath)).unwrap();
    machine.run("systemctl reload atlas-relay");
    machine.wait_until("the reload", || machine.log().contains("5000000").then_some(()));
    machine.run("systemctl restart atlas-relay");
    assert_native(relay);
    assert!(machine.log().contains("restarts: its sessions go on"), "{}", machine.log());
    // The second start has found the first one's tables in systemd's store.
    let log = machine.log();
    let made = log.lines().filter(|line| line.contains("flow tables made"));
    let adopted: Vec<bool> = made.map(|line| line.contains("adopted=true")).collect();
    assert_eq!(adopted, [false, true], "{log}");
    machine.run("systemctl stop atlas-relay");
    assert!(machine.log().contains("Stopped\n"), "{}", machine.log());
    assert_eq!(
        machine
            .run("systemctl show atlas-relay -P Result -P NRestarts")
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["success", "0"]
    );
    assert!(!machine.log().contains("ERROR"), "{}", machine.log());
}

#[test]
fn under_its_unit_the_agent_is_reached() {
    let Some(world) = World::new("under_its_unit_the_agent_is_reached") else { return };
    let _relay = world.deployment.start_relay(None, "--datapath userspace").unwrap();
    let target = &world.deployment.target;
    let machine = Machine::start(&world, target, "atlas-agent");

    machine.run("systemctl start atlas-agent");

    machine.wait_until("the agent", || world.deployment.is_announced(target.id()).then_some(()));
    let pings: Pings =
        world.deployment.connector.json(&format!("net ping {} --count 3 --json", target.id())).unwrap();
    assert_eq!(pings.received, 3);
    machine.run("systemctl stop atlas-agent");
    assert_eq!(machine.run("systemctl show atlas-agent -P Result").trim(), "success");
}

fn assert_native(relay: &Node) {
    let status: Status = relay.json("xdp status --json").unwrap();
    assert_eq!((status.datapath.as_str(), status.capabilities), ("xdp-native", Some(Vec::new())));
}

/// A machine with systemd on a node's host.
struct Machine {
    process: Process,
    node: Node,
    work: PathBuf,
}

impl Machine {
    /// Starts it and waits until systemd is ready. The node's files are the service's from then on.
    fn start(world: &World, node: &Node, service: &str) -> Machine {
        assert!(find("systemctl").is_some(), "systemd is not installed: `cargo xtask setup` installs it");
        let work = world.lab.directory().join("machine");
        let units = work.join("units");
        let drop_in = units.join(format!("{service}.service.d"));
        std::fs::create_dir_all(&drop_in).unwrap();
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/systemd/{service}.service"));
        std::fs::copy(unit, units.join(format!("{service}.service"))).unwrap();
        let log = format!(
            "[Service]\nStandardOutput=append:/var/lib/{service}/.atlas/service.log\nStandardError=inherit\n"
        );
        std::fs::write(drop_in.join("lab.conf"), log).unwrap();
        Tool::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(node.directory()).output().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/machine.sh");
        let tool = Tool::new("unshare")
            .words("--mount sh")
            .arg(script)
            .args([&work, &world.binary])
            .arg(node.directory())
            .arg(&units);
        let tool = tool.args([service, USER, USER]);
        let process = node.host().start(&tool, &work, "machine").unwrap();
        let machine = Machine { process, node: node.clone(), work };
        machine.wait_until("systemd", || {
            machine.try_run("systemctl is-system-running").ok().filter(|state| state.trim() == "running")
        });
        machine
    }

    /// Runs a command in it.
    fn run(&self, words: &str) -> String {
        self.try_run(words).unwrap_or_else(|error| panic!("{error}: {}", self.log()))
    }

    fn try_run(&self, words: &str) -> anyhow::Result<String> {
        let init = self.process_named("systemd").ok_or_else(|| anyhow::anyhow!("no systemd yet"))?;
        let inside = Tool::new("nsenter").args(["--target", &init.to_string()]);
        inside.words("--mount --pid --uts --ipc --cgroup").words(words).output()
    }

    fn wait_until<T>(&self, awaited: &str, attempt: impl FnMut() -> Option<T>) -> T {
        let waited =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(awaited, PATIENCE, attempt)));
        waited.unwrap_or_else(|_| panic!("{awaited}: {} {}", self.process.said(), self.log()))
    }

    /// What the service has said.
    fn log(&self) -> String {
        std::fs::read_to_string(self.node.directory().join("service.log")).unwrap_or_default()
    }

    /// /proc/PID/status of the process with this name in it.
    fn status_of(&self, name: &str) -> String {
        let process = self.process_named(name).unwrap();
        std::fs::read_to_string(format!("/proc/{process}/status")).unwrap()
    }

    /// As the real machine numbers it.
    fn process_named(&self, name: &str) -> Option<u32> {
        let mut found = vec![self.process.id()];
        while let Some(process) = found.pop() {
            let read =
                |what: &str| std::fs::read_to_string(format!("/proc/{process}/{what}")).unwrap_or_default();
            if read("comm").trim() == name {
                return Some(process);
            }
            let children = read(&format!("task/{process}/children"));
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        None
    }
}

impl Drop for Machine {
    /// It takes its cgroups along.
    fn drop(&mut self) {
        self.process.signal(libc::SIGTERM);
        // Also after a failure: what it has made would stay if it were killed.
        let ended = interrupt::wait_for("the machine's end", PATIENCE, || self.process.ended());
        assert!(std::thread::panicking() || ended.is_ok(), "{ended:?}");
        let _root = std::fs::remove_dir(self.work.join("root"));
    }
}
