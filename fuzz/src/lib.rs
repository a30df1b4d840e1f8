//! What must hold for any bytes from outside. Each function takes bytes and panics if something does not hold.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is how a fuzz target reports"
)]

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use relay_common::frame::SliceFrame;
use relay_common::next_hop::{Egress, Hop, station_words};
use relay_common::{BIND_LEN, Reason, forward};
use relay_userspace::clock::MonoTime;
use relay_userspace::protocol::Message;
use relay_userspace::protocol::bind::{BindKey, BindMagic, UnverifiedBind};
use relay_userspace::relay::datapath::{
    FlowTable, FlowTuple, Flows, Limit, Origin, Routes, TableSizes, Tables,
};

const MAGIC: [u8; 8] = [0x2a, 1, 2, 3, 4, 5, 6, 7];
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
const INTERFACE: u32 = 1;
const HEADROOM: usize = 64;
const NOW: MonoTime = MonoTime(1_000_000_000);

const VLAN: u16 = 5;

/// Agents 1 and 2 of a network are reached without tag, 3 and 4 by a VLAN.
struct ByAgent;

impl Routes for ByAgent {
    fn hop_for(&mut self, agent: IpAddr, _relay: IpAddr) -> u16 {
        let last = match agent {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        u16::from(last > 2)
    }

    fn release(&mut self, _hop: u16) {}
}

/// Sessions of every combination of families, unlimited, first without tag, then in the VLAN: a connector at port 40000 + n,
/// its target at 50000 + n.
static TABLES: LazyLock<Arc<Tables>> = LazyLock::new(|| {
    let tables = Arc::new(Tables::private(TableSizes::for_sessions(8), [1, 2], MAGIC));
    tables.interfaces()[INTERFACE as usize].write(INTERFACE, STATION, 1500);
    let stations = station_words([2, 0, 0, 0, 0, 2], STATION);
    for (entry, vlan) in tables.next_hops().iter().zip([0, VLAN]) {
        entry.write(&Hop { egress: Egress::Transmit, interface: INTERFACE, mtu: 1500, stations, vlan });
    }
    let mut flows = FlowTable::new(Arc::clone(&tables), ByAgent);
    let far = MonoTime(u64::MAX);
    for combination in 0..8u16 {
        let first = if combination < 4 { 1 } else { 3 };
        let side = |v6: bool, ip: u16, port: u16| {
            let (agent, relay) = if v6 {
                (format!("[fd00::{ip}]:{port}"), "[fd00::9]:4433")
            } else {
                (format!("10.0.0.{ip}:{port}"), "10.9.0.2:4433")
            };
            let parse = |address: &str| -> SocketAddr { address.parse().expect("an address") };
            FlowTuple { agent: parse(&agent), relay: parse(relay) }
        };
        let sides = [
            side(combination & 1 != 0, first, 40_000 + combination),
            side(combination & 2 != 0, first + 1, 50_000 + combination),
        ];
        flows
            .install(sides, Limit::UNLIMITED, &Origin::NONE, [far, far], NOW)
            .expect("room for eight sessions");
    }
    tables
});

/// A frame on the relay's interface: never a panic, unchanged unless forwarded, and then with its payload and its tag. The
/// reason it got.
pub fn frame(bytes: &[u8]) -> Reason {
    let mut room = [&[0; HEADROOM], bytes].concat();
    let mut view = SliceFrame::new(&mut room, HEADROOM, INTERFACE);
    let decision = forward(&mut view, &**TABLES, || NOW.0);
    let after = view.as_bytes();
    match decision {
        Err(Reason::CommitFailed) => panic!("a decision to forward that could not be carried out"),
        Err(_) => assert_eq!(after, bytes, "a frame that is not forwarded is not changed"),
        Ok(_) => {
            let tag = |frame: &[u8]| frame[12..].strip_prefix(&[0x81, 0]).map(|tag| [tag[0], tag[1]]);
            assert_eq!(tag(after), tag(bytes), "the tag is the one it came with");
            let behind = if tag(bytes).is_some() { 4 } else { 0 };
            let headers = |frame: &[u8]| behind + if frame[12 + behind] == 0x86 { 62 } else { 42 };
            assert_eq!(after[headers(after)..], bytes[headers(bytes)..], "the payload is carried unchanged");
        }
    }
    decision.err().unwrap_or(Reason::Forwarded)
}

/// A bind datagram: never a panic; what parses says the same when it is made again, MAC or not.
pub fn bind(bytes: &[u8]) {
    let Some(datagram) = bytes.first_chunk::<BIND_LEN>() else { return };
    let (magic, key) = (BindMagic(MAGIC), BindKey::from_bytes([0x0b; 32]));
    let Ok(unverified) = UnverifiedBind::parse(datagram, &magic) else { return };
    if let Ok(verified) = unverified.verify(&key) {
        assert_eq!(verified.seal(&magic, &key), *datagram, "one meaning has one form");
    }
}

/// A control frame: never a panic; a message that is understood is understood again after being written anew, and then
/// has one form. (Writing leaves out what we do not pass on, such as an operator.)
pub fn envelope(bytes: &[u8]) {
    let Ok(message) = Message::decode_frame(bytes) else { return };
    let written = message.encode().expect("what was read can be written");
    let again = Message::decode_frame(&written).expect("what was written can be read");
    assert_eq!(again.encode().as_ref(), Ok(&written));
}
