//! What an agent decides: which relay to ask, which sessions to take, when to give up. Pure.

mod disconnecting;
mod drains;
mod links;
mod moves;
mod preference;
mod requests;
mod sessions;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use self::disconnecting::Whom;
use self::links::{Link, Relay};
use self::moves::Move;
use self::preference::Preference;
use self::requests::Request;
use self::sessions::Session;
use super::error::{ConnectError, SessionEnd};
use super::refusal::Refusal;
use crate::clock::MonoTime;
use crate::config::RelayHint;
use crate::identity::NodeId;
use crate::protocol::flow_terms::{Disconnect, ErrorMessage, FlowTerms, disconnect_reason};
use crate::protocol::handshake::printable;
use crate::protocol::message::{Ping, Pong};
use crate::protocol::{ErrorCode, Message, SessionId};

/// A relay's place in `network.relays`, or after it if another relay has named it.
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
    /// Connect to a relay that another one has named.
    Follow {
        /// What it is called from now on.
        relay: RelayIndex,
        /// Where it is, and who.
        hint: RelayHint,
        /// The relay that has named it.
        by: RelayIndex,
    },
    /// Drop the connection to such a relay for good.
    Forget(RelayIndex),
    /// Open a data socket and bind.
    Start {
        /// Through which relay.
        relay: RelayIndex,
        /// The session.
        terms: Box<FlowTerms>,
        /// What it will carry.
        carries: Use,
        /// It is to take over from that session.
        succeeds: Option<SessionId>,
    },
    /// The relay has sent a session's terms again.
    Update(Box<FlowTerms>),
    /// Both sides are bound.
    Paired(SessionId),
    /// Both sides of `to` are bound: whatever used `from` uses it from now on. What still comes by `from` is received
    /// until its end.
    Moved {
        /// The session that was used so far.
        from: SessionId,
        /// The one that takes over.
        to: SessionId,
    },
    /// Find out whether a session's path still does: bind at once.
    Probe(SessionId),
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
    preference: Preference,
    sessions: BTreeMap<SessionId, Session>,
    requests: BTreeMap<RequestId, Request>,
    /// Of sessions that look for another path.
    moves: BTreeMap<SessionId, Move>,
    outputs: VecDeque<Output>,
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
            preference: Preference::new(relays.len()),
            relays: relays.into_iter().map(Relay::named).collect(),
            sessions: BTreeMap::new(),
            requests: BTreeMap::new(),
            moves: BTreeMap::new(),
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
            Message::Disconnect(Disconnect { reason, note, session: Some(session), .. }) => {
                let end = SessionEnd::told(&printable(&reason, 64), note.map(|note| printable(&note, 256)));
                if self.sessions.get(&session).is_some_and(|entry| entry.relay == relay) {
                    self.told_end(session, end, now);
                }
            }
            Message::Disconnect(Disconnect { reason, relay: hint, .. })
                if reason == disconnect_reason::DRAIN =>
            {
                self.relay_drains(relay, hint.as_deref(), now);
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
            Message::Ping(Ping { ts, .. }) => {
                self.outputs.push_back(Output::Send(relay, Pong::new(now.unix_s, ts).into()));
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

    /// The agent is being stopped: ends every session and request, and says goodbye.
    pub fn stop(&mut self, now: Now) {
        // Before the sessions: nothing is looked for any more.
        self.moves.clear();
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.end_and_tell(id, SessionEnd::Stopped, disconnect_reason::SHUTDOWN, now);
        }
        for id in std::mem::take(&mut self.requests).into_keys() {
            self.outputs.push_back(Output::Failed(id, ConnectError::Stopped));
        }
        for (relay, entry) in self.relays.iter().enumerate() {
            if matches!(entry.link, Link::Up { .. }) {
                let goodbye = Disconnect::new(disconnect_reason::SHUTDOWN, None, None);
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
        self.pass_over_silent_relays(now);
        let over = self.sessions.iter().filter(|(_, it)| it.deadline().is_some_and(|at| at <= now.mono));
        for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.session_due(id, now);
        }
        self.advance_moves(now);
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
        let answers = self.next_passing_over();
        requests.chain(sessions).chain(pings).chain(answers).chain(self.next_move()).min()
    }
}
