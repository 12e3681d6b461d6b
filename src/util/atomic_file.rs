//! Files that are either the old ones or the new ones, never something between.
//!
//! Used for what lightd writes about itself: configuration, keys, generated files. The content goes to
//! a temporary file in the same folder, is flushed to the disk and then renamed over the old file; a
//! crash at any moment leaves one of the two whole. On failure the temporary file is removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces or makes `path` with the given content and permission bits. An existing file's owner is
/// kept; a symbolic link is replaced, not followed.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = Temporary::create(path, content, mode)?;
    if let Ok(old) = fs::symlink_metadata(path) {
        // Only root may give files away; anyone else already owns what they may replace.
        std::os::unix::fs::chown(&temporary.path, Some(old.uid()), Some(old.gid())).ok();
    }
    fs::rename(&temporary.path, path)?;
    temporary.renamed();
    sync_folder(path)
}

/// Makes `path`, whole and with its permission bits from the first moment; fails with
/// [`io::ErrorKind::AlreadyExists`] when something is there already.
pub(crate) fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = Temporary::create(path, content, mode)?;
    // A hard link, unlike a rename, refuses to replace what is there.
    fs::hard_link(&temporary.path, path)?;
    drop(temporary);
    sync_folder(path)
}

struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn create(target: &Path, content: &[u8], mode: u32) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let unique: u64 = rand::random();
        let path = folder_of(target).join(format!(".{}.{unique:016x}.tmp", name.to_string_lossy()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let temporary = Self { path };
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        Ok(temporary)
    }

    fn renamed(self) {
        std::mem::forget(self);
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing more can be done about a file that cannot be removed either.
        fs::remove_file(&self.path).ok();
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn create_refuses_what_exists_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create(&path, b"one", 0o600).unwrap();
        let again = create(&path, b"two", 0o600).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_and_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"x", 0o600).is_err());
        assert_eq!(names(folder.path()), ["taken"]);
    }
}
