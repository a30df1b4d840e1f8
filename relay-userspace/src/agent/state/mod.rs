//! What an agent decides: which relay to ask, which sessions to take, when to give up. Pure.

mod disconnecting;
mod links;
mod requests;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use relay_common::Side;

pub use self::disconnecting::Whom;
use self::links::{Link, Relay};
use self::requests::{Request, Stage};
use super::error::{ConnectError, SessionEnd};
use super::refusal::Refusal;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::bind::BindEvent;
use crate::protocol::flow_terms::{
    Disconnect, ErrorMessage, FlowTerms, ReadyStatus, RelayReady, disconnect_reason,
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
        self.ping_relays(now);
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
