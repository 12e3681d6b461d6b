//! Updates for the remote panel that have not been accepted yet.
//!
//! A row is written in the transaction that stores the change it reports, and deleted only when the
//! panel has accepted it. Rows of one server are delivered in their order. What the panel refuses for
//! good is parked: kept to be looked at and tried again by hand, out of the way of what follows.

use rusqlite::{OptionalExtension, Row};
use uuid::Uuid;

use super::error::StoreError;
use super::volumes::container_id;
use super::{Read, Tx, from_sql};
use crate::domain::ids::ContainerId;
use crate::domain::panel_update::{PanelUpdate, update_body};
use crate::domain::units::UnixSeconds;

/// Power states kept per server while the panel is away; the oldest make room.
const POWER_KEPT: i64 = 256;
/// Parked updates kept in all; the oldest make room.
const PARKED_KEPT: i64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpdateKind {
    Result,
    Power,
}

impl UpdateKind {
    fn of(update: &PanelUpdate) -> Self {
        match update {
            PanelUpdate::Power(_) => Self::Power,
            PanelUpdate::Installing | PanelUpdate::Ready | PanelUpdate::Failed { .. } => {
                Self::Result
            }
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Power => "power",
        }
    }
}

/// An update that waits for delivery.
#[derive(Clone, Debug)]
pub(crate) struct OutboxRow {
    pub(crate) sequence: i64,
    pub(crate) delivery: Uuid,
    pub(crate) server: ContainerId,
    pub(crate) server_sequence: i64,
    pub(crate) body_json: String,
    /// How often it was tried in vain.
    pub(crate) attempts: u32,
    pub(crate) next_attempt_at: UnixSeconds,
}

#[derive(Clone, Debug)]
pub(crate) struct ParkedRow {
    pub(crate) row: OutboxRow,
    pub(crate) created_at: UnixSeconds,
    pub(crate) reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutboxDepth {
    pub(crate) waiting: u64,
    pub(crate) parked: u64,
    /// When the oldest that waits was written.
    pub(crate) oldest_at: Option<UnixSeconds>,
}

const COLUMNS: &str =
    "sequence, delivery, server, server_sequence, body_json, attempts, next_attempt_at";

impl Tx<'_> {
    /// Stores an update for the panel; to be called beside the change that it reports.
    pub(crate) fn enqueue_update(
        &self,
        server: &ContainerId,
        update: &PanelUpdate,
        now: UnixSeconds,
    ) -> Result<(), StoreError> {
        let kind = UpdateKind::of(update);
        let server_sequence: i64 = self
            .connection
            .prepare_cached(
                "INSERT INTO outbox_servers (server, last_sequence) VALUES (?1, 1)
                 ON CONFLICT (server) DO UPDATE SET last_sequence = last_sequence + 1
                 RETURNING last_sequence",
            )?
            .query_row([server.as_str()], |row| row.get(0))?;
        self.connection
            .prepare_cached(
                "INSERT INTO outbox (delivery, server, server_sequence, kind, body_json, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((
                Uuid::new_v4().to_string(),
                server.as_str(),
                server_sequence,
                kind.as_str(),
                update_body(server, update),
                now.0,
            ))?;
        if kind == UpdateKind::Power {
            self.thin_out_power_states(server)?;
        }
        self.outbox_grew.set(true);
        Ok(())
    }

    fn thin_out_power_states(&self, server: &ContainerId) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "DELETE FROM outbox WHERE sequence IN (
                    SELECT sequence FROM outbox
                    WHERE server = ?1 AND kind = 'power' AND parked_reason IS NULL
                    ORDER BY sequence DESC LIMIT -1 OFFSET ?2)",
            )?
            .execute((server.as_str(), POWER_KEPT))?;
        Ok(())
    }

    /// The panel has accepted an update.
    pub(crate) fn delivered(&self, sequence: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM outbox WHERE sequence = ?1")?
            .execute([sequence])?;
        Ok(())
    }

    /// An attempt failed; the next is due at `next`.
    pub(crate) fn postpone(&self, sequence: i64, next: UnixSeconds) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE outbox SET attempts = attempts + 1, next_attempt_at = ?2
                 WHERE sequence = ?1",
            )?
            .execute((sequence, next.0))?;
        Ok(())
    }

    /// The panel has refused an update for good.
    pub(crate) fn park(&self, sequence: i64, reason: &str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE outbox SET attempts = attempts + 1, parked_reason = ?2 WHERE sequence = ?1",
            )?
            .execute((sequence, reason))?;
        self.connection
            .prepare_cached(
                "DELETE FROM outbox WHERE sequence IN (
                    SELECT sequence FROM outbox WHERE parked_reason IS NOT NULL
                    ORDER BY sequence DESC LIMIT -1 OFFSET ?1)",
            )?
            .execute([PARKED_KEPT])?;
        Ok(())
    }

    /// Lets a parked update be tried again, in its old place.
    pub(crate) fn unpark(&self, sequence: i64) -> Result<(), StoreError> {
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE outbox SET parked_reason = NULL, next_attempt_at = 0
                 WHERE sequence = ?1 AND parked_reason IS NOT NULL",
            )?
            .execute([sequence])?;
        if changed == 0 {
            return Err(StoreError::NoSuchUpdate(sequence));
        }
        self.outbox_grew.set(true);
        Ok(())
    }

    /// Makes everything that waits due now: the panel is back.
    pub(crate) fn hurry_outbox(&self) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE outbox SET next_attempt_at = 0
                 WHERE parked_reason IS NULL AND next_attempt_at > 0",
            )?
            .execute([])?;
        self.outbox_grew.set(true);
        Ok(())
    }
}

