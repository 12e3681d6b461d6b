//! Facts about the node itself, by name.

use rusqlite::OptionalExtension as _;

use super::error::StoreError;
use super::{Read, Tx};

impl Read<'_> {
    pub(crate) fn meta(&self, key: &str) -> Result<Option<String>, StoreError> {
        let select = "SELECT value FROM meta WHERE key = ?1";
        Ok(self.connection.prepare_cached(select)?.query_row([key], |row| row.get(0)).optional()?)
    }
}

impl Tx<'_> {
    pub(crate) fn set_meta(&self, key: &str, value: &str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO meta (key, value) VALUES (?1, ?2)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?
            .execute([key, value])?;
        Ok(())
    }
}
