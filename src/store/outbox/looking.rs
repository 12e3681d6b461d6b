//! The outbox as people see it: counted, listed, tried again, dropped.

use rusqlite::types::Value;
use rusqlite::{OptionalExtension as _, Row, params_from_iter};

use super::sending::WAIT_UNTIL_SQL;
use super::{COLUMNS, OutboxRow, outbox_row_of};
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::store::error::StoreError;
use crate::store::volumes::container_id;
use crate::store::{Read, Tx, from_sql};

/// An update with all that is known of it.
#[derive(Clone, Debug)]
pub(crate) struct OutboxEntry {
    pub(crate) row: OutboxRow,
    pub(crate) created_at: UnixSeconds,
    /// Why the latest attempt failed.
    pub(crate) last_error: Option<String>,
    /// When the first waiting update of its server is due.
    pub(crate) due_at: Option<UnixSeconds>,
    pub(crate) parked: Option<Parked>,
}

/// How the panel refused an update for good.
#[derive(Clone, Debug)]
pub(crate) struct Parked {
    pub(crate) reason: String,
    /// Not known of what an older lightd parked.
    pub(crate) at: Option<UnixSeconds>,
}

/// Which updates are listed; `None` does not filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct OutboxFilter {
    pub(crate) is_parked: Option<bool>,
    pub(crate) server: Option<ContainerId>,
    /// Those behind this one.
    pub(crate) after: Option<i64>,
}

impl OutboxFilter {
    /// The condition and its values. Written out, so that the indices of each state are used.
    fn condition(&self) -> (String, Vec<Value>) {
        let (mut terms, mut values) = (vec!["TRUE"], Vec::new());
        match self.is_parked {
            Some(true) => terms.push("parked_reason IS NOT NULL"),
            Some(false) => terms.push("parked_reason IS NULL"),
            None => {}
        }
        if let Some(server) = &self.server {
            terms.push("outbox.server = ?");
            values.push(server.as_str().to_owned().into());
        }
        if let Some(after) = self.after {
            terms.push("sequence > ?");
            values.push(after.into());
        }
        (terms.join(" AND "), values)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutboxDepth {
    pub(crate) waiting: u64,
    pub(crate) parked: u64,
    /// When the oldest that waits was written.
    pub(crate) oldest_at: Option<UnixSeconds>,
    /// When the next attempt is due.
    pub(crate) next_attempt_at: Option<UnixSeconds>,
}

impl Read<'_> {
    pub(crate) fn outbox_depth(&self) -> Result<OutboxDepth, StoreError> {
        let depth = self
            .connection
            .prepare_cached(&format!(
                "SELECT (SELECT count(*) FROM outbox WHERE parked_reason IS NULL),
                    (SELECT count(*) FROM outbox WHERE parked_reason IS NOT NULL),
                    (SELECT created_at FROM outbox WHERE parked_reason IS NULL
                     ORDER BY sequence LIMIT 1),
                    max((SELECT min(due_ms) FROM outbox_servers WHERE due_ms IS NOT NULL),
                        {WAIT_UNTIL_SQL})"
            ))?
            .query_row([], |row| {
                Ok(OutboxDepth {
                    waiting: from_sql(row.get(0)?),
                    parked: from_sql(row.get(1)?),
                    oldest_at: row.get::<_, Option<i64>>(2)?.map(UnixSeconds),
                    next_attempt_at: row.get::<_, Option<i64>>(3)?.map(UnixSeconds::from_ms),
                })
            })?;
        Ok(depth)
    }

    /// The first updates that pass the filter, in their order.
    pub(crate) fn outbox(
        &self,
        filter: &OutboxFilter,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        let (condition, mut values) = filter.condition();
        values.push(i64::try_from(limit).unwrap_or(i64::MAX).into());
        let mut statement = self.connection.prepare_cached(&format!(
            "{} WHERE {condition} ORDER BY sequence LIMIT ?",
            select_entry()
        ))?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(entry_of(row)?);
        }
        Ok(found)
    }

    pub(crate) fn outbox_entry(&self, sequence: i64) -> Result<OutboxEntry, StoreError> {
        self.connection
            .prepare_cached(&format!("{} WHERE sequence = ?1", select_entry()))?
            .query_row([sequence], |row| Ok(entry_of(row)))
            .optional()?
            .unwrap_or(Err(StoreError::NoSuchUpdate(sequence)))
    }

