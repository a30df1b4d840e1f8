//! A relay and two agents from the built binary, each with an identity and configuration of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;

use crate::answers::{ForwardEvent, Identity, Peers, Status};
use crate::lab::{AddressPair, Family, Host, Lab, Process};
use crate::tool::Tool;

/// How long a daemon may need until it answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// One node: an identity and configuration on a host.
#[derive(Clone, Debug)]
pub struct Node {
    host: Host,
    binary: PathBuf,
    directory: PathBuf,
    name: String,
    id: String,
}

impl Node {
    /// Makes an identity for the node `name` on `host`. Its files are in a folder of that name in `directory`.
    ///
    /// # Errors
    /// `atlas-relay id init` failed.
    pub fn init(host: Host, binary: &Path, directory: &Path, name: &str) -> anyhow::Result<Self> {
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let mut node =
            Node { host, binary: binary.to_owned(), directory, name: name.to_owned(), id: String::new() };
        node.run("id init")?;
        node.run(&format!("id set-name {name}"))?;
        node.id = node.json::<Identity>("id show --json")?.node_id;
        Ok(node)
    }

    /// Its node id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its folder: `ATLAS_ROOT`, and what its processes write.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Replaces its configuration.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, toml: &str) -> anyhow::Result<()> {
        let path = self.directory.join("state/config.toml");
        std::fs::create_dir_all(self.directory.join("state"))?;
        std::fs::write(&path, toml).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The same node, run by another binary.
    pub fn with_binary(&self, binary: &Path) -> Self {
        Node { binary: binary.to_owned(), ..self.clone() }
    }

    /// The command `atlas-relay WORDS` as this node.
    pub fn tool(&self, words: &str) -> Tool {
        Tool::new(&self.binary).words(words).env("ATLAS_ROOT", &self.directory)
    }

    /// Runs `atlas-relay WORDS` as this node, to its end, and returns what it wrote to stdout.
    ///
    /// # Errors
    /// It failed.
    pub fn run(&self, words: &str) -> anyhow::Result<String> {
        self.host.run(&self.tool(words))
    }

    /// Runs `atlas-relay WORDS` as this node and reads the JSON it writes to stdout.
    ///
    /// # Errors
    /// It failed, or what it wrote is of another form.
    pub fn json<T: DeserializeOwned>(&self, words: &str) -> anyhow::Result<T> {
        let output = self.run(words)?;
        serde_json::from_str(&output)
            .with_context(|| format!("`{}` wrote something else: {output}", self.tool(words)))
    }

    /// Starts `atlas-relay WORDS` as this node; its output and log are called after the second word.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(&self, words: &str) -> anyhow::Result<Process> {
        let name = format!("{}-{}", self.name, words.split_whitespace().nth(1).unwrap_or(words));
        self.host.start(&self.tool(words), &self.directory, &name)
    }

    /// The host it lives on.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

/// A relay's configuration but for its datapath, all by default.
const RELAY: &str = "[transport]\nenable_relay = true\noffer_relay = true\n";

/// Nothing is pinned: pins are the machine's, and would outlive whatever the relay was started for.
const NO_PINS: &str = "bpffs = \"\"\n";

/// A relay's configuration with this `relay_bandwidth_limit`.
pub fn relay_configuration(limit: u64) -> String {
    relay_configuration_with(limit, NO_PINS)
}

/// As [`relay_configuration`], with these lines under `[datapath]`; without `bpffs` among them, what the relay keeps may be
/// pinned in the machine's own bpffs.
pub fn relay_configuration_with(limit: u64, datapath: &str) -> String {
    format!("[datapath]\n{datapath}\n{RELAY}relay_bandwidth_limit = {limit}\n")
}

/// The hosts of a deployment.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Where the relay runs.
    pub relay: Host,
    /// Where the agent that connects runs.
    pub connector: Host,
    /// Where the agent that is connected to runs.
    pub target: Host,
}

impl Hosts {
    /// Those of a lab: its first agent connects to its second.
    ///
    /// # Errors
    /// The lab has fewer than two agents.
    pub fn of(lab: &Lab) -> anyhow::Result<Self> {
        let [connector, target, ..] = &lab.agents[..] else { bail!("the lab has fewer than two agents") };
        Ok(Hosts { relay: lab.relay.host(), connector: connector.host(), target: target.host() })
    }
}

/// Where each agent reaches the relay: not the same if they speak different versions of IP, or if the relay has several
/// addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The agent that connects.
    pub connector: SocketAddr,
    /// The agent that is connected to.
    pub target: SocketAddr,
}

