//! The audit log: one row for each thing that somebody did, written with the change itself.
//!
//! [`Tx::record`] belongs into the closure that makes the change: then there is no change without its row
//! and no row without its change, also across a crash. What one caller does many times in a row to one
//! thing (an upload of a thousand files) is counted on the first row for [`COUNTED_SECONDS`]. Rows go by
//! age and number only ([`Tx::forget_audit`]), a few at a time, so that no other write waits for long.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::types::Value as Sql;
use rusqlite::{OptionalExtension, Row, ToSql, params_from_iter};
use serde_json::{Map, Value};

use super::error::StoreError;
use super::{BUSY_AGAIN, BUSY_TRIES, Read, Store, Tx, from_sql, to_sql};
use crate::domain::access::TokenId;
use crate::domain::audit::{Act, Action, Actor, Who};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::units::UnixSeconds;
use crate::util::chain::Chain;

/// For how long what is done again is counted on the row of the first time.
const COUNTED_SECONDS: i64 = 10;
/// Among how many of the latest rows of the same thing that row is looked for: so many may work on it at
/// the same time.
const COUNTED_AMONG: u32 = 8;
/// Rows that one transaction forgets.
const FORGOTTEN_AT_ONCE: u32 = 500;

/// A row, for people. Its words are those that were written, also by another version of lightd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuditRow {
    pub(crate) id: i64,
    pub(crate) created_at: UnixSeconds,
    pub(crate) last_at: UnixSeconds,
    pub(crate) count: u64,
    pub(crate) action: String,
    pub(crate) actor: String,
    pub(crate) token_id: Option<String>,
    pub(crate) token_prefix: Option<String>,
    pub(crate) way: String,
    pub(crate) address: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) container: Option<String>,
    pub(crate) volume: Option<String>,
    pub(crate) details: Map<String, Value>,
}

/// Which rows are asked for; `None` does not filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditFilter {
    /// Rows of these containers only.
    pub(crate) containers: Option<BTreeSet<ContainerId>>,
    /// Rows that name a container at all.
    pub(crate) of_containers: bool,
    /// Rows of containers that there are, and none from before they were made: an id may have been another's.
    pub(crate) of_present_holders: bool,
    pub(crate) volume: Option<VolumeId>,
    pub(crate) by: Option<By>,
    pub(crate) actions: Option<Vec<Action>>,
    pub(crate) since: Option<UnixSeconds>,
    pub(crate) until: Option<UnixSeconds>,
    /// Rows older than this one.
    pub(crate) before: Option<i64>,
}

/// Whose rows are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// One of the names that [`Who`] has.
    Kind(&'static str),
    Token(TokenId),
    Prefix(String),
}

const COLUMNS: &str = "SELECT id, created_at, last_at, count, action, actor, token_id, token_prefix, \
     way, address, request_id, container, volume, details_json FROM audit";

impl Store {
    /// Writes down what is not in the store itself. Tried again for a while when the store is busy.
    pub(crate) async fn record(&self, act: Act) -> Result<(), StoreError> {
        self.record_shared(&Arc::new(act)).await
    }

    /// As [`Store::record`], of what cannot be taken back: a failure is the log's.
    pub(crate) async fn record_done(&self, act: Act) {
        let act = Arc::new(act);
        if let Err(error) = self.record_shared(&act).await {
            tell_lost(&act, &error);
        }
    }

    /// As [`Store::record_done`], for a thread that may wait.
    pub(crate) fn record_done_blocking(&self, act: Act) {
        let act = Arc::new(act);
        let mut tries = 1..BUSY_TRIES;
        loop {
            match self.write_blocking(RECORD, recording(&act)) {
                Err(StoreError::Busy) if tries.next().is_some() => std::thread::sleep(BUSY_AGAIN),
                Err(error) => return tell_lost(&act, &error),
                Ok(()) => return,
            }
        }
    }

    async fn record_shared(&self, act: &Arc<Act>) -> Result<(), StoreError> {
        self.write_done(RECORD, recording(act)).await
    }
}

const RECORD: &str = "record what was done";

fn recording(act: &Arc<Act>) -> impl Fn(&Tx<'_>) -> Result<(), StoreError> + Clone + Send + use<> {
    let act = Arc::clone(act);
    move |tx| tx.record(&act, UnixSeconds::now())
}

fn tell_lost(act: &Act, error: &StoreError) {
    let Act { actor, action, container, volume, .. } = act;
    let (action, error) = (action.as_str(), Chain(error));
    tracing::error!(action, ?container, ?volume, ?actor, %error, "something was done and is not in the audit log");
}

