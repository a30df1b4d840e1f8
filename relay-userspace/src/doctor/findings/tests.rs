use super::*;
use crate::doctor::facts::{Bpffs, CallBack, Caller, Interface, PortState, Running};
use crate::doctor::packet_rules::{InputChain, PortFate};
use crate::identity::NodeKey;
use crate::probe::Probed;

fn interface() -> Interface {
    Interface {
        name: "eth0".to_owned(),
        up: true,
        mtu: 1500,
        driver: Some("virtio_net".to_owned()),
        xdp_features: Some(vec!["basic", "redirect", "ndo_xmit"]),
        program: None,
        features: Some(vec!["rx-gro".to_owned()]),
        vlans: false,
        queues: Some(4),
    }
}

/// A host on which all is well.
fn host() -> Facts {
    Facts {
        root: "/var/lib/atlas-relay/.atlas".into(),
        config: "/var/lib/atlas-relay/.atlas/state/config.toml".into(),
        socket: "/var/lib/atlas-relay/.atlas/run/admin.sock".into(),
        identity: Ok("atlas_1".to_owned()),
        configuration: Ok("a relay"),
        mode: DatapathMode::Auto,
        port: 4433,
        advertise: Vec::new(),
        has_program: true,
        kernel: Kernel {
            release: "6.12.1-amd64".to_owned(),
            btf: true,
            jit: Some(1),
            unprivileged_bpf_disabled: Some(2),
            rmem_max: Some(8 << 20),
            memlock: None,
        },
        capabilities: NEEDED.map(str::to_owned).to_vec(),
        unit_capabilities: Some(NEEDED.map(str::to_owned).to_vec()),
        bpffs: Some(Bpffs {
            directory: "/sys/fs/bpf/atlas-relay".into(),
            mounted: true,
            owner: Some(990),
            writable: true,
        }),
        interfaces: Ok(vec![interface()]),
        cpus: 4,
        chains: Ok(Vec::new()),
        untracked: Some(false),
        ufw: None,
        firewalld: false,
        conntrack: None,
        clock: Ok(true),
        addresses: vec!["198.51.100.1".parse().unwrap()],
        port_state: PortState::Free,
        running: None,
        self_test: SelfTest::Passed("one datagram".to_owned()),
        peer: None,
        call_back: None,
    }
}

fn with_interface(change: impl FnOnce(&mut Interface)) -> Facts {
    let mut interface = interface();
    change(&mut interface);
    Facts { interfaces: Ok(vec![interface]), ..host() }
}

fn with_kernel(change: impl FnOnce(&mut Kernel)) -> Facts {
    let mut facts = host();
    change(&mut facts.kernel);
    facts
}

/// The findings of a check, each no worse than the list says it can be, with a command that is complete.
fn of(facts: &Facts, check: Check) -> Vec<Finding> {
    let all = findings(facts);
    for finding in &all {
        let of = Check::ALL.iter().find(|check| check.name() == finding.check).unwrap();
        assert!(finding.level <= of.worst(), "{finding:?}");
        let mend = finding.mend.as_deref().unwrap_or_default();
        let unfilled =
            mend.split('{').skip(1).filter_map(|rest| rest.split_once('}')).any(|(name, _)| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            });
        assert!(!unfilled, "{finding:?}");
        assert!(!finding.expected.contains('{'), "{finding:?}");
    }
    all.into_iter().filter(|finding| finding.check == check.name()).collect()
}

fn one(facts: &Facts, check: Check) -> Finding {
    let [finding] = of(facts, check).try_into().unwrap_or_else(|all| panic!("{}: {all:?}", check.name()));
    finding
}

#[test]
fn a_host_on_which_all_is_well_has_nothing_to_mend() {
    let all = findings(&host());
    assert!(all.iter().all(|finding| finding.level == Level::Ok && finding.mend.is_none()), "{all:#?}");
    let unmentioned: Vec<&str> = Check::ALL
        .iter()
        .map(|check| check.name())
        .filter(|name| all.iter().all(|finding| finding.check != *name))
        .collect();
    assert_eq!(
        unmentioned,
        ["reached", "peer", "reachable"],
        "without a relay that runs, and without --from"
    );
}

