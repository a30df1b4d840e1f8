//! What the benchmark's programs and the benchmark that loads them share: compiled into both.

/// Words that hold the headers of a frame, Ethernet to UDP, of either family: 62 bytes at most.
pub const HEAD_WORDS: usize = 8;

/// What the prologue makes frames of: the headers of flow number 0, and what the flow's number changes in them.
///
/// A flow's number is added to the last four bytes of the source address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Template {
    /// The headers, without checksums and the last four bytes of the source address.
    pub head: [u64; HEAD_WORDS],
    /// Those four bytes of flow number 0, in host byte order.
    pub source: u32,
    /// The sum of the other 16-bit words of the IPv4 header, in host byte order.
    pub ip_sum: u32,
    /// A sum that makes the UDP checksum one of some payload, together with the source address's last four bytes.
    pub udp_sum: u32,
    /// 0, so that no padding is left.
    pub unused: u32,
}

/// Where the generator's state stands: behind the headers of either family and a payload's first eight bytes, which tell
/// bind datagrams. It is the end of the shortest frame.
pub const MIN_FRAME: usize = 100;
