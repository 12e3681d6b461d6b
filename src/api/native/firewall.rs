//! Firewall rules of containers, their protection from floods, and the firewall of one as a whole.
//!
//! Each call is about one container and wants `network.read` or `network.write` for that one. What was
//! answered with success is in the kernel.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post, put};
use axum::{Json as JsonAnswer, Router};
use serde::{Deserialize, Deserializer, Serialize};

use super::firewall_view::{DdosView, NetworkView, RuleView};
use super::volumes::made;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::firewall::{
    Ddos, RateLimit, Rule, RuleAction, RuleId, RuleProtocol, parse_source,
};
use crate::domain::ids::ContainerId;
use crate::domain::spec::Problem;
use crate::network::firewall::BOUNDS;
use crate::store::StoreError;
use crate::store::firewall::{FirewallRow, RuleRow};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/firewall/rules", post(add_rule))
        .route("/firewall/rules/{id}", get(show_rule).delete(delete_rule))
        .route("/firewall/rules/{id}/toggle", put(toggle_rule))
        .route("/firewall/rules/container/{id}", get(list_rules))
        .route("/firewall/ddos/{id}", post(set_ddos).get(show_ddos))
        .route("/firewall/networks/{id}", post(attach).get(show_network).delete(detach))
        .route("/firewall/cleanup/{id}", delete(clean))
}

/// A rule to be made. What is left out matches everything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleBody {
    container_id: ContainerId,
    /// An address or a network, of IPv4 or IPv6.
    source_ip: Option<String>,
    source_port: Option<u16>,
    /// As published on the host; left out: all that the container has published.
    dest_port: Option<u16>,
    protocol: RuleProtocol,
    action: RuleAction,
    rate_limit: Option<RateLimit>,
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
#[derive(Debug, Serialize)]
pub(super) struct RuleAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    rule: RuleView,
}

async fn add_rule(
    auth: Auth,
    State(state): State<AppState>,
    Json(body): Json<RuleBody>,
) -> Result<(StatusCode, JsonAnswer<RuleAnswer>), ApiError> {
    let id = body.container_id.clone();
    auth.container(&state, &id, Permission::NetworkWrite)?;
    let row = state.firewall.add_rule(id, body.rule()?).await?;
    let answer = shown(&state, Some("Firewall rule created"), row).await?;
    Ok((StatusCode::CREATED, answer))
}

async fn shown(
    state: &AppState,
    message: Option<&'static str>,
    row: RuleRow,
) -> Result<JsonAnswer<RuleAnswer>, ApiError> {
    let gone = || ApiError::from(StoreError::NoSuchRule(row.id));
    let firewall = state.firewall.of(&row.container).await?.ok_or_else(gone)?;
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

async fn show_rule(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<RuleId>,
) -> Result<JsonAnswer<RuleAnswer>, ApiError> {
    let row = reach(&auth, &state, id, Permission::NetworkRead).await?;
    shown(&state, None, row).await
}

/// Whether a rule counts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToggleBody {
    enabled: bool,
}

async fn toggle_rule(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<RuleId>,
    Json(body): Json<ToggleBody>,
) -> Result<JsonAnswer<RuleAnswer>, ApiError> {
    let row = reach(&auth, &state, id, Permission::NetworkWrite).await?;
    let row = state.firewall.enable_rule(row, body.enabled).await?;
    let message = if body.enabled { "Firewall rule enabled" } else { "Firewall rule disabled" };
    shown(&state, Some(message), row).await
}

#[derive(Debug, Serialize)]
pub(super) struct RuleDeleted {
    message: &'static str,
    id: RuleId,
}

async fn delete_rule(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<RuleId>,
) -> Result<JsonAnswer<RuleDeleted>, ApiError> {
    let row = reach(&auth, &state, id, Permission::NetworkWrite).await?;
    state.firewall.delete_rule(row).await?;
    Ok(JsonAnswer(RuleDeleted { message: "Firewall rule deleted", id }))
}

#[derive(Debug, Deserialize)]
pub(super) struct RulesQuery {
    limit: Option<usize>,
    cursor: Option<i64>,
}

/// Rules in the order in which they are matched.
#[derive(Debug, Serialize)]
pub(super) struct RulesView {
    rules: Vec<RuleView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    next_cursor: Option<String>,
}

async fn list_rules(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<RulesQuery>,
) -> Result<JsonAnswer<RulesView>, ApiError> {
    auth.container(&state, &id, Permission::NetworkRead)?;
    let most = BOUNDS.per_container;
    let limit = query.limit.unwrap_or(most);
    if !(1..=most).contains(&limit) {
        return Err(ApiError::field("?limit", format!("must be between 1 and {most}")));
    }
    let Some(firewall) = state.firewall.of(&id).await? else {
        return Ok(JsonAnswer(RulesView { rules: Vec::new(), next_cursor: None }));
    };
    let after = query.cursor.unwrap_or(0);
    let mut rest = firewall.rules.iter().filter(|row| row.number > after);
    let page: Vec<&RuleRow> = rest.by_ref().take(limit).collect();
    let last = page.last().map(|row| row.number.to_string());
    let next_cursor = last.filter(|_| rest.next().is_some());
    let status = state.firewall.status();
    let view = |row: &RuleRow| RuleView::new(row.clone(), &firewall, &status);
    Ok(JsonAnswer(RulesView { rules: page.into_iter().map(view).collect(), next_cursor }))
}

