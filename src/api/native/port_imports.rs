//! Ports that containers publish which lightd does not manage, taken into the pool.

use axum::extract::State;
use axum::routing::post;
use axum::{Json as JsonAnswer, Router};
use serde::Serialize;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::spec::HostPort;
use crate::store::ports::Imported;
use crate::supervisor::ImportedPort;

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/network/ports/import", post(import))
}

#[derive(Debug, Serialize)]
struct ImportView {
    message: String,
    ports: Vec<ImportedView>,
}

#[derive(Debug, Serialize)]
struct ImportedView {
    #[serde(flatten)]
    port: HostPort,
    /// The name of the Docker container that publishes it.
    published_by: String,
    /// `added` to the pool and marked, `marked`, or `known`: kept from others already.
    outcome: &'static str,
}

async fn import(
    auth: Auth,
    State(state): State<AppState>,
) -> Result<JsonAnswer<ImportView>, ApiError> {
    auth.require(Permission::NetworkWrite)?;
    let found = state.supervisor.import_ports().await?;
    let news = found.iter().filter(|found| found.outcome != Imported::Known).count();
    let view = |found: ImportedPort| ImportedView {
        port: found.port,
        published_by: found.by,
        outcome: match found.outcome {
            Imported::Added => "added",
            Imported::Marked => "marked",
            Imported::Known => "known",
        },
    };
    let message = format!("{news} ports imported");
    Ok(JsonAnswer(ImportView { message, ports: found.into_iter().map(view).collect() }))
}
