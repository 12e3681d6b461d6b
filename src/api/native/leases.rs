//! Ports that are handed out for a time: to one panel, so that no other gets them.

use std::net::IpAddr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json as JsonAnswer, Router};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::container_body::optional_protocol;
use super::volumes::page_limit;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{OptionalJson, Path, Query};
use crate::api::idempotency::principal;
use crate::api::state::AppState;
use crate::domain::access::{Permission, Principal};
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::{Span, UnixSeconds};
use crate::network::pool::Allocation;
use crate::store::free_ports::Among;
use crate::store::leases::Lease;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/network/ports/allocate", post(allocate))
        .route("/network/leases", get(list))
        .route("/network/leases/{id}", get(show).delete(end))
        .route("/network/leases/{id}/renew", post(renew))
}

/// `POST /network/ports/allocate`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AllocateBody {
    /// 1 if left out.
    count: Option<usize>,
    #[serde(deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
    /// Of this address only.
    ip: Option<IpAddr>,
    /// Of one address and with following numbers.
    contiguous: bool,
    /// How long they are held: `30s` if left out.
    reserve: Option<Span>,
    /// A lease to add them to, and to keep for so long from now on.
    lease_id: Option<Uuid>,
}

/// Long enough to create a container with what was handed out.
const RESERVE_DEFAULT: Span = Span(std::time::Duration::from_secs(30));

/// A lease, and its ports that no container has bound yet.
#[derive(Debug, Serialize)]
struct LeaseView {
    ports: Vec<HostPort>,
    lease_id: Uuid,
    created_at: UnixSeconds,
    expires_at: UnixSeconds,
}

impl From<Lease> for LeaseView {
    fn from(lease: Lease) -> Self {
        Self {
            ports: lease.ports,
            lease_id: lease.id,
            created_at: lease.created_at,
            expires_at: lease.expires_at,
        }
    }
}

async fn allocate(
    auth: Auth,
    State(state): State<AppState>,
    OptionalJson(body): OptionalJson<AllocateBody>,
) -> Result<(StatusCode, JsonAnswer<LeaseView>), ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let wanted = Allocation {
        count: body.count.unwrap_or(1),
        among: Among { protocol: body.protocol.unwrap_or(Protocol::Tcp), ip: body.ip },
        contiguous: body.contiguous,
        reserve: body.reserve.unwrap_or(RESERVE_DEFAULT).0,
        lease: body.lease_id,
        holder: principal(&auth),
    };
    let lease = state.ports.allocate(wanted).await?;
    Ok((StatusCode::CREATED, JsonAnswer(lease.into())))
}

#[derive(Debug, Deserialize)]
struct ListQuery {
    limit: Option<usize>,
    cursor: Option<Uuid>,
}

#[derive(Debug, Serialize)]
struct ListView {
    leases: Vec<LeaseView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    next_cursor: Option<Uuid>,
}

const PAGE_MAX: usize = 1000;

/// The caller's own: an id is as good as the ports. The node's token sees all.
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    let limit = page_limit(query.limit, PAGE_MAX)?;
    let holder = match auth.principal() {
        Principal::Node | Principal::Anonymous => None,
        Principal::Token { .. } => Some(principal(&auth)),
    };
    let mut found = state.ports.leases(holder, query.cursor, limit + 1).await?;
    let is_more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| is_more).map(|last| last.id);
    Ok(JsonAnswer(ListView {
        leases: found.into_iter().map(LeaseView::from).collect(),
        next_cursor,
    }))
}

async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
) -> Result<JsonAnswer<LeaseView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    Ok(JsonAnswer(state.ports.lease(id).await?.into()))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RenewBody {
    /// How long it is kept from now on: `30s` if left out.
    reserve: Option<Span>,
}

async fn renew(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    OptionalJson(body): OptionalJson<RenewBody>,
) -> Result<JsonAnswer<LeaseView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let reserve = body.reserve.unwrap_or(RESERVE_DEFAULT).0;
    Ok(JsonAnswer(state.ports.renew(id, reserve).await?.into()))
}

#[derive(Debug, Serialize)]
struct EndedView {
    message: &'static str,
    lease_id: Uuid,
    released_count: usize,
}

async fn end(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
) -> Result<JsonAnswer<EndedView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let lease = state.ports.end_lease(id).await?;
    let view =
        EndedView { message: "Lease ended", lease_id: id, released_count: lease.ports.len() };
    Ok(JsonAnswer(view))
}
