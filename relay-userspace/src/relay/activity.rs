//! What a relay does at the moment: what `net top` shows, worked out from two readings of its counters.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use relay_common::{Action, Reason};
use serde::Serialize;

use super::report::{Peers, STREAM, Session, SessionSide, Sessions, Status};

/// What a relay has said of itself, all at about the same time.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Its agents.
    pub peers: Peers,
    /// Their sessions.
    pub sessions: Sessions,
    /// Its counters.
    pub status: Status,
}

/// `net top`: what happened between two readings. What is given per second is an average over the time between them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Activity {
    /// Seconds between the two readings.
    pub interval_s: f64,
    /// `xdp-native`, `xdp-generic` or `userspace`.
    pub datapath: String,
    /// Whether new sessions are refused because the relay is about to stop.
    pub draining: bool,
    /// Agents that are connected.
    pub agents: usize,
    /// Sessions in the flow tables.
    pub table_sessions: u32,
    /// Sessions the flow tables have room for.
    pub table_max_sessions: u32,
    /// UDP payload that the sessions below have relayed, and of streams their bytes.
    pub bytes_per_s: u64,
    /// Packets that the XDP program has forwarded.
    pub kernel_packets_per_s: u64,
    /// Packets that the userspace forwarder has forwarded.
    pub userspace_packets_per_s: u64,
    /// Reasons for which packets have been dropped since the relay started, the most frequent at the moment first.
    pub dropped: Vec<Dropped>,
    /// Reasons for which control has refused something since the relay started, the most frequent at the moment first.
    pub refused: Vec<Refused>,
    /// Offers and sessions, in no order.
    pub sessions: Vec<SessionActivity>,
}

/// Packets dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The reason's name (ARCHITECTURE.md explains it), or `socket_queue_full`: the kernel's queue to the relay was full.
    pub reason: String,
    /// How many at the moment.
    pub packets_per_s: u64,
    /// How many since the relay started.
    pub packets: u64,
}

/// What control has refused for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The reason's name (ARCHITECTURE.md explains it).
    pub reason: String,
    /// How often at the moment.
    pub times_per_s: u64,
    /// How often since the relay started.
    pub times: u64,
}

/// What one session does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SessionActivity {
    /// Its id, 32 hexadecimal digits.
    pub session: String,
    /// Id of the agent that asked.
    pub connector: String,
    /// What that agent calls itself, which proves nothing; empty: it is not connected.
    pub connector_name: String,
    /// Id of the agent that was asked for.
    pub target: String,
    /// What that agent calls itself, which proves nothing; empty: it is not connected.
    pub target_name: String,
    /// `offered`, `half` or `paired`.
    pub state: String,
    /// `datagrams`, or `stream (readable by the relay)` of agents that know only the documented messages.
    pub path: String,
    /// Who has forwarded for it between the readings or, if nothing came, before: `kernel`, `userspace`, `both` or `nobody`.
    pub forwarded_by: String,
    /// UDP payload of both directions; of a stream: its bytes.
    pub bytes_per_s: u64,
    /// Packets of both directions that were forwarded; of a stream: 0.
    pub packets_per_s: u64,
    /// Its limit; 0: unlimited.
    pub rate_bytes_per_s: u64,
    /// Packets dropped for the limit, at the moment.
    pub limited_packets_per_s: u64,
    /// Packets dropped for the limit since it was offered.
    pub limited_packets: u64,
    /// Packets marked CE, at the moment.
    pub marked_packets_per_s: u64,
    /// Seconds since it was offered.
    pub age_s: u64,
}

