//! Long work on volumes, for the time after it: a copy of what its owner holds in memory.

use super::error::StoreError;
use super::{Read, Tx};
use crate::domain::operation::{ENDED_KEPT, ENDED_KEPT_SECONDS, OperationState, OperationView};
use crate::domain::units::UnixSeconds;

impl Tx<'_> {
    /// Stores how an operation stands, and forgets old ones.
    pub(crate) fn save_operation(&self, view: &OperationView) -> Result<(), StoreError> {
        let json =
            serde_json::to_string(view).map_err(|why| StoreError::decode("operation", why))?;
        self.connection
            .prepare_cached(
                "INSERT INTO operations (id, is_running, finished_at, view_json)
                 VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET is_running = excluded.is_running,
                    finished_at = excluded.finished_at, view_json = excluded.view_json",
            )?
            .execute((
                view.id.to_string(),
                view.state == OperationState::Running,
                view.finished_at.map(|at| at.0),
                json,
            ))?;
        let oldest = UnixSeconds::now().0 - ENDED_KEPT_SECONDS;
        self.connection
            .prepare_cached(
                "DELETE FROM operations WHERE is_running = 0 AND (finished_at < ?1 OR id NOT IN
                    (SELECT id FROM operations WHERE is_running = 0 ORDER BY id DESC LIMIT ?2))",
            )?
            .execute((oldest, ENDED_KEPT))?;
        Ok(())
    }

    /// At the start, before anything else runs: what was running is not any more. Returns all that are
    /// kept, the oldest first.
    pub(crate) fn interrupt_operations(
        &self,
        now: UnixSeconds,
    ) -> Result<Vec<OperationView>, StoreError> {
        let mut all = self.operations()?;
        for view in all.iter_mut().filter(|view| view.state == OperationState::Running) {
            view.state = OperationState::Interrupted;
            view.finished_at = Some(now);
            view.error = Some("lightd ended before the work did".to_owned());
            view.code = Some("interrupted".to_owned());
            self.save_operation(view)?;
            if let Some(act) = view.failure() {
                self.record(&act, now)?;
            }
        }
        Ok(all)
    }
}

impl Read<'_> {
    fn operations(&self) -> Result<Vec<OperationView>, StoreError> {
        let mut select =
            self.connection.prepare_cached("SELECT view_json FROM operations ORDER BY id")?;
        let mut rows = select.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let json: String = row.get(0)?;
            found.push(
                serde_json::from_str(&json).map_err(|why| StoreError::decode("operation", why))?,
            );
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::ids::VolumeId;
    use crate::domain::operation::{OperationId, OperationKind, OperationState, OperationView};
    use crate::domain::units::UnixSeconds;
    use crate::store::Store;
    use crate::store::testing::{NOW, open};

    fn view(finished_at: Option<UnixSeconds>) -> OperationView {
        let state =
            if finished_at.is_some() { OperationState::Done } else { OperationState::Running };
        OperationView {
            id: OperationId::next(),
            kind: OperationKind::Pull,
            volume: VolumeId::random(),
            state,
            done_bytes: 7,
            total_bytes: 9,
            entries: 1,
            error: None,
            code: None,
            result: Some(serde_json::json!({"path": "x"})),
            started_at: NOW,
            finished_at,
        }
    }

    async fn save(store: &Store, view: &OperationView) {
        let view = view.clone();
        store.write("save", move |tx| tx.save_operation(&view)).await.unwrap();
    }

    async fn interrupted(store: &Store) -> Vec<OperationView> {
        store.write("interrupt", |tx| tx.interrupt_operations(NOW)).await.unwrap()
    }

    #[tokio::test]
    async fn what_ran_when_lightd_died_was_interrupted_and_what_had_ended_stays_as_it_ended() {
        let (_folder, store) = open();
        let (done, mut running) = (view(Some(NOW)), view(None));
        save(&store, &done).await;
        save(&store, &running).await;
        running.done_bytes = 8;
        save(&store, &running).await;
        let all = interrupted(&store).await;
        assert_eq!(all[0], done);
        assert_eq!((all[1].id, all[1].done_bytes), (running.id, 8));
        assert_eq!((all[1].state, all[1].finished_at), (OperationState::Interrupted, Some(NOW)));
        assert_eq!(interrupted(&store).await, all, "once");
    }

    #[tokio::test]
    async fn old_operations_are_forgotten_and_running_ones_never() {
        let (_folder, store) = open();
        let (running, old) = (view(None), view(Some(UnixSeconds(1))));
        save(&store, &running).await;
        save(&store, &old).await;
        let many: Vec<OperationView> = (0..210).map(|_| view(Some(NOW))).collect();
        let last = many[209].id;
        store
            .write("save", move |tx| many.iter().try_for_each(|view| tx.save_operation(view)))
            .await
            .unwrap();
        let left = interrupted(&store).await;
        assert_eq!((left.len(), left[0].id, left[200].id), (201, running.id, last));
    }
}
