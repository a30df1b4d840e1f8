//! A source of traffic, as limits and bans see it: what one customer of a provider has.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// One IPv4 address, or one IPv6 /56: a household or a small office is given a /56 to /64, so that limits on less could
/// be passed by whoever has a whole one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpAddr);

impl Prefix {
    /// Bits of an IPv6 prefix.
    pub const IPV6_BITS: u32 = 56;

    /// Of what came from nowhere.
    pub const NOBODYS: Prefix = Prefix(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

    /// The one that `address` is in. An IPv4 address written as an IPv6 one is that IPv4 address.
    pub fn of(address: IpAddr) -> Prefix {
        match address.to_canonical() {
            IpAddr::V4(v4) => Prefix(v4.into()),
            IpAddr::V6(v6) => {
                let mask = u128::MAX << (128 - Prefix::IPV6_BITS);
                Prefix(Ipv6Addr::from_bits(v6.to_bits() & mask).into())
            }
        }
    }

    /// It in one word, never zero: the address above the number of its family.
    pub fn to_word(self) -> u64 {
        match self.0 {
            IpAddr::V4(v4) => u64::from(v4.to_bits()) << 8 | 4,
            // The low 72 bits are zero.
            IpAddr::V6(v6) => (v6.to_bits() >> 72 << 8) as u64 | 6,
        }
    }

    /// The one of such a word.
    pub fn from_word(word: u64) -> Option<Prefix> {
        match word as u8 {
            4 => Some(Prefix(Ipv4Addr::from_bits((word >> 8) as u32).into())),
            6 => Some(Prefix(Ipv6Addr::from_bits(u128::from(word >> 8) << 72).into())),
            _ => None,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "{v4}"),
            IpAddr::V6(v6) => write!(f, "{v6}/{}", Prefix::IPV6_BITS),
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// Also reads an address without a length, as logs have it: the prefix that it is in.
    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let fault = || PrefixError { text: text.chars().take(80).collect() };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| fault())?;
        let whole = match address {
            IpAddr::V4(_) => "32",
            IpAddr::V6(_) => "56",
        };
        if bits.is_some_and(|bits| bits != whole) {
            return Err(fault());
        }
        Ok(Prefix::of(address))
    }
}

/// A text that is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no source prefix: expected an IPv4 address or an IPv6 /56, such as 192.0.2.1 or 2001:db8::/56"
)]
pub struct PrefixError {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> String {
        Prefix::of(address.parse().unwrap()).to_string()
    }

    #[test]
    fn an_ipv4_source_is_its_address_however_it_is_written() {
        assert_eq!(of("192.0.2.1"), "192.0.2.1");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn an_ipv6_source_is_the_first_56_bits_of_its_address() {
        assert_eq!(of("2001:db8:1:2ff:a:b:c:d"), "2001:db8:1:200::/56");
        assert_eq!(of("2001:db8:1:200::"), of("2001:db8:1:2aa::1"));
        assert_ne!(of("2001:db8:1:200::1"), of("2001:db8:1:300::1"));
    }

    #[test]
    fn a_word_stands_for_one_prefix() {
        for address in
            ["192.0.2.1", "0.0.0.0", "255.255.255.255", "2001:db8:1:2ff::1", "::", "ffff:ffff:ffff:ffff::"]
        {
            let prefix = Prefix::of(address.parse().unwrap());
            assert_eq!(Prefix::from_word(prefix.to_word()), Some(prefix), "{address}");
        }
        assert_eq!(Prefix::from_word(0), None);
    }

    #[test]
    fn what_is_written_is_read_again_and_an_address_stands_for_its_prefix() {
        for text in ["192.0.2.1", "2001:db8:1:200::/56"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        for (text, prefix) in [
            ("192.0.2.1/32", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::/56"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), prefix);
        }
        for wrong in ["", "/32", "192.0.2.0/24", "2001:db8::/64", "2001:db8::/", "192.0.2.1:4433", "host"] {
            let error = wrong.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains("such as 192.0.2.1"), "{error}");
        }
    }
}
