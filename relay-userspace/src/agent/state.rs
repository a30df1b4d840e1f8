//! What an agent decides: which relay to ask, which sessions to take, when to give up. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use relay_common::Side;

use super::error::{ConnectError, SessionEnd};
use super::refusal::Refusal;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::bind::BindEvent;
use crate::protocol::flow_terms::{
    Disconnect, ErrorMessage, FLOW, FlowTerms, ReadyStatus, RelayAnnounce, RelayConnect, RelayError,
    RelayReady, disconnect_reason,
};
use crate::protocol::handshake::printable;
use crate::protocol::message::{Ping, Pong};
use crate::protocol::{ErrorCode, Message, SessionId};

/// A relay's place in `network.relays`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelayIndex(pub usize);

/// One request to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a session carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The agents' own QUIC. Several connections share one session.
    EndToEnd,
    /// The application's datagrams. Each request has a session of its own.
    Raw,
}

/// What becomes of sessions that others ask for.
#[derive(Clone, Copy, Debug)]
pub struct IncomingSessions {
    /// What each carries.
    pub carries: Use,
    /// How many one peer may have at a time.
    pub per_peer: usize,
}

/// The present, as the driver reads it.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines.
    pub mono: MonoTime,
    /// For timestamps: seconds since the Unix epoch.
    pub unix_s: i64,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a message to a relay.
    Send(RelayIndex, Message),
    /// Drop the connection to a relay, which does not answer, and connect again.
    Reconnect(RelayIndex),
    /// Open a data socket and bind.
    Start {
        /// Through which relay.
        relay: RelayIndex,
        /// The session.
        terms: Box<FlowTerms>,
        /// What it will carry.
        carries: Use,
    },
    /// The relay has sent a session's terms again.
    Update(Box<FlowTerms>),
    /// Both sides are bound.
    Paired(SessionId),
    /// Hand the session to whoever asked; it has one user more.
    Connected(RequestId, SessionId),
    /// Tell whoever asked.
    Failed(RequestId, ConnectError),
    /// The relay drops datagrams of this session for its limit.
    Limited {
        /// The session.
        session: SessionId,
        /// Datagrams dropped since the last notice.
        packets: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Count and log that something was refused.
    Refused {
        /// Which kind.
        refusal: Refusal,
        /// The peer's id, or the relay's `HOST:PORT`.
        whom: String,
        /// Details, and what would permit it.
        why: String,
    },
    /// Close the data socket and everything on it.
    End(SessionId, SessionEnd),
}

/// A both-sides deadline: a pairing takes at most this long, from the question to `paired`.
pub const PAIRING_TIMEOUT: Duration = Duration::from_secs(10);

/// A target keeps an unused session this long.
pub const UNUSED_TARGET: Duration = Duration::from_secs(15);

/// Sessions that others have asked for, from all of them together. Each is a socket and, raw, a queue of datagrams.
pub const MAX_TARGET_SESSIONS: usize = 64;

/// Documented: a Ping to each connected peer this often,
pub const PING_INTERVAL: Duration = Duration::from_secs(60);

/// and this many unanswered ones end the connection.
pub const MISSED_PONGS: u32 = 3;

