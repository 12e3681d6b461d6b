//! Whether a file has changed, by what the file system says of it: nothing is read.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What changes when a file is replaced or written to. A file that is not there has one, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileSignature(Option<(u64, u64, i64, i64)>);

impl FileSignature {
    /// Of the file that a link leads to. Blocking, for a moment.
    pub(crate) fn of(path: &Path) -> Self {
        let read = std::fs::metadata(path).ok();
        Self(read.map(|file| (file.ino(), file.size(), file.mtime(), file.mtime_nsec())))
    }
}