#[test]
fn each_fault_is_told_with_its_level_and_what_mends_it() {
    let eth0 = "ip link set dev eth0 xdp off";
    let rows: Vec<(Facts, Check, Level, &str, Option<&str>)> = vec![
        (
            Facts { identity: Err("no identity".into()), ..host() },
            Check::Identity,
            Level::Error,
            "no identity",
            Some("atlas-relay id init"),
        ),
        (
            Facts { configuration: Err("config.toml:3: unknown key".into()), ..host() },
            Check::Configuration,
            Level::Error,
            ":3:",
            Some("atlas-relay config check"),
        ),
        (
            Facts { configuration: Ok("an agent"), ..host() },
            Check::Configuration,
            Level::Note,
            "makes an agent",
            None,
        ),
        (
            Facts { has_program: false, ..host() },
            Check::Program,
            Level::Warning,
            "not there",
            Some("cargo xtask build"),
        ),
        (
            with_kernel(|kernel| kernel.release = "5.15.0".into()),
            Check::Kernel,
            Level::Warning,
            "5.15.0",
            Some("install a later kernel, or set datapath.mode = \"userspace\""),
        ),
        (
            with_kernel(|kernel| kernel.release = "6.1.0-18-amd64".into()),
            Check::Kernel,
            Level::Note,
            "before 6.3",
            Some("install a later kernel, or set datapath.mode = \"userspace\""),
        ),
        (
            with_kernel(|kernel| kernel.jit = Some(0)),
            Check::Jit,
            Level::Warning,
            "off",
            Some("sysctl -w net.core.bpf_jit_enable=1"),
        ),
        (
            with_kernel(|kernel| kernel.unprivileged_bpf_disabled = Some(0)),
            Check::UnprivilegedBpf,
            Level::Note,
            "any user",
            Some("sysctl -w kernel.unprivileged_bpf_disabled=1"),
        ),
        (
            with_kernel(|kernel| kernel.rmem_max = Some(212_992)),
            Check::ReceiveBuffer,
            Level::Note,
            "212992",
            Some("sysctl -w net.core.rmem_max=4194304"),
        ),
        (
            with_kernel(|kernel| (kernel.release, kernel.memlock) = ("5.4.0".into(), Some(65_536))),
            Check::Memlock,
            Level::Warning,
            "65536",
            Some("systemctl edit atlas-relay   # [Service] LimitMEMLOCK=infinity"),
        ),
        (
            Facts { capabilities: Vec::new(), ..host() },
            Check::Capabilities,
            Level::Note,
            "cap_bpf, cap_net_admin, cap_perfmon",
            Some("sudo ATLAS_ROOT=/var/lib/atlas-relay/.atlas atlas-relay doctor"),
        ),
        (
            with_interface(|interface| interface.up = false),
            Check::Interface,
            Level::Error,
            "down",
            Some(
                "ip -brief link   # then set datapath.interfaces in /var/lib/atlas-relay/.atlas/state/config.toml",
            ),
        ),
        (
            with_interface(|interface| interface.program = Some((12, false))),
            Check::OtherProgram,
            Level::Warning,
            "program 12",
            Some(eth0),
        ),
        (
            with_interface(|interface| interface.mtu = 1000),
            Check::Mtu,
            Level::Warning,
            "IPv6",
            Some("ip link set dev eth0 mtu 1500"),
        ),
        (
            with_interface(|interface| interface.mtu = 9000),
            Check::Mtu,
            Level::Warning,
            "frames in parts",
            Some("ip link set dev eth0 mtu 1500"),
        ),
        (
            with_interface(|interface| interface.features = Some(vec!["rx-lro".into(), "rx-gro-hw".into()])),
            Check::ReceiveMerging,
            Level::Warning,
            "rx-lro and rx-gro-hw on",
            Some("ethtool -K eth0 lro off rx-gro-hw off"),
        ),
        (
            with_interface(|interface| {
                (interface.features, interface.vlans) = (Some(vec!["rx-vlan-hw-parse".into()]), true)
            }),
            Check::VlanOffload,
            Level::Warning,
            "does not see the tags",
            Some("ethtool -K eth0 rxvlan off"),
        ),
        (
            with_interface(|interface| interface.features = None),
            Check::ReceiveMerging,
            Level::Note,
            "cannot tell",
            Some("ethtool -K eth0 lro off rx-gro-hw off"),
        ),
        (
            with_interface(|interface| interface.queues = Some(1)),
            Check::Queues,
            Level::Note,
            "1 receive queues, 4 CPUs",
            Some("ethtool -L eth0 combined 4"),
        ),
        (
            with_interface(|interface| interface.driver = Some("mlx5_core".into())),
            Check::Headroom,
            Level::Note,
            "not known",
            None,
        ),
        (
            Facts { ufw: Some(false), ..host() },
            Check::Ufw,
            Level::Warning,
            "no rule",
            Some("ufw allow 4433/udp"),
        ),
        (
            Facts { firewalld: true, ..host() },
            Check::Firewalld,
            Level::Note,
            "running",
            Some("firewall-cmd --permanent --add-port=4433/udp && firewall-cmd --reload"),
        ),
        (
            Facts { chains: Err("CAP_NET_ADMIN is needed".into()), ..host() },
            Check::Firewall,
            Level::Note,
            "cannot tell",
            Some(
                "nft insert rule inet filter input udp dport 4433 accept   # and in the file that they are loaded from",
            ),
        ),
        (
            Facts { conntrack: Some((10, 100)), ..host() },
            Check::Conntrack,
            Level::Note,
            "10 of 100 connections: each stranger",
            Some(
                "nft -f /usr/share/doc/atlas-relay/deploy/firewall/nftables.conf   # deploy/firewall/nftables.conf",
            ),
        ),
        (
            Facts { conntrack: Some((10, 100)), port: 443, ..host() },
            Check::Conntrack,
            Level::Note,
            "10 of 100 connections: each stranger",
            Some(
                "sed s/4433/443/ /usr/share/doc/atlas-relay/deploy/firewall/nftables.conf | nft -f -   # deploy/firewall/nftables.conf",
            ),
        ),
        (
            Facts { conntrack: Some((10, 100)), untracked: None, ..host() },
            Check::Conntrack,
            Level::Note,
            "unless a rule says notrack, which cannot be told",
            None,
        ),
        (
            Facts { conntrack: Some((80, 100)), untracked: Some(true), ..host() },
            Check::Conntrack,
            Level::Ok,
            "80 of 100 connections; the port is not tracked",
            None,
        ),
        (
            Facts { unit_capabilities: Some(vec!["cap_net_admin".into()]), ..host() },
            Check::UnitCapabilities,
            Level::Warning,
            "does not give the relay cap_bpf, cap_perfmon",
            Some(
                "systemctl edit atlas-relay   # [Service] AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
            ),
        ),
        (Facts { conntrack: Some((80, 100)), ..host() }, Check::Conntrack, Level::Warning, "80 of 100", None),
        (
            Facts { clock: Ok(false), ..host() },
            Check::Clock,
            Level::Warning,
            "not synchronised",
            Some("timedatectl set-ntp true"),
        ),
        (
            Facts { port_state: PortState::Taken, ..host() },
            Check::Port,
            Level::Error,
            "another program",
            Some("ss --udp --listening --numeric --processes 'sport = :4433'"),
        ),
        (
            Facts { advertise: vec!["127.0.0.1:4433".parse().unwrap()], ..host() },
            Check::Advertise,
            Level::Warning,
            "no agent on another host",
            None,
        ),
        (
            Facts { advertise: vec!["203.0.113.9:4433".parse().unwrap()], ..host() },
            Check::Advertise,
            Level::Note,
            "none of this host's",
            None,
        ),
        (
            Facts { addresses: vec!["10.0.0.4".parse().unwrap(); 2], ..host() },
            Check::Advertise,
            Level::Note,
            "private addresses only (10.0.0.4)",
            None,
        ),
        (
            Facts { self_test: SelfTest::Failed("no datagram came".into()), ..host() },
            Check::SelfTest,
            Level::Warning,
            "no datagram",
            None,
        ),
        (
            Facts { self_test: SelfTest::NotRun("it needs root".into()), ..host() },
            Check::SelfTest,
            Level::Note,
            "not run: it needs root",
            None,
        ),
        (
            Facts { peer: Some(("192.0.2.1:4433".into(), Err("timed out".into()))), ..host() },
            Check::Peer,
            Level::Error,
            "192.0.2.1:4433: timed out",
            None,
        ),
    ];
    let gro_hw = |interface: &mut Interface| interface.features = Some(vec!["rx-gro-hw".into()]);
    let ours = |interface: &mut Interface| interface.program = Some((7, true));
    let merging = [
        (with_interface(gro_hw), Level::Note, "has to turn it off"),
        (
            with_interface(|interface| {
                gro_hw(interface);
                ours(interface);
            }),
            Level::Warning,
            "super_frame",
        ),
        (with_interface(ours), Level::Ok, "off"),
    ];
    for (facts, level, found) in merging {
        let finding = one(&facts, Check::ReceiveMerging);
        assert!(finding.level == level && finding.found.contains(found), "{finding:?}");
    }
    let denied = Facts { port_state: PortState::Unknown("permission denied".into()), ..host() };
    let port = one(&denied, Check::Port);
    assert!(port.level == Level::Note && port.found.contains("cannot tell: permission denied"), "{port:?}");
    for (facts, check, level, found, mend) in rows {
        let finding = one(&facts, check);
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.found.contains(found), "{finding:?}");
        if mend.is_some() {
            assert_eq!(finding.mend.as_deref(), mend);
        }
    }
}

