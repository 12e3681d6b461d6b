//! Firewall rules of containers, their protection from floods, and the firewall of one as a whole.
//!
//! Each call is about one container and wants `network.read` or `network.write` for that one. What was
//! answered with success is in the kernel.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::firewall_view::{DdosView, NetworkView, RuleView};
use super::volumes::made;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::{ContainerPath, RulePath};
use crate::api::openapi::refusals::refusals;
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

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(add_rule))
        .routes(routes!(show_rule, delete_rule))
        .routes(routes!(toggle_rule))
        .routes(routes!(list_rules))
        .routes(routes!(set_ddos, show_ddos))
        .routes(routes!(attach, show_network, detach))
        .routes(routes!(clean))
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
/// matches passes.
#[utoipa::path(
    post, path = "/firewall/rules", tag = "firewall",
    request_body = RuleBody,
    responses((status = 201, description = "It is in effect", body = RuleAnswer), AddRefusals),
)]
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
    shown(&state, None, row).await
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
    responses((status = 200, description = "It is switched", body = RuleAnswer), ChangeRefusals),
)]
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
    state.firewall.delete_rule(row).await?;
    Ok(JsonAnswer(RuleDeleted { message: "Firewall rule deleted", id }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RulesQuery {
    /// How many to show.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<i64>,
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

/// Lists a container's rules in the order in which they are matched.
#[utoipa::path(
    get, path = "/firewall/rules/container/{id}", tag = "firewall",
    params(ContainerPath, RulesQuery),
    responses((status = 200, description = "Its rules", body = RulesView), ReadRefusals),
)]
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
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewFirewallDdos, example = json!({
    "enabled": true, "syn_flood_protection": true, "connection_limit": 20,
    "rate_limit": {"requests": 100, "per_seconds": 10}
}))]
#[serde(deny_unknown_fields)]
struct DdosBody {
    /// Needs one of the others.
    enabled: bool,
    /// `true` if left out.
    #[serde(default = "yes")]
    #[schema(default = true)]
    syn_flood_protection: bool,
    /// Connections of one source at a time.
    #[schema(minimum = 1, maximum = 65_535)]
    connection_limit: Option<u32>,
    /// New connections (packets of UDP) of one source: so many, or so many a second as a plain number.
    #[serde(default, deserialize_with = "limit_or_number")]
    #[schema(value_type = Option<LimitOrNumber>)]
    rate_limit: Option<RateLimit>,
}

fn yes() -> bool {
    true
}

fn limit_or_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<RateLimit>, D::Error> {
    Ok(Option::<LimitOrNumber>::deserialize(from)?.map(|either| match either {
        LimitOrNumber::PerSecond(PerSecond(requests)) => RateLimit { requests, per_seconds: 1 },
        LimitOrNumber::Limit(limit) => limit,
    }))
}

/// A rate limit; a plain number is that many a second.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a number of requests a second, or {\"requests\", \"per_seconds\"}"
)]
enum LimitOrNumber {
    PerSecond(PerSecond),
    Limit(RateLimit),
}

/// So many a second.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RequestsPerSecond, minimum = 1, maximum = 1_000_000, example = 50)]
struct PerSecond(u32);

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallDdosAnswer)]
struct DdosAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "DDoS protection enabled")]
    message: Option<&'static str>,
    ddos: DdosView,
}

/// Sets a container's protection from floods, in place of what it was.
///
/// It comes before all rules, and counts each source by itself.
#[utoipa::path(
    post, path = "/firewall/ddos/{id}", tag = "firewall",
    params(ContainerPath), request_body = DdosBody,
    responses((status = 200, description = "It is in effect", body = DdosAnswer), ChangeRefusals),
)]
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

/// Shows a container's protection from floods.
#[utoipa::path(
    get, path = "/firewall/ddos/{id}", tag = "firewall",
    params(ContainerPath),
    responses((status = 200, description = "The protection", body = DdosAnswer), ReadRefusals),
)]
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

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallNetworkAnswer)]
struct NetworkAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Firewall network created")]
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
#[utoipa::path(
    post, path = "/firewall/networks/{id}", tag = "firewall",
    params(ContainerPath),
    responses(
        (status = 201, description = "It is in the kernel", body = NetworkAnswer),
        (status = 200, description = "It was there already", body = NetworkAnswer),
        ChangeRefusals,
    ),
)]
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

/// Shows a container's firewall as a whole.
#[utoipa::path(
    get, path = "/firewall/networks/{id}", tag = "firewall",
    params(ContainerPath),
    responses((status = 200, description = "The firewall", body = NetworkAnswer), ReadRefusals),
)]
async fn show_network(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<JsonAnswer<NetworkAnswer>, ApiError> {
    auth.container(&state, &id, Permission::NetworkRead)?;
    network_of(&state, id, None).await
}

/// Takes a container's firewall out of the kernel and keeps its rules.
#[utoipa::path(
    delete, path = "/firewall/networks/{id}", tag = "firewall",
    params(ContainerPath),
    responses((status = 200, description = "It is out", body = NetworkAnswer), RemoveRefusals),
)]
async fn detach(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<JsonAnswer<NetworkAnswer>, ApiError> {
    auth.container(&state, &id, Permission::NetworkWrite)?;
    state.firewall.attach(id.clone(), false).await?;
    network_of(&state, id, Some("Firewall network removed")).await
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallCleaned)]
struct CleanedView {
    #[schema(example = "Firewall cleaned up")]
    message: &'static str,
    container_id: ContainerId,
    deleted_rules: usize,
}

/// Deletes a container's rules and its protection from floods.
#[utoipa::path(
    delete, path = "/firewall/cleanup/{id}", tag = "firewall",
    params(ContainerPath),
    responses((status = 200, description = "Nothing is left of them", body = CleanedView), RemoveRefusals),
)]
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
