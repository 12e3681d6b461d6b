//! The port pool.

use std::net::IpAddr;

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::container_body::optional_protocol;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, OptionalJson, Path, Query};
use crate::api::openapi::Routes;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::{Span, UnixSeconds};
use crate::network::pool::PortRange;
use crate::store::ports::{NotDeleted, PoolPort, PortFilter};

pub(super) fn routes() -> Routes {
    Routes::default()
        .route("/network/ports", post(add).get(list))
        .route("/network/ports/random", get(random))
        .route("/network/ports/bulk-delete", post(delete_many))
        .route("/network/ports/allocate", post(allocate))
        .route("/network/ports/{ip}/{port}", get(show).delete(delete))
        .route("/network/ports/{ip}/{port}/use", put(mark))
}

/// One port, or a range of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddBody {
    ip: IpAddr,
    port: Option<u16>,
    from: Option<u16>,
    to: Option<u16>,
    #[serde(default, deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
}

#[derive(Debug, Serialize)]
struct AddedView {
    message: &'static str,
    ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u16>,
    protocol: Protocol,
    added: usize,
}

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
#[derive(Debug, Serialize)]
struct PortView {
    ip: IpAddr,
    port: u16,
    protocol: Protocol,
    in_use: bool,
    container: Option<ContainerId>,
    /// Until when it is held for whoever it was allocated to.
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

#[derive(Debug, Deserialize)]
struct ListQuery {
    in_use: Option<bool>,
    ip: Option<IpAddr>,
    #[serde(default, deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
}

#[derive(Debug, Serialize)]
struct ListView {
    ports: Vec<PortView>,
}

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
#[derive(Debug, Deserialize)]
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

async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(address): Path<(IpAddr, u16)>,
    Query(protocol): Query<ProtocolQuery>,
) -> Result<JsonAnswer<PortView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    Ok(JsonAnswer(state.ports.get(protocol.on(address)).await?.into()))
}

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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MarkBody {
    in_use: bool,
}

#[derive(Debug, Serialize)]
struct MarkedView {
    message: &'static str,
    ip: IpAddr,
    port: u16,
    protocol: Protocol,
    in_use: bool,
}

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

#[derive(Debug, Serialize)]
struct DeletedView {
    message: &'static str,
}

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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BulkDeleteBody {
    ports: Vec<PortName>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortName {
    ip: IpAddr,
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

#[derive(Debug, Serialize)]
struct BulkDeletedView {
    message: &'static str,
    deleted_count: usize,
    /// What was not deleted, and why.
    kept: Vec<KeptView>,
}

#[derive(Debug, Serialize)]
struct KeptView {
    ip: IpAddr,
    port: u16,
    protocol: Protocol,
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

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AllocateBody {
    count: Option<usize>,
    #[serde(deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
    contiguous: bool,
    reserve: Option<Span>,
}

/// Long enough to create a container with what was handed out.
const RESERVE_DEFAULT: Span = Span(std::time::Duration::from_secs(30));

#[derive(Debug, Serialize)]
struct LeaseView {
    ports: Vec<HostPort>,
    lease_id: Uuid,
    expires_at: UnixSeconds,
}

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