/// The agent's mind.
#[derive(Debug)]
pub struct State {
    me: NodeId,
    announce: bool,
    accept: BTreeSet<NodeId>,
    incoming: IncomingSessions,
    relays: Vec<Relay>,
    sessions: BTreeMap<SessionId, Session>,
    requests: BTreeMap<RequestId, Request>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Relay {
    /// `HOST:PORT`, for messages.
    name: String,
    link: Link,
}

#[derive(Debug)]
enum Link {
    /// No attempt has ended yet.
    Connecting,
    Up {
        announced: bool,
        next_ping: MonoTime,
        unanswered_pings: u32,
    },
    Down {
        why: String,
    },
}

#[derive(Debug)]
struct Session {
    relay: RelayIndex,
    peer: NodeId,
    side: Side,
    carries: Use,
    paired: bool,
    users: usize,
    /// When it began, was paired, or lost its last user.
    since: MonoTime,
}

#[derive(Debug)]
struct Request {
    peer: NodeId,
    carries: Use,
    deadline: MonoTime,
    tried: BTreeSet<RelayIndex>,
    stage: Stage,
    /// The first refusal, told if no relay does better.
    refusal: Option<ConnectError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No relay to ask yet.
    Waiting,
    /// RelayConnect has been sent.
    Asked(RelayIndex),
    /// The session binds.
    Binding(SessionId),
}

impl State {
    /// An agent that knows its relays by these `HOST:PORT`s and is connected to none.
    pub fn new(
        me: NodeId,
        announce: bool,
        accept: impl IntoIterator<Item = NodeId>,
        incoming: IncomingSessions,
        relays: Vec<String>,
    ) -> Self {
        State {
            me,
            announce,
            accept: accept.into_iter().collect(),
            incoming,
            relays: relays.into_iter().map(|name| Relay { name, link: Link::Connecting }).collect(),
            sessions: BTreeMap::new(),
            requests: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// The next thing to do. To be asked until None after every input.
    pub fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// A relay is connected and has passed the handshake.
    pub fn relay_up(&mut self, relay: RelayIndex, now: Now) {
        let Some(entry) = self.relays.get_mut(relay.0) else { return };
        entry.link = Link::Up { announced: false, next_ping: now.mono + PING_INTERVAL, unanswered_pings: 0 };
        self.announce_to(relay, now);
        self.ask_for_waiting(now);
    }

    fn announce_to(&mut self, relay: RelayIndex, now: Now) {
        if self.announce {
            let announce = RelayAnnounce {
                node_id: self.me.to_string(),
                timestamp: now.unix_s,
                flow: Some(FLOW),
                allow: Some(self.accept.iter().map(NodeId::to_string).collect()),
            };
            self.outputs.push_back(Output::Send(relay, announce.into()));
        }
    }

    /// Others may connect from now on. Sessions that others asked for and may not have any more end.
    pub fn set_accept(&mut self, accept: BTreeSet<NodeId>, now: Now) {
        if accept == self.accept {
            return;
        }
        self.accept = accept;
        for relay in (0..self.relays.len()).map(RelayIndex) {
            if matches!(self.relays.get(relay.0), Some(Relay { link: Link::Up { .. }, .. })) {
                self.announce_to(relay, now);
            }
        }
        let asked_for = self.sessions.iter().filter(|(_, session)| session.side == Side::Target);
        let ended = asked_for.filter(|(_, session)| !self.accept.contains(&session.peer));
        for id in ended.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_and_tell(id, SessionEnd::NoLongerAccepted, disconnect_reason::SHUTDOWN, now);
        }
    }

    /// A relay could not be reached, or its connection is gone. Sessions through it go on.
    pub fn relay_down(&mut self, relay: RelayIndex, why: String, now: Now) {
        let Some(entry) = self.relays.get_mut(relay.0) else { return };
        entry.link = Link::Down { why };
        for request in self.requests.values_mut() {
            if request.stage == Stage::Asked(relay) {
                request.stage = Stage::Waiting;
            }
        }
        self.ask_for_waiting(now);
    }

    /// Somebody wants a session with `peer`.
    pub fn connect(&mut self, id: RequestId, peer: NodeId, carries: Use, now: Now) {
        if peer == self.me {
            return self.outputs.push_back(Output::Failed(id, ConnectError::Itself(peer)));
        }
        if self.relays.is_empty() {
            return self.outputs.push_back(Output::Failed(id, ConnectError::NoRelay));
        }
        if carries == Use::EndToEnd
            && let Some((session, entry)) = self.sessions.iter_mut().find(|(_, entry)| entry.serves(peer))
        {
            entry.users += 1;
            return self.outputs.push_back(Output::Connected(id, *session));
        }
        let request = Request {
            peer,
            carries,
            deadline: now.mono + PAIRING_TIMEOUT,
            tried: BTreeSet::new(),
            stage: Stage::Waiting,
            refusal: None,
        };
        self.requests.insert(id, request);
        self.ask_for_waiting(now);
    }

    /// A relay has sent a message.
    pub fn message(&mut self, relay: RelayIndex, message: Message, now: Now) {
        match message {
            Message::RelayReady(ready) => self.ready(relay, &ready, now),
            Message::RelayError(error) => self.relay_error(relay, error, now),
            Message::Disconnect(Disconnect { reason, note, session: Some(session) }) => {
                let end = SessionEnd::told(&printable(&reason, 64), note.map(|note| printable(&note, 256)));
                if self.sessions.get(&session).is_some_and(|entry| entry.relay == relay) {
                    self.end(session, end, now);
                }
            }
            Message::Error(ErrorMessage { session: Some(session), packets, bytes, .. }) => {
                if self.sessions.get(&session).is_some_and(|entry| entry.relay == relay) {
                    let (packets, bytes) = (packets.unwrap_or(0), bytes.unwrap_or(0));
                    self.outputs.push_back(Output::Limited { session, packets, bytes });
                }
            }
            Message::Error(error) => {
                tracing::warn!(
                    relay = self.relay_name(relay),
                    code = error.code,
                    message = printable(&error.message, 256),
                    "the relay reports an error"
                );
            }
            Message::Ping(Ping { ts }) => {
                self.outputs.push_back(Output::Send(relay, Pong { ts: now.unix_s, echo: ts }.into()));
            }
            Message::Pong(_) => {
                if let Some(Relay { link: Link::Up { unanswered_pings, .. }, .. }) =
                    self.relays.get_mut(relay.0)
                {
                    *unanswered_pings = 0;
                }
            }
            other => {
                let why = format!("an agent takes no {}", other.name());
                let refusal = ErrorMessage::new(ErrorCode::MessageRejected, why.clone());
                self.outputs.push_back(Output::Send(relay, refusal.into()));
                self.count(Refusal::UnexpectedMessage, self.relay_name(relay), why);
            }
        }
    }

    /// The bind exchange of a session has led to something.
    pub fn bind_event(&mut self, id: SessionId, event: BindEvent, now: Now) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match event {
            BindEvent::Half { .. } | BindEvent::Moved { .. } => {}
            BindEvent::Paired { .. } => {
                session.paired = true;
                session.since = now.mono;
                let waiting: Vec<RequestId> = self
                    .requests
                    .iter()
                    .filter(|(_, request)| request.stage == Stage::Binding(id))
                    .map(|(request, _)| *request)
                    .collect();
                session.users += waiting.len();
                if session.users == 0 && session.side == Side::Connector {
                    // Whoever asked has given up meanwhile.
                    return self.end_and_tell(id, SessionEnd::Closed, disconnect_reason::SHUTDOWN, now);
                }
                self.outputs.push_back(Output::Paired(id));
                for request in waiting {
                    self.requests.remove(&request);
                    self.outputs.push_back(Output::Connected(request, id));
                }
            }
            BindEvent::Lost => {
                let relay =
                    self.relay_name(self.sessions.get(&id).map_or(RelayIndex(0), |entry| entry.relay));
                self.end_and_tell(
                    id,
                    SessionEnd::ConsentLost { relay },
                    disconnect_reason::CONSENT_LOST,
                    now,
                );
            }
        }
    }

    /// A session's terms cannot be used, or its data socket could not be opened.
    pub fn start_failed(&mut self, id: SessionId, end: SessionEnd, now: Now) {
        self.end_and_tell(id, end, disconnect_reason::SHUTDOWN, now);
    }

