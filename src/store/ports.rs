//! The port pool: which ports of this host lightd may hand out, and who has each.
//!
//! A port is free when it is in the pool, not marked by hand, held by no container, not leased and not in
//! quarantine. All that takes or frees one happens inside the transaction of its caller, so two takers
//! never both win. Two entries whose sockets would meet on the host exclude each other.
//!
//! Leases and quarantines end with their time. Reads go by the clock; a transaction that chooses first
//! lets go of what has ended ([`Tx::end_holds`]), so that the index of free ports is exact and choosing
//! never reads the pool (`free_ports`).

use std::net::IpAddr;
use std::ops::RangeInclusive;

use rusqlite::{OptionalExtension, Row};
use uuid::Uuid;

use super::error::StoreError;
use super::leases::Claim;
use super::port_terms::PortTerms;
use super::volumes::container_id;
use super::{Read, Tx};
use crate::domain::ids::ContainerId;
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::UnixSeconds;

/// One entry of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolPort {
    pub(crate) host: HostPort,
    /// By hand, or by an import.
    pub(crate) marked: bool,
    /// What the mark is for.
    pub(crate) note: Option<String>,
    pub(crate) container: Option<ContainerId>,
    /// Whether the container's workload may be what listens on it.
    pub(crate) is_up: bool,
    pub(crate) lease: Option<Leased>,
    pub(crate) quarantine: Option<Quarantine>,
}

/// A lease, as a port shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leased {
    pub(crate) id: Uuid,
    pub(crate) holder: String,
    pub(crate) until: UnixSeconds,
}

/// The rest of a port that a container has let go of. That container may have it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quarantine {
    pub(crate) until: UnixSeconds,
    pub(crate) after: ContainerId,
}

impl PoolPort {
    /// Whether it is marked, held, leased or in quarantine.
    pub(crate) fn in_use(&self) -> bool {
        self.marked || self.container.is_some() || self.lease.is_some() || self.quarantine.is_some()
    }
}

/// Which entries a list holds; `None` does not filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortFilter {
    pub(crate) in_use: Option<bool>,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) container: Option<ContainerId>,
    /// Entries behind this one, in their order.
    pub(crate) after: Option<HostPort>,
    pub(crate) limit: Option<usize>,
}

/// What a bulk delete did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BulkDeleted {
    pub(crate) deleted: Vec<HostPort>,
    pub(crate) kept: Vec<(HostPort, NotDeleted)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotDeleted {
    NotInPool,
    InUse,
}

/// What an import found of a port that something else publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Imported {
    /// It is in the pool now, marked.
    Added,
    /// It was in the pool and free, and is marked now.
    Marked,
    /// It was kept from others already.
    Known,
}

/// An entry with its lease and quarantine, as far as their time is not over at `?1`.
const ENTRIES: &str = "SELECT p.ip, p.port, p.protocol, p.marked_in_use, p.note, p.container,
        c.phase IN ('starting', 'running', 'stopping', 'paused', 'deleting') AS is_up,
        l.id AS lease_id, l.holder, l.expires_at,
        CASE WHEN p.quarantined_until > ?1 THEN p.quarantined_until END AS rests_until, p.released_by
    FROM ports p
        LEFT JOIN port_leases l ON l.id = p.lease_id AND l.expires_at > ?1
        LEFT JOIN containers c ON c.id = p.container";

