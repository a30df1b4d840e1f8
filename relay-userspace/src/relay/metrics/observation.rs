//! What the driver says of the relay at one time, and how it is exposed.

use relay_common::{Reason, Tally};

use super::event_counts::EventCounts;
use super::exposition::Exposition;
use super::names;
use crate::relay::datapath::{LinkCounts, OBJECT};
use crate::relay::rendezvous::Counts;

/// What there is, and what has been counted since the daemon's start.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Of the packet path.
    pub path: PathFigures,
    /// Of agents and sessions.
    pub counts: Counts,
    /// What has happened.
    pub events: EventCounts,
    /// What control has refused, by reason.
    pub refusals: Vec<(&'static str, u64)>,
    /// Nodes and prefixes that are banned.
    pub bans: [u64; 2],
    /// How many sessions are left, if the relay is being drained.
    pub draining: Option<usize>,
    /// UDP payload bytes per second of all sessions together.
    pub relayed_bytes_per_s: u64,
}

/// What the packet path says.
#[derive(Clone, Debug)]
pub struct PathFigures {
    /// `xdp-native`, `xdp-generic` or `userspace`.
    pub mode: &'static str,
    /// Why this one.
    pub why: String,
    /// `supervisor`, `pins` or `nobody`.
    pub keeper: &'static str,
    /// Why that one.
    pub keeper_why: String,
    /// Where the program is attached, and what else it sends by.
    pub interfaces: Vec<WatchedInterface>,
    /// By what became of it in the program; empty without.
    pub kernel: Vec<(Reason, Tally)>,
    /// The same in the forwarder.
    pub userspace: Vec<(Reason, Tally)>,
    /// Packets that were marked CE, with their UDP payload, by who did that.
    pub marked: Vec<(&'static str, Tally)>,
    /// Messages that did not fit a socket's queue.
    pub socket_queue_drops: u64,
    /// Slots that are in use.
    pub slots_used: u32,
    /// Slots that there are.
    pub slots: u32,
    /// The memory that the tables take.
    pub table_bytes: u64,
}

/// An interface that packets of sessions come or leave by.
#[derive(Clone, Debug)]
pub struct WatchedInterface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// How the program was attached to it: `xdp-native` or `xdp-generic`; none: packets only leave by it.
    pub mode: Option<&'static str>,
}

/// What the endpoint itself adds.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// When the daemon started, in seconds since the Unix epoch.
    pub start_time_s: f64,
    /// Of these interfaces; none: it is gone.
    pub interfaces: Vec<(WatchedInterface, Option<LinkCounts>)>,
    /// Requests to the endpoint by their status.
    pub requests: Vec<(u16, u64)>,
}

impl Observation {
    /// The text for Prometheus.
    pub fn expose(&self, surroundings: &Surroundings) -> String {
        let mut to = Exposition::default();
        let program = if OBJECT.is_some() { "yes" } else { "no" };
        to.family(&names::BUILD).sample([env!("CARGO_PKG_VERSION"), program], 1);
        to.single(&names::START_TIME, surroundings.start_time_s);
        self.path.expose_kind(&surroundings.interfaces, &mut to);
        to.single(&names::DRAINING, u8::from(self.draining.is_some()));
        self.path.expose_packets(&mut to);
        expose_interfaces(&surroundings.interfaces, &mut to);
        self.expose_sessions(&mut to);
        self.expose_control(&mut to);
        self.path.expose_table(&mut to);
        let mut requests = to.family(&names::REQUESTS);
        for (code, count) in &surroundings.requests {
            requests.sample([&code.to_string()], count);
        }
        to.into_text()
    }

