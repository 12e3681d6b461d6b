//! Snapshots of volumes as the store knows them; the copies are elsewhere.
//!
//! A row is there before the copy is begun and after it is removed, so that a crash leaves no copy that
//! nobody knows of. Only rows that are ready are shown.

use rusqlite::{OptionalExtension, Row};
use uuid::Uuid;

use super::error::StoreError;
use super::{Read, Tx, from_sql, to_sql};
use crate::domain::ids::VolumeId;
use crate::domain::units::UnixSeconds;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotRow {
    pub(crate) id: Uuid,
    pub(crate) volume: VolumeId,
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Whether its containers stood still meanwhile.
    pub(crate) paused: bool,
    pub(crate) created_at: UnixSeconds,
}

const COLUMNS: &str =
    "SELECT id, volume_id, name, bytes, entries, paused, created_at FROM volume_snapshots";

impl Tx<'_> {
    /// To be stored before the copy is begun. `most`: how many a volume may have.
    pub(crate) fn begin_snapshot(&self, new: &SnapshotRow, most: u64) -> Result<(), StoreError> {
        self.volume(new.volume)?;
        let volume = new.volume.to_string();
        let exists = self
            .connection
            .prepare_cached("SELECT 1 FROM volume_snapshots WHERE volume_id = ?1 AND name = ?2")?
            .exists((&volume, &new.name))?;
        if exists {
            return Err(StoreError::SnapshotExists(new.name.clone()));
        }
        let count: i64 = self
            .connection
            .prepare_cached("SELECT count(*) FROM volume_snapshots WHERE volume_id = ?1")?
            .query_row([&volume], |row| row.get(0))?;
        if from_sql(count) >= most {
            return Err(StoreError::TooManySnapshots { most });
        }
        self.connection
            .prepare_cached(
                "INSERT INTO volume_snapshots
                    (id, volume_id, name, state, bytes, entries, paused, created_at)
                 VALUES (?1, ?2, ?3, 'making', 0, 0, ?4, ?5)",
            )?
            .execute((new.id.to_string(), volume, &new.name, new.paused, new.created_at.0))?;
        Ok(())
    }

    /// To be stored when the copy is complete and on the disk.
    pub(crate) fn finish_snapshot(
        &self,
        id: Uuid,
        bytes: u64,
        entries: u64,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE volume_snapshots SET state = 'ready', bytes = ?2, entries = ?3
                 WHERE id = ?1",
            )?
            .execute((id.to_string(), to_sql(bytes), to_sql(entries)))?;
        Ok(())
    }

    /// To be stored before the copy is removed.
    pub(crate) fn begin_snapshot_removal(&self, id: Uuid) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE volume_snapshots SET state = 'removing' WHERE id = ?1")?
            .execute([id.to_string()])?;
        Ok(())
    }

    /// To be stored once there is no copy (any more).
    pub(crate) fn forget_snapshot(&self, id: Uuid) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM volume_snapshots WHERE id = ?1")?
            .execute([id.to_string()])?;
        Ok(())
    }

    /// Forgets what a crash cut off; the copies are to be removed. Not while any work is under way.
    pub(crate) fn forget_unfinished_snapshots(&self) -> Result<usize, StoreError> {
        Ok(self
            .connection
            .prepare_cached("DELETE FROM volume_snapshots WHERE state != 'ready'")?
            .execute([])?)
    }
}

impl Read<'_> {
    pub(crate) fn snapshot(&self, volume: VolumeId, name: &str) -> Result<SnapshotRow, StoreError> {
        self.connection
            .prepare_cached(&format!(
                "{COLUMNS} WHERE volume_id = ?1 AND name = ?2 AND state = 'ready'"
            ))?
            .query_row((volume.to_string(), name), |row| Ok(snapshot_of(row)))
            .optional()?
            .unwrap_or_else(|| Err(StoreError::NoSuchSnapshot(name.to_owned())))
    }

    /// Whether there is a snapshot, in whatever state.
    pub(crate) fn knows_snapshot(&self, id: Uuid) -> Result<bool, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT 1 FROM volume_snapshots WHERE id = ?1")?;
        Ok(statement.exists([id.to_string()])?)
    }

    /// A volume's snapshots, the oldest first.
    pub(crate) fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "{COLUMNS} WHERE volume_id = ?1 AND state = 'ready' ORDER BY created_at, name"
        ))?;
        let mut rows = statement.query([volume.to_string()])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(snapshot_of(row)?);
        }
        Ok(found)
    }
}

fn snapshot_of(row: &Row<'_>) -> Result<SnapshotRow, StoreError> {
    let id: String = row.get(0)?;
    let volume: String = row.get(1)?;
    Ok(SnapshotRow {
        id: Uuid::try_parse(&id).map_err(|why| StoreError::decode("snapshot id", why))?,
        volume: VolumeId::parse(&volume).ok_or_else(|| StoreError::decode("volume id", volume))?,
        name: row.get(2)?,
        bytes: from_sql(row.get(3)?),
        entries: from_sql(row.get(4)?),
        paused: row.get(5)?,
        created_at: UnixSeconds(row.get(6)?),
    })
}
