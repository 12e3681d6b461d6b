//! Ports between panels and containers: leases, quarantines, what the host has, what others publish.

use std::time::Duration;

use uuid::Uuid;

use super::bindings::{PortRequest, PortsWanted};
use super::leases::{Claim, Lease, LeaseRequest};
use super::port_terms::PortTerms;
use super::ports::{Imported, Mark, PoolPort, PortFilter};
use super::testing::*;
use super::*;
use crate::domain::ids::VolumeId;
use crate::domain::spec::{HostPort, PortBinding, Protocol};
use crate::domain::units::UnixSeconds;

fn lease_of(count: usize, holder: &str, until: UnixSeconds) -> LeaseRequest {
    LeaseRequest {
        count,
        protocol: Protocol::Tcp,
        ip: None,
        contiguous: false,
        lease: None,
        holder: holder.to_owned(),
        until,
    }
}

async fn lease(store: &Store, wanted: LeaseRequest, now: UnixSeconds) -> Result<Lease, StoreError> {
    store.write("lease", move |tx| tx.lease_ports(&wanted, &terms(now))).await
}

async fn insert(
    store: &Store,
    name: &str,
    volume: VolumeId,
    ports: impl Into<PortsWanted>,
    terms: PortTerms,
) -> Result<Vec<PortBinding>, StoreError> {
    let mut new = new_container(name, volume, &[]);
    new.ports = ports.into();
    store.write("insert", move |tx| tx.insert_container(&new, &terms)).await
}

async fn port(store: &Store, port: HostPort, now: UnixSeconds) -> PoolPort {
    store.read("look", move |rx| rx.port(port, now)).await.unwrap()
}

fn this(port: HostPort) -> PortRequest {
    PortRequest { ip: None, ..named("0.0.0.0", port.port) }
}

fn claiming(ports: Vec<PortRequest>, holder: Option<&str>, lease: Option<Uuid>) -> PortsWanted {
    PortsWanted { ports, claim: Claim { holder: holder.map(str::to_owned), lease } }
}

#[tokio::test]
async fn a_lease_keeps_ports_until_its_time_is_over() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7001).await;
    add_ports(&store, "127.0.0.1", 7003, 7005).await;
    let row = |count| LeaseRequest { contiguous: true, ..lease_of(count, "a", later(30)) };
    let none = lease(&store, row(4), NOW).await;
    assert!(matches!(none, Err(StoreError::NoFreePort { wanted: 4, .. })));
    let row = lease(&store, row(3), NOW).await.unwrap();
    let numbers: Vec<u16> = row.ports.iter().map(|port| port.port).collect();
    assert_eq!(numbers, [7003, 7004, 7005]);
    assert_eq!((row.created_at, row.expires_at), (NOW, later(30)));
    lease(&store, lease_of(2, "a", later(30)), NOW).await.unwrap();
    let none = lease(&store, lease_of(1, "a", later(30)), NOW).await;
    assert!(matches!(none, Err(StoreError::NoFreePort { .. })));
    let chosen = insert(&store, "a", volume, vec![any()], terms(NOW)).await;
    assert!(matches!(chosen, Err(StoreError::NoFreePort { .. })), "leased ports are not chosen");
    let all = lease(&store, lease_of(5, "b", later(60)), later(30)).await.unwrap();
    assert_eq!(all.ports.len(), 5, "after its time");
    let ended = store.read("look", move |rx| rx.lease(row.id, later(30))).await;
    assert!(matches!(ended, Err(StoreError::NoSuchLease(_))));
}

#[tokio::test]
async fn leased_ports_are_for_whoever_was_handed_them_or_shows_the_lease() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7003).await;
    let mine = lease(&store, lease_of(3, "me", later(30)), NOW).await.unwrap();
    let [first, second, third] = mine.ports[..] else { panic!("{mine:?}") };
    for stranger in [None, Some("you")] {
        let taken = claiming(vec![this(first)], stranger, None);
        let taken = insert(&store, "x", volume, taken, terms(NOW)).await;
        assert!(matches!(taken, Err(StoreError::PortLeased(_))), "{stranger:?}");
    }
    let wrong = claiming(vec![this(first)], Some("me"), Some(Uuid::now_v7()));
    let wrong = insert(&store, "x", volume, wrong, terms(NOW)).await;
    assert!(matches!(wrong, Err(StoreError::NoSuchLease(_))));
    insert(&store, "a", volume, claiming(vec![this(first)], Some("me"), None), terms(NOW))
        .await
        .unwrap();
    let shown = claiming(vec![this(second)], Some("you"), Some(mine.id));
    insert(&store, "b", volume, shown, terms(NOW)).await.unwrap();
    // An open one comes from the lease first, and then from the pool.
    let open = claiming(vec![any(), any()], None, Some(mine.id));
    let open = insert(&store, "c", volume, open, terms(NOW)).await.unwrap();
    assert_eq!(open[0].host, third);
    assert_eq!(port(&store, open[1].host, NOW).await.lease, None);
    let left = store.read("list", |rx| rx.leases(None, None, 9, NOW)).await.unwrap();
    assert!(left.is_empty(), "with its last port it has ended: {left:?}");
}

