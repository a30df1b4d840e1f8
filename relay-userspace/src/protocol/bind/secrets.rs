//! The secrets of the bind exchange: magic, keys and cookies.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use relay_common::{BIND_MAGIC_LEN, Side};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::datagram::SessionId;
use crate::clock::MonoTime;
use crate::identity::{NodeId, NodeKey, PublicKey};

/// What a relay's bind datagrams begin with.
///
/// The two upper bits of the first byte are clear, so that no QUIC packet begins this way (RFC 9000, section 17: the
/// fixed bit 0x40 is set in every packet).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindMagic(pub [u8; BIND_MAGIC_LEN]);

impl BindMagic {
    /// The magic of the relay that has `key`: the first 8 bytes of SHA-256 over `atlas relay bind magic v1` and the
    /// key, with the two upper bits cleared.
    pub fn of_relay(key: &PublicKey) -> Self {
        let hash = Sha256::new().chain_update(MAGIC_LABEL).chain_update(key.as_bytes()).finalize();
        let mut magic = [0; BIND_MAGIC_LEN];
        for (byte, hashed) in magic.iter_mut().zip(hash) {
            *byte = hashed;
        }
        let [first, ..] = &mut magic;
        *first &= 0x3f;
        BindMagic(magic)
    }
}

/// The key of one side's bind datagrams, known to the relay and that side. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct BindKey(Zeroizing<[u8; 32]>);

impl BindKey {
    /// The key as RelayReady carries it.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        BindKey(Zeroizing::new(bytes))
    }

    /// The key's bytes, for RelayReady.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn mac(&self, signed: &[u8]) -> [u8; 16] {
        truncated(keyed(&self.0).chain_update(signed))
    }

    pub(super) fn verifies(&self, signed: &[u8], mac: &[u8]) -> bool {
        keyed(&self.0).chain_update(signed).verify_truncated_left(mac).is_ok()
    }
}

impl fmt::Debug for BindKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BindKey")
    }
}

/// The source of a relay's bind keys.
pub struct BindKeys(Hkdf<Sha256>);

impl BindKeys {
    /// Those of the relay that has `key`.
    pub fn of_relay(key: &NodeKey) -> Self {
        BindKeys(Hkdf::new(None, key.seed()))
    }

    /// HKDF-SHA256 (RFC 5869) of the relay's identity's seed without salt, with the info `atlas relay bind key v1`, session
    /// id, side (one byte), connector's and target's id. A relay that has only its identity and a session's ids can make
    /// it again.
    pub fn derive(&self, session: SessionId, side: Side, connector: &NodeId, target: &NodeId) -> BindKey {
        let mut key = Zeroizing::new([0; 32]);
        let info: [&[u8]; 5] =
            [KEY_LABEL, &session.0, &[side as u8], connector.as_bytes(), target.as_bytes()];
        let expanded = self.0.expand_multi_info(&info, key.as_mut());
        debug_assert!(expanded.is_ok(), "HKDF-SHA256 gives up to 8160 bytes, this is 32");
        BindKey(key)
    }
}

impl fmt::Debug for BindKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BindKeys")
    }
}

/// What a relay sends to a tuple and wants back from it, to know that the agent receives there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cookie(pub [u8; 16]);

impl Cookie {
    /// A Bind without a cookie.
    pub const NONE: Cookie = Cookie([0; 16]);
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Cookie::NONE { "no cookie" } else { "Cookie" })
    }
}

/// The datagrams that carry cookies to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CookieCarrier {
    /// Challenge: a Proof brings it back.
    Challenge,
    /// Bound: the next Bind brings it back.
    Bound,
}

/// What a cookie is bound to: it is good for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieSubject {
    /// What carries it: the other's is no good.
    pub carrier: CookieCarrier,
    /// Where the datagram came from.
    pub agent: SocketAddr,
    /// The relay's address it came to.
    pub relay: SocketAddr,
    /// The session.
    pub session: SessionId,
    /// The side.
    pub side: Side,
    /// In a Challenge: the counter of the Bind it answers. In a Bound: the counter it accepts.
    pub counter: u64,
}

