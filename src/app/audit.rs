//! What of the composition root stands in the audit log, and for how long anything stands there.
//!
//! The node's own token changes in a file, in the hands of whoever may write it, also while lightd is
//! away. So the store keeps the digest of the one that counts, and a change of that digest is what is
//! recorded, in one transaction with it. What cannot be stored is found again at the next start.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::tasks::EXPIRE_EVERY;
use crate::config::{Audit, Config};
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::units::UnixSeconds;
use crate::store::{Store, StoreError, Tx};
use crate::util::chain::Chain;
use crate::util::secret::SecretDigest;

/// Where the store keeps which token is the node's.
const NODE_TOKEN: &str = "node_token";

/// Writes down each change of the node's token, also one that was made while lightd was away.
pub(super) async fn follow_node_token(
    store: Store,
    mut changed: watch::Receiver<Arc<Config>>,
    stop: CancellationToken,
) {
    loop {
        let present = changed.borrow_and_update().clone();
        if let Err(error) = note_node_token(&store, &present).await {
            tracing::warn!(error = %Chain(&error), "which token is the node's is not stored");
        }
        if !matches!(stop.run_until_cancelled(changed.changed()).await, Some(Ok(()))) {
            return;
        }
    }
}

async fn note_node_token(store: &Store, config: &Config) -> Result<(), StoreError> {
    let digest = hex(config.authorization.token.digest());
    let previous = config.authorization.previous.as_ref();
    let act = Act::new(Actor::lightd(), Action::TokenReset)
        .with_some("grace_until", previous.map(|previous| previous.until.as_second()));
    let note = move |tx: &Tx<'_>| {
        let known = tx.meta(NODE_TOKEN)?;
        if known.as_deref() == Some(&digest) {
            return Ok(());
        }
        tx.set_meta(NODE_TOKEN, &digest)?;
        // The first one that this store sees follows none.
        known.map_or(Ok(()), |_| tx.record(&act, UnixSeconds::now()))
    };
    store.write("note the node's token", note).await
}

fn hex(digest: SecretDigest) -> String {
    digest.as_bytes().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// Forgets what is too old, or too much, of who did what: a little at a time, so that no other write waits
/// for long, and at once when what is kept was changed.
pub(super) async fn expire(
    store: Store,
    mut changed: watch::Receiver<Arc<Config>>,
    stop: CancellationToken,
) {
    loop {
        let kept = changed.borrow_and_update().audit;
        if let Err(error) = forget(&store, kept).await {
            tracing::warn!(error = %Chain(&error), "old rows of the audit log stay");
        }
        let pause = (kept.keep / 4).clamp(Duration::from_secs(1), EXPIRE_EVERY);
        let due = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = changed.changed() => {}
            }
        };
        if stop.run_until_cancelled(due).await.is_none() {
            return;
        }
    }
}

async fn forget(store: &Store, kept: Audit) -> Result<(), StoreError> {
    let keep = i64::try_from(kept.keep.as_secs()).unwrap_or(i64::MAX);
    let oldest = UnixSeconds(UnixSeconds::now().0.saturating_sub(keep));
    let first =
        store.read_long("count the audit log", move |rx| rx.first_of_audit(kept.max_rows)).await?;
    let forget = move |tx: &Tx<'_>| tx.forget_audit(oldest, first);
    while store.write("forget old acts", forget).await? {}
    Ok(())
}
