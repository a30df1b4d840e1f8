//! What a host is like for a relay, what is wrong with it, and what mends that.
//!
//! [`findings`] judges [`Facts`], purely; the files in `sources` find them out, one for each place they come from. The list of
//! all checks, with levels and commands, is [`Check`]'s.

mod call_back;
pub mod check;
pub mod facts;
mod findings;
pub mod packet_rules;
mod reach;
mod self_test;
mod sources;
mod wire;

use std::path::PathBuf;

pub use call_back::{call_back, call_back_by_agent};
pub use check::{Check, Finding, Level};
pub use facts::{CallBack, Caller, Facts, SelfTest};
pub use findings::findings;
pub use reach::reach;

use crate::admin::{self, Request};
use crate::config::{AtlasRoot, Config, Role};
use crate::identity::NodeKey;
use crate::privilege;
use crate::relay::datapath::{Netlink, OBJECT};
use crate::relay::report::{Peers, Status};
use facts::Running;
use packet_rules::Newcomer;

/// What is to be looked at.
#[derive(Clone, Debug)]
pub struct Question {
    /// The node.
    pub root: AtlasRoot,
    /// Interfaces, instead of those of the configuration.
    pub interfaces: Vec<String>,
}

/// Finds out all there is to know, but for what --from asks. Nothing on the host changes: the self-test has a network namespace
/// of its own.
pub fn look(question: &Question) -> Facts {
    let Question { root, interfaces } = question;
    let config_path: PathBuf = root.config();
    let read = Config::load(&config_path, root);
    let configuration = match &read {
        Ok(config) => Ok(match config.role() {
            Role::Relay => "a relay",
            Role::Agent => "an agent",
        }),
        Err(error) => Err(error.to_string()),
    };
    // What can be looked at is looked at as with a configuration that says nothing.
    let config = read.or_else(|_| Config::parse("", &config_path, root)).ok();
    let datapath = config.as_ref().map(|config| config.datapath.clone());
    let named = match &interfaces[..] {
        [] => datapath.as_ref().map(|datapath| datapath.interfaces.clone()).unwrap_or_default(),
        _ => interfaces.clone(),
    };
    let (socket, _) = Config::admin_socket(&config_path, root);
    let (running, attached) = match running(&socket) {
        Some((running, attached)) => (Some(running), attached),
        None => (None, Vec::new()),
    };
    let port = config.as_ref().map_or(0, |config| config.network.port);
    let addresses = Netlink::open().and_then(|mut netlink| netlink.addresses()).unwrap_or_default();
    let interfaces = sources::interfaces::interfaces(&named, &attached);
    let interface = match interfaces.as_deref() {
        Ok([one]) => Some(one.name.as_str()),
        _ => None,
    };
    let filters = sources::filters::filters(Newcomer { port, interface });
    Facts {
        root: root.path().to_owned(),
        config: config_path,
        socket,
        identity: NodeKey::load(&root.node_key())
            .map(|key| key.node_id().to_string())
            .map_err(|error| error.to_string()),
        configuration,
        mode: datapath.as_ref().map_or_else(Default::default, |datapath| datapath.mode),
        port,
        advertise: config.as_ref().map(|config| config.network.advertise.clone()).unwrap_or_default(),
        has_program: OBJECT.is_some(),
        kernel: sources::kernel::kernel(),
        capabilities: privilege::of_caller().map(privilege::Capabilities::names).unwrap_or_default(),
        unit_capabilities: sources::unit::capabilities(),
        bpffs: datapath.and_then(|datapath| datapath.bpffs).map(sources::bpffs::bpffs),
        interfaces,
        cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        chains: filters.chains,
        untracked: filters.untracked,
        ufw: sources::filters::ufw(port),
        firewalld: sources::filters::firewalld(),
        conntrack: sources::filters::conntrack(),
        clock: sources::host_clock::is_synchronised(),
        addresses: addresses.into_iter().filter(|address| !address.is_loopback()).collect(),
        port_state: sources::port::state(port),
        running,
        self_test: self_test::run(),
        peer: None,
        call_back: None,
    }
}

/// The relay that runs here, and the interfaces its program is attached to.
fn running(socket: &std::path::Path) -> Option<(Running, Vec<String>)> {
    let ask = |request| admin::ask(socket, request).ok();
    let status: Status = serde_json::from_value(ask(Request::Status)?).ok()?;
    let peers: Peers = serde_json::from_value(ask(Request::Peers)?).ok()?;
    let agents = peers.peers.iter().filter_map(|peer| peer.address.parse().ok()).collect();
    let attached = status.interfaces.into_iter().map(|interface| interface.name).collect();
    Some((Running { datapath: status.datapath, why: status.why, agents }, attached))
}
