//! The command line: what may be typed, and its help.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use relay_userspace::config::{DatapathMode, HostPort, RelayAddress, RelayHint};
use relay_userspace::identity::NodeId;
use relay_userspace::protocol::SessionId;
use relay_userspace::relay::bans::BanSubject;
use relay_userspace::relay::datapath::OBJECT;

use crate::log::LogFormat;

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

const PEERS: &str = "\
Example:
  atlas-relay net peers --json

Columns:
  NODE ID    the peer's id, shortened; --json has the whole
  NAME       what it calls itself: proves nothing
  ADDRESS    the other end of its control connection
  ANNOUNCED  at a relay: whether others can reach it through this relay; at an agent: whether the relay has registered it
  CONNECTED  for how long";

const SESSIONS: &str = "\
Example:
  atlas-relay net sessions

Columns at a relay:
  SESSION              the session's id
  CONNECTOR, TARGET    the agent that asked and the one that was asked for, shortened; --json has the whole
  STATE                offered: nobody has bound; half: one side has; paired: packets are relayed
  AGE                  since it was offered
  RATE                 its limit, UDP payload bytes per second of both directions together
  KERNEL, USERSPACE    packets that the XDP program and the daemon have relayed, both directions
  BYTES                their UDP payload
  LIMITED, its BYTES   packets dropped for the limit, and their UDP payload

Columns at an agent:
  ROLE                 connector: this agent has asked; target: it was asked for
  RELAY                where its datagrams go
  SENT, RECEIVED       datagrams, and under BYTES their UDP payload
  LIMITED, its BYTES   what the relay says it has dropped for the limit, of both sides
  REFUSED              what this agent has refused since it started, by reason";

const TOP: &str = "\
Example:
  atlas-relay net top
  atlas-relay net top --once
  atlas-relay net top --once --json

Keys:
  r l a i    order sessions by rate, by packets limited, by age, by id; the same key again: the other way round
  Up Down PgUp PgDn Home End
             scroll, where there are more sessions than lines
  /          show only sessions with this in their id, or in the id or name of one of their agents; Esc: show all again
  q          leave, as Esc and Ctrl-C do

Lines:
  Relay      what forwards; agents connected; sessions in the flow tables, and how many they have room for
  Relaying   UDP payload of all sessions, and packets that the XDP program and the daemon forward
  Dropped    packets, by reason: how many a second now, of how many since the relay started
  Refused    the same of what control has refused to agents; ARCHITECTURE.md explains all reasons
  Sessions   how many are drawn, or which of them, of all

Columns, as many as the terminal has room for; in 80 characters all are:
  RATE/s             UDP payload of both directions in a second
  TREND              the last eight rates of this session, the highest of them as a full bar
  LIMIT/s            the session's limit, both directions together
  LIMITED/s          packets dropped for the limit in a second
  PATH               who forwards: kernel, userspace or both; nobody, as long as nothing came; stream: the daemon, and it could
                     read it; offered, half: not paired yet
  AGE                since it was offered
  SESSION            the first digits of its id
  CONNECTOR, TARGET  the agent that asked and the one that was asked for: the first digits of the id and, in a terminal of more
                     than 80 characters, what it calls itself, which proves nothing

docs/fields.md has the fields of --json.";

const CONNECT: &str = "\
Example:
  atlas-relay net connect atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3

It prints the name that the agent gives itself, which proves nothing, and [TRUST via PATH]:
  TRUST  unknown: who runs the agent is not looked up here; that it has the key of its id is proved
  PATH   relay: end to end, through a relay that cannot read it
         relay, readable by it: the agent knows only the documented messages, and [agent] allow_readable_relay is set";

const PING: &str = "\
Example:
  atlas-relay net ping atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3 --count 10

Lines:
  Peer, Path   whom, and through what: relay is end to end, through a relay that cannot read it; `readable by it`, that it can
  Ping, Pong   when the first was sent, by this clock, and answered, by the peer's: seconds since 1970
  N of COUNT   a round trip, end to end";

