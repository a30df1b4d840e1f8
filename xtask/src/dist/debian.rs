//! The Debian package, made by `dpkg-deb` from a staged tree: the tarball needs such a tree as well, and every Debian has
//! that program.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::tree::Tree;
use super::{DEPLOYMENT, DOCUMENTS, EPOCH, LICENSES, Source, UNITS, VERSION};
use crate::tool::Tool;

/// Makes the package in `directory`.
pub(super) fn make(source: &Source, directory: &Path) -> anyhow::Result<PathBuf> {
    let tree = Tree::new(directory.join("deb"))?;
    stage(source, &tree)?;
    describe(source, &tree)?;
    let deb = directory.join(format!("atlas-relay_{VERSION}_amd64.deb"));
    Tool::new("dpkg-deb")
        .words("--root-owner-group -Zxz -z6 --build")
        .arg(tree.root())
        .arg(&deb)
        .env(EPOCH, &source.epoch)
        .env("DPKG_DEB_THREADS_MAX", "1")
        .output()?;
    Ok(deb)
}

/// The files that are installed.
fn stage(source: &Source, tree: &Tree) -> anyhow::Result<()> {
    tree.copy(&source.program, "usr/bin/atlas-relay", 0o755)?;
    tree.link("usr/bin/atlas", "atlas-relay")?;
    for unit in UNITS {
        // What an administrator installs by hand is in /usr/local, what a package installs is not.
        let text = source.text(unit)?.replace("/usr/local/bin/", "/usr/bin/");
        tree.write(&format!("usr/lib/systemd/system/{}", name_of(unit)), text.as_bytes(), 0o644)?;
    }
    for kind in ["sysusers", "tmpfiles"] {
        let from = source.path(&format!("deploy/debian/{kind}.conf"));
        tree.copy(&from, &format!("usr/lib/{kind}.d/atlas-relay.conf"), 0o644)?;
    }

    let doc = |path: &str| format!("usr/share/doc/atlas-relay/{path}");
    tree.copy(&source.path("deploy/debian/copyright"), &doc("copyright"), 0o644)?;
    // By the names that they have in the checkout, so that links from one to the other work.
    for path in DOCUMENTS.iter().chain(DEPLOYMENT).chain(LICENSES) {
        tree.copy(&source.path(path), &doc(path), 0o644)?;
    }

    for file in Tree::existing(source.manual.clone()).files()? {
        let name = file.file_name().and_then(|name| name.to_str()).context("a page has a strange name")?;
        if name.ends_with(".1") {
            let page = Tool::new("gzip").words("-9 --no-name --stdout").arg(&file);
            let packed = page.command().output().with_context(|| format!("cannot start `{page}`"))?;
            if !packed.status.success() {
                bail!("`{page}` failed ({})", packed.status);
            }
            tree.write(&format!("usr/share/man/man1/{name}.gz"), &packed.stdout, 0o644)?;
        } else {
            tree.copy(&file, &completion_path(name)?, 0o644)?;
        }
    }
    Ok(())
}

/// Where a shell looks for the completion that was written as `name`.
fn completion_path(name: &str) -> anyhow::Result<String> {
    Ok(if let Some(command) = name.strip_suffix(".bash") {
        format!("usr/share/bash-completion/completions/{command}")
    } else if name.ends_with(".fish") {
        format!("usr/share/fish/vendor_completions.d/{name}")
    } else if name.starts_with('_') {
        format!("usr/share/zsh/vendor-completions/{name}")
    } else {
        bail!("{name}: neither a man page nor a completion of bash, zsh or fish")
    })
}

/// What dpkg reads: the description, the scripts and the checksums.
fn describe(source: &Source, tree: &Tree) -> anyhow::Result<()> {
    let files = tree.files()?;
    let mut bytes = 0;
    let mut sums = String::new();
    for file in files.iter().filter(|file| !file.is_symlink()) {
        bytes += file.metadata().with_context(|| format!("cannot read {}", file.display()))?.len();
        let relative = file.strip_prefix(tree.root())?;
        sums += &Tool::new("md5sum").arg(relative).in_directory(tree.root()).output()?;
    }
    for script in ["postinst", "prerm", "postrm"] {
        tree.copy(&source.path(&format!("deploy/debian/{script}")), &format!("DEBIAN/{script}"), 0o755)?;
    }
    tree.write("DEBIAN/md5sums", sums.as_bytes(), 0o644)?;
    let control = control(&libc_version(&source.program)?, bytes.div_ceil(1024));
    tree.write("DEBIAN/control", control.as_bytes(), 0o644)
}

fn control(libc: &str, installed_kib: u64) -> String {
    format!(
        "Package: atlas-relay\n\
         Version: {VERSION}\n\
         Architecture: amd64\n\
         Maintainer: The authors of atlas-relay <atlas-relay@localhost>\n\
         Installed-Size: {installed_kib}\n\
         Depends: libc6 (>= {libc}), libgcc-s1, systemd | systemd-standalone-sysusers | systemd-sysusers, \
         systemd | systemd-standalone-tmpfiles | systemd-tmpfiles\n\
         Section: net\n\
         Priority: optional\n\
         Description: relay for agents behind NAT, in the kernel where it can\n \
         Relay daemon, agent and their commands in one program, as atlas-relay and as atlas.\n \
         The relay forwards datagrams that it cannot read, by an XDP program where the\n \
         kernel and the interface allow it. Nothing is started by the installation.\n"
    )
}

/// The oldest C library that has every symbol the program needs.
fn libc_version(program: &Path) -> anyhow::Result<String> {
    const PREFIX: &[u8] = b"GLIBC_2.";
    let bytes = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let minor = |at: &[u8]| -> Option<u32> {
        let digits = at.strip_prefix(PREFIX)?;
        std::str::from_utf8(digits).ok()?.split('.').next()?.parse().ok()
    };
    // They are strings that end with a zero.
    let newest = bytes.split(|byte| *byte == 0).filter_map(minor).max();
    let newest = newest.with_context(|| format!("{} names no version of glibc", program.display()))?;
    Ok(format!("2.{newest}"))
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_the_c_library_that_a_program_names_is_what_it_needs() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        std::fs::write(&program, b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_PRIVATE\0GLIBC_2.9\0\0\0\0").unwrap();
        assert_eq!(libc_version(&program).unwrap(), "2.34");
        std::fs::write(&program, b"nothing of that kind").unwrap();
        assert!(libc_version(&program).is_err());
    }
}
