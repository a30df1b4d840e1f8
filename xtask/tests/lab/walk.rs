//! `deploy/README.md` as its reader takes it: on clean machines with a real systemd, the commands of its blocks as they stand
//! there. What the page has in angle brackets is filled in. What takes the network of the real machine was done before: builds
//! (`cargo xtask`), which put their files into the checkout, and packages of Debian, which the clean root has. doctor may warn
//! of the clock, which is the real machine's, and what `sysctl` sets is set in memory that lies over the kernel's files: these hold
//! for all machines. What goes on until it is ended is typed at a terminal of 80 columns, what another user types, by `sudo`, and
//! the target has nobody to ask yet when its steps end. apt asks nothing. Two blocks are for an editor: keys of tables that a file
//! has already, and what `systemctl edit` asks for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use xtask::answers::{Peers, RelaySession, RelaySessions, RelaySide, Status};
use xtask::lab::{Host, Lab, LabPlan, Namespace, OTHER_RELAY_ADDRESSES, RELAY_ADDRESSES, RELAY_INTERFACE};
use xtask::tcp_copy;
use xtask::test::privileged_or_skip;
use xtask::tool::Tool;
use xtask::workspace::Workspace;

use super::firewalld;
use super::machine::Machine;
use super::packages;
use super::page::{Block, blocks_of};

pub const PAGE: &str = "deploy/README.md";

/// The tests that take the page's steps.
const DAILY: &str = "who_has_the_page_alone_runs_a_relay_from_a_checkout_for_two_agents_and_looks_after_it";
const UPSTREAM: &str = "upstreams_steps_give_a_relay_with_upstreams_unit_and_with_ours";

/// Who takes the steps of which code block: heading, number of the block below it, test.
const TAKEN: &[(&str, usize, &str)] = &[
    ("Deploying a relay", 0, DAILY),
    ("The package", 0, DAILY),
    ("A checkout", 0, DAILY),
    ("The tarball", 0, UPSTREAM),
    ("Does it work", 0, DAILY),
    ("Does it work", 1, DAILY),
    ("Does it work", 2, DAILY),
    ("Firewall", 0, DAILY),
    ("Firewall", 1, firewalld::STEPS),
    ("Receive buffers", 0, DAILY),
    ("Look", 0, DAILY),
    ("Another port", 0, UPSTREAM),
    ("Change", 0, DAILY),
    ("Restart", 0, DAILY),
    ("Restart", 1, UPSTREAM),
    ("Upgrade", 0, packages::UPGRADE),
    ("Upgrade", 1, DAILY),
    ("Upgrade", 2, DAILY),
    ("Roll back", 0, packages::UPGRADE),
    ("Roll back", 1, DAILY),
    ("Drain", 0, DAILY),
    ("Stop", 0, DAILY),
    (BANS, 0, DAILY),
    (BANS, 1, DAILY),
    ("Privilege", 0, DAILY),
    ("Privilege", 1, DAILY),
    ("Privilege", 2, DAILY),
    ("Agents", 0, DAILY),
    ("Agents", 1, DAILY),
    ("Agents", 2, DAILY),
    ("Agents", 3, DAILY),
    ("Agents", 4, DAILY),
];

#[test]
fn every_code_block_of_the_page_is_taken_by_a_test() {
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let blocks: BTreeSet<(String, usize)> = blocks_of(PAGE)
        .into_iter()
        .map(|block| {
            let number = numbers.entry(block.heading.clone()).or_default();
            *number += 1;
            (block.heading, *number - 1)
        })
        .collect();
    let taken: BTreeSet<(String, usize)> =
        TAKEN.iter().map(|(heading, number, _)| ((*heading).to_owned(), *number)).collect();
    assert_eq!(blocks, taken);
}

/// What the page calls the other end of a session, a relay's host, and another's.
const PEER: &str = "atlas_<id of a peer>";
const RELAY_IP: &str = "<relay_ip>";
const OTHER_RELAY_IP: &str = "<other_relay_ip>";

