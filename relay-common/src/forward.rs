//! One packet's way, decide then commit: parse, look up, egress, consent and limit, rewrite.
//!
//! Nothing is written and nothing is charged before the last check that can pass the packet on unchanged.

use crate::flow::look_up;
use crate::frame::Frame;
use crate::next_hop::{Egress, Hop};
use crate::parse::{Packet, Parsed, parse};
use crate::reason::Reason;
use crate::rewrite::Rewrite;
use crate::tables::Tables;
use crate::tuple::Tuple;
use crate::vlan::Tag;

/// Where a forwarded frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Number of the next hop, which is also its place in the device map.
    pub hop: u32,
    /// Whether it leaves through the device map or by the interface it came by.
    pub redirect: bool,
}

/// Decides on a frame and, if it is forwarded, rewrites it. `now` is asked only where time matters: nanoseconds of the
/// coarse monotonic clock, the dearest instruction on the way.
///
/// # Errors
/// The reason why the frame is not forwarded. It is unchanged then, except after [`Reason::CommitFailed`].
#[inline(always)]
pub fn forward<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    now: impl FnOnce() -> u64,
) -> Result<Departure, Reason> {
    match parse(frame, tables)? {
        Parsed::V4(packet) => relay(frame, tables, &packet, now),
        Parsed::V6(packet) => relay(frame, tables, &packet, now),
    }
}

/// The way of a packet of one family, which may become one of the other.
#[inline(always)]
fn relay<F: Frame, T: Tables, K: Tuple>(
    frame: &mut F,
    tables: &T,
    packet: &Packet<K>,
    now: impl FnOnce() -> u64,
) -> Result<Departure, Reason>
where
    Packet<K>: Rewrite,
{
    // Here and not where it is needed: before the look-up little is known yet that a call would have to keep. So strangers can
    // have it summed, too: docs/abuse.md.
    let unfinished = packet.looks_unfinished() && !frame.verifies();
    let flow = look_up(tables, &packet.tuple)?;
    packet.suits(&flow.route, unfinished)?;
    let hop = egress(tables, flow.route.hop, packet.length_after(&flow.route), packet.tag)?;
    let mark = flow.admit(packet.payload, packet.markable(), now())?;
    if mark {
        tables.marked(packet.payload);
    }
    flow.count(packet.payload);
    packet.rewrite(frame, &flow.route, &hop, mark)?;
    Ok(Departure { hop: u32::from(flow.route.hop), redirect: matches!(hop.egress, Egress::Redirect) })
}

/// The next hop, if the program can send an IP packet of `length` bytes to it in a frame with `tag`. A packet too big for
/// the egress is passed up before anything is charged: a redirect would drop it after it was counted as forwarded.
#[inline(always)]
fn egress<T: Tables>(tables: &T, hop: u16, length: u32, tag: Tag) -> Result<Hop, Reason> {
    let entry = tables.next_hop(u32::from(hop)).ok_or(Reason::HopUnresolved)?;
    let hop = entry.copy().map_err(|_| Reason::FlowChanged)?;
    if matches!(hop.egress, Egress::Userspace) {
        return Err(Reason::HopUnresolved);
    }
    if hop.vlan != tag.vlan() {
        return Err(if tag == Tag::NONE { Reason::VlanMissing } else { Reason::VlanTagged });
    }
    if length > hop.mtu {
        return Err(Reason::TooBig);
    }
    Ok(hop)
}
