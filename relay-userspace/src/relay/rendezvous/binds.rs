//! The relay's half of the bind exchange: which tuple is whose.
//!
//! What an agent *says* its address is can never be installed. A tuple is a side's own once a datagram that only that
//! side can make has come from it, carrying a cookie that was sent there a moment ago.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use relay_common::{BIND_LEN, Side};

use super::event::EndReason;
use super::pace::Pace;
use super::refusal::Refusal;
use super::session::Session;
use super::{Event, LEASE, Output, Randomness, Rendezvous};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::bind::{
    BindDatagram, BindFault, BindKey, BindKind, Cookie, CookieCarrier, CookieSubject, PairState,
    UnverifiedBind,
};
use crate::relay::datapath::{FlowTuple, Flows, InstallError};
use crate::relay::family::Family;

/// A challenge is good for this long.
const CHALLENGE_LIFETIME: Duration = Duration::from_secs(5);

/// What a side was asked to prove.
#[derive(Clone, Copy, Debug)]
struct Challenge {
    tuple: FlowTuple,
    /// The Bind's.
    counter: u64,
    at: MonoTime,
}

impl Challenge {
    fn is_fresh(&self, now: MonoTime) -> bool {
        now.since(self.at) < CHALLENGE_LIFETIME
    }
}

/// What one side is being asked, and how often it was of late.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// The one challenge that a Proof may answer.
    challenge: Option<Challenge>,
    challenges: Pace<8, 1>,
    moves: Pace<1, 1>,
}

impl Questions {
    /// The challenge is answered.
    pub fn answered(&mut self) {
        self.challenge = None;
    }

    /// Whether they make no difference any more.
    pub fn are_over(&self, now: MonoTime) -> bool {
        let is_open = self.challenge.is_some_and(|challenge| challenge.is_fresh(now));
        !is_open && self.challenges.is_quiet(now) && self.moves.is_quiet(now)
    }
}

impl Rendezvous {
    /// A bind datagram has come from `from` to the relay's address `to`. What is wrong with it is counted and not
    /// answered.
    pub fn bind(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        bytes: &[u8; BIND_LEN],
        flows: &mut impl Flows,
        randomness: &mut impl Randomness,
        now: MonoTime,
    ) {
        self.secrets.renew(now, || randomness.array());
        let tuple = FlowTuple { agent: from, relay: to };
        let handled = self.question(tuple, bytes, now).and_then(|(datagram, proved)| match proved {
            true => self.accept(tuple, &datagram, flows, now),
            false => self.challenge(tuple, &datagram, now),
        });
        if let Err(refusal) = handled {
            self.refused(refusal, self.sender(bytes), from, now);
        }
    }

    /// Checks a datagram: who it is from, and whether it proves the tuple already (else it is to be challenged).
    fn question(
        &self,
        tuple: FlowTuple,
        bytes: &[u8; BIND_LEN],
        now: MonoTime,
    ) -> Result<(BindDatagram, bool), Refusal> {
        let claim = UnverifiedBind::parse(bytes, &self.magic).map_err(|_| Refusal::BindMalformed)?;
        let session = self.sessions.get(claim.session()).ok_or(Refusal::BindUnknownSession)?;
        let party = session.party(claim.side());
        let key = self.bind_key(session, claim.side()).ok_or(Refusal::BindUnknownSession)?;
        let datagram = claim.verify(&key).map_err(|fault| match fault {
            BindFault::Mac => Refusal::BindMac,
            _ => Refusal::BindMalformed,
        })?;
        if !matches!(datagram.kind, BindKind::Bind | BindKind::Proof) {
            return Err(Refusal::BindDirection);
        }
        if datagram.counter <= party.counter {
            return Err(Refusal::BindReplayed);
        }
        source_is_an_agents(tuple)?;
        if self.agents.is_control(tuple) {
            return Err(Refusal::BindSourceControl);
        }
        if session.party(datagram.side.other()).tuple().is_some_and(|other| other.agent == tuple.agent) {
            return Err(Refusal::BindSourcePeer);
        }
        let made_for = |carrier, counter| {
            self.secrets.accepts(&subject(carrier, tuple, &datagram, counter), &datagram.cookie)
        };
        match datagram.kind {
            BindKind::Proof => {
                let questions = session.questions(datagram.side);
                let asked = questions.and_then(|questions| questions.challenge).filter(|asked| {
                    asked.tuple == tuple && asked.counter == datagram.counter && asked.is_fresh(now)
                });
                let asked = asked.ok_or(Refusal::BindNoChallenge)?;
                if !made_for(CookieCarrier::Challenge, datagram.counter) {
                    return Err(Refusal::BindCookie);
                }
                self.is_not_anothers_since(asked, (datagram.session, datagram.side))?;
                Ok((datagram, true))
            }
            // The last Bound's cookie is good only while the tuple still is this side's: after another session has
            // proved it, having received there in the past proves nothing.
            _ => {
                let proved =
                    party.bound == Some(tuple.into()) && made_for(CookieCarrier::Bound, party.counter);
                Ok((datagram, proved))
            }
        }
    }

