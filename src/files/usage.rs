//! What a volume holds, counted without reading all of it each time.
//!
//! For each folder the sum of what lies directly in it is kept, with the folder's change time. Whatever is
//! made, removed or renamed changes that time, and everything that lightd writes is made beside and renamed
//! in: so a pass that looks at the folders alone, and reads those that changed, is exact for lightd's own
//! work and for all a workload makes and removes. What it cannot see is a file that grows where it lies.
//! For that, [`Count::roll`] looks again at the files of some folders each time: at those that were found
//! grown the last time always, at the others in turn.
//!
//! How old a figure can be, then: not at all for files that came, went or were replaced; one round for
//! files in folders where something grew the round before; otherwise as many rounds as it takes to go
//! through all files at [`ROLL_ENTRIES`] each.
//!
//! A volume with too many folders to keep in mind, or nested too deeply, is counted whole, and rarely.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Dir, FileType, Stat as RawStat};
use rustix::io::Errno;
use tokio::time::Instant;

use super::error::{During, FileError};
use super::resolve::{kind_of, open_folder, stat_name};
use super::staging::is_dot;
use super::volume::{Volume, blocks_of};
use super::walk::MAX_COUNTED_DEPTH;
use crate::domain::ids::VolumeId;

/// How many files a round looks at again.
pub(crate) const ROLL_ENTRIES: u64 = 20_000;
/// Folders kept in mind of one volume, and of all.
const MAX_FOLDERS: usize = 100_000;
const MAX_FOLDERS_OF_ALL: usize = 500_000;
/// A pass that took this long is not repeated at once, but made up for by what lightd wrote since.
const LONG_PASS: Duration = Duration::from_millis(20);
const NOT_AGAIN_WITHIN: Duration = Duration::from_secs(1);
/// The same for what is counted whole.
const NOT_WHOLE_AGAIN_WITHIN: Duration = Duration::from_secs(30);
/// Two changes so close to each other may bear one time.
const SAME_TIME_NS: i128 = 100_000_000;

/// The counts of all volumes that are of interest.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<HashMap<VolumeId, Arc<Count>>>);

#[derive(Debug, Default)]
pub(super) struct Count {
    /// What lightd wrote to the volume, ever.
    spent: AtomicU64,
    folders: AtomicU64,
    used_at: Mutex<Option<Instant>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    folders: HashMap<Key, Folder>,
    /// Too large to be kept in mind.
    is_unfit: bool,
    last: Option<Last>,
    /// How many files may be looked at again.
    credit: i64,
    pass: u32,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    bytes: u64,
    spent: u64,
    at: Instant,
    took: Duration,
}

type Key = (u64, u64);

#[derive(Debug)]
struct Folder {
    changed_ns: i128,
    /// It may have changed again under the same time.
    is_racy: bool,
    /// Its own, and those of the files in it that have one name.
    blocks: u64,
    files: u32,
    /// Files with several names: inode and blocks.
    linked: Box<[(u64, u64)]>,
    below: Box<[Box<CStr>]>,
    /// Files in it had grown when it was last looked at.
    is_hot: bool,
    looked_at: u32,
    seen_in: u32,
}

enum Fail {
    /// Not to be kept in mind.
    Unfit,
    Kernel(Errno),
}

impl From<Errno> for Fail {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

impl Counts {
    pub(super) fn of(&self, volume: VolumeId) -> Arc<Count> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = Arc::clone(all.entry(volume).or_default());
        *lock(&count.used_at) = Some(Instant::now());
        let mut kept: u64 = all.values().map(|count| count.folders.load(Ordering::Relaxed)).sum();
        while kept > MAX_FOLDERS_OF_ALL as u64 && all.len() > 1 {
            let oldest = all.iter().min_by_key(|(_, count)| *lock(&count.used_at));
            let Some((oldest, count)) = oldest.map(|(id, count)| (*id, Arc::clone(count))) else {
                break;
            };
            kept = kept.saturating_sub(count.folders.load(Ordering::Relaxed));
            all.remove(&oldest);
        }
        count
    }

    /// What a volume held when it was last counted, and what lightd wrote to it since.
    pub(super) fn last(&self, volume: VolumeId) -> Option<u64> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = Arc::clone(all.get(&volume)?);
        drop(all);
        // Who counts just now holds it, for as long as that takes.
        let last = count.state.try_lock().ok()?.last?;
        let since = count.spent.load(Ordering::Relaxed).saturating_sub(last.spent);
        Some(last.bytes.saturating_add(since))
    }

    pub(super) fn forget(&self, volume: VolumeId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&volume);
    }
}

