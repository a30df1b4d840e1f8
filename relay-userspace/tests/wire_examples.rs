//! docs/wire.md is the wire: every block of hex in it is what the code writes, and is read as what it says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a test a panic is a failure"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use relay_common::{BIND_LEN, Side};
use relay_userspace::clock::MonoTime;
use relay_userspace::identity::NodeKey;
use relay_userspace::protocol::bind::{
    BindClient, BindDatagram, BindEvent, BindKey, BindKeys, BindKind, BindMagic, BindOutput, Cookie,
    PairState, SessionId, UnverifiedBind,
};
use relay_userspace::protocol::envelope::{MAX_CONTROL_PAYLOAD_LEN, MAX_PAYLOAD_LEN};
use relay_userspace::protocol::flow_terms::{
    DEFAULT_CONSENT, DEFAULT_KEEPALIVE, Disconnect, ErrorMessage, FLOW, FlowTerms, MAX_DATAGRAM_RANGE,
    ProbeOutcome, ReadyStatus, RelayAnnounce, RelayConnect, RelayError, RelayReady, disconnect_reason,
};
use relay_userspace::protocol::handshake::{self, Initiator, Progress, Responder};
use relay_userspace::protocol::message::{
    AckStatus, AtlasMessage, BootstrapDiscoverRequest, BootstrapPeers, BootstrapRegistration, MessageAck,
    Ping, Pong, VerifyAck, VerifyStatus,
};
use relay_userspace::protocol::{ErrorCode, Message};
use relay_userspace::relay::rendezvous::OFFER_LIFETIME;
use relay_userspace::tls;

/// The time in the examples, in seconds.
const UNIX_S: i64 = 1_712_150_400;

/// The first counter in the examples.
const COUNTER: u64 = 1_712_150_400_000_000;

const CONSENT: Duration = Duration::from_secs(73);
const KEEPALIVE: Duration = Duration::from_secs(30);
const NOW: MonoTime = MonoTime(1_000_000_000_000);

#[test]
fn every_message_is_written_and_read_as_documented() {
    let blocks = blocks();
    for (name, message) in messages() {
        let documented = blocks.get(name).unwrap_or_else(|| panic!("docs/wire.md has no block {name:?}"));
        let written = message.encode().unwrap();
        assert_eq!(hex(documented), hex(&written), "{name} in docs/wire.md, and as it is written");
        assert_eq!(Message::decode_frame(documented).unwrap(), message, "{name}");
    }
}

#[test]
fn every_bind_datagram_is_written_and_read_as_documented() {
    let blocks = blocks();
    for (name, datagram) in bind_datagrams() {
        let documented: [u8; BIND_LEN] = blocks[name][..].try_into().unwrap();
        let sealed = datagram.seal(&magic(), &key_of(Side::Connector));
        assert_eq!(hex(&documented), hex(&sealed), "{name} in docs/wire.md, and as it is written");
        let read = UnverifiedBind::parse(&documented, &magic()).unwrap();
        assert_eq!(read.verify(&key_of(Side::Connector)).unwrap(), datagram, "{name}");
    }
}

#[test]
fn magic_and_bind_keys_are_derived_as_documented() {
    let blocks = blocks();
    assert_eq!(hex(&blocks["bind_magic"]), hex(&magic().0));
    assert_eq!(hex(&blocks["bind_key_connector"]), hex(key_of(Side::Connector).as_bytes()));
    assert_eq!(hex(&blocks["bind_key_target"]), hex(key_of(Side::Target).as_bytes()));
}

#[test]
fn the_documented_exchange_is_what_an_agent_does() {
    let blocks = blocks();
    let documented = |name: &str| -> [u8; BIND_LEN] { blocks[name][..].try_into().unwrap() };
    let reflexive = "192.0.2.33:40001".parse().unwrap();
    let mut agent = BindClient::new(&terms(Side::Connector), NOW);

    assert_eq!(agent.poll(NOW, COUNTER), BindOutput::Send(documented("bind")));
    agent.handle(&documented("challenge"), NOW).unwrap();
    assert_eq!(agent.poll(NOW, COUNTER), BindOutput::Send(documented("proof")));
    agent.handle(&documented("bound_half"), NOW).unwrap();
    assert_eq!(agent.poll(NOW, COUNTER), BindOutput::Event(BindEvent::Half { reflexive }));
    agent.handle(&documented("bound_paired"), NOW).unwrap();
    assert_eq!(agent.poll(NOW, COUNTER), BindOutput::Event(BindEvent::Paired { reflexive }));
    let later = COUNTER + KEEPALIVE.as_micros() as u64;
    assert_eq!(agent.poll(NOW + KEEPALIVE, later), BindOutput::Send(documented("bind_again")));
}

