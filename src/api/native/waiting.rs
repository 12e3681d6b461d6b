//! `?wait=30s`: a wish is answered when it has happened, or can't any more.
//!
//! What is waited for is decided before; a caller that goes away, or whose time is over, cancels nothing. The
//! time over is 202, what can't come any more a 409 with the reason. An `Idempotency-Key` keeps such a refusal:
//! the wish was carried out, and is not to be carried out again. Of a wish whose end is not known yet it keeps
//! what is waited for, as [`Awaited`], and watches on.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::container_view::ContainerView;
use crate::api::error::ApiError;
use crate::api::idempotency::Fate;
use crate::api::layers::WAIT_MAX;
use crate::api::openapi::schemas::{ContainerState, EndedBy};
use crate::api::state::AppState;
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::{Answer, Command};
use crate::domain::units::{Span, UnixSeconds};
use crate::supervisor::{Accepted, ContainerHandle, Goal, Snapshot, Unreached, Waited};

/// How a wish is to be answered.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WishQuery {
    /// Answer when it has happened, but not later than this: `30s`, at most `10m`.
    wait: Option<Span>,
    /// Say what would come of it, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub(super) dry_run: bool,
}

impl WishQuery {
    pub(super) fn patience(&self) -> Result<Option<Duration>, ApiError> {
        match self.wait {
            Some(Span(wait)) if wait > WAIT_MAX => {
                Err(ApiError::field("?wait", format!("must be at most {}", Span(WAIT_MAX))))
            }
            wait => Ok(wait.map(|Span(wait)| wait)),
        }
    }
}

/// A wish that was taken on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Accepted)]
pub(super) struct WishView<'a> {
    #[schema(value_type = String, example = "Container is starting")]
    pub(super) message: Cow<'static, str>,
    pub(super) internal_id: &'a ContainerId,
    #[schema(value_type = ContainerState, example = "starting")]
    pub(super) state: &'static str,
    /// The container's snapshot of this generation, or a later one, contains the decision.
    #[schema(example = 12)]
    pub(super) generation: u64,
    /// With `?wait`: whether it has happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) done: Option<bool>,
    /// Of a stop that was waited for: which step of it ended the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = EndedBy, required = false)]
    pub(super) ended_by: Option<&'static str>,
    /// As it is once it has happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ContainerView, required = false)]
    pub(super) container: Option<ContainerView<'a>>,
}

/// What a 202 leaves open, to be watched on. It lies in the answer's extensions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::api) struct Awaited {
    id: ContainerId,
    /// So that a later container of this id is not taken for it.
    created_at: UnixSeconds,
    wish: Wish,
    goal: Goal,
    /// The generation of the decision, in the process that took it. Another process has seen nothing of what
    /// came in between, wishes of others among it.
    #[serde(skip)]
    decided: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Wish {
    Creation,
    Command(Command),
}

impl Awaited {
    pub(super) fn creation(seen: &Snapshot, goal: Goal) -> Self {
        Self::of_wish(seen, Wish::Creation, goal, seen.generation)
    }

    fn of_wish(seen: &Snapshot, wish: Wish, goal: Goal, decided: u64) -> Self {
        let (id, created_at) = (seen.id.clone(), seen.created_at);
        Self { id, created_at, wish, goal, decided: Some(decided) }
    }

    /// Marks an answer that leaves it open.
    pub(super) fn of(self, mut response: Response) -> Response {
        response.extensions_mut().insert(self);
        response
    }

    /// What has come of it, or comes of it within this time. An answer that leaves it open again is marked.
    pub(in crate::api) async fn look(&self, state: &AppState, patience: Duration) -> Response {
        let handle = self.container(state);
        let waited = match &handle {
            // Whatever another process publishes came after the decision.
            Some(handle) => handle.outcome(&self.goal, self.decided.unwrap_or(0), patience).await,
            None => Waited::Unreached(Unreached::Deleting),
        };
        match (waited, handle) {
            (Waited::Unreached(why), Some(handle)) if self.decided.is_none() => {
                // What it did not lead to may be what somebody has wished since.
                let state = handle.snapshot().state_name();
                let why = match why {
                    Unreached::RebindFailed(_) => Unreached::Superseded(state),
                    why => why,
                };
                Fate::Open.of(ApiError::from(why).into_response())
            }
            (waited, _) => self.tell(waited),
        }
    }

    /// What to say to who will not wait any longer; `None` where its container is gone.
    pub(in crate::api) fn late(&self, state: &AppState) -> Option<Response> {
        Some(self.tell(Waited::TimedOut(self.container(state)?.snapshot())))
    }

    fn container(&self, state: &AppState) -> Option<ContainerHandle> {
        let same = |handle: &ContainerHandle| handle.snapshot().created_at == self.created_at;
        state.supervisor.get(&self.id).filter(same)
    }

    fn tell(&self, waited: Waited) -> Response {
        match self.wish {
            Wish::Creation => super::containers::installed(&self.id, waited, &self.goal),
            Wish::Command(command) => {
                tell(command, &self.goal, waited, taken_on(command), self.decided)
            }
        }
    }
}

