use std::path::Path;
use std::time::Duration;

use super::{
    AtlasRoot, Config, ConfigError, DatapathMode, ForwardProtocol, HostPort, Origin, Profile, RelayAddress,
    Role,
};
use crate::relay::datapath::Limit;

const NODE: &str = "atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("config.toml"), &AtlasRoot::at("/var/lib/atlas"))
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// The configuration of upstream's relay deployment page.
const UPSTREAM_RELAY: &str = r#"
[network]
port = 4433
bootstrap = []
relays = []

[transport]
max_connections = 200
max_streams_per_conn = 100
idle_timeout = 300
enable_relay = true
offer_relay = true
relay_bandwidth_limit = 1048576

[security]
ban_duration_secs = 3600
handshake_limit = 50
max_clock_drift_secs = 300

[rate_limit]
per_peer_per_minute = 120

[exec]
enabled = false
"#;

#[test]
fn upstreams_relay_configuration_makes_a_relay() {
    let config = parse(UPSTREAM_RELAY).unwrap();
    assert_eq!(config.role(), Role::Relay);
    assert_eq!(config.network.port, 4433);
    assert_eq!(config.transport.max_connections, 200);
    assert_eq!(config.transport.idle_timeout, Duration::from_secs(300));
    assert_eq!(config.transport.relay_bandwidth_limit, Limit::per_second(1_048_576));
    assert_eq!(config.security.ban_duration, Duration::from_secs(3600));
    assert_eq!(config.security.handshake_limit, 50);
    assert_eq!(config.security.max_clock_drift, Duration::from_secs(300));
    assert_eq!(config.rate_limit.per_peer_per_minute, 120);
}

#[test]
fn quotas_that_are_not_written_follow_from_the_connections() {
    let quotas =
        |connections: u32| parse(&format!("[transport]\nmax_connections = {connections}\n")).unwrap().quotas;
    let of_many = quotas(1000);
    assert_eq!((of_many.connections_per_prefix, of_many.announced_agents), (500, 1000));
    let of_few = quotas(10);
    assert_eq!((of_few.connections_per_prefix, of_few.announced_agents), (32, 10));
}

#[test]
fn an_agent_can_forward_ports_as_long_as_it_runs() {
    let forward = |keys: &str| parse(&format!("[[agent.forward]]\n{keys}"));
    let complete = format!("listen = \"127.0.0.1:8080\"\npeer = \"{NODE}\"\nto = \"intranet:80\"\n");
    let tcp = forward(&complete).unwrap().agent.forward;
    assert_eq!((tcp.len(), tcp[0].protocol), (1, ForwardProtocol::Tcp));
    assert_eq!(
        (tcp[0].listen.to_string(), tcp[0].to.to_string()),
        ("127.0.0.1:8080".into(), "intranet:80".into())
    );
    assert_eq!(tcp[0].peer.to_string(), NODE);
    let udp = forward(&format!("{complete}protocol = \"udp\"\n")).unwrap().agent.forward;
    assert_eq!(udp[0].protocol, ForwardProtocol::Udp);
    let error = forward(&format!("{complete}protocol = \"sctp\"\n")).unwrap_err().to_string();
    assert_eq!(error, "config.toml:5: agent.forward.protocol: expected tcp or udp, not \"sctp\"");
    let error = forward("listen = \"127.0.0.1:8080\"\n").unwrap_err().to_string();
    assert!(error.contains("expected listen = \"HOST:PORT\", peer = \"atlas_...\" and to"), "{error}");
}

#[test]
fn keys_without_effect_are_named_with_their_lines() {
    assert_eq!(parse(UPSTREAM_RELAY).unwrap().warnings, []);
    let text = "[stun]\nservers = [\"192.0.2.1:3478\"]\n[exec]\ndefault_timeout_secs = 3\n\
                [exec_security]\nmode = \"deny\"\nstrict_inline_eval = true\n";
    let warnings: Vec<String> = parse(text).unwrap().warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "2: stun.servers: no effect: the relay tells an agent its address",
            "4: exec.default_timeout_secs: no effect: this program never executes commands",
            "6: exec_security.mode: no effect: this program never executes commands",
            "7: exec_security.strict_inline_eval: no effect: this program never executes commands",
        ]
    );
}

#[test]
fn keys_of_the_other_role_are_pointed_out() {
    let keys = |text: &str| -> Vec<String> {
        parse(text).unwrap().warnings.into_iter().map(|warning| warning.key).collect()
    };
    let of_agents = format!(
        "[network]\nrelays = [\"192.0.2.1:4433\"]\n[agent]\naccept = [\"{NODE}\"]\npacing = true\necn = true\n"
    );
    let of_relays = "[datapath]\nmode = \"userspace\"\n";
    let relay = "transport = { enable_relay = true, offer_relay = true }\n";
    assert_eq!(
        keys(&format!("{relay}{of_agents}{of_relays}")),
        ["network.relays", "agent.accept", "agent.pacing", "agent.ecn"]
    );
    assert_eq!(keys(&format!("{of_agents}{of_relays}")), ["datapath.mode"]);
}

