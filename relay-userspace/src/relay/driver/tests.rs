//! The loop over a rendezvous and a packet path that carries nothing.

use std::net::SocketAddr;

use relay_common::BIND_LEN;

use super::*;
use crate::admin::Request;
use crate::config::{AtlasRoot, Config, ConfigSource, DatapathMode};
use crate::identity::NodeKey;
use crate::protocol::ErrorCode;
use crate::protocol::bind::BindMagic;
use crate::protocol::flow_terms::{FLOW, RelayAnnounce, RelayConnect};
use crate::relay::forwarder::RelayPort;
use crate::relay::keeper::Keeper;
use crate::relay::legacy::Legacy;
use crate::relay::packet_path::Opened;
use crate::relay::rendezvous::{Authenticated, Refusal, StreamNumber};
use crate::supervision::Announcer;

/// A relay that carries nothing yet.
fn driver(config: &Config, source: Option<ConfigSource>) -> Driver {
    let mut datapath = config.datapath.clone();
    (datapath.mode, datapath.max_sessions) = (DatapathMode::Userspace, 1);
    let magic = BindMagic([0x2a, 1, 2, 3, 4, 5, 6, 7]);
    let port = RelayPort::open(0, 1, magic.0).unwrap();
    let (legacy, keeper) = (Legacy::default(), Keeper::nobody());
    let Opened { packets, .. } = PacketPath::open(&datapath, port, magic, legacy, keeper).unwrap();
    let settings = Settings {
        key: NodeKey::from_seed(&[1; 32]),
        limit: config.transport.relay_bandwidth_limit,
        policy: crate::relay::policy(config),
        idle_timeout: Duration::from_secs(300),
        advertise: Vec::new(),
    };
    let rules = Arc::new(Rules::new(ControlPolicy::of(config)));
    let reconfiguration = Reconfiguration::new(config, source, Announcer::default());
    Driver::new(settings, 4433, packets, rules, reconfiguration, Stopper::default())
}

#[tokio::test]
async fn all_binds_that_wait_are_handled_before_the_next_thing_but_not_more_than_a_batch() {
    let config = Config::parse("", "config.toml".as_ref(), &AtlasRoot::at("/atlas")).unwrap();
    let mut driver = driver(&config, None);
    let (bind, binds) = mpsc::channel(3 * BINDS_AT_ONCE);
    let (ask, admin) = mpsc::channel(1);
    let (_connect, control) = mpsc::channel(1);
    let (_observe, observers) = mpsc::channel(1);
    let mut inputs = Inputs { control, binds, admin, observers };
    let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
    for _ in 0..BINDS_AT_ONCE + 2 {
        let datagram = BindDatagram { from: address, to: address, bytes: [0; BIND_LEN] };
        bind.try_send(datagram).unwrap();
    }
    // The turn's one thing is a third bind, or this question.
    let (answer, _answered) = tokio::sync::oneshot::channel();
    ask.try_send(Asked { request: Request::Peers, answer }).unwrap();
    assert!(driver.turn(&mut inputs).await);
    assert!((1..=2).contains(&inputs.binds.len()), "{} binds wait", inputs.binds.len());
    driver.waiting_binds(&mut inputs.binds);
    assert!(inputs.binds.is_empty());
}

#[tokio::test]
async fn a_policy_that_was_changed_is_in_effect_once_the_configuration_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let (path, root) = (directory.path().join("config.toml"), AtlasRoot::at(directory.path()));
    let relay = "[transport]\nenable_relay = true\noffer_relay = true\n";
    std::fs::write(&path, relay).unwrap();
    let (bootstrap, interfaces) = (Vec::new(), Vec::new());
    let source = ConfigSource { path, root, port: None, bootstrap, mode: None, interfaces };
    let mut driver = driver(&source.load().unwrap(), Some(source.clone()));
    let before = driver.rendezvous.most_waiting();
    std::fs::write(&source.path, format!("{relay}[quotas]\nsessions_per_node = 1000\n")).unwrap();
    let (ask, admin) = mpsc::channel(1);
    let (_bind, binds) = mpsc::channel(1);
    let (_connect, control) = mpsc::channel(1);
    let (_observe, observers) = mpsc::channel(1);
    let mut inputs = Inputs { control, binds, admin, observers };
    let (answer, answered) = tokio::sync::oneshot::channel();
    ask.try_send(Asked { request: Request::Reload, answer }).unwrap();
    let working = async { while driver.turn(&mut inputs).await {} };
    tokio::select! {
        answer = answered => assert!(answer.unwrap().unwrap().to_string().contains("sessions_per_node")),
        () = working => panic!("nobody has stopped it"),
    }
    assert_eq!((before, driver.rendezvous.most_waiting()), (256, 4000));
}

