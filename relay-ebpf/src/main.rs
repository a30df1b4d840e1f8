//! The XDP program: a thin shell around [`relay_common::forward`].
//!
//! It wraps the frame and the maps, asks for the decision, counts it and returns the matching verdict. Everything there
//! is to decide is in `relay-common`; everything unsafe is in `packet` and `kernel`.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the attribute macro of the entry makes an undocumented function")]

mod kernel;
mod maps;
mod packet;
mod program;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use relay_common::{Action, Departure, Reason, forward};

use crate::kernel::KernelTables;
use crate::packet::Packet;

/// The entry. `frags`: it accepts frames in several buffers from the first release on, since the flags of an attached
/// program can never change.
#[xdp(frags)]
pub fn relay(context: XdpContext) -> u32 {
    let mut packet = Packet::new(&context);
    let decision = forward(&mut packet, &KernelTables, kernel::now);
    let reason = match decision {
        Ok(_) => Reason::Forwarded,
        Err(reason) => reason,
    };
    kernel::count(reason, &packet);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(&context, "reason {}", reason.index());
    match decision {
        Ok(departure) => depart(departure),
        Err(reason) => verdict(reason.action()),
    }
}

#[inline(always)]
fn depart(departure: Departure) -> u32 {
    if departure.redirect { kernel::redirect(departure.hop) } else { xdp_action::XDP_TX }
}

#[inline(always)]
fn verdict(action: Action) -> u32 {
    match action {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop => xdp_action::XDP_DROP,
        // A refusal never asks to forward.
        Action::Forward | Action::Abort => xdp_action::XDP_ABORTED,
    }
}