    /// The last number given to an update of each container that has had one.
    pub(crate) fn last_sequences(&self) -> Result<Vec<(ContainerId, i64)>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, last_sequence FROM containers JOIN outbox_servers ON server = id",
        )?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((container_id(&row.get::<_, String>(0)?)?, row.get(1)?));
        }
        Ok(found)
    }
}

impl Tx<'_> {
    /// Lets an update be tried at once: a parked one in its old place, of one that waits the first of its
    /// server. A pause that the panel has asked for everything is over with it. Answers whose it is.
    pub(crate) fn retry_update(&self, sequence: i64) -> Result<ContainerId, StoreError> {
        let server = self.server_of(sequence)?;
        self.connection
            .prepare_cached(
                "UPDATE outbox SET parked_reason = NULL, parked_at = NULL WHERE sequence = ?1",
            )?
            .execute([sequence])?;
        self.settle(&server, 0, false)?;
        self.let_all_go()?;
        self.outbox_grew.set(true);
        Ok(server)
    }

    /// As [`Tx::retry_update`], of everything, or of all of one server. How many are tried again.
    pub(crate) fn retry_updates(&self, server: Option<&ContainerId>) -> Result<u64, StoreError> {
        let server = server.map(ContainerId::as_str);
        self.connection
            .prepare_cached(
                "UPDATE outbox SET parked_reason = NULL, parked_at = NULL
                 WHERE parked_reason IS NOT NULL AND (?1 IS NULL OR server = ?1)",
            )?
            .execute([server])?;
        self.connection
            .prepare_cached(
                "UPDATE outbox_servers SET due_ms = 0 WHERE server IN (
                    SELECT server FROM outbox WHERE ?1 IS NULL OR server = ?1)",
            )?
            .execute([server])?;
        self.let_all_go()?;
        self.outbox_grew.set(true);
        let count = self
            .connection
            .prepare_cached("SELECT count(*) FROM outbox WHERE ?1 IS NULL OR server = ?1")?
            .query_row([server], |row| row.get(0))?;
        Ok(from_sql(count))
    }

    /// Forgets an update: the panel will not hear of it. Answers whose it was.
    pub(crate) fn drop_update(&self, sequence: i64) -> Result<ContainerId, StoreError> {
        let server = self.server_of(sequence)?;
        self.delete_update(sequence)?;
        self.settle(&server, 0, false)?;
        self.outbox_grew.set(true);
        Ok(server)
    }

    /// Forgets what is parked, of all servers or of one; how many that were.
    pub(crate) fn drop_parked(&self, server: Option<&ContainerId>) -> Result<u64, StoreError> {
        let dropped = self
            .connection
            .prepare_cached(
                "DELETE FROM outbox
                 WHERE parked_reason IS NOT NULL AND (?1 IS NULL OR server = ?1)",
            )?
            .execute([server.map(ContainerId::as_str)])?;
        Ok(dropped as u64)
    }

    fn server_of(&self, sequence: i64) -> Result<ContainerId, StoreError> {
        Ok(self.outbox_entry(sequence)?.row.server)
    }
}

fn select_entry() -> String {
    format!(
        "SELECT {COLUMNS}, created_at, last_error, parked_reason, parked_at,
            max(due_ms, {WAIT_UNTIL_SQL})
         FROM outbox LEFT JOIN outbox_servers ON outbox_servers.server = outbox.server"
    )
}

fn entry_of(row: &Row<'_>) -> Result<OutboxEntry, StoreError> {
    let at = |column: usize| Ok::<_, StoreError>(row.get::<_, Option<i64>>(column)?);
    let parked = match row.get::<_, Option<String>>(8)? {
        Some(reason) => Some(Parked { reason, at: at(9)?.map(UnixSeconds) }),
        None => None,
    };
    Ok(OutboxEntry {
        row: outbox_row_of(row)?,
        created_at: UnixSeconds(row.get(6)?),
        last_error: row.get(7)?,
        due_at: at(10)?.map(UnixSeconds::from_ms).filter(|_| parked.is_none()),
        parked,
    })
}
