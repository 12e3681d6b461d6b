//! Tokens for others: issued, listed, revoked. Only the node's own token may.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::access::TokenRequest;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{OptionalJson, Path};
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::Rfc3339;
use crate::api::state::AppState;
use crate::domain::access::{Permission, Scope, TokenId};
use crate::domain::ids::ContainerId;
use crate::domain::spec::Problem;
use crate::domain::units::{Span, UnixSeconds};
use crate::store::tokens::TokenRow;

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(issue, list)).routes(routes!(revoke))
}

/// Long enough to open a socket and to come back after a break.
const TTL_DEFAULT: Span = Span(Duration::from_secs(15 * 60));

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = IssueToken, example = json!({"ttl": "15m", "remove_on_use": true, "containers": ["server-001"], "permissions": ["console.read"]}))]
#[serde(default, deny_unknown_fields)]
struct IssueBody {
    /// How long it is good, from `1s` to `365d`; 15 minutes if it is left out.
    ttl: Option<Span>,
    /// Good for exactly one request, or one socket.
    remove_on_use: bool,
    /// The only containers it is good for.
    containers: Option<BTreeSet<ContainerId>>,
    /// The only things it is good for.
    #[schema(value_type = Option<BTreeSet<Permission>>)]
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

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TokenIssued)]
struct IssuedView {
    id: TokenId,
    /// Told here and never again.
    #[schema(example = "lightd_0123456789abcdef")]
    token: String,
    #[schema(value_type = Rfc3339)]
    expires_at: String,
}

/// Issues a token. Only the node's own token may.
#[utoipa::path(
    post, path = "/auth/tokens", tag = "tokens",
    request_body = Option<IssueBody>,
    responses((status = 201, description = "The token", body = IssuedView)),
)]
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

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TokenList)]
struct ListView {
    tokens: Vec<TokenView>,
}

/// An issued token, without the token.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Token)]
struct TokenView {
    id: TokenId,
    /// How it begins.
    #[schema(example = "lightd_01234567")]
    prefix: String,
    /// `null`: all of them.
    #[schema(required)]
    containers: Option<BTreeSet<ContainerId>>,
    /// `null`: all of them.
    #[schema(required)]
    permissions: Option<BTreeSet<Permission>>,
    remove_on_use: bool,
    #[schema(value_type = Rfc3339)]
    created_at: String,
    #[schema(value_type = Rfc3339)]
    expires_at: String,
    #[schema(required, value_type = Option<Rfc3339>)]
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

/// Lists the issued tokens, without themselves.
#[utoipa::path(
    get, path = "/auth/tokens", tag = "tokens",
    responses((status = 200, description = "All of them", body = ListView)),
)]
async fn list(auth: Auth, State(state): State<AppState>) -> Result<Json<ListView>, ApiError> {
    auth.require(Permission::Tokens)?;
    let rows = state.access.list().await?;
    Ok(Json(ListView { tokens: rows.into_iter().map(TokenView::from).collect() }))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TokenRevoked)]
struct RevokedView {
    #[schema(example = "Token revoked")]
    message: &'static str,
    id: TokenId,
}

refusals!(RevokeRefusals: ; 404: "not_found");

/// Revokes a token. Its sockets end at once.
#[utoipa::path(
    delete, path = "/auth/tokens/{id}", tag = "tokens",
    params(("id" = TokenId, Path)),
    responses((status = 200, description = "It is good no more", body = RevokedView), RevokeRefusals),
)]
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
