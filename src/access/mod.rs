//! Who is asking: tokens checked, issued, revoked.
//!
//! [`Access::check`] turns a bearer token into a [`Grant`]. What a grant's principal may then do is
//! decided by [`crate::domain::access::allows`]. A grant ends with its token: [`Grant::ended`] tells
//! a socket or a transfer when to end, so that no connection outlives the right to it.
//!
//! The node's token is compared by digest in constant time, and always with the present one and the one
//! before it while that has its grace; an issued token is found by the digest that is stored. One that
//! is good for one use is taken by marking its row, which only one of two requests can do. Who fails too
//! often from one address is slowed down: see [`attempts`].

mod attempts;
#[cfg(feature = "benching")]
pub(crate) mod benching;
pub(crate) mod grant;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Semaphore, watch};

use self::attempts::Attempts;
pub(crate) use self::grant::{Ended, Grant};
pub(crate) use self::settings::{AccessSettings, AttemptLimit, PreviousToken};
use crate::domain::access::{Principal, Scope, TOKEN_PREFIX, TokenId, is_token};
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::client::ClientAddress;
use crate::domain::ids::ContainerId;
use crate::domain::units::{Span, UnixSeconds};
use crate::store::tokens::{NewToken, TokenPage, TokenRow};
use crate::store::{Store, StoreError, Tx};
use crate::util::secret::{Secret, SecretDigest, random_text};

const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// How exact the time of a token's last use is; each request would be a write otherwise.
const LAST_USE_SECONDS: i64 = 60;
/// Notes that may wait for the disk at once; the rest of the store's queue is for what somebody waits for.
const NOTES_MAX: usize = 16;
/// Characters of a token that lists show.
const SHOWN_CHARS: usize = TOKEN_PREFIX.len() + 6;

#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("a token is needed: Authorization: Bearer lightd_…")]
    NoToken,
    /// Unknown, revoked, used up and expired look the same from outside.
    #[error("the token is not valid")]
    BadToken,
    #[error("too many tokens from this address were not valid")]
    TooManyAttempts { retry_after: Duration },
    #[error("ttl must be between 1s and 365d")]
    BadTtl,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks and issues tokens; clones share everything but for whom they act: lightd itself unless
