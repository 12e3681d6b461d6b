//! The composition root: builds every part in order, owns the tasks that live as long as lightd, and
//! takes all of it down again.
//!
//! ```text
//!   store -> engine, files, isolation -> supervisor -> access, ports, panel -> api -> listener
//! ```
//! The listener answers before the engine was asked anything: what is stored can be shown at once, and
//! an engine that is away is a state, not a reason not to start. Shutting down goes the other way round
//! and leaves workloads running.
//!
//! What a part needs of the configuration is in [`parts`], what runs all the time in [`tasks`], the
//! certificate in [`tls`], the server in [`server`], who may come in in [`connections`].

mod answering;
mod audit;
mod connections;
mod parts;
mod server;
mod tasks;
mod tls;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Either;
use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::connections::{Gate, listen_soon};
use self::server::{Patience, Server};
use self::tasks::Levers;
use self::tls::Certificate;
use crate::access::Access;
use crate::api::{self, AppState};
use crate::cgroup::KernelLog;
use crate::config::Config;
use crate::config::live::Live;
use crate::domain::audit::Act;
use crate::domain::operation::OperationView;
use crate::domain::units::UnixSeconds;
use crate::engine::Engine;
use crate::fetch::Fetcher;
use crate::files::FileError;
use crate::files::Files;
use crate::files::operation::Operations;
use crate::network::firewall::{Cues, Firewall};
use crate::network::isolation::Isolation;
use crate::network::pool::PortPool;
use crate::network::ruleset;
use crate::panel::Panel;
use crate::store::{Store, StoreError, Tx};
use crate::supervisor::{Metering, Registry, Services, StartPace};
use crate::telemetry::Telemetry;
use crate::util::chain::Chain;
use crate::util::secret::Sealer;
use crate::volumes::{LeftOver, Volumes};

/// How many containers are brought up at once.
const START_SLOTS: usize = 4;
/// How many of the engine's logs are joined to their consoles at once.
const LOG_TURNS: usize = 8;
/// Signals that a slow reader may be behind.
const SIGNALS: usize = 1024;
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
    Files(#[source] FileError),
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
    let listener = listen_soon(config.server.address)
        .await
        .map_err(|source| AppError::Listen(config.server.address, source))?;
    let address = listener.local_addr().map_err(AppError::Serve)?;
    let app = App::build(Arc::clone(&live), &config, stop.child_token()).await?;
    let mut tasks = JoinSet::new();
    app.spawn_all(&mut tasks, telemetry, reload);
    let mut server = std::pin::pin!(app.serve(listener, &config, &mut tasks).await?);
    ready(address);
    let ended = tokio::select! {
        served = &mut server => Some(served),
        () = stop.cancelled() => None,
    };
    // Its connections end only while it is polled.
    let rest = match ended {
        Some(served) => Either::Left(std::future::ready(served)),
        None => Either::Right(server),
    };
    app.shut_down(tasks, rest).await.map_err(AppError::Serve)
}

struct App {
    state: AppState,
    levers: Levers,
    left_over: LeftOver,
    /// Ends the server.
    end: CancellationToken,
    host_was_restarted: bool,
}

impl App {
    async fn build(
        live: Arc<Live>,
        config: &Config,
        stop: CancellationToken,
    ) -> Result<Self, AppError> {
        let store = open_store(config)?;
        let files = Files::new(parts::files(config)).map_err(AppError::Files)?;
        let levers = Levers::new(config);
        let registry = Registry::new(Arc::new(services(config, &store, &files, &levers, &stop)));
        let volumes =
            Volumes::new(store.clone(), Arc::clone(&registry), levers.volumes.subscribe());
        // Before any request can add to them, and any container gets at them.
        let left_over = volumes.look_over().await.map_err(AppError::Store)?;
        let containers = registry.load().await.map_err(AppError::Store)?;
        let metering = Arc::new(Metering::new(Arc::clone(&registry)));
        metering.restore().await.map_err(AppError::Store)?;
        let ports = PortPool::new(store.clone(), levers.ports.subscribe());
        ports.seed(parts::port_seeds(config)).await.map_err(AppError::Ports)?;
        let host_was_restarted = note_host_boot(&store).await.map_err(AppError::Store)?;
        tracing::info!(containers, host_was_restarted, "the store is open");
        let operations = stored_operations(&store).await.map_err(AppError::Store)?;
        let access = Access::new(store.clone(), levers.access.subscribe());
        access.restore().await.map_err(AppError::Store)?;
        let state = AppState::new(api::Services {
            access,
            ports,
            firewall: registry.services().firewall.clone(),
            files,
            volumes,
            operations,
            metering,
            panel: Arc::new(Panel::new(store.clone(), levers.panel.subscribe())),
            config: live,
            engine_health: registry.services().engine.health(),
            sockets: api::Sockets::default(),
            fetcher: Fetcher::default(),
            idempotency: api::Idempotency::default(),
            sync: api::SyncState::default(),
            began: Instant::now(),
            stop,
            supervisor: registry,
            store,
        });
        Ok(Self { state, levers, left_over, end: CancellationToken::new(), host_was_restarted })
    }