#[tokio::test]
async fn leases_are_renewed_extended_listed_and_given_back() {
    let (_folder, store) = open();
    add_ports(&store, "0.0.0.0", 7000, 7003).await;
    let first = lease(&store, lease_of(1, "me", later(30)), NOW).await.unwrap();
    let second = lease(&store, lease_of(1, "you", later(30)), NOW).await.unwrap();
    let id = first.id;
    let renewed = store.write("renew", move |tx| tx.renew_lease(id, later(90), later(29))).await;
    assert_eq!(renewed.unwrap().expires_at, later(90));
    let more = LeaseRequest { lease: Some(id), ..lease_of(2, "me", later(95)) };
    let more = lease(&store, more, later(60)).await.unwrap();
    assert_eq!((more.id, more.ports.len(), more.expires_at), (id, 2, later(95)));
    let earlier = LeaseRequest { lease: Some(id), ..lease_of(1, "me", later(70)) };
    let earlier = lease(&store, earlier, later(61)).await.unwrap();
    assert_eq!(earlier.expires_at, later(95), "its end does not come nearer");
    let given_back = earlier.ports[0];
    let mark = Mark { ends_any_lease: true, ..Mark::default() };
    store.write("mark", move |tx| tx.mark_port(given_back, &mark, later(61))).await.unwrap();
    let gone = second.id;
    let late = store.write("renew", move |tx| tx.renew_lease(gone, later(90), later(30))).await;
    assert!(matches!(late, Err(StoreError::NoSuchLease(_))), "its time was over");
    let none = LeaseRequest { lease: Some(gone), ..lease_of(1, "you", later(95)) };
    assert!(matches!(lease(&store, none, later(60)).await, Err(StoreError::NoSuchLease(_))));
    for (holder, count) in [(None, 1), (Some("me"), 1), (Some("you"), 0)] {
        let found = store.read("list", move |rx| rx.leases(holder, None, 9, later(60))).await;
        assert_eq!(found.unwrap().len(), count, "{holder:?}");
    }
    let after = store.read("list", move |rx| rx.leases(None, Some(id), 9, later(60))).await;
    assert!(after.unwrap().is_empty());
    let ended = store.write("end", move |tx| tx.end_lease(id, later(60))).await.unwrap();
    assert_eq!(ended.ports.len(), 3);
    let again = store.write("end", move |tx| tx.end_lease(id, later(60))).await;
    assert!(matches!(again, Err(StoreError::NoSuchLease(_))));
    assert_eq!(
        lease(&store, lease_of(4, "you", later(99)), later(60)).await.unwrap().ports.len(),
        4
    );
}

#[tokio::test]
async fn marking_or_freeing_a_leased_port_wants_the_lease() {
    let (_folder, store) = open();
    add_ports(&store, "0.0.0.0", 7000, 7000).await;
    let row = lease(&store, lease_of(1, "me", later(30)), NOW).await.unwrap();
    let mark = |in_use, lease| {
        let mark = Mark {
            in_use,
            note: Some("nginx".to_owned()),
            claim: Claim { holder: None, lease },
            ends_any_lease: false,
        };
        let store = store.clone();
        async move {
            store.write("mark", move |tx| tx.mark_port(tcp("0.0.0.0", 7000), &mark, NOW)).await
        }
    };
    for in_use in [true, false] {
        assert!(matches!(mark(in_use, None).await, Err(StoreError::PortLeased(_))), "{in_use}");
    }
    let marked = mark(true, Some(row.id)).await.unwrap();
    assert_eq!((marked.marked, marked.note.as_deref(), marked.lease), (true, Some("nginx"), None));
    let free = mark(false, None).await.unwrap();
    assert!(!free.in_use() && free.note.is_none(), "{free:?}");
}

