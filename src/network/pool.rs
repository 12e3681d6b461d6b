//! The port pool's policy: what may enter it, on which terms ports change hands, and what the host has
//! to say about them.
//!
//! The store decides between containers; it cannot know that another process of the host listens on a
//! port ([`super::host`]), nor where lightd itself does. Both go into its transactions as
//! [`PortTerms`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use super::host::{Listeners, is_bindable, is_local};
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::UnixSeconds;
use crate::store::free_ports::Among;
use crate::store::leases::{Lease, LeaseRequest};
use crate::store::port_terms::PortTerms;
use crate::store::ports::{BulkDeleted, Mark, PoolPort, PortFilter};
use crate::store::{Store, StoreError, Tx};

/// The most ports that one call adds.
const RANGE_MAX: usize = 10_000;
/// The most ports that one call leases.
const LEASE_MAX: usize = 1_000;
const RESERVE_MAX: Duration = Duration::from_secs(3600);
/// Long enough to create a container with what was handed out.
pub(crate) const RESERVE_DEFAULT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("{0} is no address of this host")]
    NotLocal(IpAddr),
    #[error("must be 1 to {RANGE_MAX} ports between 1 and 65535")]
    BadRange,
    #[error("must be between 1 and {LEASE_MAX}")]
    BadCount,
    #[error("must be between 1s and 1h")]
    BadReserve,
    #[error("lightd is stopping")]
    Stopping,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the configuration says of all ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortPolicy {
    /// Where lightd itself listens, or will.
    pub(crate) own: Arc<[SocketAddr]>,
    /// How long a port rests when a container has let go of it.
    pub(crate) quarantine: Duration,
}

impl PortPolicy {
    /// The terms on which ports change hands now.
    pub(crate) fn terms(&self) -> PortTerms {
        PortTerms {
            now: UnixSeconds::now(),
            quarantine: self.quarantine,
            own: Arc::clone(&self.own),
            probe: is_bindable,
        }
    }
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

/// An entry of the pool, and what the host does with it.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) entry: PoolPort,
    /// Lightd itself or a process that is no container's has it.
    pub(crate) held_by_host: bool,
}

/// What somebody wants to be handed.
#[derive(Clone, Debug)]
pub(crate) struct Allocation {
    pub(crate) count: usize,
    pub(crate) among: Among,
    pub(crate) contiguous: bool,
    /// [`RESERVE_DEFAULT`] where it is left out; of a lease that they are added to, as long as that lasts.
    pub(crate) reserve: Option<Duration>,
    /// A lease to add the ports to.
    pub(crate) lease: Option<Uuid>,
    /// By which name the lease knows whose it is.
    pub(crate) holder: String,
}

/// Acts for somebody: for lightd itself unless [`PortPool::by`] says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct PortPool {
    store: Store,
    actor: Actor,
    policy: watch::Receiver<PortPolicy>,
}

impl PortPool {
    pub(crate) fn new(store: Store, policy: watch::Receiver<PortPolicy>) -> Self {
        Self { store, actor: Actor::lightd(), policy }
    }

    /// The same pool, for this actor.
    pub(crate) fn by(&self, actor: Actor) -> Self {
        Self { actor, ..self.clone() }
    }

    fn act(&self, action: Action) -> Act {
        Act::new(self.actor.clone(), action)
    }

