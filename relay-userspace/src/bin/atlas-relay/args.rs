//! The command line: what may be typed, and its help.

mod net;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use relay_userspace::config::RelayHint;
use relay_userspace::relay::bans::BanSubject;
use relay_userspace::relay::datapath::OBJECT;

use crate::doctor::Peer;

pub use net::{Connect, Disconnect, Ended, Forward, Listen, NetCommand, Ping, Send, Top};

const VERSION: &str = if OBJECT.is_some() {
    concat!(env!("CARGO_PKG_VERSION"), " (datapaths: xdp-native, xdp-generic, userspace)")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " (datapaths: userspace; built without the BPF program)")
};

/// Relays datagrams between agents behind NAT, in the kernel where it can. One program for relay, agent and both their
/// commands.
#[derive(Debug, Parser)]
#[command(
    name = "atlas-relay",
    version = VERSION,
    after_help = "Files are under $ATLAS_ROOT, else $HOME/.atlas: keys/node-key.pem, state/config.toml.\n\
                  A first relay:\n  atlas-relay id init\n  \
                  printf '[transport]\\nenable_relay = true\\noffer_relay = true\\n' > ~/.atlas/state/config.toml\n  \
                  atlas-relay net listen"
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

const ROTATE: &str = "\
Example:
  atlas-relay id rotate
  atlas-relay id rotate --yes

Without --yes it says what would break and changes nothing. The old key stays beside the new one, under a name with the time.
The node id changes with the key, so whatever names the old one has to be told the new: [agent] accept, [[agent.allow]] and
[[agent.forward]] of peers, [access] of relays, and of a relay network.relays and state/known_relays of its agents.";

const UNLOAD: &str = "\
Example:
  atlas-relay xdp unload --interface eth0
  atlas-relay xdp unload";

const STATUS: &str = "\
Example:
  atlas-relay xdp status

Lines:
  Datapath  what forwards: xdp-native, xdp-generic or userspace; Why: what stood in the way of a better one
  Attached  an interface that the XDP program is at, and where on a packet's way
  Table     sessions in the flow tables, how many they have room for, and the memory they take
  Kept by   who keeps what it forwards with while no daemon runs

Columns; those of the kernel go on counting over a restart, the others begin anew:
  PACKETS             what became of a packet; `forwarded` is relayed, ARCHITECTURE.md explains the others
  KERNEL, USERSPACE   how many the XDP program and the daemon have seen it become of
  REFUSED BY CONTROL  what was refused to agents, by reason, and how many TIMES";

const SHOW: &str = "\
Example:
  atlas-relay config show
  atlas-relay config show --running --json

Columns:
  KEY    the key with its table; docs/configuration.md has each with unit, range and effect
  VALUE  in the key's unit
  FROM   FILE:LINE, default, or the daemon's command line";

const BANS: &str = "\
Example:
  atlas-relay bans
  atlas-relay bans lift 192.0.2.1
  atlas-relay bans add atlas_70b499d01e2464e3... --for 12h

Columns:
  WHO   a node id, wherever it connects from; or an IPv4 address or IPv6 /56, whoever connects from there
  LEFT  for how long still
  WHY   the reason of the last refusal before it (ARCHITECTURE.md explains them), or that it was made by hand

A ban keeps new connections out and touches none that exists. Bans outlive a restart of the relay, which ends the sessions
that are left of who is banned.";

const DRAIN: &str = "\
Example:
  atlas-relay drain
  atlas-relay drain --deadline 10m
  atlas-relay drain --deadline 10m --hint atlas_70b499d0...@198.51.100.7:4433

The relay takes no new sessions from now on. Agents move those that they have to the relay of the hint, whose node id is what
they go by, or else to another of their own, and nothing is lost on the way. Agents that have no other relay stay until the
deadline. A second `drain` replaces the values of the first. Ctrl-C ends the waiting, not the drain.

With --json there is a line a second:
  sessions  sessions, offers and joined streams that are left
  left_s    seconds until the relay stops, whoever still uses it; null: once nobody does
  hint      where agents may move to
  stopped   true in the last line";

const DOCTOR: &str = "\
Example:
  atlas-relay doctor
  atlas-relay doctor --interface eth0 --json
  atlas-relay doctor --from atlas_70b499d0...@198.51.100.7:4433
  atlas-relay doctor --from atlas_70b499d0...
  atlas-relay doctor --list

Each finding has a level: ok; note, worth knowing; warning, the relay works, and not as well as it could; error, it does not
start, or nobody reaches it. What is not ok has what was expected and the command that mends it. Some is only known to root.
The exit code is that of the worst finding: 0 for ok and note, 1 for warning, 2 for error.

The self-test needs root: it makes two virtual interfaces in a network namespace of its own, attaches the program to them in
their driver, sends one datagram through and computes the checksums of what comes out. It changes nothing outside.

