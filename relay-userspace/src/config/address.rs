//! Addresses as configuration and command line write them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identity::NodeId;

/// A host name or IP address, and a port: `relay.example.net:4433`, `192.0.2.1:4433`, `[2001:db8::1]:4433`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// A relay: where it is and, if the node id was written before an `@`, who it must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayAddress {
    /// The node id the relay has to prove. Without it the key seen first is remembered.
    pub node: Option<NodeId>,
    /// Where it listens.
    pub at: HostPort,
}

/// A relay that another one names. It says who that is: otherwise whoever answers there could be it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayHint {
    /// The node id the relay has to prove.
    pub node: NodeId,
    /// Where it listens.
    pub at: HostPort,
}

/// The text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not `HOST:PORT`.
    #[error("expected HOST:PORT, such as relay.example.net:4433 or [2001:db8::1]:4433, not {0:?}")]
    HostPort(String),
    /// A hint without a node id.
    #[error("expected NODE@HOST:PORT, the relay's node id before its address, not {0:?}")]
    WithoutNode(String),
    /// What stands before the `@` is no node id.
    #[error("expected a node id before the @ (atlas_ and 64 hexadecimal digits), not {0:?}")]
    NodeId(String),
}

impl HostPort {
    /// The name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address, if the host is written as an IP address.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::HostPort(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let name_like = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        };
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => v6.parse::<Ipv6Addr>().map_err(|_| wrong())?.to_string(),
            None if name_like(host) => host.to_owned(),
            None => return Err(wrong()),
        };
        Ok(HostPort { host, port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for RelayAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (node, at) = match text.split_once('@') {
            Some((node, at)) => (Some(node.parse().map_err(|_| AddressError::NodeId(node.to_owned()))?), at),
            None => (None, text),
        };
        Ok(RelayAddress { node, at: at.parse()? })
    }
}

impl FromStr for RelayHint {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let RelayAddress { node, at } = text.parse()?;
        let node = node.ok_or_else(|| AddressError::WithoutNode(text.to_owned()))?;
        Ok(RelayHint { node, at })
    }
}

impl From<RelayHint> for RelayAddress {
    fn from(RelayHint { node, at }: RelayHint) -> Self {
        RelayAddress { node: Some(node), at }
    }
}

impl fmt::Display for RelayHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node, self.at)
    }
}

/// As text, as people write it.
impl Serialize for RelayHint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RelayHint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = &self.node {
            write!(f, "{node}@")?;
        }
        write!(f, "{}", self.at)
    }
}