    fn terms(&self) -> PortTerms {
        self.policy.borrow().terms()
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
        let terms = self.terms();
        let named = PortRange { ip, ports: ports.clone(), protocol }.to_string();
        let act = self.act(Action::PortAdd).with("ports", named);
        let add = move |tx: &Tx<'_>| {
            let added = tx.add_ports(ip, ports, protocol, &terms)?;
            tx.record(&Act { count: added as u64, ..act }, terms.now)?;
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
            let terms = self.terms();
            let named = PortRange { ip, ports: ports.clone(), protocol }.to_string();
            let act = self.act(Action::PortAdd).with("ports", named);
            let add_each = move |tx: &Tx<'_>| {
                let (mut refused, mut added) = (Vec::new(), 0);
                for port in ports {
                    match tx.add_ports(ip, port..=port, protocol, &terms) {
                        Ok(_) => added += 1,
                        Err(StoreError::PortExists(_)) => {}
                        Err(why @ (StoreError::PortOverlaps { .. } | StoreError::PortIsOwn(_))) => {
                            refused.push(why);
                        }
                        Err(other) => return Err(other),
                    }
                }
                if added > 0 {
                    let act = act.with("reason", "network.ports");
                    tx.record(&Act { count: added, ..act }, terms.now)?;
                }
                Ok(refused)
            };
            let refused = self.store.write("seed the port pool", add_each).await?;
            if let Some(first) = refused.first() {
                tracing::warn!(count = refused.len(), %first, "ports of network.ports are not taken into the pool");
            }
        }
        Ok(())
    }

    pub(crate) async fn list(&self, filter: PortFilter) -> Result<Vec<Shown>, PoolError> {
        let now = UnixSeconds::now();
        let entries = self.store.read("list ports", move |rx| rx.ports(&filter, now)).await?;
        self.look(entries).await
    }

    pub(crate) async fn get(&self, port: HostPort) -> Result<Shown, PoolError> {
        let now = UnixSeconds::now();
        let entry = self.store.read("look up a port", move |rx| rx.port(port, now)).await?;
        self.look(vec![entry]).await?.pop().ok_or(PoolError::Stopping)
    }

    /// Looks at what the host does with these.
    async fn look(&self, entries: Vec<PoolPort>) -> Result<Vec<Shown>, PoolError> {
        let terms = self.terms();
        let look = move || {
            let listeners = Listeners::read();
            let show = |entry: PoolPort| {
                // What listens there is most likely the container's.
                let is_others = !entry.is_up && listeners.have(entry.host);
                let held_by_host = terms.is_own(entry.host) || is_others;
                Shown { entry, held_by_host }
            };
            entries.into_iter().map(show).collect()
        };
        tokio::task::spawn_blocking(look).await.map_err(|_| PoolError::Stopping)
    }

    /// Some free port that the host has free too. It is not held: two callers may get the same.
    ///
    /// Asked of the writer, who lets go of what has ended; nothing is written else.
    pub(crate) async fn random(&self, among: Among) -> Result<HostPort, PoolError> {
        let terms = self.terms();
        let find = move |tx: &Tx<'_>| {
            tx.end_holds(terms.now)?;
            tx.free_ports(among, 1, &terms)
        };
        let found = self.store.write("find a free port", find).await?;
        Ok(found.first().copied().ok_or(StoreError::NoFreePort { wanted: 1, found: 0 })?)
    }

    /// Hands out ports and keeps them for a time, so that nobody else is handed them.
    pub(crate) async fn allocate(&self, wanted: Allocation) -> Result<Lease, PoolError> {
        if !(1..=LEASE_MAX).contains(&wanted.count) {
            return Err(PoolError::BadCount);
        }
        let terms = self.terms();
        let until = match wanted.reserve {
            None if wanted.lease.is_some() => terms.now,
            reserve => end_of(reserve.unwrap_or(RESERVE_DEFAULT), terms.now)?,
        };
        let request = LeaseRequest {
            count: wanted.count,
            protocol: wanted.among.protocol,
            ip: wanted.among.ip,
            contiguous: wanted.contiguous,
            lease: wanted.lease,
            holder: wanted.holder,
            until,
        };
        let act = self.act(Action::PortAllocate);
        let lease = move |tx: &Tx<'_>| {
            let lease = tx.lease_ports(&request, &terms)?;
            tx.record(&of_lease(act, &lease).with("until", lease.expires_at.0), terms.now)?;
            Ok(lease)
        };
        Ok(self.store.write("reserve ports", lease).await?)
    }

    pub(crate) async fn lease(&self, id: Uuid) -> Result<Lease, PoolError> {
        let now = UnixSeconds::now();
        Ok(self.store.read("look up a lease", move |rx| rx.lease(id, now)).await?)
    }

    /// Those of one holder, or all.
    pub(crate) async fn leases(
        &self,
        holder: Option<String>,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Lease>, PoolError> {
        let now = UnixSeconds::now();
        let list =
            move |rx: &crate::store::Read<'_>| rx.leases(holder.as_deref(), after, limit, now);
        Ok(self.store.read("list leases", list).await?)
    }

    /// Keeps a lease for so long from now on.
    pub(crate) async fn renew(&self, id: Uuid, reserve: Duration) -> Result<Lease, PoolError> {
        let now = UnixSeconds::now();
        let until = end_of(reserve, now)?;
        let act = self.act(Action::PortRenew);
        let renew = move |tx: &Tx<'_>| {
            let lease = tx.renew_lease(id, until, now)?;
            tx.record(&of_lease(act, &lease).with("until", until.0), now)?;
            Ok(lease)
        };
        Ok(self.store.write("renew a lease", renew).await?)
    }

    /// Gives a lease's ports back; what it was.
    pub(crate) async fn end_lease(&self, id: Uuid) -> Result<Lease, PoolError> {
        let now = UnixSeconds::now();
        let act = self.act(Action::PortRelease);
        let end = move |tx: &Tx<'_>| {
            let lease = tx.end_lease(id, now)?;
            tx.record(&of_lease(act, &lease), now)?;
            Ok(lease)
        };
        Ok(self.store.write("end a lease", end).await?)
    }

    pub(crate) async fn mark(&self, port: HostPort, mark: Mark) -> Result<PoolPort, PoolError> {
        let now = UnixSeconds::now();
        let act = self.act(Action::PortMark).each("ports", [port]).with("in_use", mark.in_use);
        let act = act.with_some("note", mark.note.as_deref());
        let mark = move |tx: &Tx<'_>| {
            let before = tx.port(port, now)?;
            let marked = tx.mark_port(port, &mark, now)?;
            if marked != before {
                tx.record(&act, now)?;
            }
            Ok(marked)
        };
        Ok(self.store.write("mark a port", mark).await?)
    }

    pub(crate) async fn delete(&self, port: HostPort) -> Result<(), PoolError> {
        let now = UnixSeconds::now();
        let act = self.act(Action::PortDelete).each("ports", [port]);
        let delete = move |tx: &Tx<'_>| {
            tx.delete_port(port, now)?;
            tx.record(&act, now)
        };
        Ok(self.store.write("delete a port", delete).await?)
    }

    pub(crate) async fn delete_many(&self, ports: Vec<HostPort>) -> Result<BulkDeleted, PoolError> {
        let now = UnixSeconds::now();
        let act = self.act(Action::PortDelete);
        let delete = move |tx: &Tx<'_>| {
            let outcome = tx.delete_ports(&ports, now)?;
            if !outcome.deleted.is_empty() {
                tx.record(&act.each("ports", &outcome.deleted), now)?;
            }
            Ok(outcome)
        };
        Ok(self.store.write("delete ports", delete).await?)
    }
}

