//! Changes of a volume's files, as the audit log has them.
//!
//! Files change outside the store, so their rows cannot share a transaction with them: each is written by
//! the thread that has made the change, right after it and before the answer goes out. A caller that goes
//! away meanwhile changes nothing about that. Work in the background is recorded with its beginning.

use crate::api::auth::Auth;
use crate::api::state::AppState;
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::ids::VolumeId;
use crate::store::Store;

/// Whoever changes a volume's files, for the thread that does it.
#[derive(Clone, Debug)]
pub(super) struct FileLog {
    store: Store,
    actor: Actor,
    volume: VolumeId,
}

impl FileLog {
    pub(super) fn new(auth: &Auth, state: &AppState, volume: VolumeId) -> Self {
        Self { store: state.store.clone(), actor: auth.actor(), volume }
    }

    pub(super) fn volume(&self) -> VolumeId {
        self.volume
    }

    pub(super) fn act(&self, action: Action) -> Act {
        Act::new(self.actor.clone(), action).in_volume(self.volume)
    }

    /// Writes down what has happened. Blocks until it is on the disk.
    pub(super) fn note(&self, act: Act) {
        self.store.record_done_blocking(act);
    }

    /// Files have new content.
    pub(super) fn wrote<T: ToString>(&self, paths: impl IntoIterator<Item = T>) {
        self.note(self.act(Action::FilesWrite).each("paths", paths));
    }
}
