//! `net`: what may be typed after it, and its help.

use std::net::SocketAddr;

use clap::{Args as ClapArgs, Subcommand};
use relay_userspace::config::{DatapathMode, HostPort};
use relay_userspace::identity::NodeId;
use relay_userspace::protocol::SessionId;

use super::Format;
use crate::log::LogFormat;

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

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected ADDR:PORT, such as 127.0.0.1:8080 or [::1]:8080".to_owned())
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

At a relay it ends the sessions of a node, or one session; at an agent those with a peer, or one. If there is none, that is an
error and the exit code 1. Both sides are told, and may connect again: who may not is a matter of [agent] accept, or of [access] at the relay.";
