//! The compiler and linker for the XDP program.
//!
//! The program needs `core` built for `bpfel-unknown-none`, which no distribution ships: so a compiler that accepts
//! `-Z build-std`, the source of its `core`, and bpf-linker built against the LLVM major version of that compiler
//! (it reads the compiler's bitcode, which older LLVMs do not understand).

use std::path::{Path, PathBuf};

use crate::setup::{self, Package};
use crate::tool::{self, Tool};
use crate::workspace::{Workspace, cargo};

/// The bpf-linker release whose output was checked against the verifier.
const LINKER_VERSION: &str = "0.13.0";

/// The oldest compiler that builds relay-common and aya-ebpf, as (major, minor): the workspace's `rust-version`.
const OLDEST_COMPILER: (u32, u32) = (1, 95);

/// Debian's package of the compiler for its browsers, which is kept recent; Ubuntu has none.
pub const PACKAGED_COMPILER: &str = "rustc-web";

/// All that compiles and links the XDP program.
#[derive(Debug)]
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// bpf-linker.
    pub linker: PathBuf,
}

/// A compiler that can build `core` for `bpfel-unknown-none`.
#[derive(Debug)]
pub struct Compiler {
    /// rustc itself, not a proxy that chooses one.
    pub rustc: PathBuf,
    /// The cargo to drive it with.
    pub cargo: PathBuf,
    /// Whether it is a stable release that must be told to accept unstable options.
    pub is_stable: bool,
    /// The major version of its LLVM.
    pub llvm_major: u32,
}

/// The first compiler whose linker is here as well.
pub fn find(workspace: &Workspace) -> Option<Toolchain> {
    compilers().find_map(|compiler| {
        let linker = find_linker(workspace, compiler.llvm_major)?;
        Some(Toolchain { compiler, linker })
    })
}

/// What is missing: packages, and the linker with the command that installs it once they are here.
pub fn missing(workspace: &Workspace) -> (Vec<Package>, Tool) {
    let compiler = promising_compiler();
    (missing_packages(compiler.as_ref()), install_linker_command(workspace, compiler.as_ref()))
}

/// A compiler whose linker can be built: the LLVM it needs is here or in the package lists.
fn promising_compiler() -> Option<Compiler> {
    compilers().find(|compiler| {
        let package = llvm_package(Some(compiler.llvm_major));
        let headers = format!("/usr/lib/llvm-{}/include/llvm-c/Core.h", compiler.llvm_major);
        Path::new(&headers).is_file() || Tool::new("apt-cache").args(["show", &package]).output().is_ok()
    })
}

/// rustup's nightly if it has the library source, then Debian's.
fn compilers() -> impl Iterator<Item = Compiler> {
    [rustup_nightly, debian_compiler].into_iter().filter_map(|compiler| compiler())
}

fn rustup_nightly() -> Option<Compiler> {
    let which = |program: &str| {
        let path = Tool::new("rustup")
            .env("RUSTUP_AUTO_INSTALL", "0")
            .words("which --toolchain nightly")
            .arg(program)
            .output()
            .ok()?;
        Some(PathBuf::from(path.trim()))
    };
    inspect(which("rustc")?, which("cargo")?, false)
}

fn debian_compiler() -> Option<Compiler> {
    inspect(PathBuf::from("/usr/bin/rustc"), cargo(), true)
}

/// The compiler at `rustc`, if it is recent enough and the source of its library lies beside it.
fn inspect(rustc: PathBuf, cargo: PathBuf, is_stable: bool) -> Option<Compiler> {
    let version = Tool::new(&rustc).arg("-vV").without_env("RUSTUP_TOOLCHAIN").output().ok()?;
    let sysroot = Tool::new(&rustc).words("--print sysroot").output().ok()?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !library.is_file() || release(&version)? < OLDEST_COMPILER {
        return None;
    }
    Some(Compiler { rustc, cargo, is_stable, llvm_major: llvm_major(&version)? })
}

