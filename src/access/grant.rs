//! A right to be here, and its end.
//!
//! Made by [`super::Access`] from a checked token and held for as long as a request or a socket lasts. A
//! socket waits for [`Grant::ended`] beside its work; that the store could not be asked ends nobody.

use std::time::Duration;

use tokio::sync::{broadcast, watch};

use super::AccessSettings;
use crate::domain::access::{Principal, TokenId};
use crate::domain::units::{UnixSeconds, now_unix_ms};
use crate::store::Store;
use crate::store::tokens::TokenRow;
use crate::util::secret::SecretDigest;

/// The longest single sleep: a clock that is set while we wait is noticed after it.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// What a checked token gave.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) principal: Principal,
    /// Of an issued token.
    pub(crate) expires_at: Option<UnixSeconds>,
    /// Of an issued token: what people know it by.
    pub(crate) prefix: Option<String>,
    hold: Hold,
}

/// What a grant hangs on.
#[derive(Debug)]
enum Hold {
    /// On authorization being switched off.
    AuthorizationOff(watch::Receiver<AccessSettings>),
    /// On the node's token staying as it is.
    NodeToken(watch::Receiver<AccessSettings>, SecretDigest),
    Issued {
        id: TokenId,
        once: bool,
        store: Store,
        revoked: broadcast::Receiver<TokenId>,
    },
}

/// Why a grant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Expired,
    Revoked,
}

impl Grant {
    pub(super) fn anonymous(settings: watch::Receiver<AccessSettings>) -> Self {
        let hold = Hold::AuthorizationOff(settings);
        Self { principal: Principal::Anonymous, expires_at: None, prefix: None, hold }
    }

    pub(super) fn node(settings: watch::Receiver<AccessSettings>, digest: SecretDigest) -> Self {
        let hold = Hold::NodeToken(settings, digest);
        Self { principal: Principal::Node, expires_at: None, prefix: None, hold }
    }

    pub(super) fn issued(
        row: TokenRow,
        store: Store,
        revoked: broadcast::Receiver<TokenId>,
    ) -> Self {
        Self {
            principal: Principal::Token { id: row.id, scope: row.scope },
            expires_at: Some(row.expires_at),
            prefix: Some(row.prefix),
            hold: Hold::Issued { id: row.id, once: row.remove_on_use, store, revoked },
        }
    }

    /// Waits for the token's end. May be dropped and asked again.
    pub(crate) async fn ended(&mut self) -> Ended {
        match &mut self.hold {
            Hold::AuthorizationOff(settings) => until(settings, |now| now.enabled).await,
            Hold::NodeToken(settings, digest) => {
                let digest = *digest;
                until(settings, |now| now.enabled && now.node_token != digest).await
            }
            Hold::Issued { id, once, store, revoked } => {
                tokio::select! {
                    () = revocation(*id, *once, store, revoked) => Ended::Revoked,
                    () = expiry(self.expires_at) => Ended::Expired,
                }
            }
        }
    }
}

async fn until(
    settings: &mut watch::Receiver<AccessSettings>,
    over: impl FnMut(&AccessSettings) -> bool,
) -> Ended {
    // Asked before the next await: what it answers holds a lock that must not be held over one.
    let is_over = settings.wait_for(over).await.is_ok();
    if !is_over {
        // The daemon is being taken down; that ends connections in its own way.
        std::future::pending::<()>().await;
    }
    Ended::Revoked
}

async fn revocation(
    id: TokenId,
    once: bool,
    store: &Store,
    revoked: &mut broadcast::Receiver<TokenId>,
) {
    loop {
        match revoked.recv().await {
            Ok(which) if which == id => return,
            Ok(_) => {}
            // Too many at once to have seen each. A token for one use has no row any more, so nobody
            // can have revoked it.
            Err(broadcast::error::RecvError::Lagged(_)) => {
                let exists = store.read("look up a token", move |rx| rx.token_exists(id)).await;
                if !once && matches!(exists, Ok(false)) {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

async fn expiry(at: Option<UnixSeconds>) {
    let Some(at) = at else { return std::future::pending().await };
    loop {
        let left = at.0.saturating_mul(1000) - now_unix_ms();
        let Ok(left @ 1..) = u64::try_from(left) else { return };
        tokio::time::sleep(Duration::from_millis(left).min(LONGEST_SLEEP)).await;
    }
}

/// The first whole second at which `ttl` has passed.
pub(super) fn after(ttl: Duration) -> UnixSeconds {
    let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    UnixSeconds(now_unix_ms().saturating_add(ttl_ms).saturating_add(999) / 1000)
}