impl Count {
    /// Notes what lightd is about to write.
    pub(super) fn spend(&self, bytes: u64) {
        self.spent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What the volume holds; files that grew where they lie may be missing in part.
    pub(super) fn bytes(&self, volume: &Volume) -> Result<u64, FileError> {
        let mut state = lock(&self.state);
        if let Some(last) = state.last
            && last.at.elapsed() < again_after(&state, last)
        {
            let since = self.spent.load(Ordering::Relaxed).saturating_sub(last.spent);
            return Ok(last.bytes.saturating_add(since));
        }
        self.pass(&mut state, volume, &HashSet::new())
    }

    /// As [`Count::bytes`], for a decision that an older figure could make wrong: between two counts what was
    /// written counts in full, also where it replaced something or was given up. A volume that is too large
    /// to be kept in mind is not walked again for it.
    pub(super) fn fresh_bytes(&self, volume: &Volume) -> Result<u64, FileError> {
        let mut state = lock(&self.state);
        if state.is_unfit {
            drop(state);
            return self.bytes(volume);
        }
        self.pass(&mut state, volume, &HashSet::new())
    }

    /// As [`Count::bytes`], after a look at the files of some folders.
    pub(super) fn roll(&self, volume: &Volume, entries: u64) -> Result<u64, FileError> {
        let mut state = lock(&self.state);
        if state.is_unfit {
            drop(state);
            return self.bytes(volume);
        }
        let due = state.due(entries);
        self.pass(&mut state, volume, &due)
    }

    fn pass(
        &self,
        state: &mut State,
        volume: &Volume,
        due: &HashSet<Key>,
    ) -> Result<u64, FileError> {
        let (began, spent) = (Instant::now(), self.spent.load(Ordering::Relaxed));
        let counted =
            if state.is_unfit { Err(Fail::Unfit) } else { state.count(volume.root(), due) };
        let bytes = match counted {
            Ok(bytes) => bytes,
            Err(Fail::Unfit) => {
                *state = State { is_unfit: true, ..State::default() };
                volume.disk_usage()?
            }
            Err(Fail::Kernel(errno)) => return Err(errno).during("measure", &"the volume"),
        };
        self.folders.store(state.folders.len() as u64, Ordering::Relaxed);
        state.last = Some(Last { bytes, spent, at: Instant::now(), took: began.elapsed() });
        Ok(bytes)
    }
}

fn again_after(state: &State, last: Last) -> Duration {
    match last.took {
        _ if state.is_unfit => NOT_WHOLE_AGAIN_WITHIN,
        took if took > LONG_PASS => NOT_AGAIN_WITHIN,
        _ => Duration::ZERO,
    }
}

impl State {
    /// The folders whose files are to be looked at again now.
    fn due(&mut self, entries: u64) -> HashSet<Key> {
        let cap = i64::try_from(entries.saturating_mul(100)).unwrap_or(i64::MAX);
        let entries = i64::try_from(entries).unwrap_or(i64::MAX);
        self.credit = self.credit.saturating_add(entries).min(cap);
        let mut order: Vec<(bool, u32, Key, u32)> = self
            .folders
            .iter()
            .filter(|(_, folder)| folder.files > 0)
            .map(|(key, folder)| (!folder.is_hot, folder.looked_at, *key, folder.files))
            .collect();
        order.sort_unstable();
        let mut due = HashSet::new();
        for (_, _, key, files) in order {
            // A folder that is larger than the credit makes the next ones wait.
            if self.credit <= 0 {
                break;
            }
            self.credit -= i64::from(files);
            due.insert(key);
        }
        due
    }

    fn count(&mut self, root: BorrowedFd<'_>, due: &HashSet<Key>) -> Result<u64, Fail> {
        self.pass = self.pass.wrapping_add(1);
        let stat = rustix::fs::fstat(root)?;
        self.visit(root, &stat, due, 0)?;
        let pass = self.pass;
        self.folders.retain(|_, folder| folder.seen_in == pass);
        let mut blocks = 0;
        let mut linked = HashSet::new();
        for folder in self.folders.values() {
            blocks += folder.blocks;
            for (inode, of) in &folder.linked {
                if linked.insert(*inode) {
                    blocks += of;
                }
            }
        }
        Ok(blocks * 512)
    }

