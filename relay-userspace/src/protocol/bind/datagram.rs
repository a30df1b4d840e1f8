//! The 96 bytes of a bind datagram.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use relay_common::{BIND_LEN, Side};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::secrets::{BindKey, BindMagic, Cookie};
use crate::protocol::byte_fields::ByteArray;

/// A session's id: 128 random bits. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SessionId {
    type Err = SessionIdError;

    fn from_str(text: &str) -> Result<SessionId, SessionIdError> {
        let fault = || SessionIdError { text: text.chars().take(80).collect() };
        let is_it = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let bits = u128::from_str_radix(text, 16).ok().filter(|_| is_it).ok_or_else(fault)?;
        Ok(SessionId(bits.to_be_bytes()))
    }
}

/// A text that is no session id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no session id: expected 32 hexadecimal digits, as `net sessions` shows them")]
pub struct SessionIdError {
    text: String,
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ByteArray(self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ByteArray::deserialize(deserializer).map(|ByteArray(bytes)| SessionId(bytes))
    }
}

/// A bind datagram whose MAC is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindDatagram {
    /// What it says.
    pub kind: BindKind,
    /// The agent's side of the session; answers repeat it.
    pub side: Side,
    /// The session.
    pub session: SessionId,
    /// The agent's counter; answers repeat it.
    pub counter: u64,
    /// The cookie, [`Cookie::NONE`] if there is none.
    pub cookie: Cookie,
}

/// The kinds of bind datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindKind {
    /// Agent to relay: "this tuple is mine", with the last Bound's cookie or none.
    Bind,
    /// Relay to agent: "repeat this cookie, to show that you receive there".
    Challenge,
    /// Agent to relay: a Challenge's cookie, repeated.
    Proof,
    /// Relay to agent: the tuple is yours.
    Bound {
        /// Whether the other side is bound too.
        state: PairState,
        /// The agent's address as the relay sees it.
        reflexive: SocketAddr,
    },
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairState {
    /// The other side has not proved its tuple yet; nothing is forwarded.
    Half,
    /// Both have, and both flows are in place.
    Paired,
}

impl BindDatagram {
    /// The datagram's bytes, MAC included.
    pub fn seal(&self, magic: &BindMagic, key: &BindKey) -> [u8; BIND_LEN] {
        let (kind, state, reflexive) = match self.kind {
            BindKind::Bind => (KIND_BIND, 0, None),
            BindKind::Challenge => (KIND_CHALLENGE, 0, None),
            BindKind::Proof => (KIND_PROOF, 0, None),
            BindKind::Bound { state: PairState::Half, reflexive } => {
                (KIND_BOUND, STATE_HALF, Some(reflexive))
            }
            BindKind::Bound { state: PairState::Paired, reflexive } => {
                (KIND_BOUND, STATE_PAIRED, Some(reflexive))
            }
        };
        let (address, port) = reflexive.map_or(([0; 16], 0), |at| {
            let address = match at.ip() {
                std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                std::net::IpAddr::V6(v6) => v6,
            };
            (address.octets(), at.port())
        });
        let fields = Fields {
            magic: magic.0,
            head: [VERSION, kind, self.side as u8, state],
            reserved_1: [0; 4],
            session: self.session.0,
            counter: self.counter.to_be_bytes(),
            cookie: self.cookie.0,
            address,
            port: port.to_be_bytes(),
            reserved_2: [0; 6],
        };
        fields.seal(key)
    }
}

/// A bind datagram whose form is right but whose MAC has not been looked at: nothing in it is to be believed, only used
/// to find the key it must have been made with.
#[derive(Clone, Copy, Debug)]
pub struct UnverifiedBind {
    claim: BindDatagram,
    bytes: [u8; BIND_LEN],
}

impl UnverifiedBind {
    /// Checks everything but the MAC.
    ///
    /// # Errors
    /// The first fault found.
    pub fn parse(bytes: &[u8; BIND_LEN], magic: &BindMagic) -> Result<Self, BindFault> {
        let fields = Fields::split(bytes);
        if fields.magic != magic.0 {
            return Err(BindFault::Magic);
        }
        let [version, kind, side, state] = fields.head;
        if version != VERSION {
            return Err(BindFault::Version(version));
        }
        if fields.reserved_1 != [0; 4] || fields.reserved_2 != [0; 6] {
            return Err(BindFault::Reserved);
        }
        let side = match side {
            0 => Side::Connector,
            1 => Side::Target,
            other => return Err(BindFault::Side(other)),
        };
        let address = Ipv6Addr::from(fields.address).to_canonical();
        let port = u16::from_be_bytes(fields.port);
        let kind = match kind {
            KIND_BOUND => {
                let state = match state {
                    STATE_HALF => PairState::Half,
                    STATE_PAIRED => PairState::Paired,
                    other => return Err(BindFault::State(other)),
                };
                BindKind::Bound { state, reflexive: SocketAddr::new(address, port) }
            }
            KIND_BIND | KIND_CHALLENGE | KIND_PROOF => {
                if state != 0 {
                    return Err(BindFault::State(state));
                }
                if fields.address != [0; 16] || port != 0 {
                    return Err(BindFault::Reserved);
                }
                match kind {
                    KIND_BIND => BindKind::Bind,
                    KIND_CHALLENGE => BindKind::Challenge,
                    _ => BindKind::Proof,
                }
            }
            other => return Err(BindFault::Kind(other)),
        };
        let claim = BindDatagram {
            kind,
            side,
            session: SessionId(fields.session),
            counter: u64::from_be_bytes(fields.counter),
            cookie: Cookie(fields.cookie),
        };
        Ok(UnverifiedBind { claim, bytes: *bytes })
    }

