//! Embeds the BPF object named by `RELAY_BPF_OBJECT`, if there is one.
//!
//! `cargo xtask build` builds the object and sets the variable. Without it the crate builds all the same, and the daemon
//! has the userspace datapath only.

use std::env;
use std::fs;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=RELAY_BPF_OBJECT");
    println!("cargo::rustc-check-cfg=cfg(bpf_object)");
    let Some(object) = env::var_os("RELAY_BPF_OBJECT").filter(|path| !path.is_empty()).map(PathBuf::from)
    else {
        return;
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("relay.bpf.o");
    if let Err(error) = fs::copy(&object, &embedded) {
        println!(
            "cargo::error=RELAY_BPF_OBJECT={}: {error}; build it with `cargo xtask build`",
            object.display()
        );
        return;
    }
    println!("cargo::rustc-cfg=bpf_object");
}
