//! What carries relayed packets, as the driver holds it: flow tables, XDP program, next hops and forwarder together.

use std::collections::BTreeMap;
use std::future::{pending, ready};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use relay_common::hash::HashSeed;
use relay_common::{BIND_LEN, Reason, maps};

use super::datapath::{
    Backing, Explainer, FlowTable, FlowTuple, Hook, HopWriter, Inheritance, LAYOUT, NetworkChange,
    NetworkEvents, NewTables, NextHops, Packet, Port, PortError, Program, Selection, TableSizes, Tables,
    TrialError, XdpError, ports, sessions_of,
};
use super::explanation::{Explanation, Setting};
use super::forwarder::{BindSender, Forwarder, Merging, RelayPort, Started};
use super::keeper::Keeper;
use super::legacy::{Legacy, name_of_link, wait_until_free};
use super::listening::Listening;
use super::metrics::{PathFigures, WatchedInterface};
use super::report;
use super::stopping::Stopping;
use crate::clock::MonoTime;
use crate::config::{Datapath, DatapathMode};
use crate::privilege::{self, Capabilities};
use crate::protocol::bind::BindMagic;

/// The packet path. Dropping it detaches the program and stops the readers.
pub struct PacketPath {
    /// Where flows are installed.
    pub flows: FlowTable<Option<NextHops<HopWriter>>>,
    tables: Arc<Tables>,
    network: Option<NetworkEvents>,
    program: Option<Program>,
    /// What the tables lie in without a program, if that can be kept.
    memory: Option<Backing>,
    /// Tries packets on copies.
    explainer: Explainer,
    keeper: Keeper,
    name: &'static str,
    why: String,
    forwarder: Forwarder,
    pub listening: Listening,
    bind_sender: BindSender,
}

/// What [`PacketPath::open`] gives besides the path itself.
pub struct Opened {
    /// The path.
    pub packets: PacketPath,
    /// What quinn uses as its socket.
    pub quic: Arc<super::forwarder::QuicSocket>,
    /// Bind datagrams from agents.
    pub binds: tokio::sync::mpsc::Receiver<super::forwarder::BindDatagram>,
    /// The sessions that a predecessor has left.
    pub left: Inheritance,
    /// What it has left besides.
    pub predecessor: Predecessor,
}

/// What a predecessor has left, until the present relay lives on its own.
pub struct Predecessor {
    legacy: Legacy,
    sockets: Vec<(String, OwnedFd)>,
    /// Its tables are the present ones.
    adopted: bool,
}

