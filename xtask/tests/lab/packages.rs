//! The packages: the same each time, and the Debian one on a clean machine, installed, upgraded, rolled back and removed.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use xtask::dist::{self, Packages};
use xtask::lab::Lab;
use xtask::test::privileged_or_skip;
use xtask::tool::Tool;
use xtask::workspace::Workspace;

use super::machine::Machine;
use super::walk::{Walk, name_of};

#[test]
fn the_same_program_is_packed_into_the_same_bytes_and_the_tarball_has_upstreams_form() {
    let name = "the_same_program_is_packed_into_the_same_bytes_and_the_tarball_has_upstreams_form";
    let Some(first) = packages_or_skip(name) else { return };
    let again = tempfile::tempdir().unwrap();
    let second = made_in(&again.path().join("dist"), &privileged_or_skip(name).unwrap().relay_binary);

    let read = |path: &PathBuf| std::fs::read(path).unwrap();
    for (one, other) in
        [(&first.tarball, &second.tarball), (&first.deb, &second.deb), (&first.checksums, &second.checksums)]
    {
        assert!(read(one) == read(other), "{} differs from {}", one.display(), other.display());
    }
    let folder = first.checksums.parent().unwrap();
    Tool::new("sha256sum").words("--check --strict SHA256SUMS").in_directory(folder).output().unwrap();
    let top = first.tarball.file_name().unwrap().to_str().unwrap().strip_suffix(".tar.xz").unwrap();
    assert_eq!(top, format!("atlas-relay-{}-x86_64-unknown-linux-gnu", env!("CARGO_PKG_VERSION")));
    let listed = Tool::new("tar").words("--list --file").arg(&first.tarball).output().unwrap();
    let entries: Vec<&str> = listed.lines().collect();
    assert!(entries.iter().all(|entry| entry.starts_with(&format!("{top}/"))), "{listed}");
    for file in ["atlas-relay", "deploy/systemd/atlas-relay.service", "deploy/README.md", "LICENSE-MIT"] {
        assert!(entries.contains(&format!("{top}/{file}").as_str()), "{file} is not among {listed}");
    }
}

/// It takes the page's steps for the package.
pub const UPGRADE: &str =
    "a_newer_package_goes_on_with_the_sessions_of_an_older_one_and_a_removed_one_leaves_state_alone";

#[test]
fn a_newer_package_goes_on_with_the_sessions_of_an_older_one_and_a_removed_one_leaves_state_alone() {
    let Some(packages) = packages_or_skip(UPGRADE) else { return };
    let lab = Lab::up().unwrap();
    let machine = Machine::start(lab.relay.host(), lab.directory(), "relay");
    let before = machine.files();
    let older = name_of(&packages.deb);
    machine.put(&packages.deb, older);
    let newer = newer_than(&packages.deb, lab.directory());
    machine.put(&newer, name_of(&newer));
    let walk = Walk::new(UPGRADE);
    walk.fill("<old>", VERSION);
    walk.fill("<new>", NEWER);

    // As some do who do not ask apt.
    machine.type_in(&format!("dpkg --install {older}"));
    assert!(
        machine.type_in("systemctl list-units 'atlas-*'").contains("0 loaded units"),
        "it starts nothing"
    );
    machine.type_in("sudo -u atlas-relay atlas id init");
    let page = "/usr/share/doc/atlas-relay/deploy/config.example.toml";
    let installed = "/var/lib/atlas-relay/.atlas/state/config.toml";
    machine.type_in(&format!("install -o atlas-relay -g atlas-relay -m 0644 {page} {installed}"));
    machine.type_in("systemctl enable --now atlas-relay");
    // As those do who ask systemd and not the relay.
    machine.change_file(installed, |text| text.replace("= 1048576", "= 5000000"));
    machine.type_in("systemctl reload atlas-relay");
    machine.wait_until("the reload", || machine.journal().contains("5000000").then_some(()));

    let [_, status] = walk.take(&machine, "Upgrade", 0).try_into().unwrap();
    assert!(status.contains("Datapath     : xdp-native"), "{status}");
    assert!(machine.type_in("dpkg-query --show atlas-relay").contains(NEWER));
    walk.take(&machine, "Roll back", 0);
    assert!(!machine.type_in("dpkg-query --show atlas-relay").contains(NEWER));
    // Three starts, of which the last two have found the tables of the one before in systemd's store.
    let log = machine.journal();
    let made = log.lines().filter(|line| line.contains("flow tables made"));
    let adopted: Vec<bool> = made.map(|line| line.contains("adopted=true")).collect();
    assert_eq!(adopted, [false, true, true], "{log}");

    // A package that would not start with what is configured leaves the program from before running.
    let running = || machine.type_in("systemctl show atlas-relay -P MainPID,ActiveState");
    let (before_it, upgrade) = (running(), format!("dpkg --install {} 2>&1", name_of(&newer)));
    machine.change_file(installed, |text| text.replace("= 5000000", "= \"much\""));
    let said = machine.type_in(&upgrade);
    assert!(said.contains("relay_bandwidth_limit") && said.contains("program from before"), "{said}");
    assert_eq!(running(), before_it);
    machine.change_file(installed, |text| text.replace("= \"much\"", "= 5000000"));
    machine.type_in("systemctl restart atlas-relay");
    assert_ne!(running(), before_it);

    machine.type_in("bash -c '. /usr/share/bash-completion/completions/atlas && complete -p atlas'");
    let page = machine.type_in("gzip --decompress --stdout /usr/share/man/man1/atlas-relay-net-listen.1.gz");
    assert!(page.contains("net listen \\-\\-port 4433"), "{page}");

    machine.type_in("dpkg --remove atlas-relay");
    assert!(machine.journal().contains("Stopped\n"), "{}", machine.journal());
    assert!(!machine.journal().contains("ERROR"), "{}", machine.journal());
    machine.type_in("apt-get purge --yes atlas-relay");
    let left: Vec<PathBuf> = machine.files().difference(&before).cloned().collect();
    let state = |path: &PathBuf| {
        // Users stay, and with them these copies.
        let theirs = ["etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/.pwd.lock"];
        path.starts_with("var/lib/atlas-relay")
            || path.starts_with("var/lib/atlas-agent")
            || theirs.iter().any(|known| path == Path::new(known))
    };
    let more: Vec<&PathBuf> = left.iter().filter(|path| !state(path)).collect();
    assert!(more.is_empty(), "the package has left {more:?}");
    assert!(left.contains(&PathBuf::from("var/lib/atlas-relay/.atlas/keys/node-key.pem")), "{left:?}");
    walk.finish();
}