impl Tx<'_> {
    /// Adds every port of the range, or none: the first that clashes with the pool, or with lightd's own,
    /// is the error.
    pub(crate) fn add_ports(
        &self,
        ip: IpAddr,
        ports: RangeInclusive<u16>,
        protocol: Protocol,
        terms: &PortTerms,
    ) -> Result<usize, StoreError> {
        let mut added = 0;
        for port in ports {
            let asked = HostPort { ip: ip.to_canonical(), port, protocol };
            if terms.is_own(asked) {
                return Err(StoreError::PortIsOwn(asked));
            }
            if let Some(&existing) = self.meeting(asked)?.first() {
                return Err(if existing == asked {
                    StoreError::PortExists(asked)
                } else {
                    StoreError::PortOverlaps { asked, existing }
                });
            }
            self.insert_port(asked)?;
            added += 1;
        }
        Ok(added)
    }

    fn insert_port(&self, port: HostPort) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT INTO ports (ip, port, protocol) VALUES (?1, ?2, ?3)")?
            .execute(key(port))?;
        Ok(())
    }

    /// Keeps a port that something else publishes from being handed out.
    pub(crate) fn import_port(
        &self,
        port: HostPort,
        note: &str,
        now: UnixSeconds,
    ) -> Result<Imported, StoreError> {
        let mut present = self.meeting(port)?;
        let outcome = if present.is_empty() {
            self.insert_port(port)?;
            present.push(port);
            Imported::Added
        } else {
            Imported::Marked
        };
        let mut marked = false;
        for entry in present {
            let found = self.port(entry, now)?;
            if found.container.is_none() && !found.marked {
                self.set_mark(entry, true, Some(note))?;
                marked = true;
            }
        }
        Ok(if marked { outcome } else { Imported::Known })
    }

    /// Marks a port as used by something that is not lightd's, or takes mark, lease and quarantine away.
    pub(crate) fn mark_port(
        &self,
        port: HostPort,
        mark: &Mark,
        now: UnixSeconds,
    ) -> Result<PoolPort, StoreError> {
        let found = self.port(port, now)?;
        match (mark.in_use, found.container, found.lease) {
            (false, Some(by), _) => return Err(StoreError::PortInUse { port, by }),
            (_, _, Some(lease)) if !mark.ends_any_lease && !mark.claim.covers(&lease) => {
                return Err(StoreError::PortLeased(port));
            }
            _ => {}
        }
        self.set_mark(port, mark.in_use, mark.note.as_deref())?;
        self.forget_empty_leases()?;
        self.port(port, now)
    }

    fn set_mark(&self, port: HostPort, in_use: bool, note: Option<&str>) -> Result<(), StoreError> {
        let (ip, number, protocol) = key(port);
        self.connection
            .prepare_cached(
                "UPDATE ports SET marked_in_use = ?4, note = ?5,
                    lease_id = NULL, quarantined_until = NULL, released_by = NULL
                 WHERE ip = ?1 AND port = ?2 AND protocol = ?3",
            )?
            .execute((ip, number, protocol, in_use, note.filter(|_| in_use)))?;
        Ok(())
    }

    /// Takes a port out of the pool; refused while it is in use.
    pub(crate) fn delete_port(&self, port: HostPort, now: UnixSeconds) -> Result<(), StoreError> {
        let found = self.port(port, now)?;
        if let Some(by) = found.container {
            return Err(StoreError::PortInUse { port, by });
        }
        if found.marked {
            return Err(StoreError::PortMarked(port));
        }
        if found.lease.is_some() {
            return Err(StoreError::PortLeased(port));
        }
        if let Some(quarantine) = found.quarantine {
            return Err(StoreError::PortRests { port, until: quarantine.until });
        }
        self.connection
            .prepare_cached("DELETE FROM ports WHERE ip = ?1 AND port = ?2 AND protocol = ?3")?
            .execute(key(port))?;
        Ok(())
    }

    /// Deletes what can be deleted and says what was kept.
    pub(crate) fn delete_ports(
        &self,
        ports: &[HostPort],
        now: UnixSeconds,
    ) -> Result<BulkDeleted, StoreError> {
        let mut outcome = BulkDeleted::default();
        for &port in ports {
            match self.delete_port(port, now) {
                Ok(()) => outcome.deleted.push(port),
                Err(StoreError::PortNotInPool(_)) => {
                    outcome.kept.push((port, NotDeleted::NotInPool));
                }
                Err(
                    StoreError::PortInUse { .. }
                    | StoreError::PortMarked(_)
                    | StoreError::PortLeased(_)
                    | StoreError::PortRests { .. },
                ) => outcome.kept.push((port, NotDeleted::InUse)),
                Err(other) => return Err(other),
            }
        }
        Ok(outcome)
    }

    /// Lets go of the leases and quarantines whose time is over.
    pub(crate) fn end_holds(&self, now: UnixSeconds) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM port_leases WHERE expires_at <= ?1")?
            .execute([now.0])?;
        self.connection
            .prepare_cached(
                "UPDATE ports SET quarantined_until = NULL, released_by = NULL
                 WHERE quarantined_until <= ?1",
            )?
            .execute([now.0])?;
        Ok(())
    }
}

/// A mark by hand, as it is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mark {
    pub(crate) in_use: bool,
    pub(crate) note: Option<String>,
    /// For a port that is leased.
    pub(crate) claim: Claim,
    /// Whether that counts for nothing: to the node's own token every lease is its own to end.
    pub(crate) ends_any_lease: bool,
}

