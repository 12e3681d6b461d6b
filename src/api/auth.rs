//! Who asks: the first thing a handler takes from a request.
//!
//! Token first (401), then the vendor's media type (403), then what the token is good for (403): by the
//! table of [`super::permissions`] for the route, and by the handler for what the address names. An
//! unknown route or method is answered before any of it, because only handlers that exist ask.

use std::collections::BTreeSet;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};

use super::client::Local;
use super::error::ApiError;
use super::hold::{GrantSlot, OnGrant};
use super::layers::REQUEST_ID;
use super::permissions;
use super::state::AppState;
use crate::access::Grant;
use crate::domain::access::{Permission, Principal, Resource, allows, permits};
use crate::domain::audit::{Actor, Way, Who};
use crate::domain::client::ClientAddress;
use crate::domain::ids::ContainerId;
use crate::supervisor::ContainerHandle;

const VENDOR: &str = "application/vnd.pkglatv1+json";

/// What lightd's own command line calls itself.
const CLI: &str = "lightd-cli/";

/// A caller whose token is good.
#[derive(Clone, Debug)]
pub(crate) struct Auth {
    principal: Principal,
    /// As the audit log names the principal.
    who: Who,
    caller: Caller,
}

/// Where a request comes from, and how.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    client: ClientAddress,
    /// On the node itself.
    is_local: bool,
    way: Way,
    request_id: Option<String>,
}

/// A caller that stays: it may bring its token in the address, as browsers must for a socket, and has
/// to leave when the grant ends.
#[derive(Debug)]
pub(crate) struct StayingAuth {
    pub(crate) auth: Auth,
    pub(crate) grant: Grant,
}

impl StayingAuth {
    /// With a token that comes from where `caller` is.
    pub(crate) async fn check(
        state: &AppState,
        token: Option<&str>,
        caller: Caller,
    ) -> Result<Self, ApiError> {
        let grant = caller.grant(state, token).await?;
        Ok(Self { auth: Auth::new(&grant, caller), grant })
    }
}

impl Caller {
    async fn of(parts: &mut Parts, state: &AppState, way: Way) -> Result<Self, ApiError> {
        let client = ClientAddress::from_request_parts(parts, state).await?;
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let is_cli = text(header::USER_AGENT).is_some_and(|agent| agent.starts_with(CLI));
        let request_id = text(REQUEST_ID).map(str::to_owned);
        let is_local = parts.extensions.get::<Local>().is_some();
        Ok(Self { client, is_local, way: if is_cli { Way::Cli } else { way }, request_id })
    }

    /// What this token gives here.
    async fn grant(&self, state: &AppState, token: Option<&str>) -> Result<Grant, ApiError> {
        let grant = state.access.check(token, self.client).await?;
        let goes_by_list = !self.is_local;
        Ok(if goes_by_list { state.access.while_admitted(grant, self.client) } else { grant })
    }
}

impl Auth {
    /// What goes on for this caller hangs on its grant from here on.
    async fn check(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let caller = Caller::of(parts, state, Way::Rest).await?;
        let grant = caller.grant(state, bearer(&parts.headers)).await?;
        keep_connection(parts).await;
        let auth = Self::new(&grant, caller);
        if let Some(slot) = parts.extensions.get::<GrantSlot>() {
            slot.put(grant);
        }
        Ok(auth)
    }

    fn new(grant: &Grant, caller: Caller) -> Self {
        let principal = grant.principal.clone();
        let who = match &principal {
            Principal::Node => Who::Node,
            Principal::Anonymous => Who::Anonymous,
            Principal::Token { id, .. } => {
                Who::Token { id: *id, prefix: grant.prefix.clone().unwrap_or_default() }
            }
        };
        Self { principal, who, caller }
    }

    pub(crate) fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The only containers that the caller's token is good for, if it names any.
    pub(crate) fn named_containers(&self) -> Option<&BTreeSet<ContainerId>> {
        match &self.principal {
            Principal::Token { scope, .. } => scope.containers.as_ref(),
            Principal::Node | Principal::Anonymous => None,
        }
    }

    /// Where the caller is.
    pub(crate) fn client(&self) -> ClientAddress {
        self.caller.client
    }

    /// The same, for a token that it brings later.
    pub(crate) fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// Who acts, for the audit log.
    pub(crate) fn actor(&self) -> Actor {
        let Caller { client, way, request_id, .. } = self.caller();
        Actor { who: self.who.clone(), way, address: Some(client), request_id }
    }

    /// Whether this may be done with what belongs to no container.
    pub(crate) fn require(&self, permission: Permission) -> Result<(), ApiError> {
        self.require_on(permission, Resource::Node)
    }

    pub(crate) fn require_on(
        &self,
        permission: Permission,
        resource: Resource<'_>,
    ) -> Result<(), ApiError> {
        if allows(self.principal(), permission, resource) { Ok(()) } else { Err(ApiError::scope()) }
    }

