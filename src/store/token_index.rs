//! The tokens in force, in memory: every request asks, and a bad token should cost next to nothing.
//!
//! Loaded when the store is opened and changed by the writer thread alone, after a commit and before
//! those who asked for it are answered: whoever was told that a token is revoked finds it gone here. A
//! transaction that is undone changes nothing. Bounded by what the store takes in.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::broadcast;

use super::tokens::TokenRow;
use crate::domain::access::TokenId;
use crate::util::secret::SecretDigest;

/// Ends that a listener may be behind before it looks for itself.
pub(crate) const ENDS: usize = 64;

/// What a transaction has done to a token.
#[derive(Debug)]
pub(super) enum TokenChange {
    Stored(SecretDigest, Box<TokenRow>),
    Changed(Box<TokenRow>),
    Gone(TokenId),
}

#[derive(Debug)]
pub(crate) struct TokenIndex {
    tokens: RwLock<Tokens>,
    gone: broadcast::Sender<TokenId>,
}

#[derive(Debug, Default)]
struct Tokens {
    by_hash: HashMap<SecretDigest, Arc<TokenRow>>,
    hashes: HashMap<TokenId, SecretDigest>,
}

impl TokenIndex {
    pub(super) fn new(tokens: Vec<(SecretDigest, TokenRow)>) -> Self {
        let mut index = Tokens::default();
        for (hash, row) in tokens {
            index.take(TokenChange::Stored(hash, Box::new(row)));
        }
        Self { tokens: RwLock::new(index), gone: broadcast::channel(ENDS).0 }
    }

    /// The token with this hash, as of the last commit; it may have expired or been used up.
    pub(crate) fn find(&self, hash: &SecretDigest) -> Option<Arc<TokenRow>> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.by_hash.get(hash).cloned()
    }

    pub(crate) fn exists(&self, id: TokenId) -> bool {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.hashes.contains_key(&id)
    }

    /// Hears of each token that goes, expired ones included.
    pub(crate) fn gone(&self) -> broadcast::Receiver<TokenId> {
        self.gone.subscribe()
    }

    pub(super) fn apply(&self, changes: Vec<TokenChange>) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            if let TokenChange::Gone(id) = change {
                // Nobody may hang on any.
                self.gone.send(id).ok();
            }
            tokens.take(change);
        }
    }

    #[cfg(test)]
    pub(crate) fn tell_gone(&self, id: TokenId) {
        self.gone.send(id).ok();
    }
}

impl Tokens {
    fn take(&mut self, change: TokenChange) {
        match change {
            TokenChange::Stored(hash, row) => {
                self.hashes.insert(row.id, hash);
                self.by_hash.insert(hash, Arc::from(row));
            }
            TokenChange::Changed(row) => {
                if let Some(hash) = self.hashes.get(&row.id) {
                    self.by_hash.insert(*hash, Arc::from(row));
                }
            }
            TokenChange::Gone(id) => {
                if let Some(hash) = self.hashes.remove(&id) {
                    self.by_hash.remove(&hash);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::access::Scope;
    use crate::domain::client::ClientAddress;
    use crate::domain::ids::ContainerId;
    use crate::domain::units::UnixSeconds;
    use crate::store::testing::{NOW, open};
    use crate::store::tokens::NewToken;
    use crate::store::{Store, StoreError};

    const FROM: &str = "203.0.113.9";

    fn new_token(text: &str, containers: &[&str]) -> NewToken {
        let containers = containers.iter().map(|id| ContainerId::parse(id).unwrap());
        NewToken {
            id: TokenId::random(),
            hash: SecretDigest::of(text),
            prefix: text.to_owned(),
            scope: Scope { containers: Some(containers.collect()), permissions: None },
            remove_on_use: false,
            expires_at: UnixSeconds(NOW.0 + 60),
            issued_by: "node".to_owned(),
            issued_from: ClientAddress::parse(FROM).unwrap(),
        }
    }

    async fn insert(store: &Store, new: &NewToken) {
        let new = new.clone();
        store.write("test", move |tx| tx.insert_token(&new, NOW, 10)).await.unwrap();
    }

    #[tokio::test]
    async fn it_has_what_was_committed_and_nothing_that_was_undone() {
        let (folder, store) = open();
        let (kept, lost) = (new_token("kept", &["a"]), new_token("lost", &["a"]));
        insert(&store, &kept).await;
        let undone = lost.clone();
        let failed: Result<(), _> = store
            .write("test", move |tx| {
                tx.insert_token(&undone, NOW, 10)?;
                Err(StoreError::NoSuchToken)
            })
            .await;
        assert!(failed.is_err());
        assert!(store.tokens().find(&lost.hash).is_none());
        let found = store.tokens().find(&kept.hash).unwrap();
        assert_eq!((found.id, &found.scope), (kept.id, &kept.scope));
        let path = folder.path().join("lightd.db");
        store.close();
        drop(store);
        let again = Store::open(&path).unwrap();
        assert_eq!(again.tokens().find(&kept.hash), Some(found), "and has it after a restart");
        let (id, mut gone) = (kept.id, again.tokens().gone());
        again.write("test", move |tx| tx.delete_token(id)).await.unwrap();
        assert!(again.tokens().find(&kept.hash).is_none() && !again.tokens().exists(kept.id));
        assert_eq!(gone.recv().await.unwrap(), kept.id);
    }

    #[tokio::test]
    async fn a_container_takes_its_tokens_with_it_and_its_name_from_others() {
        let (_folder, store) = open();
        let (one, both) = (new_token("one", &["a"]), new_token("both", &["a", "b"]));
        insert(&store, &one).await;
        insert(&store, &both).await;
        let a = ContainerId::parse("a").unwrap();
        let forget = a.clone();
        store.write("test", move |tx| tx.forget_container_in_tokens(&forget)).await.unwrap();
        assert!(store.tokens().find(&one.hash).is_none());
        let left = store.tokens().find(&both.hash).unwrap();
        assert_eq!(left.scope, new_token("both", &["b"]).scope);
        let of_a = store.write("test", move |tx| tx.delete_tokens_of(Some(&a))).await.unwrap();
        assert_eq!(of_a, 0, "nobody is on record for it");
    }

    #[test]
    fn tokens_of_an_earlier_version_are_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lightd.db");
        let old = rusqlite::Connection::open(&path).unwrap();
        for step in [
            include_str!("migrations/0001.sql"),
            include_str!("migrations/0002.sql"),
            include_str!("migrations/0003.sql"),
        ] {
            old.execute_batch(step).unwrap();
        }
        old.pragma_update(None, "user_version", 3).unwrap();
        let insert = "INSERT INTO tokens VALUES (?1, ?2, 'p', ?3, 0, 1, 99, NULL)";
        for (text, scope) in [("wide", "{}"), ("narrow", r#"{"containers":["a","b"]}"#)] {
            let id = TokenId::random().to_string();
            old.execute(insert, (id, SecretDigest::of(text).as_bytes(), scope)).unwrap();
        }
        drop(old);
        let store = Store::open(&path).unwrap();
        let wide = store.tokens().find(&SecretDigest::of("wide")).unwrap();
        assert_eq!((wide.issued_by.as_str(), wide.issued_from), ("node", None));
        let narrow = store.tokens().find(&SecretDigest::of("narrow")).unwrap();
        assert_eq!(narrow.scope.containers.as_ref().map(std::collections::BTreeSet::len), Some(2));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let b = ContainerId::parse("b").unwrap();
        let delete = store.write("test", move |tx| tx.delete_tokens_of(Some(&b)));
        assert_eq!(runtime.block_on(delete).unwrap(), 1);
    }
}
