//! The port pool's policy: what may enter it, and what the host has to say about a port.
//!
//! The store decides between containers; it cannot know that another process of the host listens on a
//! port. [`is_bindable`] finds that out by trying. It is asked before a port is handed out or chosen,
//! and passed into the transactions that choose ([`crate::store::ports::Probe`]).

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::domain::audit::{Act, Action, Actor};
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::UnixSeconds;
use crate::store::ports::{BulkDeleted, Lease, PoolPort, PortFilter};
use crate::store::{Store, StoreError};

/// The most ports that one call adds.
const RANGE_MAX: usize = 10_000;
/// The most ports that one lease holds.
const LEASE_MAX: usize = 1_000;
const RESERVE_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("{0} is no address of this host")]
    NotLocal(IpAddr),
    #[error("must be 1 to {RANGE_MAX} ports between 1 and 65535")]
    BadRange,
    #[error("count must be between 1 and {LEASE_MAX}")]
    BadCount,
    #[error("reserve must be between 1s and 1h")]
    BadReserve,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Ports with following numbers, on one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortRange {
    pub(crate) ip: IpAddr,
    pub(crate) ports: RangeInclusive<u16>,
    pub(crate) protocol: Protocol,
}

impl fmt::Display for PortRange {
    /// `192.0.2.7 25565-25600/tcp`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.ports.start(), self.ports.end());
        let protocol = self.protocol.as_str();
        write!(f, "{} {first}-{last}/{protocol}", self.ip)
    }
}

/// Acts for somebody: for lightd itself unless [`PortPool::by`] says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct PortPool {
    store: Store,
    actor: Actor,
}

