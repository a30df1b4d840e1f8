//! Whether this host is reached from outside: another relay is asked to connect back to the address that it sees us at, or an
//! agent of the relay here to connect to that one anew.
//!
//! If no relay runs here, its port is answered on for that while, and no agent can be asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::admin::{self, AskError, Request};
use crate::agent::{KnownRelays, dial, initiate};
use crate::clock::MonoTime;
use crate::config::RelayAddress;
use crate::identity::{NodeId, NodeKey};
use crate::probe::{Probed, ProbedRelay};
use crate::protocol::Message;
use crate::protocol::envelope::MAX_CONTROL_PAYLOAD_LEN;
use crate::protocol::flow_terms::Ping;
use crate::protocol::frames::{FrameReader, write_frame};
use crate::protocol::handshake::{Initiator, printable};
use crate::tls;

/// Of the whole, where a relay is asked.
const PATIENCE: Duration = Duration::from_secs(15);

/// More than that of what the relay says is not shown.
const LONGEST_WORDS: usize = 256;

const NONSENSE: &str = "the relay's answer makes no sense";

/// Has `relay`, which is the one that it is known as, connect to `port` of this host. With `own`, no relay runs here: that port of
/// its is answered on with that key.
///
/// # Errors
/// The relay was not asked, and why, for people.
pub async fn call_back(
    relay: RelayAddress,
    known: KnownRelays,
    port: u16,
    own: Option<(NodeKey, u16)>,
) -> Result<Probed, String> {
    let asked = timeout(PATIENCE, ask(relay, known, port, own)).await;
    asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
}

/// Has the relay behind the admin socket at `socket` ask `agent` to connect to it anew. Who that relay is, it says itself:
/// whoever asks may have another identity, or none.
///
/// # Errors
/// The agent was not asked or gave no answer, and why, for people.
pub fn call_back_by_agent(socket: &Path, agent: NodeId) -> Result<ProbedRelay, String> {
    // Some of it is what the daemon says.
    let words = |error: AskError| printable(&error.to_string(), LONGEST_WORDS);
    match admin::ask(socket, Request::Probe { agent }) {
        Ok(answer) => serde_json::from_value(answer).map_err(|error| words(error.into())),
        Err(error @ AskError::NotRunning { .. }) => Err(format!(
            "an agent is asked by the relay that it is connected to, and {error}; without a relay here, another one can be asked: --from NODE@HOST:PORT"
        )),
        Err(error @ (AskError::Refused(_) | AskError::Json(_))) => Err(words(error)),
        Err(error) => Err(error.to_string()),
    }
}

async fn ask(
    relay: RelayAddress,
    known: KnownRelays,
    port: u16,
    own: Option<(NodeKey, u16)>,
) -> Result<Probed, String> {
    // Some of it is what the relay says.
    let words = |error: &dyn std::fmt::Display| printable(&error.to_string(), LONGEST_WORDS);
    let at = (relay.at.host(), relay.at.port());
    let mut resolved = tokio::net::lookup_host(at).await.map_err(|error| words(&error))?;
    let remote = resolved.next().ok_or("the relay's name has no address")?;
    let _answering = own.map(|(key, port)| Answering::at(remote, port, &key)).transpose()?;

    let key = NodeKey::generate().map_err(|error| words(&error))?;
    let (endpoint, connection) = dial(&key, remote).await.map_err(|error| words(&error))?;
    let shown = tls::peer_key(&connection).map_err(|error| words(&error))?;
    known.check(&relay, shown.node_id()).map_err(|error| words(&error))?;
    let (mut to_relay, from_relay) = connection.open_bi().await.map_err(|error| words(&error))?;
    let mut from_relay = FrameReader::new(from_relay, MAX_CONTROL_PAYLOAD_LEN);
    let now = crate::agent::unix_s();
    let initiator = Initiator::new(&key, "doctor", shown, MonoTime::now(), now);
    initiate(initiator, &mut to_relay, &mut from_relay).await.map_err(|error| words(&error))?;
    let ping = Ping { probe: Some(port), ..Ping::new(now) };
    write_frame(&mut to_relay, &ping.into()).await.map_err(|error| words(&error))?;
    let outcome = loop {
        match from_relay.next().await.map_err(|error| words(&error))? {
            Some(Message::Pong(pong)) => break Probed::told(&pong).ok_or_else(|| NONSENSE.to_owned()),
            Some(Message::Error(error)) => break Err(words(&error.message)),
            Some(_) => {}
            None => break Err("the relay has closed the connection".to_owned()),
        }
    };
    connection.close(0_u8.into(), b"");
    endpoint.wait_idle().await;
    outcome
}

/// Somebody with a key who answers to QUIC, and no more.
struct Answering(JoinHandle<()>);

impl Answering {
    /// At `port`, in the family of `towards`.
    fn at(towards: SocketAddr, port: u16, key: &NodeKey) -> Result<Answering, String> {
        let any: IpAddr = match towards {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let config = tls::server_config(key, tls::ALPN_RELAY).map_err(|error| error.to_string())?;
        let endpoint = quinn::Endpoint::server(config, (any, port).into())
            .map_err(|error| format!("UDP {port} cannot be answered on: {error}"))?;
        Ok(Answering(tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                // Who it is does not matter: the relay asks who is here. Another who begins and goes does not keep it waiting.
                tokio::spawn(async move {
                    let _known_or_not = incoming.await;
                });
            }
        })))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What is told of a daemon that answers this.
    fn told(answer: &'static str) -> Result<ProbedRelay, String> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut asker, _) = listener.accept().unwrap();
            BufReader::new(asker.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
            writeln!(asker, "{answer}").unwrap();
        });
        let told = call_back_by_agent(&socket, NodeId::from_bytes([1; 32]));
        daemon.join().unwrap();
        told
    }

    #[test]
    fn the_daemons_words_are_shown_without_what_a_terminal_obeys() {
        let refused = told(r#"{"error":"no \u001b[2J\u0007"}"#).unwrap_err();
        assert!(refused.starts_with("no "), "{refused:?}");
        for answer in [
            r#"{"error":"no \u001b[2J\u0007"}"#,
            r#"{"\u001b[2J":"no"}"#,
            r#"{"ok":{"relay":"\u001b[2J","outcome":"refused"}}"#,
            r#"{"ok":{"relay":"atlas_8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c","outcome":"\u001b[2J"}}"#,
        ] {
            let why = told(answer).unwrap_err();
            assert!(!why.is_empty() && !why.contains(char::is_control), "{why:?}");
        }
    }
}
