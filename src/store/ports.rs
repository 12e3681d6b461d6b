//! The port pool: which ports of this host lightd may hand out, and who holds each.
//!
//! A port is free when it is in the pool, not marked by hand, held by no container and not leased. All
//! that takes or frees one happens inside the transaction of its caller, so two takers never both win.
//!
//! Two entries of one number and protocol must not meet on the host: `0.0.0.0` covers every IPv4
//! address, and `::` covers every address of both families, because a socket on it takes IPv4 too
//! unless told otherwise, and Docker's does not tell it.
//!
//! A lease keeps a port from being handed out again; it ends with its time, or when the port is bound.
//! A container that names a leased port gets it: whoever knows the number is taken to be the one it was
//! handed to.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use rand::seq::SliceRandom;
use rusqlite::{OptionalExtension, Row};
use uuid::Uuid;

use super::error::StoreError;
use super::volumes::container_id;
use super::{Read, Tx};
use crate::domain::ids::ContainerId;
use crate::domain::spec::{HostPort, PortBinding, Protocol};
use crate::domain::units::UnixSeconds;

/// Says whether the host has a port free, outside of what the store knows.
pub(crate) type Probe = fn(HostPort) -> bool;

/// A port that a container asks for; without a number one is taken from the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRequest {
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    pub(crate) protocol: Protocol,
    /// The number inside the container; `None`: the same as outside.
    pub(crate) container_port: Option<u16>,
}

impl From<PortBinding> for PortRequest {
    fn from(binding: PortBinding) -> Self {
        Self {
            ip: Some(binding.host.ip),
            port: Some(binding.host.port),
            protocol: binding.host.protocol,
            container_port: Some(binding.container_port),
        }
    }
}

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

    /// Gives a container other ports. The old ones that are not among the new are kept for it until
    /// [`Tx::release_kept_ports`], so that binding `old` again, to undo, cannot fail on them.
    pub(crate) fn rebind_ports(
        &self,
        container: &ContainerId,
        requests: &[PortRequest],
        now: UnixSeconds,
        probe: Probe,
    ) -> Result<Rebound, StoreError> {
        if !self.container_exists(container)? {
            return Err(StoreError::NoSuchContainer(container.clone()));
        }
        let old = self.ports_of(container)?;
        self.connection
            .prepare_cached("UPDATE ports SET position = NULL WHERE container = ?1")?
            .execute([container.as_str()])?;
        let new = self.bind_ports(container, requests, now, probe)?;
        Ok(Rebound { old, new })
    }

    /// Frees the ports that a rebind kept aside.
    pub(crate) fn release_kept_ports(&self, container: &ContainerId) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE ports SET container = NULL, container_port = NULL
                 WHERE container = ?1 AND position IS NULL",
            )?
            .execute([container.as_str()])?;
        Ok(())
    }

    pub(super) fn release_all_ports(&self, container: &ContainerId) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE ports SET container = NULL, container_port = NULL, position = NULL
                 WHERE container = ?1",
            )?
            .execute([container.as_str()])?;
        Ok(())
    }

    /// Binds ports in the order asked for. Those asked for by number go first, so that a chosen one
    /// never takes a number that stands later in the same list.
    pub(super) fn bind_ports(
        &self,
        container: &ContainerId,
        requests: &[PortRequest],
        now: UnixSeconds,
        probe: Probe,
    ) -> Result<Vec<PortBinding>, StoreError> {
        let mut bound = vec![None; requests.len()];
        for by_number in [true, false] {
            for (position, request) in requests.iter().enumerate() {
                if request.port.is_some() == by_number {
                    let host = match request.port {
                        Some(port) => self.named_port(container, request, port, now)?,
                        None => self.any_port(request, now, probe)?,
                    };
                    let container_port = request.container_port.unwrap_or(host.port);
                    let binding = PortBinding { host, container_port };
                    self.hold(container, position, binding)?;
                    bound[position] = Some(binding);
                }
            }
        }
        Ok(bound.into_iter().flatten().collect())
    }

    fn named_port(
        &self,
        container: &ContainerId,
        request: &PortRequest,
        port: u16,
        now: UnixSeconds,
    ) -> Result<HostPort, StoreError> {
        let host = match request.ip {
            Some(ip) => HostPort { ip: ip.to_canonical(), port, protocol: request.protocol },
            None => self.port_of_any_address(port, request.protocol)?,
        };
        let found = self.port(host, now)?;
        match found.container {
            Some(by) if by != *container => Err(StoreError::PortInUse { port: host, by }),
            Some(_) if self.has_position(host)? => Err(StoreError::PortTwice(host)),
            _ if found.marked => Err(StoreError::PortMarked(host)),
            _ => Ok(host),
        }
    }

    fn any_port(
        &self,
        request: &PortRequest,
        now: UnixSeconds,
        probe: Probe,
    ) -> Result<HostPort, StoreError> {
        self.free_ports(request.protocol, request.ip, now)?
            .into_iter()
            .find(|port| probe(*port))
            .ok_or(StoreError::NoFreePort { wanted: 1, found: 0 })
    }

    fn port_of_any_address(&self, port: u16, protocol: Protocol) -> Result<HostPort, StoreError> {
        let unspecified = std::net::Ipv4Addr::UNSPECIFIED.into();
        let missing = StoreError::PortNotInPool(HostPort { ip: unspecified, port, protocol });
        let ip: Option<String> = self
            .connection
            .prepare_cached(
                "SELECT ip FROM ports WHERE port = ?1 AND protocol = ?2
                 ORDER BY container IS NOT NULL, marked_in_use, ip LIMIT 1",
            )?
            .query_row((port, protocol.as_str()), |row| row.get(0))
            .optional()?;
        Ok(HostPort { ip: ip_of(&ip.ok_or(missing)?)?, port, protocol })
    }

    fn has_position(&self, port: HostPort) -> Result<bool, StoreError> {
        let mut select = self.connection.prepare_cached(
            "SELECT 1 FROM ports
             WHERE ip = ?1 AND port = ?2 AND protocol = ?3 AND position IS NOT NULL",
        )?;
        Ok(select.exists((text(port.ip), port.port, port.protocol.as_str()))?)
    }

    fn hold(
        &self,
        container: &ContainerId,
        position: usize,
        binding: PortBinding,
    ) -> Result<(), StoreError> {
        let position = i64::try_from(position).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached(
                "UPDATE ports SET container = ?4, container_port = ?5, position = ?6,
                    lease_id = NULL, lease_until = NULL
                 WHERE ip = ?1 AND port = ?2 AND protocol = ?3",
            )?
            .execute((
                text(binding.host.ip),
                binding.host.port,
                binding.host.protocol.as_str(),
                container.as_str(),
                binding.container_port,
                position,
            ))?;
        Ok(())
    }
}

/// A container's ports before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rebound {
    pub(crate) old: Vec<PortBinding>,
    pub(crate) new: Vec<PortBinding>,
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

    /// A container's ports in the order in which they were asked for.
    pub(crate) fn ports_of(&self, container: &ContainerId) -> Result<Vec<PortBinding>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT ip, port, protocol, container_port FROM ports
             WHERE container = ?1 AND position IS NOT NULL ORDER BY position",
        )?;
        let mut rows = statement.query([container.as_str()])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(PortBinding { host: host_port_of(row)?, container_port: row.get(3)? });
        }
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

fn text(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

fn ip_of(text: &str) -> Result<IpAddr, StoreError> {
    text.parse().map_err(|why: std::net::AddrParseError| StoreError::decode("port's address", why))
}

fn host_port_of(row: &Row<'_>) -> Result<HostPort, StoreError> {
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