/// A cookie secret is used for this long, and its cookies accepted for as long again.
pub const COOKIE_PERIOD: Duration = Duration::from_secs(120);

/// A relay's cookie secrets: cookies are made again when they come back, so that a question costs no memory.
pub struct CookieSecrets {
    current: CookieSecret,
    previous: Option<CookieSecret>,
    since: MonoTime,
}

impl CookieSecrets {
    /// Begins with a secret of 32 random bytes.
    pub fn new(secret: [u8; 32], now: MonoTime) -> Self {
        CookieSecrets { current: CookieSecret(Zeroizing::new(secret)), previous: None, since: now }
    }

    /// When the secret is to be renewed.
    pub fn renewal(&self) -> MonoTime {
        self.since + COOKIE_PERIOD
    }

    /// Renews the secret if it is due; `fresh` gives 32 random bytes. Cookies of the secret before stay good for one
    /// period, unless that is over as well.
    pub fn renew(&mut self, now: MonoTime, fresh: impl FnOnce() -> [u8; 32]) {
        let age = now.since(self.since);
        if age < COOKIE_PERIOD {
            return;
        }
        let retired = std::mem::replace(&mut self.current, CookieSecret(Zeroizing::new(fresh())));
        self.previous = (age < 2 * COOKIE_PERIOD).then_some(retired);
        self.since = now;
    }

    /// The cookie for `subject`.
    pub fn cookie(&self, subject: &CookieSubject) -> Cookie {
        self.current.cookie(subject)
    }

    /// Whether `cookie` was made here for `subject` with a secret still accepted.
    pub fn accepts(&self, subject: &CookieSubject, cookie: &Cookie) -> bool {
        self.current.accepts(subject, cookie)
            || self.previous.as_ref().is_some_and(|secret| secret.accepts(subject, cookie))
    }
}

impl fmt::Debug for CookieSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieSecrets").field("since", &self.since).finish_non_exhaustive()
    }
}

struct CookieSecret(Zeroizing<[u8; 32]>);

impl CookieSecret {
    fn cookie(&self, subject: &CookieSubject) -> Cookie {
        Cookie(truncated(self.over(subject)))
    }

    fn accepts(&self, subject: &CookieSubject, cookie: &Cookie) -> bool {
        self.over(subject).verify_truncated_left(&cookie.0).is_ok()
    }

    fn over(&self, subject: &CookieSubject) -> Hmac<Sha256> {
        // Every field has a fixed length, so no two subjects have the same bytes.
        let mut mac = keyed(&self.0);
        mac.update(&[subject.carrier as u8]);
        for at in [subject.agent, subject.relay] {
            let address = match at.ip() {
                std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                std::net::IpAddr::V6(v6) => v6,
            };
            mac.update(&address.octets());
            mac.update(&at.port().to_be_bytes());
        }
        mac.update(&subject.session.0);
        mac.update(&[subject.side as u8]);
        mac.update(&subject.counter.to_be_bytes());
        mac
    }
}

const MAGIC_LABEL: &[u8] = b"atlas relay bind magic v1";
const KEY_LABEL: &[u8] = b"atlas relay bind key v1";

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // A key shorter than SHA-256's block of 64 bytes is padded with zeros (RFC 2104, section 2): the same as `key`.
    let mut block = [0; 64];
    for (padded, byte) in block.iter_mut().zip(key) {
        *padded = *byte;
    }
    let mac = Hmac::new(&block.into());
    block.zeroize();
    mac
}

