//! Volumes as the store knows them; their files are elsewhere.
//!
//! A folder exists without its row for a moment when a volume is made and when it goes. For that time it
//! is listed as one to remove, in the transactions that decide, so that a crash leaves neither half a
//! volume nor a folder that nobody knows of.

use rusqlite::{OptionalExtension, Row};

use super::error::StoreError;
use super::{Read, Tx, from_sql, to_sql};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::quota::{Backing, QuotaBackend};
use crate::domain::units::UnixSeconds;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeRow {
    pub(crate) id: VolumeId,
    pub(crate) name: Option<String>,
    /// The most it may hold; `None` is no limit.
    pub(crate) size_bytes: Option<u64>,
    /// What holds it to its size; one without a size may still rest on a project.
    pub(crate) backing: Option<Backing>,
    pub(crate) created_at: UnixSeconds,
}

const COLUMNS: &str = "SELECT id, name, size_bytes, created_at, backend, project FROM volumes";

impl Tx<'_> {
    /// To be stored before a volume's folder is made; [`Tx::insert_volume`] takes it back.
    pub(crate) fn announce_volume_folder(&self, id: VolumeId) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR IGNORE INTO volume_folders_to_remove (id) VALUES (?1)")?
            .execute([id.to_string()])?;
        Ok(())
    }

    /// To be stored once a folder that was to be removed is gone.
    pub(crate) fn forget_volume_folder(&self, id: VolumeId) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM volume_folders_to_remove WHERE id = ?1")?
            .execute([id.to_string()])?;
        Ok(())
    }

    pub(crate) fn insert_volume(&self, volume: &VolumeRow) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO volumes (id, name, size_bytes, created_at, backend, project)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((
                volume.id.to_string(),
                &volume.name,
                volume.size_bytes.map(to_sql),
                volume.created_at.0,
                volume.backing.map(|backing| backing.backend.as_str()),
                volume.backing.and_then(|backing| backing.project),
            ))?;
        self.forget_volume_folder(volume.id)
    }

    pub(crate) fn resize_volume(
        &self,
        id: VolumeId,
        size_bytes: Option<u64>,
        backing: Option<Backing>,
    ) -> Result<(), StoreError> {
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE volumes SET size_bytes = ?2, backend = ?3, project = ?4 WHERE id = ?1",
            )?
            .execute((
                id.to_string(),
                size_bytes.map(to_sql),
                backing.map(|backing| backing.backend.as_str()),
                backing.and_then(|backing| backing.project),
            ))?;
        if changed == 0 { Err(StoreError::NoSuchVolume(id)) } else { Ok(()) }
    }

    /// Refused while a container uses it. The caller removes the folder afterwards, which is now one to
    /// remove.
    pub(crate) fn delete_volume(&self, id: VolumeId) -> Result<(), StoreError> {
        if let Some(by) = self.containers_of_volume(id)?.into_iter().next() {
            return Err(StoreError::VolumeInUse { volume: id, by });
        }
        let changed = self
            .connection
            .prepare_cached("DELETE FROM volumes WHERE id = ?1")?
            .execute([id.to_string()])?;
        if changed == 0 {
            return Err(StoreError::NoSuchVolume(id));
        }
        self.announce_volume_folder(id)
    }
}

impl Read<'_> {
    pub(crate) fn volume(&self, id: VolumeId) -> Result<VolumeRow, StoreError> {
        self.connection
            .prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?
            .query_row([id.to_string()], |row| Ok(volume_of(row)))
            .optional()?
            .unwrap_or(Err(StoreError::NoSuchVolume(id)))
    }

    pub(crate) fn volumes(&self) -> Result<Vec<VolumeRow>, StoreError> {
        let mut statement =
            self.connection.prepare_cached(&format!("{COLUMNS} ORDER BY created_at, id"))?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(volume_of(row)?);
        }
        Ok(found)
    }

    /// The first volumes after one, in the order in which they were made, with who uses each, as many of
    /// those that `is_wanted` as there may be.
    pub(crate) fn volumes_after(
        &self,
        after: Option<(UnixSeconds, VolumeId)>,
        limit: usize,
        is_wanted: impl Fn(&VolumeRow, &[ContainerId]) -> bool,
    ) -> Result<Vec<(VolumeRow, Vec<ContainerId>)>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, name, size_bytes, created_at, backend, project,
                (SELECT group_concat(id, ',') FROM
                    (SELECT id FROM containers WHERE volume_id = volumes.id ORDER BY id))
             FROM volumes WHERE ?1 IS NULL OR (created_at, id) > (?1, ?2)
             ORDER BY created_at, id",
        )?;
        let (made_at, id) = after.map(|(made_at, id)| (made_at.0, id.to_string())).unzip();
        let mut rows = statement.query((made_at, id))?;
        let mut found = Vec::new();
        while found.len() < limit
            && let Some(row) = rows.next()?
        {
            let ids = row.get::<_, Option<String>>(6)?.unwrap_or_default();
            let ids = ids.split(',').filter(|id| !id.is_empty());
            let used_by = ids.map(container_id).collect::<Result<Vec<_>, _>>()?;
            let volume = volume_of(row)?;
            if is_wanted(&volume, &used_by) {
                found.push((volume, used_by));
            }
        }
        Ok(found)
    }

    /// The first of these numbers that no volume bears.
    pub(crate) fn free_project(
        &self,
        candidates: impl IntoIterator<Item = u32>,
    ) -> Result<Option<u32>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT 1 FROM volumes WHERE project = ?1")?;
        for number in candidates {
            if !statement.exists([number])? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Folders to remove that a crash, or a request that went away, has left.
    pub(crate) fn volume_folders_to_remove(&self) -> Result<Vec<VolumeId>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT id FROM volume_folders_to_remove")?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(volume_id(row.get(0)?)?);
        }
        Ok(found)
    }

    /// The least that containers of a volume allow it to hold.
    pub(crate) fn disk_limit_of(&self, id: VolumeId) -> Result<Option<u64>, StoreError> {
        let mut least = None;
        for user in self.containers_of_volume(id)? {
            let limit = self.container(&user)?.spec.limits.disk;
            least = least.into_iter().chain(limit).min();
        }
        Ok(least)
    }

    /// The containers that use a volume.
    pub(crate) fn containers_of_volume(
        &self,
        id: VolumeId,
    ) -> Result<Vec<ContainerId>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id FROM containers WHERE volume_id = ?1 ORDER BY id")?;
        let mut rows = statement.query([id.to_string()])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(container_id(&row.get::<_, String>(0)?)?);
        }
        Ok(found)
    }
}

