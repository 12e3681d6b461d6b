//! Moving an extracted tree into a folder that is already there.
//!
//! First the whole tree is compared with the destination; a folder that meets a file, or a file that
//! meets a folder, ends it there with nothing moved. Then each file replaces its counterpart by a
//! rename, and each folder without one moves as a whole. Recursion is bounded by the depth limit that
//! the extraction has enforced.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Stat as RawStat};
use rustix::io::Errno;

use crate::files::error::{During, FileError};
use crate::files::resolve::{kind_of, open_folder, stat_name};
use crate::files::staging::is_dot;
use crate::files::walk::Lossy;

pub(super) fn merge(tree: &OwnedFd, destination: &OwnedFd) -> Result<(), FileError> {
    pass(tree.as_fd(), destination.as_fd(), &mut Vec::new(), false)?;
    pass(tree.as_fd(), destination.as_fd(), &mut Vec::new(), true)
}

fn pass(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    path: &mut Vec<u8>,
    moves: bool,
) -> Result<(), FileError> {
    for entry in Dir::read_from(from).during("read", &Lossy(path))? {
        let entry = entry.during("read", &Lossy(path))?;
        let name = entry.file_name();
        if is_dot(name) {
            continue;
        }
        let above = path.len();
        if above > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        one(from, to, name, path, moves)?;
        path.truncate(above);
    }
    Ok(())
}

fn one(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    path: &mut Vec<u8>,
    moves: bool,
) -> Result<(), FileError> {
    let new = stat_name(from, name).during("unpack", &Lossy(path))?;
    let old = match stat_name(to, name) {
        Ok(old) => Some(old),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(errno).during("unpack", &Lossy(path)),
    };
    let is_folder = |stat: &RawStat| kind_of(stat) == FileType::Directory;
    match (is_folder(&new), old.as_ref().map(is_folder)) {
        (true, Some(true)) => {
            let below = open_folder(from, name).during("unpack", &Lossy(path))?;
            let beside = open_folder(to, name).during("unpack", &Lossy(path))?;
            pass(below.as_fd(), beside.as_fd(), path, moves)
        }
        (true, Some(false)) => Err(Errno::NOTDIR).during("unpack", &Lossy(path)),
        (false, Some(true)) => Err(Errno::ISDIR).during("unpack", &Lossy(path)),
        _ if !moves => Ok(()),
        _ => rustix::fs::renameat(from, name, to, name).during("unpack", &Lossy(path)),
    }
}
