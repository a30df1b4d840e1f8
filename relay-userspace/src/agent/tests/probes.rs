//! A relay that asks its agents to connect to it anew.

use std::sync::atomic::Ordering;

use super::{Network, node};
use crate::probe::{self, Probed};
use crate::protocol::flow_terms::{Ping, Pong};

impl Network {
    /// The relay asks the agent with this seed to connect to it, with `ts` from 0, and says that these are its ports.
    fn asks(&self, seed: u8, ports: &[u16]) {
        let to_agent = self.relay.state().connections[&node(seed)].1.clone();
        for (ts, port) in (0..).zip(ports) {
            to_agent.send(Ping { probe: Some(*port), ..Ping::new(ts) }.into()).unwrap();
        }
    }

    /// What it is answered, the first `count` in order of coming.
    async fn is_answered(&self, count: usize) -> Vec<Pong> {
        self.relay.until(|state| state.pongs.len() >= count).await;
        self.relay.state().pongs.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_asked_connects_to_its_relay_anew_and_says_who_answers() {
    let net = Network::start().await;
    let _agent = net.server(2, &[], &[]).await;
    net.asks(2, &[net.relay.control.port()]);
    let pongs = net.is_answered(1).await;
    let answered = Probed::Answered { at: net.relay.control, node: net.relay.id };
    assert_eq!((pongs[0].echo, Probed::told(&pongs[0])), (0, Some(answered)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_that_a_relay_names_is_not_where_the_agent_connects_to() {
    let net = Network::start().await;
    let _agent = net.server(2, &[], &[]).await;
    let elsewhere = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    net.asks(2, &[elsewhere.local_addr().unwrap().port()]);
    let pongs = net.is_answered(1).await;
    let answered = Probed::Answered { at: net.relay.control, node: net.relay.id };
    assert_eq!(Probed::told(&pongs[0]), Some(answered));
    assert!(elsewhere.recv(&mut [0; 2048]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_else_is_asked_meanwhile_is_refused_and_counted_and_keeps_nothing_from_being_answered() {
    let net = Network::start().await;
    let agent = net.server(2, &[], &[]).await;
    net.relay.ignores_newcomers.store(true, Ordering::SeqCst);
    let at = net.relay.control;
    net.asks(2, &[at.port(), at.port(), 1, 0]);
    let plain = Ping::new(9);
    net.relay.state().connections[&node(2)].1.send(plain.into()).unwrap();
    let pongs = net.is_answered(5).await;
    let told: Vec<_> = pongs.iter().map(|pong| (pong.echo, Probed::told(pong))).collect();
    let refused = [1, 2, 3].map(|echo| (echo, Some(Probed::Refused)));
    for refused in refused {
        assert!(told.contains(&refused), "{told:?}");
    }
    assert!(told.contains(&(9, Some(Probed::NotKnown))), "{told:?}");
    assert_eq!(told[4], (0, Some(Probed::Silent { at })), "after {} s", probe::PATIENCE.as_secs());
    assert_eq!(agent.sessions().await.refused["probe_limit"], 3);
}
