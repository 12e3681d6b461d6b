//! Who may work on files at the same time: a queue for each kind of work, with a share for each volume.
//!
//! Work on files blocks threads. Each lane has so many of them, together no more than the runtime gives
//! ([`THREADS`]), so that a slow upload or a large archive never keeps anyone from listing a folder. Of a
//! lane no volume gets more than its share, so that its users wait for each other and not others for them.
//! Called by [`super::Files`] for every piece of work. Whoever waits too long is told so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::FileError;
use crate::domain::ids::VolumeId;

/// What kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Answers at once: lists, small reads, renames.
    Quick,
    /// Lasts as long as its client sends.
    Transfer,
    /// Reads or writes whole trees.
    Heavy,
    /// Reads much for a caller who waits.
    Scan,
    /// Reads trees for as long as its client takes them in.
    Stream,
}

impl Lane {
    const ALL: [Self; 5] = [Self::Quick, Self::Transfer, Self::Heavy, Self::Scan, Self::Stream];

    const fn threads(self) -> usize {
        match self {
            Self::Quick => 16,
            Self::Transfer => 64,
            Self::Heavy | Self::Scan => 4,
            Self::Stream => 8,
        }
    }

    /// How many of them one volume may have.
    const fn share(self) -> usize {
        match self {
            Self::Quick => 8,
            Self::Transfer => 24,
            Self::Heavy | Self::Scan => 2,
            Self::Stream => 3,
        }
    }

    /// How long a caller waits for a turn. Work on whole trees is waited for: it can be sent into the
    /// background, and be cancelled.
    const fn patience(self) -> Option<Duration> {
        match self {
            Self::Quick | Self::Transfer | Self::Scan | Self::Stream => {
                Some(Duration::from_secs(20))
            }
            Self::Heavy => None,
        }
    }
}

/// Threads that are blocked at most at the same time.
pub(crate) const THREADS: usize = {
    let (mut sum, mut n) = (0, 0);
    while n < Lane::ALL.len() {
        sum += Lane::ALL[n].threads();
        n += 1;
    }
    sum
};

#[derive(Debug)]
pub(super) struct Lanes {
    /// In the order of [`Lane::ALL`].
    lanes: [Arc<Semaphore>; Lane::ALL.len()],
    /// Those of volumes that are being worked on.
    shares: Mutex<HashMap<(Lane, VolumeId), Weak<Semaphore>>>,
}

/// A turn; ends when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _share: Option<OwnedSemaphorePermit>,
    _lane: OwnedSemaphorePermit,
}

impl Default for Lanes {
    fn default() -> Self {
        let lanes = Lane::ALL.map(|lane| Arc::new(Semaphore::new(lane.threads())));
        Self { lanes, shares: Mutex::default() }
    }
}

impl Lanes {
    /// Waits for a turn. The share comes first: who waits for that holds up nobody else.
    pub(super) async fn turn(
        &self,
        lane: Lane,
        volume: Option<VolumeId>,
    ) -> Result<Turn, FileError> {
        let waiting = async {
            let share = volume.map(|volume| self.share(lane, volume));
            let share = match share {
                Some(share) => Some(acquire(share).await),
                None => None,
            };
            let lane = Arc::clone(&self.lanes[lane as usize]);
            Turn { _share: share, _lane: acquire(lane).await }
        };
        match lane.patience() {
            None => Ok(waiting.await),
            Some(patience) => {
                tokio::time::timeout(patience, waiting).await.map_err(|_| FileError::Crowded)
            }
        }
    }

    fn share(&self, lane: Lane, volume: VolumeId) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|_, share| share.strong_count() > 0);
        let known = shares.get(&(lane, volume)).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let share = Arc::new(Semaphore::new(lane.share()));
            shares.insert((lane, volume), Arc::downgrade(&share));
            share
        })
    }
}

async fn acquire(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore.acquire_owned().await.expect("invariant: no lane is ever closed")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn now(turn: impl Future<Output = Result<Turn, FileError>>) -> Option<Turn> {
        turn.now_or_never().map(|turn| turn.expect("no time has passed"))
    }

    #[tokio::test]
    async fn one_volume_never_takes_a_whole_lane() {
        let (lanes, greedy, other) = (Lanes::default(), VolumeId::random(), VolumeId::random());
        for lane in Lane::ALL {
            let held: Vec<_> = std::iter::from_fn(|| now(lanes.turn(lane, Some(greedy)))).collect();
            assert_eq!(held.len(), lane.share(), "{lane:?}");
            let turn = now(lanes.turn(lane, Some(other))).expect("there is room for others");
            drop((held, turn));
            assert!(now(lanes.turn(lane, Some(greedy))).is_some(), "{lane:?}: turns end");
        }
        assert_eq!(lanes.shares.lock().unwrap().len(), 1, "what is over is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_too_long_is_told_so() {
        let (lanes, volume) = (Lanes::default(), Some(VolumeId::random()));
        let held: Vec<_> = std::iter::from_fn(|| now(lanes.turn(Lane::Scan, volume))).collect();
        let refused = lanes.turn(Lane::Scan, volume).await;
        assert!(matches!(refused, Err(FileError::Crowded)), "{refused:?}");
        drop(held);
        assert!(lanes.turn(Lane::Scan, volume).await.is_ok());
    }
}
