//! Long work on volumes: begun by other calls, watched and cancelled here.

use std::time::Duration;

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::paging;
use super::recording::FileLog;
use super::volumes::Reached;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::domain::access::{Permission, Resource, allows, permits};
use crate::domain::audit::{Act, Action};
use crate::domain::ids::VolumeId;
use crate::files::operation::{OperationId, OperationKind, OperationState, OperationView};
use crate::files::{FileError, Progress, Volume};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(list)).routes(routes!(show, cancel))
}

/// Work on a volume that may take long.
pub(super) struct Job<'a> {
    pub(super) state: &'a AppState,
    pub(super) volume: &'a Reached,
    pub(super) kind: OperationKind,
    /// As the audit log has it.
    pub(super) act: Act,
}

/// Ends the work of a caller that has gone away.
pub(super) struct CancelOnDrop(pub(super) Progress);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What has come of work, in words and as the result that the same work has in the background.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Told<T> {
    #[schema(example = "The work goes on in the background")]
    pub(super) message: &'static str,
    #[serde(flatten)]
    pub(super) result: T,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OperationStarted)]
pub(super) struct StartedView {
    operation_id: OperationId,
}

impl Job<'_> {
    /// Does the work while the caller waits. It is recorded if it has changed something.
    pub(super) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&Volume, &Progress) -> Result<T, FileError> + Send + 'static,
        has_changed: impl FnOnce(&T) -> bool + Send + 'static,
    ) -> Result<T, ApiError> {
        let guard = CancelOnDrop(Progress::default());
        let (store, work) = (self.state.store.clone(), self.held(work));
        let work = move |volume: &Volume, progress: &Progress| {
            let done = work(volume, progress)?;
            if has_changed(&done) {
                store.record_done_blocking(self.act);
            }
            Ok(done)
        };
        let run = self.state.files.run_long(self.volume.row.id, guard.0.clone(), work);
        Ok(run.await?)
    }

    /// Does the work in the background; what comes of it is the operation's result.
    pub(super) async fn start<T: Serialize + Send + 'static>(
        self,
        work: impl FnOnce(&Volume, &Progress) -> Result<T, FileError> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let (files, id, work) = (self.state.files.clone(), self.volume.row.id, self.held(work));
        let work = move |progress: Progress| async move {
            let result = files.run_long(id, progress.clone(), work).await?;
            let result = serde_json::to_value(result);
            progress.set_result(result.expect("invariant: a struct of plain values is JSON"));
            Ok(())
        };
        let started = self.state.operations.start(self.act, self.kind, id, work);
        Ok(started_answer(started.await?))
    }

    fn held<T>(
        &self,
        work: impl FnOnce(&Volume, &Progress) -> Result<T, FileError> + Send + 'static,
    ) -> impl FnOnce(&Volume, &Progress) -> Result<T, FileError> + Send + 'static {
        let limit_bytes = match self.kind {
            OperationKind::Delete | OperationKind::Snapshot | OperationKind::Restore => None,
            OperationKind::Copy
            | OperationKind::Compress
            | OperationKind::Decompress
            | OperationKind::Pull => self.volume.limit_bytes(),
        };
        move |volume, progress| {
            volume.hold_to(limit_bytes, 0, progress)?;
            work(volume, progress)
        }
    }
}

/// The answer to work that goes on.
pub(super) fn started_answer(operation_id: OperationId) -> Response {
    let result = StartedView { operation_id };
    let view = Told { message: "The work goes on in the background", result };
    (StatusCode::ACCEPTED, JsonAnswer(view)).into_response()
}

/// Which operations, and how many at once.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only those in this state.
    state: Option<OperationState>,
    /// Only those of this kind.
    kind: Option<OperationKind>,
    /// Only those on this volume.
    volume: Option<VolumeId>,
    /// So many at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

impl ListQuery {
    fn has(&self, seen: &OperationView) -> bool {
        self.state.is_none_or(|state| state == seen.state)
            && self.kind.is_none_or(|kind| kind == seen.kind)
            && self.volume.is_none_or(|volume| volume == seen.volume)
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OperationList)]
struct ListView {
    /// The newest first.
    operations: Vec<OperationView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<OperationId>,
}

refusals!(ListRefusals: ; 400: "invalid_cursor");

