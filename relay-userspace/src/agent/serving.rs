//! Connections that a peer opens, and what is done for it on them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::forward::datagrams::Flows;
use super::inbox::IncomingMessage;
use super::peer_endpoint::PeerEndpoint;
use super::permitted::Permitted;
use super::refusal::{Refusal, RefusalLog};
use super::session::{SessionNews, SessionUser};
use super::streams;
use super::verification::{respond, unix_s};
use crate::clock::MonoTime;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::ErrorMessage;
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::handshake::{DEFAULT_MAX_CLOCK_DRIFT, Responder};
use crate::protocol::message::{CHALLENGE_LEN, Ping, Pong};
use crate::protocol::{ErrorCode, Message, SessionId};
use crate::tls;

/// What serving needs to know.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    pub key: NodeKey,
    pub name: String,
    /// What is permitted at present.
    pub permitted: Arc<watch::Sender<Arc<Permitted>>>,
    pub refusals: RefusalLog,
    /// Messages for the application.
    pub inbox: mpsc::Sender<IncomingMessage>,
    pub news: mpsc::UnboundedSender<SessionNews>,
}

/// Connections of one peer that are served at once. A command makes one, and a forward one.
const MAX_CONNECTIONS: usize = 32;

/// Answers the peer's connections until the endpoint closes.
pub(super) async fn serve(endpoint: Arc<PeerEndpoint>, serving: Serving) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            let why = format!("it has {MAX_CONNECTIONS} connections; more are taken when others have ended");
            serving.refusals.refuse(Refusal::ConnectionsFull, &endpoint.peer, &why);
            incoming.refuse();
            continue;
        }
        let (endpoint, serving) = (endpoint.clone(), serving.clone());
        connections.spawn(async move {
            let peer = endpoint.peer;
            match serve_connection(&endpoint, incoming, &serving).await {
                Ok(why) => tracing::info!(%peer, why, "the peer's connection is over"),
                Err(why) => tracing::warn!(%peer, why, "the peer's connection failed"),
            }
        });
    }
    // Without an endpoint they end by themselves, and say why.
    connections.detach_all();
}

async fn serve_connection(
    endpoint: &Arc<PeerEndpoint>,
    incoming: quinn::Incoming,
    serving: &Serving,
) -> Result<String, String> {
    let refused = |refusal: Refusal, why: String| {
        serving.refusals.refuse(refusal, &endpoint.peer, &why);
        Err(why)
    };
    let connection = match incoming.await {
        Ok(connection) => connection,
        // Found here: what the peer finds comes as a ConnectionClosed.
        Err(error @ quinn::ConnectionError::TransportError(_)) => {
            return refused(Refusal::TlsFailed, error.to_string());
        }
        Err(error) => return Err(error.to_string()),
    };
    tokio::select! {
        outcome = serve_connected(endpoint, &connection, serving) => outcome,
        never = keep_in_use(endpoint, &connection, &serving.news) => match never {},
    }
}

/// A connection that has moved to another session's path is noticed within this time. QUIC does not tell.
const PATH_CHECK: Duration = Duration::from_secs(1);

/// Keeps the session in use that a peer's connection comes by at present.
async fn keep_in_use(
    endpoint: &PeerEndpoint,
    connection: &quinn::Connection,
    news: &mpsc::UnboundedSender<SessionNews>,
) -> Infallible {
    let mut check = tokio::time::interval(PATH_CHECK);
    let mut user: Option<(SessionId, SessionUser)> = None;
    loop {
        check.tick().await;
        // A session that is over takes its users with it.
        let Some(session) = endpoint.socket.session_of(connection.remote_address()) else { continue };
        if user.as_ref().is_none_or(|(known, _)| *known != session) {
            user = Some((session, SessionUser::come(session, news)));
        }
    }
}

