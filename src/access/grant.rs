//! A right to be here, and its end.
//!
//! Made by [`super::Access`] from a checked token and held for as long as a request, a transfer or a
//! socket lasts. Whoever holds one waits for [`Grant::ended`] beside its work. It ends with the token, and,
//! where the allow-list is asked about who uses it, with his place on that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};

use super::settings::{AccessSettings, NodeTerm};
use crate::domain::access::{Principal, TokenId};
use crate::domain::client::ClientAddress;
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
    /// Of an issued token: what people know it by.
    pub(crate) prefix: Option<String>,
    hold: Hold,
    /// The address that the allow-list must have, where it is held to that.
    from: Option<UsedFrom>,
}

#[derive(Debug)]
struct UsedFrom {
    client: ClientAddress,
    settings: watch::Receiver<AccessSettings>,
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
    /// The allow-list no longer has the address that it is used from.
    NotAdmitted,
}

impl Grant {
    pub(super) fn anonymous(settings: watch::Receiver<AccessSettings>) -> Self {
        let hold = Hold::AuthorizationOff(settings);
        Self { principal: Principal::Anonymous, prefix: None, hold, from: None }
    }

    pub(super) fn node(settings: watch::Receiver<AccessSettings>, digest: SecretDigest) -> Self {
        let hold = Hold::NodeToken(settings, digest);
        Self { principal: Principal::Node, prefix: None, hold, from: None }
    }

    pub(super) fn issued(
        row: &TokenRow,
        index: Arc<TokenIndex>,
        gone: broadcast::Receiver<TokenId>,
    ) -> Self {
        let (id, expires_at) = (row.id, row.expires_at);
        Self {
            principal: Principal::Token { id, scope: row.scope.clone() },
            prefix: Some(row.prefix.clone()),
            hold: Hold::Issued { id, expires_at, index, gone },
            from: None,
        }
    }

    /// Ends as well when the allow-list no longer has this address.
    pub(super) fn used_from(
        self,
        client: ClientAddress,
        settings: watch::Receiver<AccessSettings>,
    ) -> Self {
        Self { from: Some(UsedFrom { client, settings }), ..self }
    }

    /// Waits for its end. May be dropped and asked again.
    pub(crate) async fn ended(&mut self) -> Ended {
        let Self { hold, from, .. } = self;
        tokio::select! {
            ended = hold.over() => ended,
            () = no_longer_admitted(from.as_mut()) => Ended::NotAdmitted,
        }
    }
}

impl Hold {
    async fn over(&mut self) -> Ended {
        match self {
            Self::AuthorizationOff(settings) => authorization_on(settings).await,
            Self::NodeToken(settings, digest) => node_term_over(settings, *digest).await,
            Self::Issued { id, expires_at, index, gone } => {
                tokio::select! {
                    () = revocation(*id, index, gone) => Ended::Revoked,
                    () = expiry(*expires_at) => Ended::Expired,
                }
            }
        }
    }
}

async fn no_longer_admitted(from: Option<&mut UsedFrom>) {
    let Some(UsedFrom { client, settings }) = from else { return taken_down().await };
    let client = *client;
    let is_over = settings.wait_for(|now| !now.admits(client)).await.is_ok();
    if !is_over {
        taken_down().await;
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