/// [`Access::by`] says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    store: Store,
    actor: Actor,
    settings: watch::Receiver<AccessSettings>,
    attempts: Arc<Attempts>,
    notes: Arc<Semaphore>,
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
        let notes = Arc::new(Semaphore::new(NOTES_MAX));
        Self { store, actor: Actor::lightd(), settings, attempts: Arc::default(), notes }
    }

    /// Goes on from what an earlier process has stored. To be done before anybody asks.
    pub(crate) async fn restore(&self) -> Result<(), StoreError> {
        let homes =
            self.store.read("read where the node's token was used", |rx| rx.homes()).await?;
        self.attempts.restore(homes);
        Ok(())
    }

    /// The same, for this actor.
    pub(crate) fn by(&self, actor: Actor) -> Self {
        Self { actor, ..self.clone() }
    }

    /// The present settings. Not to be held over an await.
    pub(crate) fn settings(&self) -> watch::Ref<'_, AccessSettings> {
        self.settings.borrow()
    }

    /// The list of allowed origins; empty means that there is none.
    pub(crate) fn allowed_origins(&self) -> Vec<String> {
        self.settings.borrow().allowed_origins.clone()
    }

    /// Who the holder of this token is. Uses up a token that is good for one use.
    pub(crate) async fn check(
        &self,
        bearer: Option<&str>,
        from: ClientAddress,
    ) -> Result<Grant, AccessError> {
        if !self.settings.borrow().enabled {
            return Ok(Grant::anonymous(self.settings.clone()));
        }
        let token = bearer.ok_or(AccessError::NoToken)?;
        let Some(digest) = is_token(token).then(|| SecretDigest::of(token)) else {
            return Err(self.failed(from));
        };
        if self.attempts.is_home(from, UnixSeconds::now())
            && let Some(grant) = self.node_grant(digest, from)
        {
            return Ok(grant);
        }
        if let Some(grant) = self.issued_grant(digest, from).await? {
            return Ok(grant);
        }
        self.spend(from)?;
        self.node_grant(digest, from).ok_or(AccessError::BadToken)
    }

    /// The same grant, for as long as the allow-list has this address.
    pub(crate) fn while_admitted(&self, grant: Grant, from: ClientAddress) -> Grant {
        grant.used_from(from, self.settings.clone())
    }

    fn failed(&self, from: ClientAddress) -> AccessError {
        self.spend(from).err().unwrap_or(AccessError::BadToken)
    }

    fn spend(&self, from: ClientAddress) -> Result<(), AccessError> {
        let limit = self.settings.borrow().failed_attempts;
        self.attempts.spend(from, limit).map_err(|retry_after| {
            tracing::debug!(client = %from, "too many tokens from this address were not valid");
            AccessError::TooManyAttempts { retry_after }
        })
    }

    fn node_grant(&self, digest: SecretDigest, from: ClientAddress) -> Option<Grant> {
        let now = UnixSeconds::now();
        self.settings.borrow().node_term(digest, now)?;
        if self.attempts.welcome(from, now) {
            let forget = UnixSeconds(now.0 - attempts::HOME_FOR_S);
            let note =
                move |tx: &Tx<'_>| tx.note_home(from.network(), now, forget, attempts::HOMES_MAX);
            self.note("note where the node's token is used", note);
        }
        Some(Grant::node(self.settings.clone(), digest))
    }

    async fn issued_grant(
        &self,
        digest: SecretDigest,
        from: ClientAddress,
    ) -> Result<Option<Grant>, AccessError> {
        let index = self.store.tokens();
        // Whoever is revoked after this line is told so.
        let gone = index.gone();
        let now = UnixSeconds::now();
        let found = index.find(&digest);
        let Some(row) = found.filter(|row| row.expires_at > now && !row.is_used_up()) else {
            return Ok(None);
        };
        let id = row.id;
        if row.remove_on_use {
            let take = self.store.write("use up a token", move |tx| tx.take_token(id, now, from));
            let taken = take.await?;
            return Ok(taken.map(|row| Grant::issued(&row, Arc::clone(index), gone)));
        }
        if is_use_to_note(&row, now, from) {
            self.note("note a token's use", move |tx| tx.touch_token(id, now, from));
        }
        Ok(Some(Grant::issued(&row, Arc::clone(index), gone)))
    }

    /// Has something stored that nobody waits for: a token is good all the same, and a request must not hang
    /// on the disk for it. What finds too much before it is noted with a later request, if at all.
    fn note(
        &self,
        op: &'static str,
        note: impl FnOnce(&Tx<'_>) -> Result<(), StoreError> + Send + 'static,
    ) {
        let Ok(place) = Arc::clone(&self.notes).try_acquire_owned() else { return };
        let note = move |tx: &Tx<'_>| {
            let _place = place;
            note(tx)
        };
        // Asked once, it is in the store's queue.
        if let Some(Err(why)) = self.store.write(op, note).now_or_never() {
            tracing::debug!(error = %why, op, "not noted");
        }
    }

    pub(crate) async fn issue(
        &self,
        request: TokenRequest,
        by: &Principal,
        from: ClientAddress,
    ) -> Result<IssuedToken, AccessError> {
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
            issued_by: by.name(),
            issued_from: from,
        };
        let (now, most) = (UnixSeconds::now(), self.settings.borrow().max_tokens);
        let act = issuing(self.actor.clone(), &new);
        let issue = move |tx: &Tx<'_>| {
            tx.insert_token(&new, now, most)?;
            tx.record(&act, now)
        };
        self.store.write("issue a token", issue).await?;
        Ok(issued)
    }

    /// A page of the tokens that have not expired.
    pub(crate) async fn list(&self, page: TokenPage) -> Result<Vec<TokenRow>, AccessError> {
        let now = UnixSeconds::now();
        Ok(self.store.read("list tokens", move |rx| rx.tokens(&page, now)).await?)
    }

    pub(crate) async fn show(&self, id: TokenId) -> Result<TokenRow, AccessError> {
        let now = UnixSeconds::now();
        Ok(self.store.read("look up a token", move |rx| rx.token(id, now)).await?)
    }

    /// Revokes a token; sockets and transfers that came in with it end.
    pub(crate) async fn revoke(&self, id: TokenId) -> Result<(), AccessError> {
        let act = Act::new(self.actor.clone(), Action::TokenRevoke);
        let revoke = move |tx: &Tx<'_>| {
            tx.delete_token(id)?;
            tx.record(&act.with("token_id", id.to_string()), UnixSeconds::now())
        };
        Ok(self.store.write("revoke a token", revoke).await?)
    }

    /// As [`Access::revoke`], of all tokens or of those whose scope names a container. Answers how many
    /// that were.
    pub(crate) async fn revoke_all(
        &self,
        container: Option<ContainerId>,
    ) -> Result<usize, AccessError> {
        let act = Act::new(self.actor.clone(), Action::TokenRevoke);
        let delete = move |tx: &Tx<'_>| {
            let gone = tx.delete_tokens_of(container.as_ref())?;
            if !gone.is_empty() {
                let act = act
                    .each("token_ids", &gone)
                    .with_some("of_container", container.as_ref().map(ContainerId::as_str));
                tx.record(&act, UnixSeconds::now())?;
            }
            Ok(gone.len())
        };
        Ok(self.store.write("revoke tokens", delete).await?)
    }

    /// Forgets the tokens that have expired.
    pub(crate) async fn sweep(&self) -> Result<usize, AccessError> {
        let now = UnixSeconds::now();
        Ok(self.store.write("forget tokens", move |tx| tx.delete_expired_tokens(now)).await?)
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
        Some(permissions) => {
            act.listing("permissions", permissions.iter().filter_map(|one| one.name()))
        }
        None => act,
    }
}

/// Where it was used from is told as soon as that changes, but no more than once a second.
fn is_use_to_note(row: &TokenRow, now: UnixSeconds, from: ClientAddress) -> bool {
    let Some(last) = row.last_used_at else { return true };
    let has_moved = row.last_used_from != Some(from);
    now.0 - last.0 >= LAST_USE_SECONDS || has_moved && now > last
}

#[cfg(test)]
mod tests;