#[tokio::test]
async fn what_a_container_lets_go_of_rests_and_only_that_container_has_it_back() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7000).await;
    let resting = |now| PortTerms { quarantine: Duration::from_secs(60), ..terms(now) };
    let held = tcp("0.0.0.0", 7000);
    insert(&store, "a", volume, vec![this(held)], resting(NOW)).await.unwrap();
    let delete = move |tx: &Tx<'_>| tx.delete_container(&id("a"), &resting(NOW));
    store.write("delete", delete).await.unwrap();
    let rests = port(&store, held, later(59)).await;
    assert_eq!(rests.quarantine.as_ref().map(|rest| rest.until), Some(later(60)));
    assert!(rests.in_use());
    let filter = PortFilter { in_use: Some(false), ..PortFilter::default() };
    let free = async |now| {
        let filter = filter.clone();
        store.read("list", move |rx| rx.ports(&filter, now)).await.unwrap().len()
    };
    assert_eq!((free(later(59)).await, free(later(60)).await), (0, 1));
    let chosen = insert(&store, "b", volume, vec![any()], terms(later(59))).await;
    assert!(matches!(chosen, Err(StoreError::NoFreePort { .. })));
    let named = insert(&store, "b", volume, vec![this(held)], terms(later(59))).await;
    assert!(matches!(named, Err(StoreError::PortRests { until, .. }) if until == later(60)));
    let delete = store.write("delete", move |tx| tx.delete_port(held, later(59))).await;
    assert!(matches!(delete, Err(StoreError::PortRests { .. })));
    insert(&store, "a", volume, vec![this(held)], resting(later(59))).await.unwrap();
    let delete = move |tx: &Tx<'_>| tx.delete_container(&id("a"), &resting(later(59)));
    store.write("delete", delete).await.unwrap();
    insert(&store, "b", volume, vec![any()], terms(later(59 + 60))).await.unwrap();
}

#[tokio::test]
async fn neither_lightds_own_ports_nor_what_the_host_has_is_handed_out() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "127.0.0.1", 7000, 7002).await;
    let strict = |own: &str| PortTerms {
        own: [own.parse().unwrap()].into(),
        probe: |port| port.port != 7001,
        ..terms(NOW)
    };
    for own in ["127.0.0.1:7000", "0.0.0.0:7000", "[::]:7000"] {
        let named = async |port| {
            let wanted = vec![named("127.0.0.1", port)];
            insert(&store, "a", volume, wanted, strict(own)).await
        };
        assert!(matches!(named(7000).await, Err(StoreError::PortIsOwn(_))), "{own}");
        assert!(matches!(named(7001).await, Err(StoreError::PortHeld(_))));
        let wanted = lease_of(2, "a", later(9));
        let two = store.write("lease", move |tx| tx.lease_ports(&wanted, &strict(own))).await;
        assert!(matches!(two, Err(StoreError::NoFreePort { found: 1, .. })));
    }
    let other = insert(&store, "a", volume, vec![any()], strict("127.0.0.2:7000")).await.unwrap();
    assert_ne!(other[0].host.port, 7001);
    let ip = "0.0.0.0".parse().unwrap();
    let terms = PortTerms { own: ["127.0.0.1:6999".parse().unwrap()].into(), ..terms(NOW) };
    let add = move |tx: &Tx<'_>| tx.add_ports(ip, 6998..=6999, Protocol::Tcp, &terms);
    assert!(matches!(store.write("add", add).await, Err(StoreError::PortIsOwn(_))));
}

#[tokio::test]
async fn a_rebind_is_undone_although_its_old_port_was_marked_meanwhile() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7001).await;
    let (old, new) = (tcp("0.0.0.0", 7000), tcp("0.0.0.0", 7001));
    insert(&store, "a", volume, vec![this(old)], terms(NOW)).await.unwrap();
    let bind = |port: HostPort| {
        // Its own workload listens there, for all that the probe knows.
        let terms = PortTerms { probe: |port| port.port == 7001, ..terms(NOW) };
        move |tx: &Tx<'_>| tx.rebind_ports(&id("a"), &vec![this(port)].into(), &terms).map(drop)
    };
    store.write("rebind", bind(new)).await.unwrap();
    let mark = Mark { in_use: true, ..Mark::default() };
    store.write("mark", move |tx| tx.mark_port(old, &mark, NOW)).await.unwrap();
    store.write("undo", bind(old)).await.unwrap();
    store.write("release", |tx| tx.release_kept_ports(&id("a"), None)).await.unwrap();
    assert_eq!(port(&store, old, NOW).await.container, Some(id("a")));
    assert!(!port(&store, new, NOW).await.in_use());
}

