//! What a container may use, what it does use, and what it used in the last hour.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::container_body::LimitsBody;
use super::containers::{TrialQuery, is_up};
use super::dry_run::{self, DryRunView};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query, Whole};
use crate::api::openapi::Routes;
use crate::api::openapi::params::ContainerPath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::{ContainerState, either};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::spec::{Limits, Problem};
use crate::domain::stats::Sample;
use crate::domain::stats::history::{KEPT_S, Point, Range, STEP_S};
use crate::domain::units::UnixSeconds;
use crate::supervisor::{ContainerHandle, Refusal, Request};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(show, change)).routes(routes!(stats))
}

refusals!(ReadRefusals: CONTAINER);

/// Shows what a container may use.
#[utoipa::path(
    get, path = "/containers/{id}/resources", tag = "resources",
    params(ContainerPath),
    responses((status = 200, description = "Its limits", body = Limits), ReadRefusals),
)]
async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<axum::Json<Limits>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersRead)?;
    Ok(axum::Json(handle.snapshot().spec.limits))
}

/// Limits that were changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LimitsChanged)]
pub(super) struct ChangedView {
    #[serde(flatten)]
    limits: Limits,
    /// What the running workload goes on having until its next start: the engine can lift no limit.
    #[schema(example = json!([]))]
    waits_for_restart: Vec<&'static str>,
    /// What the engine could not give, in its words.
    #[schema(example = json!([]))]
    warnings: Vec<String>,
}

either!(ChangedOrTrial, "LimitsChangedOrTrial": ChangedView, DryRunView<'static>);

refusals!(ChangeRefusals: CONTAINER, WISH, STATE, ENGINE);

/// Changes what a container may use, also while it runs.
///
/// What is left out stays, `null` lifts a limit. It answers when the container engine has taken them.
#[utoipa::path(
    post, path = "/containers/{id}/resources", tag = "resources",
    params(ContainerPath, TrialQuery), request_body = LimitsBody,
    responses(
        (status = 200, description = "The limits as they are now; or what would come of it (`dry_run`)", body = ChangedOrTrial),
        ChangeRefusals,
    ),
)]
async fn change(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<TrialQuery>,
    body: Whole,
) -> Result<Response, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    if query.dry_run {
        return dry_run::resources(&handle, &body).await;
    }
    let before = handle.snapshot();
    let wanted = body.json::<LimitsBody>()?.read();
    let accepted = handle.send(Request::Resources(wanted)).await.map_err(with_own_names)?;
    let limits = accepted.decided.spec.limits;
    let waits_for_restart =
        if is_up(&before) { limits.lifted_since(&before.spec.limits) } else { Vec::new() };
    let view = ChangedView { limits, waits_for_restart, warnings: accepted.warnings };
    Ok(axum::Json(view).into_response())
}

/// Here the limits are the body itself, not a field of it.
pub(super) fn with_own_names(refusal: Refusal) -> Refusal {
    let Refusal::Invalid(problems) = refusal else { return refusal };
    let renamed = |problem: Problem| match problem.field.strip_prefix("limits.") {
        Some(name) => Problem::new(name, problem.message),
        None => problem,
    };
    Refusal::Invalid(problems.into_iter().map(renamed).collect())
}

/// The present, or a time of the past.
#[derive(ToSchema)]
#[schema(as = StatsAnswer)]
#[serde(untagged)]
#[expect(dead_code, reason = "it says what `stats` answers")]
enum StatsAnswer {
    Present(StatsView),
    Past(PastView),
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Stats)]
struct StatsView {
    #[schema(value_type = ContainerState)]
    state: &'static str,
    #[serde(flatten)]
    sample: Sample,
}

/// The past is asked for with any of them: seconds since 1970, and how many of them make one point.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct StatsQuery {
    /// Where the past begins, not included; an hour is kept.
    #[param(value_type = Option<UnixSeconds>)]
    from: Option<i64>,
    /// Where it ends; now, if it is left out.
    #[param(value_type = Option<UnixSeconds>)]
    to: Option<i64>,
    /// Seconds of each point, a multiple of 5; 5 if it is left out.
    #[param(minimum = 5, maximum = 3600, example = 60)]
    step: Option<u32>,
}

