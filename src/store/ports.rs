//! The port pool: which ports of this host lightd may hand out, and who holds each.
//!
//! A port is free when it is in the pool, not marked by hand, held by no container and not leased. All
//! that takes or frees one happens inside the transaction of its caller, so two takers never both win.
//!
//! Two entries of one number and protocol must not meet on the host: `0.0.0.0` covers every IPv4
//! address, and `::` covers every address of both families, because a socket on it takes IPv4 too
//! unless told otherwise, and Docker's does not tell it.
//!
//! A lease keeps a port from being handed out again; it ends with its time, or when a container binds
//! the port.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use rand::seq::SliceRandom;
use rusqlite::{OptionalExtension, Row};
use uuid::Uuid;

use super::error::StoreError;
use super::volumes::container_id;
use super::{Read, Tx};
use crate::domain::ids::ContainerId;
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::UnixSeconds;

/// Says whether the host has a port free, outside of what the store knows.
pub(crate) type Probe = fn(HostPort) -> bool;

/// One entry of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolPort {
    pub(crate) host: HostPort,
    /// By hand.
    pub(crate) marked: bool,
    pub(crate) container: Option<ContainerId>,
    pub(crate) leased_until: Option<UnixSeconds>,
}

impl PoolPort {
    /// Whether it is marked, held or leased.
    pub(crate) fn in_use(&self) -> bool {
        self.marked || self.container.is_some() || self.leased_until.is_some()
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PortFilter {
    pub(crate) in_use: Option<bool>,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) protocol: Option<Protocol>,
}

/// Ports handed out and kept for a time.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) id: Uuid,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) expires_at: UnixSeconds,
}

/// What a bulk delete did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BulkDeleted {
    pub(crate) deleted: usize,
    pub(crate) kept: Vec<(HostPort, NotDeleted)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotDeleted {
    NotInPool,
    InUse,
}

const COLUMNS: &str = "SELECT ip, port, protocol, marked_in_use, container, \
     CASE WHEN lease_until > ?1 THEN lease_until END FROM ports";
const IS_FREE: &str = "marked_in_use = 0 AND container IS NULL AND coalesce(lease_until, 0) <= ?1";

impl Tx<'_> {
    /// Adds every port of the range, or none: the first that clashes with the pool is the error.
    pub(crate) fn add_ports(
        &self,
        ip: IpAddr,
        ports: RangeInclusive<u16>,
        protocol: Protocol,
    ) -> Result<usize, StoreError> {
        let mut insert = self
            .connection
            .prepare_cached("INSERT INTO ports (ip, port, protocol) VALUES (?1, ?2, ?3)")?;
        let mut added = 0;
        for port in ports {
            let asked = HostPort { ip: ip.to_canonical(), port, protocol };
            self.check_no_clash(asked)?;
            insert.execute((asked.ip.to_string(), port, protocol.as_str()))?;
            added += 1;
        }
        Ok(added)
    }

    fn check_no_clash(&self, asked: HostPort) -> Result<(), StoreError> {
        let mut select = self
            .connection
            .prepare_cached("SELECT ip FROM ports WHERE port = ?1 AND protocol = ?2")?;
        let mut rows = select.query((asked.port, asked.protocol.as_str()))?;
        while let Some(row) = rows.next()? {
            let ip = ip_of(&row.get::<_, String>(0)?)?;
            if ip == asked.ip {
                return Err(StoreError::PortExists(asked));
            }
            if overlap(ip, asked.ip) {
                return Err(StoreError::PortOverlaps { asked, existing: HostPort { ip, ..asked } });
            }
        }
        Ok(())
    }

    /// Marks a port as used by something that is not lightd's, or takes mark and lease away.
    pub(crate) fn mark_port(
        &self,
        port: HostPort,
        in_use: bool,
        now: UnixSeconds,
    ) -> Result<PoolPort, StoreError> {
        let found = self.port(port, now)?;
        if let (false, Some(by)) = (in_use, found.container) {
            return Err(StoreError::PortInUse { port, by });
        }
        self.connection
            .prepare_cached(
                "UPDATE ports SET marked_in_use = ?4, lease_id = NULL, lease_until = NULL
                 WHERE ip = ?1 AND port = ?2 AND protocol = ?3",
            )?
            .execute((text(port.ip), port.port, port.protocol.as_str(), in_use))?;
        self.port(port, now)
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
        if found.leased_until.is_some() {
            return Err(StoreError::PortLeased(port));
        }
        self.connection
            .prepare_cached("DELETE FROM ports WHERE ip = ?1 AND port = ?2 AND protocol = ?3")?
            .execute((text(port.ip), port.port, port.protocol.as_str()))?;
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
                Ok(()) => outcome.deleted += 1,
                Err(StoreError::PortNotInPool(_)) => {
                    outcome.kept.push((port, NotDeleted::NotInPool));
                }
                Err(
                    StoreError::PortInUse { .. }
                    | StoreError::PortMarked(_)
                    | StoreError::PortLeased(_),
                ) => outcome.kept.push((port, NotDeleted::InUse)),
                Err(other) => return Err(other),
            }
        }
        Ok(outcome)
    }

    /// Hands out `count` free ports, all of one address and in a row if `contiguous`, and keeps them
    /// until `until`. Either all or none.
    pub(crate) fn lease_ports(
        &self,
        count: usize,
        protocol: Protocol,
        contiguous: bool,
        until: UnixSeconds,
        now: UnixSeconds,
        probe: Probe,
    ) -> Result<Lease, StoreError> {
        let free = self.free_ports(protocol, None, now)?;
        let ports = if contiguous {
            choose_row(&free, count, probe)
        } else {
            free.into_iter().filter(|port| probe(*port)).take(count).collect()
        };
        if ports.len() < count {
            return Err(StoreError::NoFreePort { wanted: count, found: ports.len() });
        }
        let id = Uuid::new_v4();
        let mut update = self.connection.prepare_cached(
            "UPDATE ports SET lease_id = ?4, lease_until = ?5
             WHERE ip = ?1 AND port = ?2 AND protocol = ?3",
        )?;
        for port in &ports {
            let key = (text(port.ip), port.port, protocol.as_str(), id.to_string(), until.0);
            update.execute(key)?;
        }
        Ok(Lease { id, ports, expires_at: until })
    }
}

