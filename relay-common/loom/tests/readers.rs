//! One writer of the flow tables against one reader, in every order of their accesses to memory that loom finds with a
//! few forced switches of thread, and with every value that a load may return by the memory model of C11.
//!
//! Covered: the orders of stores and loads as `word.rs` writes them for the host (acquire, release), which are
//! weaker than x86-64's; the daemon's own readers run these. Not covered: the program's loads are volatile reads without
//! an order of their own, so for them x86-64 itself is relied on, whose order is stronger than the one tried here (the
//! tests on a real kernel try that); more than one writer, which there is not; buckets of 12 entries: here they have 4.
//!
//! The writer takes the steps of `FlowTable` (relay-userspace) in its order: lines before index entries on the way in, index
//! entries before lines on the way out; when a side moves, the new entry, the lines, and last the old entry.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "in a test a panic is a failure, and the figure is printed"
)]

use std::net::{Ipv4Addr, SocketAddr};

use loom::sync::Arc;
use loom::thread;
use relay_common_loom::bucket::{Allowance, Charge};
use relay_common_loom::flow::look_up;
use relay_common_loom::hash::{self, HashKey};
use relay_common_loom::index::{IndexBucket, Place, SlotSide};
use relay_common_loom::interface::Interface;
use relay_common_loom::local::Local;
use relay_common_loom::next_hop::NextHop;
use relay_common_loom::route::Route;
use relay_common_loom::slot::{LineLocals, SideLine, Slot};
use relay_common_loom::tables::Tables;
use relay_common_loom::tuple::{AnyTuple, TupleV4};
use relay_common_loom::{Reason, Side};

const KEY: HashKey = hash::key([3, 4]);
const MASK: u32 = 1;
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// Tries every order with up to two forced switches of thread. With three it takes minutes.
fn in_every_order(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 10_000;
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&orders);
    builder.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    println!("{} orders tried", orders.load(std::sync::atomic::Ordering::Relaxed));
}

fn tuple(ip: [u8; 4], port: u16) -> AnyTuple {
    AnyTuple::new(SocketAddr::from((ip, port)), SocketAddr::from((RELAY, 4433))).unwrap()
}

/// The route of packets of a tuple: to an agent that nobody else has.
fn route(of: &AnyTuple) -> Route {
    let SocketAddr::V4(from) = of.source() else { panic!("IPv4") };
    let [_, _, third, fourth] = from.ip().octets();
    Route::new(of, &tuple([192, 168, third, fourth], from.port()).reversed(), 0)
}

fn v4(tuple: AnyTuple) -> TupleV4 {
    match tuple {
        AnyTuple::V4(tuple) => tuple,
        AnyTuple::V6(_) => panic!("IPv4"),
    }
}

fn place(tuple: AnyTuple) -> Place {
    Place::of(tuple.hash(&KEY), MASK)
}

#[derive(Default)]
struct Memory {
    index: [IndexBucket; MASK as usize + 1],
    slots: [Slot; 2],
}

impl Tables for Memory {
    fn hash_key(&self, _: usize) -> HashKey {
        KEY
    }

    fn bucket_mask(&self) -> u32 {
        MASK
    }

    fn bucket(&self, number: u32) -> Option<&IndexBucket> {
        self.index.get(number as usize)
    }

    fn slot(&self, number: u32) -> Option<&Slot> {
        self.slots.get(number as usize)
    }

    fn next_hop(&self, _: u32) -> Option<&NextHop> {
        None
    }

    fn local(&self, _: u32) -> Option<&Local> {
        None
    }

    fn interface(&self, _: u32) -> Option<&Interface> {
        None
    }

    fn bind_magic(&self) -> u64 {
        0
    }
}

/// The connector's side of a slot: one side is enough, as sides share no words that a look-up reads.
const fn at(slot: u32) -> SlotSide {
    SlotSide { slot, side: Side::Connector }
}

impl Memory {
    fn line(&self, slot: u32) -> &SideLine {
        self.slots[slot as usize].side(Side::Connector)
    }

    fn write_line(&self, slot: u32, tuple: AnyTuple) {
        self.line(slot).write(&tuple, &route(&tuple), LineLocals::default());
    }

    fn put(&self, slot: u32, tuple: AnyTuple) {
        let Place { buckets, fingerprint } = place(tuple);
        assert!(self.index[buckets[0] as usize].put(fingerprint, at(slot)));
    }

    fn take_out(&self, slot: u32, tuple: AnyTuple) {
        let Place { buckets, fingerprint } = place(tuple);
        assert!(self.index[buckets[0] as usize].take_out(fingerprint, at(slot)));
    }

    fn install(&self, slot: u32, tuple: AnyTuple) {
        self.write_line(slot, tuple);
        self.put(slot, tuple);
    }

    fn remove(&self, slot: u32, tuple: AnyTuple) {
        self.take_out(slot, tuple);
        self.line(slot).clear();
    }

    fn rebind(&self, slot: u32, old: AnyTuple, new: AnyTuple) {
        self.put(slot, new);
        self.write_line(slot, new);
        self.take_out(slot, old);
    }

