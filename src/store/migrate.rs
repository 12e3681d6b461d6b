//! Brings a store's schema up to this program's, step by step, and never down.

use std::path::Path;

use rusqlite::Connection;

use super::error::StoreError;

/// Step n leads from schema n - 1 to schema n. Steps that were released are never changed.
const STEPS: &[&str] = &[
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0003.sql"),
    include_str!("migrations/0004.sql"),
    include_str!("migrations/0005.sql"),
    include_str!("migrations/0006.sql"),
    include_str!("migrations/0007.sql"),
    include_str!("migrations/0008.sql"),
    include_str!("migrations/0009.sql"),
    include_str!("migrations/0010.sql"),
];

/// Runs what is missing, each step in a transaction with the new version number.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let open_failed = |source| StoreError::Open { path: path.to_owned(), source };
    let known = version_of(STEPS.len());
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(open_failed)?;
    if found > known {
        return Err(StoreError::NewerSchema { path: path.to_owned(), found, known });
    }
    for (index, step) in STEPS.iter().enumerate() {
        let version = version_of(index + 1);
        if version > found {
            apply(connection, step, version).map_err(|source| StoreError::Migrate {
                path: path.to_owned(),
                version,
                source,
            })?;
        }
    }
    Ok(())
}

fn apply(connection: &mut Connection, step: &str, version: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(step)?;
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()
}

fn version_of(steps: usize) -> i64 {
    i64::try_from(steps).expect("invariant: there are few steps")
}
