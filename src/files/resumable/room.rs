//! How many uploads a volume has, and which of them nobody needs any more.
//!
//! Called when one is made, and in the rounds in which old ones expire. Judged by what lies in the folder and nothing else. An
//! upload that can't be looked at counts as one.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;

use super::INFO;
use crate::domain::units::UnixSeconds;
use crate::files::content::STAGED;
use crate::files::progress::Progress;
use crate::files::resolve::{open_folder, stat_name};
use crate::files::staging::{is_dot, remove_tree};

/// So many that have arrived are remembered, for senders that did not hear of it.
const MAX_REMEMBERED: usize = 64;
/// A folder without an `info` belongs to a request that has only just begun, or to a crash.
const HALF_MADE_SECONDS: i64 = 60;

/// How many have not arrived. Of those that have, only the latest are remembered from here on.
pub(super) fn unfinished(uploads: &OwnedFd) -> Result<usize, Errno> {
    let (mut unfinished, mut arrived) = (0, Vec::new());
    for entry in rustix::fs::Dir::read_from(uploads)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_dot(name) {
            continue;
        }
        let Ok(dir) = open_folder(uploads.as_fd(), name) else { continue };
        // What has only just begun has neither.
        match (stat_name(&dir, STAGED), stat_name(&dir, INFO)) {
            (Err(Errno::NOENT), Ok(_)) => {
                // It changed last when the file left it for its place.
                let left = rustix::fs::fstat(&dir)?;
                arrived.push(((left.st_mtime, left.st_mtime_nsec), name.to_owned()));
            }
            _ => unfinished += 1,
        }
    }
    arrived.sort_unstable();
    for (_, name) in arrived.iter().rev().skip(MAX_REMEMBERED) {
        match remove_tree(uploads.as_fd(), name.as_c_str(), &Progress::default()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(unfinished)
}

/// Whether nothing was added for so long.
pub(super) fn is_over(uploads: &OwnedFd, name: &CStr, expire_after: Duration) -> bool {
    let now = UnixSeconds::now().0;
    let seconds = i64::try_from(expire_after.as_secs()).unwrap_or(i64::MAX);
    let touched = |dir: &OwnedFd, name: &CStr| stat_name(dir, name).ok().map(|raw| raw.st_mtime);
    let Ok(dir) = open_folder(uploads.as_fd(), name) else { return true };
    // The folder changed last when it was made, or when the file left it for its place.
    let moved = rustix::fs::fstat(&dir).map_or(0, |raw| raw.st_mtime);
    let (last, allowed) = match (touched(&dir, INFO), touched(&dir, STAGED)) {
        (Some(info), Some(new)) => (new.max(info), seconds),
        (Some(_), None) => (moved, seconds),
        (None, _) => (moved, HALF_MADE_SECONDS),
    };
    last.saturating_add(allowed) < now
}
