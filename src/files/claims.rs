//! Who may use which volume now.
//!
//! Everybody who opens a volume holds a [`Lease`] on it; whoever is about to replace, resize or remove
//! one takes a [`Claim`] first, which keeps new users away, and waits for those there are. A volume whose
//! file system is not mounted is used by nobody.
//!
//! Invariant: while an exclusive claim is held and [`Claims::drained`] has answered, nothing of lightd is
//! inside the volume. Claims live in memory: after a crash nobody holds one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::error::FileError;
use crate::domain::ids::VolumeId;

/// Whether a volume's files can be reached at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A folder beside the others.
    #[default]
    Plain,
    /// A file system of its own, which must be mounted.
    Mounted,
    /// It is about to be mounted.
    TakingUp,
    /// It could not be mounted; the log has the reason.
    Broken,
}

#[derive(Debug)]
pub(crate) struct Claims {
    all: Mutex<HashMap<VolumeId, Entry>>,
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Entry {
    users: usize,
    standing: Standing,
    claim: Option<Work>,
}

/// What a volume is claimed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Its files are copied, and stay in use.
    Snapshot,
    Restore,
    Resize,
    Remove,
}

impl Work {
    fn is_exclusive(self) -> bool {
        !matches!(self, Self::Snapshot)
    }

    /// Completes "the volume …".
    pub(crate) fn doing(self) -> &'static str {
        match self {
            Self::Snapshot => "is being copied for a snapshot",
            Self::Restore => "is being restored",
            Self::Resize => "is being resized",
            Self::Remove => "is being deleted",
        }
    }
}

/// The use of a volume; ends when dropped.
#[derive(Debug)]
pub(crate) struct Lease(Option<(Arc<Claims>, VolumeId)>);

/// The claim on a volume; ends when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Arc<Claims>,
    volume: VolumeId,
}

impl Default for Claims {
    fn default() -> Self {
        Self { all: Mutex::default(), changes: watch::Sender::new(()) }
    }
}

impl Claims {
    /// Begins a use. Answers also whether the volume must be found mounted.
    pub(super) fn enter(self: &Arc<Self>, volume: VolumeId) -> Result<(Lease, bool), FileError> {
        let mut all = self.lock();
        let entry = all.entry(volume).or_default();
        if let Some(work) = entry.claim.filter(|work| work.is_exclusive()) {
            return Err(FileError::VolumeBusy { doing: work.doing() });
        }
        match entry.standing {
            Standing::Plain | Standing::Mounted => {}
            Standing::TakingUp | Standing::Broken => return Err(FileError::VolumeUnavailable),
        }
        entry.users += 1;
        let is_mounted = entry.standing == Standing::Mounted;
        Ok((Lease(Some((Arc::clone(self), volume))), is_mounted))
    }

    /// Takes the claim that nobody else may hold at the same time.
    pub(super) fn claim(
        self: &Arc<Self>,
        volume: VolumeId,
        work: Work,
    ) -> Result<Claim, FileError> {
        let mut all = self.lock();
        let entry = all.entry(volume).or_default();
        if let Some(other) = entry.claim {
            return Err(FileError::VolumeBusy { doing: other.doing() });
        }
        entry.claim = Some(work);
        Ok(Claim { claims: Arc::clone(self), volume })
    }

    /// Waits until those who used the volume when it was claimed have left.
    pub(super) async fn drained(
        &self,
        volume: VolumeId,
        within: Duration,
    ) -> Result<(), FileError> {
        let is_empty = || self.lock().get(&volume).is_none_or(|entry| entry.users == 0);
        tokio::time::timeout(within, self.until(is_empty))
            .await
            .map_err(|_| FileError::VolumeBusy { doing: "has files that are being worked on" })
    }

    /// Waits until nobody has a claim on the volume and it is not about to be mounted.
    pub(super) async fn unclaimed(
        &self,
        volume: VolumeId,
        within: Duration,
    ) -> Result<(), FileError> {
        let is_free = || {
            let all = self.lock();
            all.get(&volume)
                .is_none_or(|entry| entry.claim.is_none() && entry.standing != Standing::TakingUp)
        };
        tokio::time::timeout(within, self.until(is_free))
            .await
            .map_err(|_| FileError::VolumeBusy { doing: "is still being worked on" })
    }

