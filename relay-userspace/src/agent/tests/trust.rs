//! Peers and relays that are not who they should be, or not who is let in.

use super::fake_relay::PassedOff;
use super::{Network, key, node};
use crate::agent::{ConnectError, SessionEnd};
use crate::protocol::bind::BindMagic;

#[tokio::test]
async fn peers_that_are_not_accepted_or_absent_look_the_same_to_the_dialler() {
    let net = Network::start().await;
    let (alice, _bob) = (net.dialer(1), net.server(2, &[3], &[]).await);
    for peer in [node(2), node(9)] {
        let error = alice.connect(peer).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { code: 3001, .. }), "{error}");
        assert!(error.to_string().contains("[agent] accept"), "{error}");
    }
    assert!(matches!(alice.connect(node(1)).await, Err(ConnectError::Itself(_))));
}

#[tokio::test]
async fn a_relay_that_offers_a_peer_that_is_not_accepted_is_refused_by_the_target() {
    let net = Network::start().await;
    net.relay.state().ignores_allow_lists = true;
    let (alice, _bob) = (net.dialer(1), net.server(2, &[3], &[]).await);
    let connecting = tokio::spawn(async move { alice.connect(node(2)).await });
    net.relay.until(|state| !state.disconnected.is_empty()).await;
    connecting.abort();
}

#[tokio::test]
async fn a_connector_that_the_relay_passes_off_as_an_accepted_peer_is_refused() {
    let net = Network::start().await;
    net.relay.state().passes_off = Some(PassedOff { impostor: node(3), accepted: node(1) });
    let (mallory, bob) = (net.dialer(3), net.server(2, &[1], &[]).await);
    let error = mallory.connect(node(2)).await.unwrap_err();
    let refused = matches!(error, ConnectError::Handshake { .. } | ConnectError::EndToEnd { .. });
    assert!(refused, "paired, but refused end to end: {error}");
    assert_eq!(bob.sessions().await.refused.get("foreign_identity"), Some(&1));
}

#[tokio::test]
async fn a_target_that_the_relay_passes_off_as_the_one_asked_for_is_refused() {
    let net = Network::start().await;
    net.relay.state().passes_off = Some(PassedOff { impostor: node(3), accepted: node(2) });
    let (alice, _mallory) = (net.dialer(1), net.server(3, &[1], &[]).await);
    let error = alice.connect(node(2)).await.unwrap_err();
    assert!(matches!(&error, ConnectError::EndToEnd { peer, .. } if *peer == node(2)), "{error}");
}

#[tokio::test]
async fn terms_with_another_relays_magic_are_refused() {
    let net = Network::start().await;
    net.relay.state().magic = Some(BindMagic::of_relay(&key(201).public()));
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let error = alice.connect(node(2)).await.unwrap_err();
    let foreign = SessionEnd::ForeignMagic { relay: net.relay.id };
    assert!(matches!(&error, ConnectError::Ended(end) if *end == foreign), "{error}");
    net.relay.until(|state| state.disconnected.len() == 2).await;
    assert_eq!(alice.sessions().await.refused.get("foreign_magic"), Some(&1));
}

#[tokio::test]
async fn a_relay_with_another_key_than_remembered_is_refused_with_both_ids() {
    let net = Network::start().await;
    let known = net.known_relays(1);
    std::fs::write(&known, format!("{} {}\n", net.relay.control, node(77))).unwrap();
    let alice = net.dialer(1);
    let error = alice.connect(node(2)).await.unwrap_err().to_string();
    assert_eq!(alice.sessions().await.refused.get("relay_key"), Some(&1));
    for part in [node(77).to_string(), net.relay.id.to_string(), known.display().to_string()] {
        assert!(error.contains(&part), "{error}");
    }
}
