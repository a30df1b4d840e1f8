//! The agent's loop: carries inputs to the state and does what it says.

pub(super) mod commands;
mod sessions;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::backoff;
use super::data_socket::local_address_towards;
use super::error::{ConnectError, LinkError};
use super::event::{SessionEvent, SessionEventSender};
use super::inbox::IncomingMessage;
use super::known_relays::{KnownRelays, PinError};
use super::link::{self, LinkChange, LinkEvent, LinkSettings};
use super::live_session::LiveSession;
use super::peer::EndToEndPath;
use super::peer_endpoint::PeerEndpoint;
use super::permitted::Permitted;
use super::probe::Probes;
use super::raw::RawSession;
use super::refusal::{Refusal, RefusalLog};
use super::serving::Serving;
use super::session::SessionNews;
use super::session_path::RelayRoundTrip;
use super::settings::{AgentSettings, Incoming};
use super::splice::Waiting;
use super::state::{IncomingSessions, Now, Output, RelayIndex, RequestId, State, Use};
use super::verification::unix_s;
use crate::clock::MonoTime;
use crate::config::RelayHint;
use crate::identity::NodeId;
use crate::protocol::bind::BindEvent;
use crate::protocol::handshake::Peer;
use crate::protocol::{Message, SessionId};
use commands::Command;

/// A changed route is noticed within this time.
const ADDRESS_CHECK: Duration = Duration::from_secs(2);

/// Owns everything; the only place that reads clocks for the state.
pub(super) struct Driver {
    settings: AgentSettings,
    serving: Serving,
    waiting: Waiting,
    state: State,
    commands: mpsc::Receiver<Command>,
    stop: CancellationToken,
    link_tasks: JoinSet<()>,
    link_events: mpsc::Receiver<LinkEvent>,
    /// For the links of relays that are named while the agent runs.
    link_events_in: mpsc::Sender<LinkEvent>,
    known_relays: KnownRelays,
    probes: Probes,
    /// What ends the links of such relays.
    named: BTreeMap<RelayIndex, CancellationToken>,
    links: Vec<Option<UpLink>>,
    round_trips: Vec<RelayRoundTrip>,
    news: mpsc::UnboundedReceiver<SessionNews>,
    sessions: HashMap<SessionId, LiveSession>,
    endpoints: HashMap<NodeId, Arc<PeerEndpoint>>,
    requests: HashMap<RequestId, Asker>,
    next_request: u64,
    raw_incoming: mpsc::Sender<RawSession>,
    session_events: SessionEventSender,
    local_addresses: HashMap<SocketAddr, Option<IpAddr>>,
}

/// A relay that is connected.
struct UpLink {
    peer: Peer,
    address: SocketAddr,
    since: Instant,
    address_changed: Arc<Notify>,
    outgoing: mpsc::Sender<Message>,
    connection: quinn::Connection,
}

enum Asker {
    EndToEnd(oneshot::Sender<Result<EndToEndPath, ConnectError>>),
    Raw(oneshot::Sender<Result<RawSession, ConnectError>>),
}

impl Driver {
    pub fn new(
        settings: AgentSettings,
        commands: mpsc::Receiver<Command>,
        raw_incoming: mpsc::Sender<RawSession>,
        session_events: SessionEventSender,
        inbox: mpsc::Sender<IncomingMessage>,
        refusals: RefusalLog,
        stop: CancellationToken,
    ) -> Self {
        let (news_in, news) = mpsc::unbounded_channel();
        let (events, link_events) = mpsc::channel(64);
        let mut link_tasks = JoinSet::new();
        let known_relays = KnownRelays::at(&settings.known_relays);
        let probes = Probes::new(refusals.clone());
        for (at, address) in settings.relays.iter().enumerate() {
            let link = LinkSettings {
                key: settings.key.clone(),
                name: settings.name.clone(),
                address: address.clone(),
                named_at: None,
                known_relays: known_relays.clone(),
                probes: probes.clone(),
            };
            link_tasks.spawn(link::keep_connected(RelayIndex(at), link, events.clone(), stop.clone()));
        }
        let carries = match settings.incoming {
            Incoming::EndToEnd => Use::EndToEnd,
            Incoming::Raw => Use::Raw,
        };
        let incoming = IncomingSessions { carries, per_peer: settings.sessions_per_peer };
        let mut state = State::new(
            settings.key.node_id(),
            settings.announce,
            settings.accept.iter().copied(),
            incoming,
            settings.relays.iter().map(|relay| relay.at.to_string()).collect(),
        );
        for (at, relay) in settings.relays.iter().enumerate() {
            if let Some(node) = relay.node {
                state.relay_is(RelayIndex(at), node);
            }
        }
        let permitted =
            Arc::new(Permitted { accept: settings.accept.clone(), allow: settings.allow.clone() });
        let serving = Serving {
            key: settings.key.clone(),
            name: settings.name.clone(),
            permitted: Arc::new(watch::Sender::new(permitted)),
            refusals,
            inbox,
            news: news_in,
        };
        let waiting = Waiting::new(&settings, &serving);
        Driver {
            waiting,
            links: settings.relays.iter().map(|_| None).collect(),
            round_trips: settings.relays.iter().map(|_| RelayRoundTrip::default()).collect(),
            settings,
            serving,
            state,
            commands,
            stop,
            link_tasks,
            link_events,
            link_events_in: events,
            known_relays,
            probes,
            named: BTreeMap::new(),
            news,
            sessions: HashMap::new(),
            endpoints: HashMap::new(),
            requests: HashMap::new(),
            next_request: 0,
            raw_incoming,
            session_events,
            local_addresses: HashMap::new(),
        }
    }

