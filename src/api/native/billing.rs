//! What containers have used, step by step and by the month, and what that comes to.
//!
//! Read from the store, after what was measured in the last seconds has been put there. Costs are decimal
//! numbers as texts, exact to the millionth; quantities are rounded for show alone.

use std::collections::BTreeMap;

use axum::Json as JsonAnswer;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::paging;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::{Decimal, UsageStep};
use crate::api::state::AppState;
use crate::domain::access::{Permission, Resource};
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::domain::usage::Usage;
use crate::domain::usage::calendar::{DAY_S, Step, month, month_name};
use crate::domain::usage::cost::{Money, Rates};
use crate::store::usage::Period;

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(containers)).routes(routes!(usage))
}

/// The bytes of a GB here.
pub(super) const GB: u64 = 1 << 30;
const MS_PER_HOUR: f64 = 3.6e6;
const CPU_US_PER_HOUR: f64 = 3.6e9;
const KIB_S_PER_GB_HOUR: f64 = 3600.0 * 1_048_576.0;

/// What was used, and what it comes to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Usage)]
pub(super) struct UsageView {
    /// Hours in which the workload ran.
    #[schema(minimum = 0, example = 12.5)]
    duration_hours: f64,
    /// Hours of one processor core.
    #[schema(minimum = 0, example = 3.25)]
    vcpu_hours: f64,
    /// Memory in use, in GB-hours.
    #[schema(minimum = 0, example = 6.1)]
    memory_gb_hours: f64,
    /// The limit on memory while it ran, in GB-hours; without a limit what it used.
    #[schema(minimum = 0, example = 12.5)]
    memory_reserved_gb_hours: f64,
    /// What the volume held, in GB-hours, also while nothing ran.
    #[schema(minimum = 0, example = 24.0)]
    storage_gb_hours: f64,
    /// Traffic that left the container, in GB.
    #[schema(minimum = 0, example = 0.5)]
    egress_gb: f64,
    /// Traffic that reached the container, in GB.
    #[schema(minimum = 0, example = 0.25)]
    ingress_gb: f64,
    estimated_cost: CostView,
}

/// Decimal numbers with six decimals, in the currency of the rates.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Cost)]
pub(super) struct CostView {
    #[schema(value_type = Decimal)]
    memory: Money,
    #[schema(value_type = Decimal)]
    vcpu: Money,
    #[schema(value_type = Decimal)]
    storage: Money,
    #[schema(value_type = Decimal)]
    egress: Money,
    /// Their sum.
    #[schema(value_type = Decimal)]
    total: Money,
}

impl UsageView {
    pub(super) fn new(usage: &Usage, rates: &Rates) -> Self {
        let cost = rates.cost(usage);
        let share = |quantity: u64, unit: f64| (quantity as f64 / unit * 1e9).round() / 1e9;
        Self {
            duration_hours: share(usage.run_ms, MS_PER_HOUR),
            vcpu_hours: share(usage.cpu_us, CPU_US_PER_HOUR),
            memory_gb_hours: share(usage.memory_kib_s, KIB_S_PER_GB_HOUR),
            memory_reserved_gb_hours: share(usage.reserved_kib_s, KIB_S_PER_GB_HOUR),
            storage_gb_hours: share(usage.storage_kib_s, KIB_S_PER_GB_HOUR),
            egress_gb: share(usage.egress_bytes, GB as f64),
            ingress_gb: share(usage.ingress_bytes, GB as f64),
            estimated_cost: CostView {
                memory: cost.memory,
                vcpu: cost.vcpu,
                storage: cost.storage,
                egress: cost.egress,
                total: cost.total(),
            },
        }
    }
}

/// Which time, and how much of it at once.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    /// Unix seconds; the step that it lies in is the first.
    from: Option<i64>,
    /// Unix seconds, not included; now if left out.
    to: Option<i64>,
    /// So many at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// What a container has used, step by step.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageList)]