impl Read<'_> {
    pub(crate) fn port(&self, port: HostPort, now: UnixSeconds) -> Result<PoolPort, StoreError> {
        self.connection
            .prepare_cached(&format!("{COLUMNS} WHERE ip = ?2 AND port = ?3 AND protocol = ?4"))?
            .query_row((now.0, text(port.ip), port.port, port.protocol.as_str()), |row| {
                Ok(pool_port_of(row))
            })
            .optional()?
            .unwrap_or(Err(StoreError::PortNotInPool(port)))
    }

    pub(crate) fn ports(
        &self,
        filter: PortFilter,
        now: UnixSeconds,
    ) -> Result<Vec<PoolPort>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "{COLUMNS} WHERE (?2 IS NULL OR ip = ?2) AND (?3 IS NULL OR protocol = ?3)
               AND (?4 IS NULL OR ({IS_FREE}) <> ?4) ORDER BY ip, port, protocol"
        ))?;
        let mut rows = statement.query((
            now.0,
            filter.ip.map(text),
            filter.protocol.map(Protocol::as_str),
            filter.in_use,
        ))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(pool_port_of(row)?);
        }
        Ok(found)
    }

    /// The free ports of a protocol, of one address where given, in random order.
    pub(crate) fn free_ports(
        &self,
        protocol: Protocol,
        ip: Option<IpAddr>,
        now: UnixSeconds,
    ) -> Result<Vec<HostPort>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT ip, port FROM ports
             WHERE protocol = ?2 AND (?3 IS NULL OR ip = ?3) AND {IS_FREE}"
        ))?;
        let mut rows = statement.query((now.0, protocol.as_str(), ip.map(text)))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let ip = ip_of(&row.get::<_, String>(0)?)?;
            found.push(HostPort { ip, port: row.get(1)?, protocol });
        }
        found.shuffle(&mut rand::rng());
        Ok(found)
    }
}

/// Whether sockets on both addresses, of one number and protocol, would meet.
fn overlap(a: IpAddr, b: IpAddr) -> bool {
    let covers = |wide: IpAddr, other: IpAddr| match wide {
        IpAddr::V4(wide) => wide.is_unspecified() && other.is_ipv4(),
        IpAddr::V6(wide) => wide.is_unspecified(),
    };
    a == b || covers(a, b) || covers(b, a)
}

/// `count` ports of one address with following numbers; empty if there is no such row. `free` comes
/// shuffled, so which row it is, is random.
fn choose_row(free: &[HostPort], count: usize, probe: Probe) -> Vec<HostPort> {
    let usable: std::collections::HashSet<HostPort> =
        free.iter().copied().filter(|port| probe(*port)).collect();
    let row_from = |first: &HostPort| -> Option<Vec<HostPort>> {
        (0..count)
            .map(|step| {
                let port = first.port.checked_add(u16::try_from(step).ok()?)?;
                usable.get(&HostPort { port, ..*first }).copied()
            })
            .collect()
    };
    free.iter().find_map(row_from).unwrap_or_default()
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
    let container: Option<String> = row.get(4)?;
    Ok(PoolPort {
        host: host_port_of(row)?,
        marked: row.get(3)?,
        container: container.map(|id| container_id(&id)).transpose()?,
        leased_until: row.get::<_, Option<i64>>(5)?.map(UnixSeconds),
    })
}