fn chain(family: &str, table: &str, name: &str, port: PortFate) -> InputChain {
    InputChain { family: family.to_owned(), table: table.to_owned(), name: name.to_owned(), port }
}

#[test]
fn a_chain_that_keeps_the_port_out_is_named_in_the_command_that_opens_it() {
    let of_chains = |ports: &[(&str, PortFate)]| {
        let chains = ports.iter().map(|(name, port)| chain("ip", "fw", name, *port)).collect();
        of(&Facts { chains: Ok(chains), ..host() }, Check::Firewall)
    };
    let rows = [
        (PortFate::Accepted, Level::Ok, "1 chains of nftables for packets to this host: the port is let in"),
        (PortFate::Untold { drops: false }, Level::Ok, "none drops by its policy"),
        (PortFate::Untold { drops: true }, Level::Warning, "cannot be told without nft"),
        (PortFate::SomeAccepted, Level::Warning, "lets in some of what comes to the port at most"),
        (PortFate::Dropped, Level::Warning, "chain in of table ip fw keeps the port out"),
    ];
    for (port, level, found) in rows {
        let [finding] = of_chains(&[("in", port)]).try_into().unwrap();
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.found.contains(found), "{finding:?}");
    }
    let two = of_chains(&[("in", PortFate::Dropped), ("late", PortFate::Accepted)]);
    let [finding] = two.try_into().unwrap();
    assert!(finding.mend.unwrap().starts_with("nft insert rule ip fw in udp dport 4433 accept "));
}