    /// Where packets of `tuple` go.
    fn destination(&self, tuple: AnyTuple) -> Result<AnyTuple, Reason> {
        look_up(self, &v4(tuple)).map(|flow| flow.route.tuple())
    }
}

/// A steady tuple, and two neighbours with its first bucket and its fingerprint: one with its address, one with its port,
/// so that parts of the two make up the steady one.
fn alike() -> [AnyTuple; 3] {
    let steady = tuple([10, 1, 0, 1], 40_000);
    let is_alike = |other: &AnyTuple| *other != steady && place(*other) == place(steady);
    let same_address = (1024..u16::MAX).map(|port| tuple([10, 1, 0, 1], port)).find(is_alike).unwrap();
    let same_port = (0..=u16::MAX)
        .map(|host| tuple([10, 2, host.to_be_bytes()[0], host.to_be_bytes()[1]], 40_000))
        .find(is_alike)
        .unwrap();
    [steady, same_address, same_port]
}

#[test]
fn a_line_gives_the_route_of_its_own_tuple_or_none() {
    let [mixed, one, other] = alike();
    in_every_order(move || {
        let memory = Arc::new(Memory::default());
        memory.write_line(0, one);
        let writer = Arc::clone(&memory);
        let writing = thread::spawn(move || writer.write_line(0, other));
        for wanted in [one, mixed] {
            match memory.line(0).route_of(&v4(wanted), &*memory) {
                Some(Ok(found)) => assert_eq!((found, wanted), (route(&one), one)),
                Some(Err(_)) => {
                    assert_eq!(wanted, one, "a line that never described a tuple did not change either")
                }
                None => {}
            }
        }
        writing.join().unwrap();
        assert_eq!(memory.line(0).route_of(&v4(other), &*memory), Some(Ok(route(&other))));
    });
}

#[test]
fn a_steady_session_is_found_while_a_neighbours_slot_gets_another_session() {
    let [steady, one, other] = alike();
    in_every_order(move || {
        let memory = Arc::new(Memory::default());
        memory.install(1, one);
        memory.install(0, steady);
        let writer = Arc::clone(&memory);
        let writing = thread::spawn(move || {
            writer.remove(1, one);
            writer.install(1, other);
        });
        assert_eq!(memory.destination(steady), Ok(route(&steady).tuple()));
        writing.join().unwrap();
        assert_eq!(memory.destination(steady), Ok(route(&steady).tuple()));
    });
}

#[test]
fn a_steady_session_is_found_while_a_neighbour_moves() {
    let [steady, one, other] = alike();
    in_every_order(move || {
        let memory = Arc::new(Memory::default());
        memory.install(1, one);
        memory.install(0, steady);
        let writer = Arc::clone(&memory);
        let writing = thread::spawn(move || writer.rebind(1, one, other));
        assert_eq!(memory.destination(steady), Ok(route(&steady).tuple()));
        writing.join().unwrap();
    });
}

#[test]
fn a_session_that_comes_or_goes_is_found_with_its_own_route_or_not_at_all() {
    let [_, one, other] = alike();
    in_every_order(move || {
        let memory = Arc::new(Memory::default());
        memory.install(0, one);
        let writer = Arc::clone(&memory);
        let writing = thread::spawn(move || {
            writer.remove(0, one);
            writer.install(0, other);
        });
        for tuple in [other, one] {
            match memory.destination(tuple) {
                Ok(destination) => assert_eq!(destination, route(&tuple).tuple()),
                Err(reason) => assert!(matches!(reason, Reason::NoFlow | Reason::FlowChanged)),
            }
        }
        writing.join().unwrap();
        assert_eq!(memory.destination(one), Err(Reason::NoFlow));
        assert_eq!(memory.destination(other), Ok(route(&other).tuple()));
    });
}

#[test]
fn a_limit_that_changes_grants_nothing_but_one_packet_that_was_under_way() {
    const NOW: u64 = 1_000_000_000;
    const PAYLOAD: u32 = 250;
    // A higher rate with the same bytes at once, a lower one, and one with a larger burst.
    for (rate, burst) in [(1_000_000, 8_000), (1_000, 8_000), (100_000, 80_000)] {
        in_every_order(move || {
            let memory = Arc::new(Memory::default());
            memory.slots[0].set_allowance(Allowance::new(100_000, 8_000), NOW);
            while memory.slots[0].bucket().charge(PAYLOAD, false, NOW) == Charge::Conforming {}
            let writer = Arc::clone(&memory);
            let writing =
                thread::spawn(move || writer.slots[0].set_allowance(Allowance::new(rate, burst), NOW));
            let charge = || memory.slots[0].bucket().charge(PAYLOAD, false, NOW) == Charge::Conforming;
            let granted = (0..3).filter(|_| charge()).count();
            assert!(granted <= 1, "{granted} of a bucket that was used up");
            writing.join().unwrap();
            // And then the new rate.
            let earned = |bytes: u32| NOW + u64::from(bytes) * 1_000_000_000 / rate;
            let charge = |now| memory.slots[0].bucket().charge(PAYLOAD, false, now);
            assert_eq!(charge(earned(PAYLOAD - 1)), Charge::Over);
            assert_eq!(charge(earned(PAYLOAD * 11) + 1000), Charge::Conforming);
        });
    }
}
