//! An agent whose identity another one has taken.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Network, key, node};
use crate::agent::error::LinkError;
use crate::agent::known_relays::KnownRelays;
use crate::agent::link::{LinkChange, LinkEvent, LinkSettings, keep_connected};
use crate::agent::probe::Probes;
use crate::agent::refusal::RefusalLog;
use crate::agent::state::RelayIndex;
use crate::protocol::flow_terms::{Disconnect, RelayAnnounce, disconnect_reason};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_told_that_it_was_replaced_does_not_fight_back() {
    let net = Network::start().await;
    let settings = LinkSettings {
        named_at: None,
        key: key(1),
        name: "agent 1".to_owned(),
        address: net.relay.control.to_string().parse().unwrap(),
        known_relays: KnownRelays::at(net.known_relays(1)),
        probes: Probes::new(RefusalLog::default()),
    };
    let (events, mut changes) = mpsc::channel(64);
    let link = tokio::spawn(keep_connected(RelayIndex(0), settings, events, CancellationToken::new()));
    let Some(LinkEvent { what: LinkChange::Up { outgoing, .. }, .. }) = changes.recv().await else {
        panic!("the relay is there")
    };
    let node_id = node(1).to_string();
    let announce = RelayAnnounce { node_id, timestamp: 0, flow: None, allow: Some(Vec::new()) };
    outgoing.send(announce.into()).await.unwrap();
    net.relay.until(|state| state.announced.contains_key(&node(1))).await;
    let goodbye = Disconnect::new(disconnect_reason::REPLACED, None, None);
    net.relay.state().announced[&node(1)].0.send(goodbye.into()).unwrap();

    // What would dial again has ended, and by itself.
    timeout(Duration::from_secs(20), link).await.expect("it is over").unwrap();
    let mut last = None;
    while let Some(LinkEvent { what, .. }) = changes.recv().await {
        last = Some(what);
    }
    assert!(matches!(last, Some(LinkChange::Down(LinkError::Replaced))), "{last:?}");
}