    /// Starts what lives as long as lightd. Each ends with `stop`.
    fn spawn_all(&self, tasks: &mut JoinSet<()>, telemetry: Telemetry, reload: Arc<Notify>) {
        let state = &self.state;
        let engine = state.supervisor.services().engine.clone();
        let stop = || state.stop.clone();
        let until = stop();
        tasks.spawn(async move { engine.watch_health(until).await });
        tasks.spawn(Arc::clone(&state.supervisor).run(self.host_was_restarted, stop()));
        let (panel, until) = (Arc::clone(&state.panel), stop());
        tasks.spawn(async move { panel.run(until).await });
        let (live, until) = (Arc::clone(&state.config), stop());
        tasks.spawn(async move { live.watch_file(until).await });
        tasks.spawn(tasks::reload_on(
            reload,
            Arc::clone(&state.config),
            state.store.clone(),
            stop(),
        ));
        // Subscribed to here, and not when the tasks come to it: nothing is missed in between.
        let changed = || state.config.subscribe();
        let levers = self.levers.clone();
        tasks.spawn(levers.follow(changed(), state.ports.clone(), telemetry, stop()));
        let (rules, disturbances) = watch::channel(0);
        tasks.spawn(ruleset::watch(rules, stop()));
        let cues = Cues {
            signals: state.supervisor.signals(),
            health: state.engine_health.clone(),
            changes: disturbances.clone(),
        };
        tasks.spawn(state.firewall.clone().run(cues, stop()));
        let (registry, health) = (Arc::clone(&state.supervisor), state.engine_health.clone());
        tasks.spawn(tasks::keep_isolation(registry, changed(), health, disturbances, stop()));
        let (volumes, left_over) = (state.volumes.clone(), self.left_over.clone());
        tasks.spawn(async move { volumes.take_up(left_over).await });
        let (volumes, until) = (state.volumes.clone(), stop());
        tasks.spawn(async move { volumes.watch(until).await });
        let (files, live) = (state.files.clone(), Arc::clone(&state.config));
        tasks.spawn(tasks::expire_uploads(files, live, stop()));
        let (registry, live) = (Arc::clone(&state.supervisor), Arc::clone(&state.config));
        tasks.spawn(tasks::expire_consoles(registry, live, stop()));
        tasks.spawn(tasks::expire_tokens(state.access.clone(), stop()));
        tasks.spawn(tasks::keep_reserve(state.store.clone(), stop()));
        tasks.spawn(audit::follow_node_token(state.store.clone(), changed(), stop()));
        tasks.spawn(audit::expire(state.store.clone(), changed(), stop()));
        let (metering, until) = (Arc::clone(&state.metering), stop());
        tasks.spawn(async move { metering.run(until).await });
        let (metering, live) = (Arc::clone(&state.metering), Arc::clone(&state.config));
        tasks.spawn(tasks::expire_usage(metering, live, stop()));
    }

    /// The server, listening; the future ends some time after `end`.
    async fn serve(
        &self,
        listener: TcpListener,
        config: &Config,
        tasks: &mut JoinSet<()>,
    ) -> Result<impl Future<Output = std::io::Result<()>> + use<>, AppError> {
        let tls = match &config.server.tls {
            Some(files) => {
                let certificate = Certificate::load(files.clone()).await.map_err(AppError::Tls)?;
                let served = certificate.served();
                let reloaded = self.state.config.subscribe();
                tasks.spawn(certificate.follow(reloaded, self.state.stop.clone()));
                Some(served)
            }
            None => None,
        };
        let (end, ends_within) = (self.end.clone(), REQUESTS_END);
        let (gate, patience) = (Gate::new(), Patience::default());
        let server = Server { listener, tls, gate, patience, end, ends_within };
        let router = api::router(self.state.clone());
        Ok(server.serve(router.into_make_service_with_connect_info::<SocketAddr>()))
    }

