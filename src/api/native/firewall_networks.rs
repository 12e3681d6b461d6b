//! A container's protection from floods, and its firewall as a whole.
//!
//! Beside [`super::firewall`], whose the rules are. What was answered with success is in the kernel, but for what
//! belongs to a firewall that was taken out. The answer to a change shows what its transaction wrote.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::firewall_view::{DdosView, NetworkView};
use super::volumes::made;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path};
use crate::api::openapi::Routes;
use crate::api::openapi::params::ContainerPath;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::firewall::{Ddos, RateLimit};
use crate::domain::ids::ContainerId;
use crate::network::firewall::Changed;
use crate::store::firewall::FirewallRow;

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(set_ddos, show_ddos))
        .routes(routes!(attach, show_network, detach))
        .routes(routes!(clean))
}

refusals!(ReadRefusals: CONTAINER);
// What is taken back is taken back also where the firewall is off.
refusals!(RemoveRefusals: CONTAINER, FIREWALL);
refusals!(ChangeRefusals: CONTAINER, FIREWALL; 409: "firewall_off");

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
/// It comes before all rules, and counts each source by itself. A firewall that was taken out keeps it back:
/// `applied` is `false` then, with the `reason`.
#[utoipa::path(
    post, path = "/firewall/ddos/{id}", tag = "firewall",
    params(ContainerPath), request_body = DdosBody,
    responses(
        (status = 200, description = "It is stored, and in effect unless `applied` is `false`", body = DdosAnswer),
        ChangeRefusals,
    ),
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
    let changed = state.firewall.by(auth.actor()).set_ddos(id.clone(), ddos).await?;
    let message = if body.enabled { "DDoS protection enabled" } else { "DDoS protection disabled" };
    Ok(ddos_of(&state, id, changed.firewall.as_ref(), Some(message)))
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
    let firewall = state.firewall.of(&id).await?;
    Ok(ddos_of(&state, id, firewall.as_ref(), None))
}

fn ddos_of(
    state: &AppState,
    id: ContainerId,
    of: Option<&FirewallRow>,
    message: Option<&'static str>,
) -> JsonAnswer<DdosAnswer> {
    let ddos = DdosView::new(id, of, &state.firewall.status());
    JsonAnswer(DdosAnswer { message, ddos })
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallNetworkAnswer)]
struct NetworkAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Firewall network created")]
    message: Option<&'static str>,
    network: NetworkView,
}

fn network_of(
    state: &AppState,
    id: ContainerId,
    of: Option<FirewallRow>,
    message: Option<&'static str>,
) -> JsonAnswer<NetworkAnswer> {
    let network = NetworkView::new(id, of, &state.firewall.status());
    JsonAnswer(NetworkAnswer { message, network })
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
    let Changed { made: is_new, firewall } =
        state.firewall.by(auth.actor()).attach(id.clone(), true).await?;
    let message =
        if is_new { "Firewall network created" } else { "Firewall network exists already" };
    Ok((made(is_new), network_of(&state, id, firewall, Some(message))))
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
    let firewall = state.firewall.of(&id).await?;
    Ok(network_of(&state, id, firewall, None))
}

/// Takes a container's firewall out of the kernel and keeps its rules.
///
/// What is added to it from then on is kept back as well, until `POST` brings it in again. A container that has
/// no firewall gets none by this.
#[utoipa::path(
    delete, path = "/firewall/networks/{id}", tag = "firewall",
    params(ContainerPath),
    responses((status = 200, description = "It is out, or there is none", body = NetworkAnswer), RemoveRefusals),
)]
async fn detach(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<JsonAnswer<NetworkAnswer>, ApiError> {
    auth.container(&state, &id, Permission::NetworkWrite)?;
    let Changed { made: is_news, firewall } =
        state.firewall.by(auth.actor()).attach(id.clone(), false).await?;
    let message =
        if is_news { "Firewall network removed" } else { "There is no firewall network to remove" };
    Ok(network_of(&state, id, firewall, Some(message)))
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
    let was = state.firewall.by(auth.actor()).clean(id.clone()).await?;
    let deleted_rules = was.map_or(0, |FirewallRow { rules, .. }| rules.len());
    Ok(JsonAnswer(CleanedView { message: "Firewall cleaned up", container_id: id, deleted_rules }))
}
