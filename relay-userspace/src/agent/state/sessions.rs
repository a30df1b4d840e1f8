//! The sessions: which are taken, when they are paired, whom they serve, how they end.

use relay_common::Side;

use super::links::{Link, Relay};
use super::moves::{Failure, OLD_PATH_LINGERS, PAIRED_WITHIN};
use super::requests::Stage;
use super::{
    MAX_TARGET_SESSIONS, Now, Output, PAIRING_TIMEOUT, RelayIndex, RequestId, State, UNUSED_TARGET, Use,
};
use crate::agent::backoff::Backoff;
use crate::agent::error::{ConnectError, SessionEnd};
use crate::agent::refusal::Refusal;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::bind::BindEvent;
use crate::protocol::flow_terms::{Disconnect, FlowTerms, ReadyStatus, RelayReady, disconnect_reason};

#[derive(Debug)]
pub(super) struct Session {
    pub relay: RelayIndex,
    pub peer: NodeId,
    pub side: Side,
    pub carries: Use,
    pub paired: bool,
    /// What its users know it by: the session that it was before it moved for the first time.
    pub origin: SessionId,
    pub part: Part,
    pub users: usize,
    /// When it began, was paired, lost its last user, or was left.
    pub since: MonoTime,
    /// Its path fails.
    pub failure: Option<Failure>,
    /// Of attempts to move it.
    pub attempts: Backoff,
}

/// What a session is to its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// They use it.
    Present,
    /// It takes over from that session once it is paired.
    Successor(SessionId),
    /// A peer has asked for it, and before the given time it shows whether it takes over from that session.
    Undecided(SessionId, MonoTime),
    /// Its successor has taken over. What is still on its way is received.
    Left,
}

impl Session {
    fn new(relay: RelayIndex, terms: &FlowTerms, carries: Use, now: MonoTime) -> Self {
        Session {
            relay,
            peer: terms.peer,
            side: terms.side,
            carries,
            paired: false,
            origin: terms.session,
            part: Part::Present,
            users: 0,
            since: now,
            failure: None,
            attempts: Backoff::default(),
        }
    }

    /// Whether another connection with `peer` can use this session.
    pub fn serves(&self, peer: NodeId) -> bool {
        // The peer dials over sessions that it has asked for itself, and may be a process that answers nobody.
        let dials = self.side == Side::Connector && self.carries == Use::EndToEnd;
        self.peer == peer && dials && self.paired && self.part == Part::Present && !self.is_lost()
    }

    /// Whether it is more than the path that a session moves to or has left.
    pub fn is_of_its_own(&self) -> bool {
        !matches!(self.part, Part::Successor(_) | Part::Left)
    }

    /// Whether its relay does not carry it any more.
    pub fn is_lost(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.lost.is_some())
    }

    pub fn deadline(&self) -> Option<MonoTime> {
        match (self.part, &self.failure) {
            (Part::Left, _) => Some(self.since + OLD_PATH_LINGERS),
            (Part::Undecided(_, until), _) => Some(until),
            (Part::Successor(_), _) => Some(self.since + PAIRED_WITHIN),
            _ if !self.paired => Some(self.since + PAIRING_TIMEOUT),
            (_, Some(failure)) if failure.lost.is_some() => Some(failure.given_up_at()),
            _ if self.side == Side::Target && self.users == 0 => Some(self.since + UNUSED_TARGET),
            _ => None,
        }
    }
}

