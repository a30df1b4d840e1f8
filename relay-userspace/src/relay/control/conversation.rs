//! A connection after the handshake: messages in and out until it ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Connection, SendStream, VarInt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use super::frames::{LAST_WORDS, Reader, frame_refusal, refusal_code};
use super::introduction::Introduced;
use super::message_rate::{MessageRates, MessageVerdict};
use super::{ControlEvent, Held, Listener, RECEIVE_WINDOW, Rules, ToAgent, lock, unix_seconds};
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::probe::{MOST_AT_FIRST, Probed};
use crate::protocol::flow_terms::{ErrorMessage, FLOW, Ping};
use crate::protocol::frames::{FrameError, write_frame};
use crate::protocol::{ErrorCode, Message};
use crate::relay::rendezvous::{Authenticated, ConnId, MOST_SESSIONS_PER_NODE, Refusal, StreamNumber};
use crate::relay::splice::{Half, ReceiveWindow, STREAM_WINDOW};

/// Messages that an agent's outbox has room for, which takes memory as they come. The driver gives up an agent that does
/// not read long before, by what the policy of the day permits: see `Rendezvous::most_waiting`.
const OUTBOX_LEN: usize = 4 * MOST_SESSIONS_PER_NODE as usize;

/// An agent's address is looked at this often.
const LOOK_AT_ADDRESS: Duration = Duration::from_secs(1);

/// An agent that takes longer than this to make room for a message does not read.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

