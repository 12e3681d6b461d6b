//! What containers have used: added up by hours and by days, summed for who asks, forgotten with age.
//!
//! Each amount is added to its hour and to its day, so that months are sums of few rows, and hours need
//! not be kept as long as days. The position of a run's counters is stored with the amounts that lead up
//! to it.

use std::time::Duration;

use rusqlite::{OptionalExtension as _, Row};

use super::error::StoreError;
use super::volumes::container_id;
use super::{Read, Tx, from_sql, to_sql};
use crate::domain::ids::{ContainerId, RunId};
use crate::domain::units::UnixSeconds;
use crate::domain::usage::Usage;
use crate::domain::usage::calendar::Step;
use crate::domain::usage::meter::{Position, Taken};

/// A time, its end not included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Period {
    pub(crate) from: UnixSeconds,
    pub(crate) to: UnixSeconds,
}

const SUMS: &str = "coalesce(sum(run_ms), 0), coalesce(sum(cpu_us), 0), \
     coalesce(sum(memory_kib_s), 0), coalesce(sum(reserved_kib_s), 0), \
     coalesce(sum(storage_kib_s), 0), coalesce(sum(egress_bytes), 0), \
     coalesce(sum(ingress_bytes), 0)";

impl Tx<'_> {
    /// Stores what a container's meter has taken, and with it where the run's counters stood: while there is
    /// the container, and none once the run has ended, whose end would be counted again otherwise.
    pub(crate) fn add_usage(&self, id: &ContainerId, taken: &Taken) -> Result<(), StoreError> {
        for (hour, usage) in &taken.hours {
            self.add_to(id, "hour", Step::Hour.floor(*hour), usage)?;
            self.add_to(id, "day", Step::Day.floor(*hour), usage)?;
        }
        let Some(position) = &taken.position else {
            self.connection
                .prepare_cached("DELETE FROM usage_positions WHERE container = ?1")?
                .execute([id.as_str()])?;
            return Ok(());
        };
        let at_ms = u64::try_from(position.at.as_millis()).unwrap_or(u64::MAX);
        self.connection
            .prepare_cached(
                "INSERT INTO usage_positions (container, run, at_ms, cpu_ns, network_rx, network_tx)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE EXISTS (SELECT 1 FROM containers WHERE id = ?1)
                 ON CONFLICT (container) DO UPDATE SET run = excluded.run, at_ms = excluded.at_ms,
                    cpu_ns = excluded.cpu_ns, network_rx = excluded.network_rx,
                    network_tx = excluded.network_tx",
            )?
            .execute((
                id.as_str(),
                to_sql(position.run.0),
                to_sql(at_ms),
                to_sql(position.cpu_ns),
                to_sql(position.network_rx),
                to_sql(position.network_tx),
            ))?;
        Ok(())
    }

    fn add_to(
        &self,
        id: &ContainerId,
        step: &str,
        at: UnixSeconds,
        usage: &Usage,
    ) -> Result<(), StoreError> {
        let [run, cpu, memory, reserved, storage, egress, ingress] = usage.to_array().map(to_sql);
        self.connection
            .prepare_cached(
                "INSERT INTO usage (container, step, at, run_ms, cpu_us, memory_kib_s,
                    reserved_kib_s, storage_kib_s, egress_bytes, ingress_bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT (container, step, at) DO UPDATE SET run_ms = run_ms + excluded.run_ms,
                    cpu_us = cpu_us + excluded.cpu_us,
                    memory_kib_s = memory_kib_s + excluded.memory_kib_s,
                    reserved_kib_s = reserved_kib_s + excluded.reserved_kib_s,
                    storage_kib_s = storage_kib_s + excluded.storage_kib_s,
                    egress_bytes = egress_bytes + excluded.egress_bytes,
                    ingress_bytes = ingress_bytes + excluded.ingress_bytes",
            )?
            .execute((
                id.as_str(),
                step,
                at.0,
                run,
                cpu,
                memory,
                reserved,
                storage,
                egress,
                ingress,
            ))?;
        Ok(())
    }

    /// Forgets hours and days that began before.
    pub(crate) fn expire_usage(
        &self,
        hours_before: UnixSeconds,
        days_before: UnixSeconds,
    ) -> Result<usize, StoreError> {
        let mut delete =
            self.connection.prepare_cached("DELETE FROM usage WHERE step = ?1 AND at < ?2")?;
        let hours = delete.execute(("hour", hours_before.0))?;
        Ok(hours + delete.execute(("day", days_before.0))?)
    }
}

