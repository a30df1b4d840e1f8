//! What is known of a host, as the sources find it. Nothing here is judged.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::config::DatapathMode;
use crate::doctor::packet_rules::InputChain;
use crate::identity::NodeId;
use crate::probe::Probed;

/// All that is known. `None`, and the words of an error, say that something cannot be told.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The Atlas root.
    pub root: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// The admin socket of the daemon that it is for.
    pub socket: PathBuf,
    /// This node's id, or why there is none.
    pub identity: Result<String, String>,
    /// What it makes of this node (`a relay`), or what is wrong with it.
    pub configuration: Result<&'static str, String>,
    /// The datapath that is wanted.
    pub mode: DatapathMode,
    /// The relay's port.
    pub port: u16,
    /// `network.advertise`.
    pub advertise: Vec<SocketAddr>,
    /// Whether the binary has the XDP program.
    pub has_program: bool,
    /// The kernel.
    pub kernel: Kernel,
    /// The caller's capabilities.
    pub capabilities: Vec<String>,
    /// Those that the relay's unit gives it; none: it has no unit here.
    pub unit_capabilities: Option<Vec<String>>,
    /// `datapath.bpffs`; none: flows are not to be pinned.
    pub bpffs: Option<Bpffs>,
    /// The interfaces to attach to, or why they are not known.
    pub interfaces: Result<Vec<Interface>, String>,
    /// Processors.
    pub cpus: usize,
    /// The chains of nftables for packets to this host, or why they cannot be told.
    pub chains: Result<Vec<InputChain>, String>,
    /// Whether connections to the relay's port are left untracked; none if the rules are not known or cannot be judged.
    pub untracked: Option<bool>,
    /// ufw is enabled; whether one of its rules names the port.
    pub ufw: Option<bool>,
    /// firewalld runs.
    pub firewalld: bool,
    /// Connections that are tracked, and how many can be; none if the kernel tracks none.
    pub conntrack: Option<(u64, u64)>,
    /// Whether the host's clock is synchronised.
    pub clock: Result<bool, String>,
    /// This host's addresses, loopback ones left out.
    pub addresses: Vec<IpAddr>,
    /// The port.
    pub port_state: PortState,
    /// The relay that runs here.
    pub running: Option<Running>,
    /// What the self-test came to.
    pub self_test: SelfTest,
    /// What became of an attempt through the relay named by --from.
    pub peer: Option<(String, Result<String, String>)>,
    /// What was said by who is named by --from, when that one was asked to connect here.
    pub call_back: Option<CallBack>,
}

/// The kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its release: `6.1.0-18-amd64`.
    pub release: String,
    /// Whether it tells its types.
    pub btf: bool,
    /// net.core.bpf_jit_enable.
    pub jit: Option<u64>,
    /// kernel.unprivileged_bpf_disabled.
    pub unprivileged_bpf_disabled: Option<u64>,
    /// net.core.rmem_max.
    pub rmem_max: Option<u64>,
    /// Bytes that may be locked; none: without limit.
    pub memlock: Option<u64>,
}

impl Kernel {
    /// Whether its release is at least this one.
    pub fn is_at_least(&self, wanted: (u32, u32)) -> bool {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= wanted)
    }
}

/// A directory for pins.
#[derive(Clone, Debug)]
pub struct Bpffs {
    /// Where.
    pub directory: PathBuf,
    /// Whether it lies, or would lie, in a bpffs.
    pub mounted: bool,
    /// The user that owns it or, if it is not there, the directory above.
    pub owner: Option<u32>,
    /// Whether the caller may write there.
    pub writable: bool,
}

/// An interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// It is up and has a carrier.
    pub up: bool,
    /// The largest packet that it takes.
    pub mtu: u32,
    /// The driver's name.
    pub driver: Option<String>,
    /// What its driver can do (`basic`, `redirect`); none on kernels before 6.3.
    pub xdp_features: Option<Vec<&'static str>>,
    /// An XDP program: its id, and whether it is the running relay's.
    pub program: Option<(u32, bool)>,
    /// The features that are active, by the kernel's names.
    pub features: Option<Vec<String>>,
    /// Whether VLANs are on top of it.
    pub vlans: bool,
    /// Receive queues.
    pub queues: Option<usize>,
}

/// Who has the relay's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Nobody.
    Free,
    /// Somebody.
    Taken,
    /// It cannot be told.
    Unknown(String),
}

/// A relay that runs here.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its datapath.
    pub datapath: String,
    /// Why that one.
    pub why: String,
    /// Where agents are connected from.
    pub agents: Vec<SocketAddr>,
}

/// What came of asking somebody to connect here.
#[derive(Clone, Debug)]
pub struct CallBack {
    /// Who was asked.
    pub by: Caller,
    /// Who ought to answer here, if that is known.
    pub expected: Option<NodeId>,
    /// What came of it, or why it cannot be told.
    pub outcome: Result<Probed, String>,
}

/// Who can be asked to connect here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Another relay.
    Relay,
    /// An agent that is connected to the relay here.
    Agent(NodeId),
}

/// What the self-test came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// The datagram came out as it should.
    Passed(String),
    /// It did not.
    Failed(String),
    /// It cannot run here.
    NotRun(String),
}
