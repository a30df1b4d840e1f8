//! A relay that agents can be tested against, and that can be told to misbehave.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use relay_common::{BIND_LEN, Side};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::key;
use crate::agent::verification::respond;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::bind::{
    BindDatagram, BindKey, BindKeys, BindKind, BindMagic, Cookie, PairState, UnverifiedBind,
};
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::{
    Disconnect, FlowTerms, Pong, ReadyStatus, RelayError, RelayReady, disconnect_reason,
};
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::handshake::Responder;
use crate::protocol::{ErrorCode, Message, SessionId};
use crate::tls;

pub struct FakeRelay {
    pub id: NodeId,
    pub control: SocketAddr,
    pub endpoint: quinn::Endpoint,
    pub state: Arc<StdMutex<RelayState>>,
    pub changed: Arc<tokio::sync::Notify>,
    pub data_blocked: Arc<AtomicBool>,
    /// Whoever connects from now on is not answered.
    pub ignores_newcomers: Arc<AtomicBool>,
}

#[derive(Default)]
pub struct RelayState {
    pub rate_bytes_per_s: u64,
    /// In the terms; None: its own.
    pub magic: Option<BindMagic>,
    pub ignores_allow_lists: bool,
    pub passes_off: Option<PassedOff>,
    /// In every Bound; None: where they are.
    pub sees_agents_at: Option<SocketAddr>,
    /// As when its daemon is away: data is carried on.
    pub answers_no_bind: bool,
    pub announces: usize,
    pub paired: u8,
    pub goodbyes: usize,
    pub pongs: Vec<Pong>,
    pub disconnected: Vec<SessionId>,
    pub announced: HashMap<NodeId, (mpsc::UnboundedSender<Message>, Vec<String>)>,
    pub connections: HashMap<NodeId, (quinn::Connection, mpsc::UnboundedSender<Message>)>,
    pub sessions: HashMap<SessionId, RelaySession>,
}

/// The relay says `accepted` wherever it is `impostor` that is the side.
#[derive(Clone, Copy)]
pub struct PassedOff {
    pub impostor: NodeId,
    pub accepted: NodeId,
}

pub struct RelaySession {
    pub nodes: [NodeId; 2],
    pub keys: [BindKey; 2],
    /// Of each side.
    pub terms: [FlowTerms; 2],
    pub tuples: [Option<SocketAddr>; 2],
    pub highest: [u64; 2],
}

impl FakeRelay {
    pub async fn start() -> Self {
        let relay = key(200);
        let data = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let config = tls::server_config(&relay, tls::ALPN_RELAY).unwrap();
        let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let fake = FakeRelay {
            id: relay.node_id(),
            control: endpoint.local_addr().unwrap(),
            endpoint: endpoint.clone(),
            state: Arc::default(),
            changed: Arc::default(),
            data_blocked: Arc::default(),
            ignores_newcomers: Arc::default(),
        };
        let (state, changed, blocked) = (fake.state.clone(), fake.changed.clone(), fake.data_blocked.clone());
        tokio::spawn(carry_data(data.clone(), BindMagic::of_relay(&relay.public()), state.clone(), blocked));
        let data = data.local_addr().unwrap();
        let ignores = fake.ignores_newcomers.clone();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                if ignores.load(Ordering::SeqCst) {
                    incoming.ignore();
                    continue;
                }
                let (state, changed) = (state.clone(), changed.clone());
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    serve_agent(connection, data, &state, &changed).await;
                });
            }
        });
        fake
    }

    pub fn state(&self) -> std::sync::MutexGuard<'_, RelayState> {
        self.state.lock().unwrap()
    }

    pub async fn until(&self, reached: impl Fn(&RelayState) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if reached(&self.state()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the relay never got there");
    }

    pub fn end(&self, id: SessionId, reason: &str) {
        let mut state = self.state();
        let session = state.sessions.remove(&id).unwrap();
        for node in session.nodes {
            let told = Disconnect::new(reason, None, Some(id));
            state.connections[&node].1.send(told.into()).unwrap();
        }
    }

    /// Sends both sides their terms again, changed.
    pub fn tell_terms(&self, id: SessionId, change: impl Fn(FlowTerms) -> FlowTerms) {
        let state = self.state();
        let RelaySession { nodes, terms, .. } = &state.sessions[&id];
        for (node, terms) in nodes.iter().zip(terms.clone().map(change)) {
            state.connections[node].1.send(RelayReady::with_terms(&terms).into()).unwrap();
        }
    }

    /// Says that it restarts, and knows nobody any more. Its sessions stay.
    pub fn restart(&self) {
        let mut state = self.state();
        state.announced.clear();
        for (_, (_, outgoing)) in state.connections.drain() {
            let told = Disconnect::new(disconnect_reason::RESTART, None, None);
            outgoing.send(told.into()).unwrap();
        }
    }

    pub fn drop_control_connections(&self) {
        for (_, (connection, _)) in self.state().connections.drain() {
            connection.close(0_u8.into(), b"dropped");
        }
    }
}