impl Read<'_> {
    /// Where the counters of each container's run stood.
    pub(crate) fn usage_positions(&self) -> Result<Vec<(ContainerId, Position)>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT container, run, at_ms, cpu_ns, network_rx, network_tx FROM usage_positions",
        )?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let position = Position {
                run: RunId(from_sql(row.get(1)?)),
                at: Duration::from_millis(from_sql(row.get(2)?)),
                cpu_ns: from_sql(row.get(3)?),
                network_rx: from_sql(row.get(4)?),
                network_tx: from_sql(row.get(5)?),
            };
            found.push((container_id(&row.get::<_, String>(0)?)?, position));
        }
        Ok(found)
    }

    /// What a container has used in the steps that begin within a period, the first ones; those in which
    /// there was nothing are left out.
    pub(crate) fn usage_of(
        &self,
        id: &ContainerId,
        step: Step,
        period: Period,
        limit: usize,
    ) -> Result<Vec<(UnixSeconds, Usage)>, StoreError> {
        let (rows_of, begin) = match step {
            Step::Hour => ("hour", "at"),
            Step::Day => ("day", "at"),
            Step::Month => ("day", "unixepoch(at, 'unixepoch', 'start of month')"),
        };
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {begin} AS begin, {SUMS} FROM usage
             WHERE container = ?1 AND step = ?2 AND at >= ?3 AND at < ?4
             GROUP BY begin ORDER BY begin LIMIT ?5"
        ))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows =
            statement.query((id.as_str(), rows_of, period.from.0, period.to.0, limit))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((UnixSeconds(row.get(0)?), usage_of_row(row)?));
        }
        Ok(found)
    }

    /// What a container has used in all of a period, that begins and ends as its steps do.
    pub(crate) fn usage_in(
        &self,
        id: &ContainerId,
        step: Step,
        period: Period,
    ) -> Result<Usage, StoreError> {
        let rows_of = if step == Step::Hour { "hour" } else { "day" };
        let sum = self
            .connection
            .prepare_cached(&format!(
                "SELECT 0, {SUMS} FROM usage
                 WHERE container = ?1 AND step = ?2 AND at >= ?3 AND at < ?4"
            ))?
            .query_row((id.as_str(), rows_of, period.from.0, period.to.0), |row| {
                usage_of_row(row)
            })?;
        Ok(sum)
    }

    /// Whether anything is known of a container's usage, which may be one that was deleted.
    pub(crate) fn has_usage(&self, id: &ContainerId) -> Result<bool, StoreError> {
        let select = "SELECT 1 FROM usage WHERE container = ?1";
        Ok(self.connection.prepare_cached(select)?.exists([id.as_str()])?)
    }

    /// What each container has used on the days of a period, by its id.
    pub(crate) fn usage_by_container(
        &self,
        period: Period,
    ) -> Result<Vec<(ContainerId, Usage)>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT container, {SUMS} FROM usage WHERE step = 'day' AND at >= ?1 AND at < ?2
             GROUP BY container ORDER BY container"
        ))?;
        let mut rows = statement.query((period.from.0, period.to.0))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((container_id(&row.get::<_, String>(0)?)?, usage_of_row(row)?));
        }
        Ok(found)
    }

    /// Since when usage is counted, in Unix seconds.
    pub(crate) fn usage_since(&self) -> Result<UnixSeconds, StoreError> {
        let select = "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'usage_since'";
        let since =
            self.connection.prepare_cached(select)?.query_row([], |row| row.get(0)).optional()?;
        Ok(UnixSeconds(since.unwrap_or(0)))
    }
}