impl Read<'_> {
    /// The entries whose sockets would meet one on this port; the same entry first.
    fn meeting(&self, port: HostPort) -> Result<Vec<HostPort>, StoreError> {
        let mut select = self.connection.prepare_cached(
            "SELECT ip, port, protocol FROM ports WHERE port = ?2 AND protocol = ?3
             ORDER BY ip <> ?1",
        )?;
        let mut rows = select.query(key(port))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(host_port_of(row)?);
        }
        found.retain(|entry| entry.meets(port));
        Ok(found)
    }

    pub(crate) fn port(&self, port: HostPort, now: UnixSeconds) -> Result<PoolPort, StoreError> {
        let (ip, number, protocol) = key(port);
        self.connection
            .prepare_cached(&format!(
                "{ENTRIES} WHERE p.ip = ?2 AND p.port = ?3 AND p.protocol = ?4"
            ))?
            .query_row((now.0, ip, number, protocol), |row| Ok(pool_port_of(row)))
            .optional()?
            .unwrap_or(Err(StoreError::PortNotInPool(port)))
    }

    /// Entries in the order of address, number and protocol.
    pub(crate) fn ports(
        &self,
        filter: &PortFilter,
        now: UnixSeconds,
    ) -> Result<Vec<PoolPort>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "{ENTRIES} WHERE (p.ip, p.port, p.protocol) > (?2, ?3, ?4)
               AND (?5 IS NULL OR p.ip = ?5) AND (?6 IS NULL OR p.protocol = ?6)
               AND (?7 IS NULL OR p.container = ?7)
               AND (?8 IS NULL OR ?8 = (p.marked_in_use OR p.container IS NOT NULL
                    OR l.id IS NOT NULL OR coalesce(p.quarantined_until > ?1, 0)))
             ORDER BY p.ip, p.port, p.protocol LIMIT ?9"
        ))?;
        let (ip, number, protocol) = filter.after.map_or((String::new(), 0, ""), key);
        let limit = filter.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        let mut rows = statement.query((
            now.0,
            ip,
            number,
            protocol,
            filter.ip.map(text),
            filter.protocol.map(Protocol::as_str),
            filter.container.as_ref().map(ContainerId::as_str),
            filter.in_use,
            limit,
        ))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(pool_port_of(row)?);
        }
        Ok(found)
    }
}

/// An entry's key, as it is stored.
pub(super) fn key(port: HostPort) -> (String, u16, &'static str) {
    (text(port.ip), port.port, port.protocol.as_str())
}

pub(super) fn text(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

pub(super) fn ip_of(text: &str) -> Result<IpAddr, StoreError> {
    text.parse().map_err(|why: std::net::AddrParseError| StoreError::decode("port's address", why))
}

pub(super) fn host_port_of(row: &Row<'_>) -> Result<HostPort, StoreError> {
    let protocol: String = row.get(2)?;
    Ok(HostPort {
        ip: ip_of(&row.get::<_, String>(0)?)?,
        port: row.get(1)?,
        protocol: Protocol::parse(&protocol)
            .ok_or_else(|| StoreError::decode("port's protocol", protocol))?,
    })
}

fn pool_port_of(row: &Row<'_>) -> Result<PoolPort, StoreError> {
    let container: Option<String> = row.get(5)?;
    let (lease, holder): (Option<String>, Option<String>) = (row.get(7)?, row.get(8)?);
    let lease = match (lease, holder, row.get::<_, Option<i64>>(9)?) {
        (Some(id), Some(holder), Some(until)) => {
            Some(Leased { id: lease_id(&id)?, holder, until: UnixSeconds(until) })
        }
        _ => None,
    };
    let (until, after): (Option<i64>, Option<String>) = (row.get(10)?, row.get(11)?);
    let quarantine = until.zip(after).map(|(until, after)| {
        Ok::<_, StoreError>(Quarantine { until: UnixSeconds(until), after: container_id(&after)? })
    });
    Ok(PoolPort {
        host: host_port_of(row)?,
        marked: row.get(3)?,
        note: row.get(4)?,
        container: container.map(|id| container_id(&id)).transpose()?,
        is_up: row.get::<_, Option<bool>>(6)?.unwrap_or(false),
        lease,
        quarantine: quarantine.transpose()?,
    })
}

pub(super) fn lease_id(text: &str) -> Result<Uuid, StoreError> {
    Uuid::try_parse(text).map_err(|why| StoreError::decode("lease's id", why))
}