/// The protection from floods; it replaces what there was.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DdosBody {
    enabled: bool,
    /// `true` if left out.
    #[serde(default = "yes")]
    syn_flood_protection: bool,
    /// Connections of one source at a time.
    connection_limit: Option<u32>,
    /// New connections (packets of UDP) of one source: so many, or so many a second as a plain number.
    #[serde(default, deserialize_with = "limit_or_number")]
    rate_limit: Option<RateLimit>,
}

fn yes() -> bool {
    true
}

fn limit_or_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<RateLimit>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "must be a number of requests a second, or {\"requests\", \"per_seconds\"}"
    )]
    enum Either {
        PerSecond(u32),
        Limit(RateLimit),
    }
    Ok(Option::<Either>::deserialize(from)?.map(|either| match either {
        Either::PerSecond(requests) => RateLimit { requests, per_seconds: 1 },
        Either::Limit(limit) => limit,
    }))
}

#[derive(Debug, Serialize)]
pub(super) struct DdosAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    ddos: DdosView,
}

async fn set_ddos(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Json(body): Json<DdosBody>,
) -> Result<JsonAnswer<DdosAnswer>, ApiError> {
    auth.container(&state, &id, Permission::NetworkWrite)?;
    let ddos = Ddos {
        enabled: body.enabled,
        syn_flood_protection: body.syn_flood_protection,
        connection_limit: body.connection_limit,
        rate_limit: body.rate_limit,
    };
    let problems = ddos.problems();
    if !problems.is_empty() {
        return Err(ApiError::invalid(problems));
    }
    state.firewall.set_ddos(id.clone(), ddos).await?;
    let message = if body.enabled { "DDoS protection enabled" } else { "DDoS protection disabled" };
    ddos_of(&state, id, Some(message)).await
}

async fn show_ddos(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<JsonAnswer<DdosAnswer>, ApiError> {
    auth.container(&state, &id, Permission::NetworkRead)?;
    ddos_of(&state, id, None).await
}

async fn ddos_of(
    state: &AppState,
    id: ContainerId,
    message: Option<&'static str>,
) -> Result<JsonAnswer<DdosAnswer>, ApiError> {
    let firewall = state.firewall.of(&id).await?;
    let ddos = DdosView::new(id, firewall.as_ref(), &state.firewall.status());
    Ok(JsonAnswer(DdosAnswer { message, ddos }))
}

#[derive(Debug, Serialize)]
pub(super) struct NetworkAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    network: NetworkView,
}

async fn network_of(
    state: &AppState,
    id: ContainerId,
    message: Option<&'static str>,
) -> Result<JsonAnswer<NetworkAnswer>, ApiError> {
    let firewall = state.firewall.of(&id).await?;
    let network = NetworkView::new(id, firewall, &state.firewall.status());
    Ok(JsonAnswer(NetworkAnswer { message, network }))
}

/// Makes a container's firewall, or brings it back with its rules.
async fn attach(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<(StatusCode, JsonAnswer<NetworkAnswer>), ApiError> {
    auth.container(&state, &id, Permission::NetworkWrite)?;
    let is_new = state.firewall.attach(id.clone(), true).await?;
    let message =
        if is_new { "Firewall network created" } else { "Firewall network exists already" };
    Ok((made(is_new), network_of(&state, id, Some(message)).await?))
}

async fn show_network(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<JsonAnswer<NetworkAnswer>, ApiError> {
    auth.container(&state, &id, Permission::NetworkRead)?;
    network_of(&state, id, None).await
}

/// Takes a container's firewall out of the kernel and keeps its rules.
async fn detach(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<JsonAnswer<NetworkAnswer>, ApiError> {
    auth.container(&state, &id, Permission::NetworkWrite)?;
    state.firewall.attach(id.clone(), false).await?;
    network_of(&state, id, Some("Firewall network removed")).await
}

#[derive(Debug, Serialize)]
pub(super) struct CleanedView {
    message: &'static str,
    container_id: ContainerId,
    deleted_rules: usize,
}

async fn clean(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<JsonAnswer<CleanedView>, ApiError> {
    auth.container(&state, &id, Permission::NetworkWrite)?;
    let was = state.firewall.clean(id.clone()).await?;
    let deleted_rules = was.map_or(0, |FirewallRow { rules, .. }| rules.len());
    Ok(JsonAnswer(CleanedView { message: "Firewall cleaned up", container_id: id, deleted_rules }))
}
