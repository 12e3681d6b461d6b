//! Who did what, when: rows written with the change they tell of.

use serde::Serialize;

use super::error::StoreError;
use super::{Read, Tx};
use crate::domain::units::UnixSeconds;

/// Kept entries; older ones make room.
const KEPT: i64 = 100_000;

#[derive(Clone, Debug)]
pub(crate) struct AuditEntry {
    pub(crate) actor: String,
    pub(crate) action: String,
    pub(crate) container: Option<String>,
    pub(crate) remote_addr: Option<String>,
    pub(crate) detail: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct AuditRecord {
    pub(crate) id: i64,
    pub(crate) at: UnixSeconds,
    pub(crate) actor: String,
    pub(crate) action: String,
    pub(crate) container: Option<String>,
    pub(crate) remote_addr: Option<String>,
    pub(crate) detail: Option<String>,
}

impl Tx<'_> {
    pub(crate) fn record(&self, entry: &AuditEntry, now: UnixSeconds) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO audit (at, actor, action, container, remote_addr, detail)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((
                now.0,
                &entry.actor,
                &entry.action,
                &entry.container,
                &entry.remote_addr,
                &entry.detail,
            ))?;
        let newest = self.connection.last_insert_rowid();
        self.connection
            .prepare_cached("DELETE FROM audit WHERE id <= ?1")?
            .execute([newest - KEPT])?;
        Ok(())
    }
}

impl Read<'_> {
    /// The newest entries first, those before `before` where given, of one container where given.
    pub(crate) fn audit(
        &self,
        container: Option<&str>,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, at, actor, action, container, remote_addr, detail FROM audit
             WHERE (?1 IS NULL OR container = ?1) AND id < ?2 ORDER BY id DESC LIMIT ?3",
        )?;
        let rows = statement.query_map((container, before.unwrap_or(i64::MAX), limit), |row| {
            Ok(AuditRecord {
                id: row.get(0)?,
                at: UnixSeconds(row.get(1)?),
                actor: row.get(2)?,
                action: row.get(3)?,
                container: row.get(4)?,
                remote_addr: row.get(5)?,
                detail: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
