//! Choosing free ports, in time that does not grow with the pool.
//!
//! Three indexes hold the free ports and nothing else: two in an order that is none, of all addresses and of
//! each, from which any port is taken, and one by address and number, in which following numbers lie side by
//! side. They are walked from a random place, and no further than to the last port that is needed. A port
//! that the host has in use otherwise is passed over.

use std::net::IpAddr;

use rand::seq::SliceRandom;
use rusqlite::{CachedStatement, Params};

use super::Tx;
use super::error::StoreError;
use super::port_terms::PortTerms;
use super::ports::{ip_of, text};
use crate::domain::spec::{HostPort, Protocol};

/// Which ports may be chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Among {
    pub(crate) protocol: Protocol,
    /// `None`: of any address.
    pub(crate) ip: Option<IpAddr>,
}

/// So many ports that follow each other in the index are mixed: of a small pool, each port is as likely.
const MIXED: usize = 32;

/// The condition of the partial indexes, word for word: otherwise they would not be used.
const IS_FREE: &str = "marked_in_use = 0 AND container IS NULL AND lease_id IS NULL \
     AND quarantined_until IS NULL";

impl Tx<'_> {
    /// Up to `count` ports, from anywhere among those that are free; fewer only if there are no more. What
    /// has ended must have been let go of.
    pub(crate) fn free_ports(
        &self,
        among: Among,
        count: usize,
        terms: &PortTerms,
    ) -> Result<Vec<HostPort>, StoreError> {
        let start: i64 = rand::random();
        let mut found = Vec::new();
        for half in ["shuffle >= ?2", "shuffle < ?2"] {
            let statement = self.connection.prepare_cached(&any_sql(half, among))?;
            let mut chunk = Vec::with_capacity(MIXED);
            let values = (among.protocol.as_str(), start, among.ip.map(text));
            each_port(statement, values, among.protocol, |port| {
                chunk.push(port);
                if chunk.len() == MIXED {
                    take(&mut chunk, &mut found, count, terms);
                }
                found.len() < count
            })?;
            take(&mut chunk, &mut found, count, terms);
        }
        Ok(found)
    }

    /// `count` free ports of one address with following numbers, the first such row behind a random place;
    /// none if there is no such row.
    pub(crate) fn free_row(
        &self,
        among: Among,
        count: usize,
        terms: &PortTerms,
    ) -> Result<Vec<HostPort>, StoreError> {
        let anywhere = PortTerms { probe: |_| true, ..terms.clone() };
        let start = self.free_ports(among, 1, &anywhere)?.first().copied();
        let starts = start.map(|start| (text(start.ip), start.port));
        // The second time from the beginning, for the rows before the start and the one through it.
        let beginning = (among.ip.map(text).unwrap_or_default(), 0);
        for (ip, port) in starts.into_iter().chain([beginning]) {
            let statement = self.connection.prepare_cached(&in_order_sql(among))?;
            let (mut run, mut is_found) = (Run::default(), false);
            let values = (among.protocol.as_str(), ip, port);
            each_port(statement, values, among.protocol, |port| {
                is_found = run.grows_to(count, port, |port| terms.may_hand_out(port));
                !is_found
            })?;
            if is_found {
                return Ok(run.ports);
            }
        }
        Ok(Vec::new())
    }
}

/// Free ports in the order that is none: of one address and of all are two statements, each with its index.
fn any_sql(half: &str, among: Among) -> String {
    let of_ip = if among.ip.is_some() { "ip = ?3" } else { "?3 IS NULL" };
    format!(
        "SELECT ip, port FROM ports
         WHERE protocol = ?1 AND {IS_FREE} AND {half} AND {of_ip} ORDER BY shuffle"
    )
}

/// Free ports by their numbers, from one on.
fn in_order_sql(among: Among) -> String {
    let from = if among.ip.is_some() { "ip = ?2 AND port >= ?3" } else { "(ip, port) >= (?2, ?3)" };
    format!(
        "SELECT ip, port FROM ports
         WHERE protocol = ?1 AND {IS_FREE} AND {from} ORDER BY ip, port"
    )
}

/// Reads ports for as long as `goes_on` says so.
fn each_port(
    mut statement: CachedStatement<'_>,
    values: impl Params,
    protocol: Protocol,
    mut goes_on: impl FnMut(HostPort) -> bool,
) -> Result<(), StoreError> {
    let mut rows = statement.query(values)?;
    while let Some(row) = rows.next()? {
        let ip =
            row.get_ref(0)?.as_str().map_err(|why| StoreError::decode("port's address", why))?;
        if !goes_on(HostPort { ip: ip_of(ip)?, port: row.get(1)?, protocol }) {
            break;
        }
    }
    Ok(())
}

/// Moves what the host has free from the chunk to the found, in any order, until these are enough.
fn take(chunk: &mut Vec<HostPort>, found: &mut Vec<HostPort>, count: usize, terms: &PortTerms) {
    chunk.shuffle(&mut rand::rng());
    for port in chunk.drain(..) {
        if found.len() < count && terms.may_hand_out(port) {
            found.push(port);
        }
    }
}

/// Ports with following numbers, as far as they have come.
#[derive(Debug, Default)]
struct Run {
    ports: Vec<HostPort>,
    /// So many at its beginning are known to be free on the host.
    probed: usize,
}

