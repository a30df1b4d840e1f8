//! What applications have asked for: which relay is asked for a session, and what is told if none gives one.

use std::collections::BTreeSet;

use super::links::{Link, Relay};
use super::moves::{ANSWER_WITHIN, PAIRED_WITHIN};
use super::{Now, Output, PAIRING_TIMEOUT, RelayIndex, RequestId, State, Use};
use crate::agent::error::{ConnectError, SessionEnd};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::flow_terms::{FLOW, RelayConnect, RelayError, disconnect_reason};
use crate::protocol::handshake::printable;
use crate::protocol::{ErrorCode, SessionId};

#[derive(Debug)]
pub(super) struct Request {
    pub peer: NodeId,
    pub carries: Use,
    pub deadline: MonoTime,
    pub tried: BTreeSet<RelayIndex>,
    pub stage: Stage,
    /// When the relay was asked that is asked now.
    pub asked_at: MonoTime,
    /// The first refusal, told if no relay does better.
    pub refusal: Option<ConnectError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No relay to ask yet.
    Waiting,
    /// RelayConnect has been sent.
    Asked(RelayIndex),
    /// The session binds.
    Binding(SessionId),
}

impl State {
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
            asked_at: now.mono,
            refusal: None,
        };
        self.requests.insert(id, request);
        self.ask_for_waiting(now);
    }

    pub(super) fn relay_error(&mut self, relay: RelayIndex, error: RelayError, now: Now) {
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
        let about = |peer: NodeId| error.target_id.as_deref().is_none_or(|it| peer.to_string() == it);
        let Some(id) = self.asked(relay, |request| about(request.peer)) else {
            if let Some(moving) = self.asked_to_move(relay, about) {
                return self.ask_next_for_move(moving, now);
            }
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
    pub(super) fn asked(&self, relay: RelayIndex, fits: impl Fn(&Request) -> bool) -> Option<RequestId> {
        self.requests
            .iter()
            .find(|(_, request)| request.stage == Stage::Asked(relay) && fits(request))
            .map(|(id, _)| *id)
    }

    pub(super) fn refused(&mut self, id: RequestId, relay: RelayIndex, refusal: ConnectError, now: Now) {
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
    pub(super) fn ask_for_waiting(&mut self, now: Now) {
        let waiting: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| r.stage == Stage::Waiting).map(|(id, _)| *id).collect();
        let usable: Vec<RelayIndex> = self.usable_relays().collect();
        for id in waiting {
            let joined = self.requests.get(&id).and_then(|request| {
                self.requests.values().find(|other| {
                    (other.peer, other.carries, request.carries)
                        == (request.peer, Use::EndToEnd, Use::EndToEnd)
                        && other.stage != Stage::Waiting
                })
            });
            let joined = joined.map(|other| (other.stage, other.asked_at, other.tried.clone()));
            let Some(request) = self.requests.get_mut(&id) else { continue };
            if let Some((stage, asked_at, tried)) = joined {
                (request.stage, request.asked_at) = (stage, asked_at);
                request.tried.extend(tried);
                continue;
            }
            let untried = usable.iter().copied().find(|relay| !request.tried.contains(relay));
            if let Some(relay) = untried {
                request.tried.insert(relay);
                request.stage = Stage::Asked(relay);
                request.asked_at = now.mono;
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

    /// Relays that do not answer in time, or over which the session is not paired in time, are passed over where there is
    /// another to ask.
    pub(super) fn pass_over_silent_relays(&mut self, now: Now) {
        let silent = self
            .requests
            .iter()
            .filter(|(_, request)| self.passed_over_at(request).is_some_and(|at| at <= now.mono));
        for (id, stage) in silent.map(|(id, request)| (*id, request.stage)).collect::<Vec<_>>() {
            match stage {
                Stage::Waiting => {}
                Stage::Asked(relay) => {
                    let error = ConnectError::RelaySilent { relay: self.relay_name(relay) };
                    self.refused(id, relay, error, now);
                }
                Stage::Binding(session) => {
                    self.end_and_tell(session, SessionEnd::NotPaired, disconnect_reason::SHUTDOWN, now);
                }
            }
        }
    }

    pub(super) fn next_passing_over(&self) -> Option<MonoTime> {
        self.requests.values().filter_map(|request| self.passed_over_at(request)).min()
    }

    /// Until when a request waits for its relay, if there is another that it could ask.
    fn passed_over_at(&self, request: &Request) -> Option<MonoTime> {
        let another =
            |(at, relay): (usize, &Relay)| relay.takes_sessions() && !request.tried.contains(&RelayIndex(at));
        self.relays.iter().enumerate().find(|relay| another(*relay))?;
        match request.stage {
            Stage::Waiting => None,
            Stage::Asked(_) => Some(request.asked_at + ANSWER_WITHIN),
            Stage::Binding(session) => Some(self.sessions.get(&session)?.since + PAIRED_WITHIN),
        }
    }

    pub(super) fn lateness(&self, request: &Request) -> ConnectError {
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
        let each = self.relays.iter().filter_map(|relay| match &relay.link {
            Link::Connecting => Some(format!("{}: no answer yet", relay.name)),
            Link::Up { .. } if relay.drain.is_some() => Some(format!("{}: it is about to stop", relay.name)),
            Link::Up { .. } => Some(format!("{}: connected only now", relay.name)),
            Link::Down { why } => Some(format!("{}: {why}", relay.name)),
            Link::Forgotten => None,
        });
        ConnectError::RelaysUnreachable(each.collect::<Vec<_>>().join("; "))
    }
}