/// The sums, behind a first column.
fn usage_of_row(row: &Row<'_>) -> rusqlite::Result<Usage> {
    let mut sums = [0; crate::domain::usage::QUANTITIES];
    for (index, sum) in sums.iter_mut().enumerate() {
        *sum = from_sql(row.get(index + 1)?);
    }
    Ok(Usage::from_array(sums))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::stats::Counters;
    use crate::domain::usage::calendar::{DAY_S, HOUR_S};
    use crate::domain::usage::meter::{Moment, Reading, UsageMeter};
    use crate::store::Store;
    use crate::store::testing::{NOW, add_volume, id, new_container, open, terms};

    fn used(cpu_us: u64) -> Usage {
        Usage { cpu_us, egress_bytes: 1, ..Usage::default() }
    }

    fn position(run: u64) -> Position {
        Position {
            run: RunId(run),
            at: Duration::from_millis(1234),
            cpu_ns: 5,
            network_rx: 6,
            network_tx: 7,
        }
    }

    async fn add(store: &Store, name: &str, at: i64, cpu_us: u64, of: Option<Position>) {
        let (name, hours) = (id(name), vec![(UnixSeconds(at), used(cpu_us))]);
        let taken = Taken { hours, position: of };
        store.write("test", move |tx| tx.add_usage(&name, &taken)).await.unwrap();
    }

    async fn asked(store: &Store, step: Step, period: Period, limit: usize) -> Vec<(i64, u64)> {
        let read = move |rx: &Read<'_>| rx.usage_of(&id("a"), step, period, limit);
        let found = store.read("test", read).await.unwrap();
        found.into_iter().map(|(at, usage)| (at.0, usage.cpu_us)).collect()
    }

    #[tokio::test]
    async fn the_end_of_a_run_is_counted_once_however_often_lightd_begins_anew() {
        let (_folder, store) = open();
        let new = new_container("a", add_volume(&store).await, &[]);
        let insert = move |tx: &Tx<'_>| tx.insert_container(&new, &terms(NOW)).map(drop);
        store.write("test", insert).await.unwrap();
        let keep = async |meter: &mut UsageMeter| {
            let taken = meter.take();
            store.write("test", move |tx| tx.add_usage(&id("a"), &taken)).await.unwrap();
        };
        let at = |seconds: u64| Duration::from_secs(1000 + seconds);
        let end = Moment { since_boot: at(80), unix_ms: (NOW.0 + 80) * 1000 };
        let mut meter = UsageMeter::default();
        let counters = Counters { taken_at: at(60), ..Counters::default() };
        meter.read(&Reading {
            run: RunId(3),
            counters: &counters,
            unix_ms: (NOW.0 + 60) * 1000,
            age: Duration::from_secs(60),
            reserved_bytes: None,
        });
        keep(&mut meter).await;
        // It dies before it has stored the end.
        for _ in 0..3 {
            let positions = store.read("test", |rx| rx.usage_positions()).await.unwrap();
            let mut meter = UsageMeter::default();
            meter.restore(positions.first().map(|(_, position)| *position), 0);
            meter.end(RunId(3), end);
            keep(&mut meter).await;
        }
        let all = Period { from: UnixSeconds(0), to: UnixSeconds(i64::MAX) };
        let sum = store.read("test", move |rx| rx.usage_in(&id("a"), Step::Day, all)).await;
        assert_eq!(sum.unwrap().run_ms, 80_000);
    }

    /// 2027-01-31T00:00:00Z.
    const LAST_OF_JANUARY: i64 = 1_801_353_600;

    #[tokio::test]
    async fn amounts_are_summed_by_hour_day_and_month_of_utc() {
        let (_folder, store) = open();
        let (first, next_day) = (LAST_OF_JANUARY, LAST_OF_JANUARY + DAY_S);
        for (at, cpu_us) in [
            (first, 1),
            (first, 2),
            (next_day - HOUR_S, 10),
            (next_day, 100),
            (next_day + 5 * HOUR_S, 1000),
        ] {
            add(&store, "a", at, cpu_us, None).await;
        }
        add(&store, "b", first, 7, None).await;
        let all = Period { from: UnixSeconds(0), to: UnixSeconds(i64::MAX) };
        assert_eq!(
            asked(&store, Step::Hour, all, 3).await,
            [(first, 3), (next_day - HOUR_S, 10), (next_day, 100)]
        );
        assert_eq!(asked(&store, Step::Day, all, 9).await, [(first, 13), (next_day, 1100)]);
        let january = Step::Month.floor(UnixSeconds(first)).0;
        assert_eq!(asked(&store, Step::Month, all, 9).await, [(january, 13), (next_day, 1100)]);
        let period = Period { from: UnixSeconds(next_day), to: UnixSeconds(next_day + HOUR_S) };
        assert_eq!(asked(&store, Step::Hour, period, 9).await, [(next_day, 100)]);
        let sum = store.read("test", move |rx| rx.usage_in(&id("a"), Step::Day, all)).await;
        assert_eq!(sum.unwrap(), Usage { cpu_us: 1113, egress_bytes: 5, ..Usage::default() });
        let by_container = store.read("test", move |rx| rx.usage_by_container(all)).await.unwrap();
        assert_eq!(by_container[1], (id("b"), used(7)));
        assert!(store.read("test", |rx| rx.has_usage(&id("b"))).await.unwrap());
        assert!(!store.read("test", |rx| rx.has_usage(&id("c"))).await.unwrap());
    }

    #[tokio::test]
    async fn hours_go_before_days_do() {
        let (_folder, store) = open();
        add(&store, "a", LAST_OF_JANUARY, 1, None).await;
        add(&store, "a", LAST_OF_JANUARY + DAY_S, 2, None).await;
        let before = UnixSeconds(LAST_OF_JANUARY + DAY_S);
        let expire = move |tx: &Tx<'_>| tx.expire_usage(before, UnixSeconds(0));
        assert_eq!(store.write("test", expire).await.unwrap(), 1);
        let all = Period { from: UnixSeconds(0), to: UnixSeconds(i64::MAX) };
        assert_eq!(asked(&store, Step::Hour, all, 9).await, [(LAST_OF_JANUARY + DAY_S, 2)]);
        assert_eq!(asked(&store, Step::Day, all, 9).await.len(), 2);
    }

    #[tokio::test]
    async fn a_position_goes_with_its_container_and_what_was_used_stays() {
        let (_folder, store) = open();
        let new = new_container("a", add_volume(&store).await, &[]);
        let insert = move |tx: &Tx<'_>| tx.insert_container(&new, &terms(NOW)).map(drop);
        store.write("test", insert).await.unwrap();
        for (name, run) in [("a", 1), ("a", 2), ("gone", 3)] {
            add(&store, name, NOW.0, 1, Some(position(run))).await;
        }
        let positions = || store.read("test", |rx| rx.usage_positions());
        assert_eq!(positions().await.unwrap(), [(id("a"), position(2))]);
        store.write("test", |tx| tx.delete_container(&id("a"), &terms(NOW))).await.unwrap();
        assert_eq!(positions().await.unwrap(), []);
        assert!(store.read("test", |rx| rx.has_usage(&id("a"))).await.unwrap());
        let since = store.read("test", |rx| rx.usage_since()).await.unwrap();
        assert!((UnixSeconds::now().0 - since.0).abs() < 600, "{since:?}");
    }
}