impl Activity {
    /// What happened from `before` to `after`, which lie `interval` apart. A session has no rates before its second reading,
    /// and what has begun again, with a relay that was started again, has none either.
    pub fn between(before: &Reading, after: &Reading, interval: Duration) -> Activity {
        let earlier: HashMap<&str, &Session> =
            before.sessions.sessions.iter().map(|session| (session.session.as_str(), session)).collect();
        let names: HashMap<&str, &str> =
            after.peers.peers.iter().map(|peer| (peer.node_id.as_str(), peer.name.as_str())).collect();
        let sessions: Vec<SessionActivity> = after
            .sessions
            .sessions
            .iter()
            .map(|session| {
                let before = earlier.get(session.session.as_str()).copied().unwrap_or(session);
                SessionActivity::between(before, session, interval, &names)
            })
            .collect();
        let (old, new) = (&before.status, &after.status);
        let forwarded = |old: &BTreeMap<String, u64>, new: &BTreeMap<String, u64>| {
            let name = Reason::Forwarded.name();
            per_s(count(old, name), count(new, name), interval)
        };
        Activity {
            interval_s: interval.as_secs_f64(),
            datapath: new.datapath.clone(),
            draining: new.draining,
            agents: new.agents,
            table_sessions: new.table.sessions,
            table_max_sessions: new.table.max_sessions,
            bytes_per_s: sessions.iter().map(|session| session.bytes_per_s).sum(),
            kernel_packets_per_s: forwarded(&old.kernel, &new.kernel),
            userspace_packets_per_s: forwarded(&old.userspace, &new.userspace),
            dropped: dropped(old, new, interval),
            refused: refused(old, new, interval),
            sessions,
        }
    }
}

impl SessionActivity {
    fn between(
        before: &Session,
        after: &Session,
        interval: Duration,
        names: &HashMap<&str, &str>,
    ) -> SessionActivity {
        let rate = |of: fn(&Session) -> u64| per_s(of(before), of(after), interval);
        let name = |id: &str| names.get(id).copied().unwrap_or_default().to_owned();
        SessionActivity {
            session: after.session.clone(),
            connector: after.connector.clone(),
            connector_name: name(&after.connector),
            target: after.target.clone(),
            target_name: name(&after.target),
            state: after.state.clone(),
            path: after.path.clone(),
            forwarded_by: forwarded_by(before, after).to_owned(),
            bytes_per_s: rate(|session| both(session, |side| side.bytes)),
            packets_per_s: rate(|session| both(session, |side| side.packets_kernel + side.packets_userspace)),
            rate_bytes_per_s: after.rate_bytes_per_s,
            limited_packets_per_s: rate(|session| session.limited_packets),
            limited_packets: after.limited_packets,
            marked_packets_per_s: rate(|session| session.marked_packets),
            age_s: after.age_s,
        }
    }
}

fn forwarded_by(before: &Session, after: &Session) -> &'static str {
    if after.path == STREAM {
        return "userspace";
    }
    let packets = |session: &Session| {
        [both(session, |side| side.packets_kernel), both(session, |side| side.packets_userspace)]
    };
    let ([old_kernel, old_userspace], [kernel, userspace]) = (packets(before), packets(after));
    let who = |kernel: bool, userspace: bool| match (kernel, userspace) {
        (true, true) => Some("both"),
        (true, false) => Some("kernel"),
        (false, true) => Some("userspace"),
        (false, false) => None,
    };
    who(kernel > old_kernel, userspace > old_userspace)
        .or_else(|| who(kernel > 0, userspace > 0))
        .unwrap_or("nobody")
}

/// Of both sides together.
fn both(session: &Session, count: fn(&SessionSide) -> u64) -> u64 {
    session.sides.iter().map(count).sum()
}