impl Tx<'_> {
    /// Writes down what somebody does. Belongs into the transaction that does it.
    pub(crate) fn record(&self, act: &Act, now: UnixSeconds) -> Result<(), StoreError> {
        let container = match (&act.container, act.volume) {
            (Some(container), _) => Some(container.to_string()),
            (None, Some(volume)) => self.only_user_of(volume)?,
            (None, None) => None,
        };
        if act.is_counted() && self.count_on(act, container.as_deref(), now)? {
            return Ok(());
        }
        let (token_id, token_prefix) = token_of(&act.actor.who);
        self.connection
            .prepare_cached(
                "INSERT INTO audit (created_at, last_at, count, action, actor, token_id,
                    token_prefix, way, address, request_id, container, volume, details_json)
                 VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute((
                now.0,
                to_sql(act.count),
                act.action.as_str(),
                act.actor.who.as_str(),
                token_id,
                token_prefix,
                act.actor.way.as_str(),
                act.actor.address.map(|address| address.to_string()),
                &act.actor.request_id,
                container,
                act.volume.map(|volume| volume.to_string()),
                encode(&act.details)?,
            ))?;
        Ok(())
    }

    /// The container that uses a volume, if there is exactly one.
    fn only_user_of(&self, volume: VolumeId) -> Result<Option<String>, StoreError> {
        let mut users = self.containers_of_volume(volume)?;
        let first = users.pop();
        Ok(first.filter(|_| users.is_empty()).map(String::from))
    }

    /// Counts an act on a row of shortly before. False if there is none.
    fn count_on(
        &self,
        act: &Act,
        container: Option<&str>,
        now: UnixSeconds,
    ) -> Result<bool, StoreError> {
        let Some((id, details)) = self.same_shortly_before(act, container, now)? else {
            return Ok(false);
        };
        let mut details = decode(&details)?;
        act.count_on(&mut details);
        self.connection
            .prepare_cached(
                "UPDATE audit SET count = count + ?2, last_at = ?3, details_json = ?4 WHERE id = ?1",
            )?
            .execute((id, to_sql(act.count), now.0, encode(&details)?))?;
        Ok(true)
    }

    /// The row of the same by the same to the same: its number and its details.
    fn same_shortly_before(
        &self,
        act: &Act,
        container: Option<&str>,
        now: UnixSeconds,
    ) -> Result<Option<(i64, String)>, StoreError> {
        let volume = act.volume.map(|volume| volume.to_string());
        let (place, target) = match (&volume, container) {
            (Some(volume), _) => ("volume", volume.as_str()),
            (None, Some(container)) => ("container", container),
            (None, None) => return Ok(None),
        };
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT id, details_json FROM
                (SELECT * FROM audit WHERE {place} = ?1 ORDER BY id DESC LIMIT {COUNTED_AMONG})
             WHERE created_at BETWEEN ?2 AND ?3 AND action = ?4 AND actor = ?5
                AND token_id IS ?6 AND way = ?7 AND address IS ?8 AND container IS ?9
             ORDER BY id DESC LIMIT 1"
        ))?;
        let Actor { who, way, address, .. } = &act.actor;
        let asked = (
            target,
            now.0 - COUNTED_SECONDS,
            now.0,
            act.action.as_str(),
            who.as_str(),
            token_of(who).0,
            way.as_str(),
            address.map(|address| address.to_string()),
            container,
        );
        Ok(select.query_row(asked, |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
    }

    /// Forgets some rows that are older than `oldest`, or not among those from `first` on. True if there
    /// may be more of them.
    pub(crate) fn forget_audit(
        &self,
        oldest: UnixSeconds,
        first: Option<i64>,
    ) -> Result<bool, StoreError> {
        let by_age = self
            .connection
            .prepare_cached(
                "DELETE FROM audit WHERE id IN
                    (SELECT id FROM audit WHERE last_at < ?1 ORDER BY last_at LIMIT ?2)",
            )?
            .execute((oldest.0, FORGOTTEN_AT_ONCE))?;
        let by_number = self
            .connection
            .prepare_cached(
                "DELETE FROM audit WHERE id IN
                    (SELECT id FROM audit WHERE id < ?1 ORDER BY id LIMIT ?2)",
            )?
            .execute((first.unwrap_or(i64::MIN), FORGOTTEN_AT_ONCE))?;
        Ok(by_age.max(by_number) >= FORGOTTEN_AT_ONCE as usize)
    }
}

