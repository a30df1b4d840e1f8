//! Whether another relay is reachable from here: two agents with keys of the moment do through it what agents do. That is the
//! whole of it: QUIC, the handshake, an announcement, a pairing, both bindings, and one datagram.
//!
//! That this host is reachable from there is another question: see `call_back.rs`.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::agent::{Agent, AgentSettings, ConnectError, Incoming};
use crate::config::RelayAddress;
use crate::identity::{NodeId, NodeKey};
use crate::protocol::ErrorCode;

/// Of each step.
const PATIENCE: Duration = Duration::from_secs(15);

const DATAGRAM: &[u8] = b"doctor";

/// Has two agents exchange a datagram through `relay`, and says what that shows.
///
/// # Errors
/// Which step failed, and why, for people.
pub async fn reach(relay: RelayAddress, known_relays: PathBuf) -> Result<String, String> {
    let key = || NodeKey::generate().map_err(|error| error.to_string());
    let [dialing, waiting] = [key()?, key()?];
    let settings = |key: &NodeKey| {
        AgentSettings::dialer(key.clone(), "doctor", vec![relay.clone()], known_relays.clone())
    };
    let target = Agent::spawn(AgentSettings {
        announce: true,
        accept: vec![dialing.node_id()],
        incoming: Incoming::Raw,
        ..settings(&waiting)
    });
    let connector = Agent::spawn(settings(&dialing));
    let outcome = exchange(&connector, &target, waiting.node_id()).await;
    connector.shutdown().await;
    target.shutdown().await;
    outcome
}

async fn exchange(connector: &Agent, target: &Agent, peer: NodeId) -> Result<String, String> {
    let began = Instant::now();
    let paired = async {
        loop {
            match connector.connect_raw(peer).await {
                Ok(session) => return Ok(session),
                // The other has not announced itself yet.
                Err(ConnectError::Refused { code, .. }) if code == ErrorCode::TargetUnknown.number() => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    let late = |step: &str| format!("{step} within {} s", PATIENCE.as_secs());
    let session = timeout(PATIENCE, paired).await.map_err(|_| late("no session was paired"))??;
    let accepted = timeout(PATIENCE, target.accept_raw())
        .await
        .map_err(|_| late("the other side heard of no session"))?;
    let mut accepted = accepted.ok_or_else(|| "the other side has stopped".to_owned())?;
    let receive = async {
        // Datagrams may be lost; what counts is that they come through.
        loop {
            session.send(DATAGRAM).await.map_err(|error| error.to_string())?;
            match timeout(Duration::from_millis(200), accepted.recv()).await {
                Ok(Some(datagram)) if datagram[..] == *DATAGRAM => return Ok(()),
                Ok(None) => return Err("the session has ended".to_owned()),
                Ok(Some(_)) | Err(_) => {}
            }
        }
    };
    timeout(PATIENCE, receive).await.map_err(|_| late("no datagram came through"))??;
    let ms = began.elapsed().as_millis();
    Ok(format!("reachable from here: two agents were paired and a datagram came through it, {ms} ms in all"))
}
