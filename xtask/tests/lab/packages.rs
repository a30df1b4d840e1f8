//! The packages: the same each time, and the Debian one in a clean root, where an operator's first steps are taken.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use xtask::clean_root;
use xtask::dist::{self, Packages};
use xtask::lab::{Host, Mount};
use xtask::supervisor::Supervisor;
use xtask::test::privileged_or_skip;
use xtask::tool::Tool;
use xtask::workspace::Workspace;

use super::world::World;

const PATIENCE: Duration = Duration::from_secs(20);

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

#[test]
fn the_package_runs_in_a_clean_root_as_its_unit_says_and_leaves_nothing_there_but_state() {
    let name = "the_package_runs_in_a_clean_root_as_its_unit_says_and_leaves_nothing_there_but_state";
    let Some(packages) = packages_or_skip(name) else { return };
    let Some(world) = World::new(name) else { return };
    let root = CleanRoot::new(&world);
    let before = root.files();
    std::fs::copy(&packages.deb, root.path("tmp/atlas-relay.deb")).unwrap();

    root.run("dpkg --install /tmp/atlas-relay.deb");

    root.run("sudo -u atlas-relay atlas id init");
    root.run("sudo -u atlas-relay atlas id set-name relay-01");
    root.run(
        "install -o atlas-relay -g atlas-relay -m 0644 /usr/share/doc/atlas-relay/deploy/config.example.toml \
         /var/lib/atlas-relay/.atlas/state/config.toml",
    );
    let checked = root.run("sudo -u atlas-relay atlas config check");
    assert!(checked.contains("a relay"), "{checked}");
    assert!(root.run("atlas-relay --version").contains(env!("CARGO_PKG_VERSION")));
    // Its unit's program, arguments, user and variables.
    let mut relay = root.service("atlas-relay");
    relay.start_ready(PATIENCE).unwrap_or_else(|error| panic!("{error:#}: {}", root.log()));
    let status = root.run("sudo -u atlas-relay atlas xdp status");
    assert!(status.contains("Datapath"), "{status}");
    relay.stop().unwrap();
    assert_eq!(relay.states().last().map(String::as_str), Some("BARRIER=1"));

    root.run("bash -c '. /usr/share/bash-completion/completions/atlas && complete -p atlas'");
    let page = root.run("gzip --decompress --stdout /usr/share/man/man1/atlas-relay-net-listen.1.gz");
    assert!(page.contains("net listen \\-\\-port 4433"), "{page}");

    root.run("dpkg --remove atlas-relay");
    root.run("dpkg --purge atlas-relay");
    let left: Vec<PathBuf> = root.files().difference(&before).cloned().collect();
    let state = |path: &PathBuf| {
        // Users stay, and with them these copies; the rest is what dpkg and sudo keep of their own work.
        let theirs = ["etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/.pwd.lock"];
        path.starts_with("var/lib/atlas-relay")
            || path.starts_with("var/lib/atlas-agent")
            || theirs.iter().any(|known| path == Path::new(known))
            || path == Path::new("tmp/atlas-relay.deb")
    };
    let more: Vec<&PathBuf> = left.iter().filter(|path| !state(path)).collect();
    assert!(more.is_empty(), "the package has left {more:?}");
    assert!(left.contains(&PathBuf::from("var/lib/atlas-relay/.atlas/keys/node-key.pem")), "{left:?}");
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

/// The packages of the built relay, or `None` after the test `name` said why it cannot run. They are made once.
fn packages_or_skip(name: &str) -> Option<&'static Packages> {
    static MADE: OnceLock<Packages> = OnceLock::new();
    let binary = privileged_or_skip(name)?.relay_binary;
    Some(MADE.get_or_init(|| made_in(&Workspace::find().unwrap().target().join("dist-of-tests"), &binary)))
}

fn made_in(directory: &Path, binary: &Path) -> Packages {
    dist::make(&Workspace::find().unwrap(), binary, directory).unwrap()
}

/// A Debian with nothing on it, on the relay's host of a lab. Nothing that is changed there lasts.
struct CleanRoot {
    proc: Option<Mount>,
    merged: Option<Mount>,
    _memory: Mount,
    host: Host,
}

impl CleanRoot {
    fn new(world: &World) -> CleanRoot {
        let lower =
            clean_root::find(&Workspace::find().unwrap()).expect("`cargo xtask test` makes a clean root");
        // Below the lab's folder: what is mounted there goes with the lab.
        let folder = world.lab.directory().join("clean");
        let memory = Mount::new("tmpfs", "mode=755", &folder).unwrap();
        let [upper, work] = ["upper", "work"].map(|part| folder.join(part));
        for part in [&upper, &work] {
            std::fs::create_dir(part).unwrap();
        }
        let [lower, upper, work] = [&lower, &upper, &work].map(|path| path.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let merged = Mount::new("overlay", &options, &folder.join("root")).unwrap();
        let proc = Mount::new("proc", "ro", &merged.path().join("proc")).unwrap();
        let host = world.lab.relay.host();
        CleanRoot { proc: Some(proc), merged: Some(merged), _memory: memory, host }
    }

    fn root(&self) -> &Path {
        self.merged.as_ref().unwrap().path()
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root().join(relative)
    }

    /// A program inside, with root's usual environment alone.
    fn inside(&self, options: &[&str]) -> Tool {
        let tool = Tool::new("chroot").args(options).arg(self.root());
        tool.words("/usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C")
    }

    /// Runs what would be typed there.
    fn run(&self, line: &str) -> String {
        let tool = self.inside(&[]).args(["sh", "-c", line]);
        self.host.run(&tool).unwrap_or_else(|error| panic!("{line}: {error:#}"))
    }

    /// What runs the service as its unit in there says.
    fn service(&self, unit: &str) -> Supervisor {
        let text =
            std::fs::read_to_string(self.path(&format!("usr/lib/systemd/system/{unit}.service"))).unwrap();
        let all = |key: &str| -> Vec<String> {
            text.lines().filter_map(|line| line.strip_prefix(&format!("{key}="))).map(str::to_owned).collect()
        };
        let [start] = all("ExecStart").try_into().unwrap();
        let [user] = all("User").try_into().unwrap();
        let run = self.path("run");
        let socket = "service.notify";
        let tool = self
            .inside(&[&format!("--userspec={user}:{user}")])
            .args(all("Environment"))
            .arg(format!("NOTIFY_SOCKET=/run/{socket}"))
            .words(&start);
        let supervisor = Supervisor::of(self.host.clone(), tool, &run, "service").unwrap();
        // systemd's is open for all as well: who may use it, the sender's process tells.
        std::fs::set_permissions(run.join(socket), std::fs::Permissions::from_mode(0o666)).unwrap();
        supervisor
    }

    /// What the service has said.
    fn log(&self) -> String {
        std::fs::read_to_string(self.path("run/service.log")).unwrap_or_default()
    }

    /// All files, links and folders there, less what dpkg and the machine keep of their own work.
    fn files(&self) -> BTreeSet<PathBuf> {
        let found = Tool::new("find").arg(self.root()).words("-xdev -printf %P\\n").output().unwrap();
        let of_the_machine = ["var/lib/dpkg", "var/log", "var/cache", "run", "proc", "dev"];
        found
            .lines()
            .map(PathBuf::from)
            .filter(|path| !of_the_machine.iter().any(|kept| path.starts_with(kept)))
            .collect()
    }
}

impl Drop for CleanRoot {
    /// The innermost first.
    fn drop(&mut self) {
        drop(self.proc.take());
        drop(self.merged.take());
    }
}
