//! The world's relay under something that keeps what one daemon leaves to the next: a supervisor as systemd is one, or pins.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use relay_userspace::relay::datapath::LAYOUT;
use xtask::answers::{Peers, Status};
use xtask::deployment::relay_configuration_with;
use xtask::lab::{Mount, Process};
use xtask::supervisor::Supervisor;
use xtask::tool::Tool;

use super::steady::Steady;
use super::world::{RELAY, World, wait_for};

/// More than the traffic, and less than none: the buckets are charged.
const LIMIT: u64 = 100_000_000;

/// How long a daemon may need to begin or to end, and its agents to be back.
const PATIENCE: Duration = Duration::from_secs(30);

/// A relay that is started again and again.
pub struct KeptRelay<'a> {
    world: &'a World,
    options: &'static str,
    limit: u64,
    keeper: Keeper,
}

enum Keeper {
    Supervisor(Box<Supervisor>),
    Pins { process: Option<Process>, pins: PathBuf, _bpffs: Option<Mount> },
}

impl<'a> KeptRelay<'a> {
    /// Started by a supervisor, whose descriptor store keeps maps, link and sockets.
    pub fn supervised(world: &'a World, options: &'static str) -> KeptRelay<'a> {
        KeptRelay::supervised_at(world, options, LIMIT)
    }

    /// As [`KeptRelay::supervised`], with this limit in bytes per second.
    pub fn supervised_at(world: &'a World, options: &'static str, limit: u64) -> KeptRelay<'a> {
        let (host, directory) = (world.deployment.relay.host().clone(), world.lab.directory());
        let supervisor =
            Supervisor::of(host, tool(world, &world.binary, options), directory, "kept").unwrap();
        let keeper = Keeper::Supervisor(supervisor.into());
        let mut relay = KeptRelay { world, options, limit, keeper };
        relay.configure("", "");
        relay.start();
        relay
    }

    /// Started by nobody in particular: maps and link are pinned in a bpffs of its own.
    pub fn pinned(world: &'a World, options: &'static str) -> KeptRelay<'a> {
        let bpffs = Mount::new("bpf", "mode=700", &world.lab.directory().join("bpffs")).unwrap();
        let pins = bpffs.path().join("pins");
        KeptRelay::pinned_at(world, options, pins, Some(bpffs))
    }

    /// As [`KeptRelay::pinned`], but the folder of pins is no bpffs.
    pub fn pinned_nowhere(world: &'a World, options: &'static str, pins: PathBuf) -> KeptRelay<'a> {
        KeptRelay::pinned_at(world, options, pins, None)
    }

    fn pinned_at(
        world: &'a World,
        options: &'static str,
        pins: PathBuf,
        bpffs: Option<Mount>,
    ) -> KeptRelay<'a> {
        let keeper = Keeper::Pins { process: None, pins, _bpffs: bpffs };
        let mut relay = KeptRelay { world, options, limit: LIMIT, keeper };
        relay.configure("", "");
        relay.start();
        relay
    }

    /// Has the next start find these lines under `[datapath]`, and `more` tables, in the configuration.
    pub fn configure(&self, datapath: &str, more: &str) {
        let place = match &self.keeper {
            Keeper::Pins { pins, .. } => pins.display().to_string(),
            Keeper::Supervisor(_) => String::new(),
        };
        let datapath = format!("bpffs = \"{place}\"\n{datapath}\n");
        let configuration = relay_configuration_with(self.limit, &datapath);
        self.world.deployment.relay.configure(&format!("{configuration}\n{more}")).unwrap();
    }

    /// Has the next start use these options of `net listen`.
    pub fn choose(&mut self, options: &'static str) {
        self.options = options;
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self) {
        self.begin(&self.world.binary.clone());
        self.wait_until_serving();
    }

    /// Ends it by SIGTERM and starts it again.
    pub fn restart(&mut self) {
        self.restart_as(&self.world.binary.clone());
    }

    /// As [`KeptRelay::restart`], but what is started is `binary`.
    pub fn restart_as(&mut self, binary: &Path) {
        match &mut self.keeper {
            Keeper::Supervisor(supervisor) => {
                supervisor.replace(tool(self.world, binary, self.options));
                supervisor.restart().unwrap();
            }
            Keeper::Pins { process, .. } => {
                process.take().unwrap().stop_within(PATIENCE).unwrap();
                self.begin(binary);
            }
        }
        self.wait_until_serving();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        match &mut self.keeper {
            Keeper::Supervisor(supervisor) => supervisor.kill().unwrap(),
            Keeper::Pins { process, .. } => process.take().unwrap().kill(),
        }
    }

    /// The process that runs.
    pub fn process(&mut self) -> &mut Process {
        match &mut self.keeper {
            Keeper::Supervisor(supervisor) => supervisor.process().unwrap(),
            Keeper::Pins { process, .. } => process.as_mut().unwrap(),
        }
    }

    /// The folder of its pins, if that is what keeps it.
    pub fn pins(&self) -> PathBuf {
        let Keeper::Pins { pins, .. } = &self.keeper else { panic!("a supervisor keeps it") };
        let of_relays = std::fs::read_dir(pins).unwrap().map(|entry| entry.unwrap().path());
        let [of_relay] = of_relays.collect::<Vec<_>>().try_into().unwrap();
        of_relay.join(format!("v{LAYOUT}"))
    }

    /// Waits until both agents of the traffic are connected to it.
    pub fn wait_for_agents(&self, steady: &Steady) {
        let expected: BTreeSet<_> = steady.ids().iter().map(ToString::to_string).collect();
        wait_for("both agents at the relay", PATIENCE, || {
            let peers = self.world.deployment.relay.json::<Peers>("net peers --json").ok()?.peers;
            let connected: BTreeSet<_> = peers.into_iter().map(|peer| peer.node_id).collect();
            expected.is_subset(&connected).then_some(())
        });
    }

    /// The names of what the supervisor keeps.
    pub fn stored(&self) -> Vec<String> {
        match &self.keeper {
            Keeper::Supervisor(supervisor) => supervisor.stored(),
            Keeper::Pins { .. } => Vec::new(),
        }
    }

    /// Starts it by way of `runner`, which is given its command line, and waits until it serves or has ended.
    pub fn start_through(&mut self, runner: Tool) -> Started {
        let from = self.log().len();
        let node = self.world.deployment.relay.clone();
        let words = format!("net listen --port {} {}", RELAY.port(), self.options);
        let tool = runner.arg(&self.world.binary).words(&words).env("ATLAS_ROOT", node.directory());
        self.begin_by(tool);
        wait_for("a start or an end", PATIENCE, || {
            if self.process().ended().unwrap().is_some() {
                return Some(Started::Ended(self.log().split_off(from)));
            }
            node.json::<Status>("xdp status --json").ok().map(Started::Serves)
        })
    }

    /// Everything that its daemons have written to their logs.
    pub fn log(&mut self) -> String {
        std::fs::read_to_string(self.world.lab.directory().join("kept.log")).unwrap()
    }

    fn begin(&mut self, binary: &Path) {
        self.begin_by(tool(self.world, binary, self.options));
    }

    fn begin_by(&mut self, tool: Tool) {
        match &mut self.keeper {
            Keeper::Supervisor(supervisor) => {
                supervisor.replace(tool);
                supervisor.start().unwrap();
            }
            Keeper::Pins { process, .. } => {
                let host = self.world.deployment.relay.host();
                *process = Some(host.start(&tool, self.world.lab.directory(), "kept").unwrap());
            }
        }
    }

    fn wait_until_serving(&mut self) {
        if let Keeper::Supervisor(supervisor) = &mut self.keeper {
            supervisor.wait_ready(PATIENCE).unwrap();
        }
        let node = self.world.deployment.relay.clone();
        let serving = |_: &Process| node.json::<Status>("xdp status --json").ok();
        self.process().wait_until("the start", PATIENCE, serving).unwrap();
    }
}

/// What has become of a start.
#[derive(Debug)]
pub enum Started {
    /// It serves, and says so.
    Serves(Status),
    /// It has ended, with this in its log.
    Ended(String),
}

fn tool(world: &World, binary: &Path, options: &str) -> Tool {
    let words = format!("net listen --port {} {options}", RELAY.port());
    world.deployment.relay.with_binary(binary).tool(&words)
}
