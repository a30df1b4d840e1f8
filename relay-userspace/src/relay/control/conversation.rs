//! A connection after the handshake: messages in and out until it ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Connection, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::frames::{LAST_WORDS, Reader, frame_refusal, refusal_code};
use super::introduction::Introduced;
use super::message_rate::{MessageRates, MessageVerdict};
use super::{ControlEvent, Listener, Rules, StreamNumber, ToAgent, lock};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::protocol::flow_terms::ErrorMessage;
use crate::protocol::frames::{FrameError, write_frame};
use crate::protocol::{ErrorCode, Message};
use crate::relay::rendezvous::{Authenticated, ConnId, MOST_SESSIONS_PER_NODE, Refusal};

/// Messages that an agent's outbox has room for, which takes memory as they come. The driver gives up an agent that does
/// not read long before, by what the policy of the day permits: see `Rendezvous::most_waiting`.
const OUTBOX_LEN: usize = 4 * MOST_SESSIONS_PER_NODE as usize;

/// An agent's address is looked at this often.
const LOOK_AT_ADDRESS: Duration = Duration::from_secs(1);

/// An agent that takes longer than this to make room for a message does not read.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

impl Listener {
    /// Carries messages both ways until the connection ends.
    pub(super) async fn converse(&self, conn: ConnId, introduced: Introduced) {
        let Introduced { connection, peer, send, reader, unfinished } = introduced;
        let mut remote = connection.remote_address();
        let (outbox, mut to_agent) = mpsc::channel(OUTBOX_LEN);
        let relay = connection.local_ip();
        let agent = Authenticated { conn, node: peer.node_id, name: peer.name, remote, relay };
        if self.events.send(ControlEvent::Connected { agent, outbox }).await.is_err() {
            return connection.close(VarInt::from_u32(0), b"the relay stops");
        }
        let mut streams = BTreeMap::from([(StreamNumber(0), send)]);
        let mut readers = JoinSet::new();
        let (over_limit, mut too_many) = mpsc::channel(1);
        let intake = Intake {
            conn,
            node: peer.node_id,
            events: self.events.clone(),
            rules: Arc::clone(&self.rules),
            rates: Arc::clone(&self.rates),
            over_limit,
        };
        readers.spawn(intake.clone().read(StreamNumber(0), reader));
        // Another address is believed once it is still there at the next look: anybody who forges a packet can make it
        // change until QUIC has validated the path.
        let mut seen = remote;
        let mut opened = 0;
        let mut look = interval_at(Instant::now() + LOOK_AT_ADDRESS, LOOK_AT_ADDRESS);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reason = loop {
            tokio::select! {
                order = to_agent.recv() => match order {
                    Some(ToAgent::Message { stream, message }) => {
                        if !write(&mut streams, stream, &message).await {
                            self.refused(Refusal::SlowReader, Some(peer.node_id), remote).await;
                            connection.close(VarInt::from_u32(0), b"what was sent was not read");
                            break "it does not read what it is sent".to_owned();
                        }
                    }
                    Some(ToAgent::Close { code, reason }) => {
                        if code == ErrorCode::InvalidIdentity.number() {
                            self.blame(Some(peer.node_id), remote, Refusal::ForeignIdentity);
                        }
                        finish_and_close(&connection, &mut streams, code, reason).await;
                        break reason.to_owned();
                    }
                    // The driver has given the agent up without a word: it does not read, or the daemon ends.
                    None => {
                        connection.close(VarInt::from_u32(0), b"given up");
                        break "given up".to_owned();
                    }
                },
                Some((stream, verdict)) = too_many.recv() => {
                    self.refused(Refusal::MessageRate, Some(peer.node_id), remote).await;
                    let answer = ErrorMessage::new(ErrorCode::RateLimited, TOO_MANY_MESSAGES);
                    let _slow_or_not = write(&mut streams, stream, &answer.into()).await;
                    if verdict == MessageVerdict::Violation
                        && self.blame(Some(peer.node_id), remote, Refusal::MessageRate)
                    {
                        let code = ErrorCode::RateLimited.number();
                        finish_and_close(&connection, &mut streams, code, TOO_MANY_MESSAGES).await;
                        break TOO_MANY_MESSAGES.to_owned();
                    }
                }
                Some(ended) = readers.join_next() => match ended {
                    Ok((stream, Ok(()))) => {
                        // The agent has finished its direction. On the first stream it says nothing more then.
                        if stream != StreamNumber(0) {
                            streams.remove(&stream);
                        }
                    }
                    Ok((stream, Err(error))) => {
                        if let Some(code) = refusal_code(&error) {
                            self.blame(Some(peer.node_id), remote, frame_refusal(&error));
                            self.refused(frame_refusal(&error), Some(peer.node_id), remote).await;
                            let answer = ErrorMessage::new(code, error.to_string());
                            let _slow_or_not = write(&mut streams, stream, &answer.into()).await;
                            finish_and_close(&connection, &mut streams, code.number(), "bad frame").await;
                            break error.to_string();
                        }
                        streams.remove(&stream);
                    }
                    Err(_) => {
                        connection.close(VarInt::from_u32(ErrorCode::Internal.number()), b"internal error");
                        break "a reader has failed".to_owned();
                    }
                },
                accepted = connection.accept_bi() => match accepted {
                    Ok((send, receive)) => {
                        opened += 1;
                        let stream = StreamNumber(opened);
                        streams.insert(stream, send);
                        let reader = Reader::new(receive, &unfinished);
                        readers.spawn(intake.clone().read(stream, reader));
                    }
                    Err(error) => break error.to_string(),
                },
                _ = look.tick() => {
                    let now = connection.remote_address();
                    if std::mem::replace(&mut seen, now) == now && now != remote {
                        remote = now;
                        let _driver_gone = self.events.send(ControlEvent::Moved { conn, remote }).await;
                    }
                }
            }
        };
        drop(to_agent);
        let _driver_gone = self.events.send(ControlEvent::Closed { conn, reason }).await;
    }
}