impl Listener {
    /// Carries messages both ways until the connection ends. The handshake was with `from`, which proves that address, and has
    /// taken so long.
    pub(super) async fn converse(
        &self,
        conn: ConnId,
        introduced: Introduced,
        from: SocketAddr,
        handshake: Duration,
    ) {
        let Introduced { connection, peer, send, reader, unfinished } = introduced;
        let mut remote = from;
        let (outbox, mut to_agent) = mpsc::channel(OUTBOX_LEN);
        let relay = connection.local_ip();
        let agent = Authenticated { conn, node: peer.node_id, name: peer.name, remote, relay };
        if self.events.send(ControlEvent::Connected { agent, outbox, handshake }).await.is_err() {
            return connection.close(VarInt::from_u32(0), b"the relay stops");
        }
        let window = ReceiveWindow::new(connection.clone(), RECEIVE_WINDOW, STREAM_WINDOW);
        let mut streams = Streams::default();
        // Streams that are given away as soon as their readers have let go.
        let mut leaving = BTreeMap::new();
        let mut readers = JoinSet::new();
        let (over_limit, mut too_many) = mpsc::channel(1);
        let (to_probe, mut asked) = mpsc::channel(1);
        let (mut probing, mut probes_left) = (JoinSet::new(), MOST_AT_FIRST);
        let intake = Intake {
            conn,
            node: peer.node_id,
            events: self.events.clone(),
            rules: Arc::clone(&self.rules),
            rates: Arc::clone(&self.rates),
            over_limit,
            to_probe,
        };
        let recall = streams.add(StreamNumber::FIRST, send);
        readers.spawn(intake.clone().read(StreamNumber::FIRST, reader, recall));
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
                    Some(ToAgent::HandOver { stream, held, to }) => {
                        if let Some(open) = streams.0.remove(&stream).filter(|open| open.is_read) {
                            open.recall.cancel();
                            // It is held until the reader has let go: else that might still read on.
                            leaving.insert(stream, (open.send, to, held));
                        }
                    }
                    Some(ToAgent::Close { code, reason, blamed }) => {
                        if let Some(refusal) = blamed {
                            self.blame(Some(peer.node_id), remote, refusal);
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
                    // Part of a frame may stand on the stream then, which may be joined to a peer's later.
                    if !write(&mut streams, stream, &answer.into()).await {
                        self.refused(Refusal::SlowReader, Some(peer.node_id), remote).await;
                        connection.close(VarInt::from_u32(0), b"what was sent was not read");
                        break "it does not read what it is sent".to_owned();
                    }
                    if verdict == MessageVerdict::Violation
                        && self.blame(Some(peer.node_id), remote, Refusal::MessageRate)
                    {
                        let code = ErrorCode::RateLimited.number();
                        finish_and_close(&connection, &mut streams, code, TOO_MANY_MESSAGES).await;
                        break TOO_MANY_MESSAGES.to_owned();
                    }
                }
                // One after the other: the next is asked for once this one is answered.
                Some((stream, ping)) = asked.recv(), if probing.is_empty() => {
                    let probe = self.probe(&ping, from, remote, &mut probes_left);
                    if probe.is_none() {
                        self.refused(Refusal::ProbeLimit, Some(peer.node_id), remote).await;
                    }
                    probing.spawn(async move {
                        match probe {
                            Some(probe) => (stream, probe.run().await),
                            None => (stream, Probed::Refused.answer(unix_seconds(), ping.ts)),
                        }
                    });
                }
                Some(Ok((stream, pong))) = probing.join_next() => {
                    if !write(&mut streams, stream, &pong.into()).await {
                        self.refused(Refusal::SlowReader, Some(peer.node_id), remote).await;
                        connection.close(VarInt::from_u32(0), b"what was sent was not read");
                        break "it does not read what it is sent".to_owned();
                    }
                }
                Some(ended) = readers.join_next() => match ended {
                    Ok(Ended { stream, reader, result: Ok(()) }) => {
                        if let Some((send, to, _held)) = leaving.remove(&stream) {
                            let (receive, unread) = reader.into_parts();
                            let _not_wanted_any_more = to.send(Half::new(send, receive, unread, window.widen()));
                            continue;
                        }
                        // The agent has finished its direction. On the first stream it says nothing more then.
                        if stream != StreamNumber::FIRST {
                            streams.0.remove(&stream);
                        } else if let Some(open) = streams.0.get_mut(&stream) {
                            open.is_read = false;
                        }
                        let _driver_gone = self.events.send(ControlEvent::StreamOver { conn, stream }).await;
                    }
                    Ok(Ended { stream, result: Err(error), .. }) => {
                        leaving.remove(&stream);
                        if let Some(code) = refusal_code(&error) {
                            self.blame(Some(peer.node_id), remote, frame_refusal(&error));
                            self.refused(frame_refusal(&error), Some(peer.node_id), remote).await;
                            let answer = ErrorMessage::new(code, error.to_string());
                            let _slow_or_not = write(&mut streams, stream, &answer.into()).await;
                            finish_and_close(&connection, &mut streams, code.number(), "bad frame").await;
                            break error.to_string();
                        }
                        streams.0.remove(&stream);
                        let _driver_gone = self.events.send(ControlEvent::StreamOver { conn, stream }).await;
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
                        let recall = streams.add(stream, send);
                        let reader = Reader::new(receive, &unfinished);
                        readers.spawn(intake.clone().read(stream, reader, recall));
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

/// The streams that are answered on.
#[derive(Default)]
struct Streams(BTreeMap<StreamNumber, Open>);

struct Open {
    send: SendStream,
    /// Has its reader let go of it.
    recall: CancellationToken,
    /// Whether it has one.
    is_read: bool,
}

impl Streams {
    /// One more. What is returned has its reader let go of it.
    fn add(&mut self, stream: StreamNumber, send: SendStream) -> CancellationToken {
        let recall = CancellationToken::new();
        self.0.insert(stream, Open { send, recall: recall.clone(), is_read: true });
        recall
    }
}

/// A stream that is no longer read.
struct Ended {
    stream: StreamNumber,
    reader: Reader,
    result: Result<(), FrameError>,
}

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
    /// Takes the Pings that ask for more than a Pong.
    to_probe: mpsc::Sender<(StreamNumber, Ping)>,
}

impl Intake {
    /// Passes the messages of one stream on to the driver, at the driver's pace, until its end or until it is recalled.
    async fn read(self, stream: StreamNumber, mut reader: Reader, recall: CancellationToken) -> Ended {
        let passing_on = async {
            while let Some(mut event) = reader.next_event(self.conn, stream).await? {
                let passed_on = match (self.judge(), event.probe()) {
                    (MessageVerdict::Taken, Some(ping)) => self.to_probe.send((stream, ping)).await.is_ok(),
                    (MessageVerdict::Taken, None) => {
                        let released = event.hold();
                        let passed_on = self.events.send(event).await.is_ok();
                        if let Some(released) = released {
                            let _dropped = released.await;
                        }
                        passed_on
                    }
                    (verdict, _) => self.over_limit.send((stream, verdict)).await.is_ok(),
                };
                if !passed_on {
                    break;
                }
                reader.settle();
            }
            Ok(())
        };
        let result = tokio::select! {
            biased;
            () = recall.cancelled() => Ok(()),
            result = passing_on => result,
        };
        Ended { stream, reader, result }
    }

    fn judge(&self) -> MessageVerdict {
        let per_minute = self.rules.policy().messages_per_minute;
        lock(&self.rates).judge(self.node, per_minute, MonoTime::now())
    }
}

impl ControlEvent {
    /// If it is a Ping that asks for a probe: that one.
    fn probe(&self) -> Option<Ping> {
        let ControlEvent::Message { message: Message::Ping(ping), .. } = self else { return None };
        ping.probe.is_some().then(|| ping.clone())
    }

    /// If what follows the message on its stream may be for a peer: keeps it from being read until the driver has decided.
    fn hold(&mut self) -> Option<oneshot::Receiver<()>> {
        let ControlEvent::Message { message: Message::RelayConnect(connect), held, .. } = self else {
            return None;
        };
        if connect.flow == Some(FLOW) {
            return None;
        }
        let (hold, released) = oneshot::channel();
        *held = Some(Held(hold));
        Some(released)
    }
}

/// Writes to a stream, or to the first if that one is gone. A stream that fails is dropped; the connection tells when it
/// is over. False if the agent does not read.
async fn write(streams: &mut Streams, stream: StreamNumber, message: &Message) -> bool {
    let stream = if streams.0.contains_key(&stream) { stream } else { StreamNumber::FIRST };
    let Some(open) = streams.0.get_mut(&stream) else { return true };
    match timeout(WRITE_PATIENCE, write_frame(&mut open.send, message)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, message = message.name(), "a message was not sent");
            streams.0.remove(&stream);
            true
        }
        Err(_) => false,
    }
}

/// Closes a connection once the agent has everything that was written, or after [`LAST_WORDS`].
async fn finish_and_close(connection: &Connection, streams: &mut Streams, code: u32, reason: &str) {
    let arrived = async {
        for Open { send, .. } in streams.0.values_mut() {
            let _already_finished = send.finish();
            let _stopped_or_arrived = send.stopped().await;
        }
    };
    let _too_slow = timeout(LAST_WORDS, arrived).await;
    connection.close(VarInt::from_u32(code), reason.as_bytes());
}
