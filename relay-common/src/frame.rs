//! Access to the bytes of a frame.

/// A frame being looked at: the packet in the driver's ring, or a slice in a test.
pub trait Frame {
    /// Bytes of the whole frame, those outside the linear part included.
    fn length(&self) -> u32;

    /// Index of the interface it came by.
    fn interface(&self) -> u32;

    /// `N` bytes at `offset` of the linear part: one bounds check buys all of them.
    fn window<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// The same, to write.
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;

    /// Whether its UDP checksum, which looks unfinished, is right, as [`datagram::verifies`](crate::datagram::verifies) tells,
    /// and that is all that counts.
    fn verifies(&self) -> bool;

    /// Moves the frame's start: `delta` bytes away from it (positive) or in front of it. Whether there was room.
    fn move_start(&mut self, delta: i32) -> bool;
}

/// `N` bytes of a window, at an offset that the compiler checks.
#[expect(clippy::indexing_slicing, reason = "the assertion within is checked at compile time")]
#[inline(always)]
pub(crate) fn field<const OFFSET: usize, const N: usize, const W: usize>(window: &[u8; W]) -> [u8; N] {
    const { assert!(OFFSET + N <= W, "the field lies in the window") };
    let mut bytes = [0; N];
    let mut at = 0;
    while at < N {
        bytes[at] = window[OFFSET + at];
        at += 1;
    }
    bytes
}

/// Writes `N` bytes of a window, at an offset that the compiler checks.
#[expect(clippy::indexing_slicing, reason = "the assertion within is checked at compile time")]
#[inline(always)]
pub(crate) fn set_field<const OFFSET: usize, const N: usize, const W: usize>(
    window: &mut [u8; W],
    bytes: [u8; N],
) {
    const { assert!(OFFSET + N <= W, "the field lies in the window") };
    let mut at = 0;
    while at < N {
        window[OFFSET + at] = bytes[at];
        at += 1;
    }
}

/// A frame in ordinary memory.
#[cfg(not(target_arch = "bpf"))]
#[derive(Debug)]
pub struct SliceFrame<'a> {
    bytes: &'a mut [u8],
    start: usize,
    interface: u32,
}

#[cfg(not(target_arch = "bpf"))]
impl<'a> SliceFrame<'a> {
    /// A frame that begins `headroom` bytes into `bytes`, come by the interface with index `interface`.
    pub fn new(bytes: &'a mut [u8], headroom: usize, interface: u32) -> Self {
        SliceFrame { start: headroom.min(bytes.len()), bytes, interface }
    }

    /// The frame as it is now.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Frame for SliceFrame<'_> {
    fn length(&self) -> u32 {
        u32::try_from(self.as_bytes().len()).unwrap_or(u32::MAX)
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn window<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.as_bytes().get(offset..)?.first_chunk()
    }

    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.bytes.get_mut(self.start..)?.get_mut(offset..)?.first_chunk_mut()
    }

    fn verifies(&self) -> bool {
        crate::datagram::verifies(self)
    }

    fn move_start(&mut self, delta: i32) -> bool {
        let moved = self.start as i64 + i64::from(delta);
        match usize::try_from(moved) {
            Ok(start) if start <= self.bytes.len() => {
                self.start = start;
                true
            }
            _ => false,
        }
    }
}