/// Commands that do not end by themselves, and what they have to say.
const LIVE: &[(&str, &str)] = &[
    ("journalctl -u atlas-relay -f", "session paired"),
    ("sudo -u atlas-relay atlas net top", "Sessions :"),
];

/// The relay's configuration.
const CONFIGURATION: &str = "/var/lib/atlas-relay/.atlas/state/config.toml";

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn who_has_the_page_alone_runs_a_relay_from_a_checkout_for_two_agents_and_looks_after_it() {
    let Some(privileged) = privileged_or_skip(DAILY) else { return };
    let binary = &privileged.relay_binary;
    let packages = packages::made_of(binary);
    let lab = Lab::planned(&LabPlan { other_relay: true, ..LabPlan::default() }).unwrap();
    let start = |host: Host, name: &str| {
        let machine = Machine::start(host, lab.directory(), name);
        put_checkout(&machine, binary);
        machine.put(&packages.deb, &format!("target/dist/{}", name_of(&packages.deb)));
        machine
    };
    let walk = Walk::new(DAILY);
    walk.fill(RELAY_IP, RELAY_ADDRESSES.v4);
    walk.fill(OTHER_RELAY_IP, OTHER_RELAY_ADDRESSES.v4);

    // The relay.
    let relay = start(lab.relay.host(), "relay");
    walk.take(&relay, "Deploying a relay", 0);
    walk.take(&relay, "A checkout", 0);
    let [status, doctor, shown] = walk.take(&relay, "Does it work", 0).try_into().unwrap();
    assert!(status.contains("Datapath     : xdp-native"), "{status}");
    assert!(doctor.contains("gives the relay all that the XDP program needs"), "{doctor}");
    walk.fill("atlas_<id>", node_id_in(&shown));
    assert_confined(&relay, "atlas-relay");
    let exposed = relay.type_in("systemd-analyze security --offline=yes deploy/systemd/atlas-relay.service");
    assert!(exposed.contains("Overall exposure level for atlas-relay.service: 1.7"), "{exposed}");

    // Two agents, one from the package, one from the checkout.
    let target = start(lab.agents[1].host(), "target");
    let install = walk.block("The package", 0).lines.remove(1);
    target.type_in(&install);
    let connector = start(lab.agents[0].host(), "connector");
    walk.take(&connector, "Agents", 0);
    let [target_id, connector_id] = [&target, &connector].map(|agent| {
        let [_, shown] = walk.take(agent, "Agents", 1).try_into().unwrap();
        node_id_in(&shown)
    });
    walk.fill(PEER, &connector_id);
    walk.take(&target, "Agents", 2);
    // The last step asks the other end, which is not there yet.
    walk.take_but_last(&target, "Agents", 4);
    relay.wait_until("the target at the relay", || {
        let peers: Peers = answer(&relay.type_in("sudo -u atlas-relay atlas net peers --json"));
        peers.peers.iter().any(|peer| peer.node_id == target_id && peer.announced).then_some(())
    });
    walk.fill(PEER, &target_id);
    walk.take(&connector, "Agents", 3);
    walk.take(&connector, "Agents", 4);
    walk.take(&connector, "Does it work", 1);
    let [asked] = walk.take(&relay, "Does it work", 2).try_into().unwrap();
    assert!(asked.contains("the agent has connected to this node there"), "{asked}");
    assert_confined(&target, "atlas-agent");
    assert_confined(&connector, "atlas-agent");
    copy_through(&lab, "first");
    let session = forwarding_session(&relay);
    let by = |path: fn(&RelaySide) -> u64| session.sides.iter().map(path).sum::<u64>();
    let (kernel, userspace) = (by(|side| side.packets_kernel), by(|side| side.packets_userspace));
    assert!(kernel > 1000 && kernel > 99 * userspace, "{kernel} by the kernel, {userspace} by the daemon");

    // A day with it.
    let looked = walk.take(&relay, "Look", 0).concat();
    assert!(looked.contains("active (running)") && looked.contains(&session.session[..8]), "{looked}");
    // As docs/logs.md and docs/operate.md have it.
    let life = relay.type_in(&format!("journalctl -u atlas-relay | grep session={}", session.session));
    assert!(life.contains("session offered") && life.contains("session paired"), "{life}");
    let listed = walk.take(&relay, "Firewall", 0).concat();
    assert!(listed.contains("udp dport 4433 notrack"), "{listed}");
    // As a reboot does.
    relay.type_in("systemctl restart nftables");
    assert!(relay.type_in("nft list table inet atlas_relay").contains("udp dport 4433 notrack"));
    walk.take(&relay, "Receive buffers", 0);
    assert_eq!(relay.type_in("sysctl --values net.core.rmem_max net.core.wmem_max"), "4194304\n4194304\n");
    walk.take(&relay, "Restart", 0);
    assert_eq!(forwarding_session(&relay).session, session.session);
    copy_through(&lab, "after-the-restart");

    // systemd tries again, and what it keeps outlasts a start that fails.
    relay.change_file(CONFIGURATION, |text| format!("unsound\n{text}"));
    assert!(relay.try_type("systemctl restart atlas-relay").is_err());
    relay.wait_until("another attempt", || {
        (relay.type_in("systemctl show atlas-relay -P NRestarts").trim() >= "1").then_some(())
    });
    relay.change_file(CONFIGURATION, |text| text.replacen("unsound\n", "", 1));
    relay.wait_until("the relay", || relay.try_type("sudo -u atlas-relay atlas net peers").ok());
    assert_eq!(forwarding_session(&relay).session, session.session);
    copy_through(&lab, "after-a-start-that-failed");
    let bans = walk.take(&relay, BANS, 0);
    assert!(bans[2].contains("192.0.2.1") && bans[2].contains(&target_id), "{bans:?}");
    assert!(!relay.type_in("sudo -u atlas-relay atlas bans").contains("192.0.2.1"));
    relay.change_file(CONFIGURATION, |text| with_keys(text, &walk.block(BANS, 1).text()));
    let changed = walk.take(&relay, "Change", 0);
    assert!(changed[2].contains("20000"), "{changed:?}");

    // A member of the group looks.
    let [status] = walk.take(&relay, "Privilege", 0).try_into().unwrap();
    assert!(status.contains("Capabilities : none"), "{status}");
    relay.type_in("useradd --create-home alice");
    walk.fill("<user>", "alice");
    walk.take(&relay, "Privilege", 1);
    let as_alice = |line: &str| format!("sudo -u alice --login sh -c '{}'", line.replace('\'', r"'\''"));
    let commands = walk.block("Privilege", 2).commands();
    let said: Vec<String> = commands.iter().map(|line| relay.type_in(&as_alice(line))).collect();
    assert!(said[2].contains("xdp-native"), "{said:?}");
    assert!(relay.try_type(&as_alice("atlas bans add 192.0.2.1")).is_err());

    // Another version, and back.
    let newer = lab.directory().join("newer");
    std::fs::write(&newer, [std::fs::read(binary).unwrap(), b"newer".to_vec()].concat()).unwrap();
    relay.put(&newer, "target/release/atlas-relay");
    walk.take(&relay, "Upgrade", 1);
    assert!(!relay.runs("atlas-relay").ends_with(b"newer"), "it is only tried");
    walk.take(&relay, "Upgrade", 2);
    assert!(relay.runs("atlas-relay").ends_with(b"newer"));
    walk.take(&relay, "Roll back", 1);
    assert!(!relay.runs("atlas-relay").ends_with(b"newer"));
    assert_eq!(forwarding_session(&relay).session, session.session);
    copy_through(&lab, "after-the-roll-back");
    connector.type_in("systemctl restart atlas-agent");
    copy_through(&lab, "after-the-agents-restart");

    // To another relay, from the package.
    let other = start(lab.other_relay.as_ref().unwrap().host(), "other");
    walk.take(&other, "The package", 0);
    walk.fill("atlas_<id>", node_id_in(&other.type_in("sudo -u atlas-relay atlas id show")));
    walk.take(&relay, "Drain", 0);
    assert_gone(&relay, &lab.relay);
    copy_through(&lab, "by-the-other-relay");
    assert!(forwarding_session(&other).sides.iter().any(|side| side.packets_kernel > 1000));
    walk.take(&other, "Stop", 0);
    assert_gone(&other, lab.other_relay.as_ref().unwrap());
    connector.type_in("systemctl stop atlas-agent");
    assert_eq!(connector.type_in("systemctl show atlas-agent -P Result"), "success\n");
    walk.finish();
}