    /// As [`Auth::require`], for a list that shows only what the caller may see.
    pub(crate) fn require_for_list(&self, permission: Permission) -> Result<(), ApiError> {
        if permits(&self.principal, permission) { Ok(()) } else { Err(ApiError::scope()) }
    }

    pub(crate) fn may(&self, permission: Permission, container: &ContainerId) -> bool {
        allows(self.principal(), permission, Resource::Container(container))
    }

    /// A refusal as this caller may hear it: it names another's container only to who may read that one.
    pub(crate) fn told(&self, refusal: impl Into<ApiError>) -> ApiError {
        refusal.into().naming(|by| self.may(Permission::ContainersRead, by))
    }

    /// The container, if this caller may do that with it, for what this caller asks of it. Whether it
    /// exists is not told to others.
    pub(crate) fn container(
        &self,
        state: &AppState,
        id: &ContainerId,
        permission: Permission,
    ) -> Result<ContainerHandle, ApiError> {
        self.require_on(permission, Resource::Container(id))?;
        let handle = state.supervisor.get(id).ok_or_else(ApiError::no_such_container)?;
        Ok(handle.by(self.actor()))
    }
}

impl FromRequestParts<AppState> for Auth {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        // Asked about already, by a layer that had to know.
        if let Some(auth) = parts.extensions.remove::<Self>() {
            return Ok(auth);
        }
        let auth = Self::check(parts, state).await?;
        // The vendor's header belongs to authorization, and is off with it.
        if *auth.principal() != Principal::Anonymous && !accepts_vendor(&parts.headers) {
            let message = "the Accept header must hold Application/vnd.pkglatv1+json";
            return Err(ApiError::forbidden("vendor", message));
        }
        permissions::check(parts, auth.principal())?;
        Ok(auth)
    }
}

impl FromRequestParts<AppState> for StayingAuth {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let caller = Caller::of(parts, state, Way::WebSocket).await?;
        let token = token_in_query(&parts.uri).or_else(|| bearer(&parts.headers));
        let staying = Self::check(state, token, caller).await?;
        keep_connection(parts).await;
        permissions::check(parts, staying.auth.principal())?;
        Ok(staying)
    }
}

async fn keep_connection(parts: &Parts) {
    if let Some(on_grant) = parts.extensions.get::<OnGrant>() {
        on_grant.granted().await;
    }
}

/// The token of an `Authorization: Bearer …` header; the scheme's case does not matter.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A token has no character that would be written differently in an address.
fn token_in_query(uri: &Uri) -> Option<&str> {
    uri.query()?.split('&').find_map(|pair| pair.strip_prefix("token="))
}

/// Whether any `Accept` header lists the vendor's media type; parameters are passed over.
fn accepts_vendor(headers: &HeaderMap) -> bool {
    let types = headers.get_all(header::ACCEPT).into_iter();
    types.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|item| {
        let media_type = item.split_once(';').map_or(item, |(media_type, _)| media_type);
        media_type.trim().eq_ignore_ascii_case(VENDOR)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_vendor_type_is_compared_as_media_types_are() {
        let accepts = |values: &[&str]| accepts_vendor(&headers(header::ACCEPT, values));
        assert!(accepts(&["Application/vnd.pkglatv1+json"]));
        assert!(accepts(&["application/VND.PKGLATV1+JSON"]));
        assert!(accepts(&["text/html, application/vnd.pkglatv1+json;q=0.5 , */*"]));
        assert!(accepts(&["text/html", "application/vnd.pkglatv1+json; charset=utf-8"]));
        assert!(!accepts(&[]));
        assert!(!accepts(&["application/json", "*/*"]));
        assert!(!accepts(&["application/vnd.pkglatv1+jsonx"]));
        assert!(!accepts(&["text/html;x=application/vnd.pkglatv1+json"]));
    }

    #[test]
    fn the_bearer_scheme_is_read_in_any_case() {
        let token =
            |value: &str| bearer(&headers(header::AUTHORIZATION, &[value])).map(str::to_owned);
        assert_eq!(token("Bearer lightd_x").as_deref(), Some("lightd_x"));
        assert_eq!(token("bearer  lightd_x").as_deref(), Some("lightd_x"));
        assert_eq!(token("Basic lightd_x"), None);
        assert_eq!(token("lightd_x"), None);
    }

    #[test]
    fn a_token_is_found_anywhere_in_the_query() {
        let token = |uri: &'static str| token_in_query(&Uri::from_static(uri)).map(str::to_owned);
        assert_eq!(token("/ws/a?token=lightd_x").as_deref(), Some("lightd_x"));
        assert_eq!(
            token("/ws/a?since=1&token=lightd_x&events=console").as_deref(),
            Some("lightd_x")
        );
        assert_eq!(token("/ws/a?xtoken=1"), None);
        assert_eq!(token("/ws/a"), None);
    }
}
