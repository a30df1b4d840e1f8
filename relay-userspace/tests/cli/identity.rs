//! Who a node is: making, showing and naming it, and who may use its files.

use super::*;

#[test]
fn an_identity_is_made_once_shown_and_named() {
    let node = Node::new();
    let made = node.run("id init");
    assert_eq!(made.code, 0, "{made:?}");
    let id = made.stdout.lines().next().unwrap().strip_prefix("Node ID  : ").unwrap().to_owned();
    let mode = |path: &str| fs::metadata(node.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("keys"), mode("keys/node-key.pem")), (0o700, 0o600));

    let again = node.run("id init");
    again.fails_with(&["node-key.pem exists", "atlas-relay id rotate"]);

    assert_eq!(node.run("id set-name relay-01").code, 0);
    let shown = node.run("id show");
    let [first, second] = shown.stdout.lines().take(2).collect::<Vec<_>>()[..] else { panic!("{shown:?}") };
    assert_eq!(first, format!("Node ID  : {id}"), "the whole: it is for others to type");
    assert_eq!(second, "Name     : relay-01");
    let json: serde_json::Value = serde_json::from_str(&node.run("id show --json").stdout).unwrap();
    assert_eq!((json["node_id"].as_str(), json["name"].as_str()), (Some(id.as_str()), Some("relay-01")));

    node.run_words(&["id", "set-name", "a\u{1b}[2J"]).fails_with(&["1 to 64 bytes of printable text"]);
}

#[test]
fn without_an_identity_every_command_that_needs_one_says_how_to_make_it() {
    let node = Node::new();
    for words in [
        "id show",
        "id set-name x",
        "net listen",
        &format!("net ping {OTHER}"),
        &format!("net connect {OTHER}"),
    ] {
        node.run(words).fails_with(&["no identity", "atlas-relay id init"]);
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let node = Node::with_identity();
    fs::set_permissions(node.path("keys/node-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    node.run("id show").fails_with(&["0644", "chmod 600"]);
}

#[test]
fn what_belongs_to_another_user_is_refused_with_that_users_name() {
    if !rustix::process::geteuid().is_root() {
        let name = "what_belongs_to_another_user_is_refused_with_that_users_name";
        return skipping::skip(name, "needs root, to be another user for a while");
    }
    let node = Node::relay();
    // Where an ordinary user can run it.
    let copy = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let program = copy.path().join("atlas-relay");
    fs::copy(BINARY, &program).unwrap();
    let as_nobody = |words: &str| {
        let mut command = Command::new(&program);
        command.args(words.split_whitespace()).env("ATLAS_ROOT", node.path("")).uid(65_534).gid(65_534);
        Finished::of(command.output().unwrap())
    };
    let run_as_root = "belongs to user root: run this as that user, with `sudo -u root`";
    for words in ["id show", "net listen", "net peers", "config check"] {
        as_nobody(words).fails_with(&["ermission denied", run_as_root]);
    }
    // All may get at the directories, and not at what is in them.
    for directory in ["", "keys", "state"] {
        fs::set_permissions(node.path(directory), fs::Permissions::from_mode(0o755)).unwrap();
    }
    as_nobody("id show").fails_with(&["node-key.pem", "; it belongs to user root"]);
    let mut running = node.start("net listen --port 0 --datapath userspace");
    node.until_it_answers("net peers");
    as_nobody("net peers").fails_with(&["admin.sock", "; it belongs to user root"]);
    terminate(&running);
    assert_eq!(wait(&mut running, Duration::from_secs(5)), Some(0));
}

#[test]
fn without_a_root_the_variable_to_set_is_named() {
    let output =
        Command::new(BINARY).args(["id", "show"]).env_remove("ATLAS_ROOT").env_remove("HOME").output();
    Finished::of(output.unwrap()).fails_with(&["ATLAS_ROOT"]);
}
