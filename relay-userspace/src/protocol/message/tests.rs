use proptest::prelude::*;

use super::super::flow_terms::ReadyStatus;
use super::*;

#[test]
fn ping_pong_and_verify_ack_have_the_documented_bytes() {
    let fixtures: [(Message, &[u8]); 3] = [
        (Ping::new(1_712_150_400).into(), b"\xac\x01\x01\xf0\0\0\0\x09\x81\xa2ts\xce\x66\x0d\x57\x80"),
        (Pong::new(1, -1).into(), b"\xac\x01\x01\xf1\0\0\0\x0b\x82\xa2ts\x01\xa4echo\xff"),
        (
            VerifyAck { status: VerifyStatus::Ok, reason: None }.into(),
            b"\xac\x01\x01\x04\0\0\0\x13\x82\xa6status\xa2ok\xa6reason\xc0",
        ),
    ];
    for (message, frame) in fixtures {
        assert_eq!(message.encode().unwrap(), frame, "{message:?}");
        assert_eq!(Message::decode_frame(frame).unwrap(), message);
    }
}

#[test]
fn every_message_comes_back() {
    for message in one_of_each() {
        let frame = message.encode().unwrap();
        assert_eq!(frame[3], message.type_byte());
        assert_eq!(Message::decode_frame(&frame).unwrap(), message);
    }
}

#[test]
fn every_truncation_of_every_message_is_refused() {
    for message in one_of_each() {
        let frame = message.encode().unwrap();
        for len in 0..frame.len() {
            assert!(Message::decode_frame(&frame[..len]).is_err(), "{message:?} cut to {len}");
        }
        let payload = &frame[8..];
        for len in 0..payload.len() {
            let _no_panic = Message::decode(message.type_byte(), &payload[..len]);
        }
    }
}

#[test]
fn an_unknown_type_is_refused_as_a_message_that_is_not_taken() {
    let error = Message::decode_frame(&[0xac, 1, 1, 0x05, 0, 0, 0, 1, 0x80]).unwrap_err();
    assert_eq!(error, WireError::UnknownType(5));
    assert_eq!(error.code().number(), 2003);
}

#[test]
fn unknown_keys_absent_options_and_any_case_are_taken() {
    let payload = b"\x82\xa6status\xa2OK\xa5other\x92\x81\xa1a\xc4\x01\x00\xc0";
    assert_eq!(
        Message::decode(0x04, payload).unwrap(),
        Message::VerifyAck(VerifyAck { status: VerifyStatus::Ok, reason: None })
    );
}

#[test]
fn an_undocumented_operator_is_read_past() {
    let payload = [
        &b"\x88\xa7node_id\xa1x\xa4name\xa1y\xa6skills\x90\xa8operator\x81\xa3fid\x07\xa6wallet\xc0"[..],
        b"\xaapublic_key\xc4\x01\x09\xaaprotocol_v\x01\xa9timestamp\x02",
    ]
    .concat();
    let Message::Hello(hello) = Message::decode(0x01, &payload).unwrap() else { panic!("not a Hello") };
    assert_eq!(hello.operator, Some(OperatorInfo));
    assert_eq!(hello.public_key, Bytes(vec![9]));
}

#[test]
fn what_is_not_taken_is_read_for_its_name_and_a_short_id() {
    let message = |id: &str| AtlasMessage {
        id: id.into(),
        from: String::new(),
        to: String::new(),
        timestamp: 0,
        reply_to: None,
        topic: None,
        body: Body::default(),
    };
    let long = Message::from(message(&"é".repeat(1000))).encode().unwrap();
    let of_long = NotTaken { name: "Message", id: Some("é".repeat(64)) };
    assert_eq!(NotTaken::read(0x10, &long[8..]).unwrap(), of_long);
    assert_eq!(NotTaken::from(&Message::from(message(&"é".repeat(1000)))), of_long);
    assert_eq!(NotTaken::read(0x10, b"\x81").unwrap(), NotTaken { name: "Message", id: None });
    assert_eq!(NotTaken::read(0x01, b"").unwrap(), NotTaken { name: "Hello", id: None });
    assert_eq!(NotTaken::read(0x05, b""), Err(WireError::UnknownType(5)));
}

