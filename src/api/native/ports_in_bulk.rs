//! Many ports at once: taken out of the pool, or into it from what containers publish that lightd does
//! not manage.

use std::net::IpAddr;

use axum::Json as JsonAnswer;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::port_body::optional_protocol;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Json;
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::{ImportOutcome, IpAddress};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::spec::{HostPort, Protocol};
use crate::store::ports::{Imported, NotDeleted};
use crate::supervisor::ImportedPort;

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(delete_many)).routes(routes!(import))
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
    let outcome = state.ports.by(auth.actor()).delete_many(ports).await?;
    Ok(JsonAnswer(BulkDeletedView {
        message: "Ports deleted",
        deleted_count: outcome.deleted.len(),
        kept: outcome.kept.into_iter().map(KeptView::from).collect(),
    }))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortsImported)]
struct ImportView {
    #[schema(example = "1 port imported")]
    message: String,
    ports: Vec<ImportedView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortImported)]
struct ImportedView {
    #[schema(value_type = IpAddress)]
    ip: IpAddr,
    #[schema(example = 25565)]
    port: u16,
    protocol: Protocol,
    /// The name of the Docker container that publishes it.
    #[schema(example = "lightd-server-001")]
    published_by: String,
    /// `added` to the pool and marked, `marked`, or `known`: kept from others already.
    #[schema(value_type = ImportOutcome)]
    outcome: &'static str,
}

refusals!(ImportRefusals: ENGINE);

/// Takes into the pool what containers publish that lightd does not manage.
///
/// Those are named `lightd-…` and are not this lightd's, or are and have no row any more.
#[utoipa::path(
    post, path = "/network/ports/import", tag = "network",
    responses((status = 200, description = "What they publish", body = ImportView), ImportRefusals),
)]
async fn import(
    auth: Auth,
    State(state): State<AppState>,
) -> Result<JsonAnswer<ImportView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let found = state.supervisor.import_ports(auth.actor()).await?;
    let news = found.iter().filter(|found| found.outcome != Imported::Known).count();
    let view = |found: ImportedPort| ImportedView {
        ip: found.port.ip,
        port: found.port.port,
        protocol: found.port.protocol,
        published_by: found.by,
        outcome: match found.outcome {
            Imported::Added => "added",
            Imported::Marked => "marked",
            Imported::Known => "known",
        },
    };
    let message = format!("{news} {} imported", if news == 1 { "port" } else { "ports" });
    Ok(JsonAnswer(ImportView { message, ports: found.into_iter().map(view).collect() }))
}
