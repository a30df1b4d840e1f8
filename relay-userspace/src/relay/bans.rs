//! Who is kept from connecting for a while, and why.
//!
//! Pure: time is a parameter. A ban says who may not begin a connection; connections that exist are not touched. What it
//! is about is a node id where one was proved, and a source prefix only for what failed before that: behind one address
//! there may be many who have nothing to do with each other. Bans outlive the daemon (`kept_bans.rs`), what may lead to one
//! does not.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::prefix::Prefix;
use super::remembered::Remembered;
use super::rendezvous::Refusal;
use super::sliding_count::SlidingCount;
use crate::clock::MonoTime;
use crate::identity::NodeId;
use crate::refusals::RefusalReason as _;

/// So many violations of one node within [`WINDOW`] ban it: the documented rule.
pub const NODE_VIOLATIONS: usize = 3;

/// So many failures of one prefix within [`WINDOW`] ban it: two a second. A broken agent that tries again a second after
/// each failure, which is sooner than any does that waits longer from failure to failure, does not get the others behind
/// its address banned. And what fewer cost is little: each takes less than a millisecond, and how many are under way at
/// once is bounded otherwise.
pub const PREFIX_FAILURES: u64 = 600;

/// A prefix is not banned for longer than this for its failures: one broken host must not lock out for long all others
/// behind its address. A flood is held off by that just as well, as it is banned again after as many failures.
pub const LONGEST_PREFIX_BAN: Duration = Duration::from_secs(60);

/// Violations and failures are forgotten after this.
pub const WINDOW: Duration = Duration::from_secs(300);

/// So many nodes and prefixes each are remembered that may get banned.
const MAX_SUSPECTS: usize = 8192;

/// So many nodes and prefixes each are banned at a time. One more takes the place of the one banned longest ago.
const MAX_BANS: usize = 16_384;

/// Bans that an operator may have made at a time. They give way to no other.
const MAX_BY_HAND: usize = 1024;

/// Whom a ban is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BanSubject {
    /// A node, wherever it connects from.
    Node(NodeId),
    /// Whoever connects from there.
    Prefix(Prefix),
}

/// Why somebody is banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanCause {
    /// Too many violations or failures; this was the last.
    Refused(Refusal),
    /// The operator wanted it.
    ByHand,
}

/// A ban, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BanStatus {
    /// Whom it is about.
    pub subject: BanSubject,
    /// For how long still.
    pub left: Duration,
    /// Why.
    pub cause: BanCause,
}

/// Violations, failures and bans.
#[derive(Debug)]
pub struct Bans {
    duration: Duration,
    /// The times of each node's last violations, as many as do not ban it yet.
    violations: Remembered<NodeId, [Option<MonoTime>; NODE_VIOLATIONS - 1]>,
    failures: Remembered<Prefix, SlidingCount>,
    nodes: Remembered<NodeId, Ban>,
    prefixes: Remembered<Prefix, Ban>,
    by_hand: BTreeMap<BanSubject, Ban>,
}

#[derive(Clone, Copy, Debug)]
struct Ban {
    until: MonoTime,
    cause: BanCause,
}

impl Bans {
    /// Nobody is banned. Nodes that will be are so for `duration`, prefixes for no longer than [`LONGEST_PREFIX_BAN`]; zero:
    /// nobody will be.
    pub fn new(duration: Duration) -> Bans {
        Bans {
            duration,
            violations: Remembered::new(MAX_SUSPECTS),
            failures: Remembered::new(MAX_SUSPECTS),
            nodes: Remembered::new(MAX_BANS),
            prefixes: Remembered::new(MAX_BANS),
            by_hand: BTreeMap::new(),
        }
    }

    /// Who is banned from now on is so for `duration`. Zero lets those in again who were not banned by hand.
    pub fn set_duration(&mut self, duration: Duration) {
        self.duration = duration;
        if duration.is_zero() {
            (self.nodes, self.prefixes) = (Remembered::new(MAX_BANS), Remembered::new(MAX_BANS));
        }
    }

    /// A node that has proved its key has done what no sound agent does. True: it is banned for that.
    pub fn violation(&mut self, node: NodeId, cause: Refusal, now: MonoTime) -> bool {
        let times = self.violations.see(node, now, Default::default);
        times.rotate_left(1);
        let earliest = times.last_mut().and_then(|last| last.replace(now));
        if self.duration.is_zero() || earliest.is_none_or(|earliest| now.since(earliest) >= WINDOW) {
            return false;
        }
        self.violations.remove(&node);
        *self.nodes.see(node, now, Ban::never) = Ban::of(cause, now + self.duration);
        true
    }

