//! Requests that a caller may send again without their being done again.

use rusqlite::OptionalExtension as _;

use super::Tx;
use super::error::StoreError;
use crate::domain::units::UnixSeconds;

const KEPT_SECONDS: i64 = 24 * 3600;
const KEPT: i64 = 100_000;

/// Who sent which key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IdempotencyKey {
    pub(crate) principal: String,
    pub(crate) key: String,
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing so far: it is this request's now.
    New,
    /// Another request was sent with it.
    Differs,
    /// The request was begun and its end never seen: lightd died on the way.
    Unfinished,
    Answered {
        status: u16,
        answer_sealed: Vec<u8>,
    },
}

impl Tx<'_> {
    /// Takes a key for a request, or says what became of the one that has it. Forgets old ones.
    pub(crate) fn begin_idempotent(
        &self,
        key: &IdempotencyKey,
        fingerprint: &[u8],
        now: UnixSeconds,
    ) -> Result<Known, StoreError> {
        self.connection
            .prepare_cached("DELETE FROM idempotency_keys WHERE begun_at <= ?1")?
            .execute([now.0 - KEPT_SECONDS])?;
        let select = "SELECT fingerprint, status, answer_sealed FROM idempotency_keys
                      WHERE principal = ?1 AND key = ?2";
        let found = self
            .connection
            .prepare_cached(select)?
            .query_row((&key.principal, &key.key), |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Option<u16>>(1)?, row.get(2)?))
            })
            .optional()?;
        if let Some((seen, status, answer)) = found {
            return Ok(match (seen == fingerprint, status, answer) {
                (false, _, _) => Known::Differs,
                (true, Some(status), Some(answer_sealed)) => {
                    Known::Answered { status, answer_sealed }
                }
                (true, _, _) => Known::Unfinished,
            });
        }
        self.connection
            .prepare_cached(
                "DELETE FROM idempotency_keys WHERE (principal, key) IN
                    (SELECT principal, key FROM idempotency_keys ORDER BY begun_at DESC
                     LIMIT -1 OFFSET ?1)",
            )?
            .execute([KEPT - 1])?;
        self.connection
            .prepare_cached(
                "INSERT INTO idempotency_keys (principal, key, fingerprint, begun_at)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((&key.principal, &key.key, fingerprint, now.0))?;
        Ok(Known::New)
    }

    pub(crate) fn answer_idempotent(
        &self,
        key: &IdempotencyKey,
        status: u16,
        answer_sealed: &[u8],
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE idempotency_keys SET status = ?3, answer_sealed = ?4
                 WHERE principal = ?1 AND key = ?2",
            )?
            .execute((&key.principal, &key.key, status, answer_sealed))?;
        Ok(())
    }

    /// As a crash leaves it.
    #[cfg(test)]
    pub(crate) fn unanswer_idempotent(&self, key: &str) -> Result<(), StoreError> {
        let update =
            "UPDATE idempotency_keys SET status = NULL, answer_sealed = NULL WHERE key = ?1";
        self.connection.execute(update, [key])?;
        Ok(())
    }

    /// For a request that has changed nothing: it may be sent again.
    pub(crate) fn forget_idempotent(&self, key: &IdempotencyKey) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM idempotency_keys WHERE principal = ?1 AND key = ?2")?
            .execute((&key.principal, &key.key))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{IdempotencyKey, Known};
    use crate::domain::units::UnixSeconds;
    use crate::store::Store;
    use crate::store::testing::{NOW, later, open};

    fn key(principal: &str, key: &str) -> IdempotencyKey {
        IdempotencyKey { principal: principal.to_owned(), key: key.to_owned() }
    }

    async fn begin(store: &Store, key: &IdempotencyKey, print: u8, now: UnixSeconds) -> Known {
        let key = key.clone();
        store.write("begin", move |tx| tx.begin_idempotent(&key, &[print], now)).await.unwrap()
    }

    #[tokio::test]
    async fn a_key_is_taken_answered_and_forgotten_after_a_day() {
        let (_folder, store) = open();
        let mine = key("node", "k");
        assert_eq!(begin(&store, &mine, 1, NOW).await, Known::New);
        assert_eq!(begin(&store, &mine, 1, NOW).await, Known::Unfinished);
        assert_eq!(begin(&store, &mine, 2, NOW).await, Known::Differs);
        assert_eq!(begin(&store, &key("token x", "k"), 1, NOW).await, Known::New);
        let answered = mine.clone();
        let answer = move |tx: &super::Tx<'_>| tx.answer_idempotent(&answered, 201, &[7]);
        store.write("answer", answer).await.unwrap();
        let answered = Known::Answered { status: 201, answer_sealed: vec![7] };
        assert_eq!(begin(&store, &mine, 1, later(86_399)).await, answered);
        assert_eq!(begin(&store, &mine, 2, later(86_400)).await, Known::New);
        let refused = mine.clone();
        store.write("forget", move |tx| tx.forget_idempotent(&refused)).await.unwrap();
        assert_eq!(begin(&store, &mine, 3, later(86_400)).await, Known::New);
    }
}
