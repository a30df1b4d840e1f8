//! Announced agents that ask for each other.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use relay_common::{BIND_LEN, Side};
use relay_userspace::clock::MonoTime;
use relay_userspace::identity::{NodeId, NodeKey};
use relay_userspace::protocol::Message;
use relay_userspace::protocol::bind::{BindClient, BindEvent, BindOutput};
use relay_userspace::protocol::flow_terms::{FLOW, FlowTerms, ReadyStatus, RelayAnnounce, RelayConnect};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::agents::{Agent, Server, unix_s};

/// Agents in one measurement: each has two sockets for each pairing, and a process may have 1024 by default.
const AGENTS: usize = 32;

/// Connects of each agent, one after another: as many offers as one may have open.
const CONNECTS: usize = 8;

/// Pairings in one measurement.
pub const PAIRINGS: usize = AGENTS * CONNECTS;

/// Until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Both agents have their terms.
    Offered,
    /// Both have bound a data socket of their own, and know that the other has.
    Bound,
}

/// Agents that can be reached, and have not asked for anybody yet.
pub struct Announced {
    agents: Vec<Agent>,
}

impl Announced {
    /// Connects agents nobody has seen yet: `batch` is another one each time.
    ///
    /// # Errors
    /// The relay refuses.
    pub async fn connect(server: Server, batch: u8) -> anyhow::Result<Announced> {
        let mut agents = Vec::new();
        for number in 0..AGENTS {
            let mut seed = [0xa0; 32];
            (seed[0], seed[1]) = (batch, number as u8);
            let mut agent = Agent::connect(server, NodeKey::from_seed(&seed)).await?;
            let node_id = agent.key.node_id().to_string();
            agent.send(RelayAnnounce { node_id, timestamp: unix_s(), flow: Some(FLOW), allow: None }).await?;
            match agent.next().await? {
                Message::RelayReady(ready) if ready.status == ReadyStatus::Waiting => agents.push(agent),
                other => bail!("announcing was answered with {}", other.name()),
            }
        }
        Ok(Announced { agents })
    }

    /// Has each ask for [`CONNECTS`] others.
    ///
    /// # Errors
    /// The relay refuses.
    pub async fn pair(self, until: Until) -> anyhow::Result<Vec<Paired>> {
        let ids: Vec<NodeId> = self.agents.iter().map(|agent| agent.key.node_id()).collect();
        let mut pairing = JoinSet::new();
        for (number, agent) in self.agents.into_iter().enumerate() {
            let targets = (1..=CONNECTS).map(|step| ids[(number + step) % AGENTS]).collect();
            pairing.spawn(timeout(Duration::from_secs(10), pair(agent, targets, until)));
        }
        let mut paired = Vec::new();
        while let Some(agent) = pairing.join_next().await {
            paired.push(agent?.context("pairing took more than 10 s")??);
        }
        Ok(paired)
    }
}

/// An agent with its pairings. While the relay knows them, their sockets stay open: another socket with the port of one
/// would have its session.
pub struct Paired {
    agent: Agent,
    sockets: Vec<UdpSocket>,
}

impl Paired {
    /// Ends the pairings.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn end(self) -> anyhow::Result<()> {
        self.agent.leave().await?;
        drop(self.sockets);
        Ok(())
    }
}

/// Asks for `targets`, and is asked for as often.
async fn pair(mut agent: Agent, targets: Vec<NodeId>, until: Until) -> anyhow::Result<Paired> {
    let mut binding = JoinSet::new();
    let mut wanted = targets.iter();
    connect(&mut agent, wanted.next()).await?;
    for _ in 0..2 * targets.len() {
        let terms = match agent.next().await? {
            Message::RelayReady(ready) => ready.terms()?,
            Message::RelayError(error) => bail!("a pairing was refused: {} {}", error.code, error.message),
            other => bail!("a pairing was answered with {}", other.name()),
        };
        if terms.side == Side::Connector {
            connect(&mut agent, wanted.next()).await?;
        }
        if until == Until::Bound {
            binding.spawn(bind(terms, agent.relay));
        }
    }
    let mut sockets = Vec::new();
    while let Some(bound) = binding.join_next().await {
        sockets.push(bound??);
    }
    Ok(Paired { agent, sockets })
}

async fn connect(agent: &mut Agent, target: Option<&NodeId>) -> anyhow::Result<()> {
    let Some(target) = target else { return Ok(()) };
    let (source_id, target_id) = (agent.key.node_id().to_string(), target.to_string());
    agent.send(RelayConnect { source_id, target_id, timestamp: Some(unix_s()), flow: Some(FLOW) }).await
}

/// Binds a new data socket, until the other side's is bound as well.
async fn bind(terms: FlowTerms, relay: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(relay).await?;
    let mut client = BindClient::new(&terms, MonoTime::now());
    let mut datagram = [0; BIND_LEN];
    loop {
        let unix_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        match client.poll(MonoTime::now(), unix_us) {
            BindOutput::Send(bytes) => {
                socket.send(&bytes).await?;
            }
            BindOutput::Event(BindEvent::Paired { .. }) => return Ok(socket),
            BindOutput::Event(_) => {}
            BindOutput::Idle(due) => {
                let due = due.context("binding was given up")?.since(MonoTime::now());
                if let Ok(received) =
                    timeout(due.max(Duration::from_millis(1)), socket.recv(&mut datagram)).await
                {
                    ensure!(received? == BIND_LEN, "no bind datagram");
                    client.handle(&datagram, MonoTime::now())?;
                }
            }
        }
    }
}
