//! UDP through a peer, at the end that listens: each local program that sends is a client with a flow of its own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::datagrams::{Activity, FlowNumber, Flows, MAX_PAYLOAD_LEN, Outlet, with_room};
use super::peer_line::PeerLine;
use super::{ForwardEvent, UDP_TOPIC, ask_for};
use crate::agent::lock;
use crate::agent::peer::PeerConnection;
use crate::agent::refusal::Refusal;
use crate::agent::request::Accepted;
use crate::config::HostPort;

/// Clients that one forward carries at a time. Less than a connection may have streams, so that flows that are just
/// ending do not hold up new ones.
const MAX_CLIENTS: usize = 200;

/// When there are as many, the one that has been quiet for longest gives way to a new one, if it was for as long as this:
/// many programs ask one question from each port and never come back.
const GIVES_WAY: Duration = Duration::from_secs(5);

/// Datagrams of one client that wait while its flow is opened.
const QUEUE: usize = 64;

/// A client whose flow could not be opened is not tried again before.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Carries what comes to `socket` to `to` at the line's peer, and back what is answered.
pub async fn listen(line: PeerLine, to: HostPort, socket: UdpSocket) {
    // What the peer sends is given to the socket without waiting.
    let _writable = socket.writable().await;
    let near = Arc::new(Near { line, to, socket: Arc::new(socket), flows: Mutex::default() });
    let mut clients = Clients::default();
    let mut carrying = tokio::task::JoinSet::new();
    let mut buffer = vec![0; MAX_PAYLOAD_LEN];
    loop {
        let received = tokio::select! {
            received = near.socket.recv_from(&mut buffer) => received,
            Some(_done) = carrying.join_next() => continue,
            () = near.line.watch() => continue,
        };
        let (len, from) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "a datagram could not be received");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if clients.queue_of(from).is_none() {
            if !clients.make_room(Instant::now()) {
                let why = format!("{from}: {MAX_CLIENTS} clients are carried already");
                near.line.refusals().refuse(Refusal::ClientsFull, &near.line.peer(), &why);
                continue;
            }
            let (queue, queued) = mpsc::channel(QUEUE);
            let activity = Activity::begin();
            clients.insert(from, queue, activity.clone());
            let near = near.clone();
            carrying.spawn(async move { near.carry(from, queued, activity).await });
        }
        let datagram = with_room(buffer.get(..len).unwrap_or_default());
        if clients.queue_of(from).is_some_and(|queue| queue.try_send(datagram).is_err()) {
            let why = format!("{from}: {QUEUE} datagrams wait already");
            near.line.refusals().refuse(Refusal::DatagramQueueFull, &near.line.peer(), &why);
        }
    }
}

struct Near {
    line: PeerLine,
    to: HostPort,
    socket: Arc<UdpSocket>,
    /// Of the present connection.
    flows: Mutex<Option<Arc<Flows>>>,
}

impl Near {
    /// Carries one client's datagrams until its flow is over.
    async fn carry(&self, client: SocketAddr, mut queued: mpsc::Receiver<BytesMut>, activity: Arc<Activity>) {
        let Err(why) = self.carry_while_open(client, &mut queued, activity).await else { return };
        tracing::warn!(%client, to = %self.to, why, "a UDP client is not carried");
        self.line.tell(ForwardEvent::Failed { client, why });
        // Not asked again for each of its datagrams.
        let refuse_all = async {
            while let Some(_datagram) = queued.recv().await {
                let why = format!("{client}: its flow could not be opened");
                self.line.refusals().refuse(Refusal::FlowNotOpen, &self.line.peer(), &why);
            }
        };
        let _over = tokio::time::timeout(RETRY_AFTER, refuse_all).await;
    }

