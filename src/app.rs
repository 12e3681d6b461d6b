//! The composition root: builds every part in order, owns the tasks that live as long as lightd, and
//! takes all of it down again.
//!
//! ```text
//!   store -> engine, files, isolation -> supervisor -> access, ports, panel -> api -> listener
//! ```
//! The listener answers before the engine was asked anything: what is stored can be shown at once, and
//! an engine that is away is a state, not a reason not to start. Shutting down goes the other way round
//! and leaves workloads running.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, AccessSettings};
use crate::api;
use crate::config::live::Live;
use crate::config::{self, Config};
use crate::console::ConsoleOptions;
use crate::domain::spec::NodeCapacity;
use crate::engine::{Engine, EngineOptions, LogCap};
use crate::files::operation::Operations;
use crate::files::{ArchiveLimits, Files, FilesOptions};
use crate::network::firewall::HostService;
use crate::network::isolation::{
    Exceptions, Firewall, Isolation, IsolationOptions, IsolationStatus,
};
use crate::network::pool::{PortPool, PortRange};
use crate::panel::{Panel, PanelSettings};
use crate::store::{Store, StoreError};
use crate::supervisor::{Registry, Services, Settings};
use crate::telemetry::Telemetry;
use crate::util::chain::Chain;
use crate::util::secret::Sealer;
use crate::volumes::{LeftOver, OnExceeded, VolumeSettings, Volumes};

/// How many containers are brought up at once.
const START_SLOTS: usize = 4;
/// Signals that a slow reader may be behind.
const SIGNALS: usize = 1024;
/// The rules and the bridge are set again so often: a reload of the host's firewall takes them away.
const ISOLATION_EVERY: Duration = Duration::from_secs(300);
const ISOLATION_AGAIN: Duration = Duration::from_secs(10);
/// What requests and owners may take to end, within the ten seconds that stopping may take in all.
const REQUESTS_END: Duration = Duration::from_secs(4);
const OWNERS_END: Duration = Duration::from_secs(4);