impl PortPool {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, actor: Actor::lightd() }
    }

    /// The same pool, for this actor.
    pub(crate) fn by(&self, actor: Actor) -> Self {
        Self { store: self.store.clone(), actor }
    }

    fn act(&self, action: Action) -> Act {
        Act::new(self.actor.clone(), action)
    }

    /// Adds a range, all of it or nothing.
    pub(crate) async fn add(&self, range: PortRange) -> Result<usize, PoolError> {
        let PortRange { ip, ports, protocol } = range;
        if *ports.start() == 0 || ports.is_empty() || ports.len() > RANGE_MAX {
            return Err(PoolError::BadRange);
        }
        let ip = ip.to_canonical();
        if !is_local(ip) {
            return Err(PoolError::NotLocal(ip));
        }
        let named = PortRange { ip, ports: ports.clone(), protocol }.to_string();
        let act = self.act(Action::PortAdd).with("ports", named);
        let add = move |tx: &crate::store::Tx<'_>| {
            let added = tx.add_ports(ip, ports, protocol)?;
            tx.record(&Act { count: added as u64, ..act }, UnixSeconds::now())?;
            Ok(added)
        };
        Ok(self.store.write("add ports", add).await?)
    }

    /// Adds what the configuration names and the pool lacks. What cannot be added is logged: a wrong
    /// seed is no reason not to serve.
    pub(crate) async fn seed(&self, ranges: Vec<PortRange>) -> Result<(), PoolError> {
        for PortRange { ip, ports, protocol } in ranges {
            let ip = ip.to_canonical();
            if !is_local(ip) {
                tracing::warn!(%ip, "network.ports names an address that this host does not have");
                continue;
            }
            let named = PortRange { ip, ports: ports.clone(), protocol }.to_string();
            let act = self.act(Action::PortAdd).with("ports", named);
            let clashes = self
                .store
                .write("seed the port pool", move |tx| {
                    let (mut clashes, mut added) = (Vec::new(), 0);
                    for port in ports {
                        match tx.add_ports(ip, port..=port, protocol) {
                            Ok(_) => added += 1,
                            Err(StoreError::PortExists(_)) => {}
                            Err(clash @ StoreError::PortOverlaps { .. }) => clashes.push(clash),
                            Err(other) => return Err(other),
                        }
                    }
                    if added > 0 {
                        let act = act.with("reason", "network.ports");
                        tx.record(&Act { count: added, ..act }, UnixSeconds::now())?;
                    }
                    Ok(clashes)
                })
                .await?;
            if let Some(first) = clashes.first() {
                tracing::warn!(count = clashes.len(), %first, "network.ports clashes with the pool");
            }
        }
        Ok(())
    }

    pub(crate) async fn list(&self, filter: PortFilter) -> Result<Vec<PoolPort>, PoolError> {
        let now = UnixSeconds::now();
        Ok(self.store.read("list ports", move |rx| rx.ports(filter, now)).await?)
    }

    pub(crate) async fn get(&self, port: HostPort) -> Result<PoolPort, PoolError> {
        let now = UnixSeconds::now();
        Ok(self.store.read("look up a port", move |rx| rx.port(port, now)).await?)
    }

    /// Some free port that the host has free too. It is not held: two callers may get the same.
    pub(crate) async fn random(&self, protocol: Protocol) -> Result<HostPort, PoolError> {
        let now = UnixSeconds::now();
        let found = self
            .store
            .read("find a free port", move |rx| {
                let free = rx.free_ports(protocol, None, now)?;
                Ok(free.into_iter().find(|port| is_bindable(*port)))
            })
            .await?;
        Ok(found.ok_or(StoreError::NoFreePort { wanted: 1, found: 0 })?)
    }

    /// Hands out ports and keeps them for a time, so that nobody else is handed them.
    pub(crate) async fn allocate(
        &self,
        count: usize,
        protocol: Protocol,
        contiguous: bool,
        reserve: Duration,
    ) -> Result<Lease, PoolError> {
        if !(1..=LEASE_MAX).contains(&count) {
            return Err(PoolError::BadCount);
        }
        if reserve < Duration::from_secs(1) || reserve > RESERVE_MAX {
            return Err(PoolError::BadReserve);
        }
        let now = UnixSeconds::now();
        let until = UnixSeconds(now.0.saturating_add_unsigned(reserve.as_secs()));
        let act = self.act(Action::PortAllocate);
        let lease = move |tx: &crate::store::Tx<'_>| {
            let lease = tx.lease_ports(count, protocol, contiguous, until, now, is_bindable)?;
            let act = act.each("ports", &lease.ports).with("lease_id", lease.id.to_string());
            tx.record(&act, now)?;
            Ok(lease)
        };
        Ok(self.store.write("reserve ports", lease).await?)
    }

    pub(crate) async fn mark(&self, port: HostPort, in_use: bool) -> Result<PoolPort, PoolError> {
        let now = UnixSeconds::now();
        let act = self.act(Action::PortMark).with("port", port.to_string()).with("in_use", in_use);
        let mark = move |tx: &crate::store::Tx<'_>| {
            let marked = tx.mark_port(port, in_use, now)?;
            tx.record(&act, now)?;
            Ok(marked)
        };
        Ok(self.store.write("mark a port", mark).await?)
    }

    pub(crate) async fn delete(&self, port: HostPort) -> Result<(), PoolError> {
        let now = UnixSeconds::now();
        let act = self.act(Action::PortDelete).each("ports", [port]);
        let delete = move |tx: &crate::store::Tx<'_>| {
            tx.delete_port(port, now)?;
            tx.record(&act, now)
        };
        Ok(self.store.write("delete a port", delete).await?)
    }

    pub(crate) async fn delete_many(&self, ports: Vec<HostPort>) -> Result<BulkDeleted, PoolError> {
        let now = UnixSeconds::now();
        let act = self.act(Action::PortDelete);
        let delete = move |tx: &crate::store::Tx<'_>| {
            let outcome = tx.delete_ports(&ports, now)?;
            if outcome.deleted > 0 {
                let kept: HashSet<_> = outcome.kept.iter().map(|(port, _)| *port).collect();
                let act = act.each("ports", ports.iter().filter(|port| !kept.contains(port)));
                tx.record(&Act { count: outcome.deleted as u64, ..act }, now)?;
            }
            Ok(outcome)
        };
        Ok(self.store.write("delete ports", delete).await?)
    }
}

