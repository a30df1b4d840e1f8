//! The relay daemon: rendezvous of agents, and the packet path that follows.
//!
//! [`Relay::start`] is the way in. [`rendezvous`] decides, [`datapath`] and [`forwarder`] forward; in between the driver
//! carries what has happened to the rendezvous and carries out what it says.

pub mod activity;
pub mod bans;
pub mod datapath;
pub mod explanation;
pub mod forwarder;
pub mod keeper;
pub mod legacy;
pub mod metrics;
pub mod prefix;
pub mod rendezvous;
pub mod report;
pub mod stopping;
pub mod udp_frame;

mod accounting;
mod control;
mod driver;
mod event_log;
mod family;
mod kept_bans;
mod line_pace;
mod listening;
mod packet_path;
mod pulse;
mod reconfiguration;
mod remembered;
mod sliding_count;
mod splice;
#[cfg(test)]
mod written;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::control::{ControlPolicy, ControlSettings, EndpointError, Rules};
use self::datapath::LAYOUT;
use self::driver::{Driver, Inputs};
use self::forwarder::{OpenError, RelayPort};
use self::keeper::{Keeper, Kept};
use self::kept_bans::KeptBans;
use self::legacy::Legacy;
use self::metrics::{Endpoint, ListenError};
use self::packet_path::{Opened, PacketPath};
use self::pulse::AskDriver;
use self::reconfiguration::Reconfiguration;
use self::rendezvous::{Access, Policy, Settings};
use self::stopping::{Stopper, Stopping};
use crate::admin::{AdminSocket, Asked, BindError, Request};
use crate::config::{Config, ConfigSource, Quotas};
use crate::identity::{NodeId, NodeKey};
use crate::protocol::bind::BindMagic;
use crate::supervision::{Announcer, Supervision, keep_telling};

pub use self::packet_path::{PathError, check_interfaces};

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    reloads: Reloader,
    stopper: Stopper,
    at_sigterm: Stopping,
    supervisor: JoinHandle<Result<(), Stopped>>,
}

/// Messages from all control connections that may wait for the driver.
const CONTROL_QUEUE_LEN: usize = 1024;

impl Relay {
    /// Starts a relay with `config`, which can be read again from `source`. It runs until it is told to stop, by
    /// [`stop`](Self::stop) or by a command. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`]: each says what to do.
    pub fn start(
        config: &Config,
        source: Option<ConfigSource>,
        key: NodeKey,
        name: &str,
    ) -> Result<Relay, StartError> {
        let nobody = |_: &mut Supervision| (Keeper::nobody(), Vec::new());
        Relay::start_with(config, source, key, name, &mut Supervision::none(), nobody)
    }

    /// As [`start`](Self::start), but it goes on with what the one before it has left with whoever keeps flows here, and
    /// leaves its own there; and whoever supervises it is told how it is.
    ///
    /// # Errors
    /// See [`StartError`]: each says what to do.
    pub fn start_under(
        config: &Config,
        source: Option<ConfigSource>,
        key: NodeKey,
        name: &str,
        supervision: &mut Supervision,
    ) -> Result<Relay, StartError> {
        let node = key.node_id();
        let bpffs = config.datapath.bpffs.as_deref();
        let find = |supervision: &mut Supervision| Keeper::find(supervision, bpffs, &node, LAYOUT);
        Relay::start_with(config, source, key, name, supervision, find)
    }