pub(super) struct UsageListView {
    internal_id: ContainerId,
    #[schema(example = "EUR")]
    currency: String,
    /// What was asked for, rounded to whole steps.
    from: UnixSeconds,
    to: UnixSeconds,
    /// Those in which there was something, in their order.
    buckets: Vec<BucketView>,
    /// Of all of the time asked for, whatever the page.
    total: UsageView,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// An hour, a day or a month of UTC.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageBucket)]
pub(super) struct BucketView {
    /// When it began.
    at: UnixSeconds,
    #[serde(flatten)]
    usage: UsageView,
}

refusals!(UsageRefusals: ; 400: "invalid_cursor"; 404: "not_found");
refusals!(ListRefusals: ; 400: "invalid_cursor");

/// Shows what a container has used, by hours, days or months of UTC.
///
/// Also of one that was deleted; but to a token that names containers only from the hour (of days and months, the day)
/// on in which the present one was made: an earlier container of the id was another's. `from` and `to` are rounded to whole steps; without them it is the last day of hours, the
/// last month of days or the last year of months. Steps in which there was nothing are left out.
#[utoipa::path(
    get, path = "/billing/usage/{id}/{step}", tag = "billing",
    params(
        ("id" = ContainerId, Path, description = "The container's `internal_id`"),
        ("step" = UsageStep, Path, description = "How finely"),
        UsageQuery,
    ),
    responses((status = 200, description = "A page of it, and the total of all", body = UsageListView), UsageRefusals),
)]
async fn usage(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, step)): Path<(ContainerId, Step)>,
    Query(query): Query<UsageQuery>,
) -> Result<JsonAnswer<UsageListView>, ApiError> {
    auth.require_on(Permission::ContainersRead, Resource::Container(&id))?;
    let limit = paging::limit(query.limit)?;
    let mut period = period_of(step, &query, UnixSeconds::now())?;
    if auth.named_containers().is_some() {
        // An earlier container of this id was another's.
        let handle = state.supervisor.get(&id).ok_or_else(ApiError::no_such_container)?;
        let made_in = step.min(Step::Day).floor(handle.snapshot().created_at);
        period.from = period.from.max(made_in.min(period.to));
    }
    let cursor = paging::cursor(query.cursor.as_deref(), |text| text.parse().ok())?;
    state.metering.freshen().await;
    let first = UnixSeconds(cursor.unwrap_or(period.from.0).max(period.from.0));
    let asked = id.clone();
    let read = state.store.read("read a container's usage", move |rx| {
        // One more than asked for says that there is another page.
        let rest = Period { from: first, ..period };
        let found = rx.usage_of(&asked, step, rest, limit + 1)?;
        Ok((found, rx.usage_in(&asked, step, period)?, rx.has_usage(&asked)?))
    });
    let (mut found, total, is_known) = read.await?;
    if !is_known && state.supervisor.get(&id).is_none() {
        return Err(ApiError::no_such_container());
    }
    let next_cursor = found.get(limit).map(|(at, _)| at.0.to_string());
    found.truncate(limit);
    let config = state.config.current();
    let rates = &config.billing.rates;
    let bucket =
        |(at, usage): (UnixSeconds, Usage)| BucketView { at, usage: UsageView::new(&usage, rates) };
    Ok(JsonAnswer(UsageListView {
        internal_id: id,
        currency: rates.currency.clone(),
        from: period.from,
        to: period.to,
        buckets: found.into_iter().map(bucket).collect(),
        total: UsageView::new(&total, rates),
        next_cursor,
    }))
}

/// What is asked for, in whole steps: a day of hours, a month of days or a year of months where it does not
/// say.
fn period_of(step: Step, query: &UsageQuery, now: UnixSeconds) -> Result<Period, ApiError> {
    let to = query.to.map_or_else(|| step.next(now), |to| step.ceil(UnixSeconds(to)));
    let days = match step {
        Step::Hour => 1,
        Step::Day => 30,
        Step::Month => 365,
    };
    let from = query.from.unwrap_or_else(|| to.0.saturating_sub(days * DAY_S));
    let from = step.floor(UnixSeconds(from));
    if from > to {
        return Err(ApiError::field("?to", "must not be before ?from"));
    }
    Ok(Period { from, to })
}

/// Which month, and how much of it at once.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ContainersQuery {
    /// `2026-11`; the present one if left out.
    #[param(pattern = "^(19[7-9][0-9]|[2-8][0-9]{3})-(0[1-9]|1[0-2])$", example = "2026-11")]
    month: Option<String>,
    /// So many at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// What containers have used in a month.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContainerUsageList)]
pub(super) struct ContainersView {
    #[schema(example = "2026-11")]
    month: String,
    from: UnixSeconds,
    to: UnixSeconds,
    #[schema(example = "EUR")]
    currency: String,
    /// By their ids.
    containers: Vec<ContainerUsageView>,
    /// Of all that the caller may see, whatever the page.
    total: UsageView,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<ContainerId>,
}