    /// The session has one user more, a connection that the peer has opened.
    pub fn user_came(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.users += 1;
        }
    }

    /// The session has one user less. A connector's session ends with its last.
    pub fn user_gone(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.users = session.users.saturating_sub(1);
        session.since = now.mono;
        if session.users == 0 && session.side == Side::Connector {
            self.end_and_tell(id, SessionEnd::Closed, disconnect_reason::SHUTDOWN, now);
        }
    }

    /// The agent is being stopped: ends every session and request, and says goodbye.
    pub fn stop(&mut self, now: Now) {
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.end_and_tell(id, SessionEnd::Stopped, disconnect_reason::SHUTDOWN, now);
        }
        for id in std::mem::take(&mut self.requests).into_keys() {
            self.outputs.push_back(Output::Failed(id, ConnectError::Stopped));
        }
        for (relay, entry) in self.relays.iter().enumerate() {
            if matches!(entry.link, Link::Up { .. }) {
                let goodbye =
                    Disconnect { reason: disconnect_reason::SHUTDOWN.to_owned(), note: None, session: None };
                self.outputs.push_back(Output::Send(RelayIndex(relay), goodbye.into()));
            }
        }
    }

    /// Whatever has come due.
    pub fn tick(&mut self, now: Now) {
        let late: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| r.deadline <= now.mono).map(|(id, _)| *id).collect();
        for id in late {
            let Some(request) = self.requests.remove(&id) else { continue };
            let error = self.lateness(&request);
            self.outputs.push_back(Output::Failed(id, error));
        }
        let over: Vec<(SessionId, bool)> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.deadline().is_some_and(|at| at <= now.mono))
            .map(|(id, session)| (*id, session.paired))
            .collect();
        for (id, paired) in over {
            let end = if paired { SessionEnd::Closed } else { SessionEnd::NotPaired };
            self.end_and_tell(id, end, disconnect_reason::SHUTDOWN, now);
        }
        for (relay, entry) in self.relays.iter_mut().enumerate() {
            let relay = RelayIndex(relay);
            if let Link::Up { next_ping, unanswered_pings, .. } = &mut entry.link
                && *next_ping <= now.mono
            {
                if *unanswered_pings >= MISSED_PONGS {
                    let idle =
                        Disconnect { reason: disconnect_reason::IDLE.to_owned(), note: None, session: None };
                    self.outputs.push_back(Output::Send(relay, idle.into()));
                    self.outputs.push_back(Output::Reconnect(relay));
                    *next_ping = MonoTime(u64::MAX);
                } else {
                    *unanswered_pings += 1;
                    *next_ping = now.mono + PING_INTERVAL;
                    self.outputs.push_back(Output::Send(relay, Ping { ts: now.unix_s }.into()));
                }
            }
        }
    }

    /// When [`tick`](Self::tick) is due next.
    pub fn deadline(&self) -> Option<MonoTime> {
        let requests = self.requests.values().map(|request| request.deadline);
        let sessions = self.sessions.values().filter_map(Session::deadline);
        let pings = self.relays.iter().filter_map(|relay| match relay.link {
            Link::Up { next_ping, .. } => Some(next_ping),
            _ => None,
        });
        requests.chain(sessions).chain(pings).min()
    }

    /// Whether a relay has registered this agent.
    pub fn is_announced(&self, relay: RelayIndex) -> bool {
        matches!(self.relays.get(relay.0), Some(Relay { link: Link::Up { announced: true, .. }, .. }))
    }

    fn ready(&mut self, relay: RelayIndex, ready: &RelayReady, now: Now) {
        if ready.status == ReadyStatus::Waiting {
            if let Some(Relay { name, link: Link::Up { announced, .. } }) = self.relays.get_mut(relay.0) {
                *announced = true;
                tracing::info!(relay = %name, "announced: other agents can find this one there");
            }
            return;
        }
        let terms = match ready.terms() {
            Ok(terms) => terms,
            Err(fault) => {
                self.count(Refusal::RelayTerms, self.relay_name(relay), fault.to_string());
                let error = ConnectError::Terms { relay: self.relay_name(relay), fault };
                if let Some(id) = self.asked(relay, |request| Some(request.peer.to_string()) == ready.peer_id)
                {
                    self.refused(id, relay, error, now);
                }
                return;
            }
        };
        let id = terms.session;
        if let Some(known) = self.sessions.get(&id) {
            if known.relay == relay && known.peer == terms.peer && known.side == terms.side {
                self.outputs.push_back(Output::Update(Box::new(terms)));
            }
            return;
        }
        match terms.side {
            Side::Connector => {
                let Some(first) = self.asked(relay, |request| request.peer == terms.peer) else {
                    // Another process of this identity has asked, or an earlier life of this one.
                    tracing::debug!(relay = self.relay_name(relay), session = %id, "nobody waits for this session");
                    return;
                };
                let Some(carries) = self.requests.get(&first).map(|request| request.carries) else { return };
                for (request_id, request) in &mut self.requests {
                    let shares = carries == Use::EndToEnd
                        && request.carries == Use::EndToEnd
                        && request.peer == terms.peer
                        && !matches!(request.stage, Stage::Binding(_));
                    if *request_id == first || shares {
                        request.stage = Stage::Binding(id);
                    }
                }
                self.start(relay, terms, carries, now);
            }
            Side::Target if !self.announce => {
                tracing::debug!(relay = self.relay_name(relay), session = %id, "not announced: left to the process that is");
            }
            Side::Target if !self.accept.contains(&terms.peer) => {
                let why = format!("not accepted; to accept it: [agent] accept = [\"{}\"]", terms.peer);
                self.count(Refusal::PeerNotAccepted, terms.peer.to_string(), why);
                self.refuse(relay, id, "not accepted");
            }
            Side::Target => match self.full(terms.peer) {
                None => self.start(relay, terms, self.incoming.carries, now),
                Some((refusal, full)) => {
                    let why = format!("{full}; more are taken when others have ended");
                    self.count(refusal, terms.peer.to_string(), why);
                    self.refuse(relay, id, full);
                }
            },
        }
    }

    /// Why no other session that `peer` has asked for is taken.
    fn full(&self, peer: NodeId) -> Option<(Refusal, &'static str)> {
        let taken = || self.sessions.values().filter(|session| session.side == Side::Target);
        if taken().filter(|session| session.peer == peer).count() >= self.incoming.per_peer {
            Some((Refusal::PeerSessions, "as many sessions as one peer may have"))
        } else if taken().count() >= MAX_TARGET_SESSIONS {
            Some((Refusal::SessionsFull, "as many sessions as this agent takes"))
        } else {
            None
        }
    }

    fn count(&mut self, refusal: Refusal, whom: String, why: String) {
        self.outputs.push_back(Output::Refused { refusal, whom, why });
    }

    /// Tells the relay that a session it offers is not taken.
    fn refuse(&mut self, relay: RelayIndex, session: SessionId, why: &str) {
        let refusal = Disconnect {
            reason: disconnect_reason::SHUTDOWN.to_owned(),
            note: Some(why.to_owned()),
            session: Some(session),
        };
        self.outputs.push_back(Output::Send(relay, refusal.into()));
    }

    fn start(&mut self, relay: RelayIndex, terms: FlowTerms, carries: Use, now: Now) {
        let session = Session {
            relay,
            peer: terms.peer,
            side: terms.side,
            carries,
            paired: false,
            users: 0,
            since: now.mono,
        };
        self.sessions.insert(terms.session, session);
        self.outputs.push_back(Output::Start { relay, terms: Box::new(terms), carries });
    }

    fn relay_error(&mut self, relay: RelayIndex, error: RelayError, now: Now) {
        let message = printable(&error.message, 256);
        if let Some(id) = error.session {
            if self.sessions.get(&id).is_some_and(|session| session.relay == relay) {
                let end = match ErrorCode::from_number(error.code) {
                    Some(ErrorCode::OfferExpired) => SessionEnd::NotPaired,
                    Some(code) => SessionEnd::ByRelay { reason: code.to_string(), note: Some(message) },
                    None => SessionEnd::ByRelay { reason: error.code.to_string(), note: Some(message) },
                };
                self.end(id, end, now);
            }
            return;
        }
        let Some(id) = self
            .asked(relay, |r| error.target_id.as_deref().is_none_or(|target| r.peer.to_string() == target))
        else {
            tracing::debug!(
                relay = self.relay_name(relay),
                code = error.code,
                message,
                "nobody waits for this answer"
            );
            return;
        };
        let Some(peer) = self.requests.get(&id).map(|request| request.peer) else { return };
        let refusal =
            ConnectError::Refused { relay: self.relay_name(relay), peer, code: error.code, message };
        self.refused(id, relay, refusal, now);
    }

    /// The oldest request that waits for this relay's answer.
    fn asked(&self, relay: RelayIndex, fits: impl Fn(&Request) -> bool) -> Option<RequestId> {
        self.requests
            .iter()
            .find(|(_, request)| request.stage == Stage::Asked(relay) && fits(request))
            .map(|(id, _)| *id)
    }

    fn refused(&mut self, id: RequestId, relay: RelayIndex, refusal: ConnectError, now: Now) {
        let Some((peer, carries)) = self.requests.get(&id).map(|request| (request.peer, request.carries))
        else {
            return;
        };
        for (other, request) in &mut self.requests {
            let joined = carries == Use::EndToEnd && request.carries == carries && request.peer == peer;
            if request.stage == Stage::Asked(relay) && (*other == id || joined) {
                request.stage = Stage::Waiting;
                request.refusal.get_or_insert(refusal.clone());
            }
        }
        self.ask_for_waiting(now);
    }

    /// Asks the next relay for every request that waits, and fails those that have no relay left. Requests for one
    /// peer's end-to-end session join the one that has asked already.
    fn ask_for_waiting(&mut self, now: Now) {
        let waiting: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| r.stage == Stage::Waiting).map(|(id, _)| *id).collect();
        for id in waiting {
            let joined = self.requests.get(&id).and_then(|request| {
                self.requests.values().find(|other| {
                    (other.peer, other.carries, request.carries)
                        == (request.peer, Use::EndToEnd, Use::EndToEnd)
                        && other.stage != Stage::Waiting
                })
            });
            let joined = joined.map(|other| (other.stage, other.tried.clone()));
            let Some(request) = self.requests.get_mut(&id) else { continue };
            if let Some((stage, tried)) = joined {
                request.stage = stage;
                request.tried.extend(tried);
                continue;
            }
            let untried = |relay: &RelayIndex| !request.tried.contains(relay);
            let up = self
                .relays
                .iter()
                .enumerate()
                .filter(|(_, relay)| matches!(relay.link, Link::Up { .. }))
                .map(|(at, _)| RelayIndex(at))
                .find(untried);
            if let Some(relay) = up {
                request.tried.insert(relay);
                request.stage = Stage::Asked(relay);
                let connect = RelayConnect {
                    source_id: self.me.to_string(),
                    target_id: request.peer.to_string(),
                    timestamp: Some(now.unix_s),
                    flow: Some(FLOW),
                };
                self.outputs.push_back(Output::Send(relay, connect.into()));
            } else if !self.relays.iter().any(|relay| matches!(relay.link, Link::Connecting)) {
                let Some(request) = self.requests.remove(&id) else { continue };
                let error = request.refusal.unwrap_or_else(|| self.unreachable());
                self.outputs.push_back(Output::Failed(id, error));
            }
        }
    }

    fn lateness(&self, request: &Request) -> ConnectError {
        match request.stage {
            Stage::Waiting => request.refusal.clone().unwrap_or_else(|| self.unreachable()),
            Stage::Asked(relay) => ConnectError::RelaySilent { relay: self.relay_name(relay) },
            Stage::Binding(session) => {
                let relay =
                    self.sessions.get(&session).map_or_else(String::new, |s| self.relay_name(s.relay));
                ConnectError::NotPaired { relay, peer: request.peer }
            }
        }
    }

    fn unreachable(&self) -> ConnectError {
        let each = self.relays.iter().map(|relay| match &relay.link {
            Link::Connecting => format!("{}: no answer yet", relay.name),
            Link::Up { .. } => format!("{}: connected only now", relay.name),
            Link::Down { why } => format!("{}: {why}", relay.name),
        });
        ConnectError::RelaysUnreachable(each.collect::<Vec<_>>().join("; "))
    }

    fn end_and_tell(&mut self, id: SessionId, end: SessionEnd, reason: &str, now: Now) {
        if let Some(session) = self.sessions.get(&id) {
            let told =
                Disconnect { reason: reason.to_owned(), note: Some(end.to_string()), session: Some(id) };
            self.outputs.push_back(Output::Send(session.relay, told.into()));
            self.end(id, end, now);
        }
    }

    fn end(&mut self, id: SessionId, end: SessionEnd, now: Now) {
        let Some(session) = self.sessions.remove(&id) else { return };
        let waiting: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| r.stage == Stage::Binding(id)).map(|(id, _)| *id).collect();
        for request_id in waiting {
            let Some(request) = self.requests.get_mut(&request_id) else { continue };
            // Another relay may do better.
            request.stage = Stage::Waiting;
            request.refusal.get_or_insert(match end {
                SessionEnd::NotPaired => {
                    let relay = self.relays.get(session.relay.0).map_or_else(String::new, |r| r.name.clone());
                    ConnectError::NotPaired { relay, peer: session.peer }
                }
                _ => ConnectError::Ended(end.clone()),
            });
        }
        self.outputs.push_back(Output::End(id, end));
        self.ask_for_waiting(now);
    }

    fn relay_name(&self, relay: RelayIndex) -> String {
        self.relays.get(relay.0).map_or_else(String::new, |relay| relay.name.clone())
    }
}

