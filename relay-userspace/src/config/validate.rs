//! From what the file says to what it means.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;

use super::error::{from_toml, line_of};
use super::file::{self, Entry, File, Integer};
use super::{
    Access, Admin, Agent, Allow, AtlasRoot, Config, ConfigError, Datapath, Forward, HostPort, Network,
    Quotas, RateLimit, RelayAddress, Security, Transport, Warning,
};
use crate::identity::NodeId;
use crate::relay::datapath::Limit;

/// Readers that may be asked for: more than any machine this runs on has use for, and few enough descriptors.
const MAX_READERS: i64 = 64;

/// Checks the text of a file called `path`.
pub(super) fn config(text: &str, path: &Path, root: &AtlasRoot) -> Result<Config, ConfigError> {
    let file: File = toml::from_str(text).map_err(|error| from_toml(&error, text, path))?;
    let source = Source { text, path };
    let mut warnings = Vec::new();
    source.without_effect(&file, &mut warnings);
    if let Some(enabled) = file.exec.enabled.as_ref().filter(|enabled| *enabled.get_ref()) {
        return Err(source.wrong(
            "exec.enabled",
            enabled,
            "this program never executes commands: set it to false",
        ));
    }
    let transport = source.transport(&file.transport)?;
    Ok(Config {
        network: source.network(&file.network)?,
        security: source.security(&file.security)?,
        rate_limit: source.rate_limit(&file.rate_limit)?,
        access: source.access(&file.access)?,
        quotas: source.quotas(&file.quotas, transport.max_connections)?,
        transport,
        datapath: source.datapath(&file.datapath)?,
        admin: source.admin(&file.admin, root)?,
        agent: source.agent(&file.agent, &mut warnings)?,
        warnings,
    })
}

