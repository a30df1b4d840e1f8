//! The sum of a whole UDP datagram: the dear way to see whether its checksum is right, for the few where its value alone
//! does not tell.
//!
//! The kernel's verifier follows every path through this for every way into it, so the steps are few and meet again: the rest
//! comes first, each piece's place is computed from the length alone, and nothing is left to do when the loop ends.

use crate::checksum::folds_to;
use crate::frame::{Frame, field};
use crate::header::{
    ETH_LEN, ETH_TYPE, ETHER_TYPE_IPV4, ETHER_TYPE_VLAN, UDP_CHECK, UDP_LEN, UDP_LENGTH, V4_UDP, V6_UDP,
};
use crate::vlan::Tag;

/// The longest datagram that is summed, in bytes with its header: the longest in an IPv4 packet of the usual MTU, 1500.
///
/// It is in the first of a frame's buffers then, if there are several: no driver has smaller ones than the usual frame takes.
pub const LONGEST_SUMMED: usize = 1480;

/// Bytes that are summed at a time, and so looked for at a time.
const CHUNK: usize = 128;

/// Whether the UDP checksum of a frame that [looks unfinished](crate::rewrite::Rewrite::looks_unfinished) is right: it is the
/// sum of the pseudo header, so taken twice, together with the rest, it comes out as zero, which is all ones. False if the
/// datagram is longer than [`LONGEST_SUMMED`].
#[inline(always)]
pub fn verifies<F: Frame>(frame: &F) -> bool {
    let Some((offset, header)) = udp(frame) else { return false };
    let length = usize::from(u16::from_be_bytes(field::<UDP_LENGTH, 2, _>(&header)));
    let pseudo = u16::from_ne_bytes(field::<UDP_CHECK, 2, _>(&header));
    match sum(frame, offset, length) {
        Some(sum) => folds_to(sum + u64::from(pseudo), 0xffff),
        None => false,
    }
}

/// Where the UDP header begins, behind an IP header without options, and the header itself.
#[inline(always)]
fn udp<F: Frame>(frame: &F) -> Option<(usize, [u8; UDP_LEN])> {
    let mut ether_type = u16::from_ne_bytes(field::<ETH_TYPE, 2, _>(frame.window::<ETH_LEN>(0)?));
    let mut tag = Tag::NONE;
    if ether_type == ETHER_TYPE_VLAN {
        (tag, ether_type) = Tag::read(frame).ok()?;
    }
    let offset = tag.shift() + if ether_type == ETHER_TYPE_IPV4 { V4_UDP } else { V6_UDP };
    Some((offset, *frame.window::<UDP_LEN>(offset)?))
}

/// Adds up, as words, the datagram that begins at `offset` and has so many bytes in all, so that it folds to the sum of 16-bit
/// words; an odd last byte is taken with a zero after it (RFC 1071 section 4.1). None if it is longer than [`LONGEST_SUMMED`],
/// or if the frame has not as many bytes there.
#[inline(always)]
fn sum<F: Frame>(frame: &F, offset: usize, length: usize) -> Option<u64> {
    if length > LONGEST_SUMMED {
        return None;
    }
    let rest = piece::<64, F>(frame, offset, length)?
        + piece::<32, F>(frame, offset, length)?
        + piece::<16, F>(frame, offset, length)?
        + piece::<8, F>(frame, offset, length)?
        + piece::<4, F>(frame, offset, length)?
        + last(frame, offset, length)?;
    let mut sum = rest;
    let mut start = 0;
    while start + CHUNK <= LONGEST_SUMMED {
        if start + CHUNK > length {
            break;
        }
        sum += words(frame.window::<CHUNK>(offset + start)?);
        start += CHUNK;
    }
    Some(sum)
}

/// The piece of `N` bytes behind all larger ones, if the length has one. `N` is a power of two.
#[inline(always)]
fn piece<const N: usize, F: Frame>(frame: &F, offset: usize, length: usize) -> Option<u64> {
    if length & N == 0 {
        return Some(0);
    }
    frame.window::<N>(offset + (length & !(2 * N - 1))).map(words)
}

/// The last bytes that are no whole word.
#[inline(always)]
fn last<F: Frame>(frame: &F, offset: usize, length: usize) -> Option<u64> {
    let mut sum = 0;
    if length & 2 != 0 {
        sum += u64::from(u16::from_ne_bytes(*frame.window::<2>(offset + (length & !3))?));
    }
    if length & 1 != 0 {
        // With the byte before it: of one byte alone the verifier does not see that it lies in the packet.
        let [_, byte] = *frame.window::<2>(offset + (length & !1) - 1)?;
        sum += u64::from(u16::from_ne_bytes([byte, 0]));
    }
    Some(sum)
}

#[inline(always)]
fn words<const N: usize>(bytes: &[u8; N]) -> u64 {
    let (words, _) = bytes.as_chunks::<4>();
    let mut sum = 0;
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    sum
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    extern crate std;
    use super::{LONGEST_SUMMED, UDP_LEN, sum};
    use crate::checksum::fold_wide;
    use crate::frame::SliceFrame;
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use std::vec::Vec;

    /// RFC 1071 to the letter.
    fn by_words(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn a_datagram_has_the_sum_of_its_words_wherever_it_begins(
            mut bytes in proptest::collection::vec(any::<u8>(), UDP_LEN..=LONGEST_SUMMED),
            before in 0usize..60,
            behind in 0usize..60,
        ) {
            let expected = by_words(&bytes);
            let length = bytes.len();
            let mut frame: Vec<u8> = std::vec![0xee; before];
            frame.append(&mut bytes);
            frame.resize(before + length + behind, 0xee);
            let frame = SliceFrame::new(&mut frame, 0, 1);
            prop_assert_eq!(sum(&frame, before, length).map(fold_wide), Some(expected));
        }

        #[test]
        fn what_is_not_all_there_has_no_sum(length in UDP_LEN..=LONGEST_SUMMED, missing in 1..=LONGEST_SUMMED) {
            let mut bytes = std::vec![1; length.saturating_sub(missing)];
            prop_assert_eq!(sum(&SliceFrame::new(&mut bytes, 0, 1), 0, length), None);
        }
    }

    #[test]
    fn every_length_up_to_the_longest_is_summed_and_none_beyond() {
        let mut bytes: Vec<u8> = (0..=LONGEST_SUMMED).map(|at| (at * 7 + 1) as u8).collect();
        let expected: Vec<u16> = (0..=LONGEST_SUMMED).map(|length| by_words(&bytes[..length])).collect();
        let frame = SliceFrame::new(&mut bytes, 0, 1);
        for (length, expected) in expected.into_iter().enumerate().skip(UDP_LEN) {
            assert_eq!(sum(&frame, 0, length).map(fold_wide), Some(expected), "{length} bytes");
        }
        assert_eq!(sum(&frame, 0, LONGEST_SUMMED + 1), None);
    }
}