fn volume_of(row: &Row<'_>) -> Result<VolumeRow, StoreError> {
    Ok(VolumeRow {
        id: volume_id(row.get(0)?)?,
        name: row.get(1)?,
        size_bytes: row.get::<_, Option<i64>>(2)?.map(from_sql),
        created_at: UnixSeconds(row.get(3)?),
        backing: backing_of(row.get(4)?, row.get(5)?)?,
    })
}

fn backing_of(
    backend: Option<String>,
    project: Option<u32>,
) -> Result<Option<Backing>, StoreError> {
    let Some(text) = backend else { return Ok(None) };
    let backend =
        QuotaBackend::parse(&text).ok_or_else(|| StoreError::decode("quota backend", text))?;
    Ok(Some(Backing { backend, project }))
}

fn volume_id(text: String) -> Result<VolumeId, StoreError> {
    VolumeId::parse(&text).ok_or_else(|| StoreError::decode("volume id", text))
}

pub(super) fn container_id(text: &str) -> Result<ContainerId, StoreError> {
    ContainerId::parse(text).map_err(|why| StoreError::decode("container id", why))
}

#[cfg(test)]
mod tests {
    use crate::domain::ids::VolumeId;
    use crate::domain::quota::{Backing, QuotaBackend};
    use crate::store::testing::{NOW, add_volume, id, new_container, open, terms};
    use crate::store::volumes::VolumeRow;

    #[tokio::test]
    async fn volumes_are_listed_in_pages_each_with_who_uses_it() {
        let (_folder, store) = open();
        let (mut all, used) = (Vec::new(), add_volume(&store).await);
        for _ in 0..6 {
            all.push(add_volume(&store).await);
        }
        all.push(used);
        all.sort_unstable();
        for name in ["b", "a"] {
            let new = new_container(name, used, &[]);
            store
                .write("test", move |tx| tx.insert_container(&new, &terms(NOW)).map(drop))
                .await
                .unwrap();
        }
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.read("test", move |rx| rx.volumes_after(after, 3, |_, _| true));
            let page = page.await.unwrap();
            let Some((last, _)) = page.last() else { break };
            after = Some((last.created_at, last.id));
            seen.extend(page);
        }
        assert_eq!(seen.iter().map(|(row, _)| row.id).collect::<Vec<_>>(), all);
        for (row, used_by) in &seen {
            let want = if row.id == used { vec![id("a"), id("b")] } else { Vec::new() };
            assert_eq!(used_by, &want);
        }
        let mine = |rx: &crate::store::Read<'_>| rx.volumes_after(None, 3, |_, by| !by.is_empty());
        assert_eq!(store.read("test", mine).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_project_number_that_a_volume_bears_is_passed_over_and_the_search_ends() {
        let (_folder, store) = open();
        let backing = Some(Backing { backend: QuotaBackend::Project, project: Some(7) });
        let id = VolumeId::random();
        let row = VolumeRow { id, name: None, size_bytes: Some(1), backing, created_at: NOW };
        store.write("test", move |tx| tx.insert_volume(&row)).await.unwrap();
        let free = |numbers: &'static [u32]| {
            store.read("test", move |rx| rx.free_project(numbers.iter().copied()))
        };
        assert_eq!(free(&[7, 8, 9]).await.unwrap(), Some(8));
        assert_eq!(free(&[7, 7]).await.unwrap(), None);
    }
}
