//! `lightd` without a verb: reads the configuration, sets up logs and the runtime, and serves until it
//! is told to stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::{self, AppError};
use crate::config::live::Live;
use crate::config::source::Source;
use crate::config::{Config, ConfigError};
use crate::files::lanes;
use crate::shutdown::{self, Signals};
use crate::telemetry::Telemetry;

/// Threads are made when they are needed and end when they are not. Beside those of all lanes of file work
/// there are some for the store, journals and containers' folders, which nobody's uploads can take.
const BLOCKING_THREADS: usize = lanes::THREADS + 32;
const WORKERS_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot set up the log")]
    Log(#[from] tracing_subscriber::util::TryInitError),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    #[error("another TLS library has been set up already")]
    Crypto,
    #[error("cannot listen on {0} ({how})", how = how_to_listen(.1))]
    Listen(SocketAddr, #[source] io::Error),
    #[error(transparent)]
    App(AppError),
}

impl From<AppError> for ServeError {
    fn from(error: AppError) -> Self {
        match error {
            AppError::Listen(address, source) => Self::Listen(address, source),
            other => Self::App(other),
        }
    }
}

/// What to do about an address that cannot be listened on.
pub(super) fn how_to_listen(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "lightd or another program does already: ss -ltnp shows which; or set server.port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "set server.host to an address of this machine: ip addr shows them"
        }
        io::ErrorKind::PermissionDenied => "a port below 1024 is for root; or set server.port",
        _ => "set server.host and server.port",
    }
}

pub(crate) fn run(source: Source) -> Result<(), ServeError> {
    let is_first = matches!(source.read_json(), Err(ConfigError::Missing { .. }));
    let config = source.load_or_create()?;
    let telemetry = Telemetry::init(config.log.format, config.log.level)?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| ServeError::Crypto)?;
    let path = source.path().display();
    if is_first {
        tracing::info!(%path, "there was no configuration; made one, with a random token (lightd --token what)");
    }
    warn(&config);
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.clamp(2, WORKERS_MAX))
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(serve(Live::new(source, config), telemetry))
}

async fn serve(live: Live, telemetry: Telemetry) -> Result<(), ServeError> {
    let signals = Signals::install().map_err(ServeError::Signals)?;
    let (stop, reload) = (CancellationToken::new(), Arc::new(Notify::new()));
    let mut listening = JoinSet::new();
    listening.spawn(signals.run(stop.clone(), Arc::clone(&reload)));
    let ready = |address| {
        tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "lightd answers");
        shutdown::notify_ready();
    };
    let served = app::run(Arc::new(live), telemetry, reload, stop.clone(), ready).await;
    stop.cancel();
    listening.shutdown().await;
    Ok(served?)
}

fn warn(config: &Config) {
    if !rustix::process::geteuid().is_root() {
        tracing::warn!("lightd does not run as root: the firewall and the servers' files need it");
    }
    if !config.authorization.enabled {
        tracing::warn!("AUTHORIZATION IS OFF: whoever reaches this port on this machine owns it");
    }
    if config.docker.user.uid == 0 {
        tracing::warn!("docker.user is root: workloads run as root in their containers");
    }
}
