//! What most tests here begin with: a lab with a relay and two agents that are not started yet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use xtask::answers::{AgentSession, AgentSessions, RelaySession, RelaySessions, Status};
use xtask::deployment::{Deployment, Hosts, Reached};
use xtask::interrupt;
use xtask::lab::{Lab, LabPlan, Process, RELAY_ADDRESSES};
use xtask::tcp_copy;
use xtask::test::privileged_or_skip;

/// Where the relay is reached by IPv4.
pub const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(RELAY_ADDRESSES.v4), 4433);

/// Where a TCP program may be reached at the target.
pub const SERVED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);

/// Where `net forward` listens at the connector.
pub const FORWARDED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9001);

/// The relay's options for a datapath.
pub const NATIVE: &str = "--datapath xdp-native --interface r0";
pub const GENERIC: &str = "--datapath xdp-generic --interface r0";
pub const USERSPACE: &str = "--datapath userspace";

/// Whoever falls silent is noticed, and its session closed, within this time.
pub const NOTICED_WITHIN: Duration = Duration::from_secs(75);

/// A lab with identities and configurations in it.
pub struct World {
    pub deployment: Deployment,
    pub lab: Lab,
    pub binary: PathBuf,
}

impl World {
    /// A world for the test `name`, or `None` after it said why it cannot run.
    pub fn new(name: &str) -> Option<World> {
        World::planned(name, &LabPlan::default(), RELAY)
    }

    /// As [`World::new`], in a lab of another plan or with a relay that is reached at other addresses.
    pub fn planned(name: &str, plan: &LabPlan, reached: impl Into<Reached>) -> Option<World> {
        let binary = privileged_or_skip(name)?.relay_binary;
        let lab = Lab::planned(plan).unwrap();
        let hosts = Hosts::of(&lab).unwrap();
        let deployment =
            Deployment::prepare(hosts, &binary, lab.directory(), reached, &SERVED.to_string()).unwrap();
        Some(World { deployment, lab, binary })
    }

    pub fn status(&self) -> Status {
        self.deployment.relay.json("xdp status --json").unwrap()
    }

    /// How often control has refused something for `reason`.
    pub fn refused(&self, reason: &str) -> u64 {
        self.status().control.get(reason).copied().unwrap_or(0)
    }

    /// Waits until control has counted so many refusals for each reason: it counts after it has told the agent.
    pub fn wait_refused<const N: usize>(&self, counts: [(&str, u64); N]) {
        wait_for(&format!("the counts {counts:?}"), Duration::from_secs(5), || {
            let as_expected = counts.iter().all(|(reason, count)| self.refused(reason) == *count);
            as_expected.then_some(())
        });
    }

    pub fn sessions(&self) -> Vec<RelaySession> {
        self.deployment.relay.json::<RelaySessions>("net sessions --json").unwrap().sessions
    }

    /// Waits until the relay has no session any more.
    pub fn wait_for_no_session(&self, patience: Duration) {
        wait_for("the end of all sessions", patience, || self.sessions().is_empty().then_some(()));
    }

    /// Copies a few MiB from the connector to the target, and checks that they are the same at both ends. The relay has to
    /// run; it has no other session.
    pub fn copy_a_file(&self) -> Copied {
        let deployment = &self.deployment;
        let _target = deployment.start_target().unwrap();
        let _forward = deployment.start_forward(FORWARDED, SERVED).unwrap();
        let file = self.random_file(4);
        let received = self.lab.directory().join("received");
        let mut receiver = tcp_copy::receive(deployment.target.host(), SERVED, &received).unwrap();
        let mut sender =
            tcp_copy::send(deployment.connector.host(), FORWARDED, &file, self.lab.directory()).unwrap();
        receiver.wait_success(Duration::from_secs(60)).unwrap();
        sender.wait_success(Duration::from_secs(5)).unwrap();
        assert!(std::fs::read(&file).unwrap() == std::fs::read(&received).unwrap(), "the file differs");
        let [session] = self.sessions().try_into().unwrap();
        let at_target: AgentSessions = deployment.target.json("net sessions --json").unwrap();
        let [at_target] = at_target.sessions.try_into().unwrap();
        Copied { session, at_target }
    }

    /// A file of `mib` MiB of random bytes.
    pub fn random_file(&self, mib: u64) -> PathBuf {
        use std::io::Read as _;
        let path = self.lab.directory().join("file");
        let random = std::fs::File::open("/dev/urandom").unwrap();
        std::io::copy(&mut random.take(mib << 20), &mut std::fs::File::create(&path).unwrap()).unwrap();
        path
    }
}

/// A file was copied.
pub struct Copied {
    /// The session that it went through, at the end.
    pub session: RelaySession,
    /// The same as the target saw it.
    pub at_target: AgentSession,
}

impl Copied {
    pub fn by_kernel(&self) -> u64 {
        self.session.sides.iter().map(|side| side.packets_kernel).sum()
    }

    pub fn by_daemon(&self) -> u64 {
        self.session.sides.iter().map(|side| side.packets_userspace).sum()
    }

    /// The program has forwarded at least 99 % of the packets.
    pub fn assert_by_kernel(&self) {
        let (kernel, all) = (self.by_kernel(), self.by_kernel() + self.by_daemon());
        assert!(all > 0 && kernel * 100 >= all * 99, "the kernel forwarded {kernel} of {all}");
    }
}

/// Waits until `attempt` gives a value.
///
/// # Panics
/// Not within `patience`.
pub fn wait_for<T>(awaited: &str, patience: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    interrupt::wait_for(awaited, patience, || Ok(attempt())).unwrap()
}

/// Waits until `process` has said `text`, as output or in its log.
pub fn wait_until_said(process: &mut Process, text: &str, patience: Duration) {
    let said = |process: &Process| process.said().contains(text).then_some(());
    process.wait_until(&format!("the words `{text}`"), patience, said).unwrap();
}
