//! Where the node's token was good from lately, by network: see [`crate::access`].

use std::net::IpAddr;

use super::error::StoreError;
use super::{Read, Tx};
use crate::domain::units::UnixSeconds;

impl Tx<'_> {
    /// Notes a home, and forgets those that were last one before `forget`, and the oldest above `most`.
    pub(crate) fn note_home(
        &self,
        network: IpAddr,
        now: UnixSeconds,
        forget: UnixSeconds,
        most: usize,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO homes (network, seen_at) VALUES (?1, ?2)
                 ON CONFLICT (network) DO UPDATE SET seen_at = excluded.seen_at",
            )?
            .execute((network.to_string(), now.0))?;
        self.connection
            .prepare_cached(
                "DELETE FROM homes WHERE seen_at < ?1 OR network IN (
                    SELECT network FROM homes ORDER BY seen_at DESC LIMIT -1 OFFSET ?2)",
            )?
            .execute((forget.0, i64::try_from(most).unwrap_or(i64::MAX)))?;
        Ok(())
    }
}

impl Read<'_> {
    /// All homes, and when each was last one.
    pub(crate) fn homes(&self) -> Result<Vec<(IpAddr, UnixSeconds)>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT network, seen_at FROM homes")?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let network = row.get::<_, String>(0)?;
            let network =
                network.parse().map_err(|why| StoreError::decode("a home's network", why))?;
            found.push((network, UnixSeconds(row.get(1)?)));
        }
        Ok(found)
    }
}
