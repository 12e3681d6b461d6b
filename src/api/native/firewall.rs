//! Firewall rules of containers.
//!
//! Each call is about one container and wants `network.read` or `network.write` for that one. What was
//! answered with success is in the kernel, but for what belongs to a firewall that was taken out: it is stored,
//! and the answer says so. The answer to a change shows what its transaction wrote.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::firewall_view::RuleView;
use super::paging;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query, object};
use crate::api::openapi::Routes;
use crate::api::openapi::params::{ContainerPath, RulePath};
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::firewall::{RateLimit, Rule, RuleAction, RuleId, RuleProtocol, parse_source};
use crate::domain::ids::ContainerId;
use crate::domain::spec::Problem;
use crate::network::firewall::{BOUNDS, Changed};
use crate::store::StoreError;
use crate::store::firewall::RuleRow;

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(add_rule))
        .routes(routes!(show_rule, delete_rule))
        .routes(routes!(toggle_rule))
        .routes(routes!(list_rules))
}

refusals!(ReadRefusals: CONTAINER);
// What is taken back is taken back also where the firewall is off.
refusals!(RemoveRefusals: CONTAINER, FIREWALL);
refusals!(ChangeRefusals: CONTAINER, FIREWALL; 409: "firewall_off");
refusals!(AddRefusals: CONTAINER, FIREWALL; 409: "firewall_off", "rule_exists", "too_many_rules");

/// A rule to be made. What is left out matches everything.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewFirewallRule, example = json!({
    "container_id": "server-001", "source_ip": "203.0.113.0/24", "dest_port": 25565, "protocol": "tcp",
    "action": "accept", "rate_limit": {"requests": 100, "per_seconds": 10}, "description": "the office"
}))]
#[serde(deny_unknown_fields)]
struct RuleBody {
    container_id: ContainerId,
    /// An address or a network, of IPv4 or IPv6.
    source_ip: Option<String>,
    #[schema(minimum = 1)]
    source_port: Option<u16>,
    /// As published on the host; left out: all that the container has published.
    #[schema(minimum = 1)]
    dest_port: Option<u16>,
    protocol: RuleProtocol,
    action: RuleAction,
    #[serde(default, deserialize_with = "object")]
    rate_limit: Option<RateLimit>,
    #[schema(max_length = 255)]
    description: Option<String>,
}

impl RuleBody {
    /// All that is wrong with it, or the rule.
    fn rule(self) -> Result<Rule, ApiError> {
        let source = self.source_ip.as_deref().map(parse_source);
        let rule = Rule {
            source: source.flatten(),
            source_port: self.source_port,
            dest_port: self.dest_port,
            protocol: self.protocol,
            action: self.action,
            rate_limit: self.rate_limit,
            description: self.description,
        };
        let mut problems = rule.problems();
        if source == Some(None) {
            let message = "must be an address or a network, such as 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32";
            problems.insert(0, Problem::new("source_ip", message));
        }
        if problems.is_empty() { Ok(rule) } else { Err(ApiError::invalid(problems)) }
    }
}

/// A rule, and what was done with it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallRuleAnswer)]
struct RuleAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Firewall rule created")]
    message: Option<&'static str>,
    rule: RuleView,
}

/// Makes a rule for a container, behind those that it has.
///
/// It counts at once, for connections that stand as well. The first rule that matches decides; what none
/// matches passes. A firewall that was taken out (`DELETE /firewall/networks/{id}`) keeps it back until it is
/// brought in again: `applied` is `false` then, with the `reason`.
#[utoipa::path(
    post, path = "/firewall/rules", tag = "firewall",
    request_body = RuleBody,
    responses(
        (status = 201, description = "It is stored, and in effect unless `applied` is `false`", body = RuleAnswer),
        AddRefusals,
    ),
)]
async fn add_rule(
    auth: Auth,
    State(state): State<AppState>,
    Json(body): Json<RuleBody>,
) -> Result<(StatusCode, JsonAnswer<RuleAnswer>), ApiError> {
    let id = body.container_id.clone();
    auth.container(&state, &id, Permission::NetworkWrite)?;
    let changed = state.firewall.by(auth.actor()).add_rule(id, body.rule()?).await?;
    Ok((StatusCode::CREATED, shown(&state, Some("Firewall rule created"), changed)?))
}

fn shown(
    state: &AppState,
    message: Option<&'static str>,
    Changed { made: row, firewall }: Changed<RuleRow>,
) -> Result<JsonAnswer<RuleAnswer>, ApiError> {
    let firewall = firewall.ok_or(StoreError::NoSuchRule(row.id))?;
    let rule = RuleView::new(row, &firewall, &state.firewall.status());
    Ok(JsonAnswer(RuleAnswer { message, rule }))
}

