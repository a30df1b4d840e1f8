//! What the rules of nftables do with a packet from a newcomer to the relay's port, by what `nft --json list ruleset` says.
//! Pure.
//!
//! A rule may have conditions that hold for some newcomers only (an address, a rate) or that cannot be read (an extension of
//! iptables). So a chain accepts the port, keeps it out, or lets some in.

mod newcomer;

use serde_json::Value;

use newcomer::Holds;
pub use newcomer::Newcomer;

/// Chains that lead to chains are followed so far: nftables allows 16.
const MAX_DEPTH: usize = 16;

/// All rules of a host.
#[derive(Clone, Debug, Default)]
pub struct Ruleset(Vec<Value>);

/// A chain that packets to this host go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputChain {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// What it does with packets to the relay's port.
    pub port: PortFate,
}

/// What a chain does with packets to the relay's port, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortFate {
    /// It lets them in, but for what it keeps out whatever the port is.
    Accepted,
    /// Its rules are not known.
    Untold {
        /// It drops what no rule accepts.
        drops: bool,
    },
    /// It lets some in, or has rules that cannot be judged.
    SomeAccepted,
    /// It keeps them out.
    Dropped,
}

/// The chain that something is about, or a set: its family and its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place<'r> {
    family: &'r str,
    table: &'r str,
}

/// How a packet's way through a chain may end; it falls out at the end, or by a return.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    accept: bool,
    drop: bool,
    falls: bool,
}

