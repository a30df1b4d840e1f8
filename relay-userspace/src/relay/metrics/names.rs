//! Every metric, once: what is exposed and the page docs/metrics.md go by this table.

/// A metric: one name, and a series for each combination of its labels' values.
#[derive(Debug)]
pub struct Family {
    /// By the conventions of Prometheus: base units, `_total` for what only grows.
    pub name: &'static str,
    /// What it is for Prometheus.
    pub kind: Kind,
    /// None has a value that agents can choose: how many series there are is known.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

/// What a metric is for Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from the daemon's start on.
    Counter,
    /// It is what it is at present.
    Gauge,
    /// How many took how long.
    Histogram,
}

impl Kind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

macro_rules! families {
    ($($constant:ident = $name:literal, $kind:ident, $labels:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Family =
                Family { name: $name, kind: Kind::$kind, labels: &$labels, help: $help };
        )*

        /// All of them, in the order in which they are exposed.
        pub const ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    BUILD = "atlas_relay_build_info", Gauge, ["version", "program"],
        "Always 1: the version of this program, and whether the XDP program is built into it (yes or no).";
    START_TIME = "process_start_time_seconds", Gauge, [],
        "When the daemon started, in seconds since the Unix epoch.";
    DATAPATH = "atlas_relay_datapath_info", Gauge, ["mode", "why"],
        "Always 1: what forwards (xdp-native, xdp-generic or userspace), and why it is that: of a fallback, what kept the better one away.";
    INTERFACE = "atlas_relay_interface_info", Gauge, ["interface", "mode"],
        "1 for each interface that the XDP program is attached to, 0 once that interface is gone.";
    KEEPER = "atlas_relay_keeper_info", Gauge, ["keeper", "why"],
        "Always 1: who keeps what is open while the daemon restarts (supervisor, pins or nobody).";
    DRAINING = "atlas_relay_draining", Gauge, [],
        "1 while the relay takes no new sessions because it is about to stop, else 0.";
    PACKETS = "atlas_relay_packets_total", Counter, ["datapath", "reason"],
        "Packets by what looked at them (kernel or userspace) and by what became of them; ARCHITECTURE.md lists the reasons.";
    BYTES = "atlas_relay_bytes_total", Counter, ["datapath", "reason"],
        "Bytes of those packets: whole frames in the kernel, UDP payload in userspace.";
    SOCKET_QUEUE_DROPS = "atlas_relay_socket_queue_drops_total", Counter, [],
        "Messages that the kernel dropped because the queue of a socket of the relay's port was full. Merged datagrams count as one.";
    INTERFACE_PACKETS = "atlas_relay_interface_packets_total", Counter, ["interface", "direction"],
        "Packets that the kernel has counted on an interface with the XDP program, or that sessions leave by (receive or transmit): beside what was forwarded.";
    INTERFACE_DROPS = "atlas_relay_interface_dropped_packets_total", Counter, ["interface", "direction"],
        "Packets that the driver or the stack dropped there, those for want of receive buffers included.";
    INTERFACE_ERRORS = "atlas_relay_interface_errors_total", Counter, ["interface", "direction"],
        "Errors that the driver has counted there.";
    RELAYED = "atlas_relay_relayed_bytes_per_second", Gauge, [],
        "UDP payload of all sessions together: an average over five seconds, up to six seconds old; what quotas.relay_total_limit goes by.";
    LIMITED_PACKETS = "atlas_relay_limited_packets_total", Counter, [],
        "Packets that were dropped for the limit of their session, as found when sessions are looked at.";
    LIMITED_BYTES = "atlas_relay_limited_bytes_total", Counter, [],
        "UDP payload of those packets.";
    MARKED_PACKETS = "atlas_relay_marked_packets_total", Counter, ["datapath"],
        "Packets that were marked CE since their session comes near its limit, by what marked them (kernel or userspace).";
    MARKED_BYTES = "atlas_relay_marked_bytes_total", Counter, ["datapath"],
        "UDP payload of those packets.";
    CONNECTIONS = "atlas_relay_control_connections", Gauge, [],
        "Control connections of agents.";
    ANNOUNCED = "atlas_relay_announced_agents", Gauge, [],
        "Agents that others can ask for.";
    OFFERS_OPEN = "atlas_relay_open_offers", Gauge, [],
        "Offers whose sides have not both bound, and sessions that wait for a side to bind again.";
    SESSIONS = "atlas_relay_sessions", Gauge, ["path"],
        "Sessions that carry datagrams, or streams of agents that know only the documented messages (path: datagrams or stream).";
    OFFERS = "atlas_relay_offers_total", Counter, [],
        "Offers made to pairs of agents.";
    PAIRINGS = "atlas_relay_pairings_total", Counter, ["path"],
        "Offers that have become sessions, and pairs of streams that were joined (path: datagrams or stream).";
    ENDED = "atlas_relay_sessions_ended_total", Counter, ["reason"],
        "Sessions and offers that are over; docs/accounting.md lists the reasons.";
    REFUSALS = "atlas_relay_refusals_total", Counter, ["reason"],
        "What the control side has refused; ARCHITECTURE.md lists the reasons.";
    BANS = "atlas_relay_bans", Gauge, ["kind"],
        "Who may not connect at present (kind: node or prefix).";
    HANDSHAKES = "atlas_relay_handshake_seconds", Histogram, [],
        "How long agents took from their first packet that was answered to the end of the handshake.";
    PAIRING_TIMES = "atlas_relay_pairing_seconds", Histogram, [],
        "How long offers took to become sessions: until both sides had bound.";
    SWEEPS = "atlas_relay_sweep_seconds", Histogram, [],
        "How long the relay's loop was busy with what is due: looking at sessions, ending them, asking agents for a sign of life.";
    TABLE_USED = "atlas_relay_table_used_slots", Gauge, [],
        "Slots of the flow tables that sessions have.";
    TABLE_SLOTS = "atlas_relay_table_slots", Gauge, [],
        "Slots that the flow tables have: datapath.max_sessions.";
    TABLE_BYTES = "atlas_relay_table_bytes", Gauge, [],
        "Memory that the flow tables take.";
    REQUESTS = "atlas_relay_http_requests_total", Counter, ["code"],
        "Requests to this endpoint by the status they were answered with; 408 are those that did not come, or were not taken, in time.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_has_a_name_of_its_own_by_the_conventions() {
        let names: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), ALL.len());
        for Family { name, kind, help, labels } in ALL {
            let ours = name.starts_with("atlas_relay_") || *name == START_TIME.name;
            assert!(ours, "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
            assert!(help.ends_with('.') && !help.contains(['|', '\n', '\\']), "{name}: {help}");
            let of_someone = ["session", "node", "agent", "address", "peer"];
            assert!(!labels.iter().any(|label| of_someone.contains(label)), "{name}");
        }
    }
}
