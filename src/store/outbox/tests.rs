use std::collections::HashSet;

use super::*;
use crate::domain::panel_update::PowerState;
use crate::store::testing::{NOW, id, later, open};
use crate::store::{Read, Store};

const NOW_MS: i64 = NOW.0 * 1000;
const ALL: HowMany = HowMany { servers: 99, rows_each: 99 };

async fn enqueue(store: &Store, server: &str, updates: &[PanelUpdate]) {
    let (server, updates) = (id(server), updates.to_vec());
    let enqueue = move |tx: &Tx<'_>| {
        updates.iter().try_for_each(|update| tx.enqueue_update(&server, update, NOW))
    };
    store.write("enqueue", enqueue).await.unwrap();
}

async fn read<T: Send + 'static>(
    store: &Store,
    read: impl FnOnce(&Read<'_>) -> Result<T, StoreError> + Send + 'static,
) -> T {
    store.read("test", read).await.unwrap()
}

/// Server and numbers of what is due, and when the next is.
async fn due(store: &Store, now_ms: i64, busy: &[&str]) -> (Vec<(String, Vec<i64>)>, Option<i64>) {
    let busy: HashSet<_> = busy.iter().map(|server| id(server)).collect();
    let due = read(store, move |rx| rx.outbox_due(now_ms, &busy, ALL)).await;
    let batch = |rows: Vec<OutboxRow>| {
        let numbers = rows.iter().map(|row| row.server_sequence).collect();
        (rows[0].server.to_string(), numbers)
    };
    (due.batches.into_iter().map(batch).collect(), due.next_due_ms)
}

async fn entry(store: &Store, sequence: i64) -> OutboxEntry {
    read(store, move |rx| rx.outbox_entry(sequence)).await
}

async fn note(store: &Store, server: &str, fates: Vec<(i64, Fate)>) {
    let attempts = [Attempts { server: id(server), fates }];
    store.write("note", move |tx| tx.note_attempts(&attempts, NOW_MS)).await.unwrap();
}

fn refused() -> Fate {
    Fate::Refused { reason: "404: no such server".to_owned() }
}

fn failed(seconds: i64) -> Fate {
    later_by(seconds, Asked::No)
}

fn later_by(seconds: i64, asked: Asked) -> Fate {
    let due_ms = NOW_MS + seconds * 1000;
    Fate::Later { error: "the panel answers 500".to_owned(), due_ms, asked }
}

async fn hurry(store: &Store, asked_until_ms: i64) {
    store.write("hurry", move |tx| tx.hurry_outbox(asked_until_ms)).await.unwrap();
}

async fn depth(store: &Store) -> (u64, u64) {
    let depth = read(store, |rx| rx.outbox_depth()).await;
    (depth.waiting, depth.parked)
}

