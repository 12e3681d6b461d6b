//! The outbox as the panel's link empties it: what is due, and what became of it.

use std::collections::HashSet;

use super::{COLUMNS, OutboxRow, outbox_row_of};
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::store::error::StoreError;
use crate::store::volumes::container_id;
use crate::store::{Read, Tx};

/// Parked power states kept in all; the oldest make room. Parked results stay until somebody has looked.
const PARKED_POWER_KEPT: i64 = 1_000;

/// What became of an attempt to deliver an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Delivered,
    /// The panel will not take it, however often it is sent.
    Refused {
        reason: String,
    },
    /// To be tried again.
    Later {
        error: String,
        due_ms: i64,
        asked: Asked,
    },
}

/// Whether the panel has asked for a pause, and for whom. What it has asked for is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    No,
    /// This server's updates.
    OfServer,
    /// All updates.
    OfAll,
}

/// The fact in the store: until when the panel is told nothing, in Unix milliseconds.
const ALL_WAIT_UNTIL: &str = "panel_asked_until_ms";
/// The same in SQL, 0 where there is none.
pub(super) const WAIT_UNTIL_SQL: &str =
    "coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'panel_asked_until_ms'), 0)";

/// What became of updates of one server, in their order; only the last one can be [`Fate::Later`].
#[derive(Clone, Debug)]
pub(crate) struct Attempts {
    pub(crate) server: ContainerId,
    pub(crate) fates: Vec<(i64, Fate)>,
}

/// How much is read of what is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HowMany {
    pub(crate) servers: usize,
    pub(crate) rows_each: u32,
}

/// What may be sent now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Due {
    /// The waiting updates of each server, in their order.
    pub(crate) batches: Vec<Vec<OutboxRow>>,
    /// More servers are due than were read.
    pub(crate) is_more: bool,
    /// When the next of the others is.
    pub(crate) next_due_ms: Option<i64>,
}

impl Read<'_> {
    /// What is due of servers that are not `busy`, those first that have been due for longest.
    pub(crate) fn outbox_due(
        &self,
        now_ms: i64,
        busy: &HashSet<ContainerId>,
        how_many: HowMany,
    ) -> Result<Due, StoreError> {
        let mut due = Due::default();
        let all_wait_until_ms = self.all_wait_until_ms()?;
        if all_wait_until_ms > now_ms {
            due.next_due_ms = Some(all_wait_until_ms);
            return Ok(due);
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT server, due_ms FROM outbox_servers WHERE due_ms IS NOT NULL
             ORDER BY due_ms, server",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let due_ms: i64 = row.get(1)?;
            if due_ms > now_ms {
                due.next_due_ms = Some(due_ms);
                break;
            }
            let server = container_id(&row.get::<_, String>(0)?)?;
            if busy.contains(&server) {
                continue;
            }
            if due.batches.len() == how_many.servers {
                due.is_more = true;
                break;
            }
            due.batches.push(self.waiting_of(&server, how_many.rows_each)?);
        }
        Ok(due)
    }

    fn all_wait_until_ms(&self) -> Result<i64, StoreError> {
        Ok(self.meta(ALL_WAIT_UNTIL)?.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    fn waiting_of(&self, server: &ContainerId, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM outbox WHERE server = ?1 AND parked_reason IS NULL
             ORDER BY sequence LIMIT ?2"
        ))?;
        let mut rows = statement.query((server.as_str(), limit))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(outbox_row_of(row)?);
        }
        Ok(found)
    }
}

impl Tx<'_> {
    /// Notes what became of updates. One that is gone meanwhile is passed over. Answers how many parked ones
    /// had to make room.
    pub(crate) fn note_attempts(
        &self,
        attempts: &[Attempts],
        now_ms: i64,
    ) -> Result<usize, StoreError> {
        // One that is over says no more when anything is due.
        if (1..=now_ms).contains(&self.all_wait_until_ms()?) {
            self.let_all_go()?;
        }
        for Attempts { server, fates } in attempts {
            // Behind those that have been due for longer.
            let mut next = (now_ms, false);
            for (sequence, fate) in fates {
                match fate {
                    Fate::Delivered => self.delete_update(*sequence)?,
                    Fate::Refused { reason } => self.park(*sequence, reason, now_ms)?,
                    Fate::Later { error, due_ms, asked } => {
                        if *asked == Asked::OfAll && *due_ms > self.all_wait_until_ms()? {
                            self.set_meta(ALL_WAIT_UNTIL, &due_ms.to_string())?;
                        }
                        // What was dropped meanwhile holds up nothing.
                        if self.note_failure(*sequence, error)? {
                            next = (*due_ms, *asked != Asked::No);
                        }
                    }
                }
            }
            if !fates.is_empty() {
                self.settle(server, next.0, next.1)?;
            }
        }
        let has_refusal = attempts.iter().any(|attempts| attempts.has_refusal());
        if has_refusal { self.thin_out_parked() } else { Ok(0) }
    }

    pub(super) fn delete_update(&self, sequence: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM outbox WHERE sequence = ?1")?
            .execute([sequence])?;
        Ok(())
    }

    /// False where there is no such update any more.
    fn note_failure(&self, sequence: i64, error: &str) -> Result<bool, StoreError> {
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE outbox SET attempts = attempts + 1, last_error = ?2 WHERE sequence = ?1",
            )?
            .execute((sequence, error))?;
        Ok(changed > 0)
    }

    fn park(&self, sequence: i64, reason: &str, now_ms: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE outbox SET attempts = attempts + 1, parked_reason = ?2, parked_at = ?3
                 WHERE sequence = ?1",
            )?
            .execute((sequence, reason, UnixSeconds::from_ms(now_ms).0))?;
        Ok(())
    }

    fn thin_out_parked(&self) -> Result<usize, StoreError> {
        let dropped = self
            .connection
            .prepare_cached(
                "DELETE FROM outbox WHERE sequence IN (
                    SELECT sequence FROM outbox WHERE parked_reason IS NOT NULL AND kind = 'power'
                    ORDER BY sequence DESC LIMIT -1 OFFSET ?1)",
            )?
            .execute([PARKED_POWER_KEPT])?;
        Ok(dropped)
    }

    /// Makes everything that waits due now, but for the pauses that the panel has asked for, as far as these
    /// end before `asked_until_ms`: no pause is so long that it ends later.
    pub(crate) fn hurry_outbox(&self, asked_until_ms: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE outbox_servers SET due_ms = 0
                 WHERE due_ms > 0 AND (is_asked = 0 OR due_ms > ?1)",
            )?
            .execute([asked_until_ms])?;
        if self.all_wait_until_ms()? > asked_until_ms {
            self.let_all_go()?;
        }
        self.outbox_grew.set(true);
        Ok(())
    }

    /// Ends a pause that the panel has asked for all updates.
    pub(crate) fn let_all_go(&self) -> Result<(), StoreError> {
        self.set_meta(ALL_WAIT_UNTIL, "0")
    }
}

impl Attempts {
    /// Until when the panel has asked to be told nothing at all, 0 if it has not.
    pub(crate) fn all_wait_until_ms(&self) -> i64 {
        let asked = |(_, fate): &(i64, Fate)| match fate {
            Fate::Later { due_ms, asked: Asked::OfAll, .. } => Some(*due_ms),
            _ => None,
        };
        self.fates.iter().filter_map(asked).max().unwrap_or(0)
    }

    fn has_refusal(&self) -> bool {
        self.fates.iter().any(|(_, fate)| matches!(fate, Fate::Refused { .. }))
    }
}