/// The past, as it is answered: what was asked for, cut to what is kept.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PastStats)]
struct PastView {
    from: UnixSeconds,
    to: UnixSeconds,
    #[schema(example = 60)]
    step: u32,
    samples: Vec<Point>,
}

/// Shows what a container uses, or used in the last hour.
///
/// Without parameters the last sample, zeros while nothing runs; with any of them the samples of that time.
#[utoipa::path(
    get, path = "/containers/{id}/stats", tag = "resources",
    params(ContainerPath, StatsQuery),
    responses((status = 200, description = "The present, or a time", body = StatsAnswer), ReadRefusals),
)]
async fn stats(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<StatsQuery>,
) -> Result<Response, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersRead)?;
    if matches!(query, StatsQuery { from: None, to: None, step: None }) {
        return Ok(axum::Json(present(&state, &handle).await).into_response());
    }
    let Range { from, to, step_s } = range_of(&query, UnixSeconds::now())?;
    let samples = handle.past_stats(Range { from, to, step_s });
    Ok(axum::Json(PastView { from, to, step: step_s, samples }).into_response())
}

async fn present(state: &AppState, handle: &ContainerHandle) -> StatsView {
    let mut sample = handle.last_stats().unwrap_or_default();
    let snapshot = handle.snapshot();
    if sample.disk_usage.is_none() {
        // Counted along only while a console is watched.
        sample.disk_usage = state.files.used_bytes(snapshot.spec.volume_id).await;
    }
    StatsView { state: snapshot.state_name(), sample }
}

fn range_of(query: &StatsQuery, UnixSeconds(now): UnixSeconds) -> Result<Range, ApiError> {
    let step_s = query.step.unwrap_or(STEP_S);
    if step_s == 0 || !step_s.is_multiple_of(STEP_S) || step_s > KEPT_S {
        let message = format!("must be a multiple of {STEP_S}, of at most {KEPT_S}");
        return Err(ApiError::field("?step", message));
    }
    let oldest = now - i64::from(KEPT_S);
    let to = query.to.map_or(now, |to| to.clamp(oldest, now));
    let from = query.from.map_or(oldest, |from| from.clamp(oldest, to));
    if query.from.is_some_and(|from| query.to.is_some_and(|to| to < from)) {
        return Err(ApiError::field("?to", "must not be before ?from".to_owned()));
    }
    Ok(Range { from: UnixSeconds(from), to: UnixSeconds(to), step_s })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

    fn asked(from: Option<i64>, to: Option<i64>, step: Option<u32>) -> Option<(i64, i64, u32)> {
        let range = range_of(&StatsQuery { from, to, step }, NOW).ok()?;
        Some((range.from.0 - NOW.0, range.to.0 - NOW.0, range.step_s))
    }

    #[test]
    fn a_time_is_cut_to_the_hour_that_is_kept() {
        assert_eq!(asked(None, None, Some(60)), Some((-3600, 0, 60)));
        assert_eq!(asked(Some(0), None, None), Some((-3600, 0, 5)));
        assert_eq!(asked(Some(NOW.0 - 60), Some(NOW.0 - 30), None), Some((-60, -30, 5)));
        assert_eq!(asked(Some(i64::MIN), Some(i64::MIN), None), Some((-3600, -3600, 5)));
        assert_eq!(asked(Some(i64::MAX), None, None), Some((0, 0, 5)), "nothing of the future");
        assert_eq!(asked(Some(i64::MAX), Some(i64::MAX), None), Some((0, 0, 5)));
    }

    #[test]
    fn a_step_is_a_multiple_of_what_is_kept_and_time_does_not_run_backwards() {
        for step in [0, 1, 7, 3605, u32::MAX] {
            assert_eq!(asked(None, None, Some(step)), None, "{step}");
        }
        assert_eq!(asked(Some(NOW.0), Some(NOW.0 - 1), None), None);
    }
}
