//! The relay's loop: it gives the rendezvous what has happened, and does what the rendezvous says.
//!
//! The only place that reads the clock for the rendezvous.

mod agent_probes;
mod answers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use self::agent_probes::AgentProbes;
use super::bans::{BanStatus, BanSubject};
use super::control::{ControlEvent, ControlPolicy, Held, Rules, ToAgent, unix_seconds};
use super::datapath::Inheritance;
use super::event_log::EventLog;
use super::forwarder::{BIND_QUEUE_LEN, BindDatagram};
use super::metrics::{EventCounts, Observation, Observer};
use super::packet_path::{PacketPath, Predecessor};
use super::reconfiguration::Reconfiguration;
use super::rendezvous::{ConnId, EndReason, Output, Randomness, Rendezvous, Settings, StreamEnd};
use super::splice::{News, Splicer};
use super::stopping::{Stopper, Stopping};
use crate::admin::{self, Asked};
use crate::clock::MonoTime;
use crate::config::Reading;
use crate::identity::NodeId;
use crate::protocol::Message;
use crate::protocol::message::{Ping, Pong};

/// Everything the loop listens to.
#[derive(Debug)]
pub struct Inputs {
    /// From the control connections.
    pub control: mpsc::Receiver<ControlEvent>,
    /// From the relay's port.
    pub binds: mpsc::Receiver<BindDatagram>,
    /// From the admin socket.
    pub admin: mpsc::Receiver<Asked>,
    /// From whoever watches the relay.
    pub observers: mpsc::Receiver<Observer>,
}

/// The loop's state.
pub struct Driver {
    /// This relay.
    node: NodeId,
    rendezvous: Rendezvous,
    packets: PacketPath,
    splicer: Splicer,
    /// Whom the control connections' listener lets in.
    rules: Arc<Rules>,
    reconfiguration: Reconfiguration,
    stopper: Stopper,
    /// Who has had it stop, and waits until that is done.
    awaiting_end: Vec<admin::Asker>,
    randomness: SystemRandomness,
    /// What became of the sessions that a predecessor has left: [`ADOPTED`], or the word of the reason for their end.
    adopted: BTreeMap<&'static str, u64>,
    /// What has happened.
    events: EventCounts,
    log: EventLog,
    /// The port that it listens on.
    port: u16,
    agent_probes: AgentProbes,
    /// Where messages for each connection go. Dropping one gives the connection up.
    outboxes: BTreeMap<ConnId, mpsc::Sender<ToAgent>>,
}

impl Driver {
    /// A driver of a new rendezvous over `packets`.
    pub fn new(
        settings: Settings,
        port: u16,
        packets: PacketPath,
        rules: Arc<Rules>,
        reconfiguration: Reconfiguration,
        stopper: Stopper,
    ) -> Driver {
        let mut randomness = SystemRandomness;
        let node = settings.key.node_id();
        let rendezvous = Rendezvous::new(settings, &mut randomness, MonoTime::now());
        Driver {
            node,
            rendezvous,
            packets,
            splicer: Splicer::new(),
            rules,
            reconfiguration,
            stopper,
            awaiting_end: Vec::new(),
            randomness,
            port,
            agent_probes: AgentProbes::default(),
            outboxes: BTreeMap::new(),
            adopted: BTreeMap::new(),
            events: EventCounts::default(),
            log: EventLog::default(),
        }
    }