--from NODE@HOST:PORT has two agents, with keys of the moment, connect to another relay, be paired and exchange a datagram
through it. It shows that this relay is reachable from here. On a relay's host it then asks that relay to connect back to the
address that it sees, at this relay's port, and to say which node answers (`reachable`): so this host is reachable from outside.
If no relay runs here, doctor answers at the port meanwhile.

--from NODE has the relay that runs here ask an agent that is connected to it (`net peers`) to connect to it anew, from another
port, and to say which node answers. So `reachable` tells, in the agent's words, whether new connections are let in, and not only
those from before. An agent does that three times for a relay, then once a minute. Ask as the relay's user or as root.

With --json: worst, and findings with check, level, interface, found, expected and mend; the names are those of --list.";

const EXPLAIN: &str = "\
Example:
  atlas-relay explain 198.51.100.7:40001 192.0.2.1:4433
  atlas-relay explain 198.51.100.7:40001 192.0.2.1:4433 --packet captured.pcap
  atlas-relay explain [2001:db8::7]:40001 [2001:db8::1]:4433 --payload 1453 --json

SRC is an agent's address as the relay sees it, DST the relay's that it sends to: `net sessions --json` has both of each
session. The relay copies what its tables have for these two, runs the loaded XDP program on the packet and that copy, and then
the forwarder's code on what the program passes up. Nothing of the session changes and nothing is sent. What depends on the
load at that moment is not foreseen: contended, the full queues, control_share, and what sending fails with.

Lines:
  Packet                what was tried; a packet that is made up has TTL 64
  Program, Forwarder    what they do with it: action, reason and what that means; ARCHITECTURE.md lists all
  Leaves                the packet as it leaves, with the MAC addresses it leaves with
  Session               the session's id, and which side sends from SRC
  Connector, Target     node id, address, the relay's address it uses; and for how long its consent lasts without a new proof
  Next hop              number, gateway and interface; how the program sends there; MAC address and age of the neighbour
  Bucket                what is left of the burst, in bytes of UDP payload, and the rate

Only root and the daemon's own user may ask.";

const STOP: &str = "\
Example:
  atlas-relay stop
  ExecStop=/usr/local/bin/atlas stop --unless-restarting --unit %n

--unless-restarting is for a unit of systemd, which stops and restarts it by the same signal: it asks `systemctl list-jobs`
which it is, and does nothing at a restart, or if it cannot tell. It always exits with 0: systemd goes on with SIGTERM.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// This node's identity.
    #[command(subcommand)]
    Id(IdCommand),
    /// The network: daemon, peers, sessions, connections.
    #[command(subcommand)]
    Net(NetCommand),
    /// The XDP program.
    #[command(subcommand)]
    Xdp(XdpCommand),
    /// The configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Lists who may not connect to the running relay; bans and lets in again by hand.
    #[command(after_help = BANS, args_conflicts_with_subcommands = true)]
    Bans(Bans),
    /// Has the running relay's agents move away, and waits until it has stopped: when no session is left, or at the deadline.
    #[command(after_help = DRAIN)]
    Drain(Drain),
    /// Looks at this host with a relay's eyes: which datapath it will get, what is wrong, and the command that mends it.
    #[command(after_help = DOCTOR)]
    Doctor(Doctor),
    /// Asks the running relay what would become of a packet from SRC to DST, and why.
    #[command(after_help = EXPLAIN)]
    Explain(Explain),
    /// Stops the running relay: its sessions end and its agents are told. SIGTERM may leave them to a successor.
    #[command(after_help = STOP)]
    Stop(Stop),
    /// Writes man pages and shell completions, for packages of this program.
    #[command(hide = true, after_help = "Example:\n  atlas-relay manual /tmp/pages")]
    Manual {
        /// The folder to write them to.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum IdCommand {
    /// Makes this node's key. An existing one is never overwritten.
    #[command(after_help = "Example:\n  atlas-relay id init")]
    Init,
    /// Shows who this node is.
    #[command(after_help = "Example:\n  atlas-relay id show --json")]
    Show(Format),
    /// Puts another key, and so another node id, in the place of this node's. The old key is kept.
    #[command(after_help = ROTATE)]
    Rotate(Rotate),
    /// Gives this node a name for people to read. Others see it in `net peers`; it proves nothing. A daemon that runs takes it
    /// at its next start.
    #[command(after_help = "Example:\n  atlas-relay id set-name relay-01")]
    SetName {
        /// The name, at most 64 bytes.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum XdpCommand {
    /// Attaches the program to an interface without a relay, for development. It passes everything.
    #[command(after_help = "Example:\n  atlas-relay xdp load --interface eth0 --mode generic")]
    Load {
        /// The interface.
        #[arg(long, value_name = "IF")]
        interface: String,
        /// Where the program runs.
        #[arg(long, value_enum, default_value = "native")]
        mode: XdpMode,
    },
    /// Detaches what `xdp load` has attached, or removes what a stopped relay has left.
    #[command(after_help = UNLOAD)]
    Unload {
        /// The interface that `xdp load` has attached to. Without it: everything that the relay of this ATLAS_ROOT keeps in
        /// bpffs (`datapath.bpffs`) while it does not run is removed, and what it relays ends.
        #[arg(long, value_name = "IF")]
        interface: Option<String>,
    },
    /// Says which datapath the running relay has, and what became of the packets.
    #[command(after_help = STATUS)]
    Status(Format),
}

#[derive(Debug, ClapArgs)]
pub struct Bans {
    #[command(subcommand)]
    pub command: Option<BansCommand>,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Debug, Subcommand)]
