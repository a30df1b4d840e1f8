//! A user without any privilege.

use std::path::Path;

use xtask::tool::Tool;

/// `program`, run as nobody: from a copy in `folder`, which becomes nobody's with all in it. Root's own folders are closed
/// to others.
pub fn as_nobody(program: &Path, folder: &Path) -> Tool {
    as_nobody_with("-all", program, folder)
}

/// As [`as_nobody`], with these capabilities, as systemd's AmbientCapabilities= gives them: `-all,+bpf`.
pub fn as_nobody_with(capabilities: &str, program: &Path, folder: &Path) -> Tool {
    let copy = folder.join(program.file_name().unwrap());
    std::fs::copy(program, &copy).unwrap();
    Tool::new("chown").args(["-R", "nobody:nogroup"]).arg(folder).output().unwrap();
    Tool::new("setpriv")
        .words("--reuid nobody --regid nogroup --clear-groups")
        .arg(format!("--inh-caps={capabilities}"))
        .arg(format!("--ambient-caps={capabilities}"))
        .arg(copy)
}