#[test]
fn chains_that_ufw_or_firewalld_manages_are_to_be_changed_by_its_commands() {
    let firewalld = |port| {
        let chains = vec![chain("inet", "firewalld", "filter_INPUT", port)];
        let facts = Facts { chains: Ok(chains), firewalld: true, ..host() };
        assert_eq!(one(&facts, Check::Firewall).level, Level::Ok);
        one(&facts, Check::Firewalld)
    };
    assert_eq!(firewalld(PortFate::Accepted).level, Level::Ok);
    assert_eq!(firewalld(PortFate::Untold { drops: true }).level, Level::Note);
    for port in [PortFate::SomeAccepted, PortFate::Dropped] {
        let finding = firewalld(port);
        assert_eq!(finding.level, Level::Warning);
        assert_eq!(
            finding.mend.unwrap(),
            "firewall-cmd --permanent --add-port=4433/udp && firewall-cmd --reload"
        );
    }
    let chains = || Ok(vec![chain("ip6", "filter", "INPUT", PortFate::Dropped)]);
    let of_ufw = Facts { chains: chains(), ufw: Some(false), ..host() };
    assert_eq!(one(&of_ufw, Check::Firewall).level, Level::Ok);
    assert_eq!(one(&of_ufw, Check::Ufw).mend.unwrap(), "ufw allow 4433/udp");
    assert_eq!(one(&Facts { chains: chains(), ..host() }, Check::Firewall).level, Level::Warning);
}

#[test]
fn a_host_without_the_unit_is_told_nothing_of_it() {
    assert!(of(&Facts { unit_capabilities: None, ..host() }, Check::UnitCapabilities).is_empty());
}

