//! The audit log: one row for each thing that somebody did, written with the change itself.
//!
//! [`Tx::record`] belongs into the closure that makes the change: then there is no change without its row
//! and no row without its change, also across a crash. What one caller does many times in a row to one
//! thing (an upload of a thousand files) is counted on the first row for [`COUNTED_SECONDS`]. Rows go by
//! age and number only ([`Tx::forget_audit`]), a few at a time, so that no other write waits for long.
//!
//! A page is read along one index, of what is asked for that there is least of, and no further than
//! [`LOOKED_AT`] rows: what it does not come to is the next page's ([`AuditPage::next`]).

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
/// Rows that are looked at for one page, whether or not they are asked for. Some milliseconds.
const LOOKED_AT: usize = 20_000;
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

/// Some of the rows that are asked for, the newest first.
#[derive(Debug, Default)]
pub(crate) struct AuditPage {
    pub(crate) rows: Vec<AuditRow>,
    /// The rest is older than this one; `None`: there is none. It may be that a page ends early, even
    /// empty, with rows left to be looked at.
    pub(crate) next: Option<i64>,
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
    /// Up to `limit` rows.
    pub(crate) fn audit(
        &self,
        filter: &AuditFilter,
        limit: usize,
    ) -> Result<AuditPage, StoreError> {
        self.audit_within(filter, limit, LOOKED_AT)
    }

    /// The same, with a look at so many rows at most.
    fn audit_within(
        &self,
        filter: &AuditFilter,
        limit: usize,
        looked_at: usize,
    ) -> Result<AuditPage, StoreError> {
        let (text, values) = filter.select();
        let mut select = self.connection.prepare_cached(&text)?;
        let mut walk =
            select.query(params_from_iter(values.iter().map(|value| value as &dyn ToSql)))?;
        let mut page = AuditPage::default();
        for _ in 0..looked_at {
            let Some(row) = walk.next()? else {
                page.next = None;
                return Ok(page);
            };
            let (id, is_asked_for) = (row.get(0)?, row.get(1)?);
            if is_asked_for {
                if page.rows.len() == limit {
                    page.next = page.rows.last().map(|last| last.id);
                    return Ok(page);
                }
                page.rows.push(self.audit_row(id)?);
            }
            page.next = Some(id);
        }
        Ok(page)
    }

    fn audit_row(&self, id: i64) -> Result<AuditRow, StoreError> {
        let mut select = self.connection.prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?;
        select.query_row([id], |row| Ok(row_of(row)))?
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
    /// The numbers of the rows that may be asked for, the newest first, and of each whether it is; with the
    /// values in the order of their marks.
    ///
    /// What decides where is looked stands behind WHERE: one equality that an index has in the order of
    /// numbers, and between which numbers. The rest only judges each row, so that it leads SQLite, which does
    /// not know how many rows there are of what, to no other index.
    fn select(&self) -> (String, Vec<Sql>) {
        let mut equal = self.equalities();
        let (mut look, mut look_values) = (vec!["1 = 1".to_owned()], Vec::new());
        if !equal.is_empty() {
            let (column, value) = equal.remove(0);
            look.push(format!("{column} = ?"));
            look_values.push(value);
        }
        let (mut judge, mut judge_values) = (vec!["1 = 1".to_owned()], Vec::new());
        for (column, value) in equal {
            // A row without one is none of it; nothing is not false.
            judge.push(format!("{column} IS ?"));
            judge_values.push(value);
        }
        let among = |names: Vec<&str>| Sql::from(Value::from(names).to_string());
        if let Some(ids) = self.containers.as_ref().filter(|ids| ids.len() != 1) {
            judge.push(among_them("container"));
            judge_values.push(among(ids.iter().map(ContainerId::as_str).collect()));
        }
        if let Some(actions) = self.actions.as_ref().filter(|actions| actions.len() != 1) {
            judge.push(among_them("action"));
            judge_values.push(among(actions.iter().map(|action| action.as_str()).collect()));
        }
        if self.of_containers {
            judge.push("container IS NOT NULL".to_owned());
        }
        if self.of_present_holders {
            let made = "EXISTS (SELECT 1 FROM containers AS present
                WHERE present.id = audit.container AND audit.created_at >= present.created_at)";
            judge.push(made.to_owned());
        }
        // Numbers grow with time but for clocks that are set: the first and the last number that can be
        // meant keep the look short, and the order of numbers is the answer's.
        if let Some(UnixSeconds(since)) = self.since {
            judge.push("last_at >= ?".to_owned());
            judge_values.push(Sql::from(since));
            look.push("id >= (SELECT MIN(id) FROM audit WHERE last_at >= ?)".to_owned());
            look_values.push(Sql::from(since));
        }
        if let Some(UnixSeconds(until)) = self.until {
            let counted_until = until.saturating_add(COUNTED_SECONDS);
            judge.push("created_at < ?".to_owned());
            judge_values.push(Sql::from(until));
            look.push("id <= (SELECT MAX(id) FROM audit WHERE last_at < ?)".to_owned());
            look_values.push(Sql::from(counted_until));
        }
        if let Some(before) = self.before {
            look.push("id < ?".to_owned());
            look_values.push(Sql::from(before));
        }
        let (judge, look) = (judge.join(" AND "), look.join(" AND "));
        let text = format!("SELECT id, {judge} FROM audit WHERE {look} ORDER BY id DESC");
        judge_values.append(&mut look_values);
        (text, judge_values)
    }

    /// Columns with an index each, and what they are to be: first what there is likely least of.
    fn equalities(&self) -> Vec<(&'static str, Sql)> {
        let mut equal = Vec::new();
        match &self.by {
            Some(By::Token(id)) => equal.push(("token_id", Sql::from(id.to_string()))),
            Some(By::Prefix(prefix)) => equal.push(("token_prefix", Sql::from(prefix.clone()))),
            Some(By::Kind(_)) | None => {}
        }
        if let Some(ids) = self.containers.as_ref().filter(|ids| ids.len() == 1) {
            equal.extend(ids.iter().map(|id| ("container", Sql::from(id.as_str().to_owned()))));
        }
        if let Some(volume) = self.volume {
            equal.push(("volume", Sql::from(volume.to_string())));
        }
        if let Some([action]) = self.actions.as_deref() {
            equal.push(("action", Sql::from(action.as_str().to_owned())));
        }
        if let Some(By::Kind(kind)) = &self.by {
            equal.push(("actor", Sql::from((*kind).to_owned())));
        }
        equal
    }
}

/// A row without one is not among them; nothing is not false.
fn among_them(column: &str) -> String {
    format!("ifnull({column} IN (SELECT value FROM json_each(?)), 0)")
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