fn dropped(old: &Status, new: &Status, interval: Duration) -> Vec<Dropped> {
    let is_drop = |name: &str| {
        let reason = Reason::ALL.iter().find(|reason| reason.name() == name);
        // What is none of these never reached the packet path: the kernel dropped it.
        reason.is_none_or(|reason| matches!(reason.action(), Action::Drop | Action::Abort))
    };
    let mut names: Vec<&String> = new.kernel.keys().chain(new.userspace.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let total = |status: &Status, name: &str| count(&status.kernel, name) + count(&status.userspace, name);
    let mut dropped: Vec<Dropped> = names
        .into_iter()
        .filter(|name| is_drop(name) && total(new, name) > 0)
        .map(|name| Dropped {
            reason: name.clone(),
            packets_per_s: per_s(total(old, name), total(new, name), interval),
            packets: total(new, name),
        })
        .collect();
    dropped.sort_by_key(|dropped| std::cmp::Reverse((dropped.packets_per_s, dropped.packets)));
    dropped
}

fn refused(old: &Status, new: &Status, interval: Duration) -> Vec<Refused> {
    let mut refused: Vec<Refused> = new
        .control
        .iter()
        .filter(|(_, times)| **times > 0)
        .map(|(name, times)| Refused {
            reason: name.clone(),
            times_per_s: per_s(count(&old.control, name), *times, interval),
            times: *times,
        })
        .collect();
    refused.sort_by_key(|refused| std::cmp::Reverse((refused.times_per_s, refused.times)));
    refused
}

fn count(counts: &BTreeMap<String, u64>, name: &str) -> u64 {
    counts.get(name).copied().unwrap_or(0)
}

fn per_s(before: u64, after: u64, interval: Duration) -> u64 {
    let seconds = interval.as_secs_f64();
    if seconds <= 0.0 {
        return 0;
    }
    (after.saturating_sub(before) as f64 / seconds).round() as u64
}

#[cfg(test)]
mod tests {
    use super::super::report::{DATAGRAMS, Peer, Table};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn side(packets_kernel: u64, packets_userspace: u64, bytes: u64) -> SessionSide {
        SessionSide { agent: None, relay: None, packets_kernel, packets_userspace, bytes, last_proof_s: None }
    }

    fn session(id: &str, sides: [SessionSide; 2], limited_packets: u64) -> Session {
        Session {
            session: id.to_owned(),
            connector: "atlas_aa".to_owned(),
            target: "atlas_bb".to_owned(),
            state: "paired".to_owned(),
            path: DATAGRAMS.to_owned(),
            rate_bytes_per_s: 1_048_576,
            age_s: 7,
            sides,
            limited_packets,
            limited_bytes: 0,
            marked_packets: 0,
        }
    }

    fn reading(sessions: Vec<Session>, kernel: &[(&str, u64)], userspace: &[(&str, u64)]) -> Reading {
        let counts = |counts: &[(&str, u64)]| {
            counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let table = Table { sessions: 1, max_sessions: 16, bytes: 0 };
        let status =
            Status { kernel: counts(kernel), userspace: counts(userspace), table, ..Status::default() };
        Reading { peers: Peers::default(), sessions: Sessions { sessions }, status }
    }

    #[test]
    fn rates_are_differences_by_the_time_between_the_readings() {
        let before =
            reading(vec![session("1", [side(10, 0, 1000), side(0, 0, 0)], 4)], &[("forwarded", 10)], &[]);
        let after =
            reading(vec![session("1", [side(30, 0, 3000), side(10, 0, 500)], 10)], &[("forwarded", 40)], &[]);
        let activity = Activity::between(&before, &after, 2 * SECOND);
        assert_eq!((activity.bytes_per_s, activity.kernel_packets_per_s), (1250, 15));
        let [session] = &activity.sessions[..] else { panic!("{activity:?}") };
        assert_eq!((session.bytes_per_s, session.packets_per_s), (1250, 15));
        assert_eq!((session.limited_packets_per_s, session.limited_packets), (3, 10));
        assert_eq!((activity.table_sessions, activity.table_max_sessions), (1, 16));
    }

    #[test]
    fn a_session_without_an_earlier_reading_and_one_whose_counters_went_back_have_no_rates() {
        let new =
            reading(vec![session("1", [side(30, 0, 3000), side(0, 0, 0)], 9)], &[("forwarded", 5)], &[]);
        let old =
            reading(vec![session("1", [side(90, 0, 9000), side(0, 0, 0)], 9)], &[("forwarded", 9)], &[]);
        for before in [&Reading::default(), &old] {
            let activity = Activity::between(before, &new, SECOND);
            let [session] = &activity.sessions[..] else { panic!("{activity:?}") };
            assert_eq!((session.bytes_per_s, session.limited_packets_per_s, activity.bytes_per_s), (0, 0, 0));
        }
        assert_eq!(Activity::between(&old, &new, SECOND).kernel_packets_per_s, 0);
        let at_once = Activity::between(&Reading::default(), &new, Duration::ZERO);
        assert_eq!(at_once.kernel_packets_per_s, 0, "no time, no rate");
    }

    #[test]
    fn who_forwards_is_told_by_what_came_last() {
        let by = |before: [u64; 2], after: [u64; 2]| {
            let of =
                |[kernel, userspace]: [u64; 2]| session("1", [side(kernel, 0, 0), side(0, userspace, 0)], 0);
            forwarded_by(&of(before), &of(after))
        };
        assert_eq!(by([0, 0], [0, 0]), "nobody");
        assert_eq!(by([0, 5], [9, 5]), "kernel");
        assert_eq!(by([9, 5], [9, 6]), "userspace");
        assert_eq!(by([9, 5], [10, 6]), "both");
        assert_eq!(by([9, 0], [9, 0]), "kernel", "nothing came: who did before");
        let stream = Session { path: STREAM.to_owned(), ..session("1", [side(0, 0, 0), side(0, 0, 0)], 0) };
        assert_eq!(forwarded_by(&stream, &stream), "userspace");
    }

    #[test]
    fn drops_are_those_of_program_and_forwarder_and_passes_are_none() {
        let before = reading(vec![], &[("limited", 1), ("no_flow", 5)], &[("limited", 1)]);
        let after = reading(
            vec![],
            &[("limited", 4), ("no_flow", 9), ("forwarded", 3), ("contended", 2)],
            &[("limited", 2), ("socket_queue_full", 7), ("send_failed", 0)],
        );
        let activity = Activity::between(&before, &after, SECOND);
        let dropped: Vec<(&str, u64, u64)> = activity
            .dropped
            .iter()
            .map(|dropped| (dropped.reason.as_str(), dropped.packets_per_s, dropped.packets))
            .collect();
        assert_eq!(dropped, [("socket_queue_full", 7, 7), ("limited", 4, 6), ("contended", 2, 2)]);
    }

    #[test]
    fn refusals_are_told_with_the_most_frequent_of_the_moment_first() {
        let of = |counts: &[(&str, u64)]| {
            let control = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
            Reading { status: Status { control, ..Status::default() }, ..Reading::default() }
        };
        let before = of(&[("a", 100), ("b", 1), ("c", 0)]);
        let activity = Activity::between(&before, &of(&[("a", 100), ("b", 3), ("c", 0)]), SECOND);
        let expected = [("b", 2, 3), ("a", 0, 100)].map(|(reason, times_per_s, times)| Refused {
            reason: reason.to_owned(),
            times_per_s,
            times,
        });
        assert_eq!(activity.refused, expected);
    }

    #[test]
    fn agents_have_the_names_that_the_relay_knows() {
        let mut reading = reading(vec![session("1", [side(0, 0, 0), side(0, 0, 0)], 0)], &[], &[]);
        reading.peers.peers.push(Peer {
            node_id: "atlas_bb".to_owned(),
            name: "bob".to_owned(),
            address: String::new(),
            announced: true,
            connected_s: 0,
        });
        let activity = Activity::between(&reading, &reading, SECOND);
        let [session] = &activity.sessions[..] else { panic!("{activity:?}") };
        assert_eq!((session.connector_name.as_str(), session.target_name.as_str()), ("", "bob"));
    }
}
