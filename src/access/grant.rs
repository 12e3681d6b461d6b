//! A right to be here, and its end.
//!
//! Made by [`super::Access`] from a checked token and held for as long as a request, a transfer or a
//! socket lasts. Whoever holds one waits for [`Grant::ended`] beside its work.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};

use super::settings::{AccessSettings, NodeTerm};
use crate::domain::access::{Principal, TokenId};
use crate::domain::units::{UnixSeconds, now_unix_ms};
use crate::store::token_index::TokenIndex;
use crate::store::tokens::TokenRow;
use crate::util::secret::SecretDigest;

/// The longest single sleep: a clock that is set while we wait is noticed after it.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// What a checked token gave.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) principal: Principal,
    hold: Hold,
}

/// What a grant hangs on.
#[derive(Debug)]
enum Hold {
    /// On authorization being switched off.
    AuthorizationOff(watch::Receiver<AccessSettings>),
    /// On this being the node's token, or still good beside the one that followed.
    NodeToken(watch::Receiver<AccessSettings>, SecretDigest),
    Issued {
        id: TokenId,
        expires_at: UnixSeconds,
        index: Arc<TokenIndex>,
        gone: broadcast::Receiver<TokenId>,
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
        Self { principal: Principal::Anonymous, hold: Hold::AuthorizationOff(settings) }
    }

    pub(super) fn node(settings: watch::Receiver<AccessSettings>, digest: SecretDigest) -> Self {
        Self { principal: Principal::Node, hold: Hold::NodeToken(settings, digest) }
    }

    pub(super) fn issued(
        row: &TokenRow,
        index: Arc<TokenIndex>,
        gone: broadcast::Receiver<TokenId>,
    ) -> Self {
        let (id, expires_at) = (row.id, row.expires_at);
        Self {
            principal: Principal::Token { id, scope: row.scope.clone() },
            hold: Hold::Issued { id, expires_at, index, gone },
        }
    }

    /// Waits for the token's end. May be dropped and asked again.
    pub(crate) async fn ended(&mut self) -> Ended {
        match &mut self.hold {
            Hold::AuthorizationOff(settings) => authorization_on(settings).await,
            Hold::NodeToken(settings, digest) => node_term_over(settings, *digest).await,
            Hold::Issued { id, expires_at, index, gone } => {
                tokio::select! {
                    () = revocation(*id, index, gone) => Ended::Revoked,
                    () = expiry(*expires_at) => Ended::Expired,
                }
            }
        }
    }
}

async fn authorization_on(settings: &mut watch::Receiver<AccessSettings>) -> Ended {
    // Asked before the next await: what it answers holds a lock that must not be held over one.
    let is_over = settings.wait_for(|now| now.enabled).await.is_ok();
    if !is_over {
        taken_down().await;
    }
    Ended::Revoked
}

/// The daemon is being taken down; that ends connections in its own way.
async fn taken_down() {
    std::future::pending().await
}

async fn node_term_over(
    settings: &mut watch::Receiver<AccessSettings>,
    digest: SecretDigest,
) -> Ended {
    loop {
        let term = {
            let now = settings.borrow_and_update();
            if now.enabled {
                now.node_term(digest, UnixSeconds::now())
            } else {
                Some(NodeTerm::Present)
            }
        };
        let end = async {
            match term {
                Some(NodeTerm::Present) => std::future::pending().await,
                Some(NodeTerm::Until(until)) => expiry(until).await,
                None => {}
            }
        };
        tokio::select! {
            () = end => return if term.is_some() { Ended::Expired } else { Ended::Revoked },
            changed = settings.changed() => if changed.is_err() { taken_down().await },
        }
    }
}

async fn revocation(id: TokenId, index: &TokenIndex, gone: &mut broadcast::Receiver<TokenId>) {
    loop {
        match gone.recv().await {
            Ok(which) if which == id => return,
            Ok(_) => {}
            // Too many at once to have heard of each.
            Err(broadcast::error::RecvError::Lagged(_)) => {
                if !index.exists(id) {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

async fn expiry(at: UnixSeconds) {
    loop {
        let left = at.0.saturating_mul(1000).saturating_sub(now_unix_ms());
        let Ok(left @ 1..) = u64::try_from(left) else { return };
        tokio::time::sleep(Duration::from_millis(left).min(LONGEST_SLEEP)).await;
    }
}

/// The first whole second at which `ttl` has passed.
pub(super) fn after(ttl: Duration) -> UnixSeconds {
    let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    UnixSeconds(now_unix_ms().saturating_add(ttl_ms).saturating_add(999) / 1000)
}