impl Run {
    /// Adds the next free port; true when the run is long enough, and free on the host.
    fn grows_to(
        &mut self,
        count: usize,
        port: HostPort,
        is_free: impl Fn(HostPort) -> bool,
    ) -> bool {
        let follows =
            |last: &HostPort| last.ip == port.ip && last.port.checked_add(1) == Some(port.port);
        if !self.ports.last().is_some_and(follows) {
            self.ports.clear();
            self.probed = 0;
        }
        self.ports.push(port);
        if self.ports.len() < count {
            return false;
        }
        // From the end: what is in use there ends every row through it at once.
        match self.ports[self.probed..].iter().rposition(|port| !is_free(*port)) {
            None => true,
            Some(held) => {
                self.ports.drain(..=self.probed + held);
                self.probed = self.ports.len();
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::store::testing::{NOW, add_ports, later, open, tcp, terms};

    fn row_in(free: impl Iterator<Item = u16>, count: usize, held: &[u16]) -> (Vec<u16>, usize) {
        let probes = Cell::new(0);
        let mut run = Run::default();
        for port in free {
            let is_free = |port: HostPort| {
                probes.set(probes.get() + 1);
                !held.contains(&port.port)
            };
            if run.grows_to(count, tcp("127.0.0.1", port), is_free) {
                return (run.ports.iter().map(|port| port.port).collect(), probes.get());
            }
        }
        (Vec::new(), probes.get())
    }

    #[test]
    fn a_row_ends_at_a_gap_and_at_what_the_host_has_in_use() {
        assert_eq!(row_in(1..9, 3, &[]).0, [1, 2, 3]);
        assert_eq!(row_in([1, 2, 4, 5, 6, 7].into_iter(), 3, &[]).0, [4, 5, 6]);
        assert_eq!(row_in(1..9, 3, &[3]).0, [4, 5, 6]);
        assert_eq!(row_in(1..9, 3, &[1, 5]).0, [2, 3, 4]);
        assert_eq!(row_in(1..9, 3, &[3, 6]).0, [] as [u16; 0]);
        assert_eq!(row_in(65_533..=65_535, 3, &[]).0, [65_533, 65_534, 65_535]);
        assert_eq!(row_in(65_534..=65_535, 3, &[]).0, [] as [u16; 0]);
    }

    #[test]
    fn no_port_of_a_row_is_asked_about_twice() {
        let held: Vec<u16> = (0..1000).filter(|port| port % 7 == 3).collect();
        let (row, probes) = row_in(0..1000, 8, &held);
        assert!(row.is_empty() && probes <= 1000, "{probes}");
    }

    #[tokio::test]
    async fn choosing_walks_the_indexes_of_free_ports() {
        let (_folder, store) = open();
        let plans = store
            .read("explain", |rx| {
                let explain = |sql: String| -> Result<String, StoreError> {
                    let mut statement =
                        rx.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                    let mut steps = statement.raw_query();
                    let mut plan = Vec::new();
                    while let Some(step) = steps.next()? {
                        plan.push(step.get::<_, String>(3)?);
                    }
                    Ok(plan.join("; "))
                };
                let all = Among { protocol: Protocol::Tcp, ip: None };
                let of_one = Among { ip: Some("::1".parse().unwrap()), ..all };
                Ok([
                    explain(any_sql("shuffle >= ?2", all))?,
                    explain(any_sql("shuffle >= ?2", of_one))?,
                    explain(in_order_sql(all))?,
                    explain(in_order_sql(of_one))?,
                ])
            })
            .await
            .unwrap();
        for (plan, walk) in plans.iter().zip([
            "ports_free (protocol=? AND shuffle>?)",
            "ports_free_of_ip (protocol=? AND ip=? AND shuffle>?)",
            "ports_free_in_order (protocol=?",
            "ports_free_in_order (protocol=? AND ip=? AND port>?)",
        ]) {
            assert!(plan.contains(&format!("COVERING INDEX {walk}")), "{walk}: {plans:?}");
        }
        assert!(!plans.concat().contains("TEMP B-TREE"), "{plans:?}");
    }

    #[tokio::test]
    async fn each_port_of_a_small_pool_is_chosen_now_and_then() {
        let (_folder, store) = open();
        add_ports(&store, "127.0.0.1", 7000, 7004).await;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let among = Among { protocol: Protocol::Tcp, ip: None };
            let chosen = store
                .write("choose", move |tx| tx.free_ports(among, 1, &terms(NOW)))
                .await
                .unwrap();
            seen.insert(chosen[0].port);
        }
        assert_eq!(seen.len(), 5, "{seen:?}");
    }

    #[tokio::test]
    async fn a_row_is_found_whatever_the_place_where_the_search_begins() {
        let (_folder, store) = open();
        add_ports(&store, "127.0.0.1", 7000, 7002).await;
        add_ports(&store, "127.0.0.2", 7003, 7004).await;
        for _ in 0..50 {
            for (count, ip, found) in [
                (3, None, Some(7000)),
                (2, Some("127.0.0.2"), Some(7003)),
                (3, Some("127.0.0.2"), None),
                (4, None, None),
            ] {
                let ip = ip.map(|ip| ip.parse().unwrap());
                let among = Among { protocol: Protocol::Tcp, ip };
                let row = store
                    .write("choose", move |tx| tx.free_row(among, count, &terms(later(1))))
                    .await
                    .unwrap();
                assert_eq!(row.first().map(|port| port.port), found);
                assert_eq!(row.len(), if found.is_some() { count } else { 0 });
            }
        }
    }
}