    /// Goes on with the sessions that a predecessor has left, as far as they may be, and then needs nothing of it any more.
    pub fn succeed(&mut self, left: &Inheritance, predecessor: Predecessor) {
        let Inheritance { sessions, unreadable } = left;
        if *unreadable > 0 {
            self.adopted.insert(EndReason::Unreadable.word(), *unreadable);
        }
        for session in sessions {
            let now = MonoTime::now();
            let mut nodes = session.identity.nodes.into_iter().map(BanSubject::Node);
            let is_banned = nodes.any(|node| self.rules.bans().left(node, now).is_some());
            let outcome = match self.rendezvous.adopt(session, is_banned, &mut self.packets.flows, now) {
                Ok(()) => ADOPTED,
                Err(reason) => reason.word(),
            };
            *self.adopted.entry(outcome).or_insert(0) += 1;
            self.carry_out(None);
        }
        self.packets.keep(predecessor);
        if !self.adopted.is_empty() {
            let outcomes = self.adopted.iter().map(|(word, count)| format!("{word} {count}"));
            let outcomes = outcomes.collect::<Vec<_>>().join(", ");
            tracing::info!(outcomes, "sessions of the relay before");
        }
    }

    /// How the relay is to stop at SIGTERM.
    pub fn at_sigterm(&self) -> Stopping {
        self.packets.at_sigterm()
    }

    /// Runs until told to stop; then all agents are told, and if it is the end all flows removed.
    pub async fn run(mut self, mut inputs: Inputs) -> Remains {
        while self.turn(&mut inputs).await {}
        match self.stopper.told().await {
            Stopping::Leave => self.rendezvous.make_way(),
            Stopping::End => self.rendezvous.shut_down(&mut self.packets.flows, MonoTime::now()),
        }
        self.carry_out(None);
        Remains { packets: self.packets, awaiting_end: self.awaiting_end }
    }

    /// Waits for something to happen, and does what it asks for. False: the relay is to stop.
    async fn turn(&mut self, inputs: &mut Inputs) -> bool {
        self.waiting_binds(&mut inputs.binds);
        let deadline = self.rendezvous.next_deadline();
        let mut asker = None;
        tokio::select! {
            _ = self.stopper.told() => return false,
            Some(bind) = inputs.binds.recv() => self.bind(&bind),
            Some(event) = inputs.control.recv() => asker = self.control(event),
            Some(asked) = inputs.admin.recv() => self.answer(asked),
            Some(observer) = inputs.observers.recv() => {
                let _observer_gone = observer.send(self.observe(MonoTime::now()));
            }
            reading = self.reconfiguration.read() => self.reconfigure(reading),
            news = self.splicer.news() => match news {
                News::Over { session, reason, traffic } => {
                    self.rendezvous.spliced_over(session, reason, traffic, MonoTime::now());
                }
                News::Passed(bytes) => self.rendezvous.spliced_bytes(bytes, MonoTime::now()),
            },
            change = self.packets.network_change() => self.packets.follow(&change),
            () = until(deadline) => self.sweep(),
        }
        self.carry_out(asker);
        true
    }

    /// Does what is due.
    fn sweep(&mut self) {
        let begun = Instant::now();
        self.rendezvous.expire(&mut self.packets.flows, MonoTime::now());
        self.events.sweeps.record(begun.elapsed());
    }

    /// What those are told who watch the relay.
    fn observe(&mut self, now: MonoTime) -> Result<Observation, String> {
        let is_node = |ban: &BanStatus| matches!(ban.subject, BanSubject::Node(_));
        let bans = self.rules.bans().list(now);
        let nodes = bans.iter().filter(|ban| is_node(ban)).count();
        Ok(Observation {
            path: self.packets.figures().map_err(|error| error.to_string())?,
            counts: self.rendezvous.counts(),
            events: self.events.clone(),
            refusals: self.rendezvous.refusals().iter().collect(),
            bans: [nodes as u64, (bans.len() - nodes) as u64],
            draining: self.rendezvous.drain_status(now).map(|drain| drain.sessions),
            relayed_bytes_per_s: self.rendezvous.relayed_bytes_per_s(now),
        })
    }

