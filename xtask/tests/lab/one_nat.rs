//! An office full of agents behind one address loses its power and comes back: the relay does not know yet that they were
//! gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use relay_userspace::agent::{Agent, AgentSettings};
use relay_userspace::identity::NodeKey;
use xtask::answers::Peers;
use xtask::lab::LabPlan;
use xtask::lab::delay::Conditions;
use xtask::tool::Tool;

use super::raw_agents::{run_inside, settings};
use super::world::{RELAY, USERSPACE, World, wait_for};

const AGENTS: usize = 500;

/// How long a packet is on its way to the relay, or back.
const ONE_WAY: Duration = Duration::from_millis(50);

/// All have to be in within this.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn five_hundred_agents_behind_one_nat_that_reconnect_at_once_are_all_in_within_thirty_seconds() {
    const NAME: &str =
        "five_hundred_agents_behind_one_nat_that_reconnect_at_once_are_all_in_within_thirty_seconds";
    let mut plan = LabPlan::behind_one_nat();
    plan.nats[0].line = Some(Conditions { delay: ONE_WAY, ..Conditions::default() });
    let Some(world) = World::planned(NAME, &plan, RELAY) else { return };
    let _relay = world.deployment.start_relay_with(None, "max_connections = 1000\n", USERSPACE).unwrap();
    let keys: Vec<NodeKey> = (0..AGENTS).map(|_| NodeKey::generate().unwrap()).collect();

    let first = Fleet::announced(&world, &keys, || cut_off(&world));
    println!("{AGENTS} agents behind one NAT: announced after {first:?}");
    assert_eq!(connections(&world), AGENTS, "the relay has not noticed that they are gone");
    restore(&world);
    let again = Fleet::announced(&world, &keys, || {
        // Each has the seat that it had before, for its address has no other.
        wait_for("the connections left behind to give way", Duration::from_secs(5), || {
            (connections(&world) == AGENTS).then_some(())
        });
    });
    println!("{AGENTS} agents behind one NAT: back after {again:?}; refused: {:?}", refused(&world));

    assert!(again <= PATIENCE, "{again:?}");
    assert_eq!(world.refused("gave_way"), AGENTS as u64);
    assert_eq!(world.deployment.relay.run("bans").unwrap(), "nobody is banned\n");
}

/// The agents of all `keys`, in one process.
struct Fleet;

impl Fleet {
    /// Starts them all at once. How long it takes until the relay has announced each of them; `then` is done while they
    /// are there.
    fn announced(world: &World, keys: &[NodeKey], then: impl FnOnce()) -> Duration {
        let (in_by_now, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        std::thread::scope(|scope| {
            let agents = scope.spawn({
                let (in_by_now, stop) = (Arc::clone(&in_by_now), Arc::clone(&stop));
                move || {
                    run_inside(&world.lab.agents[0], async || {
                        let agents: Vec<Agent> = keys.iter().map(|key| agent(world, key)).collect();
                        while !stop.load(Ordering::Relaxed) {
                            in_by_now.store(count_announced(&agents).await, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    });
                }
            });
            let start = Instant::now();
            let _stops_them = Stops(stop);
            wait_for("all agents to be announced", 2 * PATIENCE, || {
                assert!(!agents.is_finished(), "the agents have failed");
                (in_by_now.load(Ordering::Relaxed) == AGENTS).then_some(())
            });
            let took = start.elapsed();
            then();
            took
        })
    }
}

/// Stops the agents when it is dropped, whatever else goes wrong.
struct Stops(Arc<AtomicBool>);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn agent(world: &World, key: &NodeKey) -> Agent {
    let settings = settings(world, key, world.deployment.reached().connector);
    Agent::spawn(AgentSettings { announce: true, ..settings })
}

async fn count_announced(agents: &[Agent]) -> usize {
    let mut announced = 0;
    for agent in agents {
        announced += usize::from(agent.peers().await.peers.iter().any(|relay| relay.announced));
    }
    announced
}

/// From now on nothing passes the NAT: neither do the agents' last words.
fn cut_off(world: &World) {
    nft(
        world,
        "add table inet cut\nadd chain inet cut everything { type filter hook forward priority 0; policy drop; }\n",
    );
}

fn restore(world: &World) {
    nft(world, "delete table inet cut\n");
}

fn nft(world: &World, commands: &str) {
    world.lab.nats[0].run(&Tool::new("nft").words("-f -").input(commands.to_owned())).unwrap();
}

fn connections(world: &World) -> usize {
    world.deployment.relay.json::<Peers>("net peers --json").unwrap().peers.len()
}

fn refused(world: &World) -> Vec<(String, u64)> {
    world.status().control.into_iter().filter(|(_, count)| *count > 0).collect()
}