    /// A handshake from `prefix` has failed before a key was proved; its address was. True: the prefix is banned for that.
    pub fn failure(&mut self, prefix: Prefix, cause: Refusal, now: MonoTime) -> bool {
        let failures = self.failures.see(prefix, now, Default::default);
        failures.add(WINDOW, now);
        if self.duration.is_zero() || failures.within(WINDOW, now) < PREFIX_FAILURES {
            return false;
        }
        self.failures.remove(&prefix);
        let until = now + self.duration.min(LONGEST_PREFIX_BAN);
        *self.prefixes.see(prefix, now, Ban::never) = Ban::of(cause, until);
        true
    }

    /// Bans somebody because the operator wants it; who is banned already, for that long from now on.
    ///
    /// # Errors
    /// The operator has banned as many as can be.
    pub fn add(&mut self, subject: BanSubject, duration: Duration, now: MonoTime) -> Result<(), TooManyBans> {
        self.by_hand.retain(|_, ban| ban.until > now);
        if self.by_hand.len() >= MAX_BY_HAND && !self.by_hand.contains_key(&subject) {
            return Err(TooManyBans);
        }
        self.lift(subject, now);
        self.by_hand.insert(subject, Ban { until: now + duration, cause: BanCause::ByHand });
        Ok(())
    }

    /// Goes on with a ban that a predecessor has given.
    pub fn restore(&mut self, ban: BanStatus, now: MonoTime) {
        let BanStatus { subject, left, cause } = ban;
        let longest = match (cause, subject) {
            (BanCause::ByHand, _) => left,
            (BanCause::Refused(_), BanSubject::Node(_)) => self.duration,
            (BanCause::Refused(_), BanSubject::Prefix(_)) => self.duration.min(LONGEST_PREFIX_BAN),
        };
        let present = Ban { until: now + left.min(longest), cause };
        match (cause, subject) {
            (BanCause::ByHand, subject) if self.by_hand.len() < MAX_BY_HAND => {
                self.by_hand.insert(subject, present);
            }
            (BanCause::ByHand, _) => {}
            (BanCause::Refused(_), _) if self.duration.is_zero() => {}
            (BanCause::Refused(_), BanSubject::Node(node)) => {
                *self.nodes.see(node, now, Ban::never) = present
            }
            (BanCause::Refused(_), BanSubject::Prefix(prefix)) => {
                *self.prefixes.see(prefix, now, Ban::never) = present;
            }
        }
    }

    /// Lets somebody in again, and forgets what there was against them. False: they were not banned.
    pub fn lift(&mut self, subject: BanSubject, now: MonoTime) -> bool {
        let was_banned = self.left(subject, now).is_some();
        self.by_hand.remove(&subject);
        match subject {
            BanSubject::Node(node) => {
                self.nodes.remove(&node);
                self.violations.remove(&node);
            }
            BanSubject::Prefix(prefix) => {
                self.prefixes.remove(&prefix);
                self.failures.remove(&prefix);
            }
        }
        was_banned
    }

    /// For how long somebody is banned still; None: they are not.
    pub fn left(&self, subject: BanSubject, now: MonoTime) -> Option<Duration> {
        let automatic = match subject {
            BanSubject::Node(node) => self.nodes.get(&node),
            BanSubject::Prefix(prefix) => self.prefixes.get(&prefix),
        };
        let bans = [automatic, self.by_hand.get(&subject)];
        bans.into_iter().flatten().map(|ban| ban.until.since(now)).filter(|left| !left.is_zero()).max()
    }

    /// All who are banned, nodes first.
    pub fn list(&self, now: MonoTime) -> Vec<BanStatus> {
        let nodes = self.nodes.iter().map(|(node, ban)| (BanSubject::Node(node), ban));
        let prefixes = self.prefixes.iter().map(|(prefix, ban)| (BanSubject::Prefix(prefix), ban));
        let by_hand = self.by_hand.iter().map(|(subject, ban)| (*subject, ban));
        let status = |(subject, ban): (BanSubject, &Ban)| BanStatus {
            subject,
            left: ban.until.since(now),
            cause: ban.cause,
        };
        let all = nodes.chain(prefixes).chain(by_hand).map(status);
        let mut bans: Vec<BanStatus> = all.filter(|ban| !ban.left.is_zero()).collect();
        bans.sort_by_key(|ban| ban.subject);
        bans
    }
}

