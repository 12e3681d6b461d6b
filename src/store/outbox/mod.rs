//! Updates for the remote panel that have not been accepted yet.
//!
//! A row is written in the transaction that stores the change it reports, and deleted only when the
//! panel has accepted it. Rows of one server are delivered in their order, so only the first that waits
//! is ever due, and when stands with the server. What the panel refuses for good is parked: kept to be
//! looked at and tried again by hand, out of the way of what follows.
//!
//! The supervisor puts in (here), the panel's link takes out ([`sending`]), people look ([`looking`]).
//! Invariant: `outbox_servers.due_ms` is NULL exactly when nothing of that server waits.

mod looking;
mod sending;
#[cfg(test)]
mod tests;

use rusqlite::Row;
use uuid::Uuid;

pub(crate) use self::looking::{OutboxDepth, OutboxEntry, OutboxFilter};
pub(crate) use self::sending::{Asked, Attempts, Due, Fate, HowMany};
use super::Tx;
use super::error::StoreError;
use super::volumes::container_id;
use crate::domain::ids::ContainerId;
use crate::domain::panel_update::{PanelUpdate, update_body};
use crate::domain::units::UnixSeconds;

/// Power states kept per server while the panel is away; the oldest make room.
const POWER_KEPT: i64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpdateKind {
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

/// An update as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct OutboxRow {
    pub(crate) sequence: i64,
    pub(crate) delivery: Uuid,
    pub(crate) server: ContainerId,
    pub(crate) server_sequence: i64,
    pub(crate) body_json: String,
    /// How often it was tried in vain.
    pub(crate) attempts: u32,
}

/// In the order of [`OutboxRow`]'s fields.
const COLUMNS: &str = "sequence, delivery, outbox.server, server_sequence, body_json, attempts";

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
                "INSERT INTO outbox_servers (server, last_sequence, due_ms) VALUES (?1, 1, ?2)
                 ON CONFLICT (server) DO UPDATE SET
                    last_sequence = last_sequence + 1, due_ms = coalesce(due_ms, ?2)
                 RETURNING last_sequence",
            )?
            .query_row((server.as_str(), now.0.saturating_mul(1000)), |row| row.get(0))?;
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

    /// To be called after every change of what waits of a server: what is left is due at `due_ms`, because the
    /// panel has asked for that, or for a reason of ours.
    fn settle(&self, server: &ContainerId, due_ms: i64, is_asked: bool) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE outbox_servers SET due_ms = CASE WHEN EXISTS (
                    SELECT 1 FROM outbox WHERE server = ?1 AND parked_reason IS NULL) THEN ?2 END,
                    is_asked = ?3
                 WHERE server = ?1",
            )?
            .execute((server.as_str(), due_ms, is_asked))?;
        Ok(())
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
    })
}