impl Session {
    /// Whether another connection with `peer` can use this session.
    fn serves(&self, peer: NodeId) -> bool {
        self.peer == peer && self.paired && self.carries == Use::EndToEnd
    }

    fn deadline(&self) -> Option<MonoTime> {
        match (self.paired, self.side) {
            (false, _) => Some(self.since + PAIRING_TIMEOUT),
            (true, Side::Target) if self.users == 0 => Some(self.since + UNUSED_TARGET),
            (true, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::bind::{BindKey, BindMagic};

    #[test]
    fn an_announcing_agent_announces_its_accept_list_and_takes_a_session_from_it() {
        let mut agent = agent(true, 1);
        agent.state.relay_up(RelayIndex(0), NOW);
        let [Output::Send(RelayIndex(0), Message::RelayAnnounce(announce))] = &agent.outputs()[..] else {
            panic!()
        };
        assert_eq!(announce.flow, Some(1));
        assert_eq!(announce.allow, Some(vec![peer().to_string()]));
        agent.ready(Side::Target, peer());
        let [Output::Start { terms, .. }] = &agent.outputs()[..] else { panic!() };
        assert_eq!(terms.session, SESSION);
    }

    #[test]
    fn a_peer_that_is_not_accepted_is_refused_and_the_relay_told() {
        let mut agent = agent(true, 1);
        agent.up(0);
        let stranger = NodeId::from_bytes([66; 32]);
        agent.ready(Side::Target, stranger);
        let outputs = agent.outputs();
        let [
            Output::Refused { refusal: Refusal::PeerNotAccepted, whom, why },
            Output::Send(_, Message::Disconnect(refusal)),
        ] = &outputs[..]
        else {
            panic!("{outputs:?}")
        };
        assert_eq!(refusal.session, Some(SESSION));
        assert_eq!(*whom, stranger.to_string());
        assert!(why.ends_with(&format!("[agent] accept = [\"{stranger}\"]")), "{why}");
    }

    #[test]
    fn another_accept_list_is_announced_and_ends_the_sessions_of_whom_it_leaves_out() {
        let mut agent = agent(true, 2);
        agent.up(0);
        assert!(agent.takes(RelayIndex(0), 1, peer()));
        let newcomer = NodeId::from_bytes([66; 32]);
        agent.state.set_accept([newcomer].into(), NOW);
        let outputs = agent.outputs();
        let [
            Output::Send(RelayIndex(0), Message::RelayAnnounce(announce)),
            Output::Send(RelayIndex(0), Message::Disconnect(told)),
            Output::End(ended, SessionEnd::NoLongerAccepted),
        ] = &outputs[..]
        else {
            panic!("{outputs:?}")
        };
        assert_eq!(announce.allow, Some(vec![newcomer.to_string()]));
        assert_eq!((told.session, *ended), (Some(SessionId([1; 16])), SessionId([1; 16])));
        assert!(agent.takes(RelayIndex(0), 2, newcomer));
        assert!(!agent.takes(RelayIndex(0), 3, peer()));
        agent.state.set_accept([newcomer].into(), NOW);
        assert!(agent.outputs().is_empty(), "nothing has changed");
    }

    #[test]
    fn a_dialing_process_leaves_sessions_it_did_not_ask_for_alone() {
        let mut agent = agent(false, 1);
        agent.up(0);
        agent.ready(Side::Target, peer());
        agent.ready(Side::Connector, peer());
        assert!(agent.outputs().is_empty());
    }

    #[test]
    fn connect_asks_binds_and_is_connected_when_paired() {
        let mut agent = agent(false, 1);
        agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
        assert!(agent.outputs().is_empty(), "no relay is up yet");
        agent.state.relay_up(RelayIndex(0), NOW);
        let [Output::Send(_, Message::RelayConnect(connect))] = &agent.outputs()[..] else { panic!() };
        assert_eq!((connect.target_id.as_str(), connect.flow), (peer().to_string().as_str(), Some(1)));
        agent.ready(Side::Connector, peer());
        assert!(matches!(agent.outputs()[..], [Output::Start { .. }]));
        agent.paired();
        assert!(matches!(agent.outputs()[..], [Output::Paired(_), Output::Connected(RequestId(1), SESSION)]));

        agent.state.connect(RequestId(2), peer(), Use::EndToEnd, NOW);
        assert!(
            matches!(agent.outputs()[..], [Output::Connected(RequestId(2), SESSION)]),
            "the session is shared"
        );
        agent.state.user_gone(SESSION, NOW);
        assert!(agent.outputs().is_empty());
        agent.state.user_gone(SESSION, NOW);
        let [Output::Send(_, Message::Disconnect(told)), Output::End(SESSION, SessionEnd::Closed)] =
            &agent.outputs()[..]
        else {
            panic!()
        };
        assert_eq!(told.session, Some(SESSION));
    }

    #[test]
    fn a_refusal_moves_on_to_the_next_relay_and_the_first_one_is_told_in_the_end() {
        let mut agent = agent(false, 2);
        agent.up(0);
        agent.up(1);
        agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
        assert!(matches!(agent.outputs()[..], [Output::Send(RelayIndex(0), Message::RelayConnect(_))]));
        agent.refuse(0, 3001);
        assert!(matches!(agent.outputs()[..], [Output::Send(RelayIndex(1), Message::RelayConnect(_))]));
        agent.refuse(1, 3002);
        let [Output::Failed(RequestId(1), ConnectError::Refused { relay, code: 3001, .. })] =
            &agent.outputs()[..]
        else {
            panic!()
        };
        assert_eq!(relay, "relay0:4433");
    }

    #[test]
    fn a_request_fails_at_once_when_every_relay_has_failed_and_says_why() {
        let mut agent = agent(false, 2);
        agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
        agent.state.relay_down(RelayIndex(0), "no route".into(), NOW);
        assert!(agent.outputs().is_empty(), "the second relay may still come");
        agent.state.relay_down(RelayIndex(1), "no answer".into(), NOW);
        let [Output::Failed(_, error)] = &agent.outputs()[..] else { panic!() };
        assert_eq!(
            error.to_string(),
            "no relay can be reached: relay0:4433: no route; relay1:4433: no answer"
        );
    }

    #[test]
    fn a_request_is_given_up_after_ten_seconds_with_the_stage_it_had_reached() {
        let mut agent = agent(false, 1);
        agent.up(0);
        agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
        agent.outputs();
        assert_eq!(agent.state.deadline(), Some(NOW.mono + PAIRING_TIMEOUT));
        agent.state.tick(later(PAIRING_TIMEOUT));
        assert!(matches!(agent.outputs()[..], [Output::Failed(_, ConnectError::RelaySilent { .. })]));

        agent.state.connect(RequestId(2), peer(), Use::EndToEnd, NOW);
        agent.ready(Side::Connector, peer());
        agent.outputs();
        agent.state.tick(later(PAIRING_TIMEOUT));
        let outputs = agent.outputs();
        assert!(
            matches!(outputs[0], Output::Failed(RequestId(2), ConnectError::NotPaired { .. })),
            "{outputs:?}"
        );
        assert!(matches!(outputs[2], Output::End(SESSION, SessionEnd::NotPaired)), "{outputs:?}");
    }

    #[test]
    fn requests_for_one_peer_share_one_question_and_its_answer() {
        let mut agent = agent(false, 1);
        agent.up(0);
        for id in [1, 2] {
            agent.state.connect(RequestId(id), peer(), Use::EndToEnd, NOW);
        }
        assert!(matches!(agent.outputs()[..], [Output::Send(_, Message::RelayConnect(_))]));
        agent.ready(Side::Connector, peer());
        agent.paired();
        let outputs = agent.outputs();
        assert!(
            matches!(outputs[2..], [Output::Connected(RequestId(1), _), Output::Connected(RequestId(2), _)]),
            "{outputs:?}"
        );
    }

    #[test]
    fn a_session_that_is_paired_after_everybody_gave_up_is_ended() {
        let mut agent = agent(false, 1);
        agent.up(0);
        agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
        agent.state.message(RelayIndex(0), ready_at_the_last_moment(), later(PAIRING_TIMEOUT / 2));
        agent.state.tick(later(PAIRING_TIMEOUT));
        agent.outputs();
        agent.paired();
        assert!(matches!(agent.outputs()[..], [Output::Send(..), Output::End(SESSION, SessionEnd::Closed)]));
    }

    #[test]
    fn each_raw_request_has_a_session_of_its_own() {
        let mut agent = agent(false, 1);
        agent.up(0);
        for id in [1, 2] {
            agent.state.connect(RequestId(id), peer(), Use::Raw, NOW);
        }
        assert_eq!(agent.outputs().len(), 2);
        agent.ready(Side::Connector, peer());
        agent.paired();
        let outputs = agent.outputs();
        assert!(matches!(outputs[..], [_, _, Output::Connected(RequestId(1), SESSION)]), "{outputs:?}");
    }

    #[test]
    fn terms_sent_again_change_the_session_and_nobody_elses() {
        let mut agent = connected();
        agent.ready(Side::Connector, peer());
        assert!(matches!(agent.outputs()[..], [Output::Update(_)]));
        agent.ready(Side::Connector, NodeId::from_bytes([66; 32]));
        assert!(agent.outputs().is_empty());
    }

    #[test]
    fn a_session_outlives_its_relay_connection_and_ends_when_consent_does() {
        let mut agent = connected();
        agent.state.relay_down(RelayIndex(0), "idle".into(), NOW);
        assert!(agent.outputs().is_empty());
        agent.state.bind_event(SESSION, BindEvent::Lost, NOW);
        let outputs = agent.outputs();
        assert!(
            matches!(&outputs[1], Output::End(SESSION, SessionEnd::ConsentLost { relay }) if relay == "relay0:4433")
        );
    }

    #[test]
    fn disconnect_with_a_session_ends_that_one_and_says_why() {
        for (reason, end) in [
            (disconnect_reason::IDLE, SessionEnd::Idle),
            (disconnect_reason::SHUTDOWN, SessionEnd::RelayStops),
            (disconnect_reason::PEER_GONE, SessionEnd::PeerGone { note: Some("n".into()) }),
            (disconnect_reason::CONSENT_LOST, SessionEnd::SideSilent { note: Some("n".into()) }),
            ("OTHER\x07", SessionEnd::ByRelay { reason: "OTHER".into(), note: Some("n".into()) }),
        ] {
            let mut agent = connected();
            let told = Disconnect { reason: reason.into(), note: Some("n".into()), session: Some(SESSION) };
            agent.state.message(RelayIndex(0), told.into(), NOW);
            let [Output::End(SESSION, ended)] = &agent.outputs()[..] else { panic!() };
            assert_eq!(*ended, end);
        }
    }

    #[test]
    fn a_relay_has_no_say_in_another_relays_sessions() {
        let said: [Message; 4] = [
            Disconnect { reason: disconnect_reason::IDLE.into(), note: None, session: Some(SESSION) }.into(),
            ErrorMessage {
                session: Some(SESSION),
                packets: Some(1),
                bytes: Some(1),
                ..ErrorMessage::new(ErrorCode::RateLimited, "m")
            }
            .into(),
            RelayError { code: 3007, message: "m".into(), target_id: None, session: Some(SESSION) }.into(),
            RelayReady::with_terms(&terms(Side::Connector, peer())).into(),
        ];
        for message in said {
            let mut agent = connected_through_the_first_of(2);
            agent.state.message(RelayIndex(1), message.clone(), NOW);
            let outputs = agent.outputs();
            assert!(outputs.is_empty(), "{message:?} led to {outputs:?}");
            agent.state.message(RelayIndex(0), message.clone(), NOW);
            assert!(!agent.outputs().is_empty(), "{message:?} counts from its own relay");
        }
    }

    #[test]
    fn a_target_drops_a_session_that_nobody_uses() {
        let mut agent = agent(true, 1);
        agent.up(0);
        agent.outputs();
        agent.ready(Side::Target, peer());
        agent.paired();
        agent.outputs();
        agent.state.user_came(SESSION);
        assert!(agent.state.deadline().unwrap() > NOW.mono + UNUSED_TARGET);
        agent.state.user_gone(SESSION, NOW);
        agent.state.tick(later(UNUSED_TARGET));
        assert!(matches!(agent.outputs()[1], Output::End(SESSION, SessionEnd::Closed)));
    }

    #[test]
    fn a_raw_session_that_the_application_does_not_take_is_dropped_too() {
        let mut agent = agent_that_takes(Use::Raw, true, 1);
        agent.up(0);
        agent.ready(Side::Target, peer());
        agent.paired();
        agent.outputs();
        assert!(agent.state.deadline() <= Some(NOW.mono + UNUSED_TARGET));
        agent.state.tick(later(UNUSED_TARGET));
        assert!(matches!(agent.outputs()[1], Output::End(SESSION, SessionEnd::Closed)));
    }

    #[test]
    fn a_peer_has_a_few_sessions_at_a_time_and_further_ones_are_refused() {
        let mut agent = agent(true, 2);
        agent.up(0);
        agent.up(1);
        for number in 0..4 {
            assert!(agent.takes(RelayIndex(usize::from(number) % 2), number, peer()));
        }
        for relay in [0, 1] {
            assert!(!agent.takes(RelayIndex(relay), 4, peer()), "whichever relay offers it");
        }
        let ended = Disconnect { reason: String::new(), note: None, session: Some(SessionId([0; 16])) };
        agent.state.message(RelayIndex(0), ended.into(), NOW);
        agent.outputs();
        assert!(agent.takes(RelayIndex(0), 5, peer()), "there is room again");
    }

    #[test]
    fn all_peers_together_have_no_more_sessions_than_the_agent_takes() {
        let peers: Vec<NodeId> = (2..=100).map(|byte| NodeId::from_bytes([byte; 32])).collect();
        let mut agent = agent(true, 1);
        agent.state.accept = peers.iter().copied().collect();
        agent.up(0);
        let taken = (0..).zip(&peers).filter(|(number, peer)| agent.takes(RelayIndex(0), *number, **peer));
        assert_eq!(taken.count(), MAX_TARGET_SESSIONS);
    }

    #[test]
    fn pings_go_out_every_minute_and_three_unanswered_ones_end_the_connection() {
        let mut agent = agent(false, 1);
        agent.up(0);
        for minute in 1..=3 {
            agent.state.tick(later(minute * PING_INTERVAL));
            assert!(matches!(agent.outputs()[..], [Output::Send(_, Message::Ping(_))]));
        }
        agent.state.tick(later(4 * PING_INTERVAL));
        assert!(matches!(
            agent.outputs()[..],
            [Output::Send(_, Message::Disconnect(_)), Output::Reconnect(_)]
        ));

        agent.up(0);
        for minute in 1..=9 {
            agent.state.tick(later(minute * PING_INTERVAL));
            agent.state.message(RelayIndex(0), Pong { ts: 0, echo: 0 }.into(), NOW);
            assert!(matches!(agent.outputs()[..], [Output::Send(_, Message::Ping(_))]));
        }
    }

    #[test]
    fn pings_are_answered_and_messages_for_relays_refused() {
        let mut agent = agent(false, 1);
        agent.up(0);
        agent.state.message(RelayIndex(0), Ping { ts: 7 }.into(), NOW);
        let connect =
            RelayConnect { source_id: String::new(), target_id: String::new(), timestamp: None, flow: None };
        agent.state.message(RelayIndex(0), connect.into(), NOW);
        let [
            Output::Send(_, Message::Pong(pong)),
            Output::Send(_, Message::Error(error)),
            Output::Refused { refusal: Refusal::UnexpectedMessage, .. },
        ] = &agent.outputs()[..]
        else {
            panic!()
        };
        assert_eq!((pong.echo, error.code), (7, 2003));
    }

    #[test]
    fn stopping_ends_everything_and_says_goodbye() {
        let mut agent = connected();
        agent.state.connect(RequestId(9), NodeId::from_bytes([7; 32]), Use::Raw, NOW);
        agent.outputs();
        agent.state.stop(NOW);
        let outputs = agent.outputs();
        assert!(
            matches!(&outputs[0], Output::Send(_, Message::Disconnect(told)) if told.session == Some(SESSION))
        );
        assert!(matches!(outputs[1], Output::End(SESSION, SessionEnd::Stopped)));
        assert!(matches!(outputs[2], Output::Failed(RequestId(9), ConnectError::Stopped)));
        assert!(matches!(&outputs[3], Output::Send(_, Message::Disconnect(told)) if told.session.is_none()));
    }

    const NOW: Now = Now { mono: MonoTime(1_000_000_000), unix_s: 1_712_150_400 };
    const SESSION: SessionId = SessionId([5; 16]);

    struct Agent {
        state: State,
    }

    impl Agent {
        fn outputs(&mut self) -> Vec<Output> {
            std::iter::from_fn(|| self.state.next_output()).collect()
        }

        fn up(&mut self, relay: usize) {
            self.state.relay_up(RelayIndex(relay), NOW);
            self.outputs();
        }

        fn ready(&mut self, side: Side, peer: NodeId) {
            let ready = RelayReady::with_terms(&terms(side, peer));
            self.state.message(RelayIndex(0), ready.into(), NOW);
        }

        /// Whether a session that a peer asks for is begun; otherwise the relay is told that it is not.
        fn takes(&mut self, relay: RelayIndex, number: u8, peer: NodeId) -> bool {
            let terms = FlowTerms { session: SessionId([number; 16]), ..terms(Side::Target, peer) };
            self.state.message(relay, RelayReady::with_terms(&terms).into(), NOW);
            match &self.outputs()[..] {
                [Output::Start { .. }] => true,
                [Output::Refused { .. }, Output::Send(to, Message::Disconnect(refusal))] => {
                    assert_eq!((*to, refusal.session), (relay, Some(terms.session)));
                    false
                }
                other => panic!("{other:?}"),
            }
        }

        fn paired(&mut self) {
            let reflexive = "192.0.2.1:1".parse().unwrap();
            self.state.bind_event(SESSION, BindEvent::Paired { reflexive }, NOW);
        }

        fn refuse(&mut self, relay: usize, code: u32) {
            let error =
                RelayError { code, message: "m".into(), target_id: Some(peer().to_string()), session: None };
            self.state.message(RelayIndex(relay), error.into(), NOW);
        }
    }

    fn agent(announce: bool, relays: usize) -> Agent {
        agent_that_takes(Use::EndToEnd, announce, relays)
    }

    fn agent_that_takes(carries: Use, announce: bool, relays: usize) -> Agent {
        let incoming = IncomingSessions { carries, per_peer: 4 };
        let names = (0..relays).map(|at| format!("relay{at}:4433")).collect();
        Agent { state: State::new(NodeId::from_bytes([1; 32]), announce, [peer()], incoming, names) }
    }

    fn connected() -> Agent {
        connected_through_the_first_of(1)
    }

    fn connected_through_the_first_of(relays: usize) -> Agent {
        let mut agent = agent(false, relays);
        for relay in 0..relays {
            agent.up(relay);
        }
        agent.state.connect(RequestId(1), peer(), Use::EndToEnd, NOW);
        agent.ready(Side::Connector, peer());
        agent.paired();
        agent.outputs();
        agent
    }

    fn later(span: Duration) -> Now {
        Now { mono: NOW.mono + span, ..NOW }
    }

    fn ready_at_the_last_moment() -> Message {
        RelayReady::with_terms(&terms(Side::Connector, peer())).into()
    }

    fn peer() -> NodeId {
        NodeId::from_bytes([2; 32])
    }

    fn terms(side: Side, peer: NodeId) -> FlowTerms {
        FlowTerms {
            session: SESSION,
            peer,
            side,
            bind_key: BindKey::from_bytes([5; 32]),
            bind_magic: BindMagic([6; 8]),
            rate_bytes_per_s: 0,
            burst_bytes: 0,
            max_datagram_bytes: 1472,
            consent: Duration::from_secs(75),
            keepalive: Duration::from_secs(30),
            data_addresses: Vec::new(),
            bind_now: false,
        }
    }
}