impl Ban {
    fn of(cause: Refusal, until: MonoTime) -> Ban {
        Ban { until, cause: BanCause::Refused(cause) }
    }

    /// What a new entry is before it is written.
    const fn never() -> Ban {
        Ban { until: MonoTime(0), cause: BanCause::ByHand }
    }
}

/// The operator has banned as many as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_BY_HAND} bans made by hand already: lift one with `atlas-relay bans lift`")]
pub struct TooManyBans;

impl fmt::Display for BanCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BanCause::Refused(refusal) => refusal.name(),
            BanCause::ByHand => "by hand",
        })
    }
}

impl fmt::Display for BanSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BanSubject::Node(node) => node.fmt(f),
            BanSubject::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl FromStr for BanSubject {
    type Err = String;

    fn from_str(text: &str) -> Result<BanSubject, String> {
        if text.starts_with(NodeId::PREFIX) {
            return text
                .parse()
                .map(BanSubject::Node)
                .map_err(|error: crate::identity::NodeIdError| error.to_string());
        }
        text.parse().map(BanSubject::Prefix).map_err(|_| {
            let text: String = text.chars().take(80).collect();
            format!(
                "{text:?} can be neither banned nor let in: expected a node id (atlas_ and 64 hexadecimal digits), \
                 an IPv4 address or an IPv6 /56"
            )
        })
    }
}

impl serde::Serialize for BanSubject {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for BanSubject {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> MonoTime {
        MonoTime(0) + Duration::from_secs(1_000_000 + seconds)
    }

    fn node(number: u64) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn violates(bans: &mut Bans, times: &[u64]) -> Vec<bool> {
        times.iter().map(|time| bans.violation(node(1), Refusal::BadFrame, at(*time))).collect()
    }

    #[test]
    fn three_violations_in_five_minutes_ban_a_node_for_as_long_as_is_configured() {
        let mut bans = Bans::new(HOUR);
        assert_eq!(violates(&mut bans, &[0, 200, 299]), [false, false, true]);
        let (banned, other) = (BanSubject::Node(node(1)), BanSubject::Node(node(2)));
        assert_eq!(bans.left(banned, at(300)), Some(HOUR - Duration::from_secs(1)));
        assert_eq!(bans.left(other, at(300)), None);
        assert_eq!(bans.left(banned, at(299 + 3600)), None);
    }

    #[test]
    fn violations_further_apart_do_not() {
        let mut bans = Bans::new(HOUR);
        assert_eq!(violates(&mut bans, &[0, 200, 300, 501, 700, 802]), [false; 6]);
        assert_eq!(violates(&mut bans, &[803]), [true], "700, 802, 803");
    }

    #[test]
    fn after_a_ban_violations_are_counted_from_none() {
        let mut bans = Bans::new(Duration::from_secs(10));
        assert_eq!(violates(&mut bans, &[0, 0, 0, 11, 12, 13]), [false, false, true, false, false, true]);
    }

    #[test]
    fn a_prefix_survives_one_agent_that_fails_every_second_but_not_a_flood_of_failures() {
        let mut bans = Bans::new(HOUR);
        let nat = prefix("192.0.2.1");
        for second in 0..3600 {
            assert!(!bans.failure(nat, Refusal::TlsFailed, at(second)));
        }
        let mut bans = Bans::new(HOUR);
        let banned = (1..).find(|_| bans.failure(nat, Refusal::TlsFailed, at(0)));
        assert_eq!(banned, Some(PREFIX_FAILURES));
        assert!(bans.left(BanSubject::Prefix(nat), at(1)).is_some());
        assert_eq!(bans.left(BanSubject::Prefix(prefix("192.0.2.2")), at(1)), None);
    }

    #[test]
    fn a_prefix_is_banned_for_a_minute_at_most_unless_the_operator_wants_more() {
        let nat = BanSubject::Prefix(prefix("192.0.2.1"));
        for (duration, expected) in [(10, 10), (60, 60), (3600, 60)] {
            let mut bans = Bans::new(Duration::from_secs(duration));
            while !bans.failure(prefix("192.0.2.1"), Refusal::TlsFailed, at(0)) {}
            assert_eq!(bans.left(nat, at(0)), Some(Duration::from_secs(expected)));
            assert_eq!(bans.left(nat, at(expected)), None, "who is behind it may try again");
            bans.add(nat, HOUR, at(0)).unwrap();
            assert_eq!(bans.left(nat, at(0)), Some(HOUR));
        }
    }