    fn expose_sessions(&self, to: &mut Exposition) {
        let Observation { counts, events, relayed_bytes_per_s, .. } = self;
        to.single(&names::RELAYED, relayed_bytes_per_s);
        to.single(&names::LIMITED_PACKETS, counts.restrained.limited_packets);
        to.single(&names::LIMITED_BYTES, counts.restrained.limited_bytes);
        let mut packets = to.family(&names::MARKED_PACKETS);
        for (of, tally) in &self.path.marked {
            packets.sample([*of], tally.packets);
        }
        let mut bytes = to.family(&names::MARKED_BYTES);
        for (of, tally) in &self.path.marked {
            bytes.sample([*of], tally.bytes);
        }
        to.single(&names::CONNECTIONS, counts.connections);
        to.single(&names::ANNOUNCED, counts.announced);
        let installed = self.path.slots_used as usize;
        to.single(&names::OFFERS_OPEN, counts.sessions_and_offers.saturating_sub(installed));
        let mut sessions = to.family(&names::SESSIONS);
        sessions.sample([DATAGRAMS], installed);
        sessions.sample([STREAM], counts.spliced);
        to.single(&names::OFFERS, events.offers);
        let mut pairings = to.family(&names::PAIRINGS);
        pairings.sample([DATAGRAMS], events.paired);
        pairings.sample([STREAM], events.spliced);
        let mut ended = to.family(&names::ENDED);
        for (reason, count) in &events.ended {
            ended.sample([reason], count);
        }
    }

    fn expose_control(&self, to: &mut Exposition) {
        let Observation { events, refusals, bans: [nodes, prefixes], .. } = self;
        let mut refused = to.family(&names::REFUSALS);
        for (reason, count) in refusals {
            refused.sample([reason], count);
        }
        let mut bans = to.family(&names::BANS);
        bans.sample(["node"], nodes);
        bans.sample(["prefix"], prefixes);
        to.family(&names::HANDSHAKES).histogram(&events.handshakes);
        to.family(&names::PAIRING_TIMES).histogram(&events.pairings);
        to.family(&names::SWEEPS).histogram(&events.sweeps);
    }
}

impl PathFigures {
    fn expose_kind(&self, interfaces: &[(WatchedInterface, Option<LinkCounts>)], to: &mut Exposition) {
        to.family(&names::DATAPATH).sample([self.mode, &self.why], 1);
        let mut attached = to.family(&names::INTERFACE);
        for (interface, counts) in interfaces {
            if let Some(mode) = interface.mode {
                attached.sample([&interface.name, mode], u8::from(counts.is_some()));
            }
        }
        to.family(&names::KEEPER).sample([self.keeper, &self.keeper_why], 1);
    }

    fn expose_packets(&self, to: &mut Exposition) {
        let both = [("kernel", &self.kernel), ("userspace", &self.userspace)];
        let all = || {
            both.iter().flat_map(|(of, tallies)| {
                tallies.iter().map(move |(reason, tally)| (*of, reason.name(), tally))
            })
        };
        let mut packets = to.family(&names::PACKETS);
        for (of, reason, tally) in all() {
            packets.sample([of, reason], tally.packets);
        }
        let mut bytes = to.family(&names::BYTES);
        for (of, reason, tally) in all() {
            bytes.sample([of, reason], tally.bytes);
        }
        to.single(&names::SOCKET_QUEUE_DROPS, self.socket_queue_drops);
    }

    fn expose_table(&self, to: &mut Exposition) {
        to.single(&names::TABLE_USED, self.slots_used);
        to.single(&names::TABLE_SLOTS, self.slots);
        to.single(&names::TABLE_BYTES, self.table_bytes);
    }
}

fn expose_interfaces(interfaces: &[(WatchedInterface, Option<LinkCounts>)], to: &mut Exposition) {
    let families = [
        (&names::INTERFACE_PACKETS, (|counts| counts.packets) as fn(&LinkCounts) -> [u64; 2]),
        (&names::INTERFACE_DROPS, |counts| counts.dropped),
        (&names::INTERFACE_ERRORS, |counts| counts.errors),
    ];
    for (family, of) in families {
        let mut samples = to.family(family);
        for (WatchedInterface { name, .. }, counts) in interfaces {
            let Some(counts) = counts else { continue };
            let [received, transmitted] = of(counts);
            samples.sample([name, "receive"], received);
            samples.sample([name, "transmit"], transmitted);
        }
    }
}