    async fn carry_while_open(
        &self,
        client: SocketAddr,
        queued: &mut mpsc::Receiver<BytesMut>,
        activity: Arc<Activity>,
    ) -> Result<(), String> {
        let connection = self.line.connected().await.map_err(|error| error.to_string())?;
        let flows = self.flows_of(&connection);
        let Accepted { to_peer, mut from_peer, .. } = ask_for(&connection, UDP_TOPIC, &self.to).await?;
        let flow = FlowNumber::of(to_peer.id()).ok_or("the connection has had too many streams")?;
        let outlet = Outlet { socket: self.socket.clone(), to: Some(client), activity };
        let flow = flows.open(flow, outlet);
        let mut told = false;
        let out = async {
            while let Some(datagram) = queued.recv().await {
                if let Err(too_large) = flow.send(datagram)
                    && !std::mem::replace(&mut told, true)
                {
                    self.line.tell(ForwardEvent::Failed { client, why: too_large.to_string() });
                }
            }
        };
        tokio::select! {
            // Another client has its place.
            () = out => {}
            why = flow.over(&mut from_peer) => tracing::debug!(%client, why, "a UDP flow is over"),
        }
        // Dropping its stream ends it at the peer, too.
        Ok(())
    }

    fn flows_of(&self, connection: &PeerConnection) -> Arc<Flows> {
        let quic = connection.quic();
        let mut flows = lock(&self.flows);
        match &*flows {
            Some(flows) if flows.connection().stable_id() == quic.stable_id() => flows.clone(),
            _ => {
                let new = Flows::new(quic.clone(), self.line.peer(), self.line.refusals().clone());
                tokio::spawn(new.clone().deliver_all());
                *flows = Some(new.clone());
                new
            }
        }
    }
}

/// The clients of a forward.
#[derive(Default)]
struct Clients {
    clients: HashMap<SocketAddr, Client>,
}

struct Client {
    queue: mpsc::Sender<BytesMut>,
    activity: Arc<Activity>,
}

impl Clients {
    /// Where a client's datagrams go, unless its flow is over.
    fn queue_of(&self, client: SocketAddr) -> Option<&mpsc::Sender<BytesMut>> {
        self.clients.get(&client).map(|client| &client.queue).filter(|queue| !queue.is_closed())
    }

    /// Makes room for one client more. False if there is none.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.clients.len() < MAX_CLIENTS {
            return true;
        }
        self.clients.retain(|_, client| !client.queue.is_closed());
        if self.clients.len() < MAX_CLIENTS {
            return true;
        }
        let quiet = self.clients.iter().min_by_key(|(_, client)| client.activity.last());
        let quiet = quiet.filter(|(_, client)| now.duration_since(client.activity.last()) >= GIVES_WAY);
        let Some(address) = quiet.map(|(address, _)| *address) else { return false };
        // Its flow ends with its queue.
        self.clients.remove(&address);
        true
    }

    fn insert(&mut self, client: SocketAddr, queue: mpsc::Sender<BytesMut>, activity: Arc<Activity>) {
        self.clients.insert(client, Client { queue, activity });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], number as u16))
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_client_gives_way_to_a_new_one_and_a_busy_one_does_not() {
        let mut clients = Clients::default();
        let mut flows = Vec::new();
        for number in 0..MAX_CLIENTS {
            assert!(clients.make_room(Instant::now()));
            let (queue, queued) = mpsc::channel(1);
            let activity = Activity::begin();
            clients.insert(client(number), queue, activity.clone());
            flows.push((queued, activity));
        }
        assert!(!clients.make_room(Instant::now()), "all have just begun");
        tokio::time::advance(GIVES_WAY).await;
        flows.iter().filter(|(_, activity)| !Arc::ptr_eq(activity, &flows[7].1)).for_each(|(_, a)| a.now());
        assert!(clients.make_room(Instant::now()));
        assert!(clients.queue_of(client(7)).is_none() && clients.queue_of(client(8)).is_some());
        assert!(flows[7].0.recv().await.is_none(), "its flow is told");
    }

    #[tokio::test]
    async fn a_client_whose_flow_is_over_has_no_place() {
        let mut clients = Clients::default();
        let (queue, queued) = mpsc::channel(1);
        clients.insert(client(1), queue, Activity::begin());
        assert!(clients.queue_of(client(1)).is_some());
        drop(queued);
        assert!(clients.queue_of(client(1)).is_none());
    }
}