    /// Handles the bind datagrams that wait, up to [`BINDS_AT_ONCE`]. The loop takes one thing a turn, and while sessions
    /// are rerouted every other turn is a portion of that: binds would come in faster than one a turn, and be lost.
    fn waiting_binds(&mut self, binds: &mut mpsc::Receiver<BindDatagram>) {
        for _ in 0..BINDS_AT_ONCE {
            let Ok(bind) = binds.try_recv() else { return };
            self.bind(&bind);
            self.carry_out(None);
        }
    }

    fn bind(&mut self, bind: &BindDatagram) {
        let BindDatagram { from, to, bytes } = bind;
        let now = MonoTime::now();
        self.rendezvous.bind(*from, *to, bytes, &mut self.packets.flows, &mut self.randomness, now);
    }

    /// Whom answers are for, if the event is a message.
    fn control(&mut self, event: ControlEvent) -> Option<Asker> {
        let now = MonoTime::now();
        match event {
            ControlEvent::Connected { agent, outbox, handshake } => {
                self.events.handshakes.record(handshake);
                self.outboxes.insert(agent.conn, outbox);
                self.rendezvous.connected(agent, now);
            }
            ControlEvent::Message { conn, stream, message, held } => {
                if let Message::Pong(pong) = &message {
                    self.agent_probes.pong(conn, pong);
                }
                let (end, banned) = (StreamEnd { conn, stream }, self.asks_for_banned(&message, now));
                let Driver { rendezvous, packets, randomness, .. } = self;
                match message {
                    Message::RelayConnect(connect) if banned => {
                        rendezvous.asked_for_banned(end, &connect, &mut packets.flows, randomness, now);
                    }
                    message => rendezvous.received_on(end, message, &mut packets.flows, randomness, now),
                }
                return Some(Asker { end, held });
            }
            ControlEvent::NotTaken { conn, stream, message } => {
                self.rendezvous.not_taken(conn, message, now);
                return Some(Asker { end: StreamEnd { conn, stream }, held: None });
            }
            ControlEvent::StreamOver { conn, stream } => {
                self.rendezvous.stream_over(StreamEnd { conn, stream });
            }
            ControlEvent::Moved { conn, remote } => self.rendezvous.moved(conn, remote),
            ControlEvent::Closed { conn, reason } => {
                self.outboxes.remove(&conn);
                self.agent_probes.closed(conn);
                self.rendezvous.closed(conn, &reason);
            }
            ControlEvent::Refused { refusal, node, from } => {
                self.rendezvous.refused(refusal, node, from, now)
            }
        }
        None
    }

    /// Whether a message asks for a node that is banned at present.
    fn asks_for_banned(&self, message: &Message, now: MonoTime) -> bool {
        let Message::RelayConnect(connect) = message else { return false };
        let target = connect.target_id.parse().map(BanSubject::Node);
        target.is_ok_and(|target| self.rules.bans().left(target, now).is_some())
    }