#[test]
fn the_packages_units_are_those_of_the_checkout_but_for_where_the_program_is() {
    let name = "the_packages_units_are_those_of_the_checkout_but_for_where_the_program_is";
    let Some(packages) = packages_or_skip(name) else { return };
    let directory = tempfile::tempdir().unwrap();
    let workspace = Workspace::find().unwrap();
    let unpacked = directory.path().join("unpacked");
    Tool::new("dpkg-deb").arg("--extract").args([&packages.deb, &unpacked]).output().unwrap();
    for unit in ["atlas-relay.service", "atlas-agent.service"] {
        let ours = std::fs::read_to_string(workspace.root().join("deploy/systemd").join(unit)).unwrap();
        let packed = std::fs::read_to_string(unpacked.join("usr/lib/systemd/system").join(unit)).unwrap();
        let differing: Vec<(&str, &str)> =
            ours.lines().zip(packed.lines()).filter(|(ours, packed)| ours != packed).collect();
        assert_eq!(ours.lines().count(), packed.lines().count());
        assert!(!differing.is_empty(), "{unit} names no program");
        for (ours, packed) in differing {
            assert_eq!(packed, ours.replace("/usr/local/bin/atlas ", "/usr/bin/atlas "));
        }
        assert!(unpacked.join("usr/bin/atlas").is_file());
    }
    let content = Tool::new("dpkg-deb").arg("--contents").arg(&packages.deb).output().unwrap();
    let not_roots: Vec<&str> = content.lines().filter(|line| !line.contains(" root/root ")).collect();
    assert!(not_roots.is_empty(), "{not_roots:?}");
    // No file of its own that dpkg would ask about at an upgrade.
    assert!(!content.contains(" ./etc/"), "{content}");
}

/// The packages of the built relay, or `None` after the test `name` said why it cannot run.
fn packages_or_skip(name: &str) -> Option<&'static Packages> {
    privileged_or_skip(name).map(|privileged| made_of(&privileged.relay_binary))
}

/// The packages of the built relay. They are made once.
pub fn made_of(binary: &Path) -> &'static Packages {
    static MADE: OnceLock<Packages> = OnceLock::new();
    MADE.get_or_init(|| made_in(&Workspace::find().unwrap().target().join("dist-of-tests"), binary))
}

fn made_in(directory: &Path, binary: &Path) -> Packages {
    dist::make(&Workspace::find().unwrap(), binary, directory).unwrap()
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
const NEWER: &str = "99.0.0";

/// The same package as a newer version, in `directory`.
fn newer_than(deb: &Path, directory: &Path) -> PathBuf {
    let tree = directory.join("newer-package");
    Tool::new("dpkg-deb").arg("--raw-extract").args([deb, &tree]).output().unwrap();
    let control = tree.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).unwrap();
    std::fs::write(&control, text.replace(&format!("Version: {VERSION}"), &format!("Version: {NEWER}")))
        .unwrap();
    let newer = directory.join(format!("atlas-relay_{NEWER}_amd64.deb"));
    Tool::new("dpkg-deb").words("--root-owner-group -Znone --build").args([&tree, &newer]).output().unwrap();
    newer
}
