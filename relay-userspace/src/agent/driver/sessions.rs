//! What becomes of sessions: their sockets, endpoints and whoever waits for them.

use std::fmt;

use relay_common::Side;

use super::{Asker, Driver};
use crate::agent::data_address::data_address;
use crate::agent::data_socket::local_address_towards;
use crate::agent::error::SessionEnd;
use crate::agent::event::SessionEvent;
use crate::agent::live_session::{LiveSession, Opening};
use crate::agent::peer::EndToEndPath;
use crate::agent::peer_endpoint::{EndpointError, PeerEndpoint};
use crate::agent::raw::RawSession;
use crate::agent::refusal::Refusal;
use crate::agent::serving;
use crate::agent::session::{Session, SessionUser};
use crate::agent::session_path::SessionPath;
use crate::agent::state::{RelayIndex, RequestId, Use};
use crate::protocol::SessionId;
use crate::protocol::bind::BindMagic;
use crate::protocol::flow_terms::{FlowTerms, Role};

impl Driver {
    /// A session begins on a relay: its data socket, and its place on the peer's endpoint.
    pub(super) fn start(
        &mut self,
        relay: RelayIndex,
        terms: &FlowTerms,
        carries: Use,
        succeeds: Option<SessionId>,
    ) -> Result<(), SessionEnd> {
        let failed = |why: &dyn fmt::Display| SessionEnd::DataSocket(why.to_string());
        let Some(Some(link)) = self.links.get(relay.0) else { return Err(failed(&"the relay is gone")) };
        // With a magic of its choice it could take datagrams of our own, or have us send some that look like others.
        if terms.bind_magic != BindMagic::of_relay(&link.peer.public_key) {
            let end = SessionEnd::ForeignMagic { relay: link.peer.node_id };
            self.serving.refusals.refuse(Refusal::ForeignMagic, &link.peer.node_id, &end);
            return Err(end);
        }
        let data = data_address(&terms.data_addresses, link.address);
        let opening = Opening {
            terms,
            data,
            carries,
            congestion: self.settings.congestion,
            round_trip: self.round_trips.get(relay.0).cloned().unwrap_or_default(),
        };
        let before = succeeds.and_then(|id| self.sessions.get(&id));
        let live = LiveSession::open(opening, before, &self.serving.news).map_err(|error| failed(&error))?;
        if carries == Use::EndToEnd {
            self.endpoint(&live.session, &live.path).map_err(|error| failed(&error))?;
        }
        let id = terms.session;
        tracing::info!(session = %id, peer = %terms.peer, relay = %data, role = %Role(terms.side), "a session begins: binding");
        self.local_addresses.entry(data).or_insert_with(|| local_address_towards(data));
        self.sessions.insert(id, live);
        Ok(())
    }

    /// Adds the session to the peer's endpoint, which is made if there is none.
    fn endpoint(&mut self, session: &Session, path: &SessionPath) -> Result<(), EndpointError> {
        let peer = session.peer();
        if let Some(endpoint) = self.endpoints.get(&peer) {
            endpoint.add_path(path.id(), session.side(), path.socket().clone());
            return Ok(());
        }
        let serve = self.settings.announce && self.settings.accept.contains(&peer);
        let endpoint = PeerEndpoint::new(&self.settings.key, session, serve)?;
        if serve {
            tokio::spawn(serving::serve(endpoint.clone(), self.serving.clone()));
        }
        self.endpoints.insert(peer, endpoint);
        Ok(())
    }

    /// Both sides have bound.
    pub(super) fn paired(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        self.session_events.tell(&live.session, SessionEvent::Paired);
        if live.carries == Use::EndToEnd {
            if let Some(endpoint) = self.endpoints.get(&live.session.peer()) {
                endpoint.prefer_path(id);
            }
        } else if live.session.side() == Side::Target
            && let Some(received) = live.received.take()
        {
            let user = SessionUser::come(id, &self.serving.news);
            let raw = RawSession::new(live.session.clone(), received, user);
            if self.raw_incoming.try_send(raw).is_err() {
                let why = "the application does not take sessions: this one is dropped";
                self.serving.refusals.refuse(Refusal::RawSessionUntaken, &live.session.peer(), &why);
            }
        }
    }

    /// What used `from` uses `to` from now on.
    pub(super) fn moved(&mut self, from: SessionId, to: SessionId) {
        let Some(before) = self.sessions.get(&from) else { return };
        let (session, queue) = (before.session.clone(), before.queue.clone());
        let Some(after) = self.sessions.get_mut(&to) else { return };
        // A session that the peer asked for was one of its own until now.
        if let (Some(own), Some(queue), Some(kept)) = (&after.queue, &queue, after.received.take()) {
            own.join(queue, kept);
        }
        after.session = session.clone();
        session.move_to(after.path.clone());
        let relay = after.path.socket().relay();
        tracing::info!(session = %to, peer = %session.peer(), was = %from, %relay, "the session has moved to another path");
        if let Some(reflexive) = after.reflexive {
            self.session_events.tell(&session, SessionEvent::Moved { relay, reflexive });
        }
        if after.carries == Use::EndToEnd
            && let Some(endpoint) = self.endpoints.get(&session.peer())
        {
            endpoint.move_to_path(to);
        }
    }

    /// Whoever has made `request` gets the session.
    pub(super) fn connected(&mut self, request: RequestId, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        // Dropped on every way out but an answer that is taken, and then the session may end.
        let user = SessionUser::counted(live.session.origin(), &self.serving.news);
        // Whoever has stopped waiting gives the user back.
        match self.requests.remove(&request) {
            Some(Asker::EndToEnd(answer)) => {
                let Some(endpoint) = self.endpoints.get(&live.session.peer()) else { return };
                let path = EndToEndPath { endpoint: endpoint.clone(), session: live.session.clone(), user };
                drop(answer.send(Ok(path)));
            }
            Some(Asker::Raw(answer)) => {
                let Some(received) = live.received.take() else { return };
                drop(answer.send(Ok(RawSession::new(live.session.clone(), received, user))));
            }
            None => {}
        }
    }

    /// A session is over.
    pub(super) fn end(&mut self, id: SessionId, end: SessionEnd) {
        let Some(live) = self.sessions.remove(&id) else { return };
        let traffic = live.path.socket().traffic();
        tracing::info!(
            session = %id,
            peer = %live.session.peer(),
            why = %end,
            datagrams_sent = traffic.datagrams_sent,
            datagrams_received = traffic.datagrams_received,
            bytes_sent = traffic.bytes_sent,
            bytes_received = traffic.bytes_received,
            "the session has ended"
        );
        let peer = live.session.peer();
        if live.carries == Use::EndToEnd
            && let Some(endpoint) = self.endpoints.get(&peer)
            && endpoint.remove_path(id, &end)
        {
            self.endpoints.remove(&peer);
        }
        if live.is_used() {
            live.session.set_end(end.clone());
            self.session_events.tell(&live.session, SessionEvent::Ended { why: end });
        } else {
            live.session.forget_path(id);
        }
    }
}