    /// `serving` ends once the requests that are under way have.
    async fn shut_down(
        self,
        mut tasks: JoinSet<()>,
        serving: impl Future<Output = std::io::Result<()>>,
    ) -> std::io::Result<()> {
        tracing::info!("stopping; workloads run on");
        crate::shutdown::notify_stopping();
        self.end.cancel();
        self.state.stop.cancel();
        let end = async {
            tokio::join!(
                serving,
                self.state.sockets.drained(),
                self.state.operations.shutdown(),
                self.state.volumes.shutdown(),
                self.state.idempotency.drained(),
                self.state.panel.ended(),
                self.state.firewall.drained(),
                self.state.supervisor.wind_down(OWNERS_END)
            )
        };
        let ended = tokio::time::timeout(OWNERS_END + Duration::from_secs(1), end).await;
        if ended.is_err() {
            tracing::warn!("some work did not end in time");
        }
        tasks.shutdown().await;
        self.state.metering.store().await;
        let store = self.state.store.clone();
        if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
            tracing::error!("the store did not close");
        }
        tracing::info!("stopped");
        ended.map_or(Ok(()), |(served, ..)| served)
    }
}

/// Makes the folders that the configuration names and opens the store in them.
fn open_store(config: &Config) -> Result<Store, AppError> {
    let storage = &config.storage;
    for folder in [&storage.base_path, &storage.volumes_path, &storage.containers_path] {
        std::fs::create_dir_all(folder)
            .map_err(|source| AppError::Folder(folder.display().to_string(), source))?;
    }
    Store::open(&storage.store_path()).map_err(AppError::Store)
}

fn services(
    config: &Config,
    store: &Store,
    files: &Files,
    levers: &Levers,
    stop: &CancellationToken,
) -> Services {
    let engine = Engine::new(parts::engine(config, store.node_id()));
    let bridge = &config.network.bridge;
    Services {
        firewall: Firewall::new(store.clone(), engine.clone(), bridge, parts::firewall(config)),
        isolation: Isolation::new(engine.clone(), parts::isolation(config)),
        engine,
        store: store.clone(),
        files: files.clone(),
        sealer: Sealer::new(config.storage.secret_key_path()),
        settings: levers.settings.subscribe(),
        signals: broadcast::Sender::new(SIGNALS),
        console: parts::console(config),
        capacity: parts::capacity(),
        containers_path: config.storage.containers_path.clone(),
        start_slots: Semaphore::new(START_SLOTS),
        start_pace: StartPace::default(),
        log_turns: Semaphore::new(LOG_TURNS),
        kernel_log: KernelLog::from_now(),
        began: Instant::now(),
        stop: stop.clone(),
    }
}

/// Operations as earlier runs have left them, each stored again when it changes.
async fn stored_operations(store: &Store) -> Result<Operations, StoreError> {
    let now = UnixSeconds::now();
    let interrupt = store.write("end operations", move |tx| tx.interrupt_operations(now));
    let past = interrupt.await?;
    let store = store.clone();
    let save = move |view: OperationView, act: Option<Act>| {
        let store = store.clone();
        async move {
            let has_ended = view.finished_at.is_some();
            let save = move |tx: &Tx<'_>| {
                tx.save_operation(&view)?;
                act.as_ref().map_or(Ok(()), |act| tx.record(act, UnixSeconds::now()))
            };
            const OP: &str = "store an operation";
            let stored = if has_ended {
                store.write_done(OP, save).await
            } else {
                store.write(OP, save).await
            };
            stored.map_err(|error| {
                tracing::warn!(error = %Chain(&error), "an operation is not stored");
                match error {
                    StoreError::NoSpace { .. } => {
                        FileError::NoSpace { path: "what is known of the operation".to_owned() }
                    }
                    _ => FileError::OperationNotStored,
                }
            })
        }
        .boxed()
    };
    Ok(Operations::new(past, Arc::new(save)))
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