/// The answer to a wish that was taken on: at once, or after what came of it.
pub(super) async fn answer(
    handle: &ContainerHandle,
    command: Command,
    accepted: &Accepted,
    patience: Option<Duration>,
) -> Response {
    let goal = Goal::of(command, &accepted.decided);
    let taken_on = match accepted.answer {
        Answer::Accepted => taken_on(command),
        Answer::Satisfied => satisfied(command),
    };
    let generation = accepted.decided.generation;
    let Some(patience) = patience else {
        let now = handle.snapshot();
        let view = view(&now, taken_on.into(), generation);
        return open(command, goal, &now, view);
    };
    let waited = handle.outcome(&goal, generation, patience).await;
    tell(command, &goal, waited, taken_on, Some(generation))
}

fn open(command: Command, goal: Goal, seen: &Snapshot, view: WishView<'_>) -> Response {
    let awaited = Awaited::of_wish(seen, Wish::Command(command), goal, view.generation);
    awaited.of((StatusCode::ACCEPTED, axum::Json(view)).into_response())
}

/// What came of a wish that was waited for. Without the decision's generation that of what was seen counts.
fn tell(
    command: Command,
    goal: &Goal,
    waited: Waited,
    taken_on: &'static str,
    decided: Option<u64>,
) -> Response {
    match waited {
        Waited::Reached(seen) => {
            let generation = decided.unwrap_or(seen.generation);
            let view = WishView {
                done: Some(true),
                ended_by: ended_by(goal, &seen),
                container: Some(ContainerView::from(&*seen)),
                ..view(&seen, happened(command, &seen), generation)
            };
            (StatusCode::OK, axum::Json(view)).into_response()
        }
        Waited::TimedOut(seen) => {
            let generation = decided.unwrap_or(seen.generation);
            let view = WishView { done: Some(false), ..view(&seen, late(taken_on), generation) };
            open(command, goal.clone(), &seen, view)
        }
        Waited::Unreached(why) => Fate::Stands.of(ApiError::from(why).into_response()),
        Waited::Stopping => stopping(),
        Waited::Abandoned => abandoned(),
    }
}

fn view<'a>(seen: &'a Snapshot, message: Cow<'static, str>, generation: u64) -> WishView<'a> {
    WishView {
        message,
        internal_id: &seen.id,
        state: seen.state_name(),
        generation,
        done: None,
        ended_by: None,
        container: None,
    }
}

/// What was taken on goes on, and is found again by the next lightd.
pub(super) fn stopping() -> Response {
    let message = "lightd is stopping; what was asked for stands";
    Fate::Open.of(ApiError::unavailable("stopping", message).into_response())
}

/// What was taken on is stored, and taken up by the next lightd; this one has lost whoever would do it.
pub(super) fn abandoned() -> Response {
    Fate::Open.of(ApiError::internal("the task that owns the container is gone").into_response())
}

pub(super) fn late(taken_on: &'static str) -> Cow<'static, str> {
    format!("{taken_on}; that takes longer than was to be waited").into()
}

fn ended_by(goal: &Goal, seen: &Snapshot) -> Option<&'static str> {
    let Goal::Down(Some(run)) = goal else { return None };
    let last = seen.last_exit.as_ref().filter(|last| last.run >= *run)?;
    Some(last.ended_by.as_str())
}

/// What to say when a wish was taken on.
fn taken_on(command: Command) -> &'static str {
    match command {
        Command::Start => "Container is starting",
        Command::Stop => "Container is stopping",
        Command::Restart => "Container is restarting",
        Command::Kill => "Container is being killed",
        Command::Pause => "Container is being paused",
        Command::Resume => "Container is being resumed",
        Command::Suspend => "Container is being suspended",
        Command::Unsuspend => "Container is no longer suspended",
        Command::Reinstall => "Container is being reinstalled",
        Command::Rebind => "Container's ports are being changed",
        Command::Freeze => "Container stands still",
        Command::Thaw => "Container goes on",
        Command::Delete => "Container is being deleted",
    }
}

/// The same, when it was so already.
fn satisfied(command: Command) -> &'static str {
    match command {
        Command::Start | Command::Resume => "Container is running already",
        Command::Stop | Command::Kill => "Container is stopped already",
        Command::Restart => "Container is restarting already",
        Command::Pause => "Container is paused already",
        Command::Suspend => "Container is suspended already",
        Command::Unsuspend => "Container is not suspended",
        Command::Reinstall => "Container is installing already",
        Command::Rebind => "Nothing to change",
        Command::Freeze => "Container stands still already",
        Command::Thaw => "Container goes on already",
        Command::Delete => "Container is being deleted already",
    }
}

/// What to say when it has happened.
fn happened(command: Command, seen: &Snapshot) -> Cow<'static, str> {
    let is_down = seen.state_name() == "offline";
    let text = match command {
        Command::Start | Command::Restart if is_down => {
            "Container was started, and has ended since"
        }
        Command::Start | Command::Restart | Command::Resume | Command::Thaw => {
            "Container is running"
        }
        Command::Stop | Command::Kill => "Container is stopped",
        Command::Pause | Command::Freeze => "Container is paused",
        Command::Suspend => "Container is suspended",
        Command::Unsuspend => "Container is no longer suspended",
        Command::Reinstall => "Container is installed",
        Command::Rebind => "Container's ports are changed",
        Command::Delete => "Container deleted",
    };
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_longer_than_ten_minutes() {
        let asked = |text: &str| WishQuery { wait: Span::parse(text).ok(), dry_run: false };
        assert_eq!(asked("10m").patience().unwrap(), Some(WAIT_MAX));
        assert_eq!(asked("0s").patience().unwrap(), Some(Duration::ZERO));
        assert!(asked("601s").patience().is_err());
        assert_eq!(asked("soon").patience().unwrap(), None);
    }
}