/// What a rule does with a packet.
#[derive(Clone, Copy, Debug)]
enum Action<'r> {
    Accept,
    Drop,
    Return,
    Jump(&'r str),
    Goto(&'r str),
    Next,
    /// It cannot be read.
    Any,
}

impl Ruleset {
    /// The rules in the text that nft prints.
    ///
    /// # Errors
    /// It is not what nft prints, for people.
    pub fn parse(text: &str) -> Result<Ruleset, String> {
        let mut all: Value = serde_json::from_str(text).map_err(|error| format!("what nft says: {error}"))?;
        match all.get_mut("nftables").map(Value::take) {
            Some(Value::Array(objects)) => Ok(Ruleset(objects)),
            _ => Err("nft names no rules".to_owned()),
        }
    }

    /// The chains that packets to this host go through.
    pub fn input_chains(&self, newcomer: Newcomer<'_>) -> Vec<InputChain> {
        let judged = self.base_chains("input").filter_map(|chain| {
            let (place, name) = (Place::of(chain)?, word(chain, "name")?);
            let drops = word(chain, "policy") == Some("drop");
            Some(InputChain {
                family: place.family.to_owned(),
                table: place.table.to_owned(),
                name: name.to_owned(),
                port: self.fate(place, name, drops, newcomer),
            })
        });
        // Others than these families are bridges and cards.
        judged.filter(|chain| ["inet", "ip", "ip6"].contains(&&*chain.family)).collect()
    }

    /// Whether rules keep connections of newcomers from being tracked, of IPv4 and of IPv6; none if that cannot be told, as of
    /// rules that iptables has made.
    pub fn leaves_untracked(&self, newcomer: Newcomer<'_>) -> Option<bool> {
        match ["ip", "ip6"].map(|family| self.leaves_family_untracked(family, newcomer)) {
            [Holds::No, _] | [_, Holds::No] => Some(false),
            [Holds::Yes, Holds::Yes] => Some(true),
            _ => None,
        }
    }

    fn leaves_family_untracked(&self, family: &str, newcomer: Newcomer<'_>) -> Holds {
        let chains =
            self.base_chains("prerouting").filter_map(|chain| Place::of(chain).zip(word(chain, "name")));
        let chains = chains.filter(|(place, _)| [family, "inet"].contains(&place.family));
        let rules = chains.flat_map(|(place, name)| self.rules(place, name).map(move |rule| (place, rule)));
        let does_so = |part: &Value| {
            part.get("notrack").is_some() || part.get("xt").and_then(|of| word(of, "name")) == Some("CT")
        };
        let meant = rules.filter(|(_, rule)| rule.iter().any(does_so));
        meant.map(|(place, rule)| self.holds(rule, newcomer, place)).max().unwrap_or(Holds::No)
    }

    fn base_chains<'r>(&'r self, hook: &'r str) -> impl Iterator<Item = &'r Value> {
        self.objects("chain").filter(move |chain| word(chain, "hook") == Some(hook))
    }

    fn objects<'r>(&'r self, kind: &'r str) -> impl Iterator<Item = &'r Value> {
        self.0.iter().filter_map(move |object| object.get(kind))
    }

    /// The rules of a chain, each with its parts.
    fn rules<'r>(&'r self, place: Place<'r>, chain: &'r str) -> impl Iterator<Item = &'r [Value]> {
        let rules = self.objects("rule");
        let of_chain =
            rules.filter(move |rule| Place::of(rule) == Some(place) && word(rule, "chain") == Some(chain));
        of_chain.filter_map(|rule| Some(rule.get("expr")?.as_array()?.as_slice()))
    }

    fn fate(&self, place: Place<'_>, chain: &str, drops: bool, newcomer: Newcomer<'_>) -> PortFate {
        let accepts = |Ends { accept, falls, .. }| accept || falls && !drops;
        let keeps_out = |Ends { drop, falls, .. }| drop || falls && drops;
        // Of who meets no condition that only some meet.
        let usual = self.walk(place, chain, newcomer, Holds::Yes, 0);
        if accepts(usual) && !keeps_out(usual) {
            return PortFate::Accepted;
        }
        match accepts(self.walk(place, chain, newcomer, Holds::Maybe, 0)) {
            true => PortFate::SomeAccepted,
            false => PortFate::Dropped,
        }
    }

    /// The ways through a chain, by rules whose conditions hold as `surely` at least.
    fn walk(
        &self,
        place: Place<'_>,
        chain: &str,
        newcomer: Newcomer<'_>,
        surely: Holds,
        depth: usize,
    ) -> Ends {
        let mut ends = Ends::default();
        if depth > MAX_DEPTH {
            return Ends { accept: true, drop: true, falls: true };
        }
        for rule in self.rules(place, chain) {
            let holds = self.holds(rule, newcomer, place);
            if holds == Holds::No || holds < surely {
                continue;
            }
            let mut goes_on = holds == Holds::Maybe;
            for action in self.actions(rule, newcomer, place, surely) {
                match action {
                    Action::Accept => ends.accept = true,
                    Action::Drop => ends.drop = true,
                    Action::Return => ends.falls = true,
                    Action::Jump(to) | Action::Goto(to) => {
                        let inner = self.walk(place, to, newcomer, surely, depth + 1);
                        ends.accept |= inner.accept;
                        ends.drop |= inner.drop;
                        match action {
                            Action::Jump(_) => goes_on |= inner.falls,
                            _ => ends.falls |= inner.falls,
                        }
                    }
                    Action::Next => goes_on = true,
                    Action::Any => {
                        goes_on = true;
                        ends.accept |= surely == Holds::Maybe;
                        ends.drop |= surely == Holds::Maybe;
                    }
                }
            }
            if !goes_on {
                return ends;
            }
        }
        ends.falls = true;
        ends
    }

    /// Whether all conditions of a rule hold for the newcomer.
    fn holds(&self, rule: &[Value], newcomer: Newcomer<'_>, place: Place<'_>) -> Holds {
        let set = |name: &str| self.set(place, name);
        rule.iter().map(|part| newcomer.meets(part, &set)).min().unwrap_or(Holds::Yes)
    }

    /// What is in a set that has a name.
    fn set(&self, place: Place<'_>, name: &str) -> Option<&Value> {
        let mut sets = self.objects("set");
        sets.find(|set| Place::of(set) == Some(place) && word(set, "name") == Some(name))?.get("elem")
    }

    /// What a rule whose conditions hold does, or may do.
    fn actions<'r>(
        &'r self,
        rule: &'r [Value],
        newcomer: Newcomer<'_>,
        place: Place<'_>,
        surely: Holds,
    ) -> Vec<Action<'r>> {
        let mut actions = Vec::new();
        for part in rule {
            match part.get("vmap") {
                Some(map) => actions.extend(self.chosen(map, newcomer, place, surely)),
                None => actions.extend(Action::of(part)),
            }
        }
        if actions.is_empty() { vec![Action::Next] } else { actions }
    }

    /// What a map of verdicts says, or may say.
    fn chosen<'r>(
        &'r self,
        map: &'r Value,
        newcomer: Newcomer<'_>,
        place: Place<'_>,
        surely: Holds,
    ) -> Vec<Action<'r>> {
        let pairs = map.get("data").and_then(|data| data.get("set")).and_then(Value::as_array);
        let (Some(key), Some(pairs)) = (map.get("key"), pairs) else { return vec![Action::Any] };
        let set = |name: &str| self.set(place, name);
        let mut actions = Vec::new();
        for pair in pairs {
            let (Some(value), Some(verdict)) = (pair.get(0), pair.get(1)) else { continue };
            let holds = newcomer.is_one_of(key, value, &set);
            if holds != Holds::No && holds >= surely {
                actions.extend(Action::of(verdict));
            }
            if holds == Holds::Yes {
                return actions;
            }
        }
        actions.push(Action::Next);
        actions
    }
}

impl<'r> Place<'r> {
    fn of(object: &'r Value) -> Option<Place<'r>> {
        Some(Place { family: word(object, "family")?, table: word(object, "table")? })
    }
}

impl<'r> Action<'r> {
    fn of(part: &'r Value) -> Option<Action<'r>> {
        let (kind, of) = part.as_object()?.iter().next()?;
        Some(match kind.as_str() {
            "accept" => Action::Accept,
            "drop" | "reject" => Action::Drop,
            "return" => Action::Return,
            "continue" => Action::Next,
            "jump" => Action::Jump(word(of, "target")?),
            "goto" => Action::Goto(word(of, "target")?),
            "queue" | "tproxy" => Action::Any,
            "xt" if word(of, "type") != Some("match") => Action::Any,
            _ => return None,
        })
    }
}

fn word<'r>(object: &'r Value, key: &str) -> Option<&'r str> {
    object.get(key)?.as_str()
}

#[cfg(test)]
mod tests;
