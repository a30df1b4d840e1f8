//! What the agent's handle asks of the driver.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Asker, Driver, UpLink, now};
use crate::agent::error::ConnectError;
use crate::agent::peer::EndToEndPath;
use crate::agent::permitted::Permitted;
use crate::agent::raw::RawSession;
use crate::agent::refusal::Refusal;
use crate::agent::session_path::RelayRoundTrip;
use crate::agent::snapshot::{PeersSnapshot, RelayPeer, SessionsSnapshot};
use crate::agent::splice::ReadableRelay;
use crate::agent::state::{RelayIndex, RequestId, Use, Whom};
use crate::config;
use crate::identity::NodeId;

/// What the agent's handle asks for.
#[derive(Debug)]
pub enum Command {
    Connect {
        peer: NodeId,
        answer: oneshot::Sender<Result<EndToEndPath, ConnectError>>,
    },
    ConnectRaw {
        peer: NodeId,
        answer: oneshot::Sender<Result<RawSession, ConnectError>>,
    },
    Peers {
        answer: oneshot::Sender<PeersSnapshot>,
    },
    Sessions {
        answer: oneshot::Sender<SessionsSnapshot>,
    },
    Permit(config::Agent),
    Disconnect {
        whom: Whom,
        answer: oneshot::Sender<usize>,
    },
    /// The relays through which a peer can be reached that knows only the documented messages.
    ReadableRelays {
        peer: NodeId,
        answer: oneshot::Sender<Result<Vec<ReadableRelay>, ConnectError>>,
    },
}

impl Driver {
    pub(super) fn take_command(&mut self, command: Command) {
        match command {
            Command::Connect { peer, answer } => {
                let id = self.request(Asker::EndToEnd(answer));
                self.state.connect(id, peer, Use::EndToEnd, now());
            }
            Command::ConnectRaw { peer, answer } => {
                let id = self.request(Asker::Raw(answer));
                self.state.connect(id, peer, Use::Raw, now());
            }
            // How it sends stays: that needs a restart.
            Command::Permit(config::Agent { accept, allow, .. }) => {
                self.serving.permitted.send_replace(Arc::new(Permitted { accept: accept.clone(), allow }));
                self.waiting.accept(&accept);
                self.state.set_accept(accept.iter().copied().collect(), now());
                self.settings.accept = accept;
            }
            Command::Disconnect { whom, answer } => {
                // Whoever has stopped waiting needs no answer.
                let _asker_gone = answer.send(self.state.disconnect(whom, now()));
            }
            Command::ReadableRelays { peer, answer } => drop(answer.send(self.readable_relays(peer))),
            // Whoever has stopped waiting needs no answer.
            Command::Peers { answer } => drop(answer.send(self.peers())),
            Command::Sessions { answer } => {
                // A session that moves shows once: as the path that is sent on.
                let used = self.sessions.values().filter(|live| live.is_used());
                let sessions = used.map(|live| live.session.snapshot()).collect();
                let refused = self.serving.refusals.counts().into_iter().collect();
                drop(answer.send(SessionsSnapshot { sessions, refused }));
            }
        }
    }

    fn request(&mut self, asker: Asker) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.requests.insert(id, asker);
        id
    }

    fn readable_relays(&self, peer: NodeId) -> Result<Vec<ReadableRelay>, ConnectError> {
        if !self.settings.allow_readable_relay {
            let error = ConnectError::ReadableRelay { peer };
            self.serving.refusals.refuse(Refusal::ReadableRelay, &peer, &error);
            return Err(error);
        }
        let relay = |link: &UpLink| ReadableRelay {
            name: link.address.to_string(),
            connection: link.connection.clone(),
        };
        Ok(self.links.iter().flatten().map(relay).collect())
    }

    fn peers(&self) -> PeersSnapshot {
        let up =
            self.links.iter().enumerate().filter_map(|(at, link)| Some((RelayIndex(at), link.as_ref()?)));
        let peers = up.map(|(relay, link)| RelayPeer {
            node_id: link.peer.node_id.to_string(),
            name: link.peer.name.clone(),
            address: link.address.to_string(),
            announced: self.state.is_announced(relay),
            connected_s: link.since.elapsed().as_secs(),
            round_trip_us: self.round_trips.get(relay.0).and_then(RelayRoundTrip::us),
        });
        PeersSnapshot { peers: peers.collect() }
    }
}
