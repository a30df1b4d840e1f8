//! The relay sends an address that has proved nothing less than a forger of that address would gain by.

use super::*;

/// RFC 9000 section 8: before an address is validated it is sent at most three times what has come from it.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_proves_nothing_is_sent_at_most_three_times_what_came_from_it() {
    let relay = TestRelay::start("");
    let forged = Forged::new(&relay);
    let initial = initial().await;
    forged.send(&initial);
    // Until then the relay repeats its answer, as far as it may.
    relay.refused_within("handshake_timeout", Duration::from_secs(30)).await;
    let (datagrams, bytes) = forged.received();
    assert!(datagrams > 0, "the relay has begun the handshake");
    assert!(bytes <= 3 * initial.len(), "{bytes} bytes for {}", initial.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_retry_is_demanded_an_address_is_sent_less_than_came_from_it_and_nothing_is_remembered() {
    // Of four handshakes of a prefix one may be of an address that has not proved itself, and that one is taken.
    let relay = TestRelay::start("[security]\nhandshake_limit = 4");
    let _under_way = [Agent::dialled(&relay, 1).await, Agent::dialled(&relay, 1).await];
    let forged = Forged::new(&relay);
    let initial = initial().await;
    for time in 1..=20 {
        forged.send(&initial);
        relay.refused_times("retry_demanded", time).await;
    }
    let (datagrams, bytes) = forged.received();
    assert_eq!(datagrams, 20, "each is answered anew, and by one datagram");
    assert!(bytes <= 20 * initial.len(), "{bytes} bytes for 20 times {}", initial.len());
    // Had they taken the places of this prefix, none would be left.
    Agent::connected(&relay, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_smaller_than_what_it_answers() {
    let relay = TestRelay::start("");
    let subject = "127.0.0.1".parse().unwrap();
    relay.ask::<serde_json::Value>(Request::AddBan { subject, seconds: None }).await;
    let forged = Forged::new(&relay);
    let initial = initial().await;
    forged.send(&initial);
    relay.has_refused("banned_prefix").await;
    let (datagrams, bytes) = forged.received();
    assert_eq!(datagrams, 1);
    assert!(bytes < initial.len(), "{bytes} bytes for {}", initial.len());
}

/// The first datagram of a connection to a relay.
async fn initial() -> Vec<u8> {
    let catcher = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let config = tls::client_config(&key(9), tls::ALPN_RELAY, None).unwrap();
    let _connecting = endpoint.connect_with(config, catcher.local_addr().unwrap(), tls::SERVER_NAME).unwrap();
    let mut datagram = vec![0; 2000];
    let len = catcher.recv(&mut datagram).await.unwrap();
    datagram.truncate(len);
    assert!(len >= 1200);
    datagram
}

/// The first datagram of a version of QUIC that the relay does not speak: it says so at once, and remembers nothing.
fn unknown_version() -> Vec<u8> {
    let mut datagram = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8];
    datagram.extend([7; 8]);
    datagram.push(0);
    datagram.resize(1200, 0);
    datagram
}

/// An address that never answers.
struct Forged {
    socket: UdpSocket,
    relay: SocketAddr,
}

impl Forged {
    fn new(relay: &TestRelay) -> Forged {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // Nothing waits for it to pass.
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Forged { socket, relay: relay.address }
    }

    fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.relay).unwrap();
    }

    /// How many datagrams the relay has sent so far, and their bytes. It answers in order: so that it has sent no more is
    /// known once its answer to one datagram more has come.
    fn received(&self) -> (usize, usize) {
        self.send(&unknown_version());
        let (mut datagrams, mut bytes) = (0, 0);
        loop {
            let mut datagram = [0; 2000];
            let len = self.socket.recv(&mut datagram).expect("the relay answers");
            // Version Negotiation: RFC 9000 section 17.2.1.
            if datagram[0] & 0x80 != 0 && datagram[1..5] == [0; 4] {
                return (datagrams, bytes);
            }
            (datagrams, bytes) = (datagrams + 1, bytes + len);
        }
    }
}

impl TestRelay {
    async fn refused_times(&self, refusal: &str, times: u64) {
        let counted = async {
            while self.ask::<Status>(Request::Status).await.control[refusal] < times {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), counted).await.expect(refusal);
    }

    async fn refused_within(&self, refusal: &str, patience: Duration) {
        let counted = async {
            while self.ask::<Status>(Request::Status).await.control[refusal] == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(patience, counted).await.expect(refusal);
    }
}
