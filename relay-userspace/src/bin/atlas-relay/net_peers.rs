//! `net peers`: whom the running daemon is connected with.

use relay_userspace::admin::{self, Request};
use relay_userspace::relay::report::Peers;

use crate::args::Format;
use crate::{node, output};

pub fn run(format: Format) -> anyhow::Result<()> {
    let answer = admin::ask(&node::admin_socket()?, Request::Peers)?;
    if format.json {
        return output::json(&answer);
    }
    let Peers { peers } = serde_json::from_value(answer)?;
    let rows = peers.into_iter().map(|peer| {
        [
            output::short_id(&peer.node_id),
            peer.name,
            peer.address,
            if peer.announced { "yes" } else { "no" }.to_owned(),
            output::seconds(peer.connected_s),
        ]
    });
    output::table(["NODE ID", "NAME", "ADDRESS", "ANNOUNCED", "CONNECTED"], rows, "no peers are connected");
    Ok(())
}
