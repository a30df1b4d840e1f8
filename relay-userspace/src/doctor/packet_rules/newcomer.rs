//! A packet of which little is known, and whether it meets the conditions of a rule.

use serde_json::Value;

/// A packet of UDP to the port, from anywhere: the first of its connection, or not tracked.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer<'p> {
    /// Where it goes.
    pub port: u16,
    /// The interface that it comes by; none: there are several, or it is not known.
    pub interface: Option<&'p str>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// For nobody.
    No,
    /// For some, or it cannot be told.
    Maybe,
    /// For everybody.
    Yes,
}

/// What is known of one property of the packet.
enum Known<'p> {
    Nothing,
    /// It is of another protocol than the property.
    HasNone,
    Port(u16),
    Interface(Option<&'p str>),
    Words(&'static [&'static str]),
}

impl<'p> Newcomer<'p> {
    /// Whether it meets what a part of a rule demands. `set` finds a set by its name.
    pub(super) fn meets<'r>(self, part: &'r Value, set: &dyn Fn(&str) -> Option<&'r Value>) -> Holds {
        let Some(of) = part.get("match") else {
            // These hold sometimes, and extensions of iptables cannot be read.
            let doubtful = ["limit", "quota", "ct count", "xt"];
            return match doubtful.iter().any(|kind| part.get(kind).is_some()) {
                true => Holds::Maybe,
                false => Holds::Yes,
            };
        };
        let (Some(left), Some(right)) = (of.get("left"), of.get("right")) else { return Holds::Maybe };
        if matches!(self.known(left), Known::HasNone) {
            return Holds::No;
        }
        match (of.get("op").and_then(Value::as_str), self.is_one_of(left, right, set)) {
            (Some("==" | "in"), holds) => holds,
            (Some("!="), Holds::Yes) => Holds::No,
            (Some("!="), Holds::No) => Holds::Yes,
            _ => Holds::Maybe,
        }
    }

    /// Whether the property `left` of it is `right`, or one of those that `right` names.
    pub(super) fn is_one_of<'r>(
        self,
        left: &Value,
        right: &'r Value,
        set: &dyn Fn(&str) -> Option<&'r Value>,
    ) -> Holds {
        let known = self.known(left);
        let any = |values: &'r Value| {
            let each = values.as_array().into_iter().flatten();
            each.map(|value| self.is_one_of(left, value, set)).max().unwrap_or(Holds::No)
        };
        match right {
            Value::Array(_) => any(right),
            Value::Number(number) => known.is(&number.to_string()),
            Value::String(word) => match word.strip_prefix('@') {
                Some(name) => set(name).map_or(Holds::Maybe, any),
                // What is left in a map.
                None if word == "*" => Holds::Yes,
                None => known.is(word),
            },
            Value::Object(of) => match (of.get("set"), of.get("elem"), of.get("range")) {
                (Some(values), ..) => self.is_one_of(left, values, set),
                (_, Some(element), _) => {
                    element.get("val").map_or(Holds::Maybe, |value| self.is_one_of(left, value, set))
                }
                (.., Some(range)) => known.is_within(range),
                _ => Holds::Maybe,
            },
            _ => Holds::Maybe,
        }
    }

    fn known(self, left: &Value) -> Known<'p> {
        let of = |kind: &str, key: &str| left.get(kind)?.get(key)?.as_str();
        if let Some(masked) = left.get("&").and_then(|both| both.get(0)) {
            return match self.known(masked) {
                Known::HasNone => Known::HasNone,
                _ => Known::Nothing,
            };
        }
        match (of("meta", "key"), of("ct", "key"), of("fib", "result")) {
            (Some("l4proto"), ..) => return Known::Words(&["udp", "17"]),
            (Some("iifname"), ..) => return Known::Interface(self.interface),
            (Some("pkttype"), ..) => return Known::Words(&["host", "unicast"]),
            (_, Some("state"), _) => return Known::Words(&["new", "untracked"]),
            // Nothing has become of it yet: firewalld asks whether it was translated.
            (_, Some("status"), _) => return Known::Words(&[]),
            (.., Some("type")) => return Known::Words(&["local"]),
            _ => {}
        }
        match (of("payload", "protocol"), of("payload", "field")) {
            (Some("udp" | "th"), Some("dport")) => Known::Port(self.port),
            (Some("ip"), Some("protocol")) | (Some("ip6"), Some("nexthdr")) => Known::Words(&["udp", "17"]),
            (
                Some(
                    "tcp" | "icmp" | "icmpv6" | "sctp" | "dccp" | "udplite" | "esp" | "ah" | "comp" | "igmp",
                ),
                _,
            ) => Known::HasNone,
            _ => Known::Nothing,
        }
    }
}

impl Known<'_> {
    fn is(&self, value: &str) -> Holds {
        let surely = |holds| if holds { Holds::Yes } else { Holds::No };
        match self {
            Known::Nothing => Holds::Maybe,
            Known::HasNone => Holds::No,
            Known::Port(port) => value.parse::<u16>().map_or(Holds::Maybe, |value| surely(value == *port)),
            // Not from this host itself.
            Known::Interface(_) if value == "lo" => Holds::No,
            Known::Interface(Some(name)) if value == *name => Holds::Yes,
            Known::Interface(_) => Holds::Maybe,
            Known::Words(words) => surely(words.contains(&value)),
        }
    }

    fn is_within(&self, range: &Value) -> Holds {
        let bound = |place: usize| range.get(place).and_then(Value::as_u64);
        match (self, bound(0), bound(1)) {
            (Known::Port(port), Some(first), Some(last)) => {
                if (first..=last).contains(&u64::from(*port)) {
                    Holds::Yes
                } else {
                    Holds::No
                }
            }
            (Known::HasNone, ..) => Holds::No,
            _ => Holds::Maybe,
        }
    }
}
