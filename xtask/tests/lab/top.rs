//! `net top` beside the XDP program: what the kernel forwards and drops is to be seen there too.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use relay_userspace::identity::NodeKey;

use super::forwarder::Forwarder;
use super::limit::{LIMIT, SetWhenDropped, receive, send_at_twice_the_limit};
use super::terminal::Terminal;
use super::world::World;

#[test]
fn a_session_that_the_kernel_forwards_and_limits_is_shown_with_path_rate_and_reason() {
    let name = "a_session_that_the_kernel_forwards_and_limits_is_shown_with_path_rate_and_reason";
    let Some(world) = World::new(name) else { return };
    let _relay = Forwarder::Kernel.start_relay(&world, Some(LIMIT));
    let keys = [0, 1].map(|_| NodeKey::generate().unwrap());
    let ids = keys.each_ref().map(NodeKey::node_id);
    let [connector, target] = ids.map(|id| id.to_string().chars().skip("atlas_".len()).take(8).collect());
    let (connector, target): (String, String) = (connector, target);
    let (stop, arrivals) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        scope.spawn(|| send_at_twice_the_limit(&world, &keys[0], ids[1], |_| !stop.load(Ordering::Relaxed)));
        scope.spawn(|| receive(&world, &keys[1], ids[0], &arrivals));
        // The scope waits for the sender, whatever fails below.
        let _stops = SetWhenDropped(&stop);
        let mut top = Terminal::start(&world.deployment.relay.tool("net top").command(), [80, 24]);
        let text = top.until_seen("a session that the kernel forwards and limits", |text| {
            Row::of(text, &connector, &target).is_some_and(|row| {
                row.path == "kernel" && row.rate_bytes_per_s > 0.0 && row.limited_per_s > 0.0
            })
        });
        println!("{text}");
        let line = |title: &str| text.lines().find(|line| line.starts_with(title)).unwrap_or_default();
        assert!(line("Relay ").contains("xdp-native; 2 agents; 1 of "), "{text}");
        assert!(
            line("Relaying").contains("packets/s: kernel ") && !line("Relaying").contains("kernel 0"),
            "{text}"
        );
        let dropped = line("Dropped").split("limited ").nth(1).unwrap_or_else(|| panic!("no reason: {text}"));
        assert!(!dropped.starts_with("0/s"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        top.type_keys("q");
        assert_eq!(top.ended(), Some(0));
        top.until_given_back();
    });
}

/// A session's row, in the columns of 80 characters.
struct Row {
    rate_bytes_per_s: f64,
    limited_per_s: f64,
    path: String,
}

impl Row {
    /// `1.04 MB ████████ 1.05 MB        64 kernel       22 s d9a294bd b0ae5ed7  dc8b584d`
    fn of(text: &str, connector: &str, target: &str) -> Option<Row> {
        let line = text.lines().find(|line| line.contains(connector) && line.contains(target))?;
        let column = |from: usize, to: usize| line.chars().skip(from).take(to - from).collect::<String>();
        Some(Row {
            rate_bytes_per_s: number(&column(0, 7))?,
            limited_per_s: number(&column(25, 34))?,
            path: column(35, 44).trim().to_owned(),
        })
    }
}

/// The digits of an amount, whatever its unit.
fn number(amount: &str) -> Option<f64> {
    amount.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ').parse().ok()
}