impl Read<'_> {
    /// The first waiting update of each server, the ones that are due earliest first.
    pub(crate) fn outbox_heads(&self, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM outbox WHERE sequence IN (
                SELECT min(sequence) FROM outbox WHERE parked_reason IS NULL GROUP BY server)
             ORDER BY next_attempt_at, sequence LIMIT ?1"
        ))?;
        let mut rows = statement.query([limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(outbox_row_of(row)?);
        }
        Ok(found)
    }

    pub(crate) fn outbox_depth(&self) -> Result<OutboxDepth, StoreError> {
        let depth = self
            .connection
            .prepare_cached(
                "SELECT count(*) - count(parked_reason), count(parked_reason),
                    min(CASE WHEN parked_reason IS NULL THEN created_at END) FROM outbox",
            )?
            .query_row([], |row| {
                Ok(OutboxDepth {
                    waiting: from_sql(row.get(0)?),
                    parked: from_sql(row.get(1)?),
                    oldest_at: row.get::<_, Option<i64>>(2)?.map(UnixSeconds),
                })
            })
            .optional()?;
        Ok(depth.unwrap_or(OutboxDepth { waiting: 0, parked: 0, oldest_at: None }))
    }

    /// The newest parked updates first.
    pub(crate) fn parked(&self, limit: u32) -> Result<Vec<ParkedRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS}, created_at, parked_reason FROM outbox
             WHERE parked_reason IS NOT NULL ORDER BY sequence DESC LIMIT ?1"
        ))?;
        let mut rows = statement.query([limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(ParkedRow {
                row: outbox_row_of(row)?,
                created_at: UnixSeconds(row.get(7)?),
                reason: row.get(8)?,
            });
        }
        Ok(found)
    }
}

fn outbox_row_of(row: &Row<'_>) -> Result<OutboxRow, StoreError> {
    let delivery: String = row.get(1)?;
    Ok(OutboxRow {
        sequence: row.get(0)?,
        delivery: Uuid::try_parse(&delivery)
            .map_err(|why| StoreError::decode("delivery id", why))?,
        server: container_id(&row.get::<_, String>(2)?)?,
        server_sequence: row.get(3)?,
        body_json: row.get(4)?,
        attempts: row.get(5)?,
        next_attempt_at: UnixSeconds(row.get(6)?),
    })
}