#[test]
fn upstreams_steps_give_a_relay_with_upstreams_unit_and_with_ours() {
    let Some(privileged) = privileged_or_skip(UPSTREAM) else { return };
    let packages = packages::made_of(&privileged.relay_binary);
    let lab = Lab::up().unwrap();
    let walk = Walk::new(UPSTREAM);
    let relay = Machine::start(lab.relay.host(), lab.directory(), "relay");
    relay.put(&packages.tarball, name_of(&packages.tarball));
    let status = || -> Status { answer(&relay.type_in("sudo -u atlas-relay atlas xdp status --json")) };

    walk.take(&relay, "The tarball", 0);
    assert_eq!(status().datapath, "xdp-native");

    relay.write("edited", &walk.block("Another port", 0).text());
    relay.type_at_terminal("SYSTEMD_EDITOR=\"cp edited\" systemctl edit atlas-relay");
    relay.change_file(CONFIGURATION, |text| with_keys(text, "[network]\nport = 443\n"));
    relay.type_in("systemctl restart atlas-relay");
    let listening = relay.type_in("sudo -u atlas-relay atlas config show --running");
    assert!(listening.contains("443") && !listening.contains("4433"), "{listening}");
    assert_eq!((status().datapath.as_str(), status().capabilities), ("xdp-native", Some(Vec::new())));

    // As docs/operate.md has it.
    let id = node_id_in(&relay.type_in("sudo -u atlas-relay atlas id show"));
    relay.type_in("systemctl stop atlas-relay");
    relay.type_in("sudo -u atlas-relay atlas id rotate --yes");
    relay.type_in("systemctl start atlas-relay");
    assert_ne!(node_id_in(&relay.type_in("sudo -u atlas-relay atlas id show")), id);
    assert_eq!(status().datapath, "xdp-native");

    relay.type_in("systemctl stop atlas-relay");
    relay.type_in("rm -r /etc/systemd/system/atlas-relay.service.d");
    relay.change_file("/etc/systemd/system/atlas-relay.service", |text| {
        let (upstreams, _ours) = text.split_once("\n# Up to here: upstream's lines").unwrap();
        format!("{upstreams}\n[Install]\nWantedBy=multi-user.target\n")
    });
    relay.type_in("systemctl daemon-reload");
    relay.type_in("systemctl enable --now atlas-relay");
    relay.wait_until("the relay", || relay.try_type("sudo -u atlas-relay atlas net peers").ok());
    assert_eq!(status().datapath, "userspace");

    // Without systemd a killed daemon's successor finds what is pinned.
    relay.type_in("systemctl stop atlas-relay");
    walk.take(&relay, "Restart", 1);
    let caps = "-all,+bpf,+net_admin,+perfmon";
    let start = format!(
        "setpriv --reuid atlas-relay --regid atlas-relay --clear-groups --inh-caps={caps} --ambient-caps={caps} \
         env HOME=/var/lib/atlas-relay atlas net listen --port 4433 >> by-hand.log 2>&1 & echo $!"
    );
    for killed in [true, false] {
        let process = relay.type_in(&start);
        relay.wait_until("the relay", || relay.try_type("sudo -u atlas-relay atlas net peers").ok());
        assert_eq!(status().datapath, "xdp-native");
        if killed {
            relay.type_in(&format!("kill -KILL {process}"));
        }
    }
    let log = relay.type_in("cat by-hand.log");
    let made = log.lines().filter(|line| line.contains("flow tables made"));
    let adopted: Vec<bool> = made.map(|line| line.contains("adopted=true")).collect();
    assert_eq!(adopted, [false, true], "{log}");
    relay.type_in("sudo -u atlas-relay atlas stop");
    walk.finish();
}

