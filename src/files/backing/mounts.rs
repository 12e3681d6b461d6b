//! What is mounted where, as the kernel tells it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::BackingError;

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
    Ok(find(&read(table)?, folder).is_some())
}

fn read(table: &str) -> Result<Vec<u8>, BackingError> {
    std::fs::read(table).map_err(|source| BackingError::io("read the table of mounts", source))
}

/// The device (`major:minor`) of the last mount at `folder`, which covers the ones before it.
fn find(table: &[u8], folder: &Path) -> Option<String> {
    let wanted = escaped(folder.as_os_str());
    let mut lines = table.split(|&byte| byte == b'\n').rev();
    lines.find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let device = fields.nth(2)?;
        let at = fields.nth(1)?;
        (at == wanted).then(|| String::from_utf8_lossy(device).into_owned())
    })
}

/// A path as the table has it.
fn escaped(path: &OsStr) -> Vec<u8> {
    let mut text = Vec::with_capacity(path.len());
    for &byte in path.as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => {
                text.extend(format!("\\{byte:03o}").into_bytes());
            }
            plain => text.push(plain),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_whole_path_also_with_blanks() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 22 7:3 / /a\\040b/c rw,nosuid - ext4 /dev/loop3 rw\n\
            31 30 7:4 / /a\\040b/c rw,nosuid - ext4 /dev/loop4 rw\n";
        let at = |path| find(table, Path::new(path));
        assert_eq!(at("/a b/c").as_deref(), Some("7:4"));
        assert_eq!(at("/").as_deref(), Some("254:0"));
        for other in ["/a b", "/a b/c/d", "/a"] {
            assert_eq!(at(other), None, "{other}");
        }
    }
}
