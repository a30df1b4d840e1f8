//! Commands that are run, but not here: by other tests, or by continuous integration itself.

use std::path::Path;

use super::pages::Pages;

/// Who runs a command.
enum By {
    /// The test of the lab with this name, in which this stands.
    Test(&'static str, &'static str),
    /// This step of continuous integration, or of the unit that runs under a real systemd there: a file, and what stands in it.
    /// Where the command chooses tests of the lab, by the beginning of their names, there are such.
    Step(&'static str, &'static str),
}

const DEMO: By = By::Test(
    "without_root_the_demo_shows_the_userspace_datapath_and_says_what_the_rest_needs",
    "demo(folder.path()).arg(\"--report\")",
);

const JOURNAL: By = by_who_has_the_page("journalctl -u atlas-relay | grep session={}");

/// On machines with a real systemd.
const fn by_who_has_the_page(line: &'static str) -> By {
    By::Test("who_has_the_page_alone_runs_a_relay_from_a_checkout_for_two_agents_and_looks_after_it", line)
}

/// On a machine with a real systemd.
const fn by_upstreams_steps(line: &'static str) -> By {
    By::Test("upstreams_steps_give_a_relay_with_upstreams_unit_and_with_ours", line)
}

/// Those of the whole workspace, which those of a package are among.
const TESTS: By = By::Step("xtask/src/test.rs", "test --workspace --no-fail-fast");

const ELSEWHERE: &[(&str, By)] = &[
    ("cargo xtask build", By::Step("xtask/src/ci.rs", "build::build(workspace, ")),
    ("cargo xtask test", By::Step("xtask/src/ci.rs", "test::run_built(workspace, ")),
    ("cargo xtask test -- unpaced_quic", TESTS),
    (
        "cargo xtask test --long -- quic_in",
        By::Step("xtask/src/ci.rs", "Selection { long: true, filter: Some(\"quic_in\""),
    ),
    ("cargo xtask bench --quick", By::Step("xtask/src/ci.rs", "bench::Selection { quick: true, ")),
    ("cargo xtask bench", By::Step("xtask/src/ci.rs", "bench::run(workspace, Consent::Install, &whole)")),
    ("cargo test -p relay-common", TESTS),
    ("cargo test -p relay-userspace --lib", TESTS),
    ("cargo test -p relay-userspace", TESTS),
    ("cargo test -p relay-common-loom", TESTS),
    (
        "cargo doc -p relay-userspace --no-deps --open",
        By::Step("xtask/src/ci.rs", "words(\"doc -p relay-userspace --no-deps --open\")"),
    ),
    ("cargo xtask demo", By::Step("xtask/src/ci.rs", "demo::run(&[], None)")),
    ("cargo xtask demo --report FILE", DEMO),
    ("cargo xtask dist", By::Step("xtask/src/ci.rs", "dist::run(workspace, ")),
    (
        "ExecStop=/usr/local/bin/atlas stop --unless-restarting --unit %n",
        By::Step(
            "deploy/systemd/atlas-relay.service",
            "ExecStop=-+/usr/local/bin/atlas stop --unless-restarting --unit %n",
        ),
    ),
    ("journalctl -u atlas-relay | grep session=<id>", JOURNAL),
    ("journalctl -u atlas-relay | grep session=5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a", JOURNAL),
    (
        "apt-get purge --yes atlas-relay",
        By::Test(
            "a_newer_package_goes_on_with_the_sessions_of_an_older_one_and_a_removed_one_leaves_state_alone",
            "apt-get purge --yes atlas-relay",
        ),
    ),
    (
        "ufw allow 4433/udp",
        By::Test(
            "a_flood_of_misses_leaves_no_entry_in_connection_tracking_with_the_rules_for_ufw",
            "ufw allow 4433/udp",
        ),
    ),
    (
        "systemd-analyze security --offline=yes deploy/systemd/atlas-relay.service",
        by_who_has_the_page("systemd-analyze security --offline=yes deploy/systemd/atlas-relay.service"),
    ),
    ("systemctl restart atlas-agent", by_who_has_the_page("systemctl restart atlas-agent")),
    ("systemctl stop atlas-agent", by_who_has_the_page("systemctl stop atlas-agent")),
    ("systemctl edit atlas-relay", by_upstreams_steps("systemctl edit atlas-relay")),
    ("systemctl stop atlas-relay", by_upstreams_steps("systemctl stop atlas-relay")),
    ("systemctl start atlas-relay", by_upstreams_steps("systemctl start atlas-relay")),
    (
        "sudo -u atlas-relay atlas id rotate --yes",
        by_upstreams_steps("sudo -u atlas-relay atlas id rotate --yes"),
    ),
    ("systemctl restart atlas-relay", by_upstreams_steps("systemctl restart atlas-relay")),
    (
        "systemctl reload atlas-relay",
        By::Test(
            "a_newer_package_goes_on_with_the_sessions_of_an_older_one_and_a_removed_one_leaves_state_alone",
            "systemctl reload atlas-relay",
        ),
    ),
];

/// Notes them as run.
///
/// # Panics
/// Who is said to run one does not exist.
pub fn note(pages: &mut Pages, root: &Path) {
    let sources: Vec<String> = std::fs::read_dir(root.join("xtask/tests/lab"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    for (command, by) in ELSEWHERE {
        pages.is_run_elsewhere(command);
        match by {
            By::Test(name, part) => {
                let begin = format!("#[test]\nfn {name}(");
                let rest = sources.iter().find_map(|source| source.split_once(&begin)).map(|(_, rest)| rest);
                let body = rest.and_then(|rest| rest.split_once("\n}\n")).map(|(body, _)| body);
                assert!(body.is_some_and(|body| body.contains(part)), "`{command}`: no test {name} runs it");
            }
            By::Step(file, step) => {
                let text = std::fs::read_to_string(root.join(file)).unwrap();
                assert!(text.contains(step), "`{command}`: {file} has no `{step}`");
                let chosen = command.split_once(" -- ").map(|(_, chosen)| chosen);
                let has = |chosen| sources.iter().any(|source| source.contains(&format!("\nfn {chosen}")));
                assert!(chosen.is_none_or(has), "`{command}`: no test begins with {chosen:?}");
            }
        }
    }
}