/// What an agent is told that sends too many messages.
const TOO_MANY_MESSAGES: &str = "more control messages in a minute than this relay takes";

/// Where the messages of one connection go.
#[derive(Clone)]
struct Intake {
    conn: ConnId,
    node: NodeId,
    events: mpsc::Sender<ControlEvent>,
    rules: Arc<Rules>,
    rates: Arc<Mutex<MessageRates>>,
    /// Takes the streams on which more messages come than may.
    over_limit: mpsc::Sender<(StreamNumber, MessageVerdict)>,
}

impl Intake {
    /// Passes the messages of one stream on to the driver, at the driver's pace.
    async fn read(self, stream: StreamNumber, mut reader: Reader) -> (StreamNumber, Result<(), FrameError>) {
        loop {
            let event = match reader.next_event(self.conn, stream).await {
                Ok(Some(event)) => event,
                Ok(None) => return (stream, Ok(())),
                Err(error) => return (stream, Err(error)),
            };
            let passed_on = match self.judge() {
                MessageVerdict::Taken => self.events.send(event).await.is_ok(),
                verdict => self.over_limit.send((stream, verdict)).await.is_ok(),
            };
            if !passed_on {
                return (stream, Ok(()));
            }
            reader.settle();
        }
    }

    fn judge(&self) -> MessageVerdict {
        let per_minute = self.rules.policy().messages_per_minute;
        lock(&self.rates).judge(self.node, per_minute, MonoTime::now())
    }
}

/// Writes to a stream, or to the first if that one is gone. A stream that fails is dropped; the connection tells when it
/// is over. False if the agent does not read.
async fn write(
    streams: &mut BTreeMap<StreamNumber, SendStream>,
    stream: StreamNumber,
    message: &Message,
) -> bool {
    let stream = if streams.contains_key(&stream) { stream } else { StreamNumber(0) };
    let Some(send) = streams.get_mut(&stream) else { return true };
    match timeout(WRITE_PATIENCE, write_frame(send, message)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, message = message.name(), "a message was not sent");
            streams.remove(&stream);
            true
        }
        Err(_) => false,
    }
}

/// Closes a connection once the agent has everything that was written, or after [`LAST_WORDS`].
async fn finish_and_close(
    connection: &Connection,
    streams: &mut BTreeMap<StreamNumber, SendStream>,
    code: u32,
    reason: &str,
) {
    let arrived = async {
        for send in streams.values_mut() {
            let _already_finished = send.finish();
            let _stopped_or_arrived = send.stopped().await;
        }
    };
    let _too_slow = timeout(LAST_WORDS, arrived).await;
    connection.close(VarInt::from_u32(code), reason.as_bytes());
}
