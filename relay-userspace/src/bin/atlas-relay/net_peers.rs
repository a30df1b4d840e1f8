//! `net peers`: whom the running daemon is connected with. A relay sees agents, an agent its relays.

use relay_userspace::admin::{self, Request};
use relay_userspace::relay::report;
use serde::Deserialize;

use crate::args::Format;
use crate::{node, output};

#[derive(Deserialize)]
struct Peers {
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
struct Peer {
    #[serde(flatten)]
    peer: report::Peer,
    /// An agent tells it of its relays.
    round_trip_us: Option<u64>,
}

pub fn run(format: Format) -> anyhow::Result<()> {
    let answer = admin::ask(&node::admin_socket()?, Request::Peers)?;
    if format.json {
        return output::json(&answer);
    }
    let Peers { peers } = serde_json::from_value(answer)?;
    let of_agent = peers.iter().any(|peer| peer.round_trip_us.is_some());
    let common = |peer: &report::Peer| {
        [
            output::short_id(&peer.node_id),
            peer.name.clone(),
            peer.address.clone(),
            if peer.announced { "yes" } else { "no" }.to_owned(),
            output::seconds(peer.connected_s),
        ]
    };
    if of_agent {
        let rows = peers.iter().map(|Peer { peer, round_trip_us }| {
            let [id, name, address, announced, connected] = common(peer);
            [id, name, address, announced, connected, output::round_trip(*round_trip_us)]
        });
        let titles = ["NODE ID", "NAME", "ADDRESS", "ANNOUNCED", "CONNECTED", "ROUND TRIP"];
        output::table(titles, rows, NONE);
    } else {
        let rows = peers.iter().map(|peer| common(&peer.peer));
        output::table(["NODE ID", "NAME", "ADDRESS", "ANNOUNCED", "CONNECTED"], rows, NONE);
    }
    Ok(())
}

const NONE: &str = "no peers are connected";
