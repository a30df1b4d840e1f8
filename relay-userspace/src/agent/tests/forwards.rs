//! TCP ports that are forwarded.

use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Network, node};
use crate::agent::{ConnectError, ForwardEvent, HostPort, Refusal, SessionEnd};
use crate::config::{self, Allow, ForwardProtocol};
use crate::protocol::flow_terms::disconnect_reason;
use crate::refusals::RefusalReason as _;

#[tokio::test]
async fn tcp_is_forwarded_both_ways_with_half_close() {
    let net = Network::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&target.local_addr().unwrap().to_string()).unwrap();
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[&to.to_string()]).await);
    let mut forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to).await.unwrap();
    assert!(matches!(forward.next_event().await, Some(ForwardEvent::Session(_))));

    let service = tokio::spawn(async move {
        let (mut tcp, _) = target.accept().await.unwrap();
        let mut request = Vec::new();
        tcp.read_to_end(&mut request).await.unwrap();
        request.reverse();
        tcp.write_all(&request).await.unwrap();
    });
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut tcp = TcpStream::connect(forward.local_addr()).await.unwrap();
    tcp.write_all(&sent).await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut back = Vec::new();
    tcp.read_to_end(&mut back).await.unwrap();
    back.reverse();
    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
    service.await.unwrap();
    assert!(forward.traffic().bytes_sent > 3_000_000);
}

#[tokio::test]
async fn a_reset_of_one_tcp_connection_resets_the_other() {
    let net = Network::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&target.local_addr().unwrap().to_string()).unwrap();
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[&to.to_string()]).await);
    let forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to).await.unwrap();
    for client_resets in [true, false] {
        let mut near = TcpStream::connect(forward.local_addr()).await.unwrap();
        near.write_all(b"x").await.unwrap();
        let (mut far, _) = target.accept().await.unwrap();
        far.read_exact(&mut [0]).await.unwrap();
        let (resets, mut hears) = if client_resets { (near, far) } else { (far, near) };
        socket2::SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
        drop(resets);
        let error = hears.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn what_the_peer_does_not_permit_is_refused_and_the_missing_line_named() {
    let net = Network::start().await;
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &["127.0.0.1:1"]).await);
    let mut forward =
        alice.forward("127.0.0.1:0".parse().unwrap(), node(2), "127.0.0.1:2".parse().unwrap()).await.unwrap();
    let mut tcp = TcpStream::connect(forward.local_addr()).await.unwrap();
    assert_eq!(tcp.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    forward.next_event().await;
    let Some(ForwardEvent::Failed { why, .. }) = forward.next_event().await else {
        panic!("no failure told")
    };
    assert!(why.contains("2003") && why.contains("[[agent.allow]]") && why.contains("127.0.0.1:2"), "{why}");
    let refused = bob.sessions().await.refused;
    assert_eq!(refused.get("forward_not_permitted"), Some(&1));
    assert_eq!(refused.values().sum::<u64>(), 1, "{refused:?}");
    assert_eq!(refused.len(), Refusal::ALL.len(), "every reason is listed");
}

#[tokio::test]
async fn what_is_permitted_may_change_while_the_agent_runs() {
    let net = Network::start().await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&service.local_addr().unwrap().to_string()).unwrap();
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let mut forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to.clone()).await.unwrap();
    let Some(ForwardEvent::Session(session)) = forward.next_event().await else { panic!("no session") };
    let mut tcp = TcpStream::connect(forward.local_addr()).await.unwrap();
    assert_eq!(tcp.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let allow = vec![Allow { peer: node(1), to, protocol: ForwardProtocol::Tcp }];
    bob.inspector().permit(config::Agent { accept: vec![node(1)], allow, ..Default::default() }).await;
    let _near = TcpStream::connect(forward.local_addr()).await.unwrap();
    service.accept().await.unwrap();
    assert_eq!(session.end(), None, "the session has gone on");

    bob.inspector().permit(config::Agent::default()).await;
    net.relay.until(|state| state.disconnected.contains(&session.id())).await;
    assert!(bob.sessions().await.sessions.is_empty());
    // The relay has been told, too, whom it may offer.
    assert!(matches!(alice.connect_raw(node(2)).await, Err(ConnectError::Refused { code: 3001, .. })));
}

#[tokio::test]
async fn a_forward_outlives_its_session_and_connects_again() {
    let net = Network::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&target.local_addr().unwrap().to_string()).unwrap();
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[&to.to_string()]).await);
    let mut forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to).await.unwrap();
    let Some(ForwardEvent::Session(first)) = forward.next_event().await else { panic!("no session") };
    net.relay.end(first.id(), disconnect_reason::IDLE);
    let Some(ForwardEvent::Lost { why }) = forward.next_event().await else { panic!("not lost") };
    assert!(why.contains("nothing was sent for too long"), "{why}");
    assert_eq!(first.end(), Some(SessionEnd::Idle));

    let _near = TcpStream::connect(forward.local_addr()).await.unwrap();
    target.accept().await.unwrap();
    let Some(ForwardEvent::Session(second)) = forward.next_event().await else { panic!("no session") };
    assert_ne!(first.id(), second.id());
}

#[tokio::test]
async fn a_sender_is_held_to_the_sessions_rate() {
    let net = Network::start().await;
    net.relay.state().rate_bytes_per_s = 1 << 20;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = HostPort::from_str(&target.local_addr().unwrap().to_string()).unwrap();
    let (alice, _bob) = (net.dialer(1), net.server(2, &[1], &[&to.to_string()]).await);
    let forward = alice.forward("127.0.0.1:0".parse().unwrap(), node(2), to).await.unwrap();
    let mut near = TcpStream::connect(forward.local_addr()).await.unwrap();
    let (mut far, _) = target.accept().await.unwrap();
    let started = std::time::Instant::now();
    tokio::spawn(async move { near.write_all(&vec![1; 1 << 20]).await.unwrap() });
    far.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    let took = started.elapsed();
    assert!(took > Duration::from_millis(900), "1 MiB at 1 MiB/s took {took:?}");
}