/// The path of sessions whose agents bind data sockets.
const DATAGRAMS: &str = "datagrams";

/// The path of those whose streams are joined.
const STREAM: &str = "stream";

#[cfg(test)]
impl Observation {
    /// Of a relay that has done nothing yet.
    pub fn example() -> Observation {
        let nothing = |reason: &Reason| (*reason, Tally::default());
        Observation {
            path: PathFigures {
                mode: "userspace",
                why: "asked for".to_owned(),
                keeper: "nobody",
                keeper_why: "nobody was looked for".to_owned(),
                interfaces: Vec::new(),
                kernel: Vec::new(),
                userspace: Reason::ALL.iter().map(nothing).collect(),
                marked: vec![("userspace", Tally::default())],
                socket_queue_drops: 0,
                slots_used: 0,
                slots: 16,
                table_bytes: 4096,
            },
            counts: Counts::default(),
            events: EventCounts::default(),
            refusals: vec![("draining", 0)],
            bans: [0, 0],
            draining: None,
            relayed_bytes_per_s: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_of_the_table_is_exposed_once_and_no_other() {
        let text = Observation::example().expose(&Surroundings::default());
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let exposed: Vec<&str> = types.filter_map(|rest| rest.split(' ').next()).collect();
        let table: Vec<&str> = names::ALL.iter().map(|family| family.name).collect();
        assert_eq!(exposed, table);
    }

    #[test]
    fn no_series_comes_twice() {
        let mut observation = Observation::example();
        observation.path.kernel = observation.path.userspace.clone();
        let interface =
            |name: &str| WatchedInterface { index: 1, name: name.to_owned(), mode: Some("xdp-native") };
        let surroundings = Surroundings {
            interfaces: vec![
                (interface("eth0"), Some(LinkCounts::default())),
                (interface("eth1"), Some(LinkCounts::default())),
                (interface("eth2"), None),
            ],
            requests: vec![(200, 1), (404, 0)],
            ..Surroundings::default()
        };
        let text = observation.expose(&surroundings);
        let series =
            || text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        let different: BTreeSet<&str> = series().map(|(name, _)| name).collect();
        assert_eq!(different.len(), series().count());
    }

    #[test]
    fn what_an_interface_counts_that_packets_only_leave_by_is_exposed_without_a_mode() {
        let leaving = WatchedInterface { index: 2, name: "eth1".to_owned(), mode: None };
        let surroundings = Surroundings {
            interfaces: vec![(leaving, Some(LinkCounts::default()))],
            ..Surroundings::default()
        };
        let text = Observation::example().expose(&surroundings);
        let dropped =
            "atlas_relay_interface_dropped_packets_total{interface=\"eth1\",direction=\"transmit\"} 0";
        assert!(text.contains(dropped), "{text}");
        assert!(!text.contains("atlas_relay_interface_info{"), "{text}");
    }

    #[test]
    fn marked_packets_and_bytes_are_told_by_who_marked_them() {
        let mut observation = Observation::example();
        let tally = |packets, bytes| Tally { packets, bytes };
        observation.path.marked = vec![("kernel", tally(2, 2400)), ("userspace", tally(1, 1000))];
        let text = observation.expose(&Surroundings::default());
        for series in [
            "atlas_relay_marked_packets_total{datapath=\"kernel\"} 2",
            "atlas_relay_marked_packets_total{datapath=\"userspace\"} 1",
            "atlas_relay_marked_bytes_total{datapath=\"kernel\"} 2400",
            "atlas_relay_marked_bytes_total{datapath=\"userspace\"} 1000",
        ] {
            assert!(text.lines().any(|line| line == series), "{series}: {text}");
        }
    }
}