#[test]
fn the_documented_handshake_is_what_both_sides_do() {
    let blocks = blocks();
    let documented = |name: &str| Message::decode_frame(&blocks[name]).unwrap();
    let (mut initiator, hello) = Initiator::new(&alice(), "alice", relay().public(), NOW, UNIX_S);
    assert_eq!(hello, documented("hello"));
    let challenge = std::array::from_fn(|place| place as u8);
    let drift = Duration::from_secs(300);
    let mut responder = Responder::new(&relay(), "relay-01", alice().public(), challenge, drift, NOW);
    assert_eq!(
        responder.handle(hello, NOW, UNIX_S).unwrap(),
        Progress::Send(documented("hello_ack")),
        "the answer to Hello"
    );
    let verify = initiator.handle(documented("hello_ack"), NOW).unwrap();
    assert_eq!(verify, Progress::Send(documented("verify")));
    let done = responder.handle(documented("verify"), NOW, UNIX_S).unwrap();
    let Progress::Done { send: Some(verdict), peer } = done else { panic!("{done:?}") };
    assert_eq!((verdict.clone(), peer.node_id), (documented("verify_ack"), alice().node_id()));
    assert!(matches!(initiator.handle(verdict, NOW), Ok(Progress::Done { send: None, .. })));
}

#[test]
fn the_keys_of_the_examples_are_those_of_their_seeds() {
    let document = document();
    for (who, seed) in [("alice", 1), ("bob", 2), ("relay", 3)] {
        let key = NodeKey::from_seed(&[seed; 32]);
        let row = format!(
            "| {who} | 32 times `{seed:02x}` | `{}` | `{}` |",
            hex(key.public().as_bytes()),
            key.node_id()
        );
        assert!(document.contains(&row), "docs/wire.md lacks\n{row}");
    }
    // RFC 8410, section 4: SEQUENCE { SEQUENCE { 1.3.101.112 }, BIT STRING }.
    let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let info = [&prefix[..], alice().public().as_bytes()].concat();
    assert_eq!(hex(&blocks()["spki"]), hex(&info));
}

#[test]
fn the_tables_of_types_codes_and_reasons_are_the_codes() {
    let every = messages().into_iter().map(|(_, message)| message);
    let without_fields =
        [Message::from(BootstrapDiscoverRequest::default()), BootstrapPeers::default().into()];
    let types: BTreeSet<(String, String)> = every
        .chain(without_fields)
        .map(|message| (format!("`{:02x}`", message.type_byte()), message.name().to_owned()))
        .collect();
    assert_eq!(first_cells("## Messages"), types);

    let codes: BTreeSet<(String, String)> =
        ErrorCode::ALL.iter().map(|code| (code.number().to_string(), format!("`{}`", code.name()))).collect();
    assert_eq!(first_cells("### Error codes"), codes);

    let reasons = [
        disconnect_reason::IDLE,
        disconnect_reason::SHUTDOWN,
        disconnect_reason::CONSENT_LOST,
        disconnect_reason::PEER_GONE,
        disconnect_reason::OPERATOR,
        disconnect_reason::REPLACED,
        disconnect_reason::RESTART,
        disconnect_reason::DRAIN,
    ];
    let reasons: BTreeSet<String> = reasons.iter().map(|reason| format!("`{reason}`")).collect();
    let documented = first_cells("### Disconnect reasons");
    assert_eq!(documented.into_iter().map(|(reason, _)| reason).collect::<BTreeSet<_>>(), reasons);
}

#[test]
fn the_numbers_in_the_document_are_the_codes() {
    let words: Vec<String> = document().split_whitespace().map(str::to_owned).collect();
    let text = words.join(" ");
    let (relay, peer) = (str::from_utf8(tls::ALPN_RELAY).unwrap(), str::from_utf8(tls::ALPN_PEER).unwrap());
    for sentence in [
        format!("| ALPN | `{relay}` to a relay, `{peer}` between two agents;"),
        format!("| SNI | `{}`,", tls::SERVER_NAME),
        format!("{MAX_PAYLOAD_LEN} bytes; so many are allowed"),
        format!("takes at most {} KiB of one message", MAX_CONTROL_PAYLOAD_LEN / 1024),
        format!("All four pass within {} s,", handshake::TIMEOUT.as_secs()),
        format!("cut to {} characters", handshake::MAX_NAME_CHARS),
        format!("`security.max_clock_drift_secs` ({} s", handshake::DEFAULT_MAX_CLOCK_DRIFT.as_secs()),
        format!("within {} s ends with RelayError 3007", OFFER_LIFETIME.as_secs()),
        format!("is good; {} if absent", DEFAULT_CONSENT.as_secs()),
        format!("is due; {} if absent", DEFAULT_KEEPALIVE.as_secs()),
        format!("{} to {} bytes |", MAX_DATAGRAM_RANGE.start(), MAX_DATAGRAM_RANGE.end()),
        format!("exactly {BIND_LEN} bytes,"),
        format!("| until paired | each {} ms,", BindClient::RETRY.as_millis()),
        format!("after {} ms, then twice as long", BindClient::RETRY.as_millis()),
        format!("each time, up to {} s |", BindClient::MAX_RETRY.as_secs()),
        format!("| paired and quiet | {} s after", BindClient::NAT_KEEPALIVE.as_secs()),
        format!("| sending without hearing | {} s after", BindClient::UNHEARD.as_secs()),
    ] {
        assert!(text.contains(&sentence), "docs/wire.md does not say {sentence:?}");
    }
}