    /// Waits while the volume is claimed for itself or about to be mounted; whether it can be used then.
    pub(super) async fn usable(&self, volume: VolumeId) -> bool {
        let standing = || self.lock().get(&volume).map_or(Standing::Plain, |entry| entry.standing);
        let is_free = || self.claimed_for(volume).is_none() && standing() != Standing::TakingUp;
        self.until(is_free).await;
        standing() != Standing::Broken
    }

    /// What the volume is claimed for, if that keeps others away.
    pub(super) fn claimed_for(&self, volume: VolumeId) -> Option<Work> {
        let all = self.lock();
        all.get(&volume).and_then(|entry| entry.claim).filter(|work| work.is_exclusive())
    }

    pub(super) fn set_standing(&self, volume: VolumeId, standing: Standing) {
        self.lock().entry(volume).or_default().standing = standing;
        self.changes.send_replace(());
    }

    pub(super) fn standing(&self, volume: VolumeId) -> Standing {
        self.lock().get(&volume).map_or(Standing::Plain, |entry| entry.standing)
    }

    async fn until(&self, reached: impl Fn() -> bool) {
        let mut changes = self.changes.subscribe();
        while !reached() {
            // The sender is ours: it cannot be gone.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn change(&self, volume: VolumeId, change: impl FnOnce(&mut Entry)) {
        let mut all = self.lock();
        if let Some(entry) = all.get_mut(&volume) {
            change(entry);
            if entry.users == 0 && entry.claim.is_none() && entry.standing == Standing::Plain {
                all.remove(&volume);
            }
        }
        drop(all);
        self.changes.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// For a volume that is in no [`Claims`].
    #[cfg(any(test, fuzzing))]
    pub(super) fn none() -> Self {
        Self(None)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((claims, volume)) = self.0.take() {
            claims.change(volume, |entry| entry.users -= 1);
        }
    }
}

impl Claim {
    pub(crate) fn volume(&self) -> VolumeId {
        self.volume
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.change(self.volume, |entry| entry.claim = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_claim_keeps_new_users_away_and_waits_for_old_ones() {
        let claims = Arc::new(Claims::default());
        let volume = VolumeId::random();
        let (lease, _) = claims.enter(volume).unwrap();
        let claim = claims.claim(volume, Work::Restore).unwrap();
        assert!(matches!(claims.enter(volume), Err(FileError::VolumeBusy { .. })));
        assert!(claims.claim(volume, Work::Snapshot).is_err(), "one claim at a time");
        assert!(claims.drained(volume, Duration::from_millis(5)).await.is_err());
        let waits = claims.drained(volume, Duration::from_secs(5));
        let (waited, ()) = tokio::join!(waits, async { drop(lease) });
        waited.unwrap();
        let user = claims.usable(volume);
        let (usable, ()) = tokio::join!(user, async { drop(claim) });
        assert!(usable);
        drop(claims.enter(volume).unwrap());
        assert!(claims.lock().is_empty(), "nothing is kept of a volume that nobody uses");
    }

    #[tokio::test]
    async fn files_stay_in_use_during_a_snapshot_and_not_without_their_file_system() {
        let claims = Arc::new(Claims::default());
        let volume = VolumeId::random();
        let snapshot = claims.claim(volume, Work::Snapshot).unwrap();
        assert!(claims.enter(volume).is_ok());
        assert_eq!(claims.claimed_for(volume), None);
        drop(snapshot);
        claims.set_standing(volume, Standing::TakingUp);
        assert!(matches!(claims.enter(volume), Err(FileError::VolumeUnavailable)));
        let (usable, ()) = tokio::join!(claims.usable(volume), async {
            claims.set_standing(volume, Standing::Broken);
        });
        assert!(!usable);
        claims.set_standing(volume, Standing::Mounted);
        assert!(claims.enter(volume).is_ok_and(|(_, must_be_mounted)| must_be_mounted));
    }
}
