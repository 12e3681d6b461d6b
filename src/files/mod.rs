//! Everything that happens inside volumes.
//!
//! [`Files`] holds the folder that all volumes lie in and is what the rest of lightd talks to: it makes,
//! finds and removes volumes, and runs work on one of them off the async threads, so much at a time.
//! [`Volume`] is one open volume; `operation` keeps work that outlives a request.
//!
//! Invariant: nothing outside a volume's folder is ever read, changed or listed through this module,
//! whatever a container does to its files meanwhile. A failed call leaves what was there, and what a
//! crash leaves half-made has a name of its own ([`Files::sweep`] removes it at the next start).
//!
//! ```text
//!   Files::run -- lane --> blocking thread -- resolve (openat2) --> Volume -- *at calls --> kernel
//! ```

pub(crate) mod archive;
pub(crate) mod backing;
pub(crate) mod claims;
pub(crate) mod content;
mod copy;
pub(crate) mod digest;
mod draft;
mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
pub(crate) mod lanes;
mod lifecycle;
pub(crate) mod listing;
pub(crate) mod operation;
mod progress;
mod quota;
pub(crate) mod replica;
mod resolve;
pub(crate) mod resumable;
pub(crate) mod search;
pub(crate) mod snapshots;
mod staging;
mod sweep;
mod threads;
mod tree;
pub(crate) mod upload;
pub(crate) mod usage;
pub(crate) mod volume;
mod walk;

#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub(crate) use archive::ArchiveLimits;
pub(crate) use error::FileError;
pub(crate) use lanes::Lane;
use lanes::Lanes;
pub(crate) use progress::Progress;
pub(crate) use resolve::Owner;
pub(crate) use volume::Volume;

use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::util::chain::Chain;
use backing::image::Images;
use claims::Claims;
use error::During;
use quota::Budgets;
use resolve::Resolver;
use resumable::Locks;
use staging::is_dot;

/// How long a figure of a volume's use is waited for.
const COUNTED_WITHIN: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub(crate) struct FilesOptions {
    pub(crate) volumes_path: PathBuf,
    /// Whom everything in volumes belongs to.
    pub(crate) owner: Option<(u32, u32)>,
    /// Whether a written file is on the disk before the call returns. Without it a power failure may
    /// lose what was written last; a crash of lightd does not.
    pub(crate) fsync: bool,
    pub(crate) limits: ArchiveLimits,
}

#[derive(Clone, Debug)]
pub(crate) struct Files(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    volumes: OwnedFd,
    volumes_path: PathBuf,
    resolver: Resolver,
    owner: Option<Owner>,
    fsync: bool,
    limits: ArchiveLimits,
    commit: Arc<Mutex<()>>,
    budgets: Arc<Budgets>,
    claims: Arc<Claims>,
    images: Images,
    lanes: Lanes,
    resumable_locks: Locks,
}

impl Files {
    /// Opens the folder of all volumes, making it if it is missing. Blocks briefly.
    pub(crate) fn new(options: FilesOptions) -> Result<Self, FileError> {
        let FilesOptions { volumes_path, owner, fsync, limits } = options;
        // The engine mounts by absolute path only.
        let volumes_path =
            std::path::absolute(volumes_path).during("find", &"the folder of volumes")?;
        let volumes = open_volumes(&volumes_path).during("open", &"the folder of volumes")?;
        let owner = owner.map(|(uid, gid)| Owner { uid, gid });
        Ok(Self(Arc::new(Inner {
            volumes,
            images: Images::new(volumes_path.clone(), owner),
            volumes_path,
            resolver: Resolver::detect(),
            owner,
            fsync,
            limits,
            commit: Arc::default(),
            budgets: Arc::default(),
            claims: Arc::default(),
            lanes: Lanes::default(),
            resumable_locks: Locks::default(),
        })))
    }

    /// Where a volume lies on the host, for the engine to mount. Never opened by this path.
    pub(crate) fn volume_path(&self, volume: VolumeId) -> PathBuf {
        self.0.volumes_path.join(volume.to_string())
    }