    fn visit(
        &mut self,
        dir: BorrowedFd<'_>,
        stat: &RawStat,
        due: &HashSet<Key>,
        depth: usize,
    ) -> Result<(), Fail> {
        if depth > MAX_COUNTED_DEPTH || self.folders.len() > MAX_FOLDERS {
            return Err(Fail::Unfit);
        }
        let key = key_of(stat);
        if !self.stands(key, stat) || due.contains(&key) {
            let before = self.folders.get(&key).map(|folder| (folder.changed_ns, folder.blocks));
            let mut folder = look(dir, stat, self.pass)?;
            folder.is_hot = before.is_some_and(|(changed_ns, blocks)| {
                changed_ns == folder.changed_ns && blocks != folder.blocks
            });
            self.folders.insert(key, folder);
        }
        let Some(folder) = self.folders.get_mut(&key) else { return Ok(()) };
        folder.seen_in = self.pass;
        let below = std::mem::take(&mut folder.below);
        let visited = below.iter().try_for_each(|name| self.visit_below(dir, name, due, depth));
        if let Some(folder) = self.folders.get_mut(&key) {
            folder.below = below;
        }
        visited
    }

    fn visit_below(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        due: &HashSet<Key>,
        depth: usize,
    ) -> Result<(), Fail> {
        let stat = match stat_name(dir, name) {
            Ok(stat) if kind_of(&stat) == FileType::Directory => stat,
            // Gone since, or something else: the next pass sees that its parent changed.
            Ok(_) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let key = key_of(&stat);
        if self.stands(key, &stat) && !due.contains(&key) {
            let pass = self.pass;
            if let Some(folder) =
                self.folders.get_mut(&key).filter(|folder| folder.below.is_empty())
            {
                folder.seen_in = pass;
                return Ok(());
            }
        }
        match open_folder(dir, name) {
            Ok(below) => {
                let stat = rustix::fs::fstat(&below)?;
                self.visit(below.as_fd(), &stat, due, depth + 1)
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether a folder holds what it held.
    fn stands(&self, key: Key, stat: &RawStat) -> bool {
        self.folders
            .get(&key)
            .is_some_and(|folder| !folder.is_racy && folder.changed_ns == changed_ns(stat))
    }
}

fn look(dir: BorrowedFd<'_>, stat: &RawStat, pass: u32) -> Result<Folder, Errno> {
    let now_ns = jiff::Timestamp::now().as_nanosecond();
    let mut folder = Folder {
        changed_ns: changed_ns(stat),
        is_racy: now_ns - changed_ns(stat) < SAME_TIME_NS,
        blocks: blocks_of(stat),
        files: 0,
        linked: Box::default(),
        below: Box::default(),
        is_hot: false,
        looked_at: pass,
        seen_in: pass,
    };
    let (mut linked, mut below) = (Vec::new(), Vec::new());
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_dot(name) {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            below.push(CString::from(name).into_boxed_c_str());
            continue;
        }
        match stat_name(dir, name) {
            Ok(stat) if kind_of(&stat) == FileType::Directory => {
                below.push(CString::from(name).into_boxed_c_str());
            }
            Ok(stat) => {
                folder.files = folder.files.saturating_add(1);
                if stat.st_nlink > 1 {
                    linked.push((stat.st_ino, blocks_of(&stat)));
                } else {
                    folder.blocks += blocks_of(&stat);
                }
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    (folder.linked, folder.below) = (linked.into(), below.into());
    Ok(folder)
}

fn key_of(stat: &RawStat) -> Key {
    (stat.st_dev, stat.st_ino)
}

/// A change time cannot be set by anyone but the clock.
fn changed_ns(stat: &RawStat) -> i128 {
    i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::archive::ArchiveLimits;
    use crate::files::progress::Progress;
    use crate::files::resolve::{Resolver, open_folder};

    #[test]
    fn near_its_limit_a_volume_is_counted_anew_and_not_by_what_was_given_up() {
        const MB: u64 = 1 << 20;
        let scratch = tempfile::tempdir().unwrap();
        let root = open_folder(rustix::fs::CWD, scratch.path()).unwrap();
        let volume = Volume::alone(root, Resolver::detect(), ArchiveLimits::default());
        let file = std::fs::File::create(scratch.path().join("file")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 3 * MB).unwrap();
        let count = volume.budgets.counts.of(volume.id);
        let counted = count.bytes(&volume).unwrap();
        // As where a pass takes so long that its figure stands for a while.
        lock(&count.state).last.as_mut().unwrap().took = Duration::from_secs(1);
        count.spend(3 * MB);
        assert_eq!(count.bytes(&volume).unwrap(), counted + 3 * MB);
        let progress = Progress::default();
        volume.hold_to(Some(4 * MB), 0, &progress).unwrap();
        progress.has_room_for(MB / 2).expect("there is room");
        progress.has_room_for(2 * MB).expect_err("there is not so much");
    }
}
