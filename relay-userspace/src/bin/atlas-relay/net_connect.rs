//! `net connect`: checks the path to another agent.

use relay_userspace::agent::Agent;

use crate::args::Connect;
use crate::node::{Node, runtime};
use crate::output;

pub fn run(options: &Connect) -> anyhow::Result<()> {
    let settings = Node::open()?.agent()?;
    runtime()?.block_on(async {
        let agent = Agent::spawn(settings);
        let connection = agent.connect(options.node).await?;
        let peer = connection.peer();
        output::line(format_args!("Connected to {}", peer.node_id.short()));
        output::line(format_args!("{} [via relay; the name is the peer's own word]", peer.name));
        connection.close().await;
        agent.shutdown().await;
        Ok(())
    })
}