impl State {
    pub(super) fn ready(&mut self, relay: RelayIndex, ready: &RelayReady, now: Now) {
        if ready.status == ReadyStatus::Waiting {
            if let Some(Relay { name, link: Link::Up { announced, .. }, .. }) = self.relays.get_mut(relay.0) {
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
                let of_peer = |peer: NodeId| Some(peer.to_string()) == ready.peer_id;
                if let Some(id) = self.asked(relay, |request| of_peer(request.peer)) {
                    self.refused(id, relay, error, now);
                } else if let Some(id) = self.asked_to_move(relay, of_peer) {
                    self.ask_next_for_move(id, now);
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
            Side::Connector => self.answered(relay, terms, now),
            Side::Target if !self.announce => {
                tracing::debug!(relay = self.relay_name(relay), session = %id, "not announced: left to the process that is");
            }
            Side::Target if !self.accept.contains(&terms.peer) => {
                let why = format!("not accepted; to accept it: [agent] accept = [\"{}\"]", terms.peer);
                self.count(Refusal::PeerNotAccepted, terms.peer.to_string(), why);
                self.refuse(relay, id, "not accepted");
            }
            Side::Target => match self.full(terms.peer) {
                None => self.start(relay, terms, self.incoming.carries, None, now),
                Some((refusal, full)) => {
                    let why = format!("{full}; more are taken when others have ended");
                    self.count(refusal, terms.peer.to_string(), why);
                    self.refuse(relay, id, full);
                }
            },
        }
    }

    /// A relay has answered with a session that was asked for.
    fn answered(&mut self, relay: RelayIndex, terms: FlowTerms, now: Now) {
        let id = terms.session;
        if let Some(first) = self.asked(relay, |request| request.peer == terms.peer) {
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
            self.start(relay, terms, carries, None, now);
        } else if let Some(old) = self.asked_to_move(relay, |peer| peer == terms.peer) {
            self.move_binds(old, id);
            let carries = self.sessions.get(&old).map_or(Use::EndToEnd, |session| session.carries);
            self.start(relay, terms, carries, Some(old), now);
        } else {
            // Another process of this identity has asked, or an earlier life of this one.
            tracing::debug!(relay = self.relay_name(relay), session = %id, "nobody waits for this session");
        }
    }

    /// Why no other session that `peer` has asked for is taken.
    fn full(&self, peer: NodeId) -> Option<(Refusal, &'static str)> {
        let taken = || self.sessions.values().filter(|session| session.side == Side::Target);
        let of_peer = || taken().filter(|session| session.peer == peer);
        // Each that fails may be moved, and then there are two of it for a while.
        let stays = |session: &&Session| session.failure.is_none() && !self.drains(session.relay);
        let sound = of_peer().filter(stays).filter(|session| session.part != Part::Left);
        if sound.count() >= self.incoming.per_peer || of_peer().count() >= 2 * self.incoming.per_peer {
            Some((Refusal::PeerSessions, "as many sessions as one peer may have"))
        } else if taken().count() >= MAX_TARGET_SESSIONS {
            Some((Refusal::SessionsFull, "as many sessions as this agent takes"))
        } else {
            None
        }
    }

    pub(super) fn count(&mut self, refusal: Refusal, whom: String, why: String) {
        self.outputs.push_back(Output::Refused { refusal, whom, why });
    }

    /// Tells the relay that a session it offers is not taken.
    fn refuse(&mut self, relay: RelayIndex, session: SessionId, why: &str) {
        let refusal = Disconnect::new(disconnect_reason::SHUTDOWN, Some(why.to_owned()), Some(session));
        self.outputs.push_back(Output::Send(relay, refusal.into()));
    }

    fn start(
        &mut self,
        relay: RelayIndex,
        terms: FlowTerms,
        carries: Use,
        succeeds: Option<SessionId>,
        now: Now,
    ) {
        let mut session = Session::new(relay, &terms, carries, now.mono);
        if let Some(old) = succeeds {
            session.part = Part::Successor(old);
        }
        self.sessions.insert(terms.session, session);
        self.outputs.push_back(Output::Start { relay, terms: Box::new(terms), carries, succeeds });
    }

    /// The bind exchange of a session has led to something.
    pub fn bind_event(&mut self, id: SessionId, event: BindEvent, now: Now) {
        match event {
            BindEvent::Half { .. } | BindEvent::Moved { .. } => {}
            BindEvent::Paired { .. } => self.paired(id, now),
            BindEvent::Path(health) => self.path_does(id, health, now),
            BindEvent::Lost => {
                let relay =
                    self.relay_name(self.sessions.get(&id).map_or(RelayIndex(0), |entry| entry.relay));
                self.tell(
                    id,
                    &SessionEnd::ConsentLost { relay: relay.clone() },
                    disconnect_reason::CONSENT_LOST,
                );
                self.lose(id, SessionEnd::ConsentLost { relay }, now);
            }
        }
    }

    fn paired(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let again = std::mem::replace(&mut session.paired, true);
        session.since = now.mono;
        match (session.part, session.side, session.carries) {
            (Part::Successor(old), _, _) => return self.take_over(old, id, now),
            (Part::Present, Side::Target, Use::Raw) if !again => return self.raw_newcomer(id, now),
            (Part::Present, _, _) => {}
            (Part::Undecided(..) | Part::Left, _, _) => return,
        }
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
        self.move_off_draining(id, now);
    }

    /// A session's terms cannot be used, or its data socket could not be opened.
    pub fn start_failed(&mut self, id: SessionId, end: SessionEnd, now: Now) {
        self.end_and_tell(id, end, disconnect_reason::SHUTDOWN, now);
    }

    /// The session that began as `origin` has one user more, a connection that the peer has opened.
    pub fn user_came(&mut self, origin: SessionId) {
        if let Some((_, session)) = self.used_as(origin) {
            session.users += 1;
        }
    }

    /// The session that began as `origin` has one user less. A connector's session ends with its last, and one that waits
    /// for another path as well.
    pub fn user_gone(&mut self, origin: SessionId, now: Now) {
        let Some((id, session)) = self.used_as(origin) else { return };
        session.users = session.users.saturating_sub(1);
        session.since = now.mono;
        let needed = session.users > 0 || (session.side == Side::Target && !session.is_lost());
        if !needed {
            self.end_and_tell(id, SessionEnd::Closed, disconnect_reason::SHUTDOWN, now);
        }
    }

    /// The session that users know as `origin`.
    fn used_as(&mut self, origin: SessionId) -> Option<(SessionId, &mut Session)> {
        let present = |session: &Session| session.origin == origin && session.part == Part::Present;
        self.sessions.iter_mut().find(|(_, session)| present(session)).map(|(id, session)| (*id, session))
    }

    /// Its relay says that a session has ended.
    pub(super) fn told_end(&mut self, id: SessionId, end: SessionEnd, now: Now) {
        match end {
            SessionEnd::RelayStops => self.lose(id, end, now),
            SessionEnd::SideSilent { .. } if self.has_another_relay(id) => self.lose(id, end, now),
            // The peer has moved, if a session of its waits for just that.
            SessionEnd::PeerGone { .. } if self.decide_for(id, now) => self.end(id, SessionEnd::Moved, now),
            end => self.end(id, end, now),
        }
    }

    /// A session's deadline has come.
    pub(super) fn session_due(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id) else { return };
        let end = match (session.part, &session.failure) {
            (Part::Left, _) => SessionEnd::Moved,
            (Part::Undecided(..), _) => return self.decided_new(id, now),
            _ if !session.paired => SessionEnd::NotPaired,
            (_, Some(Failure { lost: Some(end), .. })) => end.clone(),
            _ => SessionEnd::Closed,
        };
        self.end_and_tell(id, end, disconnect_reason::SHUTDOWN, now);
    }

    pub(super) fn end_and_tell(&mut self, id: SessionId, end: SessionEnd, reason: &str, now: Now) {
        self.tell(id, &end, reason);
        self.end(id, end, now);
    }

    /// Tells a session's relay that it ends here, unless the relay knows.
    fn tell(&mut self, id: SessionId, end: &SessionEnd, reason: &str) {
        if let Some(session) = self.sessions.get(&id).filter(|session| !session.is_lost()) {
            let told = Disconnect::new(reason, Some(end.to_string()), Some(id));
            self.outputs.push_back(Output::Send(session.relay, told.into()));
        }
    }

    pub(super) fn end(&mut self, id: SessionId, end: SessionEnd, now: Now) {
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
        self.moves_without(id, session.part, now);
        self.ask_for_waiting(now);
        self.drop_unneeded_hints();
    }
}
