//! Tokens for others: issued, listed, revoked. Only the node's own token may.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, post};
use serde::{Deserialize, Serialize};

use crate::access::TokenRequest;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{OptionalJson, Path};
use crate::api::openapi::Routes;
use crate::api::state::AppState;
use crate::domain::access::{Permission, Scope, TokenId};
use crate::domain::ids::ContainerId;
use crate::domain::spec::Problem;
use crate::domain::units::{Span, UnixSeconds};
use crate::store::tokens::TokenRow;

pub(super) fn routes() -> Routes {
    Routes::default()
        .route("/auth/tokens", post(issue).get(list))
        .route("/auth/tokens/{id}", delete(revoke))
}

/// Long enough to open a socket and to come back after a break.
const TTL_DEFAULT: Span = Span(Duration::from_secs(15 * 60));

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct IssueBody {
    ttl: Option<Span>,
    remove_on_use: bool,
    containers: Option<BTreeSet<ContainerId>>,
    permissions: Option<Vec<String>>,
}

impl IssueBody {
    fn read(self) -> Result<TokenRequest, ApiError> {
        let mut problems = Vec::new();
        let names = self.permissions.as_ref().map(|names| names.iter().enumerate());
        let permissions = names.map(|names| {
            let known = names.filter_map(|(index, name)| {
                let permission = Permission::parse(name);
                if permission.is_none() {
                    let message = format!("must be one of {}", Permission::NAMES.join(", "));
                    problems.push(Problem::new(format!("permissions[{index}]"), message));
                }
                permission
            });
            known.collect()
        });
        if !problems.is_empty() {
            return Err(ApiError::invalid(problems));
        }
        Ok(TokenRequest {
            ttl: self.ttl.unwrap_or(TTL_DEFAULT),
            remove_on_use: self.remove_on_use,
            scope: Scope { containers: self.containers, permissions },
        })
    }
}

#[derive(Debug, Serialize)]
struct IssuedView {
    id: TokenId,
    token: String,
    /// RFC 3339.
    expires_at: String,
}

async fn issue(
    auth: Auth,
    State(state): State<AppState>,
    OptionalJson(body): OptionalJson<IssueBody>,
) -> Result<(StatusCode, Json<IssuedView>), ApiError> {
    auth.require(Permission::Tokens)?;
    let issued = state.access.issue(body.read()?).await?;
    let view = IssuedView {
        id: issued.id,
        token: issued.token.expose().to_owned(),
        expires_at: rfc3339(issued.expires_at),
    };
    Ok((StatusCode::CREATED, Json(view)))
}

#[derive(Debug, Serialize)]
struct ListView {
    tokens: Vec<TokenView>,
}

/// An issued token, without the token.
#[derive(Debug, Serialize)]
struct TokenView {
    id: TokenId,
    prefix: String,
    containers: Option<BTreeSet<ContainerId>>,
    permissions: Option<BTreeSet<Permission>>,
    remove_on_use: bool,
    created_at: String,
    expires_at: String,
    last_used_at: Option<String>,
}

impl From<TokenRow> for TokenView {
    fn from(row: TokenRow) -> Self {
        Self {
            id: row.id,
            prefix: row.prefix,
            containers: row.scope.containers,
            permissions: row.scope.permissions,
            remove_on_use: row.remove_on_use,
            created_at: rfc3339(row.created_at),
            expires_at: rfc3339(row.expires_at),
            last_used_at: row.last_used_at.map(rfc3339),
        }
    }
}

async fn list(auth: Auth, State(state): State<AppState>) -> Result<Json<ListView>, ApiError> {
    auth.require(Permission::Tokens)?;
    let rows = state.access.list().await?;
    Ok(Json(ListView { tokens: rows.into_iter().map(TokenView::from).collect() }))
}

#[derive(Debug, Serialize)]
struct RevokedView {
    message: &'static str,
    id: TokenId,
}

async fn revoke(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<TokenId>,
) -> Result<Json<RevokedView>, ApiError> {
    auth.require(Permission::Tokens)?;
    state.access.revoke(id).await?;
    Ok(Json(RevokedView { message: "Token revoked", id }))
}

/// A moment that the calendar cannot write is past any date that means something.
fn rfc3339(moment: UnixSeconds) -> String {
    jiff::Timestamp::from_second(moment.0).unwrap_or(jiff::Timestamp::MAX).to_string()
}
