//! Builds the XDP program, then the daemon with the program inside.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::setup::{self, Consent, Purpose};
use crate::terminal;
use crate::tool::Tool;
use crate::toolchain::{self, Toolchain};
use crate::workspace::{Workspace, cargo};

/// The target the XDP program is compiled for.
const BPF_TARGET: &str = "bpfel-unknown-none";

/// What a build leaves behind.
#[derive(Clone, Debug)]
pub struct Built {
    /// The XDP program.
    pub bpf_object: PathBuf,
    /// The programs that test it.
    pub bpf_probe: PathBuf,
    /// The programs of the benchmark.
    pub bpf_bench: PathBuf,
    /// The daemon, agent and command line, with the program inside.
    pub relay_binary: PathBuf,
}

/// Gets there what is missing for `purpose`, then builds the XDP program and the daemon.
///
/// # Errors
/// Something is missing and may not or cannot be installed, or a build failed.
pub fn build(workspace: &Workspace, purpose: Purpose, consent: Consent) -> anyhow::Result<Built> {
    build_with(workspace, &setup::provide(workspace, purpose, consent)?)
}

/// Builds with what is here: without the toolchain, a relay that has the userspace datapath only.
///
/// # Errors
/// The build failed.
pub fn build_with_what_is_here(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    match toolchain::find(workspace) {
        Some(toolchain) => Ok(build_with(workspace, &toolchain)?.relay_binary),
        None => build_relay(workspace, None),
    }
}

fn build_with(workspace: &Workspace, toolchain: &Toolchain) -> anyhow::Result<Built> {
    let [bpf_object, bpf_probe, bpf_bench] = build_bpf_objects(workspace, toolchain)?;
    let relay_binary = build_relay(workspace, Some(&bpf_object))?;
    Ok(Built { bpf_object, bpf_probe, bpf_bench, relay_binary })
}

/// Builds the daemon, with the XDP program inside if there is one.
fn build_relay(workspace: &Workspace, bpf_object: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    terminal::progress("building the relay");
    let mut build = Tool::new(cargo())
        .words("build --release --package relay-userspace --bin atlas-relay")
        .in_directory(workspace.root());
    if let Some(bpf_object) = bpf_object {
        build = build.env("RELAY_BPF_OBJECT", bpf_object);
    }
    build.stream()?;

    // Upstream's command lines call the same program `atlas`.
    let binary = workspace.relay_binary();
    let other_name = binary.with_file_name("atlas");
    if std::fs::read_link(&other_name).is_err() {
        std::os::unix::fs::symlink("atlas-relay", &other_name)
            .with_context(|| format!("cannot create {}", other_name.display()))?;
    }
    Ok(binary)
}

/// The XDP program, the probe and the benchmark's programs.
fn build_bpf_objects(workspace: &Workspace, toolchain: &Toolchain) -> anyhow::Result<[PathBuf; 3]> {
    let compiler = &toolchain.compiler;
    terminal::progress(format!(
        "building the XDP program with {} (LLVM {})",
        compiler.rustc.display(),
        compiler.llvm_major
    ));
    let target = workspace.target().join("bpf");
    let flags = [
        r#"--cfg=bpf_target_arch="x86_64""#.to_owned(),
        "-Cdebuginfo=2".to_owned(),   // BTF is made from it
        "-Ctarget-cpu=v3".to_owned(), // 32-bit registers and atomics: kernel 5.12 and later
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // A field of a frame is one load or store, as x86-64 allows, not one for each byte: a seventh less program.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
    ];
    let mut build = Tool::new(&compiler.cargo)
        .words("build --release -Z build-std=core --target")
        .arg(BPF_TARGET)
        .arg("--target-dir")
        .arg(&target)
        .in_directory(workspace.root().join("relay-ebpf"))
        .env("RUSTC", &compiler.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if std::env::var_os("RELAY_BPF_LOG").is_some() {
        build = build.words("--features log");
    }
    if compiler.is_stable {
        // For this child alone: elsewhere it would flip the feature probes of build scripts.
        build = build.env("RUSTC_BOOTSTRAP", "1");
    }
    for inherited in [
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
        "RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "LD_LIBRARY_PATH", // names the libraries of the compiler that built us
    ] {
        build = build.without_env(inherited);
    }
    build.stream()?;

    let linked = target.join(BPF_TARGET).join("release");
    let objects = [workspace.bpf_object(), workspace.bpf_probe(), workspace.bpf_bench()];
    for (object, name) in objects.iter().zip(["relay-ebpf", "probe", "bench"]) {
        let linked = linked.join(name);
        let bytes = std::fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
        // Left alone when it is the same, so that the daemon is not built again.
        if std::fs::read(object).ok().as_ref() != Some(&bytes) {
            std::fs::write(object, bytes).with_context(|| format!("cannot write {}", object.display()))?;
        }
    }
    Ok(objects)
}
