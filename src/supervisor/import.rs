//! Ports that containers publish which lightd does not manage: an older lightd's, or those of a store that
//! was lost.
//!
//! Such a port is another process's while its container runs, and nobody's while it rests; handed out
//! then, it would keep one of the two from starting. So the pool learns of it, marked with the container's
//! name. Containers of this node that no row stands for are looked through at each boot
//! ([`super::boot`]), all others when somebody asks ([`Registry::import_ports`]). An import may be
//! repeated; what is held, marked or leased stays as it is.

use super::registry::Registry;
use crate::domain::ids::ContainerId;
use crate::domain::spec::HostPort;
use crate::domain::units::UnixSeconds;
use crate::engine::{EngineError, Ours, labels};
use crate::store::StoreError;
use crate::store::ports::Imported;

/// A port that was found, and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct ImportedPort {
    pub(crate) port: HostPort,
    /// The Docker container that publishes it.
    pub(crate) by: String,
    pub(crate) outcome: Imported,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("cannot look at the engine's containers")]
    Engine(#[from] EngineError),
    #[error("cannot store their ports")]
    Store(#[from] StoreError),
}

impl Registry {
    /// Takes into the pool what containers publish that are named like lightd's, or are this node's, and
    /// that no row stands for.
    pub(crate) async fn import_ports(&self) -> Result<Vec<ImportedPort>, ImportError> {
        let engine = &self.services().engine;
        let mut strangers = engine.list_ours().await?;
        strangers.retain(|found| self.row_of(found).is_none());
        strangers.extend(engine.list_of_others().await?);
        self.import_ports_of(&strangers).await
    }

    /// The container that one of the engine's belongs to.
    pub(super) fn row_of(&self, found: &Ours) -> Option<ContainerId> {
        let id = found.labels.get(labels::CONTAINER).and_then(|id| ContainerId::parse(id).ok());
        id.filter(|id| self.get(id).is_some())
    }

    pub(super) async fn import_ports_of(
        &self,
        strangers: &[Ours],
    ) -> Result<Vec<ImportedPort>, ImportError> {
        let mut published = Vec::new();
        for stranger in strangers {
            let ports = self.services().engine.published_ports(&stranger.docker_id).await?;
            published.extend(ports.into_iter().map(|port| (port, stranger.name.clone())));
        }
        if published.is_empty() {
            return Ok(Vec::new());
        }
        let now = UnixSeconds::now();
        let import = move |tx: &crate::store::Tx<'_>| {
            let each = published.into_iter().map(|(port, by)| {
                let note = format!("published by {by}, which lightd does not manage");
                let outcome = tx.import_port(port, &note, now)?;
                Ok(ImportedPort { port, by, outcome })
            });
            each.collect::<Result<Vec<_>, StoreError>>()
        };
        Ok(self.services().store.write("import ports", import).await?)
    }
}