#[test]
fn an_empty_file_is_an_agent_with_the_documented_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.role(), Role::Agent);
    assert_eq!(config.network.port, 4433);
    assert!(config.network.relays.is_empty());
    assert!(!config.transport.enable_relay);
    assert_eq!(config.transport.relay_bandwidth_limit, Limit::per_second(1_048_576));
    assert_eq!(config.datapath.mode, DatapathMode::Auto);
    assert_eq!((config.datapath.max_sessions, config.datapath.readers), (65_536, 0));
    assert_eq!(config.datapath.bpffs.as_deref(), Some(Path::new("/sys/fs/bpf/atlas-relay")));
    assert_eq!(config.admin.socket, Path::new("/var/lib/atlas/state/admin.sock"));
    assert!(config.agent.accept.is_empty());
    assert!(config.agent.pacing && config.agent.ecn);
    assert!(config.warnings.is_empty());
}

#[test]
fn a_place_for_pins_is_an_absolute_path_or_nothing() {
    let bpffs = |text: &str| parse(text).map(|config| config.datapath.bpffs);
    assert_eq!(bpffs("[datapath]\nbpffs = \"\"\n").unwrap(), None);
    assert_eq!(bpffs("[datapath]\nbpffs = \"/run/bpf\"\n").unwrap(), Some("/run/bpf".into()));
    assert_eq!(
        refusal("[datapath]\nbpffs = \"run/bpf\"\n"),
        "config.toml:2: datapath.bpffs: expected the absolute path of a directory in a bpffs (empty: never)"
    );
}

#[test]
fn an_agent_can_be_told_not_to_pace_and_not_to_ask_for_marks() {
    let agent = |text: &str| parse(text).unwrap().agent;
    let unpaced = agent("[agent]\npacing = false\n");
    assert_eq!((unpaced.pacing, unpaced.ecn), (false, true));
    let unmarked = agent("[agent]\necn = false\n");
    assert_eq!((unmarked.pacing, unmarked.ecn), (true, false));
}

#[test]
fn an_agents_configuration_says_who_may_reach_what() {
    let text = format!(
        r#"
        [network]
        relays = ["192.0.2.1:4433", "{NODE}@relay.example.net:443"]
        [transport]
        enable_relay = true
        [agent]
        accept = ["{NODE}"]
        [[agent.allow]]
        peer = "{NODE}"
        to = "127.0.0.1:9000"
        "#
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.network.relays[0].node, None);
    assert_eq!(config.network.relays[1].to_string(), format!("{NODE}@relay.example.net:443"));
    assert_eq!(config.agent.accept[0].to_string(), NODE);
    assert_eq!(config.agent.allow[0].to.to_string(), "127.0.0.1:9000");
    assert!(config.warnings.is_empty());
}

#[test]
fn a_permit_is_for_tcp_unless_it_says_udp() {
    let rule = format!("[agent]\naccept = [\"{NODE}\"]\n[[agent.allow]]\npeer = \"{NODE}\"\nto = \"a:1\"\n");
    let protocol = |more: &str| parse(&format!("{rule}{more}")).unwrap().agent.allow[0].protocol;
    assert_eq!(protocol(""), ForwardProtocol::Tcp);
    assert_eq!(protocol("protocol = \"udp\"\n"), ForwardProtocol::Udp);
    let error = refusal(&format!("{rule}protocol = \"icmp\"\n"));
    assert!(error.starts_with("config.toml:6: agent.allow.protocol: expected tcp or udp"), "{error}");
}

#[test]
fn a_permit_for_a_peer_that_may_not_connect_is_pointed_out() {
    let text = format!("[[agent.allow]]\npeer = \"{NODE}\"\nto = \"127.0.0.1:9000\"\n");
    let warnings = parse(&text).unwrap().warnings;
    assert_eq!(warnings[0].line, 2);
    assert!(warnings[0].text.contains("agent.accept"), "{}", warnings[0]);
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    assert_eq!(
        refusal("[transport]\nidle_timout = 3\n"),
        "config.toml:2: transport.idle_timout: unknown key; did you mean idle_timeout?"
    );
    assert_eq!(refusal("\n[transprt]\n"), "config.toml:2: transprt: unknown key; did you mean transport?");
    assert_eq!(
        refusal("[admin]\nzzzzzzzzzzzz = 1\n"),
        "config.toml:2: admin.zzzzzzzzzzzz: unknown key; known here: socket"
    );
    assert_eq!(refusal("quota = 1\n"), "config.toml:1: quota: unknown key; did you mean quotas?");
    assert_eq!(
        refusal("[[agent.allow]]\npeer = \"x\"\nt0 = \"y\"\n"),
        "config.toml:3: agent.allow.t0: unknown key; did you mean to?"
    );
}

