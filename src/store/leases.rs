//! Leases: ports that were handed out and are kept from others for a time.
//!
//! Whoever was handed the ports may use them, and whoever shows the lease's id ([`Claim`]); nobody else
//! can, so that two panels never get the same port. A lease ends with its time, by hand, or when
//! containers have bound all of its ports.

use std::net::IpAddr;

use rusqlite::OptionalExtension;
use uuid::Uuid;

use super::error::StoreError;
use super::free_ports::Among;
use super::port_terms::PortTerms;
use super::ports::{Leased, host_port_of, key, lease_id, text};
use super::{Read, Tx};
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::UnixSeconds;

/// What somebody who asks for ports has to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// By which name leases know the caller; `None`: by none.
    pub(crate) holder: Option<String>,
    /// A lease to take the ports of.
    pub(crate) lease: Option<Uuid>,
}

impl Claim {
    pub(crate) fn covers(&self, lease: &Leased) -> bool {
        self.lease == Some(lease.id) || self.holder.as_ref() == Some(&lease.holder)
    }
}

/// Ports handed out and kept for a time.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) id: Uuid,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) created_at: UnixSeconds,
    pub(crate) expires_at: UnixSeconds,
}

/// Ports that are to be leased.
#[derive(Clone, Debug)]
pub(crate) struct LeaseRequest {
    pub(crate) count: usize,
    pub(crate) protocol: Protocol,
    pub(crate) ip: Option<IpAddr>,
    /// All of one address and in a row.
    pub(crate) contiguous: bool,
    /// A lease to add them to.
    pub(crate) lease: Option<Uuid>,
    pub(crate) holder: String,
    /// A lease that they are added to ends no earlier for it.
    pub(crate) until: UnixSeconds,
}

impl Tx<'_> {
    /// Hands out free ports and keeps them. Either all or none.
    pub(crate) fn lease_ports(
        &self,
        wanted: &LeaseRequest,
        terms: &PortTerms,
    ) -> Result<Lease, StoreError> {
        self.end_holds(terms.now)?;
        let among = Among { protocol: wanted.protocol, ip: wanted.ip };
        let ports = if wanted.contiguous {
            self.free_row(among, wanted.count, terms)?
        } else {
            self.free_ports(among, wanted.count, terms)?
        };
        if ports.len() < wanted.count {
            return Err(StoreError::NoFreePort { wanted: wanted.count, found: ports.len() });
        }
        let id = match wanted.lease {
            Some(id) => {
                let held_until = self.lease(id, terms.now)?.expires_at;
                self.extend_lease(id, wanted.until.max(held_until))?;
                id
            }
            None => self.insert_lease(wanted, terms.now)?,
        };
        let mut update = self.connection.prepare_cached(
            "UPDATE ports SET lease_id = ?4 WHERE ip = ?1 AND port = ?2 AND protocol = ?3",
        )?;
        for port in &ports {
            let (ip, number, protocol) = key(*port);
            update.execute((ip, number, protocol, id.to_string()))?;
        }
        self.lease(id, terms.now).map(|lease| Lease { ports, ..lease })
    }

    fn insert_lease(&self, wanted: &LeaseRequest, now: UnixSeconds) -> Result<Uuid, StoreError> {
        // In the order of time, which is the order of lists.
        let id = Uuid::now_v7();
        self.connection
            .prepare_cached(
                "INSERT INTO port_leases (id, holder, created_at, expires_at) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((id.to_string(), &wanted.holder, now.0, wanted.until.0))?;
        Ok(id)
    }

    /// Gives a lease another end.
    pub(crate) fn renew_lease(
        &self,
        id: Uuid,
        until: UnixSeconds,
        now: UnixSeconds,
    ) -> Result<Lease, StoreError> {
        self.end_holds(now)?;
        self.extend_lease(id, until)?;
        self.lease(id, now)
    }

    fn extend_lease(&self, id: Uuid, until: UnixSeconds) -> Result<(), StoreError> {
        let changed = self
            .connection
            .prepare_cached("UPDATE port_leases SET expires_at = ?2 WHERE id = ?1")?
            .execute((id.to_string(), until.0))?;
        if changed == 0 { Err(StoreError::NoSuchLease(id)) } else { Ok(()) }
    }

    /// Gives the ports of a lease back; what it held.
    pub(crate) fn end_lease(&self, id: Uuid, now: UnixSeconds) -> Result<Lease, StoreError> {
        let lease = self.lease(id, now)?;
        // With it, the ports' mention of it goes.
        self.connection
            .prepare_cached("DELETE FROM port_leases WHERE id = ?1")?
            .execute([id.to_string()])?;
        Ok(lease)
    }

    /// Drops leases whose last port was bound, or taken by hand.
    pub(super) fn forget_empty_leases(&self) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "DELETE FROM port_leases WHERE NOT EXISTS
                    (SELECT 1 FROM ports WHERE ports.lease_id = port_leases.id)",
            )?
            .execute([])?;
        Ok(())
    }
}

impl Read<'_> {
    pub(crate) fn lease(&self, id: Uuid, now: UnixSeconds) -> Result<Lease, StoreError> {
        let times = self
            .connection
            .prepare_cached(
                "SELECT created_at, expires_at FROM port_leases WHERE id = ?1 AND expires_at > ?2",
            )?
            .query_row((id.to_string(), now.0), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (created_at, expires_at) = times.ok_or(StoreError::NoSuchLease(id))?;
        let ports = self.leased_ports(id)?;
        Ok(Lease {
            id,
            ports,
            created_at: UnixSeconds(created_at),
            expires_at: UnixSeconds(expires_at),
        })
    }

    /// Leases in the order in which they were made: those of one holder, or all.
    pub(crate) fn leases(
        &self,
        holder: Option<&str>,
        after: Option<Uuid>,
        limit: usize,
        now: UnixSeconds,
    ) -> Result<Vec<Lease>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id FROM port_leases
             WHERE expires_at > ?1 AND (?2 IS NULL OR holder = ?2) AND id > ?3 ORDER BY id LIMIT ?4",
        )?;
        let after = after.map_or(String::new(), |after| after.to_string());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query((now.0, holder, after, limit))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(self.lease(lease_id(&row.get::<_, String>(0)?)?, now)?);
        }
        Ok(found)
    }

    fn leased_ports(&self, id: Uuid) -> Result<Vec<HostPort>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT ip, port, protocol FROM ports WHERE lease_id = ?1 ORDER BY ip, port, protocol",
        )?;
        let mut rows = statement.query([id.to_string()])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(host_port_of(row)?);
        }
        Ok(found)
    }

    /// The ports of a lease that may be chosen for somebody who has shown it.
    pub(super) fn leased_among(&self, id: Uuid, among: Among) -> Result<Vec<HostPort>, StoreError> {
        let fits = |port: &HostPort| {
            port.protocol == among.protocol && among.ip.is_none_or(|ip| text(ip) == text(port.ip))
        };
        Ok(self.leased_ports(id)?.into_iter().filter(fits).collect())
    }
}
