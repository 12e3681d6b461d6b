//! What goes into an archive, and under which name.
//!
//! Called by `pack`, twice for each archive: to look, and to write. Everything is found by handles from the
//! volume's root, so that nothing outside is ever taken. What is gone or changed in between is passed over;
//! a path that was named and is not there is an error.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Stat as RawStat};
use rustix::io::Errno;

use super::ignore::Ignore;
use super::pack::PackRequest;
use crate::domain::path::RelPath;
use crate::files::error::{During, FileError};
use crate::files::progress::Progress;
use crate::files::resolve::{kind_of, open_folder, same_file, stat_name};
use crate::files::volume::Volume;
use crate::files::walk::{Lossy, Visit, Walk};

/// One thing to pack.
pub(super) enum Chosen<'a> {
    Folder,
    /// What is no folder, by its name in the folder that holds it.
    Leaf {
        dir: BorrowedFd<'a>,
        last: &'a CStr,
    },
}

pub(super) struct Selection<'a> {
    pub(super) volume: &'a Volume,
    pub(super) request: &'a PackRequest,
    pub(super) ignore: &'a Ignore,
    /// The archive that this one will replace: it is not packed either.
    pub(super) replaced: Option<RawStat>,
    pub(super) progress: &'a Progress,
}

/// Is told of everything that was chosen, with its name in the archive; folders before what is in them.
type Each<'e> = dyn FnMut(Chosen<'_>, &[u8], &RawStat) -> Result<(), FileError> + 'e;

impl Selection<'_> {
    pub(super) fn each(&self, each: &mut Each<'_>) -> Result<(), FileError> {
        let (volume, request) = (self.volume, self.request);
        if request.paths.is_empty() {
            return self.below(volume.open_dir(&request.base)?.as_fd(), b"", each);
        }
        for path in outermost(&request.paths) {
            let name =
                path.as_path().strip_prefix(request.base.as_path()).unwrap_or(path.as_path());
            let name = name.as_os_str().as_encoded_bytes();
            if name.is_empty() {
                self.below(volume.open_dir(path)?.as_fd(), b"", each)?;
                continue;
            }
            let place = volume.place(path)?;
            let stat = stat_name(&place.dir, place.name).during("pack", path)?;
            if kind_of(&stat) == FileType::Directory {
                let dir = open_folder(place.dir.as_fd(), place.name).during("pack", path)?;
                if !self.ignore.matches(name, true) {
                    each(Chosen::Folder, name, &stat)?;
                    self.below(dir.as_fd(), &[name, b"/"].concat(), each)?;
                }
            } else {
                let last = CString::new(place.name).map_err(|_| Errno::INVAL);
                let last = last.during("pack", path)?;
                self.leaf((place.dir.as_fd(), &last), name, &stat, each)?;
            }
        }
        Ok(())
    }

    /// What is in `dir`, under names that begin with `prefix`.
    fn below(
        &self,
        dir: BorrowedFd<'_>,
        prefix: &[u8],
        each: &mut Each<'_>,
    ) -> Result<(), FileError> {
        let mut walk = Walk::new(dir)?;
        while let Some(visit) = walk.next()? {
            self.progress.check()?;
            match visit {
                Visit::Enter { stat, .. } => {
                    let name = [prefix, walk.path()].concat();
                    if self.ignore.matches(&name, true) {
                        walk.skip()?;
                    } else {
                        each(Chosen::Folder, &name, &stat)?;
                    }
                }
                Visit::Leaf { name, stat } => {
                    let full = [prefix, &walk.path_of(&name)].concat();
                    self.leaf((walk.dir(), &name), &full, &stat, each)?;
                }
                Visit::Leave => {}
            }
        }
        Ok(())
    }

    fn leaf(
        &self,
        (dir, last): (BorrowedFd<'_>, &CStr),
        name: &[u8],
        stat: &RawStat,
        each: &mut Each<'_>,
    ) -> Result<(), FileError> {
        let is_replaced = self.replaced.as_ref().is_some_and(|old| same_file(old, stat));
        if is_replaced || self.ignore.matches(name, false) {
            return Ok(());
        }
        each(Chosen::Leaf { dir, last }, name, stat)
    }
}

/// The paths without those that lie in another: nothing is to be in an archive twice.
fn outermost(paths: &[RelPath]) -> Vec<&RelPath> {
    let mut sorted: Vec<&RelPath> = paths.iter().collect();
    // By names, not by bytes: what lies in a folder comes right behind it.
    sorted.sort_by(|one, other| one.names().cmp(other.names()));
    sorted.dedup_by(|later, earlier| later.is_within(earlier));
    sorted
}

pub(super) fn during_pack<T>(outcome: std::io::Result<T>, name: &[u8]) -> Result<T, FileError> {
    outcome.during("pack", &Lossy(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_within_another_is_taken_once() {
        let paths: Vec<RelPath> = ["b", "a/x", "a-b", "a", "a/x/y", "b", "ab/c"]
            .iter()
            .map(|path| RelPath::parse(path).expect("path"))
            .collect();
        let kept: Vec<_> = outermost(&paths).into_iter().map(RelPath::as_str).collect();
        assert_eq!(kept, ["a", "a-b", "ab/c", "b"]);
        assert_eq!(outermost(&[RelPath::root(), paths[0].clone()]), [&RelPath::root()]);
    }
}
