use std::sync::Arc;

use super::bindings::PortRequest;
use super::containers::ContainerFilter;
use super::ports::{Mark, NotDeleted, PortFilter};
use super::testing::*;
use super::volumes::VolumeRow;
use super::*;
use crate::domain::ids::VolumeId;
use crate::domain::panel_update::PanelUpdate;
use crate::domain::spec::{PortBinding, Protocol};

async fn insert(
    store: &Store,
    name: &str,
    volume: crate::domain::ids::VolumeId,
    ports: &[PortRequest],
) -> Result<Vec<PortBinding>, StoreError> {
    let new = new_container(name, volume, ports);
    store.write("insert", move |tx| tx.insert_container(&new, &terms(NOW))).await
}

fn mark(in_use: bool) -> Mark {
    Mark { in_use, ..Mark::default() }
}

async fn in_use(store: &Store) -> Vec<u16> {
    let filter = PortFilter { in_use: Some(true), ..PortFilter::default() };
    let ports = store.read("list", move |rx| rx.ports(&filter, NOW)).await.unwrap();
    ports.into_iter().map(|port| port.host.port).collect()
}

#[tokio::test]
async fn a_store_keeps_its_node_id_and_is_private() {
    use std::os::unix::fs::MetadataExt;
    let (folder, store) = open();
    let (path, id) = (folder.path().join("lightd.db"), store.node_id());
    add_volume(&store).await;
    for name in ["lightd.db", "lightd.db-wal"] {
        let mode = std::fs::metadata(folder.path().join(name)).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
    assert!(matches!(Store::open(&path), Err(StoreError::Locked { .. })));
    store.close();
    assert!(matches!(store.write("x", |_| Ok(())).await, Err(StoreError::Closed)));
    drop(store);
    let again = Store::open(&path).unwrap();
    assert_eq!(again.node_id(), id);
    assert_eq!(again.read("list", |rx| rx.volumes()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (folder, store) = open();
    let path = folder.path().join("lightd.db");
    store.close();
    drop(store);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn a_failed_or_panicked_closure_changes_nothing_and_the_writer_lives() {
    let (_folder, store) = open();
    let bad = store
        .write("fail", |tx| {
            tx.add_ports("127.0.0.1".parse().unwrap(), 1..=3, Protocol::Tcp, &terms(NOW))?;
            Err::<(), _>(StoreError::NoSuchToken)
        })
        .await;
    assert!(matches!(bad, Err(StoreError::NoSuchToken)));
    let panicked = store
        .write("panic", |tx| {
            tx.add_ports("127.0.0.1".parse().unwrap(), 1..=3, Protocol::Tcp, &terms(NOW))?;
            if tx.container_exists(&id("x"))? { Ok(()) } else { panic!("on purpose") }
        })
        .await;
    assert!(matches!(panicked, Err(StoreError::Panicked { op: "panic" })));
    let ports = store.read("list", |rx| rx.ports(&PortFilter::default(), NOW)).await.unwrap();
    assert_eq!(ports, []);
}

#[tokio::test]
async fn a_full_queue_is_busy_and_not_a_wait() {
    let (_folder, store) = open();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (begun_in, begun) = tokio::sync::oneshot::channel();
    let blocker = store.write("block", move |_| {
        begun_in.send(()).unwrap();
        held.recv().unwrap();
        Ok(())
    });
    let mut blocker = Box::pin(blocker);
    tokio::select! { _ = &mut blocker => panic!("not blocked"), it = begun => it.unwrap() }
    let mut waiting = Vec::new();
    let busy = loop {
        let mut write = Box::pin(store.write("wait", |_| Ok(())));
        match futures_util::poll!(&mut write) {
            std::task::Poll::Ready(result) => break result,
            std::task::Poll::Pending => waiting.push(write),
        }
        assert!(waiting.len() <= 1000, "the queue has no end");
    };
    assert!(matches!(busy, Err(StoreError::Busy)));
    // What has happened is noted all the same.
    let mut done = Box::pin(store.write_done("note", |tx| tx.set_meta("done", "x")));
    assert!(futures_util::poll!(&mut done).is_pending());
    release.send(()).unwrap();
    blocker.await.unwrap();
    done.await.unwrap();
    for write in waiting {
        write.await.unwrap();
    }
}

#[tokio::test]
async fn who_shares_a_transaction_that_found_no_room_is_told_so_and_nothing_of_it_stays() {
    let (_folder, store) = open();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (begun_in, begun) = tokio::sync::oneshot::channel();
    let mut blocker = Box::pin(store.write("block", move |_| {
        begun_in.send(()).unwrap();
        held.recv().unwrap();
        Ok(())
    }));
    tokio::select! { _ = &mut blocker => panic!("not blocked"), it = begun => it.unwrap() }
    let before = store.write("before", |tx| tx.set_meta("small", "x"));
    let too_much = store.write("too much", |tx| {
        // No more pages than there are.
        tx.connection.pragma_update(None, "max_page_count", 1)?;
        tx.set_meta("large", &"x".repeat(1 << 20))
    });
    let (mut before, mut too_much) = (Box::pin(before), Box::pin(too_much));
    assert!(futures_util::poll!(&mut before).is_pending());
    assert!(futures_util::poll!(&mut too_much).is_pending());
    release.send(()).unwrap();
    blocker.await.unwrap();
    for (refused, which) in [(before.await, "before"), (too_much.await, "too much")] {
        assert!(
            matches!(&refused, Err(StoreError::NoSpace { op, .. }) if *op == which),
            "{which}: {refused:?}"
        );
    }
    let again = store.write("again", |tx| {
        assert_eq!((tx.meta("small")?, tx.meta("large")?), (None, None));
        tx.connection.pragma_update(None, "max_page_count", 1 << 20)?;
        tx.set_meta("large", &"x".repeat(1 << 20))
    });
    again.await.unwrap();
}

#[tokio::test]
async fn a_container_comes_back_as_it_was_stored() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7002).await;
    let asked = [named("0.0.0.0", 7002), named("0.0.0.0", 7000)];
    insert(&store, "a", volume, &asked).await.unwrap();
    let row = store.read("get", |rx| rx.container(&id("a"))).await.unwrap();
    let new = new_container("a", volume, &[]);
    assert_eq!((row.spec, row.state), (new.spec.clone(), new.state));
    assert_eq!(row.registry_auth_sealed, Some(vec![1, 2, 3]));
    let ports: Vec<u16> = row.ports.iter().map(|binding| binding.host.port).collect();
    assert_eq!(ports, [7002, 7000], "in the order asked for");

    let mut spec = new.spec;
    spec.startup_command = "false".to_owned();
    let mut state = state();
    state.phase = "running".to_owned();
    state.docker_id = Some("abc".to_owned());
    let saved = (spec.clone(), state.clone());
    store
        .write("save", move |tx| {
            tx.update_spec(&id("a"), &spec, later(1))?;
            tx.save_state(&id("a"), &state, later(2))?;
            tx.enqueue_update(&id("a"), &PanelUpdate::Ready, NOW)
        })
        .await
        .unwrap();
    let row = store.read("get", |rx| rx.container(&id("a"))).await.unwrap();
    assert_eq!((row.spec, row.state), saved);
    assert_eq!((row.created_at, row.updated_at), (NOW, later(2)));
    assert_eq!(store.read("depth", |rx| rx.outbox_depth()).await.unwrap().waiting, 1);
    let filter = ContainerFilter { phase: Some("running".to_owned()), ..Default::default() };
    assert_eq!(store.read("list", move |rx| rx.containers(&filter)).await.unwrap().len(), 1);
    let filter = ContainerFilter { after: Some(id("a")), ..Default::default() };
    assert_eq!(store.read("list", move |rx| rx.containers(&filter)).await.unwrap().len(), 0);
}

#[tokio::test]
async fn what_a_container_needs_is_checked_with_its_insertion() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7009).await;
    let stranger = crate::domain::ids::VolumeId::random();
    let refused = insert(&store, "a", stranger, &[]).await;
    assert!(matches!(refused, Err(StoreError::NoSuchVolume(_))));
    insert(&store, "a", volume, &[named("0.0.0.0", 7000)]).await.unwrap();
    let refused = insert(&store, "a", volume, &[]).await;
    assert!(matches!(refused, Err(StoreError::ContainerExists(_))));
    let refused = insert(&store, "b", volume, &[any(), named("0.0.0.0", 7000)]).await;
    assert!(matches!(refused, Err(StoreError::PortInUse { by, .. }) if by == id("a")));
    let refused = insert(&store, "b", volume, &[named("0.0.0.0", 1)]).await;
    assert!(matches!(refused, Err(StoreError::PortNotInPool(_))));
    let refused = insert(&store, "b", volume, &[named("0.0.0.0", 7001); 2]).await;
    assert!(matches!(refused, Err(StoreError::PortTwice(_))));
    store.write("mark", |tx| tx.mark_port(tcp("0.0.0.0", 7002), &mark(true), NOW)).await.unwrap();
    let refused = insert(&store, "b", volume, &[named("0.0.0.0", 7002)]).await;
    assert!(matches!(refused, Err(StoreError::PortMarked(_))));
    assert_eq!(in_use(&store).await, [7000, 7002]);
    assert!(!store.read("get", |rx| rx.container_exists(&id("b"))).await.unwrap());
    let refused = store.write("delete", move |tx| tx.delete_volume(volume)).await;
    assert!(matches!(refused, Err(StoreError::VolumeInUse { by, .. }) if by == id("a")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once_for_five_ports_have_five_winners() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7004).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50_u16 {
        let store = store.clone();
        tasks.spawn(async move {
            let port = if n % 2 == 0 { named("0.0.0.0", 7000 + n % 5) } else { any() };
            insert(&store, &format!("c{n}"), volume, &[port]).await
        });
    }
    let mut won: Vec<u16> = Vec::new();
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            Ok(ports) => won.push(ports[0].host.port),
            Err(StoreError::PortInUse { .. } | StoreError::NoFreePort { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    won.sort_unstable();
    assert_eq!(won, [7000, 7001, 7002, 7003, 7004]);
    let rows = store.read("list", |rx| rx.containers(&ContainerFilter::default())).await.unwrap();
    assert_eq!(rows.len(), 5);
}

#[tokio::test]
async fn a_deleted_container_holds_nothing() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7001).await;
    insert(&store, "a", volume, &[any()]).await.unwrap();
    let rebind = |tx: &Tx<'_>| tx.rebind_ports(&id("a"), &vec![any()].into(), &terms(NOW));
    store.write("rebind", rebind).await.unwrap();
    assert_eq!(in_use(&store).await.len(), 2, "the old one is kept too");
    store.write("delete", |tx| tx.delete_container(&id("a"), &terms(NOW))).await.unwrap();
    assert_eq!(in_use(&store).await, [] as [u16; 0]);
    let again = store.write("delete", |tx| tx.delete_container(&id("a"), &terms(NOW))).await;
    assert!(matches!(again, Err(StoreError::NoSuchContainer(_))));
    store.write("delete", move |tx| tx.delete_volume(volume)).await.unwrap();
}

#[tokio::test]
async fn a_volumes_folder_is_one_to_remove_while_no_row_stands_for_it() {
    let (_folder, store) = open();
    let left = async || {
        store.read("look", |rx| rx.volume_folders_to_remove()).await.expect("a list").len()
    };
    let id = VolumeId::random();
    store.write("announce", move |tx| tx.announce_volume_folder(id)).await.unwrap();
    assert_eq!(left().await, 1);
    let row = VolumeRow { id, name: None, size_bytes: None, backing: None, created_at: NOW };
    store.write("insert", move |tx| tx.insert_volume(&row)).await.unwrap();
    assert_eq!(left().await, 0);
    store.write("delete", move |tx| tx.delete_volume(id)).await.unwrap();
    assert_eq!(left().await, 1);
    let again = store.write("delete", move |tx| tx.delete_volume(id)).await;
    assert!(matches!(again, Err(StoreError::NoSuchVolume(_))));
    store.write("forget", move |tx| tx.forget_volume_folder(id)).await.unwrap();
    assert_eq!(left().await, 0);
}

#[tokio::test]
async fn a_rebind_can_be_finished_or_undone() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7002).await;
    insert(&store, "a", volume, &[named("0.0.0.0", 7000)]).await.unwrap();
    insert(&store, "b", volume, &[named("0.0.0.0", 7001)]).await.unwrap();

    let to = |port: u16| {
        move |tx: &Tx<'_>| {
            tx.rebind_ports(&id("a"), &vec![named("0.0.0.0", port)].into(), &terms(NOW))
        }
    };
    let taken = store.write("rebind", to(7001)).await;
    assert!(matches!(taken, Err(StoreError::PortInUse { .. })));
    assert_eq!(in_use(&store).await, [7000, 7001]);

    let rebound = store.write("rebind", to(7002)).await.unwrap();
    let thief = insert(&store, "c", volume, &[named("0.0.0.0", 7000)]).await;
    assert!(matches!(thief, Err(StoreError::PortInUse { .. })), "kept for an undo");
    let old: Vec<PortRequest> = rebound.old.iter().map(|&binding| binding.into()).collect();
    store
        .write("undo", move |tx| {
            tx.rebind_ports(&id("a"), &old.into(), &terms(NOW))?;
            tx.release_kept_ports(&id("a"), None)
        })
        .await
        .unwrap();
    assert_eq!(in_use(&store).await, [7000, 7001]);

    store.write("rebind", to(7002)).await.unwrap();
    store.write("finish", |tx| tx.release_kept_ports(&id("a"), None)).await.unwrap();
    assert_eq!(in_use(&store).await, [7001, 7002]);
    let row = store.read("get", |rx| rx.container(&id("a"))).await.unwrap();
    assert_eq!(row.ports.iter().map(|p| p.host.port).collect::<Vec<_>>(), [7002]);
}

