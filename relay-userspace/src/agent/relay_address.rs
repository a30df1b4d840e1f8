//! Where a relay is, and which key it must have.

use std::fmt;
use std::str::FromStr;

use crate::identity::NodeId;

/// An entry of `network.relays`: `HOST:PORT` (the key seen first is remembered) or `atlas_<hex>@HOST:PORT` (only that
/// key will do). HOST is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelayAddress {
    pinned: Option<NodeId>,
    host: String,
    port: u16,
}

impl RelayAddress {
    /// The id the relay must have, if the entry names one.
    pub fn pinned(&self) -> Option<NodeId> {
        self.pinned
    }

    /// Name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `HOST:PORT`: what the relay's key is remembered under.
    pub fn host_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for RelayAddress {
    type Err = RelayAddressError;

    fn from_str(text: &str) -> Result<Self, RelayAddressError> {
        let fault = || RelayAddressError { text: text.chars().take(200).collect() };
        let (pinned, place) = match text.split_once('@') {
            Some((id, place)) => (Some(id.parse().map_err(|_| fault())?), place),
            None => (None, text),
        };
        let (host, port) = place.rsplit_once(':').ok_or_else(fault)?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            Some(_) => return Err(fault()),
            None => host,
        };
        let bare = !host.is_empty()
            && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
            || host.parse::<std::net::Ipv6Addr>().is_ok() && place.starts_with('[');
        match port.parse() {
            Ok(port @ 1..) if bare => Ok(RelayAddress { pinned, host: host.to_owned(), port }),
            _ => Err(fault()),
        }
    }
}

impl fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = self.pinned {
            write!(f, "{id}@")?;
        }
        f.write_str(&self.host_port())
    }
}

/// A text that is no relay address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no relay address: expected HOST:PORT or atlas_<64 hex digits>@HOST:PORT")]
pub struct RelayAddressError {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written_again() {
        let id = NodeId::from_bytes([7; 32]);
        for text in ["relay.example.org:4433", "192.0.2.1:443", "[2001:db8::1]:4433"] {
            let address: RelayAddress = text.parse().unwrap();
            assert_eq!((address.to_string().as_str(), address.pinned()), (text, None));
            let pinned: RelayAddress = format!("{id}@{text}").parse().unwrap();
            assert_eq!((pinned.host_port().as_str(), pinned.pinned()), (text, Some(id)));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "relay",
            "relay:",
            ":4433",
            "relay:0",
            "relay:65536",
            "2001:db8::1:4433",
            "[x]:1",
            "a b:1",
            "atlas_1@r:1",
        ] {
            assert!(text.parse::<RelayAddress>().is_err(), "{text}");
        }
    }
}
