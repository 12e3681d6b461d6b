//! The wishes with a key whose end is not known yet, and how whoever asks for one hears of it.
//!
//! Each is watched by the task that has taken it on, or has taken it up after a restart. An end is stored
//! before it is told here, and is told here before it is left: who looks here first and into the store then
//! misses none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::kept::Whole;
use crate::store::idempotency::IdempotencyKey;

/// So many at most; beyond that no request with a key is begun.
const MOST: usize = 10_000;

/// What came of a wish, once it is known. Who holds one hears of it also when nobody watches any more.
pub(super) type End = watch::Receiver<Option<Whole>>;

type All = HashMap<IdempotencyKey, End>;

#[derive(Clone, Debug, Default)]
pub(super) struct Watched(Arc<Mutex<All>>);

/// One that is watched, until dropped.
pub(super) struct Watch {
    key: IdempotencyKey,
    end: watch::Sender<Option<Whole>>,
    all: Watched,
}

impl Watched {
    pub(super) fn is_full(&self) -> bool {
        self.lock().len() >= MOST
    }

    pub(super) fn watch(&self, key: &IdempotencyKey) -> Watch {
        let (end, told) = watch::channel(None);
        self.lock().insert(key.clone(), told);
        Watch { key: key.clone(), end, all: self.clone() }
    }

    pub(super) fn end_of(&self, key: &IdempotencyKey) -> Option<End> {
        self.lock().get(key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    pub(super) fn end(&self) -> End {
        self.end.subscribe()
    }

    pub(super) fn ended(self, came: Whole) {
        self.end.send_replace(Some(came));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.all.lock().remove(&self.key);
    }
}
