//! See `relay_fuzz::frame`.
#![no_main]
#![allow(missing_docs, reason = "the macro makes an undocumented function")]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    relay_fuzz::frame(bytes);
});
