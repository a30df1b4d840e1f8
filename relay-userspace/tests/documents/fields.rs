//! docs/fields.md has every field that listings print as JSON, with what the code says of it.

use std::collections::BTreeMap;

use relay_userspace::agent::{PeersSnapshot, RelayPeer, SessionSnapshot, SessionTraffic, SessionsSnapshot};
use relay_userspace::relay::activity::{Activity, Dropped, Refused, SessionActivity};
use relay_userspace::relay::report::{
    Ban, Bans, Drain, DrainProgress, Interface, Peer, Peers, Session, SessionSide, Sessions, Status, Table,
};
use serde::Serialize;
use serde_json::Value;

use super::text;

/// What one command prints.
struct Listing {
    heading: &'static str,
    /// With every field, and one entry in each list and table.
    sample: Value,
    /// The file that defines it.
    source: &'static str,
    /// The structs whose fields are found below a path.
    structs: &'static [(&'static str, &'static [&'static str])],
}

#[test]
fn the_page_of_fields_has_every_field_that_is_printed_with_its_unit_and_meaning() {
    let page = text("docs/fields.md");
    let mut faults = Vec::new();
    for Listing { heading, sample, source, structs } in listings() {
        let section = page.split_once(&format!("## {heading}\n")).expect(heading).1;
        let section = section.split("\n## ").next().unwrap();
        let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
        let meanings = field_comments(&text(source));
        let mut paths = Vec::new();
        collect_paths("", &sample, &mut paths);
        let row = |path: &String| {
            let (above, field) = path.rsplit_once('.').unwrap_or(("", path));
            let (_, names) = structs.iter().find(|(below, _)| *below == above).expect(path);
            let field = field.trim_end_matches("[]");
            let meaning = names
                .iter()
                .find_map(|name| meanings.get(&((*name).to_owned(), field.to_owned())))
                .unwrap_or_else(|| panic!("{heading}: {path} is not in {source}"));
            assert!(!meaning.contains("[`"), "{meaning}: no links but for rustdoc");
            format!("| `{path}` | {} | {meaning} |", unit(field))
        };
        let expected: Vec<String> = paths.iter().map(row).collect();
        if rows != expected {
            faults.push(format!("put this under {heading:?}:\n{}\n", expected.join("\n")));
        }
    }
    assert!(faults.is_empty(), "docs/fields.md:\n{}", faults.join("\n"));
}

#[test]
fn comments_are_found_by_struct_and_field() {
    let source = "/// Not this.\npub struct One {\n    /// First\n    /// and more.\n    #[serde(default)]\n    pub a: u64,\n}\n\
                  pub struct Two {\n    /// Other.\n    pub a: u64,\n}\n";
    let of = |name: &str, said: &str| ((name.to_owned(), "a".to_owned()), said.to_owned());
    assert_eq!(field_comments(source), BTreeMap::from([of("One", "First and more."), of("Two", "Other.")]));
}

/// The path of each value that is neither an object nor in a list of plain values.
fn collect_paths(path: &str, value: &Value, paths: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            // The keys of a table of reasons are no fields.
            let mut fields: Vec<_> = fields.iter().collect();
            if let [(reason, _)] = fields[..]
                && reason == REASON
            {
                fields.clear();
                paths.push(path.to_owned());
            }
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                collect_paths(&format!("{path}{dot}{name}"), value, paths);
            }
        }
        Value::Array(items) => {
            let [first, ..] = &items[..] else { panic!("{path}: the sample has an entry") };
            collect_paths(&format!("{path}[]"), first, paths);
        }
        _ => paths.push(path.to_owned()),
    }
}

/// Stands for any reason.
const REASON: &str = "REASON";

/// Names have their unit in them.
fn unit(field: &str) -> &'static str {
    let ends = [
        ("bytes_per_s", "bytes/s"),
        ("packets_per_s", "packets/s"),
        ("_per_s", "1/s"),
        ("_s", "s"),
        ("_us", "µs"),
    ];
    let words = ["bytes", "packets", "datagrams"];
    let of_end = ends.into_iter().find_map(|(end, unit)| field.ends_with(end).then_some(unit));
    of_end
        .or_else(|| words.into_iter().find(|word| field.split('_').any(|part| part == *word)))
        .unwrap_or("-")
}

/// What stands above each public field of each struct.
fn field_comments(source: &str) -> BTreeMap<(String, String), String> {
    let (mut found, mut within, mut comment) = (BTreeMap::new(), String::new(), Vec::new());
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            comment.push(text);
        } else if let Some(name) = line.strip_prefix("pub struct ") {
            within = name.split([' ', '(', '<']).next().unwrap().to_owned();
            comment.clear();
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            found.insert((within.clone(), name.to_owned()), comment.join(" "));
            comment.clear();
        } else if !line.starts_with("#[") {
            comment.clear();
        }
    }
    found
}

