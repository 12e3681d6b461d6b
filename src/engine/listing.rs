//! Which containers there are, and what each publishes.

use std::collections::HashMap;

use bollard::query_parameters::ListContainersOptionsBuilder;

use super::containers::{observed, without_slash};
use super::error::EngineError;
use super::{Engine, convert, labels, op};
use crate::domain::observed::Observed;
use crate::domain::spec::HostPort;

/// A container of ours, or named like one, as the engine lists it.
#[derive(Clone, Debug)]
pub(crate) struct Ours {
    pub(crate) docker_id: String,
    pub(crate) name: String,
    pub(crate) labels: HashMap<String, String>,
}

impl Engine {
    /// All containers with this node's label, running or not.
    pub(crate) async fn list_ours(&self) -> Result<Vec<Ours>, EngineError> {
        self.list_containers(labels::filter(labels::NODE, self.node())).await
    }

    /// All containers, running or not, that are named as lightd's are and that no lightd of this kind has
    /// made: none has put its label on them.
    pub(crate) async fn list_of_others(&self) -> Result<Vec<Ours>, EngineError> {
        let named = HashMap::from([("name".to_owned(), vec!["^/?lightd-".to_owned()])]);
        let mut found = self.list_containers(named).await?;
        found.retain(|found| !found.labels.contains_key(labels::NODE));
        Ok(found)
    }

    async fn list_containers(
        &self,
        filters: HashMap<String, Vec<String>>,
    ) -> Result<Vec<Ours>, EngineError> {
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let found = self
            .call(op::LIST, "containers", |docker| async move {
                docker.list_containers(Some(options)).await
            })
            .await?;
        let listed = found.into_iter().filter_map(|found| {
            Some(Ours {
                docker_id: found.id?,
                name: without_slash(found.names.unwrap_or_default().into_iter().next()?),
                labels: found.labels.unwrap_or_default(),
            })
        });
        Ok(listed.collect())
    }

    /// The ports of the host that a container publishes, also while it does not run; none if it is not
    /// there.
    pub(crate) async fn published_ports(&self, id: &str) -> Result<Vec<HostPort>, EngineError> {
        let found = self.inspect_published(id).await?;
        Ok(found.map(|(_, ports)| ports).unwrap_or_default())
    }

    /// As [`Engine::inspect`], with the ports of the host that it publishes.
    pub(crate) async fn inspect_published(
        &self,
        id: &str,
    ) -> Result<Option<(Observed, Vec<HostPort>)>, EngineError> {
        match self.look_at(op::INSPECT, id, None).await? {
            Some(found) => Ok(Some((observed(id, &found)?, convert::published(&found)))),
            None => Ok(None),
        }
    }
}
