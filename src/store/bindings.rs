//! The ports of containers: bound with the container, changed by a rebind, freed with its end.
//!
//! A container that names a port gets it if nobody else has it, outside of lightd too; a leased one only
//! for whoever it was leased to. One that leaves the number open gets a port of the lease that was
//! shown, or one that is free in every sense.

use std::net::IpAddr;

use rusqlite::OptionalExtension;

use super::error::StoreError;
use super::free_ports::Among;
use super::leases::Claim;
use super::port_terms::PortTerms;
use super::ports::{host_port_of, ip_of, key, text};
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

/// All ports that a container asks for, and what it may take.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortsWanted {
    pub(crate) ports: Vec<PortRequest>,
    pub(crate) claim: Claim,
}

impl PortsWanted {
    /// The places of the ports in the order in which they are bound. Those asked for by number go first, so
    /// that a chosen one never takes a number that stands later in the same list.
    pub(super) fn in_turn(&self) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.ports.len()).collect();
        places.sort_by_key(|&place| self.ports[place].port.is_none());
        places
    }
}

impl From<Vec<PortRequest>> for PortsWanted {
    fn from(ports: Vec<PortRequest>) -> Self {
        Self { ports, claim: Claim::default() }
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
        wanted: &PortsWanted,
        terms: &PortTerms,
    ) -> Result<Rebound, StoreError> {
        if !self.container_exists(container)? {
            return Err(StoreError::NoSuchContainer(container.clone()));
        }
        let old = self.ports_of(container)?;
        self.keep_ports_aside(container)?;
        let new = self.bind_ports(container, wanted, terms)?;
        Ok(Rebound { old, new })
    }

    /// Frees the ports that a rebind kept aside, which rest first if anybody may have used them.
    pub(crate) fn release_kept_ports(
        &self,
        container: &ContainerId,
        rest_until: Option<UnixSeconds>,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE ports SET container = NULL, container_port = NULL,
                    quarantined_until = ?2, released_by = iif(?2 IS NULL, NULL, ?1)
                 WHERE container = ?1 AND position IS NULL",
            )?
            .execute((container.as_str(), rest_until.map(|until| until.0)))?;
        Ok(())
    }

    pub(super) fn release_all_ports(
        &self,
        container: &ContainerId,
        rest_until: Option<UnixSeconds>,
    ) -> Result<(), StoreError> {
        self.keep_ports_aside(container)?;
        self.release_kept_ports(container, rest_until)
    }

    pub(super) fn keep_ports_aside(&self, container: &ContainerId) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE ports SET position = NULL WHERE container = ?1")?
            .execute([container.as_str()])?;
        Ok(())
    }

    pub(super) fn bind_ports(
        &self,
        container: &ContainerId,
        wanted: &PortsWanted,
        terms: &PortTerms,
    ) -> Result<Vec<PortBinding>, StoreError> {
        self.end_holds(terms.now)?;
        if let Some(lease) = wanted.claim.lease {
            self.lease(lease, terms.now)?;
        }
        let mut bound = vec![None; wanted.ports.len()];
        for position in wanted.in_turn() {
            bound[position] = Some(self.bind_port(container, position, wanted, terms)?);
        }
        self.forget_empty_leases()?;
        Ok(bound.into_iter().flatten().collect())
    }

    /// Binds one of the ports that are wanted, or changes nothing.
    pub(super) fn bind_port(
        &self,
        container: &ContainerId,
        position: usize,
        wanted: &PortsWanted,
        terms: &PortTerms,
    ) -> Result<PortBinding, StoreError> {
        let request = &wanted.ports[position];
        let host = match request.port {
            Some(port) => self.named_port(container, request, port, &wanted.claim, terms)?,
            None => self.any_port(request, &wanted.claim, terms)?,
        };
        let container_port = request.container_port.unwrap_or(host.port);
        let binding = PortBinding { host, container_port };
        self.hold(container, position, binding)?;
        Ok(binding)
    }

    fn named_port(
        &self,
        container: &ContainerId,
        request: &PortRequest,
        port: u16,
        claim: &Claim,
        terms: &PortTerms,
    ) -> Result<HostPort, StoreError> {
        let host = match request.ip {
            Some(ip) => HostPort { ip: ip.to_canonical(), port, protocol: request.protocol },
            None => self.port_of_any_address(port, request.protocol, claim)?,
        };
        let found = self.port(host, terms.now)?;
        match (found.container, found.lease, found.quarantine) {
            (Some(by), ..) if by != *container => Err(StoreError::PortInUse { port: host, by }),
            (Some(_), ..) if self.has_position(host)? => Err(StoreError::PortTwice(host)),
            // It was its own all the time, and what is there may be its own workload.
            (Some(_), ..) => Ok(host),
            _ if found.marked => Err(StoreError::PortMarked(host)),
            (_, Some(lease), _) if !claim.covers(&lease) => Err(StoreError::PortLeased(host)),
            (.., Some(rest)) if rest.after != *container => {
                Err(StoreError::PortRests { port: host, until: rest.until })
            }
            _ if terms.is_own(host) => Err(StoreError::PortIsOwn(host)),
            _ if !(terms.probe)(host) => Err(StoreError::PortHeld(host)),
            _ => Ok(host),
        }
    }

    fn any_port(
        &self,
        request: &PortRequest,
        claim: &Claim,
        terms: &PortTerms,
    ) -> Result<HostPort, StoreError> {
        let among = Among { protocol: request.protocol, ip: request.ip };
        let leased = match claim.lease {
            Some(lease) => self.leased_among(lease, among)?,
            None => Vec::new(),
        };
        let leased = leased.into_iter().find(|port| terms.may_hand_out(*port));
        match leased {
            Some(port) => Ok(port),
            None => self
                .free_ports(among, 1, terms)?
                .first()
                .copied()
                .ok_or(StoreError::NoFreePort { wanted: 1, found: 0 }),
        }
    }

    /// The entry with this number that the container is most likely to get.
    fn port_of_any_address(
        &self,
        port: u16,
        protocol: Protocol,
        claim: &Claim,
    ) -> Result<HostPort, StoreError> {
        let unspecified = std::net::Ipv4Addr::UNSPECIFIED.into();
        let missing = StoreError::PortNotInPool(HostPort { ip: unspecified, port, protocol });
        let lease = claim.lease.map(|lease| lease.to_string());
        let ip: Option<String> = self
            .connection
            .prepare_cached(
                "SELECT ip FROM ports WHERE port = ?1 AND protocol = ?2
                 ORDER BY container IS NOT NULL, marked_in_use, lease_id IS NOT ?3,
                    lease_id IS NOT NULL, quarantined_until IS NOT NULL, ip LIMIT 1",
            )?
            .query_row((port, protocol.as_str(), lease), |row| row.get(0))
            .optional()?;
        Ok(HostPort { ip: ip_of(&ip.ok_or(missing)?)?, port, protocol })
    }

    fn has_position(&self, port: HostPort) -> Result<bool, StoreError> {
        let mut select = self.connection.prepare_cached(
            "SELECT 1 FROM ports
             WHERE ip = ?1 AND port = ?2 AND protocol = ?3 AND position IS NOT NULL",
        )?;
        Ok(select.exists(key(port))?)
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
                    lease_id = NULL, quarantined_until = NULL, released_by = NULL
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