const REPORT: &str = "relay-userspace/src/relay/report.rs";
const OF_AGENT: &str = "relay-userspace/src/agent/snapshot.rs";

fn listings() -> [Listing; 8] {
    let listing = |heading, sample: Value, source, structs| Listing { heading, sample, source, structs };
    [
        listing("`net peers --json` of a relay", json(&peers()), REPORT, &[("peers[]", &["Peer"])]),
        listing(
            "`net sessions --json` of a relay",
            json(&Sessions { sessions: vec![session()] }),
            REPORT,
            &[("sessions[]", &["Session"]), ("sessions[].sides[]", &["SessionSide"])],
        ),
        listing(
            "`net top --once --json`",
            json(&activity()),
            "relay-userspace/src/relay/activity.rs",
            &[
                ("", &["Activity"]),
                ("dropped[]", &["Dropped"]),
                ("refused[]", &["Refused"]),
                ("sessions[]", &["SessionActivity"]),
            ],
        ),
        listing("`bans --json`", json(&bans()), REPORT, &[("bans[]", &["Ban"])]),
        listing(
            "`xdp status --json`",
            json(&status()),
            REPORT,
            &[
                ("", &["Status"]),
                ("interfaces[]", &["Interface"]),
                ("table", &["Table"]),
                ("drain", &["Drain"]),
            ],
        ),
        listing(
            "`drain --json`",
            json(&DrainProgress { drain: drain(), stopped: false }),
            REPORT,
            &[("", &["Drain", "DrainProgress"])],
        ),
        listing("`net peers --json` of an agent", json(&relays()), OF_AGENT, &[("peers[]", &["RelayPeer"])]),
        listing(
            "`net sessions --json` of an agent",
            json(&agent_sessions()),
            OF_AGENT,
            &[("", &["SessionsSnapshot"]), ("sessions[]", &["SessionSnapshot", "SessionTraffic"])],
        ),
    ]
}

fn json(sample: &impl Serialize) -> Value {
    serde_json::to_value(sample).unwrap()
}

fn reasons() -> BTreeMap<String, u64> {
    BTreeMap::from([(REASON.to_owned(), 1)])
}

fn peers() -> Peers {
    let peer = Peer {
        node_id: String::new(),
        name: String::new(),
        address: String::new(),
        announced: true,
        connected_s: 0,
    };
    Peers { peers: vec![peer] }
}

fn session() -> Session {
    let side = || SessionSide {
        agent: None,
        relay: None,
        packets_kernel: 0,
        packets_userspace: 0,
        bytes: 0,
        last_proof_s: None,
    };
    Session {
        session: String::new(),
        connector: String::new(),
        target: String::new(),
        state: String::new(),
        path: String::new(),
        rate_bytes_per_s: 0,
        age_s: 0,
        sides: [side(), side()],
        limited_packets: 0,
        limited_bytes: 0,
        marked_packets: 0,
    }
}

fn activity() -> Activity {
    Activity {
        dropped: vec![Dropped { reason: String::new(), packets_per_s: 0, packets: 0 }],
        refused: vec![Refused { reason: String::new(), times_per_s: 0, times: 0 }],
        sessions: vec![SessionActivity::default()],
        ..Activity::default()
    }
}

fn bans() -> Bans {
    Bans { bans: vec![Ban { subject: String::new(), kind: String::new(), left_s: 0, why: String::new() }] }
}

fn drain() -> Drain {
    Drain::default()
}

fn status() -> Status {
    Status {
        interfaces: vec![Interface { name: String::new(), mode: String::new() }],
        table: Table::default(),
        kernel: reasons(),
        userspace: reasons(),
        capabilities: Some(vec![String::new()]),
        control: reasons(),
        adopted: reasons(),
        drain: Some(drain()),
        ..Status::default()
    }
}

fn relays() -> PeersSnapshot {
    let relay = RelayPeer {
        node_id: String::new(),
        name: String::new(),
        address: String::new(),
        announced: true,
        connected_s: 0,
        round_trip_us: None,
    };
    PeersSnapshot { peers: vec![relay] }
}

fn agent_sessions() -> SessionsSnapshot {
    let session = SessionSnapshot {
        session: String::new(),
        peer: String::new(),
        role: String::new(),
        relay: String::new(),
        relay_round_trip_us: None,
        moves: 0,
        limited_packets: 0,
        limited_bytes: 0,
        traffic: SessionTraffic::default(),
    };
    SessionsSnapshot { sessions: vec![session], refused: BTreeMap::from([(REASON, 1)]) }
}
