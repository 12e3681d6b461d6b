//! The port pool.

use std::net::IpAddr;

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

use super::container_body::non_empty;
use super::paging;
use super::port_body::optional_protocol;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::PortPath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::IpAddress;
use crate::api::state::AppState;
use crate::domain::access::{Permission, Principal};
use crate::domain::ids::ContainerId;
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::UnixSeconds;
use crate::network::pool::{PoolError, PortRange, Shown};
use crate::store::StoreError;
use crate::store::free_ports::Among;
use crate::store::leases::Claim;
use crate::store::ports::{Mark, PortFilter};

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(add, list))
        .routes(routes!(random))
        .routes(routes!(show, delete))
        .routes(routes!(mark))
}

/// One port, or a range of them.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = AddPorts, example = json!({"ip": "0.0.0.0", "port": 25565, "protocol": "tcp"}))]
#[serde(deny_unknown_fields)]
struct AddBody {
    #[schema(value_type = IpAddress)]
    ip: IpAddr,
    /// This one; or all from `from` to `to`.
    #[schema(maximum = 65_535, minimum = 1)]
    port: Option<u16>,
    #[schema(maximum = 65_535, minimum = 1)]
    from: Option<u16>,
    #[schema(maximum = 65_535)]
    to: Option<u16>,
    #[serde(default, deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortsAdded)]
struct AddedView {
    #[schema(example = "Port added")]
    message: &'static str,
    #[schema(value_type = IpAddress)]
    ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 65_535, nullable = false)]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 65_535, nullable = false)]
    from: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 65_535, nullable = false)]
    to: Option<u16>,
    protocol: Protocol,
    #[schema(example = 1)]
    added: usize,
}

refusals!(AddRefusals: ; 409: "port_exists", "port_overlaps", "own_port");

/// Puts a port, or a range of them, into the pool.
#[utoipa::path(
    post, path = "/network/ports", tag = "network",
    request_body = AddBody,
    responses((status = 201, description = "In the pool, all of them", body = AddedView), AddRefusals),
)]
async fn add(
    auth: Auth,
    State(state): State<AppState>,
    Json(body): Json<AddBody>,
) -> Result<(StatusCode, JsonAnswer<AddedView>), ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let protocol = body.protocol.unwrap_or(Protocol::Tcp);
    let ports = match (body.port, body.from, body.to) {
        (Some(port), None, None) => port..=port,
        (None, Some(from), Some(to)) if from <= to => from..=to,
        (None, Some(_), Some(_)) => {
            return Err(ApiError::field("to", "must not be less than from"));
        }
        _ => return Err(ApiError::field("port", "name either port, or from and to together")),
    };
    let range = PortRange { ip: body.ip, ports, protocol };
    let added = state.ports.by(auth.actor()).add(range).await.map_err(|why| match why {
        PoolError::Store(StoreError::PortExists(port)) if body.port.is_none() => {
            let message = format!("Port {} already exists in pool", port.port);
            ApiError::conflict("port_exists", message)
        }
        why => why.into(),
    })?;
    let view = AddedView {
        message: if body.port.is_some() { "Port added" } else { "Ports added" },
        ip: body.ip,
        port: body.port,
        from: body.from,
        to: body.to,
        protocol,
        added,
    };
    Ok((StatusCode::CREATED, JsonAnswer(view)))
}

/// A port of the pool.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Port)]
struct PortView {
    #[schema(value_type = IpAddress)]
    ip: IpAddr,
    #[schema(maximum = 65_535, example = 25565)]
    port: u16,
    protocol: Protocol,
    /// It is marked, a container's, leased or resting.
    in_use: bool,
    /// Whose it is.
    #[schema(required)]
    container: Option<ContainerId>,
    /// lightd itself, or a process that is no server of lightd's, has it.
    held_by_host: bool,
    /// Until when it is held for whoever it was allocated to.
    #[schema(required)]
    leased_until: Option<UnixSeconds>,
    /// Until when it rests since a server has let go of it.
    #[schema(required)]
    quarantined_until: Option<UnixSeconds>,
    /// What it is marked for.
    #[schema(required)]
    note: Option<String>,
}

