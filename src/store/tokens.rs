//! Issued tokens: their hashes, what they may do and where they were seen, never the tokens.
//!
//! Called by `access`, and where a container is deleted: what was issued for it ends in the same
//! transaction, so that whoever takes its name next is nobody's to reach. One for a single use is taken
//! by whoever's transaction comes first. What is in force is also held in memory, by [`TokenIndex`],
//! which follows each commit.
//!
//! [`TokenIndex`]: super::token_index::TokenIndex

use rusqlite::{OptionalExtension, Row};

use super::error::StoreError;
use super::token_index::TokenChange;
use super::{Read, Tx, from_sql};
use crate::domain::access::{Scope, TokenId};
use crate::domain::client::ClientAddress;
use crate::domain::ids::ContainerId;
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
    pub(crate) issued_by: String,
    pub(crate) issued_from: ClientAddress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub(crate) id: TokenId,
    pub(crate) prefix: String,
    pub(crate) scope: Scope,
    pub(crate) remove_on_use: bool,
    pub(crate) created_at: UnixSeconds,
    pub(crate) expires_at: UnixSeconds,
    pub(crate) issued_by: String,
    /// Not known of those that an earlier version has issued.
    pub(crate) issued_from: Option<ClientAddress>,
    pub(crate) last_used_at: Option<UnixSeconds>,
    pub(crate) last_used_from: Option<ClientAddress>,
}

impl TokenRow {
    /// Good for one use, and that was made. The row stays for what hangs on it.
    pub(crate) fn is_used_up(&self) -> bool {
        self.remove_on_use && self.last_used_at.is_some()
    }
}

/// Which tokens a list shows: the oldest first.
#[derive(Clone, Debug)]
pub(crate) struct TokenPage {
    /// Only those whose scope names it.
    pub(crate) container: Option<ContainerId>,
    pub(crate) after: Option<(UnixSeconds, TokenId)>,
    pub(crate) limit: usize,
}

const COLUMNS: &str = "id, prefix, scope_json, remove_on_use, created_at, expires_at, issued_by, \
                       issued_from, last_used_at, last_used_from";

impl Tx<'_> {
    /// Stores a token, as long as no more than `most` are in force with it. One that is used up counts no more:
    /// its row stays until its end for what hangs on it, and makes no room by going earlier.
    pub(crate) fn insert_token(
        &self,
        new: &NewToken,
        now: UnixSeconds,
        most: u64,
    ) -> Result<(), StoreError> {
        self.delete_expired_tokens(now)?;
        if self.count_tokens()? >= most {
            return Err(StoreError::TooManyTokens { most });
        }
        self.connection
            .prepare_cached(
                "INSERT INTO tokens
                    (id, hash, prefix, scope_json, remove_on_use, created_at, expires_at,
                     issued_by, issued_from)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute((
                new.id.to_string(),
                new.hash.as_bytes(),
                &new.prefix,
                encode_scope(&new.scope)?,
                new.remove_on_use,
                now.0,
                new.expires_at.0,
                &new.issued_by,
                new.issued_from.to_string(),
            ))?;
        for container in new.scope.containers.iter().flatten() {
            self.connection
                .prepare_cached("INSERT INTO token_containers (container, token) VALUES (?1, ?2)")?
                .execute((container.as_str(), new.id.to_string()))?;
        }
        self.tell_tokens(TokenChange::Stored(new.hash, Box::new(self.stored_token(new.id)?)));
        Ok(())
    }

    /// Takes a token that is good for one use; the second taker finds nothing.
    pub(crate) fn take_token(
        &self,
        id: TokenId,
        now: UnixSeconds,
        from: ClientAddress,
    ) -> Result<Option<TokenRow>, StoreError> {
        let taken = self
            .connection
            .prepare_cached(&format!(
                "UPDATE tokens SET last_used_at = ?2, last_used_from = ?3
                 WHERE id = ?1 AND remove_on_use AND last_used_at IS NULL AND expires_at > ?2
                 RETURNING {COLUMNS}"
            ))?
            .query_row((id.to_string(), now.0, from.to_string()), |row| Ok(token_of(row)))
            .optional()?
            .transpose()?;
        if let Some(row) = &taken {
            self.tell_tokens(TokenChange::Changed(Box::new(row.clone())));
        }
        Ok(taken)
    }

    pub(crate) fn touch_token(
        &self,
        id: TokenId,
        now: UnixSeconds,
        from: ClientAddress,
    ) -> Result<(), StoreError> {
        let touched = self
            .connection
            .prepare_cached(&format!(
                "UPDATE tokens SET last_used_at = ?2, last_used_from = ?3 WHERE id = ?1
                 RETURNING {COLUMNS}"
            ))?
            .query_row((id.to_string(), now.0, from.to_string()), |row| Ok(token_of(row)))
            .optional()?;
        if let Some(row) = touched.transpose()? {
            self.tell_tokens(TokenChange::Changed(Box::new(row)));
        }
        Ok(())
    }

    pub(crate) fn delete_token(&self, id: TokenId) -> Result<(), StoreError> {
        let deleted = self.delete_tokens("id = ?1", [id.to_string()])?;
        if deleted.is_empty() { Err(StoreError::NoSuchToken) } else { Ok(()) }
    }

    /// Deletes all tokens, or those whose scope names a container; answers which those were.
    pub(crate) fn delete_tokens_of(
        &self,
        container: Option<&ContainerId>,
    ) -> Result<Vec<TokenId>, StoreError> {
        let which = "?1 IS NULL OR id IN (SELECT token FROM token_containers WHERE container = ?1)";
        self.delete_tokens(which, [container.map(ContainerId::as_str)])
    }

    pub(crate) fn delete_expired_tokens(&self, now: UnixSeconds) -> Result<usize, StoreError> {
        Ok(self.delete_tokens("expires_at <= ?1", [now.0])?.len())
    }

    /// Ends what was issued for a container that is deleted: a token that names no other goes, one that
    /// does is good for the others only.
    pub(super) fn forget_container_in_tokens(&self, id: &ContainerId) -> Result<(), StoreError> {
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM tokens
             WHERE id IN (SELECT token FROM token_containers WHERE container = ?1)"
        ))?;
        for mut token in rows(select.query([id.as_str()])?)? {
            let left = token.scope.containers.get_or_insert_default();
            left.remove(id);
            if left.is_empty() {
                self.delete_token(token.id)?;
                continue;
            }
            self.connection
                .prepare_cached("UPDATE tokens SET scope_json = ?2 WHERE id = ?1")?
                .execute((token.id.to_string(), encode_scope(&token.scope)?))?;
            self.tell_tokens(TokenChange::Changed(Box::new(token)));
        }
        self.connection
            .prepare_cached("DELETE FROM token_containers WHERE container = ?1")?
            .execute([id.as_str()])?;
        Ok(())
    }

    fn delete_tokens(
        &self,
        which: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<TokenId>, StoreError> {
        let mut delete = self
            .connection
            .prepare_cached(&format!("DELETE FROM tokens WHERE {which} RETURNING id"))?;
        let ids = delete.query_map(parameters, |row| row.get::<_, String>(0))?;
        let ids = ids.map(|id| parse_id(&id?)).collect::<Result<Vec<_>, _>>()?;
        for id in &ids {
            self.tell_tokens(TokenChange::Gone(*id));
        }
        Ok(ids)
    }

    fn tell_tokens(&self, change: TokenChange) {
        self.token_changes.borrow_mut().push(change);
    }

    fn stored_token(&self, id: TokenId) -> Result<TokenRow, StoreError> {
        self.connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM tokens WHERE id = ?1"))?
            .query_row([id.to_string()], |row| Ok(token_of(row)))?
    }

    /// How many may still be used.
    fn count_tokens(&self) -> Result<u64, StoreError> {
        let mut count = self.connection.prepare_cached(
            "SELECT count(*) FROM tokens WHERE NOT (remove_on_use AND last_used_at IS NOT NULL)",
        )?;
        Ok(from_sql(count.query_row([], |row| row.get(0))?))
    }
}

