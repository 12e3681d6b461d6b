//! A node without an engine, and ways to ask it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::access::{Access, AccessSettings};
use crate::api::{AppState, Idempotency, Services, Sockets, SyncState};
use crate::config::live::Live;
use crate::config::source::{Overrides, Source};
use crate::console::ConsoleOptions;
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::quota::QuotaBackend;
use crate::domain::spec::NodeCapacity;
use crate::domain::units::UnixSeconds;
use crate::engine::{Engine, EngineOptions, LogCap};
use crate::fetch::Fetcher;
use crate::files::archive::ArchiveLimits;
use crate::files::operation::Operations;
use crate::files::{Files, FilesOptions, Owner};
use crate::network::firewall::Firewall;
use crate::network::isolation::{self, Exceptions, Isolation, IsolationOptions};
use crate::network::pool::{PortPolicy, PortPool};
use crate::panel::Panel;
use crate::store::Store;
use crate::store::volumes::VolumeRow;
use crate::supervisor::{Metering, Registry, Services as SupervisorServices, Settings, StartPace};
use crate::util::secret::Sealer;
use crate::volumes::{OnExceeded, VolumeSettings, Volumes};

pub(in crate::api) const TOKEN: &str = "lightd_0123456789abcdef";
pub(in crate::api) const VENDOR: &str = "Application/vnd.pkglatv1+json";

pub(in crate::api) struct Node {
    pub(in crate::api) state: AppState,
    pub(in crate::api) signals: broadcast::Sender<crate::domain::event::Signal>,
    pub(in crate::api) volume: VolumeId,
    pub(in crate::api) access_settings: watch::Sender<AccessSettings>,
    router: Router,
    servers: JoinSet<()>,
    _folder: TempDir,
}

impl Node {
    pub(in crate::api) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("lightd.db")).unwrap();
        let volume = VolumeId::random();
        let row = VolumeRow {
            id: volume,
            name: None,
            size_bytes: None,
            backing: None,
            created_at: UnixSeconds::now(),
        };
        store.write("test", move |tx| tx.insert_volume(&row)).await.unwrap();
        let (access_settings, settings) = watch::channel(AccessSettings::for_tests(TOKEN));
        let stop = CancellationToken::new();
        let supervisor = supervisor(folder.path(), &store, &stop);
        let state = AppState::new(Services {
            access: Access::new(store.clone(), settings),
            ports: PortPool::new(store.clone(), watch::channel(no_policy()).1),
            firewall: supervisor.services().firewall.clone(),
            files: supervisor.services().files.clone(),
            volumes: Volumes::new(
                store.clone(),
                Arc::clone(&supervisor),
                watch::channel(VolumeSettings {
                    backend: Some(QuotaBackend::Soft),
                    max_snapshots: 3,
                    on_exceeded: OnExceeded::Tell,
                })
                .1,
            ),
            operations: Operations::in_memory(),
            metering: Arc::new(Metering::new(Arc::clone(&supervisor))),
            panel: Arc::new(Panel::new(store.clone(), watch::channel(None).1)),
            config: live_config(folder.path()),
            store,
            engine_health: supervisor.services().engine.health(),
            sockets: Sockets::default(),
            fetcher: Fetcher::default(),
            idempotency: Idempotency::default(),
            sync: SyncState::default(),
            began: Instant::now(),
            stop,
            supervisor,
        });
        let signals = state.supervisor.services().signals.clone();
        let router = crate::api::router(state.clone());
        Self {
            state,
            signals,
            volume,
            access_settings,
            router,
            servers: JoinSet::new(),
            _folder: folder,
        }
    }

    /// Lets nothing be written until what it returns is dropped.
    pub(in crate::api) async fn hold_writer(&self) -> std::sync::mpsc::Sender<()> {
        let (held, let_go) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let store = self.state.store.clone();
        std::thread::spawn(move || {
            let write = move |_: &crate::store::Tx<'_>| {
                begin.send(()).ok();
                let_go.recv().ok();
                Ok(())
            };
            store.write_blocking("test", write).unwrap();
        });
        begun.await.unwrap();
        held
    }

    /// Sends a request and goes away as soon as there is nothing to do but to wait.
    pub(in crate::api) async fn send_and_leave(&self, request: Request<Body>) {
        let sending = self.send(request);
        tokio::pin!(sending);
        for _ in 0..100 {
            assert!(futures_util::poll!(&mut sending).is_pending(), "it was answered");
            tokio::task::yield_now().await;
        }
    }

    pub(in crate::api) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.send_from("127.0.0.1:9", request).await
    }

    /// As from a connection of this address.
    pub(in crate::api) async fn send_from(
        &self,
        peer: &str,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let peer: SocketAddr = peer.parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Asks as the node itself.
    pub(in crate::api) async fn ask(
        &self,
        method: &str,
        uri: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        self.ask_as(TOKEN, method, uri, body).await
    }

    pub(in crate::api) async fn ask_as(
        &self,
        token: &str,
        method: &str,
        uri: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        answer(self.send(request(token, method, uri, body)).await).await
    }

    /// Makes a container, which waits for an engine to be installed.
    pub(in crate::api) async fn container(&self, id: &str) -> ContainerId {
        let (status, answer) = self.ask("POST", "/containers", self.spec(id)).await;
        assert_eq!(status, 201, "{answer}");
        ContainerId::parse(id).unwrap()
    }

    /// What a container is made of.
    pub(in crate::api) fn spec(&self, id: &str) -> Value {
        json!({
            "internal_id": id, "image": "debian:12", "volume_id": self.volume,
            "startup_command": "true",
        })
    }

    /// Serves on a socket of this host.
    pub(in crate::api) async fn listen(&mut self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = self.router.clone().into_make_service_with_connect_info::<SocketAddr>();
        self.servers.spawn(async move { axum::serve(listener, service).await.unwrap() });
        address
    }
}