const BANS: &str = "Bans, and many agents behind one address";

/// The steps that one test takes.
pub struct Walk {
    test: &'static str,
    page: Vec<Block>,
    filled: RefCell<BTreeMap<String, String>>,
    taken: RefCell<BTreeSet<(&'static str, usize)>>,
}

impl Walk {
    pub fn new(test: &'static str) -> Walk {
        let (filled, taken) = Default::default();
        Walk { test, page: blocks_of(PAGE), filled, taken }
    }

    /// What stands for `place` from now on.
    pub fn fill(&self, place: &str, value: impl ToString) {
        self.filled.borrow_mut().insert(place.to_owned(), value.to_string());
    }

    /// The block of that number below `heading`, filled in.
    pub fn block(&self, heading: &str, number: usize) -> Block {
        let claim = TAKEN.iter().find(|(theirs, its, _)| (*theirs, *its) == (heading, number));
        let claim = claim.unwrap_or_else(|| panic!("{heading} {number} is on no list"));
        assert_eq!(claim.2, self.test);
        self.taken.borrow_mut().insert((claim.0, claim.1));
        let mut below = self.page.iter().filter(|block| block.heading == heading);
        let mut block =
            below.nth(number).unwrap_or_else(|| panic!("{PAGE} has no {heading} {number}")).clone();
        for (place, value) in self.filled.borrow().iter() {
            block.lines = block.lines.iter().map(|line| line.replace(place, value)).collect();
        }
        block
    }

