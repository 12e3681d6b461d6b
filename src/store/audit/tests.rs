use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::domain::client::ClientAddress;
use crate::domain::units::UnixSeconds;
use crate::store::testing::{NOW, add_volume, id, later, new_container, open, tcp, terms};

fn from(address: &str) -> Actor {
    Actor {
        who: Who::Node,
        way: crate::domain::audit::Way::Rest,
        address: ClientAddress::parse(address),
        request_id: Some("r-1".to_owned()),
    }
}

async fn record(store: &Store, act: Act, now: UnixSeconds) {
    store.write("test", move |tx| tx.record(&act, now)).await.unwrap();
}

async fn all(store: &Store) -> Vec<AuditRow> {
    rows(store, AuditFilter::default()).await
}

async fn rows(store: &Store, filter: AuditFilter) -> Vec<AuditRow> {
    let page = store.read("test", move |rx| rx.audit(&filter, 10_000)).await.unwrap();
    assert_eq!(page.next, None);
    page.rows
}

fn wrote(actor: Actor, volume: VolumeId, path: &str) -> Act {
    Act::new(actor, Action::FilesWrite).in_volume(volume).each("paths", [path])
}

#[tokio::test]
async fn a_row_holds_who_did_what_to_what_from_where() {
    let (_folder, store) = open();
    let token = TokenId(Uuid::from_u128(7));
    let who = Who::Token { id: token, prefix: "lightd_abcdef".to_owned() };
    let actor = Actor { who, ..from("2001:db8::1") };
    let act = Act::new(actor, Action::ContainerStart).on(&id("a")).with("reason", "x");
    record(&store, act, NOW).await;
    record(&store, Act::new(Actor::lightd(), Action::ConfigReload), later(1)).await;
    let [reload, start] = all(&store).await.try_into().unwrap();
    assert_eq!((reload.actor.as_str(), reload.way.as_str()), ("lightd", "lightd"));
    assert_eq!((reload.address, reload.request_id, reload.container), (None, None, None));
    let wanted = AuditRow {
        id: 1,
        created_at: NOW,
        last_at: NOW,
        count: 1,
        action: "container.start".to_owned(),
        actor: "token".to_owned(),
        token_id: Some(token.to_string()),
        token_prefix: Some("lightd_abcdef".to_owned()),
        way: "rest".to_owned(),
        address: Some("2001:db8::1".to_owned()),
        request_id: Some("r-1".to_owned()),
        container: Some("a".to_owned()),
        volume: None,
        details: json!({"reason": "x"}).as_object().unwrap().clone(),
    };
    assert_eq!(start, wanted);
}

#[tokio::test]
async fn a_row_and_its_change_stand_or_fall_together() {
    let (_folder, store) = open();
    let act = Act::new(Actor::lightd(), Action::PortAdd);
    let failed = store
        .write("fail", move |tx| {
            let host = tcp("127.0.0.1", 1);
            tx.add_ports(host.ip, 1..=1, host.protocol, &terms(NOW))?;
            tx.record(&act, NOW)?;
            Err::<(), _>(StoreError::NoSuchToken)
        })
        .await;
    assert!(failed.is_err());
    assert_eq!(all(&store).await, []);
}

#[tokio::test]
async fn many_writes_of_one_caller_are_counted_on_one_row_for_a_while() {
    let (_folder, store) = open();
    let (volume, other) = (add_volume(&store).await, add_volume(&store).await);
    let (mine, theirs) = (from("192.0.2.1"), from("192.0.2.2"));
    for n in 0..100 {
        record(&store, wrote(mine.clone(), volume, &format!("{n}")), NOW).await;
        record(&store, wrote(theirs.clone(), volume, "theirs"), NOW).await;
    }
    record(&store, wrote(mine.clone(), other, "x"), NOW).await;
    record(&store, wrote(mine.clone(), volume, "last"), later(COUNTED_SECONDS)).await;
    record(&store, wrote(mine.clone(), volume, "new"), later(COUNTED_SECONDS + 1)).await;
    let rows = all(&store).await;
    let counts: Vec<_> = rows.iter().rev().map(|row| (row.count, row.last_at)).collect();
    let end = later(COUNTED_SECONDS);
    assert_eq!(counts, [(101, end), (100, NOW), (1, NOW), (1, later(COUNTED_SECONDS + 1))]);
    let paths = rows[3].details["paths"].as_array().unwrap();
    assert_eq!(paths.len(), crate::domain::audit::ITEMS_MAX);
    assert_eq!((&paths[0], &paths[1]), (&json!("0"), &json!("1")));
}

