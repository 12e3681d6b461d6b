mod pauses;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::task::JoinSet;

use super::*;
use crate::domain::panel_update::PanelUpdate;
use crate::store::outbox::OutboxEntry;
use crate::store::testing::{id, open};

/// An update as the stub saw it.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    server: String,
    sequence: String,
    delivery: String,
    body: String,
    authorization: String,
}

type Answer = Box<dyn Fn(&Seen) -> Option<Response> + Send + Sync>;

/// A panel that records what it is told; answers 200 unless scripted.
struct Stub {
    seen: Mutex<Vec<Seen>>,
    answers: Mutex<VecDeque<Answer>>,
    healthy: Mutex<StatusCode>,
    /// Updates of this server are answered once it is not held any more.
    held: watch::Sender<Option<&'static str>>,
    changed: watch::Sender<usize>,
}

impl Stub {
    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn script(&self, answer: impl Fn(&Seen) -> Option<Response> + Send + Sync + 'static) {
        self.answers.lock().unwrap().push_back(Box::new(answer));
    }

    async fn wait_for(&self, count: usize) -> Vec<Seen> {
        let mut changed = self.changed.subscribe();
        let wait = changed.wait_for(|seen| *seen >= count);
        if tokio::time::timeout(Duration::from_secs(15), wait).await.is_err() {
            panic!("{count} updates wanted, seen after 15 s: {:?}", self.seen());
        }
        self.seen()
    }
}

async fn update(State(stub): State<Arc<Stub>>, headers: HeaderMap, body: String) -> Response {
    let header = |name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    let seen = Seen {
        server: json["server"].as_str().unwrap().to_owned(),
        sequence: header("x-lightd-sequence"),
        delivery: header("x-lightd-delivery"),
        body,
        authorization: header("authorization"),
    };
    // The first scripted answer that is meant for this update, if there is one.
    let scripted = {
        let mut answers = stub.answers.lock().unwrap();
        let at = answers.iter().position(|answer| answer(&seen).is_some());
        at.and_then(|at| answers.remove(at)).and_then(|answer| answer(&seen))
    };
    let server = seen.server.clone();
    stub.seen.lock().unwrap().push(seen);
    stub.changed.send_modify(|count| *count += 1);
    stub.held.subscribe().wait_for(|held| *held != Some(server.as_str())).await.unwrap();
    scripted.unwrap_or_else(|| StatusCode::OK.into_response())
}

struct Fixture {
    _folder: tempfile::TempDir,
    store: Store,
    stub: Arc<Stub>,
    panel: Arc<Panel>,
    settings: watch::Sender<Option<PanelSettings>>,
    present: PanelSettings,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

impl Fixture {
    async fn new() -> Self {
        let (folder, store) = open();
        let stub = Arc::new(Stub {
            seen: Mutex::default(),
            answers: Mutex::default(),
            healthy: Mutex::new(StatusCode::OK),
            held: watch::channel(None).0,
            changed: watch::channel(0).0,
        });
        let health = |State(stub): State<Arc<Stub>>| async move { *stub.healthy.lock().unwrap() };
        let router = axum::Router::new()
            .route("/api/update", post(update))
            .route("/api/health", get(health))
            .with_state(Arc::clone(&stub));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let present = PanelSettings {
            url: url.parse().unwrap(),
            token: Secret::new("panel-token"),
            signing_secret: Secret::default(),
            health_interval: Duration::from_millis(100),
        };
        let (settings, receiver) = watch::channel(Some(present.clone()));
        let panel = Arc::new(Panel::new(store.clone(), receiver));
        let cancel = CancellationToken::new();
        let mut it = Self { _folder: folder, store, stub, panel, settings, present, cancel, tasks };
        it.start();
        it
    }

    /// As a lightd that is started again on the same store.
    async fn restart(&mut self) {
        self.cancel.cancel();
        self.panel.ended().await;
        self.cancel = CancellationToken::new();
        self.panel = Arc::new(Panel::new(self.store.clone(), self.settings.subscribe()));
        self.start();
    }