    /// Types the lines of a block. What they have said, without that of what was built before.
    pub fn take(&self, machine: &Machine, heading: &str, number: usize) -> Vec<String> {
        self.type_commands(machine, &self.block(heading, number).commands())
    }

    fn take_but_last(&self, machine: &Machine, heading: &str, number: usize) {
        let commands = self.block(heading, number).commands();
        self.type_commands(machine, &commands[..commands.len() - 1]);
    }

    fn type_commands(&self, machine: &Machine, commands: &[String]) -> Vec<String> {
        let mut said = Vec::new();
        for line in commands {
            let is_place = |rest: &str| rest.starts_with(|c: char| c.is_ascii_alphabetic());
            assert!(!line.split('<').skip(1).any(is_place), "{line}: what is to be filled in?");
            if let Some((_, awaited)) = LIVE.iter().find(|(live, _)| live == line) {
                said.push(machine.see(line, awaited));
            } else if line.contains(" atlas doctor") {
                // It warns of the machine's clock, which is the real one's, and of nothing else.
                let findings = machine.type_in(&format!("{line} || test $? -eq 1"));
                let warnings: Vec<&str> =
                    findings.lines().filter(|line| line.starts_with("warning")).collect();
                assert!(warnings.iter().all(|line| line.contains(" clock ")), "{findings}");
                said.push(findings);
            } else if !line.starts_with("cargo xtask ") {
                said.push(machine.type_in(line));
            }
        }
        said
    }