    /// A challenge is void if another session has proved its tuple since: whoever was asked may not receive there now.
    fn is_not_anothers_since(&self, asked: Challenge, by: (SessionId, Side)) -> Result<(), Refusal> {
        let Some((id, side)) = self.sessions.owner(&asked.tuple).filter(|owner| *owner != by) else {
            return Ok(());
        };
        match self.sessions.get(id) {
            Some(owner) if owner.party(side).proved > asked.at => Err(Refusal::BindNoChallenge),
            _ => Ok(()),
        }
    }

    /// The node a datagram is from, if its MAC proves that.
    fn sender(&self, bytes: &[u8; BIND_LEN]) -> Option<NodeId> {
        let claim = UnverifiedBind::parse(bytes, &self.magic).ok()?;
        let session = self.sessions.get(claim.session())?;
        claim.verify(&self.bind_key(session, claim.side())?).ok()?;
        Some(self.nodes.get(session.party(claim.side()).node)?.id)
    }

    /// The key of a side's datagrams. It is derived each time: that takes less than checking the datagram with it.
    fn bind_key(&self, session: &Session, side: Side) -> Option<BindKey> {
        let [connector, target] = self.nodes.ids(session.nodes())?;
        Some(self.bind_keys.derive(session.id, side, &connector, &target))
    }

    /// Sends a cookie to the tuple, to see whether it comes back.
    fn challenge(&mut self, tuple: FlowTuple, bind: &BindDatagram, now: MonoTime) -> Result<(), Refusal> {
        let session = self.sessions.get_mut(bind.session).ok_or(Refusal::BindUnknownSession)?;
        let questions = session.questions_mut(bind.side);
        if !questions.challenges.permits(now) {
            return Err(Refusal::BindChallengeRate);
        }
        questions.challenges.record(now);
        // The same again to the same tuple: else a path slower than the agent's retries would never see its Proof taken.
        let again = questions
            .challenge
            .filter(|asked| asked.tuple == tuple && asked.counter <= bind.counter && asked.is_fresh(now));
        let asked = again.unwrap_or(Challenge { tuple, counter: bind.counter, at: now });
        questions.challenge = Some(asked);
        let counter = asked.counter;
        let cookie = self.secrets.cookie(&subject(CookieCarrier::Challenge, tuple, bind, counter));
        self.answer(tuple, &BindDatagram { kind: BindKind::Challenge, counter, cookie, ..*bind });
        Ok(())
    }

    /// The tuple is proved: it is this side's from now on, and nobody else's.
    fn accept(
        &mut self,
        tuple: FlowTuple,
        proof: &BindDatagram,
        flows: &mut impl Flows,
        now: MonoTime,
    ) -> Result<(), Refusal> {
        let (id, side) = (proof.session, proof.side);
        let session = self.sessions.get(id).ok_or(Refusal::BindUnknownSession)?;
        let (party, slot) = (session.party(side), session.slot);
        let (first, changed) = (party.counter == 0, party.bound != Some(tuple.into()));
        let may_move = session.questions(side).is_none_or(|questions| questions.moves.permits(now));
        if changed && !first && !may_move {
            return Err(Refusal::BindMoveRate);
        }
        flows.proved(tuple);
        // Whoever has the tuple now keeps it if it cannot be moved here. Flows of its own have to go first: one tuple has
        // one line in the tables. But then their line and address are what the new ones need.
        let owner = self.sessions.owner(&tuple).filter(|owner| *owner != (id, side));
        let in_the_way = owner.and_then(|(owner, _)| self.sessions.get(owner)?.slot).is_some();
        if in_the_way {
            self.take_over(tuple, (id, side), flows, now);
        }
        if let Some(slot) = slot.filter(|_| changed) {
            flows.rebind(slot, side, tuple, now).map_err(|error| match error {
                InstallError::TableFull => Refusal::TableFull,
                InstallError::Tuple(_) => Refusal::TupleRefused,
            })?;
        }
        self.take_over(tuple, (id, side), flows, now);
        self.sessions.own(id, side, tuple);
        let session = self.sessions.get_mut(id).ok_or(Refusal::BindUnknownSession)?;
        let told = session.max_datagram_bytes();
        let party = session.party_mut(side);
        party.counter = proof.counter;
        party.proved = now;
        party.family = Family::of(tuple.agent);
        session.answered(side);
        if changed && !first {
            session.questions_mut(side).moves.record(now);
        }
        session.see_mtus(flows);
        if session.max_datagram_bytes() != told {
            self.send_terms(id, false);
        }
        if changed {
            let event = match first {
                true => Event::Bound { session: id, side, tuple },
                false => Event::Moved { session: id, side, tuple },
            };
            self.event(event);
        }
        match slot {
            Some(slot) => {
                flows.accepted(slot, side, proof.counter);
                flows.extend(slot, side, now + LEASE);
            }
            None => {
                if !self.pair_if_bound(id, flows, now) {
                    return Ok(());
                }
                if self.sessions.get(id).is_some_and(|session| session.slot.is_some()) {
                    self.say_bound(id, side.other());
                }
            }
        }
        self.schedule(id);
        self.say_bound(id, side);
        Ok(())
    }