    /// The session the datagram claims to be of.
    pub fn session(&self) -> SessionId {
        self.claim.session
    }

    /// The side it claims to come from or be meant for.
    pub fn side(&self) -> Side {
        self.claim.side
    }

    /// The datagram, if it was made with `key`. Takes the same time for every wrong MAC.
    ///
    /// # Errors
    /// [`BindFault::Mac`].
    pub fn verify(&self, key: &BindKey) -> Result<BindDatagram, BindFault> {
        let (signed, mac) = self.bytes.split_at(SIGNED_LEN);
        if key.verifies(signed, mac) { Ok(self.claim) } else { Err(BindFault::Mac) }
    }
}

/// Why a datagram is no bind datagram for us. None of them is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindFault {
    /// It begins with another magic.
    #[error("not this relay's magic")]
    Magic,
    /// Another version.
    #[error("bind version {0}, expected 1")]
    Version(u8),
    /// No such kind.
    #[error("unknown bind kind {0}")]
    Kind(u8),
    /// No such side.
    #[error("unknown side {0}")]
    Side(u8),
    /// No such state, or one where there is none.
    #[error("unknown state {0}")]
    State(u8),
    /// Bytes that must be 0 are not.
    #[error("reserved bytes are set")]
    Reserved,
    /// Not made with this session's and side's key.
    #[error("the MAC does not verify")]
    Mac,
}

const VERSION: u8 = 1;
const KIND_BIND: u8 = 1;
const KIND_CHALLENGE: u8 = 2;
const KIND_PROOF: u8 = 3;
const KIND_BOUND: u8 = 4;
const STATE_HALF: u8 = 0;
const STATE_PAIRED: u8 = 1;

/// Bytes that the MAC covers.
const SIGNED_LEN: usize = 80;

/// The layout, once: read by [`Fields::split`], written by [`Fields::seal`].
struct Fields {
    magic: [u8; 8],
    head: [u8; 4],
    reserved_1: [u8; 4],
    session: [u8; 16],
    counter: [u8; 8],
    cookie: [u8; 16],
    address: [u8; 16],
    port: [u8; 2],
    reserved_2: [u8; 6],
}

impl Fields {
    fn split(bytes: &[u8; BIND_LEN]) -> Self {
        let mut rest = &bytes[..];
        Fields {
            magic: take(&mut rest),
            head: take(&mut rest),
            reserved_1: take(&mut rest),
            session: take(&mut rest),
            counter: take(&mut rest),
            cookie: take(&mut rest),
            address: take(&mut rest),
            port: take(&mut rest),
            reserved_2: take(&mut rest),
        }
    }

    fn seal(&self, key: &BindKey) -> [u8; BIND_LEN] {
        let mut bytes = [0; BIND_LEN];
        let mut rest = &mut bytes[..];
        put(&mut rest, &self.magic);
        put(&mut rest, &self.head);
        put(&mut rest, &self.reserved_1);
        put(&mut rest, &self.session);
        put(&mut rest, &self.counter);
        put(&mut rest, &self.cookie);
        put(&mut rest, &self.address);
        put(&mut rest, &self.port);
        put(&mut rest, &self.reserved_2);
        let (signed, mac) = bytes.split_at_mut(SIGNED_LEN);
        mac.copy_from_slice(&key.mac(signed));
        bytes
    }
}

/// The next `N` bytes. The fields' lengths add up to [`SIGNED_LEN`], so there always are as many.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N],
    }
}