async fn serve_connected(
    endpoint: &Arc<PeerEndpoint>,
    connection: &quinn::Connection,
    serving: &Serving,
) -> Result<String, String> {
    let refused = |refusal: Refusal, why: String| {
        serving.refusals.refuse(refusal, &endpoint.peer, &why);
        Err(why)
    };
    let key = match tls::peer_key(connection) {
        Ok(key) => key,
        Err(error) => return refused(Refusal::TlsFailed, error.to_string()),
    };
    if key.node_id() != endpoint.peer {
        let why = format!("{} answers where the relay has named another", key.node_id());
        let outcome = refused(Refusal::ForeignIdentity, why);
        connection.close(ErrorCode::InvalidIdentity.number().into(), b"not the peer the relay has named");
        return outcome;
    }
    let mut challenge = [0; CHALLENGE_LEN];
    getrandom::fill(&mut challenge).map_err(|error| error.to_string())?;
    let stream = tokio::time::timeout(crate::protocol::handshake::TIMEOUT, connection.accept_bi()).await;
    let (mut to_peer, from_peer) = match stream {
        Ok(stream) => stream.map_err(|error| endpoint.why_gone(&error))?,
        Err(_elapsed) => {
            connection.close(ErrorCode::HandshakeTimeout.number().into(), b"no handshake");
            return refused(Refusal::HandshakeTimeout, "no handshake within its time".to_owned());
        }
    };
    let mut from_peer = FrameReader::new(from_peer, MAX_CONTROL_PAYLOAD_LEN);
    let responder =
        Responder::new(&serving.key, &serving.name, key, challenge, DEFAULT_MAX_CLOCK_DRIFT, MonoTime::now());
    if let Err(fault) = respond(responder, &mut to_peer, &mut from_peer).await {
        // The refusal is on its way; the peer closes.
        let _closed = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
        connection.close(fault.code().number().into(), fault.to_string().as_bytes());
        let why = format!("handshake: {fault}");
        return if fault.is_ours() { refused(Refusal::HandshakeFailed, why) } else { Err(why) };
    }
    tracing::info!(peer = %endpoint.peer, "the peer is connected, end to end");
    tokio::select! {
        why = answer_pings(endpoint.peer, &serving.refusals, &mut to_peer, &mut from_peer) => {
            connection.close(0_u8.into(), b"closed");
            Ok(why)
        }
        error = serve_streams(endpoint, connection, serving) => Ok(endpoint.why_gone(&error)),
    }
}

async fn answer_pings(
    peer: NodeId,
    refusals: &RefusalLog,
    to_peer: &mut quinn::SendStream,
    from_peer: &mut FrameReader<quinn::RecvStream>,
) -> String {
    loop {
        let answer: Message = match from_peer.next().await {
            Ok(Some(Message::Ping(Ping { ts, .. }))) => Pong::new(unix_s(), ts).into(),
            Ok(Some(Message::Pong(_))) => continue,
            Ok(Some(Message::Disconnect(_))) => return "the peer has said goodbye".to_owned(),
            Ok(Some(other)) => {
                let why = format!("no {} on this stream", other.name());
                refusals.refuse(Refusal::UnexpectedMessage, &peer, &why);
                ErrorMessage::new(ErrorCode::MessageRejected, why).into()
            }
            Ok(None) => return "the peer has closed the control stream".to_owned(),
            // The connection itself tells why.
            Err(error) if error.code().is_none() => std::future::pending().await,
            Err(error) => {
                refusals.refuse(Refusal::BadFrame, &peer, &error);
                return error.to_string();
            }
        };
        if write_frame(to_peer, &answer).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn serve_streams(
    endpoint: &Arc<PeerEndpoint>,
    connection: &quinn::Connection,
    serving: &Serving,
) -> quinn::ConnectionError {
    let flows = Flows::new(connection.clone(), endpoint.peer, serving.refusals.clone());
    tokio::spawn(flows.clone().deliver_all());
    loop {
        match connection.accept_bi().await {
            Ok((to_peer, from_peer)) => {
                let (peer, serving, flows) = (endpoint.peer, serving.clone(), flows.clone());
                tokio::spawn(async move {
                    streams::serve(peer, &serving, &flows, to_peer, from_peer).await;
                });
            }
            Err(error) => return error,
        }
    }
}