const SEND: &str = "\
Example:
  atlas-relay net send atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3 '{\"question\": 42}' \\
    --topic tasks

The other agent accepts it if its configuration names this node:
  [agent]
  accept = [\"atlas_<this node>\"]
It goes through this node's daemon if one runs, which prints `Queued` and `Target`, else by itself, which prints `Sent to`
and `Msg ID`. Either waits for the answer, `Ack`.";

const FORWARD: &str = "\
Example:
  atlas-relay net forward --listen 127.0.0.1:8080 --peer atlas_70b4... --to 127.0.0.1:80
  atlas-relay net forward --udp --listen 127.0.0.1:5300 --peer atlas_70b4... --to 127.0.0.1:53

The other agent's configuration permits it with:
  [agent]
  accept = [\"atlas_<this node>\"]

  [[agent.allow]]
  peer = \"atlas_<this node>\"
  to = \"127.0.0.1:80\"
  protocol = \"tcp\"      # or udp; tcp if it is not there

Of UDP each program that sends is carried apart, 200 at a time, until it has been quiet for two minutes. A datagram must fit
one of the connection to the peer, some 40 bytes less than the session carries (1420 of 1500 on Ethernet, 1150 in the first
moments); larger ones are dropped, counted and told once for each program. A daemon does the same by [[agent.forward]].";

const DISCONNECT: &str = "\
Example:
  atlas-relay net disconnect atlas_70b499d01e2464e370b499d01e2464e370b499d01e2464e370b499d01e2464e3
  atlas-relay net disconnect 0f1e2d3c4b5a69788796a5b4c3d2e1f0

At a relay it ends the sessions of a node, or one session; at an agent those with a peer, or one. Both sides are told, and
may connect again: who may not is a matter of [agent] accept, or of [access] at the relay.";

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
  atlas-relay doctor --list

Each finding has a level: ok; note, worth knowing; warning, the relay works, and not as well as it could; error, it does not
start, or nobody reaches it. What is not ok has what was expected and the command that mends it. Some is only known to root.
The exit code is that of the worst finding: 0 for ok and note, 1 for warning, 2 for error.

The self-test needs root: it makes two virtual interfaces in a network namespace of its own, attaches the program to them in
their driver, sends one datagram through and computes the checksums of what comes out. It changes nothing outside.

--from has two agents, with keys of the moment, connect to another relay, be paired and exchange a datagram through it. It
shows that this relay is reachable from here. No relay can be asked to connect back, so whether this host is reachable from
outside is shown by the same command on another host, or by agents that are connected from elsewhere (`reached`).

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
pub enum NetCommand {
    /// Runs the daemon in the foreground: a relay if the configuration has transport.offer_relay, else an agent.
    #[command(
        after_help = "Examples:\n  atlas-relay net listen --port 4433 --datapath auto\n  atlas-relay net listen --log-format json"
    )]
    Listen(Listen),
    /// Lists whom the running daemon is connected with: a relay's agents, an agent's relays.
    #[command(after_help = PEERS)]
    Peers(Format),
    /// Lists the running daemon's sessions. `net forward`, `net ping`, `net connect` and, without a daemon, `net send` have
    /// sessions of their own: ask the relay or the peer for those.
    #[command(after_help = SESSIONS)]
    Sessions(Format),
    /// Shows what the running relay does at the moment, in a terminal: sessions by rate, and what is dropped and refused, and why.
    #[command(after_help = TOP)]
    Top(Top),
    /// Checks the path to another agent.
    #[command(after_help = CONNECT)]
    Connect(Connect),
    /// Pings another agent, end to end through a relay.
    #[command(after_help = PING)]
    Ping(Ping),
    /// Sends a message to another agent's application, and waits until its agent has taken it.
    #[command(after_help = SEND)]
    Send(Send),
    /// Forwards a local TCP or UDP port to one that the other agent permits, until stopped. Whether it is permitted is asked
    /// for each TCP connection and each UDP client: a refusal shows when the first one comes.
    #[command(after_help = FORWARD)]
    Forward(Forward),
    /// Ends sessions of the running daemon.
    #[command(after_help = DISCONNECT)]
    Disconnect(Disconnect),
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
    /// Another relay: whether it is reachable from here.
    #[arg(long, value_name = "RELAY")]
    pub from: Option<RelayAddress>,
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
    /// Makes the running daemon read its configuration again, as SIGHUP does. It says what is in effect from now on, and
    /// what needs a restart.
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
pub struct Top {
    /// Print one view and end; it takes the time of --every. No terminal is needed.
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks at the relay.
    #[arg(long = "every", value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=60))]
    pub every_s: u8,
    /// Print JSON instead of text.
    #[arg(long, requires = "once")]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Listen {
    /// UDP port of a relay, instead of network.port; 0: any.
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// A bootstrap node to register with, instead of those in network.bootstrap. May be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    pub bootstrap: Vec<HostPort>,
    /// What forwards: auto, xdp-native, xdp-generic or userspace; instead of datapath.mode.
    #[arg(long, value_name = "MODE")]
    pub datapath: Option<DatapathMode>,
    /// An interface to attach the XDP program to, instead of datapath.interfaces. May be given several times.
    #[arg(long, value_name = "IF")]
    pub interface: Vec<String>,
    /// The form of the log: lines for people, lines of JSON, or entries of the systemd journal.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

#[derive(Debug, ClapArgs)]
pub struct Connect {
    /// The other agent's node id.
    #[arg(value_name = "NODE")]
    pub node: NodeId,
    #[command(flatten)]
    pub format: Format,
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

#[derive(Debug, ClapArgs)]
pub struct Send {
    /// The other agent's node id.
    #[arg(value_name = "NODE")]
    pub node: NodeId,
    /// The content: JSON; any other text is sent as a JSON string. At most 64 KiB.
    #[arg(value_name = "JSON")]
    pub body: String,
    /// What it is about, for the application there.
    #[arg(long, value_name = "T")]
    pub topic: Option<String>,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Debug, ClapArgs)]
pub struct Disconnect {
    /// A node's id, for all its sessions here, or a session's, as `net sessions` shows it.
    #[arg(value_name = "TARGET", value_parser = ended)]
    pub target: Ended,
    #[command(flatten)]
    pub format: Format,
}

/// What `net disconnect` ends.
#[derive(Clone, Copy, Debug)]
pub enum Ended {
    /// All sessions with or of a node.
    Node(NodeId),
    /// One session.
    Session(SessionId),
}

fn ended(text: &str) -> Result<Ended, String> {
    if text.starts_with(NodeId::PREFIX) {
        text.parse()
            .map(Ended::Node)
            .map_err(|error: relay_userspace::identity::NodeIdError| error.to_string())
    } else {
        text.parse().map(Ended::Session).map_err(|_| {
            format!("expected a node id (atlas_ and 64 hexadecimal digits) or a session's (32), not {text:?}")
        })
    }
}

#[derive(Debug, ClapArgs)]
pub struct Ping {
    /// The other agent's node id.
    #[arg(value_name = "NODE")]
    pub node: NodeId,
    /// How many pings.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Pause between two pings, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub interval_ms: u64,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Debug, ClapArgs)]
pub struct Forward {
    /// Forward datagrams instead of TCP connections.
    #[arg(long)]
    pub udp: bool,
    /// The local address to listen on; port 0: any.
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen_address)]
    pub listen: SocketAddr,
    /// The other agent's node id.
    #[arg(long, value_name = "NODE")]
    pub peer: NodeId,
    /// The address to reach there, as in its [[agent.allow]].
    #[arg(long, value_name = "HOST:PORT")]
    pub to: HostPort,
    #[command(flatten)]
    pub format: Format,
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected ADDR:PORT, such as 192.0.2.1:4433 or [2001:db8::1]:4433".to_owned())
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected ADDR:PORT, such as 127.0.0.1:8080 or [::1]:8080".to_owned())
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}