    /// Does what the rendezvous says. What it says to the connection of `asker` goes to the stream named there.
    fn carry_out(&mut self, mut asker: Option<Asker>) {
        while let Some(output) = self.rendezvous.next_output() {
            let (conn, message) = match output {
                Output::Send { conn, message } => (conn, message),
                // A Ping is out already that asks for more.
                Output::Ping { conn } if self.agent_probes.waits(conn) => continue,
                Output::Ping { conn } => {
                    let ping = Ping::new(unix_seconds());
                    self.agent_probes.pinged(conn, ping.ts);
                    (conn, ping.into())
                }
                Output::Pong { conn, echo } => (conn, Pong::new(unix_seconds(), echo).into()),
                Output::Close { conn, code, reason, blamed } => {
                    if let Some(outbox) = self.outboxes.remove(&conn) {
                        let _given_up_anyway = outbox.try_send(ToAgent::Close { code, reason, blamed });
                    }
                    continue;
                }
                Output::Bind { from, to, bytes } => {
                    self.packets.send_bind(from, to, &bytes);
                    continue;
                }
                Output::Splice { session, ends: [connector, target], ready, limit, idle_timeout } => {
                    let ready = ready.into();
                    let [to_connector, to_target] = self.splicer.join(session, ready, limit, idle_timeout);
                    // It is the connector that has asked.
                    let held = asker.as_mut().and_then(|asker| asker.held.take());
                    let stream = connector.stream;
                    self.send(connector.conn, ToAgent::HandOver { stream, held, to: to_connector });
                    let stream = target.stream;
                    self.send(target.conn, ToAgent::HandOver { stream, held: None, to: to_target });
                    continue;
                }
                Output::Unsplice { session, reason } => {
                    let traffic = self.splicer.end(session);
                    self.rendezvous.spliced_over(session, reason, traffic, MonoTime::now());
                    continue;
                }
                Output::Drained { left } => {
                    tracing::info!(sessions_left = left, "drained: stopping");
                    self.stopper.stop(Stopping::End);
                    continue;
                }
                Output::Event(event) => {
                    self.log.log(&event, MonoTime::now());
                    self.events.see(&event);
                    continue;
                }
            };
            let end = asker.as_ref().map(|asker| asker.end).filter(|end| end.conn == conn);
            let stream = end.map(|end| end.stream);
            self.send(conn, ToAgent::Message { stream: stream.unwrap_or_default(), message });
        }
    }

    fn send(&mut self, conn: ConnId, message: ToAgent) {
        let Some(outbox) = self.outboxes.get(&conn) else { return };
        let waiting = outbox.max_capacity() - outbox.capacity();
        if waiting >= self.rendezvous.most_waiting() || outbox.try_send(message).is_err() {
            // Its task sees that nobody sends any more, ends the connection and reports it closed.
            self.outboxes.remove(&conn);
            self.rendezvous.slow_reader(conn, MonoTime::now());
        }
    }

    fn reconfigure(&mut self, reading: Reading) {
        let Driver { rendezvous, packets, splicer, rules, reconfiguration, .. } = self;
        reconfiguration.finish(reading, |before, present| {
            rules.set_policy(ControlPolicy::of(present));
            let limit = present.transport.relay_bandwidth_limit;
            if limit != before.transport.relay_bandwidth_limit {
                let now = MonoTime::now();
                rendezvous.set_limit(limit, &mut packets.flows, now);
                splicer.set_limit(limit, now);
            }
            rendezvous.set_policy(super::policy(present), &mut packets.flows, MonoTime::now());
        });
    }
}

/// The word for sessions that go on after a restart.
const ADOPTED: &str = "adopted";

/// What is left of a driver that has stopped.
pub struct Remains {
    /// QUIC needs its sockets until the last word has arrived.
    pub packets: PacketPath,
    /// Who is to be answered once everything is done.
    pub awaiting_end: Vec<admin::Asker>,
}

/// Who has sent the message that is being answered.
struct Asker {
    end: StreamEnd,
    /// Keeps the stream from being read further.
    held: Option<Held>,
}

/// Bind datagrams handled before each turn of the loop, at most: as many as can wait.
const BINDS_AT_ONCE: usize = BIND_QUEUE_LEN;

/// Randomness of the operating system.
struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn fill(&mut self, bytes: &mut [u8]) {
        if let Err(error) = getrandom::fill(bytes) {
            // Guessable session ids and cookies would be worse than no relay.
            tracing::error!(%error, "the operating system gives no random numbers");
            std::process::abort();
        }
    }
}

/// Sleeps until `deadline`; for ever, if there is none.
async fn until(deadline: Option<MonoTime>) {
    match deadline {
        Some(deadline) => {
            let left = deadline.since(MonoTime::now());
            // The coarse clock stands still for up to a tick; asking it again sooner would be a busy loop.
            tokio::time::sleep(left.max(CLOCK_TICK)).await;
        }
        None => std::future::pending().await,
    }
}

/// What the coarse clock may lag behind, at least.
const CLOCK_TICK: Duration = Duration::from_millis(1);
