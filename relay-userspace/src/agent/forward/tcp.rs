//! A TCP connection through a peer.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::peer_line::PeerLine;
use super::{ForwardEvent, TCP_TOPIC, ask_for};
use crate::agent::request::Accepted;
use crate::config::HostPort;
use crate::protocol::handshake::printable;

/// Documented: dialling one address takes at most this long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The code of a reset stream.
const RESET: u32 = 1;

/// Carries what `listener` accepts to `to` at the line's peer.
pub async fn listen(line: PeerLine, to: HostPort, listener: TcpListener) {
    let line = Arc::new(line);
    let mut carrying = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_done) = carrying.join_next() => continue,
            () = line.watch() => continue,
        };
        match accepted {
            Ok((tcp, client)) => {
                reset_unless_done(&tcp);
                let (line, to) = (line.clone(), to.clone());
                carrying.spawn(async move {
                    if let Err(why) = carry(&line, &to, tcp).await {
                        tracing::warn!(%client, %to, why, "a TCP connection was not carried to its end");
                        line.tell(ForwardEvent::Failed { client, why });
                    }
                });
            }
            Err(error) => {
                // Most likely too many open files: wait for some to close.
                tracing::warn!(%error, "a TCP connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn carry(line: &PeerLine, to: &HostPort, tcp: TcpStream) -> Result<(), String> {
    let connection = line.connected().await.map_err(|error| error.to_string())?;
    let Accepted { to_peer, from_peer, .. } = ask_for(&connection, TCP_TOPIC, to).await?;
    splice(tcp, to_peer, from_peer, connection.quic()).await
}

/// Connects to where a forward goes.
pub async fn reach(to: &HostPort) -> Result<TcpStream, String> {
    match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((to.host(), to.port()))).await {
        Ok(Ok(tcp)) => {
            reset_unless_done(&tcp);
            Ok(tcp)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err(format!("no answer within {} s", DIAL_TIMEOUT.as_secs())),
    }
}

/// Carries bytes both ways until both directions have ended. What is on its way is bounded by one buffer here and the
/// stream's windows.
pub async fn splice(
    mut tcp: TcpStream,
    mut to_peer: quinn::SendStream,
    mut from_peer: quinn::RecvStream,
    connection: &quinn::Connection,
) -> Result<(), String> {
    // Interactive programs write little and wait for the answer.
    let _faster = tcp.set_nodelay(true);
    let (mut tcp_read, mut tcp_write) = tcp.split();
    let out = async {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = tcp_read.read(&mut buffer).await.map_err(|error| format!("TCP: {error}"))?;
            if count == 0 {
                return to_peer.finish().map_err(|error| error.to_string());
            }
            let filled = buffer.get(..count).unwrap_or_default();
            to_peer.write_all(filled).await.map_err(|error| format!("to the peer: {error}"))?;
        }
    };
    let back = async {
        loop {
            match from_peer.read_chunk(BUFFER_BYTES, true).await {
                Ok(Some(chunk)) => {
                    tcp_write.write_all(&chunk.bytes).await.map_err(|error| format!("TCP: {error}"))?;
                }
                Ok(None) => return tcp_write.shutdown().await.map_err(|error| format!("TCP: {error}")),
                Err(error) => return Err(format!("from the peer: {error}")),
            }
        }
    };
    let done = tokio::select! {
        done = async { tokio::try_join!(out, back) } => done.map(|_| ()),
        error = connection.closed() => Err(printable(&error.to_string(), 256)),
    };
    match done {
        Ok(()) => {
            // The default again: what the program has not read yet is still delivered after closing.
            let _set = socket2::SockRef::from(&tcp).set_linger(None);
            // What was written is delivered, or the other side has said that it wants no more.
            to_peer.stopped().await.map(|_| ()).map_err(|error| format!("to the peer: {error}"))
        }
        Err(why) => {
            // Both may have ended already.
            let _reset = to_peer.reset(RESET.into());
            let _stopped = from_peer.stop(RESET.into());
            Err(why)
        }
    }
}

const BUFFER_BYTES: usize = 64 * 1024;

/// Closing will be a reset, however it comes about, until both directions have ended in order: the program on the other
/// end must not take a connection that was cut off for one that is complete.
fn reset_unless_done(tcp: &TcpStream) {
    // A linger of no time: closing discards what is unsent and sends RST.
    let _set = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}