#[tokio::test]
async fn updates_are_numbered_per_server_for_ever_and_due_in_their_order() {
    let (_folder, store) = open();
    enqueue(&store, "a", &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    enqueue(&store, "b", &[PanelUpdate::Installing]).await;
    let all = vec![("a".to_owned(), vec![1, 2]), ("b".to_owned(), vec![1])];
    assert_eq!(due(&store, NOW_MS, &[]).await, (all, None));
    assert_eq!(due(&store, NOW_MS, &["a"]).await.0, [("b".to_owned(), vec![1])]);

    note(&store, "a", vec![(1, Fate::Delivered), (2, Fate::Delivered)]).await;
    assert_eq!(due(&store, NOW_MS, &[]).await.0, [("b".to_owned(), vec![1])]);
    enqueue(&store, "a", &[PanelUpdate::Installing]).await;
    assert_eq!(due(&store, NOW_MS, &["b"]).await.0, [("a".to_owned(), vec![3])]);
}

#[tokio::test]
async fn what_failed_holds_up_what_follows_until_it_is_due() {
    let (_folder, store) = open();
    enqueue(&store, "a", &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    note(&store, "a", vec![(1, failed(60))]).await;
    assert_eq!(due(&store, NOW_MS, &[]).await, (vec![], Some(NOW_MS + 60_000)));
    // A further update does not make the first one due.
    enqueue(&store, "a", &[PanelUpdate::Installing]).await;
    assert_eq!(due(&store, NOW_MS + 59_999, &[]).await.0, []);
    let (batches, _) = due(&store, NOW_MS + 60_000, &[]).await;
    assert_eq!(batches, [("a".to_owned(), vec![1, 2, 3])]);
    let first = entry(&store, 1).await;
    assert_eq!((first.row.attempts, first.due_at), (1, Some(later(60))));
    assert_eq!(first.last_error.as_deref(), Some("the panel answers 500"));
    hurry(&store, 0).await;
    assert_eq!(due(&store, 0, &[]).await.0.len(), 1);
}

#[tokio::test]
async fn a_pause_that_the_panel_asked_for_is_kept_when_there_is_a_hurry() {
    let (_folder, store) = open();
    for server in ["a", "b"] {
        enqueue(&store, server, &[PanelUpdate::Installing]).await;
    }
    note(&store, "a", vec![(1, later_by(600, Asked::OfServer))]).await;
    note(&store, "b", vec![(2, later_by(600, Asked::No))]).await;
    hurry(&store, NOW_MS + 600_000).await;
    let of_b = vec![("b".to_owned(), vec![1])];
    assert_eq!(due(&store, NOW_MS, &[]).await, (of_b, Some(NOW_MS + 600_000)));
    // One that ends later than any can was stored before the clock was set back.
    hurry(&store, NOW_MS + 599_999).await;
    assert_eq!(due(&store, NOW_MS, &[]).await.0.len(), 2);
    // By hand it is tried at once, and what comes of that counts.
    note(&store, "a", vec![(1, later_by(600, Asked::OfServer))]).await;
    store.write("retry", |tx| tx.retry_update(1)).await.unwrap();
    assert_eq!(due(&store, NOW_MS, &[]).await.0.len(), 2);
    note(&store, "a", vec![(1, later_by(600, Asked::No))]).await;
    hurry(&store, i64::MAX).await;
    assert_eq!(due(&store, NOW_MS, &[]).await.0.len(), 2);
}

#[tokio::test]
async fn what_is_parked_lets_the_next_go_and_comes_back_in_its_place() {
    let (_folder, store) = open();
    enqueue(&store, "a", &[PanelUpdate::Installing, PanelUpdate::Ready, PanelUpdate::Ready]).await;
    note(&store, "a", vec![(1, refused()), (2, refused())]).await;
    assert_eq!(depth(&store).await, (1, 2));
    assert_eq!(due(&store, NOW_MS, &[]).await.0, [("a".to_owned(), vec![3])]);
    let parked = entry(&store, 2).await.parked.unwrap();
    assert_eq!((parked.reason.as_str(), parked.at), ("404: no such server", Some(NOW)));
    store.write("retry", |tx| tx.retry_update(2)).await.unwrap();
    assert_eq!(due(&store, NOW_MS, &[]).await.0, [("a".to_owned(), vec![2, 3])]);
    let none = store.write("retry", |tx| tx.retry_update(99)).await;
    assert!(matches!(none, Err(StoreError::NoSuchUpdate(99))), "{none:?}");
}

#[tokio::test]
async fn a_retry_of_all_takes_in_what_is_parked_and_what_waits() {
    let (_folder, store) = open();
    for server in ["a", "b"] {
        enqueue(&store, server, &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    }
    note(&store, "a", vec![(1, refused()), (2, failed(600))]).await;
    note(&store, "b", vec![(3, refused()), (4, refused())]).await;
    let retried = store.write("retry", |tx| tx.retry_updates(Some(&id("a")))).await.unwrap();
    assert_eq!(retried, 2);
    assert_eq!(due(&store, 0, &[]).await.0, [("a".to_owned(), vec![1, 2])]);
    assert_eq!(store.write("retry", |tx| tx.retry_updates(None)).await.unwrap(), 4);
    assert_eq!(due(&store, 0, &[]).await.0.len(), 2);
}

#[tokio::test]
async fn what_is_dropped_is_gone_and_holds_up_nothing() {
    let (_folder, store) = open();
    enqueue(&store, "a", &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    enqueue(&store, "b", &[PanelUpdate::Ready]).await;
    note(&store, "a", vec![(1, failed(600))]).await;
    note(&store, "b", vec![(3, refused())]).await;
    store.write("drop", |tx| tx.drop_update(1)).await.unwrap();
    assert_eq!(due(&store, NOW_MS, &[]).await, (vec![("a".to_owned(), vec![2])], None));
    note(&store, "a", vec![(1, failed(600))]).await;
    assert_eq!(due(&store, NOW_MS, &[]).await.0.len(), 1, "nor does what was under way then");
    store.write("drop", |tx| tx.drop_update(2)).await.unwrap();
    assert_eq!(due(&store, NOW_MS, &[]).await, (vec![], None), "nothing waits, so nothing is due");
    assert_eq!(store.write("drop", |tx| tx.drop_parked(Some(&id("a")))).await.unwrap(), 0);
    assert_eq!(store.write("drop", |tx| tx.drop_parked(None)).await.unwrap(), 1);
    assert_eq!(depth(&store).await, (0, 0));
}

#[tokio::test]
async fn the_list_is_in_order_and_filtered_and_paged() {
    let (_folder, store) = open();
    for server in ["a", "b", "a"] {
        enqueue(&store, server, &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    }
    note(&store, "a", vec![(1, refused()), (2, Fate::Delivered)]).await;
    let list = async |filter: OutboxFilter, limit| {
        let found = read(&store, move |rx| rx.outbox(&filter, limit)).await;
        found.iter().map(|entry| entry.row.sequence).collect::<Vec<_>>()
    };
    let filter = |is_parked, server: Option<&str>, after| OutboxFilter {
        is_parked,
        server: server.map(id),
        after,
    };
    assert_eq!(list(filter(None, None, None), 9).await, [1, 3, 4, 5, 6]);
    assert_eq!(list(filter(None, None, Some(3)), 2).await, [4, 5]);
    assert_eq!(list(filter(Some(true), None, None), 9).await, [1]);
    assert_eq!(list(filter(Some(false), Some("a"), Some(1)), 9).await, [5, 6]);
    assert_eq!(list(filter(Some(true), Some("b"), None), 9).await, [0; 0]);
}

#[tokio::test]
async fn a_load_takes_so_much_and_says_that_there_is_more() {
    let (_folder, store) = open();
    for server in ["a", "b", "c"] {
        enqueue(&store, server, &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    }
    let few = HowMany { servers: 2, rows_each: 1 };
    let found = read(&store, move |rx| rx.outbox_due(NOW_MS, &HashSet::new(), few)).await;
    assert!(found.is_more);
    assert_eq!(found.batches.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
    // Who was served goes behind those that wait.
    note(&store, "a", vec![(1, Fate::Delivered)]).await;
    note(&store, "b", vec![(3, failed(-1))]).await;
    let order: Vec<String> =
        due(&store, NOW_MS, &[]).await.0.into_iter().map(|(server, _)| server).collect();
    assert_eq!(order, ["b", "a", "c"]);
}

#[tokio::test]
async fn power_states_are_thinned_out_and_results_are_not() {
    let (_folder, store) = open();
    enqueue(&store, "a", &[PanelUpdate::Installing]).await;
    enqueue(&store, "a", &vec![PanelUpdate::Power(PowerState::Running); 300]).await;
    assert_eq!(depth(&store).await, (257, 0));
    let (batches, _) = due(&store, NOW_MS, &[]).await;
    assert_eq!(batches[0].1[..2], [1, 46]);
}

#[tokio::test]
async fn of_what_is_parked_only_old_power_states_make_room() {
    let (_folder, store) = open();
    enqueue(&store, "a", &vec![PanelUpdate::Ready; 1200]).await;
    note(&store, "a", (1..=1200).map(|sequence| (sequence, refused())).collect()).await;
    let mut dropped = 0;
    for round in 0..5 {
        enqueue(&store, "a", &vec![PanelUpdate::Power(PowerState::Running); 250]).await;
        let first = 1201 + round * 250;
        let fates = (first..first + 250).map(|sequence| (sequence, refused())).collect();
        let attempts = [Attempts { server: id("a"), fates }];
        let note = move |tx: &Tx<'_>| tx.note_attempts(&attempts, NOW_MS);
        dropped += store.write("note", note).await.unwrap();
    }
    assert_eq!((depth(&store).await, dropped), ((0, 1200 + 1000), 250));
    assert!(entry(&store, 1).await.parked.is_some(), "a result is never dropped by itself");
    let oldest = read(&store, |rx| Ok(rx.outbox_entry(1450).is_err())).await;
    assert!(oldest, "the oldest power states are");
}

#[tokio::test]
async fn a_pause_for_all_that_is_over_says_no_more_when_anything_is_due() {
    let (_folder, store) = open();
    enqueue(&store, "a", &[PanelUpdate::Ready]).await;
    let until_ms = NOW_MS + 60_000;
    let fate = Fate::Later { error: "503".to_owned(), due_ms: until_ms, asked: Asked::OfAll };
    note(&store, "a", vec![(1, fate)]).await;
    enqueue(&store, "b", &[PanelUpdate::Ready]).await;
    let asked = Some(UnixSeconds::from_ms(until_ms));
    assert_eq!(entry(&store, 2).await.due_at, asked);
    let attempts = [Attempts { server: id("a"), fates: vec![(1, Fate::Delivered)] }];
    let note = move |tx: &Tx<'_>| tx.note_attempts(&attempts, until_ms);
    store.write("note", note).await.unwrap();
    let at_once = Some(UnixSeconds::from_ms(NOW_MS));
    assert_eq!(entry(&store, 2).await.due_at, at_once);
    let depth = read(&store, |rx| rx.outbox_depth()).await;
    assert_eq!(depth.next_attempt_at, at_once);
}