fn put<const N: usize>(rest: &mut &mut [u8], field: &[u8; N]) {
    if let Some((head, tail)) = std::mem::take(rest).split_first_chunk_mut::<N>() {
        *head = *field;
        *rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAGIC: BindMagic = BindMagic([0x11, 2, 3, 4, 5, 6, 7, 8]);

    #[test]
    fn a_bound_has_these_bytes() {
        let sealed = bound("192.0.2.1:4660").seal(&MAGIC, &key());
        let mut expected = vec![0x11, 2, 3, 4, 5, 6, 7, 8, 1, 4, 1, 1, 0, 0, 0, 0];
        expected.extend([0xa5; 16]);
        expected.extend([0, 6, 0x2c, 0xb3, 0xa8, 0x9e, 0xa0, 0]);
        expected.extend([0xc0; 16]);
        expected
            .extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1, 0x12, 0x34, 0, 0, 0, 0, 0, 0]);
        // HMAC-SHA256 under 32 bytes of 0x0b, computed with Python's hmac module.
        expected.extend(BOUND_MAC);
        assert_eq!(sealed[..], expected[..]);
    }

    #[test]
    fn a_session_id_is_read_as_it_is_written() {
        let id = SessionId([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "a5", &"a5".repeat(17), &"+5".repeat(16), &"\u{df}".repeat(16)] {
            let error = wrong.parse::<SessionId>().unwrap_err().to_string();
            assert!(error.contains("32 hexadecimal digits"), "{error}");
        }
    }

    #[test]
    fn every_kind_comes_back() {
        for kind in [
            BindKind::Bind,
            BindKind::Challenge,
            BindKind::Proof,
            BindKind::Bound { state: PairState::Half, reflexive: "[2001:db8::1]:1".parse().unwrap() },
            bound("203.0.113.9:65535").kind,
        ] {
            let datagram = BindDatagram { kind, ..bound("192.0.2.1:1") };
            let parsed = UnverifiedBind::parse(&datagram.seal(&MAGIC, &key()), &MAGIC).unwrap();
            assert_eq!((parsed.session(), parsed.side()), (datagram.session, datagram.side));
            assert_eq!(parsed.verify(&key()).unwrap(), datagram);
        }
    }

    #[test]
    fn a_change_of_any_bit_is_refused() {
        let sealed = bound("192.0.2.1:4660").seal(&MAGIC, &key());
        for at in 0..BIND_LEN {
            for bit in 0..8 {
                let mut bytes = sealed;
                bytes[at] ^= 1 << bit;
                let verdict = UnverifiedBind::parse(&bytes, &MAGIC).and_then(|parsed| parsed.verify(&key()));
                assert!(verdict.is_err(), "byte {at} bit {bit}");
            }
        }
        let another_key = BindKey::from_bytes([0x0c; 32]);
        let parsed = UnverifiedBind::parse(&sealed, &MAGIC).unwrap();
        assert_eq!(parsed.verify(&another_key), Err(BindFault::Mac));
    }

    #[test]
    fn each_fault_of_form_is_named() {
        let sealed = bound("192.0.2.1:4660").seal(&MAGIC, &key());
        let faults = [
            (0, 0x12, BindFault::Magic),
            (8, 2, BindFault::Version(2)),
            (9, 5, BindFault::Kind(5)),
            (9, 1, BindFault::State(1)),
            (10, 2, BindFault::Side(2)),
            (11, 2, BindFault::State(2)),
            (12, 1, BindFault::Reserved),
            (79, 1, BindFault::Reserved),
        ];
        for (at, byte, fault) in faults {
            let mut bytes = sealed;
            bytes[at] = byte;
            assert_eq!(UnverifiedBind::parse(&bytes, &MAGIC).unwrap_err(), fault);
        }
        let mut question_with_address = sealed;
        question_with_address[9] = KIND_PROOF;
        question_with_address[11] = 0;
        assert_eq!(UnverifiedBind::parse(&question_with_address, &MAGIC).unwrap_err(), BindFault::Reserved);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_and_never_verify(bytes in prop::array::uniform32(any::<u8>())) {
            let mut datagram = [0; BIND_LEN];
            datagram[..8].copy_from_slice(&MAGIC.0);
            datagram[8] = 1;
            datagram[9] = 1 + (bytes[0] & 3);
            datagram[16..48].copy_from_slice(&bytes);
            if let Ok(parsed) = UnverifiedBind::parse(&datagram, &MAGIC) {
                prop_assert_eq!(parsed.verify(&key()), Err(BindFault::Mac));
            }
        }
    }

    fn key() -> BindKey {
        BindKey::from_bytes([0x0b; 32])
    }

    fn bound(reflexive: &str) -> BindDatagram {
        BindDatagram {
            kind: BindKind::Bound { state: PairState::Paired, reflexive: reflexive.parse().unwrap() },
            side: Side::Target,
            session: SessionId([0xa5; 16]),
            counter: 1_738_000_000_000_000,
            cookie: Cookie([0xc0; 16]),
        }
    }

    const BOUND_MAC: [u8; 16] =
        [0xf3, 0xfc, 0xef, 0x41, 0x3e, 0x82, 0x30, 0x30, 0xcb, 0x61, 0xd9, 0x4d, 0x3b, 0xe0, 0x29, 0xb4];
}
