//! `net top`, as an operator sees it.

use std::process::Child;

use serde_json::Value;

use super::terminal::Terminal;
use super::*;

/// A relay with two agents, of which one pings the other.
struct Busy {
    relay: Node,
    relaying: Child,
    asking: Node,
    asked: Node,
    others: Vec<Child>,
    words: String,
}

impl Busy {
    fn start() -> Busy {
        let relay = Node::relay();
        let port = free_port();
        let words = format!("net listen --port {port} --datapath userspace");
        let relaying = relay.start(&words);
        relay.until_it_answers("net peers");
        let relays =
            format!("[network]\nrelays = [\"127.0.0.1:{port}\"]\n[transport]\nenable_relay = true\n");
        let (asking, asked) = (Node::with_identity(), Node::with_identity());
        assert_eq!(asking.run("id set-name alice").code, 0);
        asking.configure(&relays);
        asked.configure(&format!("{relays}[agent]\naccept = [\"{}\"]\n", asking.id()));
        let listening = asked.start("net listen");
        relay.until_logged("agent announced");
        let mut busy = Busy { relay, relaying, asking, asked, others: vec![listening], words };
        busy.ping();
        busy
    }

    /// One more session.
    fn ping(&mut self) {
        let words = format!("net ping {} --count 1000000 --interval-ms 5", self.asked.id());
        self.others.push(self.asking.start(&words));
    }

    fn top(&self, size: [u16; 2]) -> Terminal {
        let mut command = self.relay.command();
        command.args(["net", "top"]);
        Terminal::start(&command, size)
    }

    /// The first digits of an agent's id.
    fn digits(node: &Node) -> String {
        node.id().get("atlas_".len()..).unwrap().chars().take(8).collect()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for process in self.others.iter_mut().chain([&mut self.relaying]) {
            let _ended = process.kill();
            let _ended = process.wait();
        }
    }
}

#[test]
fn a_session_that_relays_is_shown_sorted_filtered_and_left_again() {
    let busy = Busy::start();
    let [asking, asked] = [&busy.asking, &busy.asked].map(Busy::digits);
    let mut top = busy.top([80, 24]);
    let row = |text: &str| {
        let row = text.lines().find(|line| line.contains(&asking) && line.contains(&asked));
        row.filter(|line| line.contains("userspace") && !line.starts_with("    0 B")).map(str::to_owned)
    };
    let text = top.until_seen("a session that relays", |text| row(text).is_some());
    assert!(row(&text).unwrap().contains("1.05 MB"), "its limit: {text}");
    for part in ["userspace; 2 agents; 1 of 16 sessions", "RATE/s TREND", "1 of 1, by rate", "q quit"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80));

    top.type_keys("a");
    top.until_seen("the order", |text| text.contains("1 of 1, by age"));
    top.type_keys("/nobody");
    top.until_seen("no session", |text| text.contains("0 with \"nobody\"") && row(text).is_none());
    top.type_keys("\r");
    top.until_seen("the keys", |text| text.contains("q quit"));
    top.type_keys("/\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}ALICE\r");
    top.until_seen("the session of that name", |text| {
        text.contains("1 with \"ALICE\"") && row(text).is_some()
    });
    top.type_keys("q");
    assert_eq!(top.ended(), Some(0));
    top.until_given_back();
}

#[test]
fn where_there_are_more_sessions_than_lines_keys_scroll_to_the_others() {
    let mut busy = Busy::start();
    busy.ping();
    // Room for one.
    let mut top = busy.top([80, 9]);
    let text = top.until_seen("the first of two", |text| text.contains("1 to 1 of 2, by rate"));
    assert!(text.contains("Up Down PgUp PgDn scroll"), "{text}");
    let listed: Value = serde_json::from_str(&busy.relay.run("net sessions --json").stdout).unwrap();
    let sessions = listed["sessions"].as_array().unwrap().iter();
    let mut ids: Vec<String> =
        sessions.map(|session| session["session"].as_str().unwrap().chars().take(8).collect()).collect();
    ids.sort();
    let [first, second] = &ids[..] else { panic!("{listed}") };
    let up_down_and_pages =
        [("i", 1, first), ("\u{1b}[B", 2, second), ("\u{1b}[5~", 1, first), ("\u{1b}[6~", 2, second)];
    for (keys, place, session) in up_down_and_pages {
        top.type_keys(keys);
        let line = format!("{place} to {place} of 2, by id");
        top.until_seen(&line, |text| text.contains(&line) && text.contains(session));
    }
    top.type_keys("q");
    assert_eq!(top.ended(), Some(0));
}