impl Reached {
    /// Each agent by its family, connector's first, at one of `relay`'s addresses.
    pub fn by([connector, target]: [Family; 2], relay: AddressPair, port: u16) -> Self {
        let reached = |family| SocketAddr::new(relay.of(family), port);
        Reached { connector: reached(connector), target: reached(target) }
    }
}

impl From<SocketAddr> for Reached {
    fn from(address: SocketAddr) -> Self {
        Reached { connector: address, target: address }
    }
}

/// A relay and two agents, the second of which lets the first reach one of its ports.
pub struct Deployment {
    /// The relay.
    pub relay: Node,
    /// The agent that connects. No daemon of its own runs: its commands do the work.
    pub connector: Node,
    /// The agent that is connected to, by its daemon.
    pub target: Node,
    reached: Reached,
}

impl Deployment {
    /// Makes the identities. The relay will be `reached` on one port, and the connector may reach `permitted` (for example
    /// `127.0.0.1:9000`) at the target.
    ///
    /// # Errors
    /// An identity or configuration could not be made.
    pub fn prepare(
        hosts: Hosts,
        binary: &Path,
        directory: &Path,
        reached: impl Into<Reached>,
        permitted: &str,
    ) -> anyhow::Result<Self> {
        let relay = Node::init(hosts.relay, binary, directory, "relay")?;
        let connector = Node::init(hosts.connector, binary, directory, "connector")?;
        let target = Node::init(hosts.target, binary, directory, "target")?;
        let reached = reached.into();
        let relay_at = |address: SocketAddr| {
            let relay = format!("{}@{address}", relay.id());
            format!("[network]\nrelays = [\"{relay}\"]\n\n[transport]\nenable_relay = true\n")
        };
        connector.configure(&relay_at(reached.connector))?;
        target.configure(&format!(
            "{}\n[agent]\naccept = [\"{1}\"]\n\n[[agent.allow]]\npeer = \"{1}\"\nto = \"{permitted}\"\n",
            relay_at(reached.target),
            connector.id()
        ))?;
        Ok(Deployment { relay, connector, target, reached })
    }

    /// Where each agent reaches the relay.
    pub fn reached(&self) -> Reached {
        self.reached
    }

    /// Starts the relay and waits until it serves. `limit` is its `relay_bandwidth_limit` in bytes per second (0:
    /// unlimited, `None`: the default), `options` more of `net listen`'s command line.
    ///
    /// # Errors
    /// It ends, or does not serve in time.
    pub fn start_relay(&self, limit: Option<u64>, options: &str) -> anyhow::Result<Process> {
        self.start_relay_with(limit, "", options)
    }

    /// As [`Deployment::start_relay`], with `more` tables in its configuration, `[datapath]` aside.
    ///
    /// # Errors
    /// As for [`Deployment::start_relay`].
    pub fn start_relay_with(&self, limit: Option<u64>, more: &str, options: &str) -> anyhow::Result<Process> {
        let by_default = || format!("[datapath]\n{NO_PINS}\n{RELAY}");
        let configuration = limit.map_or_else(by_default, relay_configuration);
        self.relay.configure(&format!("{configuration}\n{more}"))?;
        let port = self.reached.connector.port();
        let mut relay = self.relay.start(&format!("net listen --port {port} {options}"))?;
        relay.wait_until("the start", PATIENCE, |_| self.relay.json::<Status>("xdp status --json").ok())?;
        Ok(relay)
    }

    /// Starts the target's daemon and waits until the relay knows it.
    ///
    /// # Errors
    /// It ends, or the relay does not know it in time.
    pub fn start_target(&self) -> anyhow::Result<Process> {
        let mut target = self.target.start("net listen --port 0")?;
        target.wait_until("the announcement", PATIENCE, |_| {
            self.is_announced(self.target.id()).then_some(())
        })?;
        Ok(target)
    }

    /// Starts `net forward` from `listen` at the connector to `to` at the target, and waits until it listens.
    ///
    /// # Errors
    /// It ends, or does not listen in time.
    pub fn start_forward(&self, listen: SocketAddr, to: SocketAddr) -> anyhow::Result<Process> {
        let peer = self.target.id();
        let words = format!("net forward --listen {listen} --peer {peer} --to {to} --json");
        let mut forward = self.connector.start(&words)?;
        forward.wait_until("the listening socket", PATIENCE, |forward| {
            forward.events().iter().any(|event| matches!(event, ForwardEvent::Listening)).then_some(())
        })?;
        Ok(forward)
    }

    /// Whether the relay knows the node `id` and would pair others with it.
    pub fn is_announced(&self, id: &str) -> bool {
        let peers = self.relay.json::<Peers>("net peers --json");
        peers.is_ok_and(|peers| peers.peers.iter().any(|peer| peer.node_id == id && peer.announced))
    }
}