#[test]
fn no_block_of_hex_goes_unchecked() {
    let messages = messages().into_iter().map(|(name, _)| name);
    let binds = bind_datagrams().into_iter().map(|(name, _)| name);
    let others = ["spki", "bind_magic", "bind_key_connector", "bind_key_target"];
    let checked: BTreeSet<String> = messages.chain(binds).chain(others).map(str::to_owned).collect();
    assert_eq!(blocks().into_keys().collect::<BTreeSet<_>>(), checked);
}

fn messages() -> Vec<(&'static str, Message)> {
    let (mut initiator, hello) = Initiator::new(&alice(), "alice", relay().public(), NOW, UNIX_S);
    let challenge = std::array::from_fn(|place| place as u8);
    let mut responder =
        Responder::new(&relay(), "relay-01", alice().public(), challenge, Duration::from_secs(300), NOW);
    let Ok(Progress::Send(hello_ack)) = responder.handle(hello.clone(), NOW, UNIX_S) else { panic!() };
    let Ok(Progress::Send(verify)) = initiator.handle(hello_ack.clone(), NOW) else { panic!() };
    let (alice, bob, relay) = (alice().node_id().to_string(), bob().node_id().to_string(), relay());
    let id = || "msg_018ea41d-cc00-7000-8000-000000000001".to_owned();
    let announce = RelayAnnounce { node_id: bob.clone(), timestamp: UNIX_S, flow: None, allow: None };
    let connect =
        RelayConnect { source_id: alice.clone(), target_id: bob.clone(), timestamp: None, flow: None };
    let to_target = FlowTerms {
        data_addresses: vec!["198.51.100.1:4433".parse().unwrap()],
        bind_now: true,
        ..terms(Side::Target)
    };
    vec![
        ("hello", hello),
        ("hello_ack", hello_ack),
        ("verify", verify),
        ("verify_ack", VerifyAck { status: VerifyStatus::Ok, reason: None }.into()),
        (
            "verify_ack_rejected",
            VerifyAck {
                status: VerifyStatus::Rejected,
                reason: Some("the signature over the challenge does not verify".to_owned()),
            }
            .into(),
        ),
        (
            "message",
            AtlasMessage {
                id: id(),
                from: alice.clone(),
                to: bob.clone(),
                timestamp: UNIX_S,
                reply_to: None,
                topic: Some("net/forward".to_owned()),
                body: serde_json::from_value(serde_json::json!({ "to": "127.0.0.1:80" })).unwrap(),
            }
            .into(),
        ),
        ("message_ack", MessageAck { msg_id: id(), status: AckStatus::Accepted }.into()),
        (
            "bootstrap_register",
            BootstrapRegistration {
                node_id: relay.node_id().to_string(),
                address: "198.51.100.1:4433".to_owned(),
                timestamp: UNIX_S,
            }
            .into(),
        ),
        ("relay_announce", announce.clone().into()),
        (
            "relay_announce_flow",
            RelayAnnounce { flow: Some(FLOW), allow: Some(vec![alice]), ..announce }.into(),
        ),
        ("relay_connect", connect.clone().into()),
        ("relay_connect_flow", RelayConnect { timestamp: Some(UNIX_S), flow: Some(FLOW), ..connect }.into()),
        ("relay_ready_waiting", RelayReady::documented(ReadyStatus::Waiting, None).into()),
        ("relay_ready_connector", RelayReady::with_terms(&terms(Side::Connector)).into()),
        ("relay_ready_target", RelayReady::with_terms(&to_target).into()),
        (
            "relay_error",
            RelayError {
                code: ErrorCode::TargetUnknown.number(),
                message: "no such agent is announced here, or it does not accept this source".to_owned(),
                target_id: Some(bob.clone()),
                session: None,
            }
            .into(),
        ),
        (
            "relay_error_session",
            RelayError {
                code: ErrorCode::OfferExpired.number(),
                message: "not bound in time".to_owned(),
                target_id: Some(bob.clone()),
                session: Some(session()),
            }
            .into(),
        ),
        (
            "error",
            ErrorMessage::new(ErrorCode::InvalidIdentity, "the node id is not the one of the certificate")
                .into(),
        ),
        (
            "error_limited",
            ErrorMessage {
                session: Some(session()),
                packets: Some(12),
                bytes: Some(14_400),
                ..ErrorMessage::new(ErrorCode::RateLimited, "datagrams were dropped for the session's limit")
            }
            .into(),
        ),
        ("ping", Ping::new(UNIX_S).into()),
        ("pong", Pong::new(UNIX_S + 1, UNIX_S).into()),
        ("ping_probe", Ping { probe: Some(4433), ..Ping::new(UNIX_S) }.into()),
        (
            "pong_probed",
            Pong {
                probed: Some(ProbeOutcome::Answered),
                probed_at: Some("198.51.100.1:4433".to_owned()),
                probed_node: Some(bob),
                ..Pong::new(UNIX_S + 1, UNIX_S)
            }
            .into(),
        ),
        ("disconnect", goodbye(disconnect_reason::SHUTDOWN, None, None)),
        (
            "disconnect_session",
            goodbye(disconnect_reason::PEER_GONE, Some("the connector has left"), Some(session())),
        ),
        (
            "disconnect_drain",
            Disconnect {
                relay: Some(format!("{}@198.51.100.7:4433", self::relay().node_id())),
                after_s: Some(600),
                ..Disconnect::new(
                    disconnect_reason::DRAIN,
                    Some("this relay is about to stop".to_owned()),
                    None,
                )
            }
            .into(),
        ),
    ]
}