#[tokio::test]
async fn what_is_said_of_a_volume_is_said_of_the_one_container_that_uses_it() {
    let (_folder, store) = open();
    let volume = add_volume(&store).await;
    let users = async || {
        record(&store, Act::new(Actor::lightd(), Action::VolumeResize).in_volume(volume), NOW)
            .await;
        all(&store).await.remove(0).container
    };
    assert_eq!(users().await, None);
    for (name, wanted) in [("a", Some("a".to_owned())), ("b", None)] {
        let new = new_container(name, volume, &[]);
        store.write("test", move |tx| tx.insert_container(&new, &terms(NOW))).await.unwrap();
        assert_eq!(users().await, wanted);
    }
    store.write("test", |tx| tx.delete_container(&id("a"), &terms(NOW))).await.unwrap();
    assert_eq!(users().await, Some("b".to_owned()));
    let kept =
        rows(&store, AuditFilter { containers: Some([id("a")].into()), ..Default::default() });
    assert_eq!(kept.await.len(), 1, "rows outlive their container");
}

#[tokio::test]
async fn rows_go_by_age_and_by_number_and_their_numbers_do_not_come_again() {
    let (_folder, store) = open();
    let acts = 2 * i64::from(FORGOTTEN_AT_ONCE) + 10;
    store
        .write("test", move |tx| {
            let act = Act::new(Actor::lightd(), Action::ConfigReload);
            (0..acts).try_for_each(|n| tx.record(&act, later(n)))
        })
        .await
        .unwrap();
    let first = store.read("test", |rx| rx.first_of_audit(5)).await.unwrap();
    assert_eq!(first, Some(acts - 4));
    assert_eq!(store.read("test", |rx| rx.first_of_audit(1 << 40)).await.unwrap(), None);
    let forget = async |oldest: UnixSeconds, first| {
        let mut rounds = 1;
        while store.write("test", move |tx| tx.forget_audit(oldest, first)).await.unwrap() {
            rounds += 1;
        }
        (rounds, all(&store).await.len())
    };
    assert_eq!(forget(later(acts - 7), None).await, (3, 7), "a little at a time");
    assert_eq!(forget(NOW, first).await, (1, 5));
    assert_eq!(forget(NOW, first).await, (1, 5));
    assert_eq!(forget(later(acts), None).await, (1, 0));
    record(&store, Act::new(Actor::lightd(), Action::ConfigReload), NOW).await;
    assert_eq!(all(&store).await[0].id, acts + 1);
}

/// What a filter lets through, said another way.
fn wants(filter: &AuditFilter, row: &AuditRow) -> bool {
    let of = |ids: &BTreeSet<ContainerId>| {
        ids.iter().any(|id| row.container.as_deref() == Some(id.as_str()))
    };
    filter.containers.as_ref().is_none_or(of)
        && (!filter.of_containers || row.container.is_some())
        && filter.volume.is_none_or(|id| row.volume == Some(id.to_string()))
        && filter.by.as_ref().is_none_or(|by| match by {
            By::Kind(kind) => row.actor == *kind,
            By::Token(id) => row.token_id == Some(id.to_string()),
            By::Prefix(prefix) => row.token_prefix.as_ref() == Some(prefix),
        })
        && filter
            .actions
            .as_ref()
            .is_none_or(|them| them.iter().any(|it| it.as_str() == row.action))
        && filter.since.is_none_or(|since| row.last_at >= since)
        && filter.until.is_none_or(|until| row.created_at < until)
        && filter.before.is_none_or(|before| row.id < before)
}

