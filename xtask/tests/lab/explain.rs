//! `explain` asks the running daemon, which has no privilege left, about packets of a session that is in use.

use std::time::Duration;

use relay_userspace::identity::{NodeId, NodeKey};
use relay_userspace::relay::explanation::Explanation;
use xtask::answers::RelaySession;

use super::forwarder::Forwarder;
use super::raw_agents::{connect, dialer, listener, run_inside};
use super::world::{World, wait_for};

const LIMIT: u64 = 1_000_000;
const PAYLOAD: usize = 1200;

#[test]
fn a_packet_of_a_session_is_explained_by_the_loaded_program_as_it_is_then_forwarded() {
    let name = "a_packet_of_a_session_is_explained_by_the_loaded_program_as_it_is_then_forwarded";
    let Some(world) = World::new(name) else { return };
    explain_a_session(&world, Forwarder::Kernel);
}

#[test]
fn a_packet_of_a_session_is_explained_by_the_forwarders_code_where_there_is_no_program() {
    let name = "a_packet_of_a_session_is_explained_by_the_forwarders_code_where_there_is_no_program";
    let Some(world) = World::new(name) else { return };
    explain_a_session(&world, Forwarder::Daemon);
}

fn explain_a_session(world: &World, forwarder: Forwarder) {
    let _relay = forwarder.start_relay(world, Some(LIMIT));
    let keys = [0, 1].map(|_| NodeKey::generate().unwrap());
    let ids = keys.each_ref().map(NodeKey::node_id);
    std::thread::scope(|scope| {
        scope.spawn(|| receive_one(world, &keys[1], ids[0]));
        run_inside(&world.lab.agents[0], async || {
            let agent = dialer(world, &keys[0]);
            let session = connect(&agent, ids[1]).await;
            let [before] = world.sessions().try_into().unwrap();
            check(world, forwarder, &before, &ids);
            let [after] = world.sessions().try_into().unwrap();
            assert_eq!(counts(&after), counts(&before), "asking counts nothing");
            // The real one, like the one that was asked about.
            session.send(&[0; PAYLOAD]).await.unwrap();
            wait_for("the packet's count", Duration::from_secs(10), || {
                let [after] = world.sessions().try_into().unwrap();
                (counts(&after) == [counts(&before)[0] + 1, counts(&before)[1]]).then_some(())
            });
            agent.shutdown().await;
        });
    });
}

/// Packets of both sides.
fn counts(session: &RelaySession) -> [u64; 2] {
    session.sides.each_ref().map(|side| side.packets_kernel + side.packets_userspace)
}

fn check(world: &World, forwarder: Forwarder, session: &RelaySession, ids: &[NodeId; 2]) {
    let [connector, target] = &session.sides;
    let (from, at) = (connector.agent.unwrap(), connector.relay.unwrap());
    let relay = &world.deployment.relay;
    let explain = |from, words: &str| -> Explanation {
        relay.json(&format!("explain {from} {at} --payload {PAYLOAD} --json{words}")).unwrap()
    };
    let said = explain(from, "");
    let by = match forwarder {
        Forwarder::Kernel => said.program.as_ref(),
        Forwarder::Daemon => said.forwarder.as_ref(),
    };
    assert_eq!(by.unwrap().reason, "forwarded", "{said:#?}");
    let leaves = said.leaves.as_ref().unwrap();
    assert_eq!(leaves.destination, target.agent.unwrap().to_string());
    assert_eq!((leaves.source.clone(), leaves.ttl), (target.relay.unwrap().to_string(), 63));
    assert_eq!(said.not_listening, None);
    let told = said.session.as_ref().unwrap();
    assert_eq!((told.session.as_ref(), told.sender.as_str()), (Some(&session.session), "connector"));
    for (side, id) in told.sides.iter().zip(ids) {
        assert_eq!(side.node_id, Some(id.to_string()));
        assert!((1..=300_000).contains(&side.consent_left_ms), "{told:?}");
    }
    let bucket = said.bucket.as_ref().unwrap();
    assert_eq!((bucket.rate_bytes_per_s, bucket.burst_bytes), (LIMIT, LIMIT / 4));
    assert!(bucket.left_bytes <= bucket.burst_bytes && bucket.left_for_large_bytes < bucket.left_bytes);
    if forwarder == Forwarder::Kernel {
        assert!(leaves.checksums.as_ref().unwrap().right, "{leaves:?}");
        let hop = said.next_hop.as_ref().unwrap();
        assert_eq!((hop.egress.as_str(), hop.interface.as_deref()), ("redirect", Some("r0")), "{hop:?}");
        assert!(hop.gateway.is_some() && hop.neighbour.is_some(), "{hop:?}");
        assert_eq!(hop.to_station, leaves.to_station);
        assert_eq!(said.packet.interface.as_deref(), Some("r0"));
    } else {
        assert!(said.program.is_none() && said.next_hop.is_none(), "{said:?}");
    }
    let words = relay.run(&format!("explain {from} {at}")).unwrap();
    assert!(words.contains(&session.session) && words.contains("forward: forwarded:"), "{words}");

    let stranger = std::net::SocketAddr::new(from.ip(), from.port() ^ 1);
    let said = explain(stranger, "");
    let by = said.program.as_ref().or(said.forwarder.as_ref()).unwrap();
    assert_eq!((by.reason.as_str(), said.session.is_none()), ("no_flow", true), "{said:?}");
    assert_eq!(said.not_listening, None, "the relay's own address");
}

/// Takes one session, until it ends.
fn receive_one(world: &World, key: &NodeKey, peer: NodeId) {
    run_inside(&world.lab.agents[1], async || {
        let agent = listener(world, key, peer);
        let accepted = tokio::time::timeout(Duration::from_secs(20), agent.accept_raw()).await;
        let mut session = accepted.expect("a session within 20 s").unwrap();
        while session.recv().await.is_some() {}
    });
}