fn goodbye(reason: &str, note: Option<&str>, session: Option<SessionId>) -> Message {
    Disconnect::new(reason, note.map(str::to_owned), session).into()
}

fn bind_datagrams() -> Vec<(&'static str, BindDatagram)> {
    let of = |kind, counter, cookie| BindDatagram {
        kind,
        side: Side::Connector,
        session: session(),
        counter,
        cookie,
    };
    let (challenged, next) = (Cookie([0xc1; 16]), Cookie([0xc2; 16]));
    let bound = |state| BindKind::Bound { state, reflexive: "192.0.2.33:40001".parse().unwrap() };
    let again = COUNTER + KEEPALIVE.as_micros() as u64;
    vec![
        ("bind", of(BindKind::Bind, COUNTER, Cookie::NONE)),
        ("challenge", of(BindKind::Challenge, COUNTER, challenged)),
        ("proof", of(BindKind::Proof, COUNTER, challenged)),
        ("bound_half", of(bound(PairState::Half), COUNTER, next)),
        ("bound_paired", of(bound(PairState::Paired), COUNTER, next)),
        ("bind_again", of(BindKind::Bind, again, next)),
    ]
}

fn terms(side: Side) -> FlowTerms {
    FlowTerms {
        session: session(),
        peer: if side == Side::Connector { bob().node_id() } else { alice().node_id() },
        side,
        bind_key: key_of(side),
        bind_magic: magic(),
        rate_bytes_per_s: 1_048_576,
        burst_bytes: 262_144,
        max_datagram_bytes: 1472,
        consent: CONSENT,
        keepalive: KEEPALIVE,
        data_addresses: Vec::new(),
        bind_now: false,
    }
}

fn alice() -> NodeKey {
    NodeKey::from_seed(&[1; 32])
}

fn bob() -> NodeKey {
    NodeKey::from_seed(&[2; 32])
}

fn relay() -> NodeKey {
    NodeKey::from_seed(&[3; 32])
}

fn session() -> SessionId {
    SessionId(std::array::from_fn(|place| 0xa0 + place as u8))
}

fn magic() -> BindMagic {
    BindMagic::of_relay(&relay().public())
}

fn key_of(side: Side) -> BindKey {
    BindKeys::of_relay(&relay()).derive(session(), side, &alice().node_id(), &bob().node_id())
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/wire.md");
    std::fs::read_to_string(path).unwrap()
}

/// The blocks that begin with ```` ```hex NAME ````. What follows a `#` is for people.
fn blocks() -> BTreeMap<String, Vec<u8>> {
    let document = document();
    let mut blocks = BTreeMap::new();
    for block in document.split("```hex ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (lines, _) = rest.split_once("```").unwrap();
        let digits = lines.lines().filter_map(|line| line.split('#').next()).flat_map(str::split_whitespace);
        let bytes = digits.map(|byte| u8::from_str_radix(byte, 16).expect(byte)).collect();
        assert_eq!(blocks.insert(name.to_owned(), bytes), None, "two blocks {name:?}");
    }
    blocks
}

/// The first two cells of each row of the table under `heading`.
fn first_cells(heading: &str) -> BTreeSet<(String, String)> {
    let document = document();
    let (_, section) = document.split_once(&format!("\n{heading}\n")).expect(heading);
    let rows =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = rows.skip(2).map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        (cells.next().unwrap(), cells.next().unwrap())
    });
    cells.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