fn some_actor() -> impl Strategy<Value = Actor> {
    let token = |n: u128| Who::Token { id: TokenId(Uuid::from_u128(n)), prefix: format!("p{n}") };
    let who = prop_oneof![
        Just(Who::Lightd),
        Just(Who::Node),
        Just(Who::Anonymous),
        (0..3u128).prop_map(token)
    ];
    (who, 0..3u8).prop_map(|(who, n)| Actor { who, ..from(&format!("192.0.2.{n}")) })
}

fn some_act(volumes: [VolumeId; 2]) -> impl Strategy<Value = (Act, i64)> {
    let container = proptest::option::of("[ab]");
    let volume = proptest::option::of(proptest::sample::select(volumes.to_vec()));
    let action = proptest::sample::select(Action::ALL.to_vec());
    (some_actor(), action, container, volume, 0..3i64).prop_map(
        |(actor, action, container, volume, after)| {
            let act = Act { volume, ..Act::new(actor, action) };
            let container = container.map(|name| id(&name));
            (Act { container, ..act }, after)
        },
    )
}

fn some_filter(volumes: [VolumeId; 2]) -> impl Strategy<Value = AuditFilter> {
    let by = prop_oneof![
        proptest::sample::select(&Who::KINDS[..]).prop_map(By::Kind),
        (0..3u128).prop_map(|n| By::Token(TokenId(Uuid::from_u128(n)))),
        (0..3u128).prop_map(|n| By::Prefix(format!("p{n}"))),
    ];
    let actions = proptest::sample::select(vec!["container", "files", "port.add", "exec"]);
    let containers = proptest::sample::subsequence(vec!["a", "b"], 0..=2);
    let option = proptest::option::of::<BoxedStrategy<i64>>;
    (
        proptest::option::of(containers),
        any::<bool>(),
        proptest::option::of(proptest::sample::select(volumes.to_vec())),
        proptest::option::of(by),
        proptest::option::of(actions),
        option((0..60i64).boxed()),
        option((0..60i64).boxed()),
    )
        .prop_map(|(containers, of_containers, volume, by, actions, since, until)| {
            AuditFilter {
                containers: containers.map(|names| names.into_iter().map(id).collect()),
                of_containers,
                of_present_holders: false,
                volume,
                by,
                actions: actions.map(Action::named),
                since: since.map(later),
                until: until.map(later),
                before: None,
            }
        })
}

#[tokio::test]
async fn a_page_is_read_along_the_index_of_what_there_is_least_of() {
    let (_folder, store) = open();
    let (token, volume) = (TokenId(Uuid::from_u128(7)), VolumeId::random());
    let none = AuditFilter::default;
    let of_a = || AuditFilter { containers: Some([id("a")].into()), ..none() };
    let by = |by| AuditFilter { by: Some(by), ..none() };
    let actions = |name| AuditFilter { actions: Some(Action::named(name)), ..none() };
    for (filter, wanted) in [
        (none(), "SCAN audit"),
        (by(By::Kind("anonymous")), "audit_by_actor (actor=?)"),
        (by(By::Prefix("lightd_abcdef".to_owned())), "audit_by_prefix (token_prefix=?)"),
        (by(By::Token(token)), "audit_by_token (token_id=?)"),
        (actions("port.add"), "audit_by_action (action=?)"),
        (actions("files"), "SCAN audit"),
        (AuditFilter { before: Some(9), ..actions("port.add") }, "(action=? AND rowid<?)"),
        (AuditFilter { before: Some(9), ..none() }, "PRIMARY KEY (rowid<?)"),
        (of_a(), "audit_by_container (container=?)"),
        (AuditFilter { by: Some(By::Kind("node")), ..of_a() }, "audit_by_container"),
        (AuditFilter { actions: Some(Action::named("port.add")), ..of_a() }, "audit_by_container"),
        (AuditFilter { volume: Some(volume), ..actions("files.write") }, "audit_by_volume"),
        (AuditFilter { by: Some(By::Token(token)), ..of_a() }, "audit_by_token"),
    ] {
        let (text, values) = filter.select();
        let plan = store.read("test", move |rx| {
            let mut explain = rx.connection.prepare(&format!("EXPLAIN QUERY PLAN {text}"))?;
            let values = params_from_iter(values.iter().map(|value| value as &dyn ToSql));
            let lines = explain.query_map(values, |row| row.get::<_, String>(3))?;
            Ok(lines.collect::<Result<Vec<_>, _>>()?.join("\n"))
        });
        let plan = plan.await.unwrap();
        assert!(plan.contains(wanted), "{filter:?}: {plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{filter:?} is sorted: {plan}");
    }
}

