//! The frame that the driver handed over.

use core::marker::PhantomData;
use core::ptr::{NonNull, read_volatile};

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use relay_common::datagram;
use relay_common::frame::Frame;

use crate::kernel;

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
        Packet { context, length: length(context), bytes: PhantomData }
    }

    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<NonNull<[u8; N]>> {
        // The verifier makes pointers of these two words, and lets nothing be computed with the end. A volatile read is
        // done here, once for each window; the compiler could keep an ordinary one as a number and widen it later.
        // SAFETY: the context is the one this program was called with, and both fields are there and readable.
        let (data, end) = unsafe {
            let context = self.context.ctx;
            (
                read_volatile(&raw const (*context).data) as usize,
                read_volatile(&raw const (*context).data_end) as usize,
            )
        };
        let start = data + offset;
        if start + N > end {
            return None;
        }
        // SAFETY: no packet begins at address zero.
        Some(unsafe { NonNull::new_unchecked(start as *mut [u8; N]) })
    }
}

/// The largest Ethernet frame of the usual MTU: 1500 bytes, the Ethernet header and one VLAN tag.
const LARGEST_USUAL_FRAME: usize = 1518;

/// The frame's length in bytes, all buffers together.
///
/// Drivers spread a frame over several buffers when it does not fit one, and fill the first: no driver has smaller ones than
/// the usual Ethernet frame takes. So what is shorter is all there is, and the kernel is asked about longer ones only: for a
/// program on every packet's way the call is dear (a tenth of all it does, where the kernel makes returns safe).
#[inline(always)]
fn length(context: &XdpContext) -> u32 {
    let linear = context.data_end() - context.data();
    if linear <= LARGEST_USUAL_FRAME {
        return linear as u32;
    }
    // SAFETY: the context is the one this program was called with.
    unsafe { bpf_xdp_get_buff_len(context.ctx) as u32 }
}

/// A function of its own: one packet in 65536 needs it, and the others are not to carry its registers.
#[cold]
#[inline(never)]
fn verifies(context: *mut xdp_md) -> bool {
    kernel::frames_are_bare() && datagram::verifies(&Packet::new(&XdpContext::new(context)))
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
        self.at::<N>(offset).map(|bytes| unsafe { bytes.as_ref() })
    }

    #[inline(always)]
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        // SAFETY: as for `window`, and `self` is borrowed exclusively.
        self.at::<N>(offset).map(|mut bytes| unsafe { bytes.as_mut() })
    }

    #[inline(always)]
    fn verifies(&self) -> bool {
        verifies(self.context.ctx)
    }

    #[inline(always)]
    fn move_start(&mut self, delta: i32) -> bool {
        // SAFETY: as for `new`. The verifier forgets every pointer into the packet here; windows are taken afresh from
        // the context's new bounds.
        unsafe { bpf_xdp_adjust_head(self.context.ctx, delta) == 0 }
    }
}