impl Drop for FakeRelay {
    fn drop(&mut self) {
        self.endpoint.close(0_u8.into(), b"");
    }
}

async fn serve_agent(
    connection: quinn::Connection,
    data: SocketAddr,
    state: &StdMutex<RelayState>,
    changed: &tokio::sync::Notify,
) {
    let shown = tls::peer_key(&connection).unwrap();
    let Ok((mut to_agent, from_agent)) = connection.accept_bi().await else { return };
    let mut from_agent = FrameReader::new(from_agent, MAX_CONTROL_PAYLOAD_LEN);
    let responder =
        Responder::new(&key(200), "fake relay", shown, [9; 32], Duration::from_secs(300), MonoTime::now());
    let peer = respond(responder, &mut to_agent, &mut from_agent).await.unwrap();
    let (outgoing, mut to_send) = mpsc::unbounded_channel();
    state.lock().unwrap().connections.insert(peer.node_id, (connection.clone(), outgoing.clone()));
    let writing = tokio::spawn(async move {
        while let Some(message) = to_send.recv().await {
            if write_frame(&mut to_agent, &message).await.is_err() {
                return;
            }
        }
    });
    while let Ok(Some(message)) = from_agent.next().await {
        take_message(peer.node_id, message, &outgoing, data, &mut state.lock().unwrap());
        changed.notify_waiters();
    }
    writing.abort();
}

fn take_message(
    source: NodeId,
    message: Message,
    outgoing: &mpsc::UnboundedSender<Message>,
    data: SocketAddr,
    state: &mut RelayState,
) {
    match message {
        Message::RelayAnnounce(announce) => {
            state.announces += 1;
            state.announced.insert(source, (outgoing.clone(), announce.allow.unwrap()));
            outgoing.send(RelayReady::documented(ReadyStatus::Waiting, None).into()).unwrap();
        }
        Message::RelayConnect(connect) => {
            let target: NodeId = connect.target_id.parse().unwrap();
            let passed_off = state.passes_off;
            let reached = passed_off.filter(|it| it.accepted == target).map_or(target, |it| it.impostor);
            let named = passed_off.filter(|it| it.impostor == source).map_or(source, |it| it.accepted);
            let listed = state
                .announced
                .get(&reached)
                .filter(|(_, allow)| state.ignores_allow_lists || allow.contains(&named.to_string()));
            let Some((to_target, _)) = listed else {
                let (code, message) = (ErrorCode::TargetUnknown.number(), "no such agent".into());
                let refusal = RelayError { code, message, target_id: Some(connect.target_id), session: None };
                return outgoing.send(refusal.into()).unwrap();
            };
            state.paired += 1;
            let session = SessionId([state.paired; 16]);
            let keys = BindKeys::of_relay(&key(200));
            let bind_key = |side| keys.derive(session, side, &source, &target);
            let terms = |side, peer| FlowTerms {
                session,
                peer,
                bind_key: bind_key(side),
                bind_magic: state.magic.unwrap_or_else(|| BindMagic::of_relay(&key(200).public())),
                rate_bytes_per_s: state.rate_bytes_per_s,
                burst_bytes: state.rate_bytes_per_s / 4,
                data_addresses: vec![data],
                ..FlowTerms::example(side)
            };
            let terms = [terms(Side::Connector, target), terms(Side::Target, named)];
            to_target.send(RelayReady::with_terms(&terms[1]).into()).unwrap();
            outgoing.send(RelayReady::with_terms(&terms[0]).into()).unwrap();
            let relayed = RelaySession {
                nodes: [source, reached],
                keys: Side::BOTH.map(bind_key),
                terms,
                tuples: [None; 2],
                highest: [0; 2],
            };
            state.sessions.insert(session, relayed);
        }
        Message::Disconnect(Disconnect { session: Some(session), .. }) => state.disconnected.push(session),
        Message::Disconnect(_) => state.goodbyes += 1,
        Message::Pong(pong) => state.pongs.push(pong),
        other => panic!("a relay does not expect {other:?}"),
    }
}