#[test]
fn a_value_of_the_wrong_type_names_what_was_expected() {
    assert_eq!(
        refusal("[network]\n\nport = \"http\"\n"),
        "config.toml:3: network.port: expected a UDP port, 1 to 65535, not the text \"http\""
    );
    assert_eq!(
        refusal("transport.enable_relay = 1\n"),
        "config.toml:1: transport.enable_relay: expected true or false, not 1"
    );
    assert_eq!(refusal("network = 5\n"), "config.toml:1: network: expected a table, [network], not 5");
    assert_eq!(
        refusal("[agent]\nallow = [\"127.0.0.1:80\"]\n"),
        "config.toml:2: agent.allow: expected tables with both peer = \"atlas_...\" and to = \"HOST:PORT\", \
         not the text \"127.0.0.1:80\""
    );
    assert_eq!(
        refusal("[agent]\naccept = [\n  5\n]\n"),
        "config.toml:3: agent.accept: expected a list of node ids, such as [\"atlas_...\"], not 5"
    );
}

#[test]
fn a_value_that_people_write_otherwise_is_refused_with_an_example() {
    assert_eq!(
        refusal("[transport]\nrelay_bandwidth_limit = \"1MiB\"\n"),
        "config.toml:2: transport.relay_bandwidth_limit: expected bytes per second (1048576 is 1 MiB/s; \
         0: unlimited), 0 to 1000000000000, not the text \"1MiB\""
    );
    assert_eq!(
        refusal("[network]\nrelays = \"192.0.2.1:4433\"\n"),
        "config.toml:2: network.relays: expected a list of HOST:PORT or NODE_ID@HOST:PORT, such as \
         [\"192.0.2.1:4433\"], not the text \"192.0.2.1:4433\""
    );
}

#[test]
fn a_file_of_another_users_says_whose_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut path = directory.path().join("config.toml");
    std::fs::write(&path, "").unwrap();
    // Root can give a file away; for all others there is root's.
    if std::os::unix::fs::chown(&path, Some(65_534), None).is_err() {
        path = "/".into();
    }
    let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let error = ConfigError::Read { path, source }.to_string();
    assert!(error.contains("; it belongs to ") && error.contains(": run this as that user"), "{error}");
}

#[test]
fn a_value_out_of_range_names_the_range() {
    assert_eq!(
        refusal("[network]\nport = 70000\n"),
        "config.toml:2: network.port: expected a UDP port, 1 to 65535, not 70000"
    );
    assert_eq!(
        refusal("[transport]\nrelay_bandwidth_limit = -1\n"),
        "config.toml:2: transport.relay_bandwidth_limit: expected bytes per second (1048576 is 1 MiB/s; \
         0: unlimited), 0 to 1000000000000, not -1"
    );
    let too_large = "99999999999999999999";
    assert_eq!(
        refusal(&format!("[network]\nport = {too_large}\n")),
        format!("config.toml:2: network.port: expected a UDP port, 1 to 65535, not {too_large}")
    );
    assert_eq!(
        refusal("[quotas]\nmessage_bytes = 60_000\nconnection_bytes = 2048\n"),
        "config.toml:3: quotas.connection_bytes: a connection has to have room for a message: expected at least \
         quotas.message_bytes, 60000, not 2048"
    );
}

#[test]
fn what_is_not_toml_names_the_line() {
    let error = refusal("[network]\nport = = 3\n");
    assert!(error.starts_with("config.toml:2: not TOML: "), "{error}");
}

#[test]
fn what_stands_there_twice_is_named_with_what_to_do() {
    let table = "[transport]\nenable_relay = true\n\n[network]\n\n[transport]\nidle_timeout = 60\n";
    assert_eq!(
        refusal(table),
        "config.toml:6: not TOML: duplicate key transport: put its keys into the table that is there already"
    );
    assert_eq!(
        refusal("[network]\nport = 1\nport = 2\n"),
        "config.toml:3: not TOML: duplicate key port: remove one of the two"
    );
}

