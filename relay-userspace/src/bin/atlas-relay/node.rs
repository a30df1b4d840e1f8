//! The node whose files are in the Atlas root: what most commands begin with.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, anyhow, bail};
use relay_userspace::admin::{self, AskError, Request};
use relay_userspace::agent::{AgentSettings, CongestionSettings};
use relay_userspace::config::{AtlasRoot, Config, ConfigError, Profile, Role};
use relay_userspace::identity::NodeKey;
use relay_userspace::privilege;
use relay_userspace::privilege::file_access::{self, Places, Restricted};
use relay_userspace::relay::keeper;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output;

/// Key, configuration and profile of this node.
pub struct Node {
    pub root: AtlasRoot,
    pub config: Config,
    pub key: NodeKey,
    pub profile: Profile,
}

impl Node {
    /// Reads all of it. The key first: without one there is nothing to configure.
    pub fn open() -> anyhow::Result<Node> {
        let root = AtlasRoot::from_env()?;
        let key = NodeKey::load(&root.node_key())?;
        let config = Config::load(&root.config(), &root)?;
        let profile = Profile::load(&root.profile())?;
        Ok(Node { root, config, key, profile })
    }

    /// The name others see.
    pub fn name(&self) -> &str {
        if self.profile.name.is_empty() { "unnamed" } else { &self.profile.name }
    }

    /// What an agent of this node starts with. It only dials unless the daemon says otherwise.
    pub fn agent(&self) -> anyhow::Result<AgentSettings> {
        let path = self.root.config();
        if self.config.role() == Role::Relay {
            bail!(
                "{}: this configuration makes a relay; run this with an agent's ATLAS_ROOT",
                path.display()
            );
        }
        check_agent(&self.config, &path)?;
        let relays = self.config.network.relays.clone();
        let dialer = AgentSettings::dialer(self.key.clone(), self.name(), relays, self.root.known_relays());
        let (pacing, ecn) = (self.config.agent.pacing, self.config.agent.ecn);
        let allow_readable_relay = self.config.agent.allow_readable_relay;
        Ok(AgentSettings { congestion: CongestionSettings { pacing, ecn }, allow_readable_relay, ..dialer })
    }
}

/// Checks that the configuration at `path` has what an agent needs.
pub fn check_agent(config: &Config, path: &Path) -> anyhow::Result<()> {
    if !config.transport.enable_relay {
        bail!("{}: set transport.enable_relay = true: agents are reached through relays", path.display());
    }
    if config.network.relays.is_empty() {
        bail!("{}: set network.relays to at least one relay, such as [\"192.0.2.1:4433\"]", path.display());
    }
    Ok(())
}

/// Where the running daemon's admin socket is. A node without a configuration file has it in the usual place; one whose file
/// has become unsound has a daemon all the same.
pub fn admin_socket() -> anyhow::Result<PathBuf> {
    let root = AtlasRoot::from_env()?;
    match Config::admin_socket(&root.config(), &root) {
        (socket, None) => Ok(socket),
        // Who may not read the file is told as whom to ask.
        (_, Some(error)) if is_refused(&error) => Err(error.into()),
        (socket, Some(error)) => {
            output::warning(format_args!("{error}; the daemon is looked for at {}", socket.display()));
            Ok(socket)
        }
    }
}

fn is_refused(error: &ConfigError) -> bool {
    matches!(error, ConfigError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether a daemon of this node runs.
pub fn daemon_runs() -> anyhow::Result<bool> {
    match admin::ask(&admin_socket()?, Request::Peers) {
        Err(AskError::NotRunning { .. }) => Ok(false),
        // Whatever answers there, or does not in time, has the socket.
        _ => Ok(true),
    }
}

/// The runtime that agents and their commands run on.
pub fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")
}

/// The runtime that a relay runs on: none of its threads has capabilities. A thread without any starts the workers, so that
/// they are born without; others, for work that blocks, may be started by any thread.
pub fn runtime_without_privilege() -> anyhow::Result<Runtime> {
    let build = || {
        privilege::drop_all().context("giving up capabilities")?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime
            .enable_all()
            .on_thread_start(privilege::drop_in_thread)
            .build()
            .context("starting the runtime")
    };
    thread::scope(|scope| scope.spawn(build).join()).map_err(|_| anyhow!("starting the runtime: a panic"))?
}

/// Lets the calling thread, and with it all that it will start, open no files but those a daemon of this node needs.
pub fn restrict_files(root: &AtlasRoot, config: &Config) -> anyhow::Result<Restricted> {
    let directory = |path: &Path| path.parent().map(Path::to_owned);
    // The directory, not the file: whoever changes a file may put another one in its place.
    let read = std::fs::canonicalize(root.config()).ok().as_deref().and_then(directory);
    // If it is not in a bpffs it cannot be used, and what it would be in stays out of reach.
    let pins = config.datapath.bpffs.clone().filter(|bpffs| keeper::is_bpffs(bpffs));
    let written = [root.path().to_owned()].into_iter().chain(directory(&config.admin.socket)).chain(pins);
    let places = Places { read: Vec::from_iter(read), written: written.collect() };
    file_access::restrict(&places).context("restricting the files that can be opened")
}

/// SIGINT and SIGTERM. From its making on they no longer kill the process.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// To be made before anything is started that has to be taken down again. Must be called within a tokio runtime.
    pub fn listen() -> anyhow::Result<StopSignals> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(StopSignals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for one, and says which.
    pub async fn next(&mut self) -> StopSignal {
        tokio::select! {
            _ = self.interrupt.recv() => StopSignal::Interrupt,
            _ = self.terminate.recv() => StopSignal::Terminate,
        }
    }
}

/// A signal that stops a daemon.
#[derive(Clone, Copy)]
pub enum StopSignal {
    /// SIGINT: somebody at the keyboard.
    Interrupt,
    /// SIGTERM: a supervisor, for a stop or a restart.
    Terminate,
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StopSignal::Interrupt => "SIGINT",
            StopSignal::Terminate => "SIGTERM",
        })
    }
}