#[tokio::test]
async fn an_agent_that_does_not_read_is_given_up_once_as_much_waits_as_the_policy_can_make_us_say() {
    let config = Config::parse("", "config.toml".as_ref(), &AtlasRoot::at("/atlas")).unwrap();
    let mut driver = driver(&config, None);
    let conn = ConnId(1);
    let node = NodeKey::from_seed(&[2; 32]).node_id();
    let remote = "192.0.2.1:1".parse().unwrap();
    let agent = Authenticated { conn, node, name: String::new(), remote, relay: None };
    let (outbox, _unread) = mpsc::channel(100_000);
    driver.control(ControlEvent::Connected { agent, outbox, handshake: Duration::ZERO });
    let most = driver.rendezvous.most_waiting();
    let given_up = |driver: &Driver| driver.rendezvous.refusals().of(Refusal::SlowReader);
    for _ in 0..most {
        let (stream, message) = (StreamNumber::FIRST, Ping::new(0).into());
        driver.control(ControlEvent::Message { conn, stream, message, held: None });
        driver.carry_out(None);
    }
    assert_eq!((given_up(&driver), driver.outboxes.len()), (0, 1));
    driver.control(ControlEvent::Message {
        conn,
        stream: StreamNumber::FIRST,
        message: Ping::new(0).into(),
        held: None,
    });
    driver.carry_out(None);
    assert_eq!((given_up(&driver), driver.outboxes.len()), (1, 0));
}

#[tokio::test]
async fn who_asks_for_a_banned_node_is_told_that_there_is_none_until_the_ban_is_lifted() {
    let config = Config::parse("", "config.toml".as_ref(), &AtlasRoot::at("/atlas")).unwrap();
    let mut driver = driver(&config, None);
    let [source, target] = [2, 3].map(|seed| NodeKey::from_seed(&[seed; 32]).node_id());
    let connect = |driver: &mut Driver, number: u64, node| {
        let (conn, remote) = (ConnId(number), SocketAddr::from(([192, 0, 2, number as u8], 1)));
        let agent = Authenticated { conn, node, name: String::new(), remote, relay: None };
        let (outbox, sent) = mpsc::channel(100);
        driver.control(ControlEvent::Connected { agent, outbox, handshake: Duration::ZERO });
        sent
    };
    let mut to_source = connect(&mut driver, 1, source);
    let _to_target = connect(&mut driver, 2, target);
    let say = |driver: &mut Driver, number, message| {
        let (conn, stream) = (ConnId(number), StreamNumber::FIRST);
        driver.control(ControlEvent::Message { conn, stream, message, held: None });
        driver.carry_out(None);
    };
    let announce = RelayAnnounce { node_id: target.to_string(), timestamp: 0, flow: Some(FLOW), allow: None };
    say(&mut driver, 2, announce.into());
    let ask = RelayConnect {
        source_id: source.to_string(),
        target_id: target.to_string(),
        timestamp: None,
        flow: Some(FLOW),
    };
    driver.ban(BanSubject::Node(target), None, MonoTime::now()).unwrap();
    say(&mut driver, 1, ask.clone().into());
    let Some(ToAgent::Message { message: Message::RelayError(error), .. }) = to_source.recv().await else {
        panic!("there is no such agent here")
    };
    assert_eq!(error.code, ErrorCode::TargetUnknown.number());
    assert_eq!(driver.rendezvous.refusals().of(Refusal::TargetBanned), 1);
    driver.rules.bans().lift(BanSubject::Node(target), MonoTime::now());
    say(&mut driver, 1, ask.into());
    let Some(ToAgent::Message { message: Message::RelayReady(_), .. }) = to_source.recv().await else {
        panic!("it is offered")
    };
}
