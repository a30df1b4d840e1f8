//! Where the pages' commands are run: a relay's host, an agent's beside it, and what the pages take for granted there.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use xtask::answers::{RelaySession, Status};
use xtask::deployment::relay_configuration_with;
use xtask::lab::{Host, Mount, Process};
use xtask::tool::Tool;

use super::super::world::{NOTICED_WITHIN, RELAY, World, wait_for};
use super::shell::{Place, Shell};

/// The user of the service: one that owns nothing else.
const USER: &str = "64991";

/// What the unit gives the relay at its start.
const OF_THE_UNIT: &str = "-all,+bpf,+net_admin,+perfmon";

/// The root of the service's node in the pages.
const ROOT: &str = "/var/lib/atlas-relay/.atlas";

const PATIENCE: Duration = Duration::from_secs(30);

/// The world with what is around the relay.
pub struct Stage {
    relay: Option<Process>,
    folder: PathBuf,
    bpffs: Mount,
    // After what lies in its folder.
    pub world: World,
}

impl Stage {
    /// With a relay that runs, as its own user, and a target that does not.
    pub fn set(world: World) -> Stage {
        let folder = world.lab.directory().join("stage");
        let release = folder.join("checkout/target/release");
        for place in ["checkout/target/release", "installed", "relay", "target", "nobody"] {
            std::fs::create_dir_all(folder.join(place)).unwrap();
        }
        let binary = release.join("atlas-relay");
        std::fs::copy(&world.binary, &binary).unwrap();
        let relay = world.deployment.relay.directory().to_owned();
        symlink(&relay, folder.join("relay/.atlas")).unwrap();
        symlink(world.deployment.target.directory(), folder.join("target/.atlas")).unwrap();
        let programs = folder.join("installed");
        for name in ["atlas", "atlas-relay"] {
            symlink(&binary, programs.join(name)).unwrap();
        }
        // As far as the pages use it: another user, with its own home, or only variables. Many machines have none, and none has
        // this user: the real one is in the walk through deploy/README.md, on a clean Debian.
        let home = folder.join("relay");
        write_program(
            &programs.join("sudo"),
            &format!(
                "if [ \"$1\" = -u ]; then\n    [ \"$2\" = atlas-relay ] || exit 99\n    shift 2\n    \
                 exec setpriv --reuid {USER} --regid {USER} --clear-groups env HOME={} \"$@\"\nfi\nexec env \"$@\"\n",
                home.display()
            ),
        );
        // `cargo xtask` is an alias of this checkout; what it would build is built.
        write_program(
            &folder.join("checkout/cargo"),
            &format!("[ \"$1\" = xtask ] || exit 99\nshift\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_xtask")),
        );
        let bpffs = Mount::new("bpf", "mode=700", &folder.join("bpffs")).unwrap();
        let mut stage = Stage { relay: None, folder, bpffs, world };
        stage.start_relay();
        stage
    }

    /// Starts the relay and waits until it serves.
    pub fn start_relay(&mut self) {
        let node = &self.world.deployment.relay;
        let pins = self.pins();
        let datapath =
            format!("mode = \"xdp-native\"\ninterfaces = [\"r0\"]\nbpffs = \"{}\"\n", pins.display());
        node.configure(&relay_configuration_with(1 << 20, &datapath)).unwrap();
        Tool::new("chown")
            .words("--recursive")
            .arg(USER)
            .args([node.directory(), self.bpffs.path()])
            .output()
            .unwrap();
        let tool = Tool::new("setpriv")
            .args(["--reuid", USER, "--regid", USER, "--clear-groups"])
            .arg(format!("--inh-caps={OF_THE_UNIT}"))
            .arg(format!("--ambient-caps={OF_THE_UNIT}"))
            .arg(self.folder.join("installed/atlas"))
            .words(&format!("net listen --port {}", RELAY.port()))
            .env("ATLAS_ROOT", node.directory());
        let mut relay = node.host().start(&tool, node.directory(), "relay-listen").unwrap();
        let started = |_: &Process| node.json::<Status>("xdp status --json").ok();
        let status = relay.wait_until("the start", PATIENCE, started).unwrap();
        assert_eq!(status.datapath, "xdp-native", "{}", status.why);
        self.relay = Some(relay);
    }

    /// The relay is killed, and leaves its pins.
    pub fn kill_relay(&mut self) {
        self.relay.take().unwrap().kill();
    }

    /// Waits until the relay has ended by itself.
    pub fn wait_for_the_relays_end(&mut self) {
        self.relay.take().unwrap().wait_success(PATIENCE).unwrap();
    }

    /// Whether there are pins of a relay.
    pub fn has_pins(&self) -> bool {
        let of_relays = std::fs::read_dir(self.pins()).into_iter().flatten();
        of_relays.flat_map(|of_relay| std::fs::read_dir(of_relay.unwrap().path()).unwrap()).count() > 0
    }

    fn pins(&self) -> PathBuf {
        self.folder.join("bpffs/pins")
    }

    /// Where the service is installed on the relay's host, for root.
    pub fn operators_place(&self) -> Place {
        let host = self.world.deployment.relay.host().clone();
        self.place(host, "", "nobody", "installed")
    }

    /// root's shell there.
    pub fn operators_shell(&self, name: &str) -> Shell {
        let mut shell = self.operators_place().shell(name);
        shell.fill(ROOT, self.world.deployment.relay.directory().display());
        shell
    }

    /// The same with the relay's home, for pages that leave open who has installed it.
    pub fn relays_place(&self) -> Place {
        let host = self.world.deployment.relay.host().clone();
        self.place(host, "", "relay", "installed")
    }

    /// The other end of the relay's link.
    pub fn routers_place(&self) -> Place {
        self.place(self.world.lab.router.host(), "", "nobody", "installed")
    }

    /// A checkout on a host: an agent's.
    pub fn checkout_of_agent(&self, home: &str) -> Place {
        std::fs::create_dir_all(self.folder.join(home)).unwrap();
        self.place(self.world.lab.agents[0].host(), "checkout", home, "checkout")
    }

    /// An agent's host where the program is installed.
    pub fn agents_place(&self, home: &str) -> Place {
        std::fs::create_dir_all(self.folder.join(home)).unwrap();
        self.place(self.world.lab.agents[0].host(), "", home, "installed")
    }

    /// The target's host, for who runs it.
    pub fn targets_place(&self) -> Place {
        self.place(self.world.lab.agents[1].host(), "", "target", "installed")
    }

    /// This machine, outside the lab.
    pub fn here(&self) -> Place {
        self.place(Host::here(), "", "nobody", "installed")
    }

    /// A checkout on this machine, outside the lab.
    pub fn checkout_here(&self) -> Place {
        self.place(Host::here(), "checkout", "nobody", "checkout")
    }

    fn place(&self, host: Host, at: &str, home: &str, programs: &str) -> Place {
        let [at, home, programs] = [at, home, programs].map(|part| self.folder.join(part));
        Place { host, at, home, programs }
    }

    /// The session that runs, once those of commands before have ended.
    pub fn session(&self) -> RelaySession {
        wait_for("one session, which is paired", NOTICED_WITHIN, || {
            let [session] = self.world.sessions().try_into().ok()?;
            Some(session).filter(|session: &RelaySession| session.state == "paired")
        })
    }
}

fn write_program(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
