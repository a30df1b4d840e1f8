//! Writing a packet's new headers. Total: after the first byte is written nothing is left that could fail.

use crate::checksum::ChecksumDelta;
use crate::frame::{Frame, field, set_field};
use crate::header::{
    ECN_MASK, V4_CHECK, V4_DESTINATION, V4_HEADERS, V4_SOURCE, V4_TOS, V4_TTL, V4_UDP_CHECK, V4_UDP_SOURCE,
};
use crate::next_hop::Hop;
use crate::reason::Reason;
use crate::slot::RouteV4;

/// Sends the frame on its way: link-layer addresses, addresses, ports, TTL less one, both checksums, and the CE mark if
/// `mark` is set.
///
/// # Errors
/// [`Reason::CommitFailed`] if the headers that were read cannot be written.
#[inline(always)]
pub fn rewrite<F: Frame>(frame: &mut F, route: &RouteV4, hop: &Hop, mark: bool) -> Result<(), Reason> {
    let headers = frame.window_mut::<V4_HEADERS>(0).ok_or(Reason::CommitFailed)?;
    let [tos] = field::<V4_TOS, 1, _>(headers);
    let [ttl] = field::<V4_TTL, 1, _>(headers);
    let ip_check = u16::from_ne_bytes(field::<V4_CHECK, 2, _>(headers));
    let udp_check = u16::from_ne_bytes(field::<V4_UDP_CHECK, 2, _>(headers));

    let mut ip_delta = route.ip_delta;
    if mark {
        ip_delta = ip_delta.and(mark_delta(tos));
        set_field::<V4_TOS, 1, _>(headers, [tos | ECN_MASK]);
    }
    set_field::<V4_TTL, 1, _>(headers, [ttl.wrapping_sub(1)]);
    set_field::<V4_CHECK, 2, _>(headers, ip_delta.apply(ip_check).to_ne_bytes());
    set_field::<V4_SOURCE, 4, _>(headers, route.source.to_ne_bytes());
    set_field::<V4_DESTINATION, 4, _>(headers, route.destination.to_ne_bytes());
    set_field::<V4_UDP_SOURCE, 4, _>(headers, route.ports.to_ne_bytes());
    set_field::<V4_UDP_CHECK, 2, _>(headers, udp_checksum(route.udp_delta, udp_check).to_ne_bytes());
    let [to, middle, from] = hop.stations;
    set_field::<0, 4, _>(headers, to.to_ne_bytes());
    set_field::<4, 4, _>(headers, middle.to_ne_bytes());
    set_field::<8, 4, _>(headers, from.to_ne_bytes());
    Ok(())
}

/// The new UDP checksum. Zero says that there is none (RFC 768), so none stays none, and a sum of zero is sent as its
/// other form.
#[inline(always)]
const fn udp_checksum(delta: ChecksumDelta, old: u16) -> u16 {
    if old == 0 {
        return 0;
    }
    match delta.apply(old) {
        0 => 0xffff,
        new => new,
    }
}

/// What setting both ECN bits of `tos` does to the IP header's checksum: the word of version and TOS grows.
#[inline(always)]
const fn mark_delta(tos: u8) -> ChecksumDelta {
    ChecksumDelta(u16::from_ne_bytes([0, ECN_MASK - (tos & ECN_MASK)]))
}
