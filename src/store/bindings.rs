//! The ports of containers: bound with the container, changed by a rebind, freed with its end.
//!
//! A container that names a leased port gets it: whoever knows the number is taken to be the one it was
//! handed to. One that leaves the number open gets a port that is free in every sense.

use std::net::IpAddr;

use rusqlite::OptionalExtension;

use super::error::StoreError;
use super::ports::{Probe, host_port_of, ip_of, text};
use super::{Read, Tx};
use crate::domain::ids::ContainerId;
use crate::domain::spec::{HostPort, PortBinding, Protocol};
use crate::domain::units::UnixSeconds;

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

/// A container's ports before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rebound {
    pub(crate) old: Vec<PortBinding>,
    pub(crate) new: Vec<PortBinding>,
}

impl Tx<'_> {
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

impl Read<'_> {
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