#[tokio::test]
async fn a_page_ends_when_it_has_looked_far_enough_and_says_where_it_goes_on() {
    let (_folder, store) = open();
    for n in 0..10 {
        let action = if n == 1 { Action::PortAdd } else { Action::ConfigReload };
        record(&store, Act::new(Actor::lightd(), action).with("n", n), NOW).await;
    }
    // Two actions, so that no index has them in order.
    let asked = AuditFilter { actions: Some(Action::named("port")), ..AuditFilter::default() };
    let page = async |before, looked_at| {
        let filter = AuditFilter { before, ..asked.clone() };
        let look = move |rx: &Read<'_>| rx.audit_within(&filter, 5, looked_at);
        let page = store.read("test", look).await.unwrap();
        (page.rows.iter().map(|row| row.id).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(page(None, 4).await, (vec![], Some(7)));
    assert_eq!(page(Some(7), 4).await, (vec![], Some(3)));
    assert_eq!(page(Some(3), 4).await, (vec![2], None));
    assert_eq!(page(None, 100).await, (vec![2], None));
}

/// Whoever only reads what was done, as long as that takes, holds up nobody who reads for a start.
#[tokio::test]
async fn long_reads_have_a_place_of_their_own() {
    let (_folder, store) = open();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let mut reads = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (store, wait) = (store.clone(), Arc::clone(&wait));
        reads.spawn(async move {
            store.read_long("test", move |_| Ok(wait.lock().unwrap().recv().is_ok())).await.unwrap()
        });
    }
    let short = store.read("test", |rx| rx.volumes());
    let short = tokio::time::timeout(std::time::Duration::from_secs(5), short).await;
    assert!(short.is_ok(), "a read waits for the long ones");
    for _ in 0..4 {
        go.send(()).unwrap();
    }
    assert_eq!(reads.join_all().await, [true; 4]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is done, its sum is in the rows; whatever is asked for, the pages hold exactly that, each
    /// row once and the newest first, however few rows are looked at for each, also while more is written.
    #[test]
    fn nothing_done_is_lost_and_pages_hold_what_is_asked_for(
        looked_at in 1..20usize,
        (acts, filters) in Just([VolumeId::random(), VolumeId::random()]).prop_flat_map(|volumes| {
            (
                proptest::collection::vec(some_act(volumes), 1..60),
                proptest::collection::vec(some_filter(volumes), 6),
            )
        }),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_folder, store) = open();
            let (mut now, total) = (NOW, acts.len() as u64);
            for (act, after) in acts.clone() {
                now = UnixSeconds(now.0 + after);
                record(&store, act, now).await;
            }
            let known = all(&store).await;
            assert_eq!(known.iter().map(|row| row.count).sum::<u64>(), total);
            let counted = |row: &AuditRow| row.count == 1 || row.last_at.0 - row.created_at.0 <= COUNTED_SECONDS;
            assert!(known.iter().all(counted));
            for filter in filters {
                let wanted: Vec<_> = known.iter().filter(|row| wants(&filter, row)).map(|row| row.id).collect();
                let (mut paged, mut before) = (Vec::new(), known.first().map(|row| row.id + 1));
                loop {
                    let page = AuditFilter { before, ..filter.clone() };
                    let look = move |rx: &Read<'_>| rx.audit_within(&page, 3, looked_at);
                    let page = store.read("test", look).await.unwrap();
                    assert!(page.rows.len() <= 3.min(looked_at));
                    // More is done while somebody reads.
                    record(&store, Act::new(Actor::lightd(), Action::ConfigReload), now).await;
                    paged.extend(page.rows.iter().map(|row| row.id));
                    let Some(next) = page.next else { break };
                    assert!(before.is_none_or(|before| next < before), "it goes on");
                    before = Some(next);
                }
                assert_eq!(paged, wanted, "{filter:?}");
            }
        });
    }
}
