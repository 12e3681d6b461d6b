//! The API's own description: `GET /openapi.json`, `GET /docs` and `lightd openapi`.
//!
//! The document is made from the routes themselves: a handler that is not described cannot be routed,
//! and what is described is what is routed. What a handler's types and the layers around it say already
//! is not said again: [`finish`] adds to every call what it answers because it wants a token, has a
//! body, has parameters, has a deadline or takes an `Idempotency-Key`.
//!
//! # How to describe a route
//!
//! 1. Above the handler, with the doc comment as summary (first line) and description (the rest):
//!    ```text
//!    /// Resizes a volume.
//!    #[utoipa::path(
//!        post, path = "/volumes/{id}/resize", tag = "volumes",
//!        params(VolumePath),                    // and a query: params(VolumePath, ListQuery)
//!        request_body = ResizeBody,             // OptionalJson: request_body = Option<ResizeBody>
//!        responses((status = 200, description = "It has the new size", body = ResizedView),
//!                  ResizeRefusals),
//!    )]
//!    ```
//! 2. Routed with `Routes::default().routes(routes!(create, list))`: one `routes!` for each path, with all
//!    of its methods.
//! 3. What it may refuse, above it: `refusals!(ResizeRefusals: VOLUME; 409: "below_use", "volume_in_use");`
//!    names groups of [`refusals`] and codes of its own. Left to [`finish`]: 401, 403, 413 and 500; 503
//!    `busy` and `stopping` and 507 of whatever wants a token; 400 of the address, the query and a JSON
//!    body; `timeout`; those of the `Idempotency-Key`. A call without codes of its own needs no `refusals!`.
//! 4. Bodies derive `ToSchema` with a name of their own in the whole document: `#[schema(as = VolumeList)]`
//!    on `ListView`. Queries derive `IntoParams` with `#[into_params(parameter_in = Query)]`. Doc comments
//!    become descriptions.
//!    - In an answer, an `Option` is `#[schema(required)]`: it is there, as `null`. One that is left out
//!      instead (`skip_serializing_if`) is `#[schema(nullable = false)]`.
//!    - In a request, `Option` of what must be there is `#[schema(required = true, value_type = String)]`;
//!      limits that are checked are said: `#[schema(minimum = 1, maximum = 600)]`, a port's `maximum = 65_535`.
//!    - `&'static str` of a fixed set is an enum: `#[schema(value_type = ContainerState)]`, in [`schemas`].
//!    - `IpAddr` is `#[schema(value_type = IpAddress)]`.
//! 5. Types of other modules get their schema in [`schemas`], structs that are served as they are in
//!    [`mirrors`], which keeps `domain` free of this.
//! 6. No token: `security(())`. A token, but not the vendor's header: `security(("token" = []))`.
//! 7. `cargo run -- openapi > docs/openapi.json` afterwards; tests compare it, and hold every answer that
//!    they get to it.

mod docs;
mod example;
mod finish;
mod frame;
pub(in crate::api) mod mirrors;
pub(in crate::api) mod params;
pub(in crate::api) mod refusals;
pub(in crate::api) mod schemas;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::schemas::UsageStep;
use super::state::AppState;
use crate::console::Mark;

pub(super) use self::docs::routes as docs_routes;
pub(super) use self::finish::Deadline;

/// Routes with their description.
pub(in crate::api) type Routes = OpenApiRouter<AppState>;

pub(super) fn routes() -> Routes {
    /// What only parameters name is not found by itself.
    #[derive(OpenApi)]
    #[openapi(components(schemas(Mark, UsageStep)))]
    struct OfParameters;

    Routes::with_openapi(OfParameters::openapi()).routes(routes!(document))
}

/// The whole document, out of the descriptions of the routes.
pub(crate) fn describe() -> Value {
    let mut whole = frame::frame();
    for (routes, deadline) in super::described() {
        let mut part = serde_json::to_value(routes.into_openapi())
            .expect("invariant: a description is made of plain values");
        finish::finish(&mut part, deadline);
        frame::take_in(&mut whole, part);
    }
    example::add_examples(&mut whole);
    whole
}

/// As it is served and printed.
pub(crate) fn text() -> String {
    format!("{:#}\n", describe())
}

/// The API in OpenAPI 3.1.
///
/// Made of the same code that answers: this document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "public", security(()),
    responses((status = 200, description = "An OpenAPI 3.1 document", body = utoipa::openapi::Object)),
)]
async fn document() -> Response {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| text().into());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}