/// Lists the work that goes on in volumes that the token may see, and what has ended in the last day.
#[utoipa::path(
    get, path = "/operations", tag = "operations",
    params(ListQuery),
    responses((status = 200, description = "A page of it", body = ListView), ListRefusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let after = paging::cursor(query.cursor.as_deref(), OperationId::parse)?;
    let mut operations = state.operations.list();
    operations.retain(|seen| query.has(seen) && after.is_none_or(|after| seen.id < after));
    let mut volumes: Vec<VolumeId> = operations.iter().map(|seen| seen.volume).collect();
    volumes.sort_unstable();
    volumes.dedup();
    let look = state.store.read("list operations", move |rx| {
        volumes.into_iter().map(|id| Ok((id, rx.containers_of_volume(id)?))).collect()
    });
    let users: std::collections::HashMap<_, _> = look.await?;
    operations.retain(|seen| {
        let used_by = users.get(&seen.volume).map_or(&[][..], Vec::as_slice);
        allows(auth.principal(), may_see(seen.kind), Resource::Volume { used_by })
    });
    let (operations, next_cursor) = paging::page(operations, limit, |last| last.id);
    Ok(JsonAnswer(ListView { operations, next_cursor }))
}

refusals!(NamedRefusals: ; 404: "not_found");

/// Shows how far some work has come.
#[utoipa::path(
    get, path = "/operations/{id}", tag = "operations",
    params(("id" = OperationId, Path)),
    responses((status = 200, description = "As it stands", body = OperationView), NamedRefusals),
)]
async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<JsonAnswer<OperationView>, ApiError> {
    find(&auth, &state, &id, may_see).await.map(JsonAnswer)
}

/// How long a cancelled operation may take to clean up before the answer goes out without its end.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Ends some work. It leaves nothing half made behind.
#[utoipa::path(
    delete, path = "/operations/{id}", tag = "operations",
    params(("id" = OperationId, Path)),
    responses(
        (status = 200, description = "It has ended", body = OperationView),
        (status = 202, description = "It ends; it still cleans up", body = OperationView),
        NamedRefusals,
    ),
)]
async fn cancel(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<(StatusCode, JsonAnswer<OperationView>), ApiError> {
    let seen = find(&auth, &state, &id, may_cancel).await?;
    let mut changes = state.operations.subscribe();
    let mut seen = state.operations.cancel(seen.id).unwrap_or(seen);
    if seen.state == OperationState::Running {
        let act = FileLog::new(&auth, &state, seen.volume).act(Action::OperationCancel);
        let (act, store) = (act.with("operation_id", seen.id.to_string()), state.store.clone());
        // It is cancelled by now, so the entry is written whether anybody waits for that or not.
        state.operations.see_to(async move { store.record_done(act).await }).await;
    }
    let ended = async {
        while seen.state == OperationState::Running {
            match changes.recv().await {
                Ok(change) if change.id == seen.id => seen = change,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => match state.operations.get(seen.id) {
                    Some(now) => seen = now,
                    None => return,
                },
                Err(RecvError::Closed) => return,
            }
        }
    };
    let is_over = tokio::time::timeout(CLEAN_UP, ended).await.is_ok();
    let status = if is_over { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, JsonAnswer(seen)))
}

/// Who may see an operation: whoever may see what it works on.
pub(in crate::api) fn may_see(kind: OperationKind) -> Permission {
    match kind {
        OperationKind::Snapshot | OperationKind::Restore => Permission::SnapshotsRead,
        OperationKind::Copy
        | OperationKind::Compress
        | OperationKind::Decompress
        | OperationKind::Delete
        | OperationKind::Pull => Permission::FilesRead,
    }
}

fn may_cancel(kind: OperationKind) -> Permission {
    match may_see(kind) {
        Permission::SnapshotsRead => Permission::SnapshotsWrite,
        _ => Permission::FilesWrite,
    }
}

async fn find(
    auth: &Auth,
    state: &AppState,
    id: &str,
    wanted: fn(OperationKind) -> Permission,
) -> Result<OperationView, ApiError> {
    let found = OperationId::parse(id).and_then(|id| state.operations.get(id));
    // The answer for a narrowed token is the same whether there is such an operation or not.
    let used_by = match &found {
        Some(seen) => {
            let volume = seen.volume;
            state
                .store
                .read("look up an operation", move |rx| rx.containers_of_volume(volume))
                .await?
        }
        None => Vec::new(),
    };
    let permission = match &found {
        Some(seen) => wanted(seen.kind),
        None => {
            let either = [OperationKind::Copy, OperationKind::Snapshot].map(wanted);
            let has = |one: &Permission| permits(auth.principal(), *one);
            either.into_iter().find(has).unwrap_or(Permission::FilesRead)
        }
    };
    auth.require_on(permission, Resource::Volume { used_by: &used_by })?;
    found.ok_or_else(|| ApiError::not_found("there is no such operation"))
}
