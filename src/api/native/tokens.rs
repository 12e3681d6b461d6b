//! Tokens for others: issued, listed, shown, revoked. Only the node's own token may.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::paging;
use crate::access::TokenRequest;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{OptionalJson, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::{IpAddress, Rfc3339};
use crate::api::state::AppState;
use crate::domain::access::{Permission, Scope, TokenId};
use crate::domain::ids::ContainerId;
use crate::domain::spec::Problem;
use crate::domain::units::{Span, UnixSeconds};
use crate::store::tokens::{TokenPage, TokenRow};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(issue, list, revoke_many)).routes(routes!(show, revoke))
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
    #[schema(value_type = Option<Vec<ContainerId>>, min_items = 1)]
    containers: Option<BTreeSet<ContainerId>>,
    /// The only things it is good for.
    #[schema(value_type = Option<Vec<Permission>>, min_items = 1)]
    permissions: Option<Vec<String>>,
}

impl IssueBody {
    fn read(self) -> Result<TokenRequest, ApiError> {
        let mut problems = Vec::new();
        // A list that is there and empty would make a token for nothing.
        let is_for_nothing = |list: Option<bool>| list == Some(true);
        if is_for_nothing(self.containers.as_ref().map(BTreeSet::is_empty)) {
            problems.push(Problem::new("containers", "must name one at least, or be left out"));
        }
        if is_for_nothing(self.permissions.as_ref().map(Vec::is_empty)) {
            problems.push(Problem::new("permissions", "must name one at least, or be left out"));
        }
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

refusals!(IssueRefusals: ; 409: "too_many_tokens");

/// Issues a token. Only the node's own token may.
///
/// What is under way with it ends when it does. What is narrowed to containers ends with them.
#[utoipa::path(
    post, path = "/auth/tokens", tag = "tokens",
    request_body = Option<IssueBody>,
    responses((status = 201, description = "The token", body = IssuedView), IssueRefusals),
)]
async fn issue(
    auth: Auth,
    State(state): State<AppState>,
    OptionalJson(body): OptionalJson<IssueBody>,
) -> Result<(StatusCode, Json<IssuedView>), ApiError> {
    auth.require(Permission::Tokens)?;
    let access = state.access.by(auth.actor());
    let issued = access.issue(body.read()?, auth.principal(), auth.client()).await?;
    let view = IssuedView {
        id: issued.id,
        token: issued.token.expose().to_owned(),
        expires_at: rfc3339(issued.expires_at),
    };
    Ok((StatusCode::CREATED, Json(view)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only tokens whose scope names this container.
    container: Option<ContainerId>,
    /// So many at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TokenList)]
struct ListView {
    tokens: Vec<TokenView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
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
    /// Whose token asked for it: `node` for the node's own.
    #[schema(example = "node")]
    issued_by: String,
    /// The address that asked for it; `null` where an earlier lightd did not keep it.
    #[schema(required, value_type = Option<IpAddress>)]
    issued_from: Option<String>,
    /// To the minute. One for a single use is used up once this is there.
    #[schema(required, value_type = Option<Rfc3339>)]
    last_used_at: Option<String>,
    #[schema(required, value_type = Option<IpAddress>)]
    last_used_from: Option<String>,
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
            issued_by: row.issued_by,
            issued_from: row.issued_from.map(|from| from.to_string()),
            last_used_at: row.last_used_at.map(rfc3339),
            last_used_from: row.last_used_from.map(|from| from.to_string()),
        }
    }
}

refusals!(ListRefusals: ; 400: "invalid_cursor");

/// Lists the issued tokens, without themselves, the oldest first.
#[utoipa::path(
    get, path = "/auth/tokens", tag = "tokens",
    params(ListQuery),
    responses((status = 200, description = "A page of them", body = ListView), ListRefusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<Json<ListView>, ApiError> {
    auth.require(Permission::Tokens)?;
    let limit = paging::limit(query.limit)?;
    let after = paging::cursor(query.cursor.as_deref(), read_cursor)?;
    // One more than asked for says that there is another page.
    let page = TokenPage { container: query.container, after, limit: limit + 1 };
    let rows = state.access.list(page).await?;
    let cursor = |last: &TokenRow| format!("{}-{}", last.created_at.0, last.id);
    let (shown, next_cursor) = paging::page(rows, limit, cursor);
    Ok(Json(ListView { tokens: shown.into_iter().map(TokenView::from).collect(), next_cursor }))
}

fn read_cursor(text: &str) -> Option<(UnixSeconds, TokenId)> {
    let (created_at, id) = text.split_once('-')?;
    Some((UnixSeconds(created_at.parse().ok()?), TokenId::parse(id)?))
}

refusals!(TokenRefusals: ; 404: "not_found");

/// Shows an issued token, without itself.
#[utoipa::path(
    get, path = "/auth/tokens/{id}", tag = "tokens",
    params(("id" = TokenId, Path)),
    responses((status = 200, description = "It", body = TokenView), TokenRefusals),
)]
async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<TokenId>,
) -> Result<Json<TokenView>, ApiError> {
    auth.require(Permission::Tokens)?;
    Ok(Json(state.access.show(id).await?.into()))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TokenRevoked)]
struct RevokedView {
    #[schema(example = "Token revoked")]
    message: &'static str,
    id: TokenId,
}

/// Revokes a token. What is under way with it ends at once.
#[utoipa::path(
    delete, path = "/auth/tokens/{id}", tag = "tokens",
    params(("id" = TokenId, Path)),
    responses((status = 200, description = "It is good no more", body = RevokedView), TokenRefusals),
)]
async fn revoke(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<TokenId>,
) -> Result<Json<RevokedView>, ApiError> {
    auth.require(Permission::Tokens)?;
    state.access.by(auth.actor()).revoke(id).await?;
    Ok(Json(RevokedView { message: "Token revoked", id }))
}

/// Exactly one of these: nobody shall revoke all tokens by leaving something out.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RevokeQuery {
    /// Every token whose scope names this container.
    container: Option<ContainerId>,
    /// `true`: every token that was issued.
    #[serde(default)]
    all: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TokensRevoked)]
struct RevokedManyView {
    #[schema(example = "Tokens revoked")]
    message: &'static str,
    /// How many that were.
    revoked: usize,
}

/// Revokes the tokens of a container, or all of them.
///
/// Exactly one of the parameters is needed. What is under way with any of them ends at once.
#[utoipa::path(
    delete, path = "/auth/tokens", tag = "tokens",
    params(RevokeQuery),
    responses((status = 200, description = "They are good no more", body = RevokedManyView)),
)]
async fn revoke_many(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<RevokeQuery>,
) -> Result<Json<RevokedManyView>, ApiError> {
    auth.require(Permission::Tokens)?;
    if query.container.is_some() == query.all {
        let message = "either this or ?all=true is needed, and not both";
        return Err(ApiError::field("?container", message));
    }
    let revoked = state.access.by(auth.actor()).revoke_all(query.container).await?;
    Ok(Json(RevokedManyView { message: "Tokens revoked", revoked }))
}

/// A moment that the calendar cannot write is past any date that means something.
fn rfc3339(moment: UnixSeconds) -> String {
    jiff::Timestamp::from_second(moment.0).unwrap_or(jiff::Timestamp::MAX).to_string()
}