#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("cannot make {0}")]
    Folder(String, #[source] std::io::Error),
    #[error("cannot open the store")]
    Store(#[source] StoreError),
    #[error("cannot open the volumes' folder")]
    Files(#[source] crate::files::FileError),
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error("cannot use the TLS certificate and key")]
    Tls(#[source] std::io::Error),
    #[error("the port pool of the configuration cannot be taken over")]
    Ports(#[source] crate::network::pool::PoolError),
    #[error("the server ended")]
    Serve(#[source] std::io::Error),
}

/// Runs lightd until `stop`. `ready` is called once requests are answered.
pub(crate) async fn run(
    live: Arc<Live>,
    telemetry: Telemetry,
    reload: Arc<Notify>,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), AppError> {
    let config = live.current();
    let listener = TcpListener::bind(config.server.address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|source| AppError::Listen(config.server.address, source))?;
    let address = listener.local_addr().map_err(AppError::Serve)?;
    let app = App::build(Arc::clone(&live), &config, stop.child_token()).await?;
    let mut tasks = JoinSet::new();
    app.spawn_all(&mut tasks, telemetry, reload);
    let server = app.serve(listener, &config).await?;
    ready(address);
    let served = tokio::select! {
        served = server => served.map_err(AppError::Serve),
        () = stop.cancelled() => Ok(()),
    };
    app.shut_down(tasks).await;
    served
}

struct App {
    live: Arc<Live>,
    registry: Arc<Registry>,
    volumes: Volumes,
    volume_settings: watch::Sender<VolumeSettings>,
    left_over: LeftOver,
    operations: Operations,
    panel: Arc<Panel>,
    panel_settings: watch::Sender<Option<PanelSettings>>,
    store: Store,
    settings: watch::Sender<Arc<Settings>>,
    access: watch::Sender<AccessSettings>,
    ports: PortPool,
    state: api::AppState,
    handle: Handle<SocketAddr>,
    host_was_restarted: bool,
    stop: CancellationToken,
}

impl App {
    async fn build(
        live: Arc<Live>,
        config: &Config,
        stop: CancellationToken,
    ) -> Result<Self, AppError> {
        let storage = &config.storage;
        for folder in [&storage.base_path, &storage.volumes_path, &storage.containers_path] {
            std::fs::create_dir_all(folder)
                .map_err(|source| AppError::Folder(folder.display().to_string(), source))?;
        }
        let store = Store::open(&storage.store_path()).map_err(AppError::Store)?;
        let node = config.docker.node.clone().unwrap_or_else(|| store.node_id().to_string());
        let engine =
            Engine::new(EngineOptions { socket_path: config.docker.socket_path.clone(), node });
        let files = Files::new(files_options(config)).map_err(AppError::Files)?;
        let isolation = Isolation::new(engine.clone(), isolation_options(config));
        let settings = watch::Sender::new(Arc::new(settings_of(config)));
        let access = watch::Sender::new(access_of(config));
        let services = Arc::new(Services {
            engine: engine.clone(),
            store: store.clone(),
            files: files.clone(),
            isolation,
            sealer: Sealer::new(storage.secret_key_path()),
            settings: settings.subscribe(),
            signals: broadcast::Sender::new(SIGNALS),
            console: console_options(config),
            capacity: capacity(),
            containers_path: storage.containers_path.clone(),
            start_slots: Semaphore::new(START_SLOTS),
            began: Instant::now(),
            stop: stop.clone(),
        });
        let registry = Registry::new(services);
        let volume_settings = watch::Sender::new(volume_settings_of(config));
        let volumes =
            Volumes::new(store.clone(), Arc::clone(&registry), volume_settings.subscribe());
        // Before any request can add to them, and any container gets at them.
        let left_over = volumes.look_over().await.map_err(AppError::Store)?;
        let loaded = registry.load().await.map_err(AppError::Store)?;
        let ports = PortPool::new(store.clone());
        ports.seed(port_seeds(config)).await.map_err(AppError::Ports)?;
        let host_was_restarted = note_host_boot(&store).await.map_err(AppError::Store)?;
        tracing::info!(containers = loaded, host_was_restarted, "the store is open");
        let operations = Operations::default();
        let panel_settings = watch::Sender::new(panel_of(config));
        let panel = Arc::new(Panel::new(store.clone(), panel_settings.subscribe()));
        let state = api::AppState::new(api::Services {
            supervisor: Arc::clone(&registry),
            access: Access::new(store.clone(), access.subscribe()),
            ports: ports.clone(),
            files,
            volumes: volumes.clone(),
            operations: operations.clone(),
            panel: Arc::clone(&panel),
            config: Arc::clone(&live),
            store: store.clone(),
            engine_health: engine.health(),
            sockets: api::Sockets::default(),
            began: Instant::now(),
            stop: stop.clone(),
        });
        Ok(Self {
            live,
            registry,
            volumes,
            volume_settings,
            left_over,
            operations,
            panel,
            panel_settings,
            store,
            settings,
            access,
            ports,
            state,
            handle: Handle::new(),
            host_was_restarted,
            stop,
        })
    }

    /// Starts what lives as long as lightd. Each ends with `stop`.
    fn spawn_all(&self, tasks: &mut JoinSet<()>, telemetry: Telemetry, reload: Arc<Notify>) {
        let engine = self.registry.services().engine.clone();
        let stop = self.stop.clone();
        tasks.spawn(async move { engine.watch_health(stop).await });
        tasks.spawn(Arc::clone(&self.registry).run(self.host_was_restarted, self.stop.clone()));
        let (panel, stop) = (Arc::clone(&self.panel), self.stop.clone());
        tasks.spawn(async move { panel.run(stop).await });
        let (live, stop) = (Arc::clone(&self.live), self.stop.clone());
        tasks.spawn(async move { live.watch_file(stop).await });
        let (live, stop) = (Arc::clone(&self.live), self.stop.clone());
        tasks.spawn(async move {
            while stop.run_until_cancelled(reload.notified()).await.is_some() {
                match live.reload() {
                    Ok(changes) => tracing::info!(?changes, "the configuration was read again"),
                    Err(error) => {
                        tracing::error!(error = %Chain(&error), "the configuration stays as it was")
                    }
                }
            }
        });
        tasks.spawn(self.take_over_changes(telemetry));
        tasks.spawn(self.keep_isolation());
        let (volumes, left_over) = (self.volumes.clone(), self.left_over.clone());
        tasks.spawn(async move { volumes.take_up(left_over).await });
        let (volumes, stop) = (self.volumes.clone(), self.stop.clone());
        tasks.spawn(async move { volumes.watch(stop).await });
    }

    /// Hands each part its piece of a changed configuration.
    fn take_over_changes(&self, telemetry: Telemetry) -> impl Future<Output = ()> + use<> {
        let mut changed = self.live.subscribe();
        let (settings, access, panel) =
            (self.settings.clone(), self.access.clone(), self.panel_settings.clone());
        let (ports, stop) = (self.ports.clone(), self.stop.clone());
        let volumes = self.volume_settings.clone();
        async move {
            while let Some(Ok(())) = stop.run_until_cancelled(changed.changed()).await {
                let config = changed.borrow_and_update().clone();
                settings.send_replace(Arc::new(settings_of(&config)));
                access.send_replace(access_of(&config));
                volumes.send_replace(volume_settings_of(&config));
                let news = panel_of(&config);
                panel.send_if_modified(|present| std::mem::replace(present, news.clone()) != news);
                telemetry.set_level(config.log.level);
                if let Err(error) = ports.seed(port_seeds(&config)).await {
                    tracing::error!(error = %Chain(&error), "the port pool of the configuration was not taken over");
                }
            }
        }
    }

    /// Sets the rules and the bridge again when the engine is back, when the configuration has changed
    /// and every few minutes. Apart from [`App::take_over_changes`]: it takes as long as the engine does,
    /// and a changed token must not wait for that.
    fn keep_isolation(&self) -> impl Future<Output = ()> + use<> {
        let (registry, stop) = (Arc::clone(&self.registry), self.stop.clone());
        let mut health = registry.services().engine.health();
        let (live, mut changed) = (Arc::clone(&self.live), self.live.subscribe());
        let status = registry.services().isolation.status();
        async move {
            loop {
                let failed = matches!(*status.borrow(), IsolationStatus::Failed { .. });
                let pause = if failed { ISOLATION_AGAIN } else { ISOLATION_EVERY };
                let due = async {
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        _ = health.changed() => {}
                        _ = changed.changed() => {}
                    }
                };
                if stop.run_until_cancelled(due).await.is_none() {
                    return;
                }
                let isolation = &registry.services().isolation;
                isolation.set_exceptions(exceptions(&live.current()));
                if health.borrow_and_update().is_reachable() {
                    ensure(isolation).await;
                }
            }
        }
    }

    /// The server, listening; the future ends when the handle shuts it down.
    async fn serve(
        &self,
        listener: TcpListener,
        config: &Config,
    ) -> Result<impl Future<Output = std::io::Result<()>> + use<>, AppError> {
        let service =
            api::router(self.state.clone()).into_make_service_with_connect_info::<SocketAddr>();
        let handle = self.handle.clone();
        let served: futures_util::future::BoxFuture<'static, _> = match &config.server.tls {
            Some(files) => {
                let tls = load_tls(&files.cert, &files.key).await?;
                let server =
                    axum_server::from_tcp_rustls(listener, tls).map_err(AppError::Serve)?;
                Box::pin(server.handle(handle).serve(service))
            }
            None => {
                let server = axum_server::from_tcp(listener).map_err(AppError::Serve)?;
                Box::pin(server.handle(handle).serve(service))
            }
        };
        Ok(served)
    }

    async fn shut_down(self, mut tasks: JoinSet<()>) {
        tracing::info!("stopping; workloads run on");
        crate::shutdown::notify_stopping();
        self.handle.graceful_shutdown(Some(REQUESTS_END));
        self.stop.cancel();
        let end = async {
            tokio::join!(
                self.state.sockets.drained(),
                self.operations.shutdown(),
                self.volumes.shutdown(),
                self.registry.wind_down(OWNERS_END)
            )
        };
        if tokio::time::timeout(OWNERS_END + Duration::from_secs(1), end).await.is_err() {
            tracing::warn!("some work did not end in time");
        }
        tasks.shutdown().await;
        let store = self.store.clone();
        if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
            tracing::error!("the store did not close");
        }
        tracing::info!("stopped");
    }
}

async fn ensure(isolation: &Isolation) {
    if let Err(error) = isolation.ensure().await {
        tracing::error!(error = %Chain(&error), "the containers' isolation does not stand");
    }
}

async fn load_tls(cert: &Path, key: &Path) -> Result<RustlsConfig, AppError> {
    RustlsConfig::from_pem_file(cert, key).await.map_err(AppError::Tls)
}

fn files_options(config: &Config) -> FilesOptions {
    let user = config.docker.user;
    let limits = &config.archives;
    FilesOptions {
        volumes_path: config.storage.volumes_path.clone(),
        owner: Some((user.uid, user.gid)),
        limits: ArchiveLimits {
            max_entries: limits.max_entries,
            max_total_bytes: limits.max_bytes,
            max_ratio: limits.max_ratio,
            ..ArchiveLimits::default()
        },
    }
}

fn isolation_options(config: &Config) -> IsolationOptions {
    let network = &config.network;
    IsolationOptions {
        bridge: network.bridge.clone(),
        subnets: network.subnets,
        exceptions: exceptions(config),
        firewall: match network.firewall {
            config::Firewall::Nftables => Firewall::Nftables,
            config::Firewall::Off => Firewall::Off,
        },
    }
}

fn exceptions(config: &Config) -> Exceptions {
    let service = |service: &config::HostService| HostService {
        protocol: service.protocol,
        port: service.port,
    };
    let network = &config.network;
    Exceptions {
        host: network.allow_host.iter().map(service).collect(),
        private: network.allow_private.clone(),
    }
}

fn panel_of(config: &Config) -> Option<PanelSettings> {
    let panel = config.remote.panel.as_ref()?;
    Some(PanelSettings {
        url: panel.url.clone(),
        token: panel.token.clone(),
        health_interval: panel.health_interval,
    })
}

fn settings_of(config: &Config) -> Settings {
    let user = config.docker.user;
    Settings {
        user: format!("{}:{}", user.uid, user.gid),
        owner: (user.uid, user.gid),
        network: config.network.bridge.clone(),
        time_zone: host_time_zone(),
        default_pids: config.limits.pids,
        log: LogCap { max_size_bytes: config.limits.log_max_bytes, max_files: 1 },
        allowed_mounts: config.docker.allowed_mounts.clone(),
        install_timeout: config.install.timeout,
        install_image_max_bytes: config.install.max_image_bytes,
        panel: config.remote.panel.is_some(),
        panel_power_events: config.remote.power_events,
    }
}

fn volume_settings_of(config: &Config) -> VolumeSettings {
    VolumeSettings {
        backend: config.quota.backend,
        max_snapshots: config.snapshots.max_per_volume,
        on_exceeded: match config.quota.on_exceeded {
            config::OnExceeded::Tell => OnExceeded::Tell,
            config::OnExceeded::Stop => OnExceeded::Stop,
        },
    }
}

fn access_of(config: &Config) -> AccessSettings {
    let authorization = &config.authorization;
    AccessSettings {
        enabled: authorization.enabled,
        node_token: authorization.token.digest(),
        allowed_origins: authorization.allowed_origins.clone(),
    }
}

fn console_options(config: &Config) -> ConsoleOptions {
    ConsoleOptions {
        ring_bytes: config.console.ring_bytes,
        journal_bytes: config.console.journal_bytes,
        ..ConsoleOptions::default()
    }
}

fn port_seeds(config: &Config) -> Vec<PortRange> {
    let range = |seed: &config::PortSeed| PortRange {
        ip: seed.ip,
        ports: seed.ports.clone(),
        protocol: seed.protocol,
    };
    config.network.ports.iter().map(range).collect()
}

fn capacity() -> NodeCapacity {
    let system = rustix::system::sysinfo();
    let memory_bytes = system.totalram.saturating_mul(u64::from(system.mem_unit));
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    NodeCapacity { memory_bytes, cpus: f64::from(u32::try_from(cpus).unwrap_or(u32::MAX)) }
}

/// The host's time zone by its name, for workloads; the containers' own is most often UTC.
fn host_time_zone() -> String {
    let named = std::fs::read_to_string("/etc/timezone").ok().map(|name| name.trim().to_owned());
    let linked = || {
        let target = std::fs::read_link("/etc/localtime").ok()?;
        Some(target.to_str()?.split_once("/zoneinfo/")?.1.to_owned())
    };
    named.filter(|name| !name.is_empty()).or_else(linked).unwrap_or_else(|| "UTC".to_owned())
}

/// Whether the host was started since lightd last ran on this store.
async fn note_host_boot(store: &Store) -> Result<bool, StoreError> {
    let Ok(boot_id) = std::fs::read_to_string("/proc/sys/kernel/random/boot_id") else {
        return Ok(false);
    };
    let boot_id = boot_id.trim().to_owned();
    let before = store
        .write("note the host's start", move |tx| {
            let before = tx.meta("boot_id")?;
            if before.as_deref() != Some(&boot_id) {
                tx.set_meta("boot_id", &boot_id)?;
            }
            Ok(before.map(|before| before != boot_id))
        })
        .await?;
    Ok(before.unwrap_or(false))
}
