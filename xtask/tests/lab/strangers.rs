//! What comes from elsewhere than a proved tuple is never forwarded, and never moves one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use relay_common::BIND_LEN;
use relay_userspace::identity::NodeKey;
use relay_userspace::protocol::bind::{BindKind, Cookie};
use xtask::lab::LabPlan;

use super::hand_agent::{HandAgent, HandBind, answer, carries};
use super::raw_agents::run_inside;
use super::world::{NATIVE, RELAY, World, wait_for};

#[test]
fn a_third_agents_packets_and_anothers_binds_are_never_forwarded() {
    const NAME: &str = "a_third_agents_packets_and_anothers_binds_are_never_forwarded";
    // The third is behind the second's NAT, which keeps ports.
    let plan = LabPlan { agents: vec![0, 1, 1], ..LabPlan::default() };
    let Some(world) = World::planned(NAME, &plan, RELAY) else { return };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();

    run_inside(&world.lab.agents[0], async || {
        let (_agents, [mut near, mut far]) = paired(&world).await;
        near.prove();
        far.prove();
        assert!(carries(&near, &far) && carries(&far, &near));

        neighbouring_ports_miss(&world, &near, &far);
        a_bind_moves_nothing_for_who_has_no_key(&world, &mut near, &far);
        a_bind_from_a_forged_address_moves_nothing(&world, &mut near, &far);
    });
}

#[test]
fn a_tuple_that_another_session_has_proved_leaves_the_first() {
    let Some(world) = World::new("a_tuple_that_another_session_has_proved_leaves_the_first") else { return };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();

    run_inside(&world.lab.agents[0], async || {
        let (_first_agents, [mut near, mut far]) = paired(&world).await;
        let (_second_agents, [second_near, mut second_far]) = paired(&world).await;
        near.prove();
        far.prove();
        assert!(carries(&far, &near) && carries(&near, &far));

        // The first session's port is used again by the second, as an agent that was started anew might.
        let mut second_near = second_near.moved_to(near.socket.try_clone().unwrap());
        second_near.prove();
        second_far.prove();

        assert!(carries(&second_far, &second_near) && carries(&second_near, &second_far));
        assert!(!carries(&far, &near), "the first session still reaches the tuple");
        assert!(!carries(&near, &far), "the tuple still reaches the first session");
        // It needs no new pairing, only a tuple of its own.
        let elsewhere = world.lab.agents[1].inside(HandBind::socket).unwrap();
        let mut near = near.moved_to(elsewhere);
        near.prove();
        assert!(carries(&far, &near) && carries(&near, &far));
        assert!(carries(&second_far, &second_near) && carries(&second_near, &second_far));
        assert_eq!(world.sessions().len(), 2);
    });
}

/// A session between two agents of their own. The connector's socket is behind the NAT that keeps ports.
async fn paired(world: &World) -> ([HandAgent; 2], [HandBind; 2]) {
    let mut target = HandAgent::verified(NodeKey::generate().unwrap()).await;
    target.announce().await;
    let mut connector = HandAgent::verified(NodeKey::generate().unwrap()).await;
    connector.connect(target.key.node_id()).await;
    let terms = connector.terms().await;
    let near = world.lab.agents[1].inside(|| HandBind::new(terms)).unwrap();
    let far = HandBind::new(target.terms().await);
    ([connector, target], [near, far])
}

fn neighbouring_ports_miss(world: &World, near: &HandBind, far: &HandBind) {
    let own = near.socket.local_addr().unwrap().port();
    let third = &world.lab.agents[2];
    let bind = |port: u16| third.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
    // Its own number as well: the NAT has given that away, so it becomes another.
    let strangers = [own - 2, own - 1, own, own + 1, own + 2].map(bind);
    let (missed, forwarded) = (in_kernel(world, "no_flow"), in_kernel(world, "forwarded"));

    for _ in 0..4 {
        for stranger in &strangers {
            stranger.send_to(b"from a stranger", RELAY).unwrap();
        }
    }

    wait_for("the strangers' datagrams to be counted", Duration::from_secs(5), || {
        (in_kernel(world, "no_flow") >= missed + 20).then_some(())
    });
    assert_eq!(in_kernel(world, "forwarded"), forwarded, "a stranger's datagram was forwarded");
    assert!(carries(near, far), "the agent's own are forwarded still");
}

/// Whoever sees a Bind on its way may send it first, but can do no more with the challenge than to have received it.
fn a_bind_moves_nothing_for_who_has_no_key(world: &World, near: &mut HandBind, far: &HandBind) {
    let third = world.lab.agents[2].inside(HandBind::socket).unwrap();

    // One that was accepted already.
    assert_eq!(answer(&third, &near.datagram(BindKind::Bind, near.counter(), Cookie::NONE)), None);
    world.wait_refused([("bind_replayed", 1)]);
    // One that was caught before it reached the relay, and what can be made of the challenge without the key.
    let caught = near.datagram(BindKind::Bind, near.counter() + 1, Cookie::NONE);
    let mut challenge = answer(&third, &caught).expect("nobody can tell yet who sent it");
    assert_eq!(answer(&third, &challenge), None);
    world.wait_refused([("bind_direction", 1)]);
    challenge[BIND_LEN - 1] ^= 1;
    assert_eq!(answer(&third, &challenge), None);
    world.wait_refused([("bind_mac", 1)]);
    assert!(carries(far, near), "the tuple is where it was");

    near.prove_with(near.counter() + 2);
    assert!(carries(far, near) && carries(near, far), "and can be proved again");
}

/// An agent cannot aim its peer's datagrams at somebody else.
fn a_bind_from_a_forged_address_moves_nothing(world: &World, near: &mut HandBind, far: &HandBind) {
    const VICTIM: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
    world.lab.router.ip(&format!("addr add {VICTIM}/32 dev lo\n")).unwrap();
    let victim = world.lab.router.inside(|| UdpSocket::bind((VICTIM, 7000)).unwrap()).unwrap();
    victim.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let counter = near.counter() + 1;
    let before = (world.refused("bind_cookie"), world.refused("bind_no_challenge"));

    // The victim hears the challenge; its cookie does not get back to the agent, which has to guess.
    let challenge = answer(&victim, &near.datagram(BindKind::Bind, counter, Cookie::NONE)).unwrap();
    assert!(matches!(near.read(&challenge).kind, BindKind::Challenge));
    assert_eq!(answer(&victim, &near.datagram(BindKind::Proof, counter, Cookie([9; 16]))), None);
    world.wait_refused([("bind_cookie", before.0 + 1)]);
    // Known, it is good for the victim's address alone.
    let proof = near.datagram(BindKind::Proof, counter, near.read(&challenge).cookie);
    assert_eq!(near.answer(&proof), None);
    world.wait_refused([("bind_no_challenge", before.1 + 1)]);

    assert!(carries(far, near), "the peer's datagrams go where they went");
    assert!(victim.recv(&mut [0; 2048]).is_err(), "the victim gets none of them");
    let [session] = world.sessions().try_into().unwrap();
    let at = session.sides[0].agent.map(|agent: SocketAddr| agent.ip());
    assert_ne!(at, Some(IpAddr::V4(VICTIM)));
}

fn in_kernel(world: &World, reason: &str) -> u64 {
    world.status().kernel.get(reason).copied().unwrap_or(0)
}