/// Whether a socket on this port could be opened now.
///
/// The standard library sets `SO_REUSEADDR` for TCP and not for UDP. That is what is wanted: a TCP port
/// whose last connections are dying out is free, one that somebody listens on is not; and for UDP the
/// option would let us share what another process has.
pub(crate) fn is_bindable(port: HostPort) -> bool {
    let address = SocketAddr::new(port.ip, port.port);
    match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).is_ok(),
        Protocol::Udp => UdpSocket::bind(address).is_ok(),
    }
}

/// Whether this host has the address, wildcards included. Found out by binding to it; group and
/// broadcast addresses can be bound and are nobody's.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    let is_everyones = ip.is_multicast() || ip == Ipv4Addr::BROADCAST;
    !is_everyones && TcpListener::bind(SocketAddr::new(ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{open, tcp};

    fn range(ip: &str, ports: RangeInclusive<u16>) -> PortRange {
        PortRange { ip: ip.parse().unwrap(), ports, protocol: Protocol::Tcp }
    }

    #[tokio::test]
    async fn only_addresses_of_this_host_enter_the_pool() {
        let (_folder, store) = open();
        let pool = PortPool::new(store);
        for local in ["0.0.0.0", "127.0.0.1", "::ffff:127.0.0.2"] {
            let offset = u16::try_from(local.len()).unwrap();
            pool.add(range(local, 7000 + offset..=7000 + offset)).await.unwrap();
        }
        for foreign in ["192.0.2.1", "224.0.0.1", "255.255.255.255", "2001:db8::1", "ff02::1"] {
            let refused = pool.add(range(foreign, 1..=1)).await;
            assert!(matches!(refused, Err(PoolError::NotLocal(_))), "{foreign}");
        }
        let empty = RangeInclusive::new(2, 1);
        for bad in [range("0.0.0.0", 0..=5), range("0.0.0.0", empty), range("0.0.0.0", 1..=20_000)]
        {
            assert!(matches!(pool.add(bad).await, Err(PoolError::BadRange)));
        }
    }

    #[tokio::test]
    async fn a_port_that_the_host_holds_is_not_handed_out() {
        let (_folder, store) = open();
        let pool = PortPool::new(store);
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = held.local_addr().unwrap().port();
        pool.add(range("127.0.0.1", number..=number)).await.unwrap();
        let none = pool.random(Protocol::Tcp).await;
        assert!(matches!(none, Err(PoolError::Store(StoreError::NoFreePort { .. }))));
        let none = pool.allocate(1, Protocol::Tcp, false, Duration::from_secs(30)).await;
        assert!(matches!(none, Err(PoolError::Store(StoreError::NoFreePort { .. }))));
        assert!(!is_bindable(tcp("0.0.0.0", number)));
        drop(held);
        assert_eq!(pool.random(Protocol::Tcp).await.unwrap(), tcp("127.0.0.1", number));
        let lease = pool.allocate(1, Protocol::Tcp, true, Duration::from_secs(30)).await.unwrap();
        assert_eq!(lease.ports, [tcp("127.0.0.1", number)]);
        assert!(pool.random(Protocol::Tcp).await.is_err(), "reserved");
        assert!(pool.get(lease.ports[0]).await.unwrap().in_use());
        pool.mark(lease.ports[0], false).await.unwrap();
        assert!(pool.random(Protocol::Tcp).await.is_ok(), "given back");

        let held = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let udp = HostPort { protocol: Protocol::Udp, ..tcp("127.0.0.1", port) };
        assert!(!is_bindable(udp));
        drop(held);
        assert!(is_bindable(udp));
    }

    #[tokio::test]
    async fn seeding_twice_changes_nothing_and_a_wrong_seed_stops_nothing() {
        let (_folder, store) = open();
        let pool = PortPool::new(store);
        let seeds = vec![
            range("192.0.2.1", 1..=2),
            range("127.0.0.1", 7000..=7003),
            range("0.0.0.0", 7003..=7004),
        ];
        pool.seed(seeds.clone()).await.unwrap();
        pool.delete(tcp("127.0.0.1", 7000)).await.unwrap();
        pool.seed(seeds).await.unwrap();
        let all = pool.list(PortFilter::default()).await.unwrap();
        let numbers: Vec<u16> = all.iter().map(|port| port.host.port).collect();
        assert_eq!(numbers, [7004, 7000, 7001, 7002, 7003]);
    }
}