    fn start(&mut self) {
        let (panel, cancel) = (Arc::clone(&self.panel), self.cancel.clone());
        self.tasks.spawn(async move { panel.run(cancel).await });
    }

    async fn enqueue(&self, server: &str, updates: &[PanelUpdate]) {
        let (server, updates) = (id(server), updates.to_vec());
        let now = UnixSeconds::now();
        let enqueue = move |tx: &crate::store::Tx<'_>| {
            updates.iter().try_for_each(|update| tx.enqueue_update(&server, update, now))
        };
        self.store.write("enqueue", enqueue).await.unwrap();
    }

    async fn entry(&self, sequence: i64) -> OutboxEntry {
        self.store.read("look", move |rx| rx.outbox_entry(sequence)).await.unwrap()
    }

    async fn wait_for_state(&self, state: PanelState) {
        let mut status = self.panel.status.subscribe();
        let wait = status.wait_for(|status| status.state == state);
        let result = tokio::time::timeout(Duration::from_secs(15), wait).await;
        assert!(result.is_ok(), "{state:?} wanted, is {:?}", self.panel.status.borrow());
    }

    /// The rows are deleted after the answer, so a little after the stub has seen them.
    async fn wait_for_depth(&self, waiting: u64, parked: u64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
        loop {
            let depth = self.panel.report().await.unwrap().outbox;
            if (depth.waiting, depth.parked) == (waiting, parked) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{waiting}/{parked}: {depth:?}");
            tokio::task::yield_now().await;
        }
    }
}

fn numbers<'a>(seen: &'a [Seen], server: &str) -> Vec<&'a str> {
    seen.iter().filter(|seen| seen.server == server).map(|seen| seen.sequence.as_str()).collect()
}