impl From<Shown> for PortView {
    fn from(Shown { entry, held_by_host }: Shown) -> Self {
        Self {
            ip: entry.host.ip,
            port: entry.host.port,
            protocol: entry.host.protocol,
            in_use: entry.in_use(),
            held_by_host,
            leased_until: entry.lease.map(|lease| lease.until),
            quarantined_until: entry.quarantine.map(|rest| rest.until),
            container: entry.container,
            note: entry.note,
        }
    }
}

impl PortView {
    /// One that nobody has.
    fn free(host: HostPort) -> Self {
        Self {
            ip: host.ip,
            port: host.port,
            protocol: host.protocol,
            in_use: false,
            container: None,
            held_by_host: false,
            leased_until: None,
            quarantined_until: None,
            note: None,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only those that are, or are not.
    in_use: Option<bool>,
    /// Only those of this address.
    #[param(value_type = Option<IpAddress>)]
    ip: Option<IpAddr>,
    #[serde(default, deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
    /// Only those of this container.
    container: Option<ContainerId>,
    /// So many at most; 10,000 if it is left out.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortList)]
struct ListView {
    ports: Vec<PortView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

refusals!(ListRefusals: ; 400: "invalid_cursor");

/// Lists the pool, by address, number and protocol.
#[utoipa::path(
    get, path = "/network/ports", tag = "network",
    params(ListQuery),
    responses((status = 200, description = "What is in it", body = ListView), ListRefusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    let limit = paging::limit_within(query.limit, PAGE_MAX, PAGE_MAX)?;
    let filter = PortFilter {
        in_use: query.in_use,
        ip: query.ip,
        protocol: query.protocol,
        container: query.container,
        after: paging::cursor(query.cursor.as_deref(), read_cursor)?,
        // One more tells whether something follows.
        limit: Some(limit + 1),
    };
    let found = state.ports.list(filter).await?;
    let (shown, next_cursor) = paging::page(found, limit, |last| cursor(last.entry.host));
    Ok(JsonAnswer(ListView { ports: shown.into_iter().map(PortView::from).collect(), next_cursor }))
}

/// As many as one call adds.
const PAGE_MAX: usize = 10_000;

/// The place behind an entry.
fn cursor(port: HostPort) -> String {
    format!("{}-{}-{}", port.ip, port.port, port.protocol.as_str())
}

fn read_cursor(cursor: &str) -> Option<HostPort> {
    let mut parts = cursor.split('-');
    let (ip, port, protocol) = (parts.next()?, parts.next()?, parts.next()?);
    let protocol = Protocol::parse(protocol)?;
    Some(HostPort { ip: ip.parse().ok()?, port: port.parse().ok()?, protocol })
}

/// `?protocol=`, `tcp` if left out.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ProtocolQuery {
    #[serde(default, deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
}

impl ProtocolQuery {
    fn on(self, (ip, port): (IpAddr, u16)) -> HostPort {
        let protocol = self.protocol.unwrap_or(Protocol::Tcp);
        HostPort { ip: ip.to_canonical(), port, protocol }
    }
}

refusals!(NamedRefusals: ; 404: "not_found");

/// Shows a port of the pool.
#[utoipa::path(
    get, path = "/network/ports/{ip}/{port}", tag = "network",
    params(PortPath, ProtocolQuery),
    responses((status = 200, description = "The port", body = PortView), NamedRefusals),
)]
async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(address): Path<(IpAddr, u16)>,
    Query(protocol): Query<ProtocolQuery>,
) -> Result<JsonAnswer<PortView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    Ok(JsonAnswer(state.ports.get(protocol.on(address)).await?.into()))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RandomQuery {
    /// One of this address.
    #[param(value_type = Option<IpAddress>)]
    ip: Option<IpAddr>,
    #[serde(default, deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
}