#[tokio::test]
async fn addresses_that_meet_on_the_host_exclude_each_other() {
    let (_folder, store) = open();
    let add = |ip: &'static str, port: u16, protocol| {
        let store = store.clone();
        async move {
            let ip = ip.parse().unwrap();
            let add = move |tx: &Tx<'_>| tx.add_ports(ip, port..=port, protocol, &terms(NOW));
            store.write("add", add).await
        }
    };
    use Protocol::{Tcp, Udp};
    add("0.0.0.0", 1, Tcp).await.unwrap();
    let again = add("0.0.0.0", 1, Tcp).await.unwrap_err();
    assert_eq!(again.to_string(), "Port already exists in pool");
    for clash in ["127.0.0.1", "::", "::ffff:127.0.0.1"] {
        let refused = add(clash, 1, Tcp).await;
        assert!(matches!(refused, Err(StoreError::PortOverlaps { .. })), "{clash}");
    }
    add("0.0.0.0", 1, Udp).await.unwrap();
    add("::1", 1, Tcp).await.unwrap();
    add("127.0.0.1", 2, Tcp).await.unwrap();
    add("127.0.0.2", 2, Tcp).await.unwrap();
    for clash in ["0.0.0.0", "::"] {
        assert!(matches!(add(clash, 2, Tcp).await, Err(StoreError::PortOverlaps { .. })));
    }
    let range = |tx: &Tx<'_>| tx.add_ports("127.0.0.1".parse().unwrap(), 1..=9, Tcp, &terms(NOW));
    let range = store.write("add", range).await;
    assert!(matches!(range, Err(StoreError::PortOverlaps { .. })), "all of a range or nothing");
    let all = store.read("list", |rx| rx.ports(&PortFilter::default(), NOW)).await.unwrap();
    assert_eq!(all.len(), 5);
}