#[tokio::test]
async fn updates_arrive_in_order_as_documented() {
    let it = Fixture::new().await;
    let failed = PanelUpdate::Failed { details: "no such image".to_owned() };
    it.enqueue("a", &[PanelUpdate::Installing, failed, PanelUpdate::Ready]).await;
    let seen = it.stub.wait_for(3).await;
    assert_eq!(numbers(&seen, "a"), ["1", "2", "3"]);
    assert_eq!(seen[0].body, r#"{"event":"update","server":"a","status":"installing"}"#);
    assert_eq!(
        seen[1].body,
        r#"{"event":"update","server":"a","error":"failed","data":"no such image"}"#
    );
    assert_eq!(seen[0].authorization, "Bearer panel-token");
    assert!(uuid::Uuid::try_parse(&seen[0].delivery).is_ok());
    assert_ne!(seen[0].delivery, seen[1].delivery);
    it.wait_for_depth(0, 0).await;
}

#[tokio::test]
async fn what_fails_is_sent_again_before_what_follows() {
    let it = Fixture::new().await;
    for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::UNAUTHORIZED] {
        it.stub.script(move |_| Some(status.into_response()));
    }
    it.enqueue("a", &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    let seen = it.stub.wait_for(4).await;
    assert_eq!(numbers(&seen, "a"), ["1", "1", "1", "2"]);
    assert_eq!(seen[0].delivery, seen[1].delivery, "the panel can tell a repetition");
    it.wait_for_depth(0, 0).await;
}

#[tokio::test]
async fn what_is_refused_is_parked_and_can_be_tried_again() {
    let it = Fixture::new().await;
    it.stub.script(|_| Some((StatusCode::UNPROCESSABLE_ENTITY, "no such server").into_response()));
    it.enqueue("a", &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    let seen = it.stub.wait_for(2).await;
    assert_eq!(numbers(&seen, "a"), ["1", "2"]);
    it.wait_for_depth(0, 1).await;
    let entry = it.entry(1).await;
    assert_eq!(entry.parked.unwrap().reason, "422: no such server");
    it.store.write("retry", |tx| tx.retry_update(1)).await.unwrap();
    let seen = it.stub.wait_for(3).await;
    assert_eq!(numbers(&seen, "a"), ["1", "2", "1"]);
}

#[tokio::test]
async fn a_stuck_server_does_not_stall_the_others() {
    let it = Fixture::new().await;
    it.stub.script(|seen| {
        let wait = [("retry-after", "600")];
        (seen.server == "a").then(|| (StatusCode::TOO_MANY_REQUESTS, wait).into_response())
    });
    it.enqueue("a", &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    for server in ["b", "c", "d"] {
        it.enqueue(server, &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    }
    let seen = it.stub.wait_for(7).await;
    assert_eq!(numbers(&seen, "a"), ["1"]);
    for server in ["b", "c", "d"] {
        assert_eq!(numbers(&seen, server), ["1", "2"]);
    }
    it.wait_for_depth(2, 0).await;
    let entry = it.entry(1).await;
    let wait = entry.due_at.unwrap().0 - UnixSeconds::now().0;
    assert!((590..=660).contains(&wait), "{wait}");
    assert_eq!(entry.last_error.as_deref(), Some("the panel answers 429"));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let it = Fixture::new().await;
    it.stub.script(|_| {
        let elsewhere = [("location", "/api/health")];
        Some((StatusCode::TEMPORARY_REDIRECT, elsewhere).into_response())
    });
    it.enqueue("a", &[PanelUpdate::Ready]).await;
    let seen = it.stub.wait_for(2).await;
    assert_eq!(numbers(&seen, "a"), ["1", "1"]);
    it.wait_for_depth(0, 0).await;
}

#[tokio::test]
async fn a_panel_that_comes_back_is_told_at_once() {
    let mut it = Fixture::new().await;
    it.wait_for_state(PanelState::Reachable).await;
    *it.stub.healthy.lock().unwrap() = StatusCode::BAD_GATEWAY;
    it.wait_for_state(PanelState::Unreachable).await;
    it.stub.script(|_| {
        Some((StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3000")]).into_response())
    });
    it.enqueue("a", &[PanelUpdate::Ready]).await;
    it.stub.wait_for(1).await;
    it.wait_for_depth(1, 0).await;
    let since = it.panel.status.borrow().since;
    // A daemon that is started again finds it, and knows since when the panel is away.
    it.restart().await;
    it.wait_for_state(PanelState::Unreachable).await;
    assert_eq!(it.panel.status.borrow().since, since);
    *it.stub.healthy.lock().unwrap() = StatusCode::OK;
    it.stub.wait_for(2).await;
    it.wait_for_depth(0, 0).await;
}

#[tokio::test]
async fn what_the_panel_asked_for_is_kept_over_restarts_reloads_and_a_bad_look() {
    let mut it = Fixture::new().await;
    it.wait_for_state(PanelState::Reachable).await;
    it.stub.script(|_| {
        Some((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "600")]).into_response())
    });
    it.enqueue("a", &[PanelUpdate::Ready]).await;
    let due = async |it: &Fixture| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
        loop {
            let entry = it.entry(1).await;
            if entry.row.attempts == 1 {
                return entry.due_at.unwrap();
            }
            assert!(tokio::time::Instant::now() < deadline, "{entry:?}");
            tokio::task::yield_now().await;
        }
    };
    let asked = due(&it).await;
    // lightd is restarted.
    it.restart().await;
    it.wait_for_state(PanelState::Reachable).await;
    // Its settings change.
    let mut other = it.present.clone();
    other.token = Secret::new("another");
    it.settings.send_replace(None);
    it.wait_for_state(PanelState::Disabled).await;
    it.settings.send_replace(Some(other));
    it.wait_for_state(PanelState::Reachable).await;
    // One look at its health fails.
    *it.stub.healthy.lock().unwrap() = StatusCode::BAD_GATEWAY;
    it.wait_for_state(PanelState::Unreachable).await;
    *it.stub.healthy.lock().unwrap() = StatusCode::OK;
    it.wait_for_state(PanelState::Reachable).await;
    assert_eq!((due(&it).await, it.stub.seen().len()), (asked, 1));
    // Others are not concerned.
    it.enqueue("b", &[PanelUpdate::Ready]).await;
    assert_eq!(numbers(&it.stub.wait_for(2).await, "b"), ["1"]);
}

#[tokio::test]
async fn settings_change_under_a_running_link() {
    let it = Fixture::new().await;
    it.wait_for_state(PanelState::Reachable).await;
    it.settings.send_replace(None);
    it.wait_for_state(PanelState::Disabled).await;
    it.enqueue("a", &[PanelUpdate::Ready]).await;
    let mut other = it.present.clone();
    other.token = Secret::new("another");
    it.settings.send_replace(Some(other));
    let seen = it.stub.wait_for(1).await;
    assert_eq!(seen[0].authorization, "Bearer another");
    it.cancel.cancel();
}

#[tokio::test]
async fn a_panel_that_hangs_on_one_server_is_told_of_the_others() {
    let it = Fixture::new().await;
    it.stub.held.send_replace(Some("a"));
    for server in ["a", "b", "c", "d"] {
        it.enqueue(server, &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    }
    let seen = it.stub.wait_for(7).await;
    assert_eq!(numbers(&seen, "a"), ["1"]);
    for server in ["b", "c", "d"] {
        assert_eq!(numbers(&seen, server), ["1", "2"]);
    }
    it.stub.held.send_replace(None);
    it.wait_for_depth(0, 0).await;
    assert_eq!(numbers(&it.stub.seen(), "a"), ["1", "2"], "what took long is not sent twice");
}

#[tokio::test]
async fn what_is_under_way_ends_under_the_old_settings() {
    let it = Fixture::new().await;
    it.stub.held.send_replace(Some("a"));
    it.enqueue("a", &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    it.stub.wait_for(1).await;
    let mut other = it.present.clone();
    other.token = Secret::new("another");
    it.settings.send_replace(Some(other));
    it.stub.held.send_replace(None);
    it.wait_for_depth(0, 0).await;
    let seen = it.stub.seen();
    assert_eq!(numbers(&seen, "a"), ["1", "2"], "in order, and none twice");
    let tokens: Vec<&str> = seen.iter().map(|seen| seen.authorization.as_str()).collect();
    assert_eq!(tokens, ["Bearer panel-token", "Bearer another"]);
}

#[tokio::test]
async fn a_stop_waits_a_moment_for_what_is_under_way() {
    let it = Fixture::new().await;
    it.stub.held.send_replace(Some("a"));
    it.enqueue("a", &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    it.stub.wait_for(1).await;
    it.cancel.cancel();
    it.stub.held.send_replace(None);
    it.panel.ended().await;
    assert_eq!(it.panel.report().await.unwrap().outbox.waiting, 1, "the first is noted");
    assert_eq!(it.stub.seen().len(), 1);
}

#[tokio::test]
async fn a_large_backlog_goes_out_in_order_and_none_twice() {
    let it = Fixture::new().await;
    it.settings.send_replace(None);
    it.wait_for_state(PanelState::Disabled).await;
    for server in 0..70 {
        it.enqueue(&format!("s{server}"), &vec![PanelUpdate::Ready; 9]).await;
    }
    it.enqueue("long", &vec![PanelUpdate::Ready; 200]).await;
    it.settings.send_replace(Some(it.present.clone()));
    it.wait_for_depth(0, 0).await;
    let seen = it.stub.seen();
    assert_eq!(seen.len(), 70 * 9 + 200);
    let all: Vec<String> = (1..=200).map(|n| n.to_string()).collect();
    assert_eq!(numbers(&seen, "long"), all);
    for server in 0..70 {
        assert_eq!(numbers(&seen, &format!("s{server}")), all[..9]);
    }
}
