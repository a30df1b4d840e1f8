//! An address that has proved nothing is sent at most three times what has come from it (RFC 9000 section 8.1): pure.
//!
//! The QUIC library sends a whole datagram as long as anything is left of that, so that it may be one datagram more. What is
//! too much is not sent here: it is lost, as on the way, and sent again if the other end turns out to be there.

use std::net::SocketAddr;

use crate::clock::MonoTime;
use crate::relay::remembered::Remembered;

/// An address may be sent so many times what has come from it.
const FACTOR: u64 = 3;

/// Addresses that are remembered: more than begin a handshake in a round trip. Whoever is forgotten is sent what QUIC wants
/// to send, which under such a load is one Retry for each first packet.
const MAX_ADDRESSES: usize = 16_384;

/// What has come from and gone to each address that has begun a handshake.
#[derive(Debug)]
pub struct Amplification {
    addresses: Remembered<SocketAddr, Account>,
}

#[derive(Debug, Default)]
struct Account {
    received: u64,
    sent: u64,
    /// It has sent what only comes after a handshake. Whoever forges it has us send no handshake for it.
    after_handshake: bool,
}

impl Amplification {
    /// Nothing has come yet.
    pub const fn new() -> Amplification {
        Amplification { addresses: Remembered::new(MAX_ADDRESSES) }
    }

    /// A datagram has come.
    pub fn received(&mut self, from: SocketAddr, datagram: &[u8], now: MonoTime) {
        if is_of_a_handshake(datagram) {
            let account = self.addresses.see(from, now, Account::default);
            account.received = account.received.saturating_add(datagram.len() as u64);
        } else if let Some(account) = self.addresses.get_mut(&from) {
            account.after_handshake = true;
        }
    }

    /// Whether datagrams may be sent, one or several of which the first begins `datagrams`; if so, they are counted.
    pub fn permits(&mut self, to: SocketAddr, datagrams: &[u8]) -> bool {
        let Some(account) = self.addresses.get_mut(&to) else { return true };
        if account.after_handshake && !is_of_a_handshake(datagrams) {
            return true;
        }
        let sent = account.sent.saturating_add(datagrams.len() as u64);
        let permits = sent <= account.received.saturating_mul(FACTOR);
        if permits {
            account.sent = sent;
        }
        permits
    }
}

/// Whether it has a long header: Initial, Handshake, Retry and version negotiation (RFC 9000 section 17.2).
fn is_of_a_handshake(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDSHAKE: [u8; 1200] = [0xc0; 1200];
    const AFTERWARDS: [u8; 1200] = [0x40; 1200];
    const NOW: MonoTime = MonoTime(5_000_000_000);

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn three_times_what_came_may_be_sent_and_not_a_byte_more() {
        let mut amplification = Amplification::new();
        amplification.received(address(1), &HANDSHAKE, NOW);
        for sent in [&HANDSHAKE[..], &HANDSHAKE[..554], &HANDSHAKE[..]] {
            assert!(amplification.permits(address(1), sent));
        }
        assert!(!amplification.permits(address(1), &HANDSHAKE[..647]));
        assert!(amplification.permits(address(1), &HANDSHAKE[..646]), "what was not sent is not counted");
        assert!(!amplification.permits(address(1), &HANDSHAKE[..1]));
        amplification.received(address(1), &HANDSHAKE[..100], NOW);
        assert!(amplification.permits(address(1), &HANDSHAKE[..300]));
    }

    #[test]
    fn each_address_has_its_own_account() {
        let mut amplification = Amplification::new();
        amplification.received(address(1), &HANDSHAKE[..100], NOW);
        amplification.received(address(2), &HANDSHAKE, NOW);
        assert!(!amplification.permits(address(1), &HANDSHAKE[..301]));
        assert!(amplification.permits(address(2), &HANDSHAKE));
        assert!(amplification.permits(address(3), &HANDSHAKE), "nothing is known about it");
    }

    #[test]
    fn once_the_handshake_is_over_only_handshakes_are_counted() {
        let mut amplification = Amplification::new();
        amplification.received(address(1), &HANDSHAKE[..100], NOW);
        assert!(!amplification.permits(address(1), &AFTERWARDS[..301]));
        amplification.received(address(1), &AFTERWARDS, NOW);
        assert!(amplification.permits(address(1), &AFTERWARDS));
        assert!(!amplification.permits(address(1), &HANDSHAKE[..301]));
    }

    #[test]
    fn however_many_addresses_there_are_memory_is_bounded() {
        let mut amplification = Amplification::new();
        for number in 0..MAX_ADDRESSES as u32 + 1000 {
            let from = SocketAddr::from((number.to_be_bytes(), 1));
            amplification.received(from, &HANDSHAKE[..1], NOW);
        }
        assert_eq!(amplification.addresses.iter().count(), MAX_ADDRESSES);
    }
}
