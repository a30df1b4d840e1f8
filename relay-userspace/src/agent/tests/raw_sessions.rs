//! Sessions that carry an application's own datagrams.

use std::time::Duration;

use super::{Network, node};
use crate::agent::{AgentSettings, Incoming, RawSendError, SessionEnd};
use crate::clock::MonoTime;
use crate::protocol::flow_terms::{FlowTerms, disconnect_reason};

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
async fn a_session_goes_on_beyond_its_consent_while_what_is_heard_shows_that_it_is_carried() {
    let net = Network::start().await;
    let bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let mut near = alice.connect_raw(node(2)).await.unwrap();
    let mut far = bob.accept_raw().await.unwrap();
    net.relay.state().answers_no_bind = true;
    let consent = Duration::from_secs(2);
    net.relay.tell_terms(near.session().id(), |terms| FlowTerms { consent, ..terms });
    let begun = MonoTime::now();
    while MonoTime::now() < begun + 2 * consent {
        near.send(b"there").await.unwrap();
        assert_eq!(far.recv().await.as_deref(), Some(&b"there"[..]));
        far.send(b"back").await.unwrap();
        assert_eq!(near.recv().await.as_deref(), Some(&b"back"[..]));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        net.relay.state().disconnected,
        [],
        "neither side has told the relay that it has lost the session"
    );
}

#[tokio::test]
async fn the_largest_datagram_follows_the_terms_of_the_relay() {
    let net = Network::start().await;
    let bob = net.agent(AgentSettings { incoming: Incoming::Raw, ..net.serving(2, &[1], &[]) }).await;
    let alice = net.dialer(1);
    let near = alice.connect_raw(node(2)).await.unwrap();
    let far = bob.accept_raw().await.unwrap();
    for largest in [1452, 1472] {
        let max_datagram_bytes = largest as u32;
        net.relay.tell_terms(near.session().id(), |terms| FlowTerms { max_datagram_bytes, ..terms });
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
