//! Who did what: the rows of the audit log, for the node's operator and for whoever may see a container.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Query;
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::IpAddress;
use crate::api::state::AppState;
use crate::domain::access::{Permission, Resource, TOKEN_PREFIX, TokenId, allows, permits};
use crate::domain::audit::{Action, Way, Who};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::units::UnixSeconds;
use crate::store::audit::{AuditFilter, AuditPage, AuditRow, By};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(list))
}

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// A container's id, also of one that is gone.
    container: Option<ContainerId>,
    volume: Option<VolumeId>,
    /// `node`, `anonymous`, `lightd`, or an issued token by its id or its prefix.
    actor: Option<String>,
    /// An action such as `container.start`, or what stands before the dot of some, such as `files`.
    action: Option<String>,
    /// Unix seconds: what was done then or later.
    since: Option<i64>,
    /// Unix seconds: what was done before.
    until: Option<i64>,
    /// So many at most; 100 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

impl AuditQuery {
    fn read(self) -> Result<(AuditFilter, usize), ApiError> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(ApiError::field("?limit", format!("must be between 1 and {LIMIT_MAX}")));
        }
        let filter = AuditFilter {
            containers: self.container.map(|id| BTreeSet::from([id])),
            of_containers: false,
            of_present_holders: false,
            volume: self.volume,
            by: self.actor.as_deref().map(by).transpose()?,
            actions: self.action.as_deref().map(actions).transpose()?,
            since: self.since.map(UnixSeconds),
            until: self.until.map(UnixSeconds),
            before: self.cursor.as_deref().map(before).transpose()?,
        };
        if filter.since.zip(filter.until).is_some_and(|(since, until)| until < since) {
            return Err(ApiError::field("?until", "must not be before ?since"));
        }
        Ok((filter, limit))
    }
}

fn by(text: &str) -> Result<By, ApiError> {
    if let Some(kind) = Who::KINDS.iter().find(|kind| **kind == text) {
        return Ok(By::Kind(kind));
    }
    if let Some(id) = TokenId::parse(text) {
        return Ok(By::Token(id));
    }
    if text.starts_with(TOKEN_PREFIX) {
        return Ok(By::Prefix(text.to_owned()));
    }
    let message = "must be node, token, anonymous, lightd, or a token's id or prefix";
    Err(ApiError::field("?actor", message))
}

fn actions(text: &str) -> Result<Vec<Action>, ApiError> {
    let named = Action::named(text);
    if named.is_empty() {
        let message = format!(
            "must be an action, or what stands before the dot of some: {}",
            Action::NAMES.join(", ")
        );
        return Err(ApiError::field("?action", message));
    }
    Ok(named)
}

fn before(cursor: &str) -> Result<i64, ApiError> {
    let id = cursor.parse().ok().filter(|id| *id > 0);
    id.ok_or_else(|| {
        ApiError::malformed("invalid_cursor", "?cursor must be a next_cursor of this list")
    })
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditList)]
struct AuditView {
    /// The newest first. There may be fewer of them than asked for, or none, before the end: only so many
    /// entries are looked at for a page.
    entries: Vec<EntryView>,
    /// Give it as `cursor` for what is older; `null` at the end, and nowhere else.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// One thing that somebody did.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditEntry)]
struct EntryView {
    /// Grows with each entry.
    #[schema(example = 42)]
    id: i64,
    created_at: UnixSeconds,
    #[schema(value_type = Action)]
    action: String,
    actor: ActorView,
    #[schema(value_type = Way)]
    way: String,
    /// The client's.
    #[schema(required, value_type = Option<IpAddress>)]
    address: Option<String>,
    /// As in the answer's `X-Request-Id` and in lightd's log.
    #[schema(required, example = "5f703d458bcd84cd")]
    request_id: Option<String>,
    #[schema(required, value_type = Option<ContainerId>)]
    container: Option<String>,
    #[schema(required, value_type = Option<VolumeId>)]
    volume_id: Option<String>,
    /// How many things it was done to, or how often within some seconds.
    #[schema(example = 1)]
    count: u64,
    /// The last time that is counted.
    last_at: UnixSeconds,
    /// Names, paths and numbers, other ones for each action; never a secret.
    #[schema(value_type = Object, example = json!({"reason": "crash", "run": 7}))]
    details: Map<String, Value>,
}

/// Who did it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditActor)]
struct ActorView {
    #[serde(rename = "type")]
    #[schema(value_type = Who)]
    kind: String,
    /// Of an issued token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TokenId>)]
    token_id: Option<String>,
    /// The first characters of an issued token, also of one that is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "lightd_Vx3kQ1")]
    token_prefix: Option<String>,
}

impl From<AuditRow> for EntryView {
    fn from(row: AuditRow) -> Self {
        let AuditRow { token_id, token_prefix, .. } = row;
        Self {
            id: row.id,
            created_at: row.created_at,
            action: row.action,
            actor: ActorView { kind: row.actor, token_id, token_prefix },
            way: row.way,
            address: row.address,
            request_id: row.request_id,
            container: row.container,
            volume_id: row.volume,
            count: row.count,
            last_at: row.last_at,
            details: row.details,
        }
    }
}

refusals!(ListRefusals: ; 400: "invalid_cursor");

/// Tells who did what, and from where: the newest first.
///
/// Whoever may see the node sees all of it; others what was done to containers that they may read, as far
/// as they may read what it was done to: files with `files.read`, rules with `network.read`. To a token that
/// names containers their entries begin with their making: an earlier container of the id was another's.
/// A page ends also when it has looked at 20,000 entries for those that were asked for; `next_cursor` goes on.
#[utoipa::path(
    get, path = "/audit", tag = "audit",
    params(AuditQuery),
    responses((status = 200, description = "A page of it", body = AuditView), ListRefusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<AuditView>, ApiError> {
    // A permission comes before what else may be wrong.
    auth.require_for_list(Permission::ContainersRead)
        .or_else(|_| auth.require(Permission::Node))?;
    let (filter, limit) = query.read()?;
    let filter = visible(&auth, filter)?;
    let look = move |rx: &crate::store::Read<'_>| rx.audit(&filter, limit);
    let AuditPage { rows, next } = state.store.read_long("read the audit log", look).await?;
    let next_cursor = next.map(|id| id.to_string());
    Ok(Json(AuditView { entries: rows.into_iter().map(EntryView::from).collect(), next_cursor }))
}

/// The rows that were asked for, as far as this caller may see them.
fn visible(auth: &Auth, mut filter: AuditFilter) -> Result<AuditFilter, ApiError> {
    let principal = auth.principal();
    if allows(principal, Permission::Node, Resource::Node) {
        return Ok(filter);
    }
    let may_read = |action: &Action| permits(principal, action.told_with());
    let asked = filter.actions.unwrap_or_else(|| Action::ALL.to_vec());
    let told: Vec<Action> = asked.into_iter().filter(may_read).collect();
    if told.is_empty() {
        return Err(ApiError::scope());
    }
    filter.actions = Some(told);
    filter.of_present_holders = auth.named_containers().is_some();
    match &filter.containers {
        Some(asked) => {
            for id in asked {
                auth.require_on(Permission::ContainersRead, Resource::Container(id))?;
            }
        }
        None => {
            filter.of_containers = true;
            filter.containers = auth.named_containers().cloned();
        }
    }
    Ok(filter)
}