impl Read<'_> {
    /// Rows, the newest first.
    pub(crate) fn audit(
        &self,
        filter: &AuditFilter,
        limit: usize,
    ) -> Result<Vec<AuditRow>, StoreError> {
        let (conditions, values) = filter.conditions();
        let mut select = self.connection.prepare_cached(&format!(
            "{COLUMNS} WHERE {conditions} ORDER BY id DESC LIMIT {limit}"
        ))?;
        let mut rows =
            select.query(params_from_iter(values.iter().map(|value| value as &dyn ToSql)))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(row_of(row)?);
        }
        Ok(found)
    }

    /// The oldest of the newest `most` rows; `None` if there are no more than that.
    pub(crate) fn first_of_audit(&self, most: u64) -> Result<Option<i64>, StoreError> {
        let first = self
            .connection
            .prepare_cached("SELECT id FROM audit ORDER BY id DESC LIMIT 1 OFFSET ?1")?
            .query_row([to_sql(most.saturating_sub(1))], |row| row.get(0))
            .optional()?;
        Ok(first)
    }
}

impl AuditFilter {
    /// As SQL, with the values in the order of their marks. Only what is asked for stands there, so that
    /// an index can serve it.
    fn conditions(&self) -> (String, Vec<Sql>) {
        let mut conditions = vec!["1 = 1".to_owned()];
        let mut values = Vec::new();
        let mut add = |condition: &str, value: Sql| {
            conditions.push(condition.to_owned());
            values.push(value);
        };
        let among = |names: Vec<&str>| Sql::from(Value::from(names).to_string());
        match self.containers.as_ref().map(|ids| ids.iter().map(ContainerId::as_str)) {
            // Its index has them in order.
            Some(mut ids) if ids.len() == 1 => {
                let id = ids.next().unwrap_or_default();
                add("container = ?", Sql::from(id.to_owned()));
            }
            Some(ids) => {
                add("container IN (SELECT value FROM json_each(?))", among(ids.collect()));
            }
            None => {}
        }
        if let Some(volume) = self.volume {
            add("volume = ?", Sql::from(volume.to_string()));
        }
        match &self.by {
            Some(By::Kind(kind)) => add("actor = ?", Sql::from((*kind).to_owned())),
            Some(By::Token(id)) => add("token_id = ?", Sql::from(id.to_string())),
            Some(By::Prefix(prefix)) => add("token_prefix = ?", Sql::from(prefix.clone())),
            None => {}
        }
        if let Some(actions) = &self.actions {
            let names = actions.iter().map(|action| action.as_str()).collect();
            add("action IN (SELECT value FROM json_each(?))", among(names));
        }
        // Numbers grow with time but for clocks that are set: the first and the last number that can be
        // meant keep the look short, and the order of numbers is the answer's. By the index of times alone
        // all that fits would be sorted for one page.
        if let Some(UnixSeconds(since)) = self.since {
            add("+last_at >= ?", Sql::from(since));
            add("id >= (SELECT MIN(id) FROM audit WHERE last_at >= ?)", Sql::from(since));
        }
        if let Some(UnixSeconds(until)) = self.until {
            let counted_until = until.saturating_add(COUNTED_SECONDS);
            add("created_at < ?", Sql::from(until));
            add("id <= (SELECT MAX(id) FROM audit WHERE last_at < ?)", Sql::from(counted_until));
        }
        if let Some(before) = self.before {
            add("id < ?", Sql::from(before));
        }
        if self.of_containers {
            conditions.push("container IS NOT NULL".to_owned());
        }
        if self.of_present_holders {
            let made = "EXISTS (SELECT 1 FROM containers AS present
                WHERE present.id = audit.container AND audit.created_at >= present.created_at)";
            conditions.push(made.to_owned());
        }
        (conditions.join(" AND "), values)
    }
}

fn token_of(who: &Who) -> (Option<String>, Option<&str>) {
    match who {
        Who::Token { id, prefix } => (Some(id.to_string()), Some(prefix)),
        Who::Lightd | Who::Node | Who::Anonymous => (None, None),
    }
}

fn encode(details: &Map<String, Value>) -> Result<String, StoreError> {
    serde_json::to_string(details).map_err(|why| StoreError::decode("act's details", why))
}

fn decode(text: &str) -> Result<Map<String, Value>, StoreError> {
    serde_json::from_str(text).map_err(|why| StoreError::decode("act's details", why))
}

fn row_of(row: &Row<'_>) -> Result<AuditRow, StoreError> {
    Ok(AuditRow {
        id: row.get(0)?,
        created_at: UnixSeconds(row.get(1)?),
        last_at: UnixSeconds(row.get(2)?),
        count: from_sql(row.get(3)?),
        action: row.get(4)?,
        actor: row.get(5)?,
        token_id: row.get(6)?,
        token_prefix: row.get(7)?,
        way: row.get(8)?,
        address: row.get(9)?,
        request_id: row.get(10)?,
        container: row.get(11)?,
        volume: row.get(12)?,
        details: decode(&row.get::<_, String>(13)?)?,
    })
}

#[cfg(test)]
mod tests;