pub(in crate::api) fn request(token: &str, method: &str, uri: &str, body: Value) -> Request<Body> {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    Request::builder()
        .method(method)
        .uri(uri)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::ACCEPT, VENDOR)
        .body(body)
        .unwrap()
}

pub(in crate::api) async fn answer(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let value = serde_json::from_slice(&body);
    (status, value.unwrap_or_else(|_| panic!("no JSON: {:?}", String::from_utf8_lossy(&body))))
}

fn supervisor(folder: &Path, store: &Store, stop: &CancellationToken) -> Arc<Registry> {
    let options =
        EngineOptions { socket_path: folder.join("no-engine.sock"), node: "api-test".to_owned() };
    let engine = Engine::new(options);
    let isolation = IsolationOptions {
        bridge: "lightd9".to_owned(),
        subnets: "10.99.0.0/16".parse().unwrap(),
        exceptions: Exceptions::default(),
        firewall: isolation::Firewall::Off,
    };
    let files = FilesOptions {
        volumes_path: folder.join("volumes"),
        owner: None,
        fsync: true,
        limits: ArchiveLimits::default(),
    };
    let off = isolation::Firewall::Off;
    Registry::new(Arc::new(SupervisorServices {
        firewall: Firewall::new(store.clone(), engine.clone(), "lightd9", off),
        isolation: Isolation::new(engine.clone(), isolation),
        engine,
        store: store.clone(),
        files: Files::new(files).unwrap(),
        sealer: Sealer::new(folder.join("secret.key")),
        settings: watch::channel(Arc::new(settings())).1,
        signals: broadcast::channel(64).0,
        console: ConsoleOptions::default(),
        capacity: NodeCapacity { memory_bytes: 8 << 30, cpus: 2.0 },
        containers_path: folder.join("containers"),
        start_slots: Semaphore::new(1),
        start_pace: StartPace::default(),
        kernel_log: crate::cgroup::KernelLog::from_now(),
        log_turns: Semaphore::new(8),
        began: Instant::now(),
        stop: stop.clone(),
    }))
}

fn no_policy() -> PortPolicy {
    PortPolicy { own: Arc::new([]), quarantine: Duration::ZERO }
}

fn settings() -> Settings {
    Settings {
        user: Owner { uid: 1000, gid: 1000 },
        network: "lightd9".to_owned(),
        ports: no_policy(),
        time_zone: "UTC".to_owned(),
        default_pids: 64,
        log: LogCap { max_size_bytes: 1 << 20, max_files: 1 },
        allowed_mounts: Vec::new(),
        install_timeout: Duration::from_secs(60),
        starts_per_second: 4,
        start_timeout: None,
        post_mortems: 5,
        install_image_max_bytes: 1 << 30,
        panel: false,
        panel_power_events: false,
        record_commands: false,
    }
}

fn live_config(folder: &Path) -> Arc<Live> {
    let source = Source::new(folder.join("config.json"), [], Overrides::default());
    source.ensure_exists().unwrap();
    let config = source.load().unwrap();
    Arc::new(Live::new(source, config))
}
