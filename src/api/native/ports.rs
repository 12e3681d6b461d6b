//! The port pool.

use std::net::IpAddr;

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

use super::container_body::optional_protocol;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, OptionalJson, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::PortPath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::IpAddress;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::{Span, UnixSeconds};
use crate::network::pool::PortRange;
use crate::store::ports::{NotDeleted, PoolPort, PortFilter};

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(add, list))
        .routes(routes!(random))
        .routes(routes!(delete_many))
        .routes(routes!(allocate))
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
    #[schema(minimum = 1)]
    port: Option<u16>,
    #[schema(minimum = 1)]
    from: Option<u16>,
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
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u16>,
    protocol: Protocol,
    #[schema(example = 1)]
    added: usize,
}

refusals!(AddRefusals: ; 409: "port_exists", "port_overlaps");

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
        _ => return Err(ApiError::field("port", "is required, or from and to together")),
    };
    let added = state.ports.add(PortRange { ip: body.ip, ports, protocol }).await?;
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
    #[schema(example = 25565)]
    port: u16,
    protocol: Protocol,
    in_use: bool,
    /// Whose it is.
    #[schema(required)]
    container: Option<ContainerId>,
    /// Until when it is held for whoever it was allocated to.
    #[schema(required)]
    leased_until: Option<UnixSeconds>,
}

impl From<PoolPort> for PortView {
    fn from(port: PoolPort) -> Self {
        Self {
            ip: port.host.ip,
            port: port.host.port,
            protocol: port.host.protocol,
            in_use: port.in_use(),
            container: port.container,
            leased_until: port.leased_until,
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
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortList)]
struct ListView {
    ports: Vec<PortView>,
}

/// Lists the pool.
#[utoipa::path(
    get, path = "/network/ports", tag = "network",
    params(ListQuery),
    responses((status = 200, description = "What is in it", body = ListView)),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    let filter = PortFilter { in_use: query.in_use, ip: query.ip, protocol: query.protocol };
    let found = state.ports.list(filter).await?;
    Ok(JsonAnswer(ListView { ports: found.into_iter().map(PortView::from).collect() }))
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
        HostPort { ip: ip.to_canonical(), port, protocol: self.or_tcp() }
    }

    fn or_tcp(self) -> Protocol {
        self.protocol.unwrap_or(Protocol::Tcp)
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

/// Names a port that is free. It is not held: see `allocate`.
#[utoipa::path(
    get, path = "/network/ports/random", tag = "network",
    params(ProtocolQuery),
    responses((status = 200, description = "One that is free", body = PortView), NamedRefusals),
)]
async fn random(
    auth: Auth,
    State(state): State<AppState>,
    Query(protocol): Query<ProtocolQuery>,
) -> Result<JsonAnswer<PortView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    let host = state.ports.random(protocol.or_tcp()).await?;
    let free = PoolPort { host, marked: false, container: None, leased_until: None };
    Ok(JsonAnswer(free.into()))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MarkPort)]
#[serde(deny_unknown_fields)]
struct MarkBody {
    in_use: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortMarked)]
struct MarkedView {
    #[schema(example = "Port marked as in use")]
    message: &'static str,
    #[schema(value_type = IpAddress)]
    ip: IpAddr,
    #[schema(example = 25565)]
    port: u16,
    protocol: Protocol,
    in_use: bool,
}

refusals!(TakenRefusals: ; 404: "not_found"; 409: "port_in_use");

/// Marks a port as in use by something else, or as free again.
#[utoipa::path(
    put, path = "/network/ports/{ip}/{port}/use", tag = "network",
    params(PortPath, ProtocolQuery), request_body = MarkBody,
    responses((status = 200, description = "It is marked", body = MarkedView), TakenRefusals),
)]
async fn mark(
    auth: Auth,
    State(state): State<AppState>,
    Path(address): Path<(IpAddr, u16)>,
    Query(protocol): Query<ProtocolQuery>,
    Json(body): Json<MarkBody>,
) -> Result<JsonAnswer<MarkedView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let found = state.ports.mark(protocol.on(address), body.in_use).await?;
    Ok(JsonAnswer(MarkedView {
        message: if body.in_use { "Port marked as in use" } else { "Port marked as free" },
        ip: found.host.ip,
        port: found.host.port,
        protocol: found.host.protocol,
        in_use: found.in_use(),
    }))
}

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
    state.ports.delete(protocol.on(address)).await?;
    Ok(JsonAnswer(DeletedView { message: "Port deleted" }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = DeletePorts)]