pub enum BansCommand {
    /// Lets somebody in again, whoever has banned them.
    #[command(after_help = "Example:\n  atlas-relay bans lift 2001:db8::/56")]
    Lift {
        /// A node id, an IPv4 address or an IPv6 /56.
        #[arg(value_name = "NODE_OR_PREFIX")]
        subject: BanSubject,
    },
    /// Keeps somebody from connecting.
    #[command(after_help = "Example:\n  atlas-relay bans add 192.0.2.1 --for 30m")]
    Add {
        /// A node id, an IPv4 address or an IPv6 /56.
        #[arg(value_name = "NODE_OR_PREFIX")]
        subject: BanSubject,
        /// For how long, in seconds or with a unit: 90s, 30m, 12h, 7d. Default: security.ban_duration_secs.
        #[arg(long = "for", value_name = "TIME", value_parser = crate::bans::seconds)]
        seconds: Option<u64>,
    },
}

#[derive(Debug, ClapArgs)]
pub struct Drain {
    /// Stop after this time, whoever still uses the relay, in seconds or with a unit: 90s, 30m, 12h, 7d. Default: once nobody
    /// does.
    #[arg(long = "deadline", value_name = "TIME", value_parser = crate::bans::seconds)]
    pub deadline_s: Option<u64>,
    /// A relay that agents may move to.
    #[arg(long, value_name = "NODE@HOST:PORT")]
    pub hint: Option<RelayHint>,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Debug, ClapArgs)]
pub struct Doctor {
    /// An interface to look at, instead of datapath.interfaces. May be given several times.
    #[arg(long, value_name = "IF")]
    pub interface: Vec<String>,
    /// Another relay: whether it is reachable from here and, on a relay's host, whether this one is from there. Or an agent
    /// that is connected to the relay here, by its node id: whether this relay is reachable from there.
    #[arg(long, value_name = "PEER")]
    pub from: Option<Peer>,
    /// List all that is looked at, with the worst level, what is expected and what mends it.
    #[arg(long)]
    pub list: bool,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Debug, ClapArgs)]
pub struct Explain {
    /// Where the packet comes from.
    #[arg(value_name = "SRC", value_parser = socket_address)]
    pub source: SocketAddr,
    /// The relay's address that it comes to.
    #[arg(value_name = "DST", value_parser = socket_address)]
    pub destination: SocketAddr,
    /// The packet, if not one that is made up: a file with the Ethernet frame's bytes, with these in hexadecimal digits, or a
    /// capture (pcap), of which the first packet is taken. At most 16384 bytes.
    #[arg(long, value_name = "FILE")]
    pub packet: Option<PathBuf>,
    /// UDP payload of the packet that is made up, in bytes.
    #[arg(
        long, value_name = "BYTES", default_value_t = 1200, conflicts_with = "packet",
        value_parser = clap::value_parser!(u16).range(0..=16_000)
    )]
    pub payload: u16,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Debug, ClapArgs)]
pub struct Stop {
    /// Do nothing if systemd restarts the unit.
    #[arg(long)]
    pub unless_restarting: bool,
    /// The unit.
    #[arg(long, value_name = "UNIT", default_value = "atlas-relay.service", requires = "unless_restarting")]
    pub unit: String,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Checks the configuration file, and what a daemon with it would need: identity, interfaces, relays' names.
    #[command(after_help = "Example:\n  atlas-relay config check ./config.toml")]
    Check {
        /// The file, if not state/config.toml.
        path: Option<PathBuf>,
    },
    /// Shows every value that has an effect on this node, and where it comes from: the file and its line, the default, or
    /// the command line.
    #[command(after_help = SHOW)]
    Show {
        /// The file, if not state/config.toml.
        path: Option<PathBuf>,
        /// Ask the running daemon what is in effect there: with its command line, and without what needs a restart.
        #[arg(long, conflicts_with = "path")]
        running: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Makes the running daemon read its configuration again, as SIGHUP does. It says what is in effect from now on, what
    /// needs a restart, and what the daemon's command line has the last word on.
    #[command(after_help = "Example:\n  atlas-relay config reload")]
    Reload(Format),
}

#[derive(Clone, Copy, Debug, ClapArgs)]
pub struct Format {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Rotate {
    /// Do it.
    #[arg(long)]
    pub yes: bool,
    /// Also while a daemon runs, which keeps the old key until it is restarted.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub format: Format,
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected ADDR:PORT, such as 192.0.2.1:4433 or [2001:db8::1]:4433".to_owned())
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}