/// What the audit log holds of a lease: its ports. Whoever knows its id may have them.
fn of_lease(act: Act, lease: &Lease) -> Act {
    act.each("ports", &lease.ports)
}

fn end_of(reserve: Duration, now: UnixSeconds) -> Result<UnixSeconds, PoolError> {
    if reserve < Duration::from_secs(1) || reserve > RESERVE_MAX {
        return Err(PoolError::BadReserve);
    }
    Ok(UnixSeconds(now.0.saturating_add_unsigned(reserve.as_secs())))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::store::testing::{open, tcp};

    fn pool(store: Store, own: &[&str]) -> PortPool {
        let own = own.iter().map(|at| at.parse().unwrap()).collect();
        let policy = PortPolicy { own, quarantine: Duration::ZERO };
        PortPool::new(store, watch::channel(policy).1)
    }

    const TCP: Among = Among { protocol: Protocol::Tcp, ip: None };

    fn one() -> Allocation {
        let holder = "test".to_owned();
        Allocation { count: 1, among: TCP, contiguous: false, reserve: None, lease: None, holder }
    }

    fn range(ip: &str, ports: RangeInclusive<u16>) -> PortRange {
        PortRange { ip: ip.parse().unwrap(), ports, protocol: Protocol::Tcp }
    }

    #[tokio::test]
    async fn only_addresses_of_this_host_enter_the_pool() {
        let (_folder, store) = open();
        let pool = pool(store, &[]);
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
        let pool = pool(store, &[]);
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = held.local_addr().unwrap().port();
        pool.add(range("127.0.0.1", number..=number)).await.unwrap();
        assert!(pool.get(tcp("127.0.0.1", number)).await.unwrap().held_by_host);
        for refused in [pool.random(TCP).await.err(), pool.allocate(one()).await.err()] {
            assert!(matches!(refused, Some(PoolError::Store(StoreError::NoFreePort { .. }))));
        }
        drop(held);
        assert!(!pool.list(PortFilter::default()).await.unwrap()[0].held_by_host);
        assert_eq!(pool.random(TCP).await.unwrap(), tcp("127.0.0.1", number));
        let lease = pool.allocate(Allocation { contiguous: true, ..one() }).await.unwrap();
        assert_eq!(lease.ports, [tcp("127.0.0.1", number)]);
        assert!(pool.random(TCP).await.is_err(), "reserved");
        assert!(pool.get(lease.ports[0]).await.unwrap().entry.in_use());
        pool.mark(lease.ports[0], Mark { ends_any_lease: true, ..Mark::default() }).await.unwrap();
        assert!(pool.random(TCP).await.is_ok(), "given back");
    }

    #[tokio::test]
    async fn where_lightd_listens_nobody_else_will() {
        let (_folder, store) = open();
        pool(store.clone(), &[]).add(range("127.0.0.1", 7000..=7000)).await.unwrap();
        let pool = pool(store, &["0.0.0.0:7000", "[::]:7001"]);
        assert!(pool.random(TCP).await.is_err());
        assert!(pool.get(tcp("127.0.0.1", 7000)).await.unwrap().held_by_host);
        let added = pool.add(range("127.0.0.1", 7001..=7002)).await;
        assert!(matches!(added, Err(PoolError::Store(StoreError::PortIsOwn(_)))));
        pool.seed(vec![range("127.0.0.1", 7001..=7002)]).await.unwrap();
        assert_eq!(pool.random(TCP).await.unwrap().port, 7002, "the seed without its own");
    }

    #[tokio::test]
    async fn seeding_twice_changes_nothing_and_a_wrong_seed_stops_nothing() {
        let (_folder, store) = open();
        let pool = pool(store, &[]);
        let seeds = vec![
            range("192.0.2.1", 1..=2),
            range("127.0.0.1", 7000..=7003),
            range("0.0.0.0", 7003..=7004),
        ];
        pool.seed(seeds.clone()).await.unwrap();
        pool.delete(tcp("127.0.0.1", 7000)).await.unwrap();
        pool.seed(seeds).await.unwrap();
        let all = pool.list(PortFilter::default()).await.unwrap();
        let numbers: Vec<u16> = all.iter().map(|port| port.entry.host.port).collect();
        assert_eq!(numbers, [7004, 7000, 7001, 7002, 7003]);
    }
}