fn truncated(mac: Hmac<Sha256>) -> [u8; 16] {
    let whole: [u8; 32] = mac.finalize().into_bytes().into();
    let mut first = [0; 16];
    for (byte, from) in first.iter_mut().zip(whole) {
        *byte = from;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_keeps_clear_of_quic_and_differs_by_relay() {
        let magics: Vec<BindMagic> =
            (0..50).map(|seed| BindMagic::of_relay(&NodeKey::from_seed(&[seed; 32]).public())).collect();
        for (at, magic) in magics.iter().enumerate() {
            assert_eq!(magic.0[0] & 0xc0, 0);
            assert!(!magics[..at].contains(magic));
        }
    }

    #[test]
    fn bind_keys_are_rfc_5869_of_the_documented_info() {
        let (connector, target) = (NodeId::from_bytes([3; 32]), NodeId::from_bytes([4; 32]));
        let keys = BindKeys::of_relay(&NodeKey::from_seed(&[1; 32]));
        let key = keys.derive(SessionId([2; 16]), Side::Target, &connector, &target);
        // Computed with Python's hmac module.
        assert_eq!(key.as_bytes()[..8], KEY_EXAMPLE);
        let others = BindKeys::of_relay(&NodeKey::from_seed(&[2; 32]));
        for other in [
            keys.derive(SessionId([2; 16]), Side::Connector, &connector, &target),
            keys.derive(SessionId([9; 16]), Side::Target, &connector, &target),
            keys.derive(SessionId([2; 16]), Side::Target, &target, &connector),
            others.derive(SessionId([2; 16]), Side::Target, &connector, &target),
        ] {
            assert!(other != key);
        }
    }

    #[test]
    fn a_cookie_is_good_for_its_subject_alone() {
        let secrets = CookieSecrets::new([7; 32], MonoTime(0));
        let cookie = secrets.cookie(&subject());
        assert!(secrets.accepts(&subject(), &cookie));
        assert!(!secrets.accepts(&subject(), &Cookie::NONE));
        for other in [
            CookieSubject { carrier: CookieCarrier::Bound, ..subject() },
            CookieSubject { agent: "192.0.2.1:2".parse().unwrap(), ..subject() },
            CookieSubject { agent: "192.0.2.2:1".parse().unwrap(), ..subject() },
            CookieSubject { relay: "198.51.100.2:4433".parse().unwrap(), ..subject() },
            CookieSubject { session: SessionId([1; 16]), ..subject() },
            CookieSubject { side: Side::Target, ..subject() },
            CookieSubject { counter: 6, ..subject() },
        ] {
            assert!(!secrets.accepts(&other, &cookie), "{other:?}");
        }
    }

    #[test]
    fn a_cookie_outlives_one_renewal_and_not_two() {
        let second = Duration::from_secs(1);
        let mut secrets = CookieSecrets::new([1; 32], MonoTime(0));
        let cookie = secrets.cookie(&subject());
        secrets.renew(MonoTime(0) + (COOKIE_PERIOD - second), || panic!("not due"));
        secrets.renew(secrets.renewal(), || [2; 32]);
        assert!(secrets.accepts(&subject(), &cookie));
        assert!(secrets.cookie(&subject()) != cookie);
        secrets.renew(secrets.renewal(), || [3; 32]);
        assert!(!secrets.accepts(&subject(), &cookie));
    }

    #[test]
    fn a_secret_that_was_not_renewed_in_time_is_not_kept_for_another_period() {
        let mut secrets = CookieSecrets::new([1; 32], MonoTime(0));
        let cookie = secrets.cookie(&subject());
        secrets.renew(MonoTime(0) + 2 * COOKIE_PERIOD, || [2; 32]);
        assert!(!secrets.accepts(&subject(), &cookie));
    }

    fn subject() -> CookieSubject {
        CookieSubject {
            carrier: CookieCarrier::Challenge,
            agent: "192.0.2.1:1".parse().unwrap(),
            relay: "198.51.100.1:4433".parse().unwrap(),
            session: SessionId([0; 16]),
            side: Side::Connector,
            counter: 5,
        }
    }

    const KEY_EXAMPLE: [u8; 8] = [0x0e, 0x5f, 0x88, 0x39, 0xb6, 0x7a, 0x78, 0xc8];
}
