//! A file that is being written and has no name yet.
//!
//! The kernel keeps it without a name where the file system can (`O_TMPFILE`), so that nobody else reaches
//! it and a crash leaves nothing; elsewhere it lies in a staging folder. It enters its place in one step;
//! dropped before, it is gone. Used by writes of one file (`content`).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::content::{STAGED, new_file};
use super::error::{During, FileError};
use super::resolve::proc_path;
use super::staging::{Staging, reserved_name};
use super::volume::{Place, rename_to_new};

#[derive(Debug)]
pub(super) struct Draft<'v> {
    root: BorrowedFd<'v>,
    pub(super) file: File,
    /// Where the file system knows no files without a name.
    staging: Option<Staging<'v>>,
}

/// What a draft finds where it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Only a free name will do.
    New,
    /// The name was free a moment ago; whatever has come since is replaced.
    Free,
    Replace,
}

impl<'v> Draft<'v> {
    pub(super) fn new(root: BorrowedFd<'v>) -> Result<Self, FileError> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::openat(root, ".", flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => Ok(Self { root, file: file.into(), staging: None }),
            // Not known to the file system, or not to the kernel, which then sees an open of a folder.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::staged(root),
            Err(errno) => Err(errno).during("make", &"a temporary file"),
        }
    }

    fn staged(root: BorrowedFd<'v>) -> Result<Self, FileError> {
        let staging = Staging::new(root)?;
        let file = new_file(&staging).during("make", &"a temporary file")?;
        Ok(Self { root, file, staging: Some(staging) })
    }

    /// Gives the file its name. After an error it has none.
    pub(super) fn enter(self, target: &Place<'_>, entry: Entry) -> Result<(), Errno> {
        if let Some(staging) = &self.staging {
            return match entry {
                Entry::New => rename_to_new(staging.dir(), STAGED, &target.dir, target.name),
                Entry::Free | Entry::Replace => {
                    rustix::fs::renameat(staging.dir(), STAGED, &target.dir, target.name)
                }
            };
        }
        match entry {
            Entry::New => self.link(&target.dir, target.name),
            Entry::Free => match self.link(&target.dir, target.name) {
                Err(Errno::EXIST) => self.replace(target),
                outcome => outcome,
            },
            Entry::Replace => self.replace(target),
        }
    }

    /// A link replaces nothing and a rename does, so the file gets a name of ours first.
    fn replace(&self, target: &Place<'_>) -> Result<(), Errno> {
        let name = reserved_name("draft");
        self.link(self.root, &name)?;
        let renamed = rustix::fs::renameat(self.root, &name, &target.dir, target.name);
        if renamed.is_err()
            && let Err(error) = rustix::fs::unlinkat(self.root, &name, AtFlags::empty())
        {
            tracing::warn!(name, %error, "left a temporary file in a volume");
        }
        renamed
    }

    fn link(&self, dir: impl AsFd, name: impl Arg) -> Result<(), Errno> {
        rustix::fs::linkat(CWD, proc_path(&self.file), dir, name, AtFlags::SYMLINK_FOLLOW)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    use super::*;
    use crate::files::resolve::open_folder;

    /// Both kinds of draft, each in a folder of its own with a place `file` to go to.
    fn each_kind(test: impl Fn(&Path, Draft<'_>, Place<'_>)) {
        for is_unnamed in [true, false] {
            let scratch = tempfile::tempdir().unwrap();
            let root = open_folder(CWD, scratch.path()).unwrap();
            let draft =
                if is_unnamed { Draft::new(root.as_fd()) } else { Draft::staged(root.as_fd()) };
            let mut draft = draft.unwrap();
            draft.file.write_all(b"new").unwrap();
            test(scratch.path(), draft, Place { dir: root.try_clone().unwrap(), name: "file" });
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_draft_enters_its_place_and_leaves_nothing_else() {
        for entry in [Entry::New, Entry::Free, Entry::Replace] {
            each_kind(|folder, draft, target| {
                let inode = draft.file.metadata().unwrap().ino();
                draft.enter(&target, entry).unwrap();
                assert_eq!(names(folder), ["file"], "{entry:?}");
                assert_eq!(fs::metadata(folder.join("file")).unwrap().ino(), inode);
            });
        }
    }

    #[test]
    fn only_a_draft_that_may_replaces_what_is_there() {
        let cases =
            [(Entry::New, Err(Errno::EXIST)), (Entry::Free, Ok(())), (Entry::Replace, Ok(()))];
        for (entry, expected) in cases {
            each_kind(|folder, draft, target| {
                fs::File::create(folder.join("file")).unwrap().write_all(b"old").unwrap();
                assert_eq!(draft.enter(&target, entry), expected, "{entry:?}");
                assert_eq!(names(folder), ["file"], "{entry:?}");
                let now = fs::read_to_string(folder.join("file")).unwrap();
                assert_eq!(now, if expected.is_ok() { "new" } else { "old" }, "{entry:?}");
            });
        }
    }

    #[test]
    fn a_draft_that_cannot_enter_is_gone() {
        each_kind(|folder, draft, target| {
            fs::create_dir(folder.join("file")).unwrap();
            assert_eq!(draft.enter(&target, Entry::Replace), Err(Errno::ISDIR));
            assert_eq!(names(folder), ["file"]);
        });
    }

    #[test]
    fn a_draft_that_is_dropped_is_gone() {
        each_kind(|folder, draft, _| {
            drop(draft);
            assert_eq!(names(folder), [""; 0]);
        });
    }
}