#[tokio::test]
async fn what_others_publish_is_added_or_kept_from_being_handed_out() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7002).await;
    insert(&store, "a", volume, vec![named("0.0.0.0", 7001)], terms(NOW)).await.unwrap();
    let import = |ip: &'static str, port| {
        let store = store.clone();
        async move {
            let import = move |tx: &Tx<'_>| tx.import_port(tcp(ip, port), "by lightd-old", NOW);
            store.write("import", import).await.unwrap()
        }
    };
    assert_eq!(import("0.0.0.0", 6000).await, Imported::Added);
    assert_eq!(import("0.0.0.0", 6000).await, Imported::Known);
    // Where a wildcard of the pool covers it, that one is kept.
    assert_eq!(import("127.0.0.1", 7000).await, Imported::Marked);
    assert_eq!(import("0.0.0.0", 7001).await, Imported::Known);
    let marked = port(&store, tcp("0.0.0.0", 7000), NOW).await;
    assert_eq!(marked.note.as_deref(), Some("by lightd-old"));
    let left = insert(&store, "b", volume, vec![any()], terms(NOW)).await.unwrap();
    assert_eq!(left[0].host.port, 7002);
}

#[tokio::test]
async fn a_list_is_read_in_pages_and_filtered() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "127.0.0.1", 7000, 7004).await;
    add_ports(&store, "127.0.0.2", 7000, 7001).await;
    insert(&store, "a", volume, vec![named("127.0.0.1", 7003)], terms(NOW)).await.unwrap();
    let list = async |filter: PortFilter| {
        store.read("list", move |rx| rx.ports(&filter, NOW)).await.unwrap()
    };
    let (mut after, mut all) = (None, Vec::new());
    loop {
        let page = list(PortFilter { after, limit: Some(3), ..PortFilter::default() }).await;
        let Some(last) = page.last() else { break };
        after = Some(last.host);
        all.extend(page.into_iter().map(|port| port.host));
    }
    assert_eq!(all.len(), 7);
    assert!(all.is_sorted_by_key(|port| (port.ip, port.port)), "{all:?}");
    let of_a = PortFilter { container: Some(id("a")), ..PortFilter::default() };
    assert_eq!(list(of_a).await[0].host, tcp("127.0.0.1", 7003));
    let ip = Some("127.0.0.2".parse().unwrap());
    assert_eq!(list(PortFilter { ip, ..PortFilter::default() }).await.len(), 2);
    let udp = PortFilter { protocol: Some(Protocol::Udp), ..PortFilter::default() };
    assert!(list(udp).await.is_empty());
    let used = PortFilter { in_use: Some(true), ..PortFilter::default() };
    assert_eq!(list(used).await.len(), 1);
}

#[tokio::test]
async fn the_host_is_asked_before_a_port_is_chosen() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7099).await;
    let only_7003 = || PortTerms { probe: |port| port.port == 7003, ..terms(NOW) };
    let ports = insert(&store, "a", volume, vec![any()], only_7003()).await.unwrap();
    assert_eq!(ports[0].host.port, 7003);
    let none = insert(&store, "b", volume, vec![any()], only_7003()).await;
    assert!(matches!(none, Err(StoreError::NoFreePort { .. })));
}

#[test]
fn a_store_of_before_keeps_its_pool_holders_and_leases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lightd.db");
    let old = Connection::open(&path).unwrap();
    for step in [
        include_str!("migrations/0001.sql"),
        include_str!("migrations/0002.sql"),
        include_str!("migrations/0003.sql"),
    ] {
        old.execute_batch(step).unwrap();
    }
    let lease = Uuid::new_v4();
    old.execute_batch(&format!(
        "INSERT INTO ports (ip, port, protocol, marked_in_use) VALUES ('0.0.0.0', 1, 'tcp', 1);
         INSERT INTO ports (ip, port, protocol) VALUES ('::1', 2, 'udp');
         INSERT INTO ports (ip, port, protocol, lease_id, lease_until)
            VALUES ('0.0.0.0', 3, 'tcp', '{lease}', {});
         PRAGMA user_version = 3;",
        later(30).0
    ))
    .unwrap();
    drop(old);
    let store = Store::open(&path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (ports, lease) = runtime.block_on(async {
        let read = move |rx: &Read<'_>| {
            Ok((rx.ports(&PortFilter::default(), NOW)?, rx.lease(lease, NOW)?))
        };
        store.read("look", read).await.unwrap()
    });
    let shown: Vec<_> = ports.iter().map(|port| (port.host.port, port.in_use())).collect();
    assert_eq!(shown, [(1, true), (3, true), (2, false)]);
    assert_eq!((lease.ports[0].port, lease.expires_at), (3, later(30)));
}