#[test]
fn what_they_have_found_who_were_asked_to_connect_is_told() {
    let at = "203.0.113.9:4433".parse().unwrap();
    let [own, other] = [1, 2].map(|seed| NodeKey::from_seed(&[seed; 32]).node_id());
    let agent = Caller::Agent(NodeKey::from_seed(&[3; 32]).node_id());
    let answered = |node| Ok(Probed::Answered { at, node });
    let other_answers = format!("another node answers there, {other}");
    let rows = [
        (Caller::Relay, answered(own), Level::Ok, "203.0.113.9:4433: the relay has connected to this node"),
        (agent, answered(own), Level::Ok, "203.0.113.9:4433: the agent has connected to this node"),
        (Caller::Relay, answered(other), Level::Error, other_answers.as_str()),
        (agent, answered(other), Level::Error, other_answers.as_str()),
        (
            Caller::Relay,
            Ok(Probed::Silent { at }),
            Level::Error,
            "203.0.113.9:4433: nobody has answered the relay",
        ),
        (agent, Ok(Probed::Silent { at }), Level::Error, "its connection from before is let through"),
        (Caller::Relay, Ok(Probed::Refused), Level::Note, "ask again later"),
        (agent, Ok(Probed::Refused), Level::Note, "the agent does not connect now"),
        (Caller::Relay, Ok(Probed::NotKnown), Level::Note, "does not know how"),
        (agent, Ok(Probed::NotKnown), Level::Note, "of an earlier version"),
        (Caller::Relay, Err("no route".to_owned()), Level::Note, "cannot tell: no route"),
        (agent, Err("no relay".to_owned()), Level::Note, "cannot tell: no relay"),
    ];
    for (by, outcome, level, found) in rows {
        let finding = reachable(CallBack { by, expected: Some(own), outcome });
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.found.contains(found), "{finding:?}");
        let mend = finding.mend.unwrap_or_default();
        assert_eq!(mend.starts_with("let UDP 4433 in "), level == Level::Error, "{mend}");
    }
    let absent = reachable(CallBack { by: agent, expected: None, outcome: Ok(Probed::NotConnected) });
    assert_eq!(absent.level, Level::Note);
    assert!(absent.mend.is_some_and(|mend| mend.starts_with("atlas-relay net peers ")));
}

fn reachable(call_back: CallBack) -> Finding {
    one(&Facts { call_back: Some(call_back), ..host() }, Check::Reachable)
}

#[test]
fn who_does_not_know_who_this_host_is_is_told_that_and_of_no_error() {
    let at = "203.0.113.9:4433".parse().unwrap();
    let node = NodeKey::from_seed(&[1; 32]).node_id();
    let call_back = |outcome| Some(CallBack { by: Caller::Relay, expected: None, outcome });
    let identity = || Err("no identity".to_owned());
    let told = |outcome, port_state| {
        one(
            &Facts { call_back: call_back(outcome), identity: identity(), port_state, ..host() },
            Check::Reachable,
        )
    };
    let answered = told(Ok(Probed::Answered { at, node }), PortState::Taken);
    assert_eq!((answered.level, &answered.mend), (Level::Note, &None), "{answered:?}");
    assert!(answered.found.contains(&format!("{node} answers at {at}")), "{answered:?}");
    let nobody_there = told(Ok(Probed::Silent { at }), PortState::Free);
    assert_eq!((nobody_there.level, &nobody_there.mend), (Level::Note, &None), "{nobody_there:?}");
    assert_eq!(told(Ok(Probed::Silent { at }), PortState::Taken).level, Level::Error);
}

#[test]
fn where_a_firewall_of_this_host_keeps_the_port_out_its_command_mends_that_nobody_has_answered() {
    let at = "203.0.113.9:4433".parse().unwrap();
    let own = NodeKey::from_seed(&[1; 32]).node_id();
    let call_back =
        Some(CallBack { by: Caller::Relay, expected: Some(own), outcome: Ok(Probed::Silent { at }) });
    let chains = Ok(vec![chain("inet", "filter", "input", PortFate::Dropped)]);
    let facts = Facts { call_back: call_back.clone(), chains, ..host() };
    let [reachable, firewall] = [Check::Reachable, Check::Firewall].map(|check| one(&facts, check).mend);
    assert!(reachable.is_some() && reachable == firewall, "{reachable:?}");
    let chains = Ok(vec![chain("inet", "filter", "input", PortFate::Untold { drops: true })]);
    let facts = Facts { call_back: call_back.clone(), chains, ..host() };
    let untold = one(&facts, Check::Reachable).mend.unwrap();
    assert!(untold.starts_with("let UDP 4433 in "), "what shows rules opens nothing: {untold}");
    let facts = Facts { call_back, ufw: Some(false), ..host() };
    assert_eq!(one(&facts, Check::Reachable).mend.unwrap(), "ufw allow 4433/udp");
}