    /// Runs quick work on a volume. Once started it goes on to its end, also if the caller is gone.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        volume: VolumeId,
        work: impl FnOnce(&Volume) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        self.run_in(Lane::Quick, volume, work).await
    }

    /// As [`Files::run`], in the queue for its kind of work.
    pub(crate) async fn run_in<T: Send + 'static>(
        &self,
        lane: Lane,
        volume: VolumeId,
        work: impl FnOnce(&Volume) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        self.blocking(lane, Some(volume), move |inner| {
            let volume = inner.open(volume)?;
            work(&volume).map_err(|error| quota::whose_room(error, volume.root(), &inner.volumes))
        })
        .await
    }

    /// What a volume holds, for a figure beside others: `None` where that cannot be told at once. A count that
    /// takes longer goes on, and is there for who asks next.
    pub(crate) async fn used_bytes(&self, volume: VolumeId) -> Option<u64> {
        let count = self.run_in(Lane::Scan, volume, |volume| volume.usage(None));
        match tokio::time::timeout(COUNTED_WITHIN, count).await {
            Ok(Ok(usage)) => Some(usage.used_bytes),
            Ok(Err(error)) => {
                tracing::debug!(%volume, error = %Chain(&error), "cannot count a volume's files");
                None
            }
            Err(_) => None,
        }
    }

    /// What a volume held when it was last counted, without a look at it.
    pub(crate) fn last_used_bytes(&self, volume: VolumeId) -> Option<u64> {
        self.0.budgets.counts.last(volume)
    }

    /// Runs work on whole trees that can be cancelled, also while it still waits for its turn. Work that
    /// has begun is waited for until it has cleaned up.
    pub(crate) async fn run_long<T: Send + 'static>(
        &self,
        volume: VolumeId,
        progress: Progress,
        work: impl FnOnce(&Volume, &Progress) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        self.run_long_in(Lane::Heavy, volume, progress, work).await
    }

    /// As [`Files::run_long`], in the queue for its kind of work.
    pub(crate) async fn run_long_in<T: Send + 'static>(
        &self,
        lane: Lane,
        volume: VolumeId,
        progress: Progress,
        work: impl FnOnce(&Volume, &Progress) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let seen = progress.clone();
        let run = self.run_in(lane, volume, move |volume| {
            // Nobody listens once it has been cancelled, which the check sees.
            began.send(()).ok();
            progress.check()?;
            work(volume, &progress)
        });
        tokio::pin!(run);
        tokio::select! {
            biased;
            done = &mut run => done,
            _ = has_begun => run.await,
            () = seen.cancelled() => Err(FileError::Cancelled),
        }
    }

    /// Who works on which resumable upload.
    pub(crate) fn resumable_locks(&self) -> &Locks {
        &self.0.resumable_locks
    }

    async fn blocking<T: Send + 'static>(
        &self,
        lane: Lane,
        volume: Option<VolumeId>,
        work: impl FnOnce(&Inner) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let turn = self.0.lanes.turn(lane, volume).await?;
        let inner = Arc::clone(&self.0);
        let task = tokio::task::spawn_blocking(move || {
            // The turn lasts as long as the work, not as long as whoever waits for it.
            let _turn = turn;
            work(&inner)
        });
        match task.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down.
                Err(_) => Err(FileError::Cancelled),
            },
        }
    }
}

impl Inner {
    fn open(&self, volume: VolumeId) -> Result<Volume, FileError> {
        let (lease, is_mounted) = self.claims.enter(volume)?;
        let name = RelPath::parse_non_empty(&volume.to_string())?;
        // By steps, because a volume that is a link to elsewhere is none.
        let root = Resolver::Steps.open(self.volumes.as_fd(), &name, resolve::DIRECTORY);
        let root = match root {
            Err(Errno::NOENT) => return Err(FileError::NoVolume { volume }),
            root => root.during("open", &name)?,
        };
        if is_mounted && !self.is_own_file_system(&root)? {
            tracing::error!(%volume, "the file system of a volume was unmounted by someone else");
            return Err(FileError::VolumeUnavailable);
        }
        let is_limited = is_mounted || backing::project::is_limited(&root, &self.volumes);
        Ok(Volume {
            id: volume,
            root,
            resolver: self.resolver,
            owner: self.owner,
            fsync: self.fsync,
            limits: self.limits,
            commit: Arc::clone(&self.commit),
            budgets: Arc::clone(&self.budgets),
            is_limited,
            _lease: lease,
        })
    }
}

fn open_volumes(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    if !path.is_dir() {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        }
        // Volumes hold what tenants wrote, set-user-id programs among it: other users of the host
        // may pass through for mounts, but not look around.
        match rustix::fs::mkdir(path, Mode::from_raw_mode(0o711)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn for_each_name(dir: &OwnedFd, mut each: impl FnMut(&CStr)) -> Result<(), Errno> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if !is_dot(entry.file_name()) {
            each(entry.file_name());
        }
    }
    Ok(())
}