#[test]
fn signals_and_control_c_give_the_terminal_back() {
    let busy = Busy::start();
    for signalled in [Some("TERM"), Some("INT"), None] {
        let mut top = busy.top([80, 24]);
        top.until_taken();
        top.until_seen("the view", |text| text.contains("q quit"));
        match signalled {
            Some(name) => signal(&top.program, name),
            None => top.type_keys("\u{3}"),
        }
        assert_eq!(top.ended(), Some(0), "{signalled:?}");
        top.until_given_back();
    }
}

#[test]
fn a_terminal_of_any_size_will_do() {
    let busy = Busy::start();
    for size in [[200, 50], [79, 10], [40, 8], [20, 5], [3, 2], [1, 1]] {
        let mut top = busy.top(size);
        top.until_taken();
        top.type_keys("q");
        assert_eq!(top.ended(), Some(0), "{size:?}: {}", top.text());
        top.until_given_back();
    }
    let wide = busy.top([120, 24]);
    wide.until_seen("a name", |text| text.contains(&format!("{} alice", Busy::digits(&busy.asking))));
}

#[test]
fn a_relay_that_goes_is_told_of_and_one_that_comes_back_is_shown_again() {
    let mut busy = Busy::start();
    let top = busy.top([80, 24]);
    top.until_seen("a session", |text| text.contains("1 of 1, by rate"));
    busy.relaying.kill().unwrap();
    busy.relaying.wait().unwrap();
    top.until_seen("why there is no answer", |text| {
        text.contains("No answer, this is old: no daemon is running")
    });
    busy.relaying = busy.relay.start(&busy.words);
    top.until_seen("the relay", |text| !text.contains("No answer") && text.contains("by rate"));
}

#[test]
fn one_view_is_printed_without_a_terminal_for_people_and_for_programs() {
    let busy = Busy::start();
    let [asking, asked] = [&busy.asking, &busy.asked];
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let json = loop {
        let json: Value = serde_json::from_str(&busy.relay.run("net top --once --json").stdout).unwrap();
        if json["bytes_per_s"].as_u64() > Some(0) {
            break json;
        }
        assert!(std::time::Instant::now() < deadline, "{json}");
    };
    let session = &json["sessions"][0];
    assert_eq!(session["connector"], asking.id());
    assert_eq!(
        (&session["connector_name"], &session["forwarded_by"]),
        (&"alice".into(), &"userspace".into())
    );
    assert_eq!((&session["target"], &session["bytes_per_s"]), (&asked.id().into(), &json["bytes_per_s"]));
    assert!(session["packets_per_s"].as_u64() > Some(0), "{json}");
    assert!(json["interval_s"].as_f64() >= Some(1.0), "{json}");
    assert_eq!((&json["datapath"], &json["agents"]), (&"userspace".into(), &2.into()));

    let view = busy.relay.run("net top --once").stdout;
    let rows: Vec<&str> = view.lines().collect();
    assert_eq!(rows.len(), 8, "the head, the titles and a session: {view}");
    assert!(rows[6].starts_with(" RATE/s TREND") && rows[7].contains(&Busy::digits(asking)), "{view}");
    assert!(rows.iter().all(|row| row.chars().count() <= 80), "{view}");
}

#[test]
fn without_a_terminal_or_a_relay_it_says_what_to_do() {
    let relay = Node::relay();
    relay.run("net top").fails_with(&["net top needs a terminal", "net top --once"]);
    relay.run("net top --once").fails_with(&["no daemon is running here"]);
    assert_eq!(relay.run("net top --json").code, 2, "JSON is for --once");
    assert_eq!(relay.run("net top --once --every 0").code, 2);

    let agent = Node::with_identity();
    let relays = format!("[network]\nrelays = [\"127.0.0.1:{}\"]\n", free_port());
    agent.configure(&format!("{relays}[transport]\nenable_relay = true\n"));
    let mut running = agent.start("net listen");
    agent.until_it_answers("net peers");
    agent.run("net top --once").fails_with(&["this daemon is an agent"]);
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(10)), Some(0));
}
