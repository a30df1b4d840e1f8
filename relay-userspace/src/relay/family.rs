//! IPv4 and IPv6 side by side.

use std::net::SocketAddr;

/// The version of IP that an address is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`. The relay's IPv6 sockets take IPv6 alone, so no IPv4 address comes in IPv6's form.
    pub fn of(address: SocketAddr) -> Family {
        match address {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        }
    }
}

/// Something that there is once for IPv4 and, where the host has IPv6, once more for that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerFamily<T> {
    /// IPv4's.
    pub v4: T,
    /// IPv6's.
    pub v6: Option<T>,
}

impl<T> PerFamily<T> {
    /// The one of `family`.
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => Some(&self.v4),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Those there are.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.v4).chain(&self.v6)
    }

    /// Makes another of each.
    ///
    /// # Errors
    /// The first that `make` gives.
    pub fn try_map<U, E>(self, mut make: impl FnMut(T) -> Result<U, E>) -> Result<PerFamily<U>, E> {
        Ok(PerFamily { v4: make(self.v4)?, v6: self.v6.map(make).transpose()? })
    }
}
