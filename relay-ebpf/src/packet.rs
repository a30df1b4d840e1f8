//! The frame that the driver handed over.

use core::marker::PhantomData;

use aya_ebpf::helpers::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use relay_common::frame::Frame;

/// The frame of an [`XdpContext`].
pub struct Packet<'a> {
    context: &'a XdpContext,
    length: u32,
    // Windows borrow the packet, so two that could overlap never exist at once.
    bytes: PhantomData<&'a mut [u8]>,
}

impl<'a> Packet<'a> {
    /// The only view of the context's frame while it lives.
    #[inline(always)]
    pub fn new(context: &'a XdpContext) -> Self {
        // SAFETY: the context is the one this program was called with. The linear part alone would tell too little of a
        // frame in several buffers.
        let length = unsafe { bpf_xdp_get_buff_len(context.ctx) } as u32;
        Packet { context, length, bytes: PhantomData }
    }

    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let start = self.context.data() + offset;
        if start + N > self.context.data_end() { None } else { Some(start as *mut [u8; N]) }
    }
}

impl Frame for Packet<'_> {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.length
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn window<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        // SAFETY: `at` has compared the end with `data_end`; bytes have no alignment and any value is valid; nothing
        // else writes the packet while `self` is borrowed.
        self.at::<N>(offset).map(|bytes| unsafe { &*bytes })
    }

    #[inline(always)]
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        // SAFETY: as for `window`, and `self` is borrowed exclusively.
        self.at::<N>(offset).map(|bytes| unsafe { &mut *bytes })
    }
}