    /// `find` is called once no other daemon can be running.
    fn start_with(
        config: &Config,
        source: Option<ConfigSource>,
        key: NodeKey,
        name: &str,
        supervision: &mut Supervision,
        find: impl FnOnce(&mut Supervision) -> (Keeper, Vec<Kept>),
    ) -> Result<Relay, StartError> {
        let admin = AdminSocket::bind(&config.admin.socket)?;
        let magic = BindMagic::of_relay(&key.public());
        let (keeper, kept) = find(supervision);
        let mut legacy = Legacy::of(kept, magic.0);
        let relay_port = open_port(config, magic, &mut legacy, &keeper)?;
        let metrics = Endpoint::open(&config.metrics)?;
        let addresses = relay_port.addresses();
        let address = addresses.v4;
        let connection_ids = relay_port.connection_ids();
        let Opened { mut packets, quic, binds, left, predecessor } =
            PacketPath::open(&config.datapath, relay_port, magic, legacy, keeper)?;
        packets.drop_privilege()?;
        let control_settings = ControlSettings {
            key: key.clone(),
            name: name.to_owned(),
            max_streams_per_conn: config.transport.max_streams_per_conn,
            idle_timeout: config.transport.idle_timeout,
        };
        let quic_gone = quic.gone();
        let endpoint = control::endpoint(&control_settings, quic, &connection_ids)?;
        let limit = config.transport.relay_bandwidth_limit;
        tracing::info!(
            node = %key.node_id(), name, %address, address_v6 = addresses.v6.map(tracing::field::display),
            datapath = packets.name(), why = packets.why(), flows_kept_by = packets.kept_by(), bytes_per_s = limit.bytes_per_s,
            "relay listening"
        );
        let settings = Settings {
            key,
            limit,
            policy: policy(config),
            idle_timeout: config.transport.idle_timeout,
            advertise: config.network.advertise.clone(),
        };
        let (asked, admin_requests) = mpsc::channel(1);
        let (events, control) = mpsc::channel(CONTROL_QUEUE_LEN);
        let (observer, observers) = mpsc::channel(1);
        let rules = Arc::new(Rules::new(ControlPolicy::of(config)));
        let bans = source.as_ref().map(|source| KeptBans::restore(source.root.bans(), Arc::clone(&rules)));
        let stopper = Stopper::default();
        let announcer = supervision.announcer();
        let reconfiguration = Reconfiguration::new(config, source, announcer.clone());
        let mut driver = Driver::new(
            settings,
            address.port(),
            packets,
            Arc::clone(&rules),
            reconfiguration,
            stopper.clone(),
        );
        driver.succeed(&left, predecessor);
        let at_sigterm = driver.at_sigterm();
        let reloads = Reloader { asked: asked.clone() };
        let inputs = Inputs { control, binds, admin: admin_requests, observers };
        let watched = metrics.map(|metrics| {
            tracing::info!(address = %metrics.address(), "metrics are served");
            metrics.serve(observer)
        });
        let watched = watched.map(|serving| AbortOnDropHandle::new(tokio::spawn(serving)));
        let parts = Parts {
            driver,
            inputs,
            endpoint,
            control_settings,
            rules,
            events,
            admin,
            asked,
            quic_gone,
            watched,
            bans,
        };
        announcer.ready();
        keep_telling(supervision, AskDriver(reloads.asked.clone()));
        let supervisor = tokio::spawn(supervise(parts, stopper.clone(), at_sigterm, announcer));
        Ok(Relay { address, reloads, stopper, at_sigterm, supervisor })
    }

    /// The UDP address it listens on. Where the host has IPv6, it listens on that one's wildcard address and the same
    /// port too.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What makes it read its configuration again.
    pub fn reloader(&self) -> Reloader {
        self.reloads.clone()
    }

    /// Has it stop. [`stopped`](Self::stopped) says when it has.
    pub fn stop(&self, how: Stopping) {
        self.stopper.stop(how);
    }