async fn carry_data(
    socket: Arc<UdpSocket>,
    magic: BindMagic,
    state: Arc<StdMutex<RelayState>>,
    blocked: Arc<AtomicBool>,
) {
    let mut buffer = [0; 65_536];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
        if blocked.load(Ordering::Relaxed) {
            continue;
        }
        let datagram = &buffer[..len];
        let sends = match <&[u8; BIND_LEN]>::try_from(datagram) {
            Ok(_) if datagram.starts_with(&magic.0) && state.lock().unwrap().answers_no_bind => Vec::new(),
            Ok(bind) if datagram.starts_with(&magic.0) => {
                answer_bind(bind, from, &magic, &mut state.lock().unwrap())
            }
            _ => {
                let state = state.lock().unwrap();
                let to = state.sessions.values().find_map(|session| match session.tuples {
                    [Some(a), Some(b)] if a == from => Some(b),
                    [Some(a), Some(b)] if b == from => Some(a),
                    _ => None,
                });
                to.map(|to| (to, datagram.to_vec())).into_iter().collect()
            }
        };
        for (to, bytes) in sends {
            socket.send_to(&bytes, to).await.unwrap();
        }
    }
}

fn answer_bind(
    bytes: &[u8; BIND_LEN],
    from: SocketAddr,
    magic: &BindMagic,
    state: &mut RelayState,
) -> Vec<(SocketAddr, Vec<u8>)> {
    let unverified = UnverifiedBind::parse(bytes, magic).unwrap();
    let sees_agents_at = state.sees_agents_at;
    let Some(session) = state.sessions.get_mut(&unverified.session()) else { return Vec::new() };
    let side = unverified.side();
    let question = unverified.verify(&session.keys[side.index()]).unwrap();
    if question.kind == BindKind::Bind && session.tuples[side.index()] != Some(from) {
        let challenge = BindDatagram { kind: BindKind::Challenge, cookie: Cookie([3; 16]), ..question };
        return vec![(from, challenge.seal(magic, &session.keys[side.index()]).to_vec())];
    }
    session.tuples[side.index()] = Some(from);
    session.highest[side.index()] = question.counter;
    let paired = session.tuples.iter().all(Option::is_some);
    let told = if paired { &Side::BOTH[..] } else { &[side][..] };
    let bound = |side: &Side| {
        let tuple = session.tuples[side.index()].unwrap();
        let reflexive = sees_agents_at.unwrap_or(tuple);
        let state = if paired { PairState::Paired } else { PairState::Half };
        let bound = BindDatagram {
            kind: BindKind::Bound { state, reflexive },
            side: *side,
            session: question.session,
            counter: session.highest[side.index()],
            cookie: Cookie([4; 16]),
        };
        (tuple, bound.seal(magic, &session.keys[side.index()]).to_vec())
    };
    told.iter().map(bound).collect()
}
