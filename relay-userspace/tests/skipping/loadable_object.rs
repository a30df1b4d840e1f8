//! The XDP program, for tests that load it.

use relay_userspace::relay::datapath::OBJECT;

/// The XDP program, or why it cannot be loaded here.
pub fn loadable_object() -> Result<&'static [u8], &'static str> {
    // SAFETY: the call takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    match OBJECT {
        None => Err("built without the BPF program: run `cargo xtask test`"),
        Some(_) if !root => Err("loading the program needs root"),
        Some(object) => Ok(object),
    }
}
