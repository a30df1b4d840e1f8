//! `net connect`: checks the path to another agent.

use relay_userspace::agent::Agent;

use crate::args::Connect;
use crate::connected_peer::brackets;
use crate::node::{Node, runtime};
use crate::output;

pub fn run(options: &Connect) -> anyhow::Result<()> {
    let settings = Node::open()?.agent()?;
    runtime()?.block_on(async {
        let agent = Agent::spawn(settings);
        let connection = agent.reach(options.node).await?;
        let peer = connection.snapshot();
        connection.close().await;
        agent.shutdown().await;
        if options.format.json {
            return output::json(&peer);
        }
        output::line(format_args!("Connected to {}", options.node.short()));
        output::line(format_args!("{} {}", peer.name, brackets(&peer)));
        Ok(())
    })
}
