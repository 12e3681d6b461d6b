//! `GET /docs`: the document as pages to read and to try calls from.
//!
//! Swagger UI, whose files are in the program: nothing is fetched from elsewhere, which the pages' content
//! security policy also says. It asks for the token itself and holds it in memory only.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use utoipa_swagger_ui::Config;

use crate::api::error::ApiError;
use crate::api::extract::Path;
use crate::api::state::AppState;

/// Pages for people are no part of the document.
pub(in crate::api) fn routes() -> Router<AppState> {
    Router::new()
        .route("/docs", get(async || Redirect::permanent("/docs/")))
        .route("/docs/", get(async || file("index.html")))
        .route("/docs/{file}", get(async |Path(name): Path<String>| file(&name)))
}

/// Swagger UI sets the styles of some of its elements itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                      img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

fn config() -> Arc<Config<'static>> {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
        let config = Config::new(["../openapi.json"]);
        Arc::new(config.doc_expansion("none").filter(true).validator_url("none"))
    });
    Arc::clone(&CONFIG)
}

fn file(name: &str) -> Result<Response, ApiError> {
    let found = utoipa_swagger_ui::serve(name, config())
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let file = found.ok_or_else(|| ApiError::not_found("there is no such page"))?;
    let fixed = HeaderValue::from_static;
    let mut headers = HeaderMap::new();
    let kind = HeaderValue::try_from(file.content_type).map_err(ApiError::internal)?;
    headers.insert(header::CONTENT_TYPE, kind);
    if file.gzpipped {
        headers.insert(header::CONTENT_ENCODING, fixed("gzip"));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, fixed(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
    headers.insert(header::REFERRER_POLICY, fixed("no-referrer"));
    headers.insert(header::CACHE_CONTROL, fixed("no-cache"));
    Ok((StatusCode::OK, headers, file.bytes.into_owned()).into_response())
}
