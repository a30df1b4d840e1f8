//! Agents that share no code with ours, on another QUIC stack, behind NATs and with the kernel between them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use relay_userspace::identity::{NodeId, NodeKey};
use xtask::lab::Namespace;
use xtask::test::python_or_skip;

use super::world::{NATIVE, RELAY, World, wait_for};

#[test]
fn agents_on_another_stack_exchange_datagrams_through_the_kernel() {
    const NAME: &str = "agents_on_another_stack_exchange_datagrams_through_the_kernel";
    const DATAGRAMS: u64 = 50;
    let Some(python) = python_or_skip(NAME) else { return };
    let Some(world) = World::new(NAME) else { return };
    let _relay = world.deployment.start_relay(None, NATIVE).unwrap();
    let [near, far] = &world.lab.agents[..] else { panic!("two agents") };
    let id = |seed: u8| NodeKey::from_seed(&[seed; 32]).node_id();
    let start = |place: &Namespace, seed: u8, role: &str, peer: NodeId| {
        let relay = world.deployment.relay.id();
        OtherAgent::start(
            place,
            &python,
            [&RELAY.to_string(), relay, &hex(&[seed; 32]), role, &peer.to_string()],
        )
    };

    let mut target = start(far, 2, "--accept", id(1));
    target.says("announced");
    let mut connector = start(near, 1, "--connect", id(2));
    connector.says("paired connector");
    target.says("paired target");

    let mut exchange = |count: u64| {
        for number in 0..count {
            let datagram = hex(&vec![number as u8; 1 + 29 * number as usize]);
            connector.order(&format!("send {datagram}"));
            assert_eq!(target.says("received"), datagram);
            target.order(&format!("send {datagram}"));
            assert_eq!(connector.says("received"), datagram);
        }
    };
    // The first ones may meet a neighbour that is not resolved yet.
    exchange(2);
    let by_kernel = || {
        let [session] = world.sessions().try_into().unwrap();
        session.sides.iter().map(|side| side.packets_kernel).sum::<u64>()
    };
    let before = by_kernel();
    exchange(DATAGRAMS);
    wait_for("the kernel's count of the datagrams", Duration::from_secs(10), || {
        (by_kernel() == before + 2 * DATAGRAMS).then_some(())
    });
}

/// agent.py in a namespace. It is killed when this is dropped.
struct OtherAgent {
    process: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
}

impl OtherAgent {
    fn start(place: &Namespace, python: &Path, [relay, relay_id, seed, role, peer]: [&str; 5]) -> OtherAgent {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../relay-userspace/tests/other_stack/agent.py");
        let mut command = Command::new(python);
        command
            .arg("-B") // no compiled files beside the source
            .arg(script)
            .args(["--relay", relay, "--relay-id", relay_id, "--seed", seed, role, peer])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // A child is in the namespace of the thread that starts it.
        let mut process = place.inside(|| command.spawn()).unwrap().unwrap();
        let (orders, says) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(says).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        OtherAgent { process, orders, lines }
    }

    /// What it says next: `words`, and what follows.
    fn says(&mut self, words: &str) -> String {
        let line = self.lines.recv_timeout(Duration::from_secs(60)).expect(words);
        let rest = line.strip_prefix(words).unwrap_or_else(|| panic!("{words} expected, it says {line}"));
        rest.trim().to_owned()
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }
}

impl Drop for OtherAgent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
