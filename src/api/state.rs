//! What handlers work with: the services' handles, and nothing of their own.

use std::sync::Arc;

use axum::extract::FromRef;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::extract::BodyLimit;
use super::idempotency::Idempotency;
use super::native::SyncState;
use super::ws::Sockets;
use crate::access::Access;
use crate::config::live::Live;
use crate::engine::Health;
use crate::fetch::Fetcher;
use crate::files::Files;
use crate::files::operation::Operations;
use crate::network::firewall::Firewall;
use crate::network::pool::PortPool;
use crate::panel::Panel;
use crate::store::Store;
use crate::supervisor::{Metering, Registry};
use crate::volumes::Volumes;

/// The handles, put together by the composition root.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) supervisor: Arc<Registry>,
    pub(crate) access: Access,
    pub(crate) ports: PortPool,
    pub(crate) firewall: Firewall,
    pub(crate) files: Files,
    pub(crate) volumes: Volumes,
    pub(crate) operations: Operations,
    pub(crate) metering: Arc<Metering>,
    pub(crate) panel: Arc<Panel>,
    pub(crate) config: Arc<Live>,
    pub(crate) store: Store,
    pub(crate) engine_health: watch::Receiver<Health>,
    pub(crate) sockets: Sockets,
    pub(crate) fetcher: Fetcher,
    pub(crate) idempotency: Idempotency,
    pub(crate) sync: SyncState,
    pub(crate) began: Instant,
    /// Ends every socket.
    pub(crate) stop: CancellationToken,
}

/// Cheap to clone, as axum does for each request.
#[derive(Clone, Debug)]
pub(crate) struct AppState(Arc<Services>);

impl AppState {
    pub(crate) fn new(services: Services) -> Self {
        Self(Arc::new(services))
    }
}

impl std::ops::Deref for AppState {
    type Target = Services;
    fn deref(&self) -> &Services {
        &self.0
    }
}

impl FromRef<AppState> for BodyLimit {
    fn from_ref(state: &AppState) -> Self {
        Self { bytes: state.config.current().server.max_body_bytes }
    }
}