/// The file a value stands in: what errors need to say where.
struct Source<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Source<'_> {
    fn network(&self, file: &file::Network) -> Result<Network, ConfigError> {
        Ok(Network {
            port: self.integer("network.port", &file.port, 1..=65_535, "a UDP port", 4433)?,
            bootstrap: self.list::<HostPort>("network.bootstrap", &file.bootstrap)?,
            relays: self.list::<RelayAddress>("network.relays", &file.relays)?,
            advertise: self.socket_addresses("network.advertise", &file.advertise)?,
        })
    }

    fn transport(&self, file: &file::Transport) -> Result<Transport, ConfigError> {
        let enable_relay = file.enable_relay.as_ref().is_some_and(|value| *value.get_ref());
        let offer_relay = file.offer_relay.as_ref().is_some_and(|value| *value.get_ref());
        if let Some(offer) = file.offer_relay.as_ref().filter(|_| offer_relay && !enable_relay) {
            let problem = "a relay must also use relays: set transport.enable_relay = true";
            return Err(self.wrong("transport.offer_relay", offer, problem));
        }
        Ok(Transport {
            max_connections: self.integer(
                "transport.max_connections",
                &file.max_connections,
                1..=1_000_000,
                "a number of connections",
                200,
            )?,
            max_streams_per_conn: self.integer(
                "transport.max_streams_per_conn",
                &file.max_streams_per_conn,
                1..=10_000,
                "a number of streams",
                100,
            )?,
            idle_timeout: self.seconds("transport.idle_timeout", &file.idle_timeout, 10..=86_400, 300)?,
            enable_relay,
            offer_relay,
            relay_bandwidth_limit: Limit::per_second(self.integer(
                "transport.relay_bandwidth_limit",
                &file.relay_bandwidth_limit,
                0..=1_000_000_000_000,
                "bytes per second (0: unlimited)",
                1_048_576,
            )?),
        })
    }

    fn security(&self, file: &file::Security) -> Result<Security, ConfigError> {
        Ok(Security {
            ban_duration: self.seconds(
                "security.ban_duration_secs",
                &file.ban_duration_secs,
                0..=31_536_000,
                3600,
            )?,
            handshake_limit: self.integer(
                "security.handshake_limit",
                &file.handshake_limit,
                1..=65_536,
                "a number of handshakes",
                50,
            )?,
            max_clock_drift: self.seconds(
                "security.max_clock_drift_secs",
                &file.max_clock_drift_secs,
                1..=86_400,
                300,
            )?,
        })
    }

    fn rate_limit(&self, file: &file::RateLimit) -> Result<RateLimit, ConfigError> {
        Ok(RateLimit {
            per_peer_per_minute: self.integer(
                "rate_limit.per_peer_per_minute",
                &file.per_peer_per_minute,
                0..=1_000_000,
                "messages a minute (0: unlimited)",
                120,
            )?,
        })
    }

    fn access(&self, file: &file::Access) -> Result<Access, ConfigError> {
        Ok(Access {
            allow: self.list("access.allow", &file.allow)?,
            deny: self.list("access.deny", &file.deny)?,
        })
    }

    fn quotas(&self, file: &file::Quotas, max_connections: usize) -> Result<Quotas, ConfigError> {
        let max_connections = i64::try_from(max_connections).unwrap_or(i64::MAX);
        let connections = "a number of connections";
        let offers = "a number of offers";
        let sessions = "a number of sessions";
        Ok(Quotas {
            pending_handshakes: self.integer(
                "quotas.pending_handshakes",
                &file.pending_handshakes,
                1..=65_536,
                "a number of handshakes",
                1024,
            )?,
            connections_per_prefix: self.integer(
                "quotas.connections_per_prefix",
                &file.connections_per_prefix,
                1..=1_000_000,
                connections,
                (max_connections / 2).max(32),
            )?,
            announced_agents: self.integer(
                "quotas.announced_agents",
                &file.announced_agents,
                1..=1_000_000,
                "a number of agents",
                max_connections,
            )?,
            offers_per_source: self.integer(
                "quotas.offers_per_source",
                &file.offers_per_source,
                1..=4096,
                offers,
                8,
            )?,
            offers_per_target: self.integer(
                "quotas.offers_per_target",
                &file.offers_per_target,
                1..=4096,
                offers,
                32,
            )?,
            sessions_per_node: self.integer(
                "quotas.sessions_per_node",
                &file.sessions_per_node,
                1..=4096,
                sessions,
                64,
            )?,
            sessions_per_prefix: self.integer(
                "quotas.sessions_per_prefix",
                &file.sessions_per_prefix,
                1..=1_048_576,
                sessions,
                256,
            )?,
            message_bytes: self.integer(
                "quotas.message_bytes",
                &file.message_bytes,
                4096..=4_194_304,
                "bytes",
                65_536,
            )?,
            connection_bytes: self.integer(
                "quotas.connection_bytes",
                &file.connection_bytes,
                4096..=16_777_216,
                "bytes",
                262_144,
            )?,
            relay_total_limit: self.integer(
                "quotas.relay_total_limit",
                &file.relay_total_limit,
                0..=1_000_000_000_000,
                "bytes per second (0: unlimited)",
                0,
            )?,
        })
    }

    fn datapath(&self, file: &file::Datapath) -> Result<Datapath, ConfigError> {
        let mode = match &file.mode {
            Some(mode) => self.parsed("datapath.mode", mode)?,
            None => Default::default(),
        };
        let mut interfaces = Vec::new();
        for name in file.interfaces.iter().flat_map(|list| list.get_ref()) {
            // The kernel's own rule: dev_valid_name() in net/core/dev.c.
            let text = name.get_ref();
            if text.is_empty() || text.len() > 15 || text.contains(|c: char| c == '/' || c.is_whitespace()) {
                let problem = format!("expected the name of a network interface, not {text:?}");
                return Err(self.wrong("datapath.interfaces", name, problem));
            }
            interfaces.push(text.clone());
        }
        Ok(Datapath {
            mode,
            interfaces,
            max_sessions: self.integer(
                "datapath.max_sessions",
                &file.max_sessions,
                1..=1_048_576,
                "a number of sessions",
                65_536,
            )?,
            readers: self.integer(
                "datapath.readers",
                &file.readers,
                0..=MAX_READERS,
                "a number of threads (0: one per CPU, up to 8)",
                0,
            )?,
        })
    }

    fn admin(&self, file: &file::Admin, root: &AtlasRoot) -> Result<Admin, ConfigError> {
        let Some(socket) = &file.socket else { return Ok(Admin { socket: root.admin_socket() }) };
        // sun_path of unix(7): 108 bytes with the closing zero.
        if socket.get_ref().is_empty() || socket.get_ref().len() > 107 {
            return Err(self.wrong("admin.socket", socket, "expected a path of 1 to 107 bytes"));
        }
        Ok(Admin { socket: PathBuf::from(socket.get_ref()) })
    }

    fn agent(&self, file: &file::Agent, warnings: &mut Vec<Warning>) -> Result<Agent, ConfigError> {
        let accept = self.list::<NodeId>("agent.accept", &file.accept)?;
        let accepted: BTreeSet<&NodeId> = accept.iter().collect();
        let mut allow = Vec::new();
        for entry in &file.allow {
            let Allowed { peer, to } = Allowed::of(entry).ok_or_else(|| {
                let problem = "expected both peer = \"atlas_...\" and to = \"HOST:PORT\"";
                self.wrong("agent.allow", entry, problem)
            })?;
            let permit: Allow = Allow {
                peer: self.parsed("agent.allow.peer", peer)?,
                to: self.parsed("agent.allow.to", to)?,
            };
            if !accepted.contains(&permit.peer) {
                warnings.push(Warning {
                    line: line_of(self.text, peer.span().start),
                    key: "agent.allow.peer".to_owned(),
                    text: format!("no effect: {} is not in agent.accept and cannot connect", permit.peer),
                });
            }
            allow.push(permit);
        }
        let is_on = |entry: &Entry<bool>| entry.as_ref().is_none_or(|value| *value.get_ref());
        Ok(Agent {
            accept,
            allow,
            pacing: is_on(&file.pacing),
            ecn: is_on(&file.ecn),
            allow_readable_relay: file.allow_readable_relay.as_ref().is_some_and(|value| *value.get_ref()),
            forward: file.forward.iter().map(|entry| self.forward(entry)).collect::<Result<_, _>>()?,
        })
    }

    fn forward(&self, entry: &Spanned<file::Forward>) -> Result<Forward, ConfigError> {
        let file::Forward { listen, peer, to, protocol } = entry.get_ref();
        let (Some(listen), Some(peer), Some(to)) = (listen, peer, to) else {
            let problem =
                "expected listen = \"ADDRESS:PORT\", peer = \"atlas_...\" and to = \"HOST:PORT\", all three";
            return Err(self.wrong("agent.forward", entry, problem));
        };
        Ok(Forward {
            listen: self.parsed("agent.forward.listen", listen)?,
            peer: self.parsed("agent.forward.peer", peer)?,
            to: self.parsed("agent.forward.to", to)?,
            protocol: match protocol {
                Some(protocol) => self.parsed("agent.forward.protocol", protocol)?,
                None => Default::default(),
            },
        })
    }

    /// Keys that are upstream's and do nothing here are accepted, but not in silence.
    fn without_effect(&self, file: &File, warnings: &mut Vec<Warning>) {
        let empty_is_nothing = |list: &Entry<Vec<Spanned<String>>>| {
            list.as_ref().filter(|list| !list.get_ref().is_empty()).map(Spanned::span)
        };
        let registries = "no effect yet: this version registers with relays only";
        let abuse = "no effect yet: this version does not limit or ban by peer";
        let bounds = "no effect yet: this version has fixed bounds";
        let of_later = "no effect yet: of a later version";
        let file::Quotas {
            pending_handshakes,
            connections_per_prefix,
            announced_agents,
            offers_per_source,
            offers_per_target,
            sessions_per_node,
            sessions_per_prefix,
            message_bytes,
            connection_bytes,
            relay_total_limit,
        } = &file.quotas;
        let executes = "no effect: this program never executes commands";
        let offers = file.transport.offer_relay.as_ref().is_some_and(|offer| *offer.get_ref());
        let (of_relays, of_agents) = match offers {
            true => (None, Some("no effect: this node is a relay (transport.offer_relay)")),
            false => (Some("no effect: this node is an agent (transport.offer_relay is false)"), None),
        };
        let by_role = [
            ("network.relays", empty_is_nothing(&file.network.relays), of_agents),
            ("agent.accept", empty_is_nothing(&file.agent.accept), of_agents),
            ("agent.allow", file.agent.allow.first().map(Spanned::span), of_agents),
            ("agent.pacing", span(&file.agent.pacing), of_agents),
            ("agent.ecn", span(&file.agent.ecn), of_agents),
            ("network.port", span(&file.network.port), of_relays),
            ("transport.max_connections", span(&file.transport.max_connections), of_relays),
            ("transport.max_streams_per_conn", span(&file.transport.max_streams_per_conn), of_relays),
            ("transport.idle_timeout", span(&file.transport.idle_timeout), of_relays),
            ("transport.relay_bandwidth_limit", span(&file.transport.relay_bandwidth_limit), of_relays),
            ("security.max_clock_drift_secs", span(&file.security.max_clock_drift_secs), of_relays),
            ("network.advertise", empty_is_nothing(&file.network.advertise), of_relays),
            ("datapath.mode", span(&file.datapath.mode), of_relays),
            ("datapath.interfaces", empty_is_nothing(&file.datapath.interfaces), of_relays),
            ("datapath.max_sessions", span(&file.datapath.max_sessions), of_relays),
            ("datapath.readers", span(&file.datapath.readers), of_relays),
        ];
        let of_this_role = by_role.into_iter().filter_map(|(key, span, why)| Some((key, span, why?)));
        let present = [
            ("network.bootstrap", empty_is_nothing(&file.network.bootstrap), registries),
            ("security.ban_duration_secs", span(&file.security.ban_duration_secs), abuse),
            ("security.handshake_limit", span(&file.security.handshake_limit), abuse),
            ("rate_limit.per_peer_per_minute", span(&file.rate_limit.per_peer_per_minute), abuse),
            ("access.allow", empty_is_nothing(&file.access.allow), abuse),
            ("access.deny", empty_is_nothing(&file.access.deny), abuse),
            ("quotas.pending_handshakes", span(pending_handshakes), bounds),
            ("quotas.connections_per_prefix", span(connections_per_prefix), bounds),
            ("quotas.announced_agents", span(announced_agents), bounds),
            ("quotas.offers_per_source", span(offers_per_source), bounds),
            ("quotas.offers_per_target", span(offers_per_target), bounds),
            ("quotas.sessions_per_node", span(sessions_per_node), bounds),
            ("quotas.sessions_per_prefix", span(sessions_per_prefix), bounds),
            ("quotas.message_bytes", span(message_bytes), bounds),
            ("quotas.connection_bytes", span(connection_bytes), bounds),
            ("quotas.relay_total_limit", span(relay_total_limit), bounds),
            ("agent.allow_readable_relay", span(&file.agent.allow_readable_relay), of_later),
            ("agent.forward", file.agent.forward.first().map(Spanned::span), of_later),
            ("exec.default_timeout_secs", span(&file.exec.default_timeout_secs), executes),
            ("exec_security.mode", span(&file.exec_security.mode), executes),
            ("exec_security.strict_inline_eval", span(&file.exec_security.strict_inline_eval), executes),
            (
                "stun.servers",
                empty_is_nothing(&file.stun.servers),
                "no effect: the relay tells an agent its address",
            ),
        ];
        for (key, span, why) in present.into_iter().chain(of_this_role) {
            if let Some(span) = span {
                let line = line_of(self.text, span.start);
                warnings.push(Warning { line, key: key.to_owned(), text: why.to_owned() });
            }
        }
    }

    fn integer<T: TryFrom<i64>>(
        &self,
        key: &str,
        entry: &Entry<Integer>,
        range: RangeInclusive<i64>,
        what: &str,
        default: i64,
    ) -> Result<T, ConfigError> {
        let value = entry.as_ref().map_or(default, |entry| entry.get_ref().0);
        let converted = if range.contains(&value) { T::try_from(value).ok() } else { None };
        converted.ok_or_else(|| {
            let problem = format!("expected {what}, {} to {}, not {value}", range.start(), range.end());
            self.error(key, span(entry).map_or(0, |span| span.start), problem)
        })
    }

    fn seconds(
        &self,
        key: &str,
        entry: &Entry<Integer>,
        range: RangeInclusive<i64>,
        default: i64,
    ) -> Result<Duration, ConfigError> {
        self.integer(key, entry, range, "seconds", default).map(Duration::from_secs)
    }

    fn list<T: FromStr<Err: std::fmt::Display>>(
        &self,
        key: &str,
        entry: &Entry<Vec<Spanned<String>>>,
    ) -> Result<Vec<T>, ConfigError> {
        entry.iter().flat_map(|list| list.get_ref()).map(|item| self.parsed(key, item)).collect()
    }

    fn socket_addresses(
        &self,
        key: &str,
        entry: &Entry<Vec<Spanned<String>>>,
    ) -> Result<Vec<SocketAddr>, ConfigError> {
        let mut addresses = Vec::new();
        for item in entry.iter().flat_map(|list| list.get_ref()) {
            let address = item.get_ref().parse::<SocketAddr>().ok().filter(|address| {
                address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
            });
            addresses.push(address.ok_or_else(|| {
                let found = item.get_ref();
                self.wrong(key, item, format!("expected IP:PORT that agents can send to, not {found:?}"))
            })?);
        }
        Ok(addresses)
    }

    fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &self,
        key: &str,
        value: &Spanned<String>,
    ) -> Result<T, ConfigError> {
        value.get_ref().parse().map_err(|problem: T::Err| self.wrong(key, value, problem.to_string()))
    }

    fn wrong<T>(&self, key: &str, value: &Spanned<T>, problem: impl Into<String>) -> ConfigError {
        self.error(key, value.span().start, problem.into())
    }

    fn error(&self, key: &str, offset: usize, problem: String) -> ConfigError {
        let line = line_of(self.text, offset);
        ConfigError::Value { path: self.path.to_owned(), line, key: key.to_owned(), problem }
    }
}

/// An `[[agent.allow]]` table in which both keys are present.
struct Allowed<'a> {
    peer: &'a Spanned<String>,
    to: &'a Spanned<String>,
}

impl<'a> Allowed<'a> {
    fn of(entry: &'a Spanned<file::Allow>) -> Option<Allowed<'a>> {
        let file::Allow { peer, to } = entry.get_ref();
        Some(Allowed { peer: peer.as_ref()?, to: to.as_ref()? })
    }
}

fn span<T>(entry: &Entry<T>) -> Option<std::ops::Range<usize>> {
    entry.as_ref().map(Spanned::span)
}
