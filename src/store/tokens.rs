//! Issued tokens: their hashes and what they may do, never the tokens.
//!
//! Called by `access`. One for a single use is taken by whoever's transaction comes first; those that
//! have expired are forgotten when the next one is stored.

use rusqlite::{OptionalExtension, Row};

use super::error::StoreError;
use super::{Read, Tx};
use crate::domain::access::{Scope, TokenId};
use crate::domain::units::UnixSeconds;
use crate::util::secret::SecretDigest;

#[derive(Clone, Debug)]
pub(crate) struct NewToken {
    pub(crate) id: TokenId,
    pub(crate) hash: SecretDigest,
    /// The first characters, by which a person tells one token from another.
    pub(crate) prefix: String,
    pub(crate) scope: Scope,
    pub(crate) remove_on_use: bool,
    pub(crate) expires_at: UnixSeconds,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub(crate) id: TokenId,
    pub(crate) prefix: String,
    pub(crate) scope: Scope,
    pub(crate) remove_on_use: bool,
    pub(crate) created_at: UnixSeconds,
    pub(crate) expires_at: UnixSeconds,
    pub(crate) last_used_at: Option<UnixSeconds>,
}

const COLUMNS: &str = "id, prefix, scope_json, remove_on_use, created_at, expires_at, last_used_at";

impl Tx<'_> {
    /// Stores a token, and forgets those that have expired.
    pub(crate) fn insert_token(&self, new: &NewToken, now: UnixSeconds) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM tokens WHERE expires_at <= ?1")?
            .execute([now.0])?;
        let scope = serde_json::to_string(&new.scope)
            .map_err(|why| StoreError::decode("token's scope", why))?;
        self.connection
            .prepare_cached(
                "INSERT INTO tokens
                    (id, hash, prefix, scope_json, remove_on_use, created_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute((
                new.id.to_string(),
                new.hash.as_bytes(),
                &new.prefix,
                scope,
                new.remove_on_use,
                now.0,
                new.expires_at.0,
            ))?;
        Ok(())
    }

    /// Takes a token that is good for one use; the second taker finds nothing.
    pub(crate) fn take_token(&self, id: TokenId) -> Result<Option<TokenRow>, StoreError> {
        self.connection
            .prepare_cached(&format!("DELETE FROM tokens WHERE id = ?1 RETURNING {COLUMNS}"))?
            .query_row([id.to_string()], |row| Ok(token_of(row)))
            .optional()?
            .transpose()
    }

    pub(crate) fn touch_token(&self, id: TokenId, now: UnixSeconds) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE tokens SET last_used_at = ?2 WHERE id = ?1")?
            .execute((id.to_string(), now.0))?;
        Ok(())
    }

    pub(crate) fn delete_token(&self, id: TokenId) -> Result<(), StoreError> {
        let changed = self
            .connection
            .prepare_cached("DELETE FROM tokens WHERE id = ?1")?
            .execute([id.to_string()])?;
        if changed == 0 { Err(StoreError::NoSuchToken) } else { Ok(()) }
    }
}

impl Read<'_> {
    /// The token with this hash, if it has not expired.
    pub(crate) fn token_by_hash(
        &self,
        hash: SecretDigest,
        now: UnixSeconds,
    ) -> Result<Option<TokenRow>, StoreError> {
        self.connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM tokens WHERE hash = ?1 AND expires_at > ?2"
            ))?
            .query_row((hash.as_bytes(), now.0), |row| Ok(token_of(row)))
            .optional()?
            .transpose()
    }

    pub(crate) fn token_exists(&self, id: TokenId) -> Result<bool, StoreError> {
        let mut select = self.connection.prepare_cached("SELECT 1 FROM tokens WHERE id = ?1")?;
        Ok(select.exists([id.to_string()])?)
    }

    pub(crate) fn tokens(&self, now: UnixSeconds) -> Result<Vec<TokenRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM tokens WHERE expires_at > ?1 ORDER BY created_at, id"
        ))?;
        let mut rows = statement.query([now.0])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(token_of(row)?);
        }
        Ok(found)
    }
}

fn token_of(row: &Row<'_>) -> Result<TokenRow, StoreError> {
    let id: String = row.get(0)?;
    let scope: String = row.get(2)?;
    Ok(TokenRow {
        id: TokenId::parse(&id).ok_or_else(|| StoreError::decode("token id", id))?,
        prefix: row.get(1)?,
        scope: serde_json::from_str(&scope)
            .map_err(|why| StoreError::decode("token's scope", why))?,
        remove_on_use: row.get(3)?,
        created_at: UnixSeconds(row.get(4)?),
        expires_at: UnixSeconds(row.get(5)?),
        last_used_at: row.get::<_, Option<i64>>(6)?.map(UnixSeconds),
    })
}