/// Names a port that is free. It is not held: see `allocate`.
#[utoipa::path(
    get, path = "/network/ports/random", tag = "network",
    params(RandomQuery),
    responses((status = 200, description = "One that is free", body = PortView), NamedRefusals),
)]
async fn random(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<RandomQuery>,
) -> Result<JsonAnswer<PortView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    let protocol = query.protocol.unwrap_or(Protocol::Tcp);
    let host = state.ports.random(Among { protocol, ip: query.ip }).await?;
    Ok(JsonAnswer(PortView::free(host)))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MarkPort)]
#[serde(deny_unknown_fields)]
struct MarkBody {
    in_use: bool,
    /// What it is marked for, to be shown.
    #[schema(max_length = 255, example = "nginx")]
    note: Option<String>,
    /// For a port that was handed out under it to somebody else.
    lease_id: Option<Uuid>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortMarked)]
struct MarkedView {
    #[schema(example = "Port marked as in use")]
    message: &'static str,
    #[schema(value_type = IpAddress)]
    ip: IpAddr,
    #[schema(maximum = 65_535, example = 25565)]
    port: u16,
    protocol: Protocol,
    in_use: bool,
    #[schema(required)]
    note: Option<String>,
}

refusals!(MarkRefusals: ; 404: "not_found"; 409: "port_in_use", "port_reserved");
refusals!(TakenRefusals: ; 404: "not_found"; 409: "port_in_use", "port_reserved", "port_quarantined");

/// Marks a port as in use by something else, or as free again.
///
/// Freeing takes mark, lease and quarantine away. A port of somebody else's lease wants its `lease_id`; the
/// node's own token frees any.
#[utoipa::path(
    put, path = "/network/ports/{ip}/{port}/use", tag = "network",
    params(PortPath, ProtocolQuery), request_body = MarkBody,
    responses((status = 200, description = "It is marked", body = MarkedView), MarkRefusals),
)]
async fn mark(
    auth: Auth,
    State(state): State<AppState>,
    Path(address): Path<(IpAddr, u16)>,
    Query(protocol): Query<ProtocolQuery>,
    Json(body): Json<MarkBody>,
) -> Result<JsonAnswer<MarkedView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    if body.note.as_ref().is_some_and(|note| note.chars().count() > NOTE_MAX) {
        return Err(ApiError::field("note", format!("must have at most {NOTE_MAX} characters")));
    }
    let claim = Claim { holder: Some(auth.principal().name()), lease: body.lease_id };
    let is_node = matches!(auth.principal(), Principal::Node | Principal::Anonymous);
    let mark = Mark {
        in_use: body.in_use,
        note: non_empty(body.note),
        claim,
        ends_any_lease: is_node && !body.in_use,
    };
    let marked = state.ports.by(auth.actor()).mark(protocol.on(address), mark).await;
    let found = marked.map_err(|refusal| auth.told(refusal))?;
    Ok(JsonAnswer(MarkedView {
        message: if body.in_use { "Port marked as in use" } else { "Port marked as free" },
        ip: found.host.ip,
        port: found.host.port,
        protocol: found.host.protocol,
        in_use: found.in_use(),
        note: found.note,
    }))
}

const NOTE_MAX: usize = 255;

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortDeleted)]
struct DeletedView {
    #[schema(example = "Port deleted")]
    message: &'static str,
}

/// Takes a port out of the pool.
#[utoipa::path(
    delete, path = "/network/ports/{ip}/{port}", tag = "network",
    params(PortPath, ProtocolQuery),
    responses((status = 200, description = "It is out", body = DeletedView), TakenRefusals),
)]
async fn delete(
    auth: Auth,
    State(state): State<AppState>,
    Path(address): Path<(IpAddr, u16)>,
    Query(protocol): Query<ProtocolQuery>,
) -> Result<JsonAnswer<DeletedView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let deleted = state.ports.by(auth.actor()).delete(protocol.on(address)).await;
    deleted.map_err(|refusal| auth.told(refusal))?;
    Ok(JsonAnswer(DeletedView { message: "Port deleted" }))
}