/// (major, minor) of the compiler that printed `version`.
fn release(version: &str) -> Option<(u32, u32)> {
    let release = version.lines().find_map(|line| line.strip_prefix("release: "))?;
    let mut parts = release.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn llvm_major(version: &str) -> Option<u32> {
    version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

/// A bpf-linker of the right release for LLVM `llvm_major`: on the path, where cargo installs, or where we install.
fn find_linker(workspace: &Workspace, llvm_major: u32) -> Option<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    [
        tool::find("bpf-linker"),
        cargo_home.map(|home| home.join("bin/bpf-linker")),
        Some(own_linker(workspace)),
    ]
    .into_iter()
    .flatten()
    .find(|linker| is_right_linker(linker, llvm_major))
}

fn own_linker(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("bin/bpf-linker")
}

fn is_right_linker(linker: &Path, llvm_major: u32) -> bool {
    let version = Tool::new(linker).arg("--version").output();
    version.is_ok_and(|version| version.trim() == format!("bpf-linker {LINKER_VERSION}"))
        && (names_llvm_library(linker, llvm_major) || was_built_for(linker, llvm_major))
}

/// Whether the program is linked with the shared library of that LLVM.
fn names_llvm_library(linker: &Path, llvm_major: u32) -> bool {
    let Ok(program) = std::fs::read(linker) else { return false };
    [format!("libLLVM.so.{llvm_major}"), format!("libLLVM-{llvm_major}.so")]
        .iter()
        .any(|library| program.windows(library.len()).any(|bytes| bytes == library.as_bytes()))
}

/// Whether cargo's own record, beside the folder it installed to, says so (LLVM may be linked statically).
fn was_built_for(linker: &Path, llvm_major: u32) -> bool {
    let record = linker.parent().and_then(Path::parent).map(|root| root.join(".crates2.json"));
    let Some(record) = record.and_then(|record| std::fs::read(record).ok()) else { return false };
    let Ok(record) = serde_json::from_slice::<serde_json::Value>(&record) else { return false };
    let Some(installs) = record.get("installs").and_then(|installs| installs.as_object()) else {
        return false;
    };
    let feature = serde_json::Value::String(format!("llvm-{llvm_major}"));
    installs.iter().any(|(package, install)| {
        package.starts_with("bpf-linker ")
            && install
                .get("features")
                .and_then(|features| features.as_array())
                .is_some_and(|features| features.contains(&feature))
    })
}

/// The packages still to be installed before `compiler` (`None`: Debian's) can be used and its linker built.
fn missing_packages(compiler: Option<&Compiler>) -> Vec<Package> {
    let libraries = [
        Package::new(llvm_package(llvm_major_of(compiler)), "to build bpf-linker for the compiler's LLVM"),
        Package::new("libzstd-dev", "to link bpf-linker"),
        Package::new("zlib1g-dev", "to link bpf-linker"),
    ];
    let mut packages: Vec<_> =
        libraries.into_iter().filter(|package| !setup::is_installed(&package.name)).collect();
    if compiler.is_none() {
        packages.push(Package::new(PACKAGED_COMPILER, "a compiler that can build for bpfel-unknown-none"));
        packages.push(Package::new("rust-web-src", "the source of that compiler's core library"));
    }
    packages
}

fn llvm_package(major: Option<u32>) -> String {
    format!("llvm-{}-dev", major_or_n(major))
}

fn llvm_major_of(compiler: Option<&Compiler>) -> Option<u32> {
    compiler.map(|compiler| compiler.llvm_major).or_else(packaged_llvm_major)
}

/// N where the major version is known only once the compiler is installed.
fn major_or_n(major: Option<u32>) -> String {
    major.map_or_else(|| "N".to_owned(), |major| major.to_string())
}

/// The LLVM major version of the compiler that Debian's package lists offer.
fn packaged_llvm_major() -> Option<u32> {
    let dependencies =
        Tool::new("apt-cache").words("depends --recurse --important").arg(PACKAGED_COMPILER).output().ok()?;
    dependencies.lines().find_map(|line| line.trim().strip_prefix("libllvm")?.parse().ok())
}

fn install_linker_command(workspace: &Workspace, compiler: Option<&Compiler>) -> Tool {
    let major = major_or_n(llvm_major_of(compiler));
    Tool::new("cargo")
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{major}"))
        .without_env("CARGO_TARGET_DIR") // the build's leavings go to a temporary folder
        .words(&format!(
            "install bpf-linker --version ={LINKER_VERSION} --locked --force --no-default-features"
        ))
        .args(["--features", &format!("llvm-{major}"), "--root"])
        .arg(workspace.tools())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                          host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn the_compiler_tells_its_release_and_llvm() {
        assert_eq!(release(DEBIAN), Some((1, 96)));
        assert_eq!(llvm_major(DEBIAN), Some(22));
        assert_eq!(release("release: 1.97.0-nightly"), Some((1, 97)));
    }

    #[test]
    fn a_linker_is_right_for_the_llvm_cargo_recorded() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("bin")).unwrap();
        let linker = root.path().join("bin/bpf-linker");
        let record = r#"{"installs":{"bpf-linker 0.13.0 (registry)":{"features":["llvm-22"]}}}"#;
        std::fs::write(root.path().join(".crates2.json"), record).unwrap();
        assert!(was_built_for(&linker, 22));
        assert!(!was_built_for(&linker, 21));
    }

    #[test]
    fn a_linker_is_right_for_the_llvm_it_is_linked_with() {
        let root = tempfile::tempdir().unwrap();
        let linker = root.path().join("bpf-linker");
        std::fs::write(&linker, b"\x7fELF...libLLVM.so.22.1\0").unwrap();
        assert!(names_llvm_library(&linker, 22));
        assert!(!names_llvm_library(&linker, 2221));
        assert!(!names_llvm_library(&linker, 21));
    }
}