/// One container's month.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContainerUsage)]
pub(super) struct ContainerUsageView {
    internal_id: ContainerId,
    /// It was deleted since.
    deleted: bool,
    #[serde(flatten)]
    usage: UsageView,
}

/// Shows what each container has used in a month, and what that comes to.
///
/// Also of those that were deleted; but to a token that names containers only of those that there are, from the day
/// on that they were made.
#[utoipa::path(
    get, path = "/billing/containers", tag = "billing",
    params(ContainersQuery),
    responses((status = 200, description = "A page of them, and the total of all", body = ContainersView), ListRefusals),
)]
async fn containers(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ContainersQuery>,
) -> Result<JsonAnswer<ContainersView>, ApiError> {
    auth.require_for_list(Permission::ContainersRead)?;
    let limit = paging::limit(query.limit)?;
    let from = match &query.month {
        None => Step::Month.floor(UnixSeconds::now()),
        Some(text) => month(text)
            .ok_or_else(|| ApiError::field("?month", "must be a month, such as 2026-11"))?,
    };
    let read_id = |text: &str| ContainerId::parse(text).ok();
    let after = paging::cursor(query.cursor.as_deref(), read_id)?;
    state.metering.freshen().await;
    let period = Period { from, to: Step::Month.next(from) };
    // An earlier container of the same id was another's.
    let made = |id: &ContainerId| {
        let handle = state.supervisor.get(id)?;
        Some((id.clone(), Step::Day.floor(handle.snapshot().created_at)))
    };
    let named: Option<BTreeMap<_, _>> =
        auth.named_containers().map(|ids| ids.iter().filter_map(made).collect());
    let read = state.store.read("read a month's usage", move |rx| {
        let mut found = rx.usage_by_container(period)?;
        let Some(made_on) = named else { return Ok(found) };
        found.retain(|(id, _)| made_on.contains_key(id));
        for (id, usage) in &mut found {
            let from = made_on[id].max(period.from);
            *usage = rx.usage_in(id, Step::Day, Period { from, ..period })?;
        }
        found.retain(|(_, usage)| *usage != Usage::default());
        Ok(found)
    });
    let mut found = read.await?;
    found.retain(|(id, _)| auth.may(Permission::ContainersRead, id));
    let total = found.iter().fold(Usage::default(), |sum, (_, usage)| sum.plus(*usage));
    let rest = found.into_iter().filter(|(id, _)| after.as_ref().is_none_or(|after| id > after));
    let (shown, next_cursor) = paging::page(rest, limit, |(id, _)| id.clone());
    let config = state.config.current();
    let rates = &config.billing.rates;
    let view = |(internal_id, usage): (ContainerId, Usage)| ContainerUsageView {
        deleted: state.supervisor.get(&internal_id).is_none(),
        internal_id,
        usage: UsageView::new(&usage, rates),
    };
    Ok(JsonAnswer(ContainersView {
        month: month_name(from),
        from: period.from,
        to: period.to,
        currency: rates.currency.clone(),
        containers: shown.into_iter().map(view).collect(),
        total: UsageView::new(&total, rates),
        next_cursor,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(step: Step, from: Option<i64>, to: Option<i64>) -> Option<(i64, i64)> {
        // 2026-11-22T11:32:32Z.
        let now = UnixSeconds(1_795_347_152);
        let query = UsageQuery { from, to, limit: None, cursor: None };
        period_of(step, &query, now).ok().map(|period| (period.from.0, period.to.0))
    }

    #[test]
    fn a_time_is_rounded_to_whole_steps() {
        let noon = 1_795_348_800;
        assert_eq!(asked(Step::Hour, None, None), Some((noon - DAY_S, noon)));
        assert_eq!(asked(Step::Hour, Some(noon - 1), Some(noon)), Some((noon - 3600, noon)));
        let (from, to) = asked(Step::Month, None, None).unwrap();
        assert_eq!((month_name(UnixSeconds(from)), month_name(UnixSeconds(to))), {
            ("2025-12".to_owned(), "2026-12".to_owned())
        });
        assert_eq!(asked(Step::Day, Some(i64::MIN), Some(i64::MIN)), Some((0, 0)));
        assert!(asked(Step::Day, Some(i64::MAX), Some(i64::MAX)).is_some());
        assert_eq!(asked(Step::Day, Some(noon + 5 * DAY_S), Some(noon)), None);
    }
}