    /// Runs until the agent is stopped.
    pub async fn run(mut self) {
        let mut address_check = tokio::time::interval(ADDRESS_CHECK);
        address_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            self.do_outputs();
            let deadline = self.state.deadline();
            // The coarse clock may still be before the deadline when the timer is not.
            let wait = deadline.map(|at| at.since(MonoTime::now()).max(Duration::from_millis(1)));
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(news) = self.news.recv() => self.take_news(news),
                Some(event) = self.link_events.recv() => self.take_link_event(event),
                Some(command) = self.commands.recv() => self.take_command(command),
                () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {
                    self.state.tick(now());
                }
                _ = address_check.tick() => self.check_addresses(),
            }
        }
        self.say_goodbye().await;
    }

    fn take_news(&mut self, news: SessionNews) {
        match news {
            SessionNews::Bind(id, event) => {
                if let Some(live) = self.sessions.get_mut(&id) {
                    live.take(event);
                    if let BindEvent::Moved { reflexive } = event
                        && live.is_used()
                    {
                        let relay = live.path.socket().relay();
                        self.session_events.tell(&live.session, SessionEvent::Moved { relay, reflexive });
                    }
                }
                self.state.bind_event(id, event, now());
            }
            SessionNews::UserCame(origin) => self.state.user_came(origin),
            SessionNews::UserGone(origin) => self.state.user_gone(origin, now()),
        }
    }

    fn take_link_event(&mut self, LinkEvent { relay, what }: LinkEvent) {
        if relay.0 >= self.settings.relays.len() && !self.named.contains_key(&relay) {
            // It was left meanwhile.
            return;
        }
        match what {
            LinkChange::Up { peer, address, round_trip, address_changed, outgoing, connection } => {
                tracing::info!(relay = %address, node = %peer.node_id, name = %peer.name, "connected to the relay");
                self.waiting.wait_on(&connection);
                let node = peer.node_id;
                if let Some(link) = self.links.get_mut(relay.0) {
                    *link = Some(UpLink {
                        peer,
                        address,
                        since: Instant::now(),
                        address_changed,
                        outgoing,
                        connection,
                    });
                }
                self.local_addresses.entry(address).or_insert_with(|| local_address_towards(address));
                self.measured(relay, round_trip);
                self.state.relay_is(relay, node);
                self.state.relay_up(relay, now());
            }
            LinkChange::RoundTrip(round_trip) => self.measured(relay, round_trip),
            LinkChange::Message(message) => self.state.message(relay, message, now()),
            LinkChange::Down(error) => {
                // The link has logged it: of keys both, and how to accept the new one.
                match &error {
                    LinkError::Pin(PinError::NotPinned { .. } | PinError::Changed { .. }) => {
                        self.serving.refusals.count(Refusal::RelayKey);
                    }
                    LinkError::Handshake(fault) if fault.is_ours() => {
                        self.serving.refusals.count(Refusal::RelayHandshake);
                    }
                    LinkError::OutOfScope => _ = self.serving.refusals.count(Refusal::RelayHint),
                    _ => {}
                }
                self.drop_link(relay);
                match error.is_restart() {
                    true => self.state.relay_restarts(relay, now()),
                    false => self.state.relay_down(relay, error.to_string(), now()),
                }
            }
        }
    }

    fn measured(&mut self, relay: RelayIndex, round_trip: Duration) {
        self.state.round_trip(relay, round_trip);
        if let (Some(shown), Some(smoothed)) =
            (self.round_trips.get(relay.0), self.state.smoothed_round_trip(relay))
        {
            shown.set(smoothed);
        }
    }

    fn do_outputs(&mut self) {
        while let Some(output) = self.state.next_output() {
            match output {
                Output::Send(relay, message) => self.send(relay, message),
                Output::Reconnect(relay) => self.drop_link(relay),
                Output::Follow { relay, hint, by } => self.follow(relay, hint, by),
                Output::Forget(relay) => {
                    if let Some(stop) = self.named.remove(&relay) {
                        stop.cancel();
                    }
                    self.drop_link(relay);
                }
                Output::Start { relay, terms, carries, succeeds } => {
                    let id = terms.session;
                    if let Err(end) = self.start(relay, &terms, carries, succeeds) {
                        tracing::warn!(session = %id, peer = %terms.peer, why = %end, "the session cannot begin");
                        self.state.start_failed(id, end, now());
                    }
                }
                Output::Update(terms) => {
                    if let Some(live) = self.sessions.get(&terms.session) {
                        tracing::info!(
                            session = %terms.session,
                            rate_bytes_per_s = terms.rate_bytes_per_s,
                            max_datagram_bytes = terms.max_datagram_bytes,
                            "new terms"
                        );
                        live.path.set_terms(&terms);
                    }
                }
                Output::Paired(id) => self.paired(id),
                Output::Moved { from, to } => self.moved(from, to),
                Output::Probe(id) => {
                    if let Some(live) = self.sessions.get(&id) {
                        live.path.socket().bind_now();
                    }
                }
                Output::Connected(request, id) => self.connected(request, id),
                Output::Failed(request, error) => {
                    // Whoever has stopped waiting needs no answer.
                    match self.requests.remove(&request) {
                        Some(Asker::EndToEnd(answer)) => drop(answer.send(Err(error))),
                        Some(Asker::Raw(answer)) => drop(answer.send(Err(error))),
                        None => {}
                    }
                }
                Output::Limited { session, packets, bytes } => {
                    if let Some(live) = self.sessions.get(&session) {
                        live.session.add_limited(packets, bytes);
                        self.session_events.tell(&live.session, SessionEvent::Limited { packets, bytes });
                    }
                    tracing::warn!(%session, packets, bytes, "the relay drops datagrams above the session's limit");
                }
                Output::Refused { refusal, whom, why } => {
                    self.serving.refusals.refuse(refusal, &whom, &why);
                }
                Output::End(id, end) => self.end(id, end),
            }
        }
    }

    fn send(&mut self, relay: RelayIndex, message: Message) {
        let Some(Some(link)) = self.links.get(relay.0) else {
            tracing::debug!(message = message.name(), "not connected to the relay it is for");
            return;
        };
        if link.outgoing.try_send(message).is_err() {
            tracing::warn!(relay = %link.address, "the relay does not take our messages: connecting again");
            self.drop_link(relay);
        }
    }

    /// Connects to a relay that another one has named. All agents of that one do so, so not in the same instant.
    fn follow(&mut self, relay: RelayIndex, hint: RelayHint, by: RelayIndex) {
        // Only a relay that is connected says anything, but the connection may just have been given up.
        let Some(named_at) = self.links.get(by.0).and_then(|link| Some(link.as_ref()?.address)) else {
            let why = "the relay that has named it is gone".to_owned();
            return self.state.relay_down(relay, why, now());
        };
        let known = self.links.len().max(relay.0 + 1);
        self.links.resize_with(known, || None);
        self.round_trips.resize_with(known, RelayRoundTrip::default);
        let link = LinkSettings {
            key: self.settings.key.clone(),
            name: self.settings.name.clone(),
            address: hint.into(),
            named_at: Some(named_at),
            known_relays: self.known_relays.clone(),
            probes: self.probes.clone(),
        };
        let (stop, events) = (self.stop.child_token(), self.link_events_in.clone());
        self.named.insert(relay, stop.clone());
        let pause = backoff::spread(getrandom::u64().unwrap_or(0));
        self.link_tasks.spawn(async move {
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                link::keep_connected(relay, link, events, stop).await;
            }
        });
    }

    /// Closes the connection to a relay, if there is one; its task connects again.
    fn drop_link(&mut self, relay: RelayIndex) {
        if let Some(link) = self.links.get_mut(relay.0) {
            *link = None;
        }
    }

    /// A socket that is bound to no address sends from whatever address the route says: if that has changed, so has the
    /// tuple.
    fn check_addresses(&mut self) {
        let Driver { local_addresses, sessions, links, .. } = self;
        let data = |relay: SocketAddr| {
            sessions.values().map(|live| live.path.socket()).filter(move |socket| socket.relay() == relay)
        };
        let control = |relay: SocketAddr| links.iter().flatten().filter(move |link| link.address == relay);
        local_addresses.retain(|relay, _| data(*relay).next().is_some() || control(*relay).next().is_some());
        for (relay, known) in local_addresses {
            let present = local_address_towards(*relay);
            if present.is_none() || present == *known {
                continue;
            }
            let [from, to] = [*known, present].map(|address| address.map(tracing::field::display));
            tracing::info!(%relay, from, to, "the local address has changed: telling the relay");
            *known = present;
            data(*relay).for_each(|socket| socket.bind_now());
            control(*relay).for_each(|link| link.address_changed.notify_one());
        }
    }

    async fn say_goodbye(mut self) {
        // First the peers, while the relay still forwards.
        let endpoints: Vec<_> = self.endpoints.values().cloned().collect();
        let mut goodbyes: JoinSet<()> =
            endpoints.into_iter().map(|endpoint| async move { endpoint.say_goodbye().await }).collect();
        while goodbyes.join_next().await.is_some() {}
        self.state.stop(now());
        self.do_outputs();
        // The links send what is queued, then close.
        self.links.clear();
        self.link_events.close();
        self.waiting.stop();
        while self.link_tasks.join_next().await.is_some() {}
    }
}

fn now() -> Now {
    Now { mono: MonoTime::now(), unix_s: unix_s() }
}
