//! Who works on which upload: one request at a time.
//!
//! Called by the handlers of uploads, who hold a [`Lock`] for as long as they work on one; it goes back when it
//! is dropped, also in a panic. In memory alone: after a crash nobody works on anything. Whoever waits in
//! vain is refused after ten seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::ResumableId;
use crate::files::error::FileError;

/// How long an upload that another request works on is waited for, once that was told to end.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Which uploads a request works on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks(Arc<LocksInner>);

#[derive(Debug, Default)]
struct LocksInner {
    held: Mutex<HashMap<ResumableId, CancellationToken>>,
    released: Notify,
}

/// The right to work on an upload, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    pub(super) id: ResumableId,
    locks: Locks,
    /// Another request waits for this one to end.
    wanted: CancellationToken,
}

impl Locks {
    fn all(&self) -> MutexGuard<'_, HashMap<ResumableId, CancellationToken>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if nobody has it.
    pub(crate) fn try_lock(&self, id: ResumableId) -> Result<Lock, FileError> {
        let mut held = self.all();
        if held.contains_key(&id) {
            return Err(FileError::UploadLocked);
        }
        let wanted = CancellationToken::new();
        held.insert(id, wanted.clone());
        Ok(Lock { id, locks: self.clone(), wanted })
    }

    /// The lock, taken from whoever has it: a sender that asks how far it has come does not send any
    /// more, and the request that lightd still reads from is dead.
    pub(crate) async fn lock(&self, id: ResumableId) -> Result<Lock, FileError> {
        let take = async {
            loop {
                let released = self.0.released.notified();
                tokio::pin!(released);
                released.as_mut().enable();
                if let Ok(lock) = self.try_lock(id) {
                    return lock;
                }
                if let Some(holder) = self.all().get(&id) {
                    holder.cancel();
                }
                released.await;
            }
        };
        tokio::time::timeout(LOCK_WAIT, take).await.map_err(|_| FileError::UploadLocked)
    }

    pub(super) fn is_held(&self, id: ResumableId) -> bool {
        self.all().contains_key(&id)
    }
}

impl Lock {
    /// Ends when this request should.
    pub(crate) fn wanted(&self) -> CancellationToken {
        self.wanted.clone()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.locks.all().remove(&self.id);
        self.locks.0.released.notify_waiters();
    }
}