    /// All that this test is to take was taken.
    pub fn finish(self) {
        let all: BTreeSet<(&str, usize)> = TAKEN
            .iter()
            .filter(|(.., test)| *test == self.test)
            .map(|(heading, number, _)| (*heading, *number))
            .collect();
        assert_eq!(*self.taken.borrow(), all);
    }
}

/// What a checkout has once it is built, as far as the page takes something of it.
fn put_checkout(machine: &Machine, binary: &Path) {
    let root = Workspace::find().unwrap().root().to_owned();
    machine.put(binary, "target/release/atlas-relay");
    for file in [
        "deploy/config.example.toml",
        "deploy/firewall/nftables.conf",
        "deploy/systemd/atlas-relay.service",
        "deploy/systemd/atlas-agent.service",
    ] {
        machine.put(&root.join(file), file);
    }
}

/// Copies a file to the target's port through that of the connector, and checks that it is the same.
fn copy_through(lab: &Lab, name: &str) {
    let (from, to) =
        (lab.directory().join(format!("{name}.sent")), lab.directory().join(format!("{name}.received")));
    std::fs::write(&from, vec![0x5a; 4 << 20]).unwrap();
    let [connector, target] = [&lab.agents[0], &lab.agents[1]].map(Namespace::host);
    let mut receiver = tcp_copy::receive(&target, "127.0.0.1:80".parse().unwrap(), &to).unwrap();
    let mut sender =
        tcp_copy::send(&connector, "127.0.0.1:8080".parse().unwrap(), &from, lab.directory()).unwrap();
    receiver.wait_success(2 * PATIENCE).unwrap();
    sender.wait_success(PATIENCE).unwrap();
    assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap(), "the file differs");
}

/// The service runs as its own user, and its system calls are filtered.
fn assert_confined(machine: &Machine, name: &str) {
    let user = machine.type_in(&format!("id --user {name}"));
    let status = machine.status_of(name);
    assert!(status.contains(&format!("\nUid:\t{}\t", user.trim())), "{status}");
    assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
}

/// The session that has carried the most.
fn forwarding_session(relay: &Machine) -> RelaySession {
    let sessions: RelaySessions = answer(&relay.type_in("sudo -u atlas-relay atlas net sessions --json"));
    let bytes = |session: &RelaySession| session.sides.iter().map(|side| side.bytes).sum::<u64>();
    sessions.sessions.into_iter().max_by_key(bytes).expect("a session")
}

/// The relay has ended as it should, and has left nothing with the kernel.
fn assert_gone(relay: &Machine, host: &Namespace) {
    let ended = relay.type_in("systemctl show atlas-relay -p Result -p NRestarts -p NFileDescriptorStore");
    let mut ended: Vec<&str> = ended.lines().collect();
    ended.sort_unstable();
    assert_eq!(ended, ["NFileDescriptorStore=0", "NRestarts=0", "Result=success"], "{}", relay.journal());
    let link = host.run(&Tool::new("ip").words("link show dev").arg(RELAY_INTERFACE)).unwrap();
    assert!(!link.contains("xdp"), "{link}");
    assert!(!relay.journal().contains("ERROR"), "{}", relay.journal());
}

/// `text` with the keys of `more` set, each in its table.
fn with_keys(text: &str, more: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut table = String::new();
    for line in more.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('[') {
            line.clone_into(&mut table);
        } else if let Some((key, _)) = line.split_once(" = ") {
            let begin = 1 + lines.iter().position(|line| *line == table).unwrap();
            let end = lines[begin..]
                .iter()
                .position(|line| line.starts_with('['))
                .map_or(lines.len(), |at| begin + at);
            let is_old = |old: &String| old.starts_with(&format!("{key} = "));
            match lines[begin..end].iter().position(is_old) {
                Some(at) => line.clone_into(&mut lines[begin + at]),
                None => lines.insert(begin, line.to_owned()),
            }
        }
    }
    lines.join("\n")
}

fn node_id_in(text: &str) -> String {
    let begin = text.find("atlas_").expect("a node id");
    text[begin..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

fn answer<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

pub fn name_of(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}