#[serde(deny_unknown_fields)]
struct BulkDeleteBody {
    #[schema(max_items = 10_000)]
    ports: Vec<PortName>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = PortName)]
#[serde(deny_unknown_fields)]
struct PortName {
    #[schema(value_type = IpAddress)]
    ip: IpAddr,
    #[schema(example = 25565)]
    port: u16,
    #[serde(default, deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
}

impl From<PortName> for HostPort {
    fn from(name: PortName) -> Self {
        let protocol = name.protocol.unwrap_or(Protocol::Tcp);
        Self { ip: name.ip.to_canonical(), port: name.port, protocol }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortsDeleted)]
struct BulkDeletedView {
    #[schema(example = "Ports deleted")]
    message: &'static str,
    #[schema(example = 1)]
    deleted_count: usize,
    /// What was not deleted, and why.
    kept: Vec<KeptView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortKept)]
struct KeptView {
    #[schema(value_type = IpAddress)]
    ip: IpAddr,
    #[schema(example = 25565)]
    port: u16,
    protocol: Protocol,
    /// As a refusal says it.
    #[schema(example = "port_in_use")]
    code: &'static str,
}

impl From<(HostPort, NotDeleted)> for KeptView {
    fn from((host, why): (HostPort, NotDeleted)) -> Self {
        let code = match why {
            NotDeleted::NotInPool => "not_found",
            NotDeleted::InUse => "port_in_use",
        };
        Self { ip: host.ip, port: host.port, protocol: host.protocol, code }
    }
}

/// As many as one call adds.
const BULK_MAX: usize = 10_000;

/// Takes many ports out of the pool, and says which it has kept.
#[utoipa::path(
    post, path = "/network/ports/bulk-delete", tag = "network",
    request_body = BulkDeleteBody,
    responses((status = 200, description = "Those that could go are out", body = BulkDeletedView)),
)]
async fn delete_many(
    auth: Auth,
    State(state): State<AppState>,
    Json(body): Json<BulkDeleteBody>,
) -> Result<JsonAnswer<BulkDeletedView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    if body.ports.len() > BULK_MAX {
        return Err(ApiError::field("ports", format!("must not be more than {BULK_MAX}")));
    }
    let ports = body.ports.into_iter().map(HostPort::from).collect();
    let outcome = state.ports.delete_many(ports).await?;
    Ok(JsonAnswer(BulkDeletedView {
        message: "Ports deleted",
        deleted_count: outcome.deleted,
        kept: outcome.kept.into_iter().map(KeptView::from).collect(),
    }))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = AllocatePorts, example = json!({"count": 3, "protocol": "tcp", "contiguous": true, "reserve": "30s"}))]
#[serde(default, deny_unknown_fields)]
struct AllocateBody {
    /// 1 if it is left out.
    #[schema(minimum = 1)]
    count: Option<usize>,
    #[serde(deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
    /// Numbers in a row, of one address.
    contiguous: bool,
    /// How long they are held; 30 seconds if it is left out.
    reserve: Option<Span>,
}

/// Long enough to create a container with what was handed out.
const RESERVE_DEFAULT: Span = Span(std::time::Duration::from_secs(30));

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortLease)]
struct LeaseView {
    ports: Vec<HostPort>,
    /// Of these ports together.
    lease_id: Uuid,
    expires_at: UnixSeconds,
}

/// Hands out free ports and holds them for a while.
#[utoipa::path(
    post, path = "/network/ports/allocate", tag = "network",
    request_body = Option<AllocateBody>,
    responses((status = 201, description = "They are held", body = LeaseView), NamedRefusals),
)]
async fn allocate(
    auth: Auth,
    State(state): State<AppState>,
    OptionalJson(body): OptionalJson<AllocateBody>,
) -> Result<(StatusCode, JsonAnswer<LeaseView>), ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let protocol = body.protocol.unwrap_or(Protocol::Tcp);
    let reserve = body.reserve.unwrap_or(RESERVE_DEFAULT).0;
    let count = body.count.unwrap_or(1);
    let lease = state.ports.allocate(count, protocol, body.contiguous, reserve).await?;
    let view = LeaseView { ports: lease.ports, lease_id: lease.id, expires_at: lease.expires_at };
    Ok((StatusCode::CREATED, JsonAnswer(view)))
}