    /// If another session has `tuple`, it loses it: its flows stop, and the side that had it is told to bind again.
    fn take_over(&mut self, tuple: FlowTuple, by: (SessionId, Side), flows: &mut impl Flows, now: MonoTime) {
        let Some((loser, side)) = self.sessions.owner(&tuple).filter(|owner| *owner != by) else { return };
        self.sessions.disown(loser, side);
        if let Some(session) = self.sessions.get_mut(loser) {
            session.part(flows, now);
        }
        self.event(Event::TupleLost { session: loser, side, to: by.0 });
        self.send_terms_to(loser, side, true);
    }

    /// Puts both flows in place once both sides are bound. False if that failed and the session is over.
    fn pair_if_bound(&mut self, id: SessionId, flows: &mut impl Flows, now: MonoTime) -> bool {
        let Some(session) = self.sessions.get(id) else { return false };
        let Some(tuples) = session.tuples() else { return true };
        let deadlines = session.parties.each_ref().map(|party| party.proved + LEASE);
        let (limit, nodes) = (self.settings.limit, session.nodes());
        let offered_for = session.is_offer().then(|| now.since(session.since));
        let Some(origin) = self.sessions.origin(id, &self.nodes) else { return false };
        let [connector, target] = origin.identity.nodes;
        match flows.install(tuples, limit, &origin, deadlines, now) {
            Ok(slot) => {
                if let Some(session) = self.sessions.get_mut(id) {
                    session.paired(slot, now);
                }
                if offered_for.is_some() {
                    self.sessions.close_offer(nodes, &mut self.nodes);
                }
                self.event(Event::Paired { session: id, connector, target, tuples, limit, offered_for });
                self.tell_what_fits(id, flows);
                true
            }
            Err(error) => {
                let [at, _] = tuples;
                let (refusal, reason) = match error {
                    InstallError::TableFull => (Refusal::TableFull, EndReason::TableFull),
                    InstallError::Tuple(fault) => (Refusal::TupleRefused, EndReason::TupleRefused(fault)),
                };
                self.refused(refusal, Some(connector), at.agent, now);
                self.end(id, reason, flows, now);
                false
            }
        }
    }

    /// Tells a side that its tuple is its own, with the cookie its next Bind is to carry.
    fn say_bound(&mut self, id: SessionId, side: Side) {
        let Some(session) = self.sessions.get(id) else { return };
        let party = session.party(side);
        let Some(tuple) = party.tuple() else { return };
        let state = if session.slot.is_some() { PairState::Paired } else { PairState::Half };
        let bound = BindDatagram {
            kind: BindKind::Bound { state, reflexive: tuple.agent },
            side,
            session: id,
            counter: party.counter,
            cookie: Cookie::NONE,
        };
        let cookie = self.secrets.cookie(&subject(CookieCarrier::Bound, tuple, &bound, party.counter));
        self.answer(tuple, &BindDatagram { cookie, ..bound });
    }

    fn answer(&mut self, tuple: FlowTuple, datagram: &BindDatagram) {
        let Some(session) = self.sessions.get(datagram.session) else { return };
        let Some(key) = self.bind_key(session, datagram.side) else { return };
        let bytes = datagram.seal(&self.magic, &key);
        self.outputs.push_back(Output::Bind { from: tuple.relay, to: tuple.agent, bytes });
    }
}

fn subject(carrier: CookieCarrier, tuple: FlowTuple, datagram: &BindDatagram, counter: u64) -> CookieSubject {
    let BindDatagram { session, side, .. } = *datagram;
    CookieSubject { carrier, agent: tuple.agent, relay: tuple.relay, session, side, counter }
}

/// Refuses addresses that no agent can have, or that would make the relay send to itself.
fn source_is_an_agents(tuple: FlowTuple) -> Result<(), Refusal> {
    let (agent, relay) = (tuple.agent.ip().to_canonical(), tuple.relay.ip().to_canonical());
    let impossible = tuple.agent.port() == 0
        || agent.is_unspecified()
        || agent.is_multicast()
        || agent == IpAddr::V4(Ipv4Addr::BROADCAST)
        || (agent.is_loopback() && !relay.is_loopback())
        // Whoever is meant depends on the interface, which a flow does not have.
        || matches!(agent, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if impossible {
        return Err(Refusal::BindSourceAddress);
    }
    // On loopback everybody has the relay's address; the port tells them apart.
    if tuple.agent == tuple.relay || (agent == relay && !agent.is_loopback()) {
        return Err(Refusal::BindSourceRelay);
    }
    Ok(())
}