#[test]
fn the_datapath_is_foreseen_with_its_reason() {
    let no_xdp = |interface: &mut Interface| interface.xdp_features = Some(Vec::new());
    let silent = |interface: &mut Interface| interface.xdp_features = None;
    let rows = [
        (host(), Level::Ok, "xdp-native on eth0"),
        (with_interface(no_xdp), Level::Warning, "xdp-generic on eth0: the driver of eth0"),
        (with_interface(silent), Level::Note, "this kernel cannot tell"),
        (
            with_interface(|interface| interface.program = Some((3, false))),
            Level::Warning,
            "userspace: program 3",
        ),
        (Facts { mode: DatapathMode::Userspace, ..host() }, Level::Note, "userspace: asked for"),
        (Facts { mode: DatapathMode::XdpGeneric, ..host() }, Level::Note, "xdp-generic on eth0: asked for"),
        (Facts { has_program: false, ..host() }, Level::Warning, "userspace: this binary"),
        (Facts { interfaces: Ok(Vec::new()), ..host() }, Level::Warning, "no interface to attach to"),
        (with_kernel(|kernel| kernel.release = "5.10.0".into()), Level::Warning, "too old"),
    ];
    for (facts, level, found) in rows {
        let finding = one(&facts, Check::Datapath);
        assert_eq!(finding.level, level, "{finding:?}");
        let by_choice = finding.mend.as_deref().is_some_and(|mend| mend.contains("datapath.mode"));
        assert_eq!(by_choice, found.contains("asked for"), "{finding:?}");
        assert!(finding.found.contains(found), "{finding:?}");
    }
}

#[test]
fn a_relay_that_runs_says_itself_what_it_has() {
    let running = |datapath: &str, why: &str| {
        let agents = vec!["198.51.100.1:5".parse().unwrap(), "203.0.113.7:40001".parse().unwrap()];
        let running = Running { datapath: datapath.into(), why: why.into(), agents };
        Facts { running: Some(running), port_state: PortState::Taken, ..host() }
    };
    assert_eq!(one(&running("xdp-native", "the best there is"), Check::Datapath).level, Level::Ok);
    let chosen = one(&running("userspace", "asked for"), Check::Datapath);
    assert_eq!(chosen.level, Level::Note);
    assert!(chosen.mend.is_some_and(|mend| mend.contains("`datapath.mode` or `--datapath`")));
    let refused = one(&running("xdp-generic", "attaching to eth0: no"), Check::Datapath);
    assert_eq!((refused.level, refused.found.contains("attaching to eth0")), (Level::Warning, true));
    let facts = running("xdp-native", "the best there is");
    assert_eq!(one(&facts, Check::Port).level, Level::Ok);
    let reached = one(&facts, Check::Reached);
    assert_eq!(reached.level, Level::Ok);
    assert!(reached.found.contains("1 of 2") && reached.found.contains("203.0.113.7:40001"), "{reached:?}");
    let nobody =
        Facts { running: Some(Running { agents: Vec::new(), ..facts.running.clone().unwrap() }), ..facts };
    let reached = one(&nobody, Check::Reached);
    assert!(reached.mend.unwrap().contains("--from atlas_1@PUBLIC_ADDRESS:4433"));
}

#[test]
fn where_userspace_is_asked_for_nothing_about_xdp_is_more_than_a_note() {
    let facts = Facts {
        mode: DatapathMode::Userspace,
        has_program: false,
        interfaces: Ok(vec![Interface { up: true, program: Some((9, false)), mtu: 1000, ..interface() }]),
        self_test: SelfTest::Failed("no".into()),
        ..with_kernel(|kernel| (kernel.release, kernel.jit) = ("4.19.0".into(), Some(0)))
    };
    let worst = findings(&facts).iter().map(|finding| finding.level).max();
    assert_eq!(worst, Some(Level::Note), "{:#?}", findings(&facts));
}

#[test]
fn findings_are_told_in_the_order_of_the_list() {
    let facts = Facts {
        interfaces: Ok(vec![interface(), Interface { name: "eth1".into(), ..interface() }]),
        peer: Some(("192.0.2.1:4433".into(), Ok("well".into()))),
        ..host()
    };
    let places: Vec<usize> = findings(&facts)
        .iter()
        .map(|finding| Check::ALL.iter().position(|check| check.name() == finding.check).unwrap())
        .collect();
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(of(&facts, Check::Mtu).len(), 2);
}
