//! Ports that are handed out for a time: to one panel, so that no other gets them.

use std::net::IpAddr;

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

use super::paging;
use super::port_body::optional_protocol;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{OptionalJson, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::LeasePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::IpAddress;
use crate::api::state::AppState;
use crate::domain::access::{Permission, Principal};
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::{Span, UnixSeconds};
use crate::network::pool::{Allocation, RESERVE_DEFAULT};
use crate::store::free_ports::Among;
use crate::store::leases::Lease;

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(allocate))
        .routes(routes!(list_leases))
        .routes(routes!(show_lease, end_lease))
        .routes(routes!(renew_lease))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = AllocatePorts, example = json!({"count": 3, "protocol": "tcp", "contiguous": true, "reserve": "30s"}))]
#[serde(default, deny_unknown_fields)]
struct AllocateBody {
    /// 1 if it is left out.
    #[schema(minimum = 1, maximum = 1000)]
    count: Option<usize>,
    #[serde(deserialize_with = "optional_protocol")]
    protocol: Option<Protocol>,
    /// Of this address only.
    #[schema(value_type = Option<IpAddress>)]
    ip: Option<IpAddr>,
    /// Of one address and with following numbers.
    contiguous: bool,
    /// How long they are held, at most an hour; 30 seconds if it is left out, or as long as `lease_id` lasts.
    reserve: Option<Span>,
    /// A lease to add them to; its end only ever moves back.
    lease_id: Option<Uuid>,
}

/// A lease, and its ports that no container has bound yet.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortLease)]
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

refusals!(LeaseRefusals: ; 404: "not_found");

/// Hands out free ports and holds them for a while.
///
/// Whoever shows `lease_id`, or comes with the same token, may give them to a container; nobody else is
/// given them. With a `lease_id` they are added to that lease, which lasts on as it did, or for
/// `reserve` from now on if that is longer.
#[utoipa::path(
    post, path = "/network/ports/allocate", tag = "network",
    request_body = Option<AllocateBody>,
    responses((status = 201, description = "Those that are held now", body = LeaseView), LeaseRefusals),
)]
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
        reserve: body.reserve.map(|Span(reserve)| reserve),
        lease: body.lease_id,
        holder: auth.principal().name(),
    };
    let lease = state.ports.by(auth.actor()).allocate(wanted).await?;
    Ok((StatusCode::CREATED, JsonAnswer(lease.into())))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// So many at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortLeaseList)]
struct ListView {
    leases: Vec<LeaseView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<Uuid>,
}

refusals!(ListRefusals: ; 400: "invalid_cursor");

/// Lists the leases that were made with this token.
///
/// A lease's id is as good as its ports. The node's own token sees all.
#[utoipa::path(
    get, path = "/network/leases", tag = "network",
    params(ListQuery),
    responses((status = 200, description = "The leases, the oldest first", body = ListView), ListRefusals),
)]
async fn list_leases(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    let limit = paging::limit(query.limit)?;
    let after = paging::cursor(query.cursor.as_deref(), |text| Uuid::try_parse(text).ok())?;
    let holder = match auth.principal() {
        Principal::Node | Principal::Anonymous => None,
        Principal::Token { .. } => Some(auth.principal().name()),
    };
    // One more than asked for says that there is another page.
    let found = state.ports.leases(holder, after, limit + 1).await?;
    let (shown, next_cursor) = paging::page(found, limit, |last| last.id);
    let leases = shown.into_iter().map(LeaseView::from).collect();
    Ok(JsonAnswer(ListView { leases, next_cursor }))
}

/// Shows a lease, and its ports that no container has yet.
#[utoipa::path(
    get, path = "/network/leases/{id}", tag = "network",
    params(LeasePath),
    responses((status = 200, description = "The lease", body = LeaseView), LeaseRefusals),
)]
async fn show_lease(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
) -> Result<JsonAnswer<LeaseView>, ApiError> {
    auth.require(Permission::NetworkRead)?;
    Ok(JsonAnswer(state.ports.lease(id).await?.into()))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = RenewLease)]
#[serde(default, deny_unknown_fields)]
struct RenewBody {
    /// How long it is kept from now on, at most an hour; 30 seconds if it is left out.
    reserve: Option<Span>,
}

/// Keeps a lease for longer.
#[utoipa::path(
    post, path = "/network/leases/{id}/renew", tag = "network",
    params(LeasePath), request_body = Option<RenewBody>,
    responses((status = 200, description = "It lasts so long from now on", body = LeaseView), LeaseRefusals),
)]
async fn renew_lease(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    OptionalJson(body): OptionalJson<RenewBody>,
) -> Result<JsonAnswer<LeaseView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let reserve = body.reserve.map_or(RESERVE_DEFAULT, |Span(reserve)| reserve);
    Ok(JsonAnswer(state.ports.by(auth.actor()).renew(id, reserve).await?.into()))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortLeaseEnded)]
struct EndedView {
    #[schema(example = "Lease ended")]
    message: &'static str,
    lease_id: Uuid,
    /// So many ports are free again.
    #[schema(example = 3)]
    released_count: usize,
}

/// Ends a lease; its ports are free again.
#[utoipa::path(
    delete, path = "/network/leases/{id}", tag = "network",
    params(LeasePath),
    responses((status = 200, description = "It has ended", body = EndedView), LeaseRefusals),
)]
async fn end_lease(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
) -> Result<JsonAnswer<EndedView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let lease = state.ports.by(auth.actor()).end_lease(id).await?;
    let view =
        EndedView { message: "Lease ended", lease_id: id, released_count: lease.ports.len() };
    Ok(JsonAnswer(view))
}