impl PacketPath {
    /// Gets the datapath that `wanted` asks for, and starts forwarding over `relay_port`. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// An interface does not exist, the datapath asked for by name cannot be had, or the system refuses threads.
    pub fn open(
        wanted: &Datapath,
        relay_port: RelayPort,
        magic: BindMagic,
        mut legacy: Legacy,
        keeper: Keeper,
    ) -> Result<Opened, PathError> {
        let (network, ports, obstacle) = match look_around(wanted) {
            Ok((network, ports)) => (network, ports, None),
            // Where the kernel does not answer (some containers), userspace still forwards.
            Err(error) if wanted.mode == DatapathMode::Auto && !error.is_the_operators() => {
                (None, Vec::new(), Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        let new = NewTables {
            sizes: TableSizes::for_sessions(wanted.max_sessions),
            hash_seed: random_hash_seed()?,
            bind_magic: magic.0,
            in_memory_files: keeper.keeps_all(),
        };
        if !keeper.foreign().is_empty() {
            if let Err(error) = keeper.let_go_foreign() {
                tracing::error!(%error, "what another version has left cannot be removed");
            }
            ports.iter().filter(|port| !legacy.links.contains_key(&port.index)).for_each(|port| {
                wait_until_free(port.index);
            });
        }
        if let Some(fault) = &legacy.fault {
            tracing::error!(%fault, "the tables that the relay before has left cannot be gone on with: its sessions are lost");
        }
        // Without sessions there is no need for their size.
        let is_empty =
            |left: &Backing| left.tables().is_ok_and(|tables| sessions_of(&tables).sessions.is_empty());
        legacy.tables.take_if(|left| left.sizes() != new.sizes && is_empty(left));
        let selection = Selection::make(wanted.mode, &ports, new, &mut legacy, &keeper)?;
        let name = selection.name();
        let Selection { tables, mut program, egress, hook, adopted, memory, why } = selection;
        if let Some(program) = &mut program {
            program.follow_log()?;
        }
        let why = obstacle.unwrap_or(why);
        let best = Hook::Native.name();
        if wanted.mode == DatapathMode::Auto && name != best {
            tracing::warn!(wanted = best, datapath = name, why, "not the fastest datapath");
        }
        let hops = match egress {
            Some(egress) => {
                let writer = HopWriter::new(Arc::clone(&tables), egress);
                let mut hops = NextHops::open(writer).map_err(PathError::Netlink)?;
                let attached = program.iter().flat_map(Program::attached);
                hops.set_ingress(attached.map(|(port, hook)| (port.index, hook)).collect());
                Some(hops)
            }
            None => None,
        };
        let explainer = match hook.map(|hook| Explainer::with_program(hook, new.hash_seed, magic.0)) {
            Some(Ok(explainer)) => explainer,
            None => Explainer::without_program(new.hash_seed, magic.0),
            Some(Err(error)) => {
                tracing::warn!(%error, "`explain` will tell what the forwarder does, and not what the program does");
                Explainer::without_program(new.hash_seed, magic.0)
            }
        };
        let listening = Listening(relay_port.addresses());
        let sockets = relay_port.descriptors().map_err(PathError::Forwarder)?;
        let (flows, left) = match &legacy.tables {
            Some(_) if adopted => FlowTable::adopt(Arc::clone(&tables), hops, MonoTime::now()),
            Some(old) => {
                let old = old.tables().map_err(PathError::Legacy)?;
                (FlowTable::new(Arc::clone(&tables), hops), sessions_of(&old))
            }
            None => (FlowTable::new(Arc::clone(&tables), hops), Inheritance::default()),
        };
        let Started { forwarder, quic, binds, bind_sender } =
            Forwarder::start(relay_port, Arc::clone(&tables), Merging::beside(hook))
                .map_err(PathError::Forwarder)?;
        let network = network.filter(|_| program.is_some());
        let sizes = tables.sizes();
        if sizes != new.sizes {
            tracing::warn!(
                max_sessions = sizes.slots,
                asked = new.sizes.slots,
                "the tables keep the size they had: datapath.max_sessions has its effect at a start without sessions"
            );
        }
        tracing::info!(
            max_sessions = sizes.slots,
            bytes = sizes.bytes(),
            bytes_per_session = sizes.bytes() / u64::from(sizes.slots),
            adopted,
            sessions = left.sessions.len(),
            "flow tables made"
        );
        let packets = PacketPath {
            flows,
            tables,
            network,
            program,
            memory,
            explainer,
            keeper,
            name,
            why,
            forwarder,
            listening,
            bind_sender,
        };
        let predecessor = Predecessor { legacy, sockets, adopted };
        Ok(Opened { packets, quic, binds, left, predecessor })
    }

    /// Has the keeper keep what the path lives on, and let go of what it does not any more. To be called once the sessions
    /// that were left are in the tables: attachments that are not used any more are detached here.
    ///
    /// Where the keeper refuses, nothing is kept.
    pub fn keep(&mut self, predecessor: Predecessor) {
        if let Err(error) = self.keep_all(predecessor) {
            tracing::warn!(%error, "what the relay lives on cannot be kept: a restart will end all sessions");
            // What is kept already is of no use without the rest.
            if let Err(error) = std::mem::take(&mut self.keeper).clear() {
                tracing::warn!(%error, "and part of it stays kept");
            }
        }
    }

    fn keep_all(&self, predecessor: Predecessor) -> io::Result<()> {
        let Predecessor { legacy, sockets, adopted } = predecessor;
        if !adopted {
            // Parts of both would make sessions that there never were.
            self.keeper.let_go(maps::META)?;
        }
        let mut present = Vec::new();
        let mut keep = |name: String, descriptor: BorrowedFd<'_>, is_kept: bool| {
            if is_kept {
                self.keeper.keep(&name, descriptor)?;
                present.push(name);
            }
            Ok::<(), io::Error>(())
        };
        let (bpf, all) = (self.keeper.keeps_bpf(), self.keeper.keeps_all());
        // The record of the tables last: without it nothing of them is gone on with.
        let (meta, parts): (Vec<_>, Vec<_>) = self.backing().partition(|(name, _)| *name == maps::META);
        let of_tables = parts.into_iter().chain(meta);
        for (name, descriptor) in of_tables {
            keep(name.to_owned(), descriptor, if self.program.is_some() { bpf } else { all })?;
        }
        for (interface, link) in self.program.iter().flat_map(Program::links) {
            keep(name_of_link(interface), link, bpf)?;
        }
        for (name, socket) in &sockets {
            keep(name.clone(), socket.as_fd(), all)?;
        }
        legacy.let_go_but(&present, &self.keeper)
    }

    fn backing(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let backing = self.program.as_ref().map(Program::backing).or(self.memory.as_ref());
        backing.into_iter().flat_map(Backing::descriptors)
    }

    /// Gives up what privilege the calling thread has left, and proves that the path works without: once it has begun, it
    /// is too late to find that out. Everything that takes privilege has to be open.
    ///
    /// # Errors
    /// A flow cannot be installed, found or removed any more, or the program's counters not be read.
    pub fn drop_privilege(&mut self) -> Result<(), PathError> {
        let kept = privilege::drop_all().map_err(PathError::Privilege)?;
        self.flows.prove(MonoTime::now())?;
        self.program.as_ref().map(Program::tallies).transpose().map_err(PathError::Counters)?;
        tracing::info!(capabilities = %kept, "privilege dropped; a flow was installed, found and removed without");
        Ok(())
    }

    /// How the relay is to stop at SIGTERM: so that flows go on, if somebody keeps them.
    pub fn at_sigterm(&self) -> Stopping {
        Stopping::at_sigterm(&self.keeper, self.is_in_kernel())
    }

    /// Takes the path down, or leaves it as it is to a successor. Once this returns, the relay's port is closed as far as
    /// the path has it open.
    pub async fn close(self, how: Stopping) {
        let PacketPath { forwarder, program, keeper, .. } = self;
        // A link that nobody has any more is detached.
        drop(program);
        if how == Stopping::End
            && let Err(error) = keeper.clear()
        {
            tracing::error!(%error, "something is still kept of this relay: `atlas-relay xdp unload` removes it");
        }
        forwarder.stop().await;
    }

    /// Whether it is the XDP program that forwards.
    pub fn is_in_kernel(&self) -> bool {
        self.program.is_some()
    }

    /// `xdp-native`, `xdp-generic` or `userspace`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Why this datapath, for people.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Who keeps the flows while no daemon runs, or why nobody does, for people.
    pub fn kept_by(&self) -> String {
        let why = self.keeper.why();
        match (self.at_sigterm(), self.keeper.keeps_bpf()) {
            (Stopping::Leave, _) => why.to_owned(),
            (Stopping::End, false) => format!("nobody: {why}"),
            (Stopping::End, true) => format!("nobody: {why} keep no sockets, which this datapath lives on"),
        }
    }

    /// Sends a bind datagram from the relay's port.
    pub fn send_bind(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8; BIND_LEN]) {
        self.bind_sender.send_bind(from, to, bytes);
    }

    /// Waits until something changes in the host's network that next hops depend on, or until the consequences of such
    /// a change are to be drawn for more sessions. Cancelling loses nothing.
    pub async fn network_change(&mut self) -> NetworkChange {
        let rerouting = self.flows.is_rerouting();
        match &mut self.network {
            Some(network) => tokio::select! {
                biased;
                change = network.next() => change,
                () = ready(()), if rerouting => NetworkChange::default(),
            },
            None => pending().await,
        }
    }

    /// Makes the next hops follow a change.
    pub fn follow(&mut self, change: &NetworkChange) {
        let Some(hops) = self.flows.routes() else { return };
        let routes_changed = hops.refresh(change);
        if let Some(program) = &self.program {
            for index in
                hops.table().ingress().filter(|index| change.everything || change.links.contains(index))
            {
                match hops.table().link(index) {
                    Some(link) => program.describe(&self.tables, link),
                    None => tracing::error!(
                        index,
                        "an interface that the program was attached to is gone: restart the relay once it is back"
                    ),
                }
            }
        }
        if routes_changed {
            self.flows.reroute();
        }
        self.flows.reroute_some();
    }

    /// What forwards, and what became of the packets, for metrics.
    ///
    /// # Errors
    /// The program's counters cannot be read.
    pub fn figures(&mut self) -> Result<PathFigures, XdpError> {
        let attached = self.program.iter().flat_map(Program::attached);
        let mut interfaces: Vec<WatchedInterface> = attached
            .map(|(port, hook)| WatchedInterface {
                index: port.index,
                name: port.name.clone(),
                mode: Some(hook.name()),
            })
            .collect();
        if let Some(hops) = self.flows.routes() {
            let leaving = hops.table().egress().into_iter().filter_map(|index| hops.table().link(index));
            for link in leaving {
                if interfaces.iter().all(|interface| interface.index != link.index) {
                    let (index, name) = (link.index, link.name.clone());
                    interfaces.push(WatchedInterface { index, name, mode: None });
                }
            }
        }
        let marked = self.program.as_ref().map(Program::marked).transpose()?.map(|marked| ("kernel", marked));
        Ok(PathFigures {
            mode: self.name,
            why: self.why.clone(),
            keeper: self.keeper.name(),
            keeper_why: self.keeper.why().to_owned(),
            interfaces,
            kernel: self.program.as_ref().map(Program::tallies).transpose()?.unwrap_or_default(),
            userspace: Reason::ALL.iter().map(|reason| (*reason, self.forwarder.tally(*reason))).collect(),
            marked: marked.into_iter().chain([("userspace", self.forwarder.marked())]).collect(),
            socket_queue_drops: self.forwarder.socket_queue_drops(),
            slots_used: self.flows.installed(),
            slots: self.flows.capacity(),
            table_bytes: self.tables.sizes().bytes(),
        })
    }

    /// What would become of a packet of this tuple. Nothing of its session changes.
    ///
    /// # Errors
    /// There is no such packet, or it cannot be tried.
    pub fn explain(&mut self, tuple: FlowTuple, packet: Packet) -> Result<Explanation, String> {
        let fate = self.explainer.explain(&self.tables, tuple, packet, MonoTime::now());
        let fate = fate.map_err(|error| error.to_string())?;
        let not_listening = match &fate.flow {
            Some(_) => None,
            None => self.listening.why_not(tuple.relay),
        };
        let mut setting = Setting { datapath: self.name, not_listening, ..Setting::default() };
        if let Some(hops) = self.flows.routes() {
            let unreadable = |error: io::Error| format!("asking the kernel for the next hop: {error}");
            let mut name = |index| hops.interface_name(index).map_err(unreadable);
            setting.interface = fate.interface.map(&mut name).transpose()?.flatten();
            let hop = fate.flow.as_ref().and_then(|flow| flow.hop).filter(|hop| hop.interface != 0);
            setting.egress = hop.map(|hop| name(hop.interface)).transpose()?.flatten();
            let other =
                fate.flow.as_ref().and_then(|flow| flow.tuples.get(flow.side.other().index()).copied()?);
            let way = other.map(|other| hops.way_to(other.agent.ip(), other.relay.ip()));
            setting.way = way.transpose().map_err(unreadable)?.flatten();
        }
        Ok(Explanation::of(tuple.agent.to_string(), tuple.relay.to_string(), &fate, setting))
    }

    /// What forwards, and what became of the packets.
    ///
    /// # Errors
    /// The program's counters cannot be read.
    pub fn status(&self) -> Result<report::Status, XdpError> {
        let (mut interfaces, mut kernel) = (Vec::new(), BTreeMap::new());
        if let Some(program) = &self.program {
            for (port, hook) in program.attached() {
                interfaces.push(report::Interface { name: port.name.clone(), mode: hook.name().to_owned() });
            }
            for (reason, tally) in program.tallies()? {
                kernel.insert(reason.name().to_owned(), tally.packets);
            }
        }
        let count = |reason: &Reason| (reason.name().to_owned(), self.forwarder.count(*reason));
        let mut userspace: BTreeMap<String, u64> = Reason::ALL.iter().map(count).collect();
        // Not a reason of ours: the kernel dropped these before anybody could look at them.
        userspace.insert("socket_queue_full".to_owned(), self.forwarder.socket_queue_drops());
        Ok(report::Status {
            datapath: self.name.to_owned(),
            why: self.why.clone(),
            interfaces,
            table: report::Table {
                sessions: self.flows.installed(),
                max_sessions: self.flows.capacity(),
                bytes: self.tables.sizes().bytes(),
            },
            kernel,
            userspace,
            capabilities: privilege::of_process().ok().map(Capabilities::names),
            layout: LAYOUT,
            kept_by: self.kept_by(),
            survives_restart: self.at_sigterm() == Stopping::Leave,
            ..report::Status::default()
        })
    }
}

/// Checks that the interfaces `wanted` names are there. What this host may lack is no fault where the datapath is chosen
/// by what there is.
///
/// # Errors
/// `PacketPath::open` would fail for their sake.
pub fn check_interfaces(wanted: &Datapath) -> Result<(), PathError> {
    if wanted.mode == DatapathMode::Userspace {
        return Ok(());
    }
    match ports::named(&wanted.interfaces).map_err(PathError::from) {
        Err(error) if wanted.mode != DatapathMode::Auto || error.is_the_operators() => Err(error),
        _ => Ok(()),
    }
}

/// There is no packet path.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// An interface that was named does not exist, or the kernel does not tell.
    #[error(transparent)]
    Ports(#[from] PortError),
    /// The datapath that was asked for cannot be had.
    #[error("{0}{hint}", hint = way_round(.0))]
    Xdp(#[from] XdpError),
    /// The kernel does not answer questions about its network.
    #[error("asking the kernel for routes: {0}")]
    Netlink(#[source] io::Error),
    /// What a predecessor has left cannot be read.
    #[error("reading the tables that the relay before has left: {0}")]
    Legacy(#[source] io::Error),
    /// The readers cannot start.
    #[error("starting the userspace forwarder: {0}")]
    Forwarder(#[source] io::Error),
    /// Capabilities cannot be given up.
    #[error("giving up capabilities: {0}")]
    Privilege(#[source] io::Error),
    /// The tables cannot be used without them.
    #[error("without capabilities the flow tables do not work: {0}; --datapath userspace needs none")]
    Trial(#[from] TrialError),
    /// Nor the program's counters.
    #[error(
        "without capabilities the program's counters cannot be read: {0}; --datapath userspace needs none"
    )]
    Counters(#[source] XdpError),
    /// The random number generator failed.
    #[error("the operating system gives no random numbers")]
    NoRandomness,
}

impl PathError {
    /// Whether it is a mistake to be corrected, and not something this host does not have.
    fn is_the_operators(&self) -> bool {
        matches!(self, PathError::Ports(PortError::Unknown { .. }))
    }
}

/// What a relay can do where the program cannot be attached.
fn way_round(error: &XdpError) -> &'static str {
    if matches!(error, XdpError::Attach { .. }) { "; or use --datapath userspace" } else { "" }
}

/// The interfaces to attach to, and news of the network from before they were looked up: no change is missed.
fn look_around(wanted: &Datapath) -> Result<(Option<NetworkEvents>, Vec<Port>), PathError> {
    if wanted.mode == DatapathMode::Userspace {
        return Ok((None, Vec::new()));
    }
    let network = NetworkEvents::subscribe().map_err(PathError::Netlink)?;
    let ports = match &wanted.interfaces[..] {
        [] => ports::towards_the_internet()?,
        names => ports::named(names)?,
    };
    Ok((Some(network), ports))
}

fn random_hash_seed() -> Result<HashSeed, PathError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| PathError::NoRandomness)?;
    let both = u128::from_ne_bytes(bytes);
    Ok([both as u64, (both >> 64) as u64])
}