    /// What has it stop, for whoever waits for it at the same time.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// How it is to stop at SIGTERM.
    pub fn at_sigterm(&self) -> Stopping {
        self.at_sigterm
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// It has stopped without being told to.
    pub async fn stopped(self) -> Result<(), Stopped> {
        self.supervisor.await.unwrap_or(Err(Stopped))
    }
}

/// Makes a relay read its configuration again.
#[derive(Clone, Debug)]
pub struct Reloader {
    asked: mpsc::Sender<Asked>,
}

impl Reloader {
    /// As `config reload` does. What comes of it is in the relay's log.
    pub async fn reload(&self) {
        let (answer, _logged_anyway) = oneshot::channel();
        let _stopped = self.asked.send(Asked { request: Request::Reload, answer }).await;
    }
}

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another daemon runs here, or the admin socket cannot be made.
    #[error(transparent)]
    Admin(#[from] BindError),
    /// The UDP port.
    #[error(transparent)]
    Port(#[from] OpenError),
    /// The packet path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// QUIC.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] ListenError),
}

/// The relay has stopped because a part of it has failed: a fault in this program.
#[derive(Debug, thiserror::Error)]
#[error("the relay has stopped because a part of it has failed: the log says more")]
pub struct Stopped;

/// How long the sockets that were let go may be in the way.
const CLOSED_WITHIN: Duration = Duration::from_secs(3);
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// The relay's port: as a predecessor has left it, or opened anew.
fn open_port(
    config: &Config,
    magic: BindMagic,
    legacy: &mut Legacy,
    keeper: &Keeper,
) -> Result<RelayPort, OpenError> {
    let (port, readers) = (config.network.port, config.datapath.readers);
    let sockets = std::mem::take(&mut legacy.sockets);
    let names: Vec<String> = sockets.keys().cloned().collect();
    if !names.is_empty() {
        if let Some(relay_port) = RelayPort::adopt(sockets, port, readers, magic.0) {
            return Ok(relay_port);
        }
        tracing::info!(
            "the sockets that were left are not those that are wanted now: the port is opened anew"
        );
        // As long as anybody has them, the port is in use.
        for name in &names {
            if let Err(error) = keeper.let_go(name) {
                tracing::warn!(name, %error, "a socket that was left cannot be given up");
            }
        }
        if let Err(error) = keeper.settle() {
            tracing::warn!(%error, "the sockets that were left may not be closed yet");
        }
        // systemd closes what it has let go of a little later.
        for _ in 0..CLOSED_WITHIN.as_millis() / BETWEEN_TRIES.as_millis() {
            match RelayPort::open(port, readers, magic.0) {
                Err(OpenError::InUse(_)) => std::thread::sleep(BETWEEN_TRIES),
                opened => return opened,
            }
        }
    }
    RelayPort::open(port, readers, magic.0)
}

/// What a configuration says of who may use the relay, and how much of it.
fn policy(config: &Config) -> Policy {
    let Quotas {
        announced_agents,
        offers_per_source,
        offers_per_target,
        sessions_per_node,
        sessions_per_prefix,
        relay_total_limit,
        ..
    } = config.quotas;
    Policy {
        access: access(config),
        announced_agents,
        offers_per_source,
        offers_per_target,
        sessions_per_node,
        sessions_per_prefix,
        relay_total_limit,
    }
}

/// What it says of who may use the relay at all.
fn access(config: &Config) -> Access {
    let listed = |nodes: &[NodeId]| nodes.iter().copied().collect();
    Access { allow: listed(&config.access.allow), deny: listed(&config.access.deny) }
}

struct Parts {
    driver: Driver,
    inputs: Inputs,
    endpoint: quinn::Endpoint,
    control_settings: ControlSettings,
    rules: Arc<Rules>,
    events: mpsc::Sender<control::ControlEvent>,
    admin: AdminSocket,
    asked: mpsc::Sender<Asked>,
    quic_gone: CancellationToken,
    /// Answers over HTTP.
    watched: Option<AbortOnDropHandle<()>>,
    /// Who is banned, for the next start.
    bans: Option<KeptBans>,
}

/// Runs the parts, and takes them down in order: agents are told while the port still works, then the port closes, and
/// the admin socket last, so that whoever waits for the end sees it. A part that fails takes the others with it, in the way
/// `if_failed`.
async fn supervise(
    parts: Parts,
    stopper: Stopper,
    if_failed: Stopping,
    announcer: Announcer,
) -> Result<(), Stopped> {
    let Parts { driver, inputs, endpoint, control_settings, rules, events, admin, asked, quic_gone, .. } =
        parts;
    let Parts { watched, mut bans, .. } = parts;
    // Cancelled when a part ends, for whatever reason.
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    let driver = tokio::spawn(async move {
        let remains = driver.run(inputs).await;
        drop(guard);
        remains
    });
    let guard = ended.clone().drop_guard();
    let serving = control::serve(endpoint.clone(), control_settings, rules, events, stopper.token());
    let mut control = tokio::spawn(async move {
        serving.await;
        drop(guard);
    });
    let admin = tokio::spawn(admin.serve(asked));
    let result = tokio::select! {
        biased;
        _ = stopper.told() => Ok(()),
        () = ended.cancelled() => Err(Stopped),
        () = keep_bans(&mut bans) => Err(Stopped),
    };
    announcer.stopping();
    stopper.stop(if_failed);
    let how = stopper.told().await;
    let remains = driver.await;
    if let Some(bans) = &mut bans {
        let _a_slow_disk = timeout(how.farewell(), bans.write()).await;
    }
    let _told_as_far_as_possible = timeout(how.farewell(), &mut control).await;
    endpoint.close(quinn::VarInt::from_u32(0), how.to_agents().as_bytes());
    let _told_as_far_as_possible = timeout(how.farewell(), endpoint.wait_idle()).await;
    control.abort();
    drop(endpoint);
    let mut awaiting_end = Vec::new();
    if let Ok(remains) = remains {
        remains.packets.close(how).await;
        awaiting_end = remains.awaiting_end;
    }
    drop(watched);
    admin.abort();
    let _aborted = admin.await;
    tracing::info!(sessions = how.words(), "relay stopped");
    for asker in awaiting_end {
        let _gone = asker.send(Ok(serde_json::Value::Null));
    }
    // Whoever starts another relay now is to find the port free.
    let _connections_to_the_unreachable_last_longer = timeout(how.farewell(), quic_gone.cancelled()).await;
    result
}

/// Has who is banned written down, for as long as it is polled.
async fn keep_bans(bans: &mut Option<KeptBans>) {
    match bans {
        Some(bans) => bans.keep().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AtlasRoot;

    fn parse(text: &str) -> Config {
        Config::parse(text, "config.toml".as_ref(), &AtlasRoot::at("/atlas")).unwrap()
    }

    #[test]
    fn what_a_configuration_does_not_say_is_the_policys_default() {
        assert_eq!(policy(&parse("")), Policy::default());
    }

    #[test]
    fn the_policy_is_what_the_configuration_says() {
        let [one, other] = [1, 2].map(|byte| NodeId::from_bytes([byte; 32]));
        let text = format!(
            "[access]\nallow = [\"{one}\"]\ndeny = [\"{other}\"]\n[quotas]\nannounced_agents = 1\n\
             offers_per_source = 2\noffers_per_target = 3\nsessions_per_node = 4\nsessions_per_prefix = 5\n\
             relay_total_limit = 6\n"
        );
        let expected = Policy {
            access: Access { allow: [one].into(), deny: [other].into() },
            announced_agents: 1,
            offers_per_source: 2,
            offers_per_target: 3,
            sessions_per_node: 4,
            sessions_per_prefix: 5,
            relay_total_limit: 6,
        };
        assert_eq!(policy(&parse(&text)), expected);
    }
}