#[test]
fn deep_nesting_is_refused_before_it_uses_the_stack_up() {
    let mut payload = b"\x81\xa1x".to_vec();
    payload.extend(std::iter::repeat_n(0x91, 60_000));
    payload.push(0xc0);
    assert!(matches!(Message::decode(0xf0, &payload), Err(WireError::Payload { message: "Ping", .. })));
}

proptest! {
    #[test]
    fn any_payload_of_any_type_is_decoded_or_refused(type_byte: u8, payload: Vec<u8>) {
        if let Ok(message) = Message::decode(type_byte, &payload) {
            prop_assert_eq!(message.type_byte(), type_byte);
        }
    }

    #[test]
    fn a_message_with_some_bytes_replaced_is_decoded_or_refused(
        which in 0..17_usize, at: prop::sample::Index, byte: u8,
    ) {
        let mut frame = one_of_each().swap_remove(which).encode().unwrap();
        let at = at.index(frame.len());
        frame[at] = byte;
        if let Ok(message) = Message::decode_frame(&frame) {
            // Whatever was understood can be said again.
            prop_assert!(message.encode().is_ok());
        }
    }

    #[test]
    fn text_and_numbers_come_back(name: String, timestamp: i64, key: Vec<u8>) {
        let hello = Message::Hello(Hello { name, timestamp, public_key: Bytes(key), ..hello() });
        prop_assert_eq!(Message::decode_frame(&hello.encode().unwrap()).unwrap(), hello);
    }
}

fn hello() -> Hello {
    Hello {
        node_id: "atlas_00".into(),
        name: "a".into(),
        skills: vec!["s".into()],
        operator: None,
        wallet: None,
        public_key: Bytes(vec![7; 32]),
        protocol_v: 1,
        timestamp: 1_712_150_400,
    }
}

fn one_of_each() -> Vec<Message> {
    vec![
        hello().into(),
        HelloAck {
            node_id: "b".into(),
            name: String::new(),
            skills: vec![],
            operator: None,
            wallet: Some("0x8f".into()),
            public_key: Bytes(vec![200; 32]),
            protocol_v: 1,
            challenge: ByteArray([255; 32]),
        }
        .into(),
        Verify { signature: Bytes(vec![1; 64]), challenge: ByteArray([3; 32]) }.into(),
        VerifyAck { status: VerifyStatus::Rejected, reason: Some("no".into()) }.into(),
        AtlasMessage {
            id: "msg_1".into(),
            from: "a".into(),
            to: "b".into(),
            timestamp: 0,
            reply_to: None,
            topic: Some("net/forward".into()),
            body: Body::of(&["127.0.0.1:9000"]).unwrap(),
        }
        .into(),
        MessageAck { msg_id: "msg_1".into(), status: AckStatus::Accepted }.into(),
        BootstrapRegistration { node_id: "a".into(), address: "192.0.2.1:4433".into(), timestamp: 5 }.into(),
        BootstrapDiscoverRequest {}.into(),
        BootstrapPeers {}.into(),
        RelayAnnounce { node_id: "a".into(), timestamp: 5, flow: Some(1), allow: Some(vec![]) }.into(),
        RelayConnect { source_id: "a".into(), target_id: "b".into(), timestamp: None, flow: Some(1) }.into(),
        RelayReady { rate: Some(1_048_576), ..RelayReady::documented(ReadyStatus::Ready, None) }.into(),
        RelayError { code: 3001, message: "m".into(), target_id: Some("b".into()), session: None }.into(),
        ErrorMessage { packets: Some(3), ..ErrorMessage::new(super::super::ErrorCode::RateLimited, "m") }
            .into(),
        Ping::new(-5).into(),
        Pong::new(i64::MAX, i64::MIN).into(),
        Disconnect::new("DISCONNECT_IDLE", None, Some(super::super::SessionId([4; 16]))).into(),
    ]
}
