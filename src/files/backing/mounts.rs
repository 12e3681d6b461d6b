//! What is mounted where, as the kernel tells it at that moment.
//!
//! Called by whoever mounts or unmounts an image. Nothing is remembered: a mount may be undone by others at
//! any time. A table that cannot be read is an error, and never taken for an empty one.

use std::path::Path;

use super::BackingError;
use crate::util::mountinfo::unescaped;

/// Our own view, and that of the system's first process, which is the container engine's.
const OWN: &str = "/proc/self/mountinfo";
const SYSTEM: &str = "/proc/1/mountinfo";

/// Whether something is mounted at this very folder, for us.
pub(super) fn is_mounted(folder: &Path) -> Result<bool, BackingError> {
    holds(OWN, folder)
}

/// Whether it is for the rest of the system. A service in a mount namespace of its own mounts for itself
/// alone: a container would be given the empty folder beneath.
pub(super) fn is_seen_by_the_system(folder: &Path) -> Result<bool, BackingError> {
    holds(SYSTEM, folder)
}

fn holds(table: &str, folder: &Path) -> Result<bool, BackingError> {
    let table = std::fs::read(table)
        .map_err(|source| BackingError::io("read the table of mounts", source))?;
    Ok(has_mount_at(&table, folder))
}

fn has_mount_at(table: &[u8], folder: &Path) -> bool {
    let mut lines = table.split(|&byte| byte == b'\n');
    lines.any(|line| {
        let at = line.split(|&byte| byte == b' ').nth(4);
        at.is_some_and(|at| unescaped(at) == folder)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_whole_path_also_with_blanks() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 22 7:3 / /a\\040b/c rw,nosuid - ext4 /dev/loop3 rw\n\
            31 30 7:4 / /a\\040b/c rw,nosuid - ext4 /dev/loop4 rw\n";
        let is_mounted = |path| has_mount_at(table, Path::new(path));
        for path in ["/a b/c", "/"] {
            assert!(is_mounted(path), "{path}");
        }
        for other in ["/a b", "/a b/c/d", "/a"] {
            assert!(!is_mounted(other), "{other}");
        }
    }
}
