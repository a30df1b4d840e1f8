//! What the traffic programs and the benchmark that loads them share: compiled into both.

/// The generator writes so many words of a frame: all that differs from flow to flow lies in them.
pub const HEAD_WORDS: usize = 8;

/// Frames of which a copy is kept.
pub const SAMPLES: u32 = 16;

/// Room for a copied frame.
pub const SAMPLE_LEN: usize = 1280;

/// Frames that a flat-out generator makes between two looks at the clock: the kernel's batch.
pub const BATCH: u32 = 64;

/// How finely delays are told apart: so many steps from one power of two to the next.
pub const DELAY_STEPS: u32 = 32;

/// Number of delays that are told apart: all below 2^40 ns.
pub const DELAY_BUCKETS: u32 = 36 * DELAY_STEPS;

/// The first bytes of a frame as the generator makes it. All of them are written anew for each frame, since the kernel
/// hands out the pages of sent frames again as they came back.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Head {
    /// Destination and source MAC address.
    pub stations: [u8; 12],
    /// IPv4.
    pub ether_type: [u8; 2],
    /// Version, header length, TOS.
    pub version: [u8; 2],
    /// Length of the packet.
    pub ip_length: [u8; 2],
    /// Identification, flags, fragment offset.
    pub fragment: [u8; 4],
    /// TTL.
    pub ttl: u8,
    /// UDP.
    pub protocol: u8,
    /// Checksum of the IPv4 header.
    pub ip_check: [u8; 2],
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Source port.
    pub source_port: [u8; 2],
    /// Destination port.
    pub destination_port: [u8; 2],
    /// Length of the datagram.
    pub udp_length: [u8; 2],
    /// Its checksum.
    pub udp_check: [u8; 2],
    /// The header of TURN's ChannelData, or zeroes.
    pub lead: [u8; 4],
    /// Number of the flow, the highest byte first: so no payload begins like QUIC's.
    pub flow: [u8; 4],
    /// When the frame was due, in ns of the monotonic clock, native-endian; zero in frames that are not paced.
    pub stamp: [u8; 8],
    /// The beginning of the payload's pattern.
    pub pattern: [u8; 6],
}

const _: () = assert!(size_of::<Head>() == 8 * HEAD_WORDS && align_of::<Head>() == 1);

/// What the generator makes. Flows are visited in turn.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Stream {
    /// A [`Head`] with zeroes for addresses, source port, flow and stamp.
    pub head: [u64; HEAD_WORDS],
    /// The sums in its IP and UDP checksums, native-endian: complemented, they stand in the packet.
    pub sums: [u32; 2],
    /// Number of flows.
    pub flows: u32,
    /// Source address of the first flow, and by how much it grows from flow to flow.
    pub source: [u32; 2],
    /// Destination address, likewise.
    pub destination: [u32; 2],
    /// Source port, likewise.
    pub source_port: [u32; 2],
    /// Time from frame to frame in ns; 0: as fast as it goes.
    pub interval: u32,
}

/// What the generator has made, on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// When the first one was made, in ns of the monotonic clock.
    pub first: u64,
    /// When the last batch was begun; if frames are paced: when the generator was asked for one last.
    pub last: u64,
    /// When the next paced frame is due.
    pub due: u64,
    /// Flow of the next frame.
    pub flow: u32,
    /// The compiler adds none of its own.
    pub padding: u32,
}

/// What sink and echo look at.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Watch {
    /// Datagrams to this port, as it stands in the packet, are counted and end at the sink. Other frames go up the stack.
    pub port: [u8; 2],
    /// Datagrams to this port are sent back by the echo. Other frames go up the stack.
    pub echoed_port: [u8; 2],
    /// Not 0: keeps the time of the first and the last one.
    pub timed: u8,
    /// Not 0: counts delays since the frames' stamps.
    pub delays: u8,
}

/// What has reached the sink, on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Arrived {
    /// Frames.
    pub frames: u64,
    /// When the first one came, in ns of the monotonic clock.
    pub first: u64,
    /// When the last one came.
    pub last: u64,
}

/// A copied frame.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sample {
    /// Bytes of the frame; 0: there is none.
    pub length: u32,
    /// The frame.
    pub bytes: [u8; SAMPLE_LEN],
}

/// Which bucket a delay of `ns` is counted in: exact below [`DELAY_STEPS`], then to a thirty-second.
#[inline(always)]
pub const fn delay_bucket(ns: u64) -> u32 {
    if ns < DELAY_STEPS as u64 {
        return ns as u32;
    }
    let power = 63 - ns.leading_zeros();
    let shift = power - DELAY_STEPS.trailing_zeros();
    let bucket = shift * DELAY_STEPS + (ns >> shift) as u32;
    if bucket < DELAY_BUCKETS { bucket } else { DELAY_BUCKETS - 1 }
}

/// The shortest delay in ns that is counted in `bucket`.
pub const fn delay_floor(bucket: u32) -> u64 {
    if bucket < DELAY_STEPS {
        return bucket as u64;
    }
    let shift = bucket / DELAY_STEPS - 1;
    ((bucket - shift * DELAY_STEPS) as u64) << shift
}

const _: () = {
    let mut bucket = 0;
    while bucket < DELAY_BUCKETS {
        assert!(
            delay_bucket(delay_floor(bucket)) == bucket
                && delay_bucket(delay_floor(bucket + 1) - 1) == bucket
        );
        bucket += 1;
    }
};