    #[test]
    fn with_a_duration_of_zero_nobody_is_banned_and_who_was_is_let_in() {
        let mut bans = Bans::new(HOUR);
        assert_eq!(violates(&mut bans, &[0, 0, 0]), [false, false, true]);
        bans.set_duration(Duration::ZERO);
        assert_eq!(bans.list(at(0)), []);
        assert_eq!(violates(&mut bans, &[0, 0, 0, 0]), [false; 4]);
        assert!((0..2 * PREFIX_FAILURES).all(|_| !bans.failure(
            prefix("192.0.2.1"),
            Refusal::TlsFailed,
            at(0)
        )));
        bans.set_duration(HOUR);
        assert_eq!(violates(&mut bans, &[1]), [true]);
    }

    #[test]
    fn a_ban_is_lifted_with_all_there_was_against_them() {
        let mut bans = Bans::new(HOUR);
        violates(&mut bans, &[0, 0, 0, 0, 0]);
        let subject = BanSubject::Node(node(1));
        assert!(bans.lift(subject, at(1)));
        assert!(!bans.lift(subject, at(1)), "they are not banned any more");
        assert_eq!(violates(&mut bans, &[1, 1]), [false; 2]);
    }

    #[test]
    fn the_operator_bans_for_as_long_as_he_says_and_the_list_tells_why() {
        let mut bans = Bans::new(HOUR);
        let (by_hand, nat) = (BanSubject::Node(node(2)), BanSubject::Prefix(prefix("2001:db8::1")));
        violates(&mut bans, &[0, 0, 0]);
        bans.add(by_hand, Duration::from_secs(5), at(0)).unwrap();
        bans.add(nat, HOUR * 24, at(0)).unwrap();
        let listed: Vec<String> = bans
            .list(at(1))
            .iter()
            .map(|ban| format!("{} {} {}", ban.subject, ban.left.as_secs(), ban.cause))
            .collect();
        assert_eq!(
            listed,
            [
                format!("{} 3599 bad_frame", node(1)),
                format!("{} 4 by hand", node(2)),
                "2001:db8::/56 86399 by hand".to_owned(),
            ]
        );
        assert_eq!(bans.list(at(5)).len(), 2);
        bans.set_duration(Duration::ZERO);
        assert!(bans.left(nat, at(5)).is_some(), "it is not the daemon's");
    }

    #[test]
    fn however_many_violate_memory_is_bounded_and_what_the_operator_banned_stays() {
        let mut bans = Bans::new(HOUR);
        let by_hand = BanSubject::Node(node(u64::MAX));
        bans.add(by_hand, HOUR, at(0)).unwrap();
        for number in 0..MAX_BANS as u64 + 100 {
            for _ in 0..NODE_VIOLATIONS {
                bans.violation(node(number), Refusal::BadFrame, at(number / 1000));
            }
            bans.violation(node(u64::MAX - 1 - number), Refusal::BadFrame, at(number / 1000));
        }
        assert_eq!(bans.list(at(20)).len(), MAX_BANS + 1);
        assert_eq!(bans.left(BanSubject::Node(node(0)), at(20)), None, "the one banned longest ago");
        assert!(bans.left(by_hand, at(20)).is_some());
        assert!(bans.violations.iter().count() <= MAX_SUSPECTS);
        for number in 0..MAX_BY_HAND as u64 - 1 {
            bans.add(BanSubject::Node(node(number)), HOUR, at(20)).unwrap();
        }
        assert_eq!(bans.add(BanSubject::Node(node(5_000)), HOUR, at(20)), Err(TooManyBans));
        bans.add(by_hand, HOUR, at(20)).unwrap();
        bans.add(BanSubject::Node(node(5_000)), HOUR, at(20) + HOUR).unwrap();
    }

    #[test]
    fn subjects_are_read_as_they_are_written() {
        for text in [&*node(7).to_string(), "192.0.2.1", "2001:db8::/56"] {
            assert_eq!(text.parse::<BanSubject>().unwrap().to_string(), text);
            assert_eq!(serde_json::to_value(text.parse::<BanSubject>().unwrap()).unwrap(), text);
        }
        let error = "atlas_12".parse::<BanSubject>().unwrap_err();
        assert!(error.contains("64 lower-case hexadecimal digits"), "{error}");
        assert!("relay.example".parse::<BanSubject>().unwrap_err().contains("IPv6 /56"));
    }
}