#[tokio::test]
async fn marks_and_deletions_respect_the_holder() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    add_ports(&store, "0.0.0.0", 7000, 7002).await;
    insert(&store, "a", volume, &[named("0.0.0.0", 7000)]).await.unwrap();
    let held = tcp("0.0.0.0", 7000);
    let unmark = store.write("mark", move |tx| tx.mark_port(held, &mark(false), NOW)).await;
    assert!(matches!(unmark, Err(StoreError::PortInUse { .. })));
    let delete = store.write("delete", move |tx| tx.delete_port(held, NOW)).await;
    assert!(matches!(delete, Err(StoreError::PortInUse { .. })));
    let marked = tcp("0.0.0.0", 7001);
    store.write("mark", move |tx| tx.mark_port(marked, &mark(true), NOW)).await.unwrap();
    let all = [held, marked, tcp("0.0.0.0", 7002), tcp("0.0.0.0", 1)];
    let bulk = store.write("delete", move |tx| tx.delete_ports(&all, NOW)).await.unwrap();
    assert_eq!(bulk.deleted, [tcp("0.0.0.0", 7002)]);
    let kept: Vec<NotDeleted> = bulk.kept.into_iter().map(|(_, why)| why).collect();
    assert_eq!(kept, [NotDeleted::InUse, NotDeleted::InUse, NotDeleted::NotInPool]);
}

#[tokio::test]
async fn the_outbox_says_when_it_grew_and_only_then() {
    let (_folder, store) = open();
    let grew: Arc<Notify> = store.outbox_grew();
    store.write("none", |_| Ok(())).await.unwrap();
    let failed = store
        .write("fail", |tx| {
            tx.enqueue_update(&id("a"), &PanelUpdate::Ready, NOW)?;
            Err::<(), _>(StoreError::NoSuchToken)
        })
        .await;
    assert!(failed.is_err());
    let mut waiting = Box::pin(grew.notified());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    store.write("grow", |tx| tx.enqueue_update(&id("a"), &PanelUpdate::Ready, NOW)).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(5), waiting).await;
    told.expect("not told within 5 s");
}