#[test]
fn the_admin_socket_is_found_in_a_file_that_is_unsound_and_in_the_usual_place_where_it_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let (root, path) = (AtlasRoot::at(directory.path()), directory.path().join("config.toml"));
    assert!(matches!(Config::admin_socket(&path, &root), (socket, None) if socket == root.admin_socket()));
    let named = "[admin]\nsocket = \"/run/relay.sock\"\n";
    for (unsound, finds_it) in [
        (format!("{named}[network]\nport = = 3\n"), true),
        (format!("[network]\nport = = 3\n{named}"), true),
        (format!("{named}[transport]\noffer_relay = true\n"), true),
        (format!("{named}colour = 1\n"), true),
        (format!("[network]\n[network]\n{named}"), true),
        ("[admin]\nsocket = 3\n".to_owned(), false),
        ("[admin]\nsocket = \"\"\n".to_owned(), false),
        ("\u{0}".to_owned(), false),
    ] {
        std::fs::write(&path, &unsound).unwrap();
        let (socket, error) = Config::admin_socket(&path, &root);
        assert!(error.is_some(), "{unsound}");
        let expected = if finds_it { "/run/relay.sock".into() } else { root.admin_socket() };
        assert_eq!(socket, expected, "{unsound}");
    }
    std::fs::write(&path, named).unwrap();
    assert!(
        matches!(Config::admin_socket(&path, &root), (socket, None) if socket == std::path::Path::new("/run/relay.sock"))
    );
}

#[test]
fn offering_to_relay_without_using_relays_is_refused() {
    let error = refusal("[transport]\noffer_relay = true\n");
    assert_eq!(
        error,
        "config.toml:2: transport.offer_relay: a relay must also use relays: set transport.enable_relay = true"
    );
}

#[test]
fn execution_is_refused() {
    assert!(refusal("[exec]\nenabled = true\n").starts_with("config.toml:2: exec.enabled: "));
}

#[test]
fn lists_name_the_line_of_the_faulty_entry() {
    let error = refusal("[network]\nrelays = [\n  \"a:1\",\n  \"b\",\n]\n");
    assert!(error.starts_with("config.toml:4: network.relays: expected HOST:PORT"), "{error}");
    let error = refusal("[agent]\naccept = [\"node_1\"]\n");
    assert!(error.starts_with("config.toml:2: agent.accept: "), "{error}");
    let error = refusal("[datapath]\ninterfaces = [\"a/b\"]\n");
    assert!(error.starts_with("config.toml:2: datapath.interfaces: "), "{error}");
    let error = refusal("[network]\nadvertise = [\"0.0.0.0:4433\"]\n");
    assert!(error.starts_with("config.toml:2: network.advertise: "), "{error}");
}

#[test]
fn a_permit_needs_both_its_keys() {
    let error = refusal(&format!("[[agent.allow]]\npeer = \"{NODE}\"\n"));
    assert!(error.contains("expected both peer"), "{error}");
}

#[test]
fn a_missing_file_says_what_to_create() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    let error = Config::load(&path, &AtlasRoot::at(directory.path())).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: no such file", path.display())), "{error}");
}

#[test]
fn addresses_are_names_or_ip_addresses_with_a_port() {
    for good in ["relay.example.net:4433", "192.0.2.1:1", "[2001:db8::1]:4433"] {
        assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
    }
    for bad in
        ["relay", "relay:", "relay:0", "relay:65536", ":4433", "2001:db8::1:4433", "[a]:1", "a b:1", "a/b:1"]
    {
        assert!(bad.parse::<HostPort>().is_err(), "{bad}");
    }
    assert_eq!(
        "192.0.2.1:7".parse::<HostPort>().unwrap().socket_addr(),
        Some("192.0.2.1:7".parse().unwrap())
    );
    assert_eq!("example.net:7".parse::<HostPort>().unwrap().socket_addr(), None);
    assert!("atlas_12@192.0.2.1:4433".parse::<RelayAddress>().is_err());
}

#[test]
fn a_profile_survives_being_written_and_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = AtlasRoot::at(directory.path()).profile();
    assert_eq!(Profile::load(&path).unwrap(), Profile::default());
    let named = Profile::default().with_name(" relay-01 ").unwrap();
    named.save(&path).unwrap();
    assert_eq!(Profile::load(&path).unwrap().name, "relay-01");
}

#[test]
fn a_name_that_could_confuse_a_terminal_is_refused() {
    let long = "x".repeat(Profile::MAX_NAME_BYTES + 1);
    for name in ["", "  ", "a\u{1b}[2Jb", "a\nb", &long] {
        assert!(Profile::default().with_name(name).is_err(), "{name:?}");
    }
}

#[test]
fn a_value_is_known_to_come_from_its_line_or_to_be_the_default() {
    let text = "[network]\n\nport = 5\nrelays = []\n[[agent.allow]]\npeer = \"";
    let config = parse(&format!("{text}{NODE}\"\nto = \"127.0.0.1:1\"\n")).unwrap();
    let line = |line| Origin::File { path: Path::new("config.toml"), line };
    assert_eq!(config.origins.of("network.port"), line(3));
    assert_eq!(config.origins.of("agent.allow"), line(5));
    assert_eq!(config.origins.of("network.relays"), Origin::Default, "an empty list says nothing");
    assert_eq!(config.origins.of("transport.idle_timeout"), Origin::Default);
}
