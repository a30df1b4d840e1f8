//! The forwards of an agent's daemon: `[[agent.forward]]`.

use anyhow::Context as _;
use relay_userspace::agent::{Agent, ForwardEvent, ForwardListener};
use relay_userspace::config::{Forward, ForwardProtocol};
use tokio::task::JoinSet;

/// Takes the ports, before anything is dialled: one in use is a reason not to start.
pub async fn listen(forwards: &[Forward]) -> anyhow::Result<Vec<(ForwardListener, &Forward)>> {
    let mut listening = Vec::new();
    for forward in forwards {
        let listener = take_port(forward)
            .await
            .with_context(|| format!("agent.forward.listen = \"{}\"", forward.listen))?;
        listening.push((listener, forward));
    }
    Ok(listening)
}

async fn take_port(Forward { listen, protocol, .. }: &Forward) -> anyhow::Result<ForwardListener> {
    let mut addresses = tokio::net::lookup_host((listen.host(), listen.port())).await?;
    let address = addresses.next().context("the name has no address")?;
    Ok(match protocol {
        ForwardProtocol::Tcp => ForwardListener::bind(address).await?,
        ForwardProtocol::Udp => ForwardListener::bind_udp(address).await?,
    })
}

/// Forwards until the result is dropped. Peers and relays may come and go: each is connected to when something is to be
/// carried. What happens is logged.
pub fn start(agent: &Agent, listening: Vec<(ForwardListener, &Forward)>) -> JoinSet<()> {
    let mut running = JoinSet::new();
    for (listener, forward) in listening {
        let (local, Forward { peer, to, protocol, .. }) = (listener.local_addr(), forward.clone());
        tracing::info!(%protocol, listen = %local, %peer, %to, "forwarding");
        let mut forwarding = agent.forward_idle(listener, peer, to);
        running.spawn(async move {
            while let Some(event) = forwarding.next_event().await {
                match event {
                    ForwardEvent::Session(session) => {
                        tracing::info!(%protocol, listen = %local, session = %session.id(), "the forward is connected");
                    }
                    ForwardEvent::Lost { why } => {
                        tracing::warn!(%protocol, listen = %local, why, "the forward has lost its peer; it connects again when needed");
                    }
                    // The agent has logged it.
                    ForwardEvent::Failed { .. } => {}
                }
            }
        });
    }
    running
}