/// The rule, if this caller may do that with its container. Of others' it is not told that they exist.
async fn reach(
    auth: &Auth,
    state: &AppState,
    id: RuleId,
    permission: Permission,
) -> Result<RuleRow, ApiError> {
    auth.require_for_list(permission)?;
    let row = state.firewall.rule(id).await?;
    if auth.may(permission, &row.container) {
        Ok(row)
    } else {
        Err(StoreError::NoSuchRule(id).into())
    }
}

/// Shows a rule.
#[utoipa::path(
    get, path = "/firewall/rules/{id}", tag = "firewall",
    params(RulePath),
    responses((status = 200, description = "The rule", body = RuleAnswer), ReadRefusals),
)]
async fn show_rule(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<RuleId>,
) -> Result<JsonAnswer<RuleAnswer>, ApiError> {
    let row = reach(&auth, &state, id, Permission::NetworkRead).await?;
    let firewall = state.firewall.of(&row.container).await?;
    shown(&state, None, Changed { made: row, firewall })
}

/// Whether a rule counts.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ToggleFirewallRule)]
#[serde(deny_unknown_fields)]
struct ToggleBody {
    enabled: bool,
}

/// Switches a rule off, or on again. It keeps its place among the others.
#[utoipa::path(
    put, path = "/firewall/rules/{id}/toggle", tag = "firewall",
    params(RulePath), request_body = ToggleBody,
    responses(
        (status = 200, description = "It is switched; `applied` says whether it counts", body = RuleAnswer),
        ChangeRefusals,
    ),
)]
async fn toggle_rule(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<RuleId>,
    Json(body): Json<ToggleBody>,
) -> Result<JsonAnswer<RuleAnswer>, ApiError> {
    let row = reach(&auth, &state, id, Permission::NetworkWrite).await?;
    let changed = state.firewall.by(auth.actor()).enable_rule(row, body.enabled).await?;
    let message = if body.enabled { "Firewall rule enabled" } else { "Firewall rule disabled" };
    shown(&state, Some(message), changed)
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallRuleDeleted)]
struct RuleDeleted {
    #[schema(example = "Firewall rule deleted")]
    message: &'static str,
    id: RuleId,
}

/// Deletes a rule.
#[utoipa::path(
    delete, path = "/firewall/rules/{id}", tag = "firewall",
    params(RulePath),
    responses((status = 200, description = "It is gone", body = RuleDeleted), RemoveRefusals),
)]
async fn delete_rule(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<RuleId>,
) -> Result<JsonAnswer<RuleDeleted>, ApiError> {
    let row = reach(&auth, &state, id, Permission::NetworkWrite).await?;
    state.firewall.by(auth.actor()).delete_rule(row).await?;
    Ok(JsonAnswer(RuleDeleted { message: "Firewall rule deleted", id }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RulesQuery {
    /// So many at most; 100 if it is left out.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Rules in the order in which they are matched.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallRuleList)]
struct RulesView {
    rules: Vec<RuleView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required, example = json!(null))]
    next_cursor: Option<String>,
}

refusals!(ListRefusals: CONTAINER; 400: "invalid_cursor");

/// Lists a container's rules in the order in which they are matched.
#[utoipa::path(
    get, path = "/firewall/rules/container/{id}", tag = "firewall",
    params(ContainerPath, RulesQuery),
    responses((status = 200, description = "Its rules", body = RulesView), ListRefusals),
)]
async fn list_rules(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<RulesQuery>,
) -> Result<JsonAnswer<RulesView>, ApiError> {
    auth.container(&state, &id, Permission::NetworkRead)?;
    let most = BOUNDS.per_container;
    let limit = paging::limit_within(query.limit, most, most)?;
    let after = paging::cursor(query.cursor.as_deref(), |text| text.parse::<i64>().ok())?;
    let Some(firewall) = state.firewall.of(&id).await? else {
        return Ok(JsonAnswer(RulesView { rules: Vec::new(), next_cursor: None }));
    };
    let rest = firewall.rules.iter().filter(|row| after.is_none_or(|after| row.number > after));
    let (page, next_cursor) = paging::page(rest, limit, |last| last.number.to_string());
    let status = state.firewall.status();
    let view = |row: &RuleRow| RuleView::new(row.clone(), &firewall, &status);
    Ok(JsonAnswer(RulesView { rules: page.into_iter().map(view).collect(), next_cursor }))
}
