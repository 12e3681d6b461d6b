//! The edge: HTTP and WebSocket, and the only module that names axum.
//!
//! Handlers translate. They read a request into the domain's types, ask a service whose handle lies in
//! [`state::AppState`], and render what it says; nothing is decided here but who may ask. Every failure
//! leaves through [`error::ApiError`].
//!
//! ```text
//!   connection -> identify (address) -> observe (id, log line) -> admit (address) -> linger -> catch panics
//!              -> origin -> hold (grant) -> deadline -> route
//!                                           handler: Auth, Path, Query, Json
//!                                           /ws/{id}: upgrade -> one task per socket
//! ```

mod auth;
mod client;
mod error;
mod extract;
mod failure;
mod hold;
mod idempotency;
mod layers;
mod linger;
mod native;
mod openapi;
mod past;
mod permissions;
mod query_names;
mod state;
#[cfg(test)]
mod tests;
mod ws;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tower_http::catch_panic::CatchPanicLayer;

use self::error::ApiError;
pub(crate) use self::hold::OnGrant;
pub(crate) use self::idempotency::Idempotency;
pub(crate) use self::native::SyncState;
pub(crate) use self::openapi::text as openapi_text;
use self::openapi::{Deadline, Routes};
pub(crate) use self::state::{AppState, Services};
pub(crate) use self::ws::Sockets;

/// Everything lightd answers.
pub(crate) fn router(state: AppState) -> Router {
    let once = || from_fn_with_state(state.clone(), idempotency::idempotent);
    let [(quick, _), (long, _)] = described();
    let quick = Router::from(quick).route_layer(once()).route_layer(from_fn(layers::deadline));
    let long = Router::from(long).route_layer(once());
    let described = quick.merge(long).route_layer(from_fn(query_names::known));
    let routes = described.merge(openapi::docs_routes());
    with_layers(with_fallbacks(routes), &state).with_state(state)
}

/// The routes with their descriptions, by the deadline that they have.
fn described() -> [(Routes, Deadline); 2] {
    let quick = native::quick_routes().merge(openapi::routes());
    let long = native::long_routes().merge(ws::routes());
    [(quick, Deadline::Common), (long, Deadline::Own)]
}

/// Answers for what no route answers, before any token is asked for.
fn with_fallbacks<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .fallback(async || ApiError::not_found("there is no such address"))
        .method_not_allowed_fallback(async || ApiError::wrong_method())
}

/// The layers around every answer. The one added last is met first.
fn with_layers(routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    routes
        .layer(from_fn(hold::hold))
        .layer(from_fn_with_state(state.clone(), layers::origin))
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(from_fn(linger::linger))
        .layer(from_fn_with_state(state.clone(), client::admit))
        .layer(from_fn(layers::observe))
        .layer(from_fn_with_state(state.clone(), client::identify))
}
