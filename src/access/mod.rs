//! Who is asking: tokens checked, issued, revoked.
//!
//! [`Access::check`] turns a bearer token into a [`Grant`]. What a grant's principal may then do is
//! decided by [`crate::domain::access::allows`]. A grant ends with its token: [`Grant::ended`] tells
//! a socket when to close, so that no connection outlives the right to it.
//!
//! The node's token is compared by digest in constant time, and always with the present one; an issued
//! token is found by the digest that is stored. A token that is good for one use is taken by deleting
//! its row, which only one of two requests can do.

pub(crate) mod grant;

use std::time::Duration;

use tokio::sync::{broadcast, watch};

pub(crate) use self::grant::Grant;
use crate::domain::access::{Scope, TOKEN_PREFIX, TokenId, is_token};
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::units::{Span, UnixSeconds};
use crate::store::tokens::{NewToken, TokenRow};
use crate::store::{Store, StoreError};
use crate::util::secret::{Secret, SecretDigest, random_text};

const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// How exact the time of a token's last use is; each request would be a write otherwise.
const LAST_USE_SECONDS: i64 = 60;
/// Revocations that a socket may be behind before it asks the store instead.
const REVOCATIONS: usize = 64;
/// Characters of a token that lists show.
const SHOWN_CHARS: usize = TOKEN_PREFIX.len() + 6;

#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("a token is needed: Authorization: Bearer lightd_…")]
    NoToken,
    /// Unknown, revoked, used up and expired look the same from outside.
    #[error("the token is not valid")]
    BadToken,
    #[error("ttl must be between 1s and 365d")]
    BadTtl,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The part of the configuration that decides who gets in.
#[derive(Clone, Debug)]
pub(crate) struct AccessSettings {
    pub(crate) enabled: bool,
    pub(crate) node_token: SecretDigest,
    /// Empty: no list.
    pub(crate) allowed_origins: Vec<String>,
}

/// Checks and issues tokens; clones share everything but for whom they act: lightd itself unless
/// [`Access::by`] says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    store: Store,
    actor: Actor,
    settings: watch::Receiver<AccessSettings>,
    revoked: broadcast::Sender<TokenId>,
}

/// A token to be issued.
#[derive(Clone, Debug)]
pub(crate) struct TokenRequest {
    pub(crate) ttl: Span,
    pub(crate) remove_on_use: bool,
    pub(crate) scope: Scope,
}

/// The only time that an issued token is seen.
#[derive(Clone, Debug)]
pub(crate) struct IssuedToken {
    pub(crate) id: TokenId,
    pub(crate) token: Secret,
    pub(crate) expires_at: UnixSeconds,
}

impl Access {
    pub(crate) fn new(store: Store, settings: watch::Receiver<AccessSettings>) -> Self {
        let (actor, revoked) = (Actor::lightd(), broadcast::channel(REVOCATIONS).0);
        Self { store, actor, settings, revoked }
    }

    /// The same, for this actor.
    pub(crate) fn by(&self, actor: Actor) -> Self {
        Self { actor, ..self.clone() }
    }

    /// The list of allowed origins; empty means that there is none.
    pub(crate) fn allowed_origins(&self) -> Vec<String> {
        self.settings.borrow().allowed_origins.clone()
    }

    /// Who the holder of this token is. Uses up a token that is good for one use.
    pub(crate) async fn check(&self, bearer: Option<&str>) -> Result<Grant, AccessError> {
        // Whoever is revoked after this line is told so.
        let revoked = self.revoked.subscribe();
        let (enabled, node_token) = {
            let settings = self.settings.borrow();
            (settings.enabled, settings.node_token)
        };
        if !enabled {
            return Ok(Grant::anonymous(self.settings.clone()));
        }
        let token = bearer.ok_or(AccessError::NoToken)?;
        if !is_token(token) {
            return Err(AccessError::BadToken);
        }
        let digest = SecretDigest::of(token);
        if digest == node_token {
            return Ok(Grant::node(self.settings.clone(), digest));
        }
        let row = self.use_token(digest).await?;
        Ok(Grant::issued(row, self.store.clone(), revoked))
    }

    async fn use_token(&self, digest: SecretDigest) -> Result<TokenRow, AccessError> {
        let now = UnixSeconds::now();
        let found = self.store.read("look up a token", move |rx| rx.token_by_hash(digest, now));
        let row = found.await?.ok_or(AccessError::BadToken)?;
        let id = row.id;
        if row.remove_on_use {
            let taken = self.store.write("use up a token", move |tx| tx.take_token(id)).await?;
            return taken.ok_or(AccessError::BadToken);
        }
        if row.last_used_at.is_none_or(|last| now.0 - last.0 >= LAST_USE_SECONDS) {
            let touched = self.store.write("note a token's use", move |tx| tx.touch_token(id, now));
            if let Err(why) = touched.await {
                // The token is good all the same.
                tracing::debug!(error = %why, "a token's last use was not noted");
            }
        }
        Ok(row)
    }

    pub(crate) async fn issue(&self, request: TokenRequest) -> Result<IssuedToken, AccessError> {
        if !(TTL_MIN..=TTL_MAX).contains(&request.ttl.0) {
            return Err(AccessError::BadTtl);
        }
        let token = format!("{TOKEN_PREFIX}{}", random_text());
        let issued = IssuedToken {
            id: TokenId::random(),
            expires_at: grant::after(request.ttl.0),
            token: Secret::new(&token),
        };
        let new = NewToken {
            id: issued.id,
            hash: SecretDigest::of(&token),
            prefix: token[..SHOWN_CHARS].to_owned(),
            scope: request.scope,
            remove_on_use: request.remove_on_use,
            expires_at: issued.expires_at,
        };
        let now = UnixSeconds::now();
        let act = issuing(self.actor.clone(), &new);
        let issue = move |tx: &crate::store::Tx<'_>| {
            tx.insert_token(&new, now)?;
            tx.record(&act, now)
        };
        self.store.write("issue a token", issue).await?;
        Ok(issued)
    }

    pub(crate) async fn list(&self) -> Result<Vec<TokenRow>, AccessError> {
        let now = UnixSeconds::now();
        Ok(self.store.read("list tokens", move |rx| rx.tokens(now)).await?)
    }

    /// Revokes a token; sockets that came in with it end.
    pub(crate) async fn revoke(&self, id: TokenId) -> Result<(), AccessError> {
        let act = Act::new(self.actor.clone(), Action::TokenRevoke);
        let revoke = move |tx: &crate::store::Tx<'_>| {
            tx.delete_token(id)?;
            tx.record(&act.with("token_id", id.to_string()), UnixSeconds::now())
        };
        self.store.write("revoke a token", revoke).await?;
        // Nobody may be connected at all.
        self.revoked.send(id).ok();
        Ok(())
    }
}

/// What the audit log holds of a token: all but the token.
fn issuing(actor: Actor, new: &NewToken) -> Act {
    let act = Act::new(actor, Action::TokenIssue)
        .with("token_id", new.id.to_string())
        .with("token_prefix", new.prefix.as_str())
        .with("remove_on_use", new.remove_on_use)
        .with("expires_at", new.expires_at.0);
    let Scope { containers, permissions } = &new.scope;
    let act = match containers {
        Some(containers) => act.listing("containers", containers),
        None => act,
    };
    match permissions {
        Some(permissions) => act.listing("permissions", permissions.iter().map(|one| one.name())),
        None => act,
    }
}

#[cfg(test)]
mod tests;
