//! Removes what labs of killed processes left behind.

use std::fs::File;
use std::path::Path;

use super::mount::unmount_below;
use super::{Namespace, PREFIX};
use crate::terminal;

/// Removes the namespaces, their processes and the folders of every lab whose lock nobody holds.
pub(super) fn remove() -> anyhow::Result<()> {
    let temporary = std::env::temp_dir();
    for name in Namespace::names() {
        let Some(lab) = lab_of(&name) else { continue };
        if is_alive(&temporary.join(lab)) {
            continue;
        }
        terminal::progress(format!("removing {name}, which a killed run left behind"));
        drop(Namespace::adopt(name));
    }
    for entry in std::fs::read_dir(&temporary)?.flatten() {
        let is_lab = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if is_lab && !is_alive(&entry.path()) {
            unmount_below(&entry.path())?;
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The lab that the namespace `name` belongs to: all but the role at its end.
fn lab_of(name: &str) -> Option<&str> {
    name.starts_with(PREFIX).then(|| name.rsplit_once('-')).flatten().map(|(lab, _role)| lab)
}

fn is_alive(directory: &Path) -> bool {
    File::open(directory.join("lock")).is_ok_and(|lock| lock.try_lock().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_names_its_lab() {
        assert_eq!(lab_of("atlas-lab-4711-0-relay"), Some("atlas-lab-4711-0"));
        assert_eq!(lab_of("somebody-elses"), None);
    }

    #[test]
    fn a_lab_is_alive_while_its_lock_is_held() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_alive(directory.path()));
        let lock = File::create(directory.path().join("lock")).unwrap();
        lock.try_lock().unwrap();
        assert!(is_alive(directory.path()));
        drop(lock);
        assert!(!is_alive(directory.path()));
    }
}