impl Read<'_> {
    /// A token that has not expired.
    pub(crate) fn token(&self, id: TokenId, now: UnixSeconds) -> Result<TokenRow, StoreError> {
        self.connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM tokens WHERE id = ?1 AND expires_at > ?2"
            ))?
            .query_row((id.to_string(), now.0), |row| Ok(token_of(row)))
            .optional()?
            .transpose()?
            .ok_or(StoreError::NoSuchToken)
    }

    /// Tokens that have not expired.
    pub(crate) fn tokens(
        &self,
        page: &TokenPage,
        now: UnixSeconds,
    ) -> Result<Vec<TokenRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM tokens
             WHERE expires_at > ?1 AND (created_at, id) > (?2, ?3)
               AND (?4 IS NULL OR id IN (SELECT token FROM token_containers WHERE container = ?4))
             ORDER BY created_at, id LIMIT ?5"
        ))?;
        let (created_at, id) = page
            .after
            .map_or((i64::MIN, String::new()), |(created_at, id)| (created_at.0, id.to_string()));
        let container = page.container.as_ref().map(ContainerId::as_str);
        let limit = i64::try_from(page.limit).unwrap_or(i64::MAX);
        rows(statement.query((now.0, created_at, id, container, limit))?)
    }
}

/// All tokens with their hashes.
pub(super) fn all_tokens(
    connection: &rusqlite::Connection,
) -> Result<Vec<(SecretDigest, TokenRow)>, StoreError> {
    let mut statement = connection.prepare(&format!("SELECT {COLUMNS}, hash FROM tokens"))?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let hash: Vec<u8> = row.get(10)?;
        let hash = SecretDigest::from_bytes(&hash)
            .ok_or_else(|| StoreError::decode("token's hash", "it has another length"))?;
        found.push((hash, token_of(row)?));
    }
    Ok(found)
}

fn rows(mut rows: rusqlite::Rows<'_>) -> Result<Vec<TokenRow>, StoreError> {
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(token_of(row)?);
    }
    Ok(found)
}

fn encode_scope(scope: &Scope) -> Result<String, StoreError> {
    serde_json::to_string(scope).map_err(|why| StoreError::decode("token's scope", why))
}

fn parse_id(text: &str) -> Result<TokenId, StoreError> {
    TokenId::parse(text).ok_or_else(|| StoreError::decode("token id", text))
}

fn token_of(row: &Row<'_>) -> Result<TokenRow, StoreError> {
    let id: String = row.get(0)?;
    let scope: String = row.get(2)?;
    let address = |index| -> Result<Option<ClientAddress>, StoreError> {
        let text: Option<String> = row.get(index)?;
        Ok(text.as_deref().and_then(ClientAddress::parse))
    };
    Ok(TokenRow {
        id: parse_id(&id)?,
        prefix: row.get(1)?,
        scope: serde_json::from_str(&scope)
            .map_err(|why| StoreError::decode("token's scope", why))?,
        remove_on_use: row.get(3)?,
        created_at: UnixSeconds(row.get(4)?),
        expires_at: UnixSeconds(row.get(5)?),
        issued_by: row.get(6)?,
        issued_from: address(7)?,
        last_used_at: row.get::<_, Option<i64>>(8)?.map(UnixSeconds),
        last_used_from: address(9)?,
    })
}
