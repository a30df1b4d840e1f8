//! Sessions that carry an application's own datagrams.

use std::time::Duration;

use super::{Network, node};
use crate::agent::{AgentSettings, Incoming, RawSendError, SessionEnd};
use crate::protocol::flow_terms::disconnect_reason;

#[tokio::test]
async fn raw_sessions_carry_datagrams_as_they_are() {
    let net = Network::start().await;
    let bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let mut near = alice.connect_raw(node(2)).await.unwrap();
    let mut far = bob.accept_raw().await.unwrap();
    assert_eq!(far.session().id(), near.session().id());
    let largest = vec![7; near.max_datagram()];
    for datagram in [&b"first"[..], &[0; 96], &largest] {
        near.send(datagram).await.unwrap();
        assert_eq!(far.recv().await.unwrap(), datagram);
        far.send(datagram).await.unwrap();
        assert_eq!(near.recv().await.unwrap(), datagram);
    }
    let too_large = [largest.as_slice(), &[7]].concat();
    assert!(matches!(near.send(&too_large).await, Err(RawSendError::TooLarge { max: 1472, .. })));
    let traffic = near.session().traffic();
    assert_eq!((traffic.datagrams_sent, traffic.datagrams_received), (3, 3));
    assert_eq!(traffic.bytes_sent, 5 + 96 + 1472);

    net.relay.end(near.session().id(), disconnect_reason::CONSENT_LOST);
    assert!(near.recv().await.is_none());
    assert!(matches!(near.send(b"late").await, Err(RawSendError::Ended(SessionEnd::SideSilent { .. }))));
}

#[tokio::test]
async fn the_largest_datagram_follows_the_terms_of_the_relay() {
    let net = Network::start().await;
    let bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let near = alice.connect_raw(node(2)).await.unwrap();
    let far = bob.accept_raw().await.unwrap();
    for largest in [1452, 1472] {
        net.relay.tell_max_datagram(near.session().id(), largest as u32);
        let told = async {
            while (near.max_datagram(), far.max_datagram()) != (largest, largest) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.expect("the terms arrive");
        assert_eq!(
            near.send(&vec![7; largest + 1]).await,
            Err(RawSendError::TooLarge { len: largest + 1, max: largest })
        );
    }
}
