//! UDP ports that are forwarded.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Network, node};
use crate::agent::{Agent, AgentSettings, Forward, ForwardEvent, ForwardListener, HostPort};
use crate::config::{Allow, ForwardProtocol};
use crate::protocol::flow_terms::disconnect_reason;

const ANY: &str = "127.0.0.1:0";

/// Sends back what it gets, turned around; a number: as many bytes.
async fn service() -> HostPort {
    let socket = UdpSocket::bind(ANY).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let mut answer = buffer[..len].to_vec();
            answer.reverse();
            if let Some(len) = std::str::from_utf8(&buffer[..len]).ok().and_then(|text| text.parse().ok()) {
                answer = vec![7; len];
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    address.to_string().parse().unwrap()
}

async fn server(net: &Network, to: &HostPort, protocol: ForwardProtocol) -> Agent {
    let allow = vec![Allow { peer: node(1), to: to.clone(), protocol }];
    net.agent(AgentSettings { allow, ..net.serving(2, &[1], &[]) }).await
}

async fn client(forward: &Forward) -> UdpSocket {
    let socket = UdpSocket::bind(ANY).await.unwrap();
    socket.connect(forward.local_addr()).await.unwrap();
    socket
}

/// Asks until there is an answer: UDP may lose what is asked.
async fn answered(client: &UdpSocket, question: &[u8]) -> Vec<u8> {
    let asking = async {
        let mut buffer = vec![0; 65_535];
        loop {
            client.send(question).await.unwrap();
            if let Ok(len) = tokio::time::timeout(Duration::from_secs(1), client.recv(&mut buffer)).await {
                return buffer[..len.unwrap()].to_vec();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.expect("an answer")
}

async fn failure(forward: &mut Forward) -> String {
    loop {
        match forward.next_event().await.unwrap() {
            ForwardEvent::Failed { why, .. } => return why,
            ForwardEvent::Session(_) | ForwardEvent::Lost { .. } => {}
        }
    }
}

#[tokio::test]
async fn each_client_gets_the_answers_to_its_own_datagrams() {
    let net = Network::start().await;
    let to = service().await;
    let (alice, _bob) = (net.dialer(1), server(&net, &to, ForwardProtocol::Udp).await);
    let forward = alice.forward_udp(ANY.parse().unwrap(), node(2), to).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(client(&forward).await);
    }
    for round in 0..3 {
        for (number, client) in clients.iter().enumerate() {
            let question = format!("{round} of client {number}");
            let answer: String = question.chars().rev().collect();
            assert_eq!(answered(client, question.as_bytes()).await, answer.as_bytes());
        }
    }
    assert_eq!(answered(&clients[0], b"").await, b"", "an empty datagram is one, too");
    assert_eq!(answered(&clients[1], &[b'x'; 1000]).await, [b'x'; 1000]);
    assert!(alice.sessions().await.refused.values().all(|times| *times == 0));
}

#[tokio::test]
async fn a_datagram_that_does_not_fit_is_dropped_and_counted_on_either_side() {
    let net = Network::start().await;
    let to = service().await;
    let (alice, bob) = (net.dialer(1), server(&net, &to, ForwardProtocol::Udp).await);
    let mut forward = alice.forward_udp(ANY.parse().unwrap(), node(2), to).await.unwrap();
    let client = client(&forward).await;
    answered(&client, b"first").await;
    // More than an Ethernet frame has room for.
    client.send(&[1; 1473]).await.unwrap();
    let why = failure(&mut forward).await;
    assert!(why.contains("1473 bytes") && why.contains("send smaller ones"), "{why}");
    assert_eq!(alice.sessions().await.refused["datagram_too_large"], 1);
    answered(&client, b"the flow goes on").await;

    client.send(b"1473").await.unwrap();
    let counted = async {
        while bob.sessions().await.refused["datagram_too_large"] == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), counted).await.expect("the answer is counted");
    assert_eq!(answered(&client, b"10").await, [7; 10], "the next answer comes");
}

#[tokio::test]
async fn a_rule_for_tcp_permits_no_datagrams_and_the_missing_lines_are_told() {
    let net = Network::start().await;
    let to = service().await;
    let (alice, bob) = (net.dialer(1), server(&net, &to, ForwardProtocol::Tcp).await);
    let mut forward = alice.forward_udp(ANY.parse().unwrap(), node(2), to.clone()).await.unwrap();
    let client = client(&forward).await;
    client.send(b"x").await.unwrap();
    let why = failure(&mut forward).await;
    for part in
        ["2003".to_owned(), "[[agent.allow]]".into(), format!("to = \"{to}\""), "protocol = \"udp\"".into()]
    {
        assert!(why.contains(&part), "{part} is missing: {why}");
    }
    assert_eq!(bob.sessions().await.refused["forward_not_permitted"], 1);
    // The peer is not asked for each of them.
    let counted = async {
        while alice.sessions().await.refused["flow_not_open"] == 0 {
            client.send(b"x").await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), counted).await.expect("what comes meanwhile is counted");
}

#[tokio::test]
async fn datagrams_go_on_when_the_session_is_gone() {
    let net = Network::start().await;
    let to = service().await;
    let (alice, _bob) = (net.dialer(1), server(&net, &to, ForwardProtocol::Udp).await);
    let mut forward = alice.forward_udp(ANY.parse().unwrap(), node(2), to).await.unwrap();
    let Some(ForwardEvent::Session(first)) = forward.next_event().await else { panic!("no session") };
    let client = client(&forward).await;
    answered(&client, b"first").await;
    let before = forward.traffic();
    net.relay.end(first.id(), disconnect_reason::IDLE);
    let Some(ForwardEvent::Lost { .. }) = forward.next_event().await else { panic!("not lost") };

    assert_eq!(answered(&client, b"again").await, b"niaga");
    let Some(ForwardEvent::Session(second)) = forward.next_event().await else { panic!("no session") };
    assert_ne!(first.id(), second.id());
    assert!(forward.traffic().bytes_sent > before.bytes_sent, "both sessions are in the sum");
}

#[tokio::test]
async fn datagrams_of_a_flow_that_is_not_open_are_counted() {
    let net = Network::start().await;
    let (alice, bob) = (net.dialer(1), net.server(2, &[1], &[]).await);
    let connection = alice.connect(node(2)).await.unwrap();
    for strange in [&b""[..], b"\0\0", b"\0\0\0\x05hello"] {
        connection.quic().send_datagram(bytes::Bytes::from_static(strange)).unwrap();
    }
    let counted = async {
        while bob.sessions().await.refused["flow_not_open"] < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), counted).await.expect("all three");
    connection.ping().await.unwrap();
}

#[tokio::test]
async fn an_idle_forward_connects_when_it_is_needed_and_its_peer_is_there() {
    let net = Network::start().await;
    let target = TcpListener::bind(ANY).await.unwrap();
    let to = target.local_addr().unwrap().to_string();
    let alice = net.dialer(1);
    let any: SocketAddr = ANY.parse().unwrap();
    let listener = ForwardListener::bind(any).await.unwrap();
    let mut forward = alice.forward_idle(listener, node(2), to.parse().unwrap());
    let mut early = TcpStream::connect(forward.local_addr()).await.unwrap();
    assert_eq!(early.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(failure(&mut forward).await.contains("3001"));
    assert!(alice.sessions().await.sessions.is_empty());

    let _bob = net.server(2, &[1], &[&to]).await;
    let _near = TcpStream::connect(forward.local_addr()).await.unwrap();
    target.accept().await.unwrap();
    assert!(matches!(forward.next_event().await, Some(ForwardEvent::Session(_))));
}
