//! The port pool.

use std::net::IpAddr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json as JsonAnswer, Router};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::container_body::{non_empty, optional_protocol};
use super::volumes::page_limit;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query};
use crate::api::idempotency::principal;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::UnixSeconds;
use crate::network::pool::{PortRange, Shown};
use crate::store::free_ports::Among;
use crate::store::leases::Claim;
use crate::store::ports::{Mark, NotDeleted, PortFilter};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/network/ports", post(add).get(list))
        .route("/network/ports/random", get(random))
        .route("/network/ports/bulk-delete", post(delete_many))
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
    /// lightd itself, or a process that is no server of lightd's, has it.
    held_by_host: bool,
    /// Until when it is held for whoever it was allocated to.
    leased_until: Option<UnixSeconds>,
    /// Until when it rests since a server has let go of it.
    quarantined_until: Option<UnixSeconds>,
    /// What it is marked for.
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

#[derive(Debug, Deserialize)]
struct ListQuery {
    in_use: Option<bool>,
    ip: Option<IpAddr>,
    #[serde(default, deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
    container: Option<ContainerId>,
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct ListView {
    ports: Vec<PortView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    next_cursor: Option<String>,
}

async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    let limit = page_limit(query.limit, PAGE_MAX)?;
    let filter = PortFilter {
        in_use: query.in_use,
        ip: query.ip,
        protocol: query.protocol,
        container: query.container,
        after: query.cursor.as_deref().map(after).transpose()?,
        // One more tells whether something follows.
        limit: Some(limit + 1),
    };
    let mut found = state.ports.list(filter).await?;
    let is_more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| is_more).map(|last| cursor(last.entry.host));
    Ok(JsonAnswer(ListView { ports: found.into_iter().map(PortView::from).collect(), next_cursor }))
}

/// As many as one call adds.
const PAGE_MAX: usize = 10_000;

/// The place behind an entry.
fn cursor(port: HostPort) -> String {
    format!("{}-{}-{}", port.ip, port.port, port.protocol.as_str())
}

fn after(cursor: &str) -> Result<HostPort, ApiError> {
    let read = || {
        let mut parts = cursor.split('-');
        let (ip, port, protocol) = (parts.next()?, parts.next()?, parts.next()?);
        let protocol = Protocol::parse(protocol)?;
        Some(HostPort { ip: ip.parse().ok()?, port: port.parse().ok()?, protocol })
    };
    read().ok_or_else(|| ApiError::malformed("invalid_cursor", "the cursor is of no earlier page"))
}

/// `?protocol=`, `tcp` if left out.
#[derive(Debug, Deserialize)]
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

async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(address): Path<(IpAddr, u16)>,
    Query(protocol): Query<ProtocolQuery>,
) -> Result<JsonAnswer<PortView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    Ok(JsonAnswer(state.ports.get(protocol.on(address)).await?.into()))
}

#[derive(Debug, Deserialize)]
struct RandomQuery {
    ip: Option<IpAddr>,
    #[serde(default, deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
}

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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MarkBody {
    in_use: bool,
    /// What it is marked for, to be shown.
    note: Option<String>,
    /// To mark a port that was handed out under it.
    lease_id: Option<Uuid>,
}

#[derive(Debug, Serialize)]
struct MarkedView {
    message: &'static str,
    ip: IpAddr,
    port: u16,
    protocol: Protocol,
    in_use: bool,
    note: Option<String>,
}

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
    let claim = Claim { holder: Some(principal(&auth)), lease: body.lease_id };
    let mark = Mark { in_use: body.in_use, note: non_empty(body.note), claim };
    let found = state.ports.mark(protocol.on(address), mark).await?;
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
