//! Containers: create, change, look at, wait for, remove.
//!
//! What is asked for twice is granted twice: starting what runs and stopping, killing or removing what
//! is not there are `Ok`. A look that failed is an error and never "not there".

use std::time::Duration;

use bollard::models::{ChangeType, ContainerInspectResponse};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, InspectContainerOptions,
    InspectContainerOptionsBuilder, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    RenameContainerOptionsBuilder, StartContainerOptions,
};
use bytes::Bytes;
use hyper::Method;

use super::error::{EngineError, EngineErrorKind};
use super::op::{self, Op};
use super::raw::{RawRequest, broke, garbled};
use super::request::{CreateRequest, Created};
use super::{Engine, container_target, convert, images, labels};
use crate::domain::observed::{Exit, Observed, ObservedStatus};
use crate::domain::spec::Limits;
use crate::domain::units::now_unix_ms;

/// A code and at most a sentence.
const WAIT_ANSWER_MAX_BYTES: usize = 64 * 1024;

/// A look with what only tests ask for.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(crate) struct Details {
    pub(crate) name: String,
    pub(crate) image_id: String,
    /// The address in the network it was created in, while it runs.
    pub(crate) address: Option<std::net::IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChangedPath {
    pub(crate) path: String,
    pub(crate) kind: ChangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Modified,
    Added,
    Deleted,
}

impl Engine {
    pub(crate) async fn create(&self, request: &CreateRequest) -> Result<Created, EngineError> {
        images::check_reference(op::CREATE, &request.image)?;
        let options = CreateContainerOptionsBuilder::new().name(&request.name).build();
        let body = convert::create_body(request, self.node());
        let made = self
            .call_container(op::CREATE, &request.name, |docker| async move {
                docker.create_container(Some(options), body).await
            })
            .await?;
        Ok(Created { docker_id: made.id, warnings: made.warnings })
    }

    /// `Ok` as well if it runs already.
    pub(crate) async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.call_container(op::START, id, |docker| async move {
            docker.start_container(id, None::<StartContainerOptions>).await
        })
        .await
    }

    /// Sends a signal, by its name; `Ok` as well if nothing runs or nothing is there.
    pub(crate) async fn kill(&self, id: &str, signal: &str) -> Result<(), EngineError> {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        let sent = self
            .call_container(op::KILL, id, |docker| async move {
                docker.kill_container(id, Some(options)).await
            })
            .await;
        match sent {
            Err(error)
                if matches!(
                    error.kind(),
                    EngineErrorKind::NotFound | EngineErrorKind::Conflict
                ) =>
            {
                Ok(())
            }
            sent => sent,
        }
    }

    /// `Ok` as well if it is paused already.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), EngineError> {
        let done = self
            .call_container(op::PAUSE, id, |docker| async move { docker.pause_container(id).await })
            .await;
        self.unless_already(id, done, ObservedStatus::Paused).await
    }

    /// `Ok` as well if it runs already.
    pub(crate) async fn unpause(&self, id: &str) -> Result<(), EngineError> {
        let done =
            self.call_container(op::UNPAUSE, id, |docker| async move {
                docker.unpause_container(id).await
            })
            .await;
        self.unless_already(id, done, ObservedStatus::Running).await
    }

    /// The engine refuses to make a state that is there already, with another status each time.
    async fn unless_already(
        &self,
        id: &str,
        done: Result<(), EngineError>,
        wanted: ObservedStatus,
    ) -> Result<(), EngineError> {
        match done {
            Err(error) if !error.is_away() && error.kind() != EngineErrorKind::NotFound => {
                let seen = self.inspect(id).await?;
                if seen.is_some_and(|seen| seen.status == wanted) { Ok(()) } else { Err(error) }
            }
            done => done,
        }
    }

    /// Removes it with its anonymous volumes, also while it runs; `Ok` means that it is gone.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let removed = self
            .call_container(op::REMOVE, id, |docker| async move {
                docker.remove_container(id, Some(options)).await
            })
            .await;
        match removed {
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(()),
            // Somebody else's removal is under way.
            Err(error) if error.kind() == EngineErrorKind::Conflict => {
                self.wait_until_gone(id, error).await
            }
            removed => removed,
        }
    }

    async fn wait_until_gone(&self, id: &str, refusal: EngineError) -> Result<(), EngineError> {
        let gone = async {
            while self.inspect(id).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        };
        tokio::time::timeout(op::REMOVE.deadline, gone).await.unwrap_or(Err(refusal))
    }

    /// `Ok` as well if it has that name already.
    pub(crate) async fn rename(&self, id: &str, new_name: &str) -> Result<(), EngineError> {
        container_target(op::RENAME, new_name)?;
        let options = RenameContainerOptionsBuilder::new().name(new_name).build();
        let renamed = self
            .call_container(op::RENAME, id, |docker| async move {
                docker.rename_container(id, options).await
            })
            .await;
        match renamed {
            Err(error)
                if matches!(error.kind(), EngineErrorKind::Conflict | EngineErrorKind::Invalid) =>
            {
                let seen = self.look_at(op::INSPECT, id, None).await?;
                let name = seen.and_then(|seen| seen.name).map(without_slash);
                if name.as_deref() == Some(new_name) { Ok(()) } else { Err(error) }
            }
            renamed => renamed,
        }
    }

    /// Changes the limits that are `Some`, live. What is `None` stays as it is. Answers with what the engine
    /// warns of, which the vendor's call throws away.
    pub(crate) async fn update_limits(
        &self,
        id: &str,
        limits: &Limits,
    ) -> Result<Vec<String>, EngineError> {
        #[derive(serde::Deserialize)]
        struct Updated {
            #[serde(rename = "Warnings")]
            warnings: Option<Vec<String>>,
        }
        let target = container_target(op::UPDATE, id)?;
        let body = serde_json::to_vec(&convert::update_body(limits))
            .map_err(|why| garbled(op::UPDATE, &target, why.to_string()))?;
        let request = RawRequest {
            op: op::UPDATE,
            target: target.clone(),
            method: Method::POST,
            path: format!("/containers/{id}/update"),
            body: body.into(),
        };
        let answer = self.whole_answer(request).await?;
        let updated: Updated = serde_json::from_slice(&answer)
            .map_err(|why| garbled(op::UPDATE, &target, why.to_string()))?;
        Ok(updated.warnings.unwrap_or_default())
    }

    /// `Ok(None)` means that the engine says it is not there.
    pub(crate) async fn inspect(&self, id: &str) -> Result<Option<Observed>, EngineError> {
        Ok(self.inspect_published(id).await?.map(|(seen, _)| seen))
    }

    /// As [`Engine::inspect`], with image and address.
    #[cfg(test)]
    pub(crate) async fn inspect_details(&self, id: &str) -> Result<Option<Details>, EngineError> {
        let Some(found) = self.look_at(op::INSPECT, id, None).await? else { return Ok(None) };
        let network = found.host_config.as_ref().and_then(|host| host.network_mode.as_deref());
        let address = network.and_then(|network| convert::address(&found, network));
        Ok(Some(Details {
            address,
            name: without_slash(found.name.unwrap_or_default()),
            image_id: found.image.unwrap_or_default(),
        }))
    }

    /// A container's address in the network it was created in, while it runs.
    pub(crate) async fn address_of(
        &self,
        id: &str,
    ) -> Result<Option<std::net::IpAddr>, EngineError> {
        let Some(found) = self.look_at(op::INSPECT, id, None).await? else { return Ok(None) };
        let network = found.host_config.as_ref().and_then(|host| host.network_mode.as_deref());
        Ok(network.and_then(|network| convert::address(&found, network)))
    }

    pub(super) async fn look_at(
        &self,
        op: Op,
        id: &str,
        options: Option<InspectContainerOptions>,
    ) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let found =
            self.call_container(op, id, |docker| async move {
                docker.inspect_container(id, options).await
            })
            .await;
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits, for as long as it takes, until the container is seen to have exited. A connection that
    /// breaks meanwhile is an error and never an exit. That the memory ran out the engine records late
    /// or not at all under load: the kernel knows better (`cgroup`).
    pub(crate) async fn wait(&self, id: &str) -> Result<Exit, EngineError> {
        loop {
            let code = self.wait_once(id).await?;
            let Some(seen) = self.inspect(id).await? else {
                return Ok(Exit {
                    code,
                    oom_engine: false,
                    oom_kernel: false,
                    at_ms: now_unix_ms(),
                    clock_set_by_ms: 0,
                });
            };
            match seen.status {
                ObservedStatus::Exited(exit) => return Ok(exit),
                // It began to run again between the two questions.
                ObservedStatus::Running | ObservedStatus::Paused => {}
                ObservedStatus::Created => {
                    let why = "it was never started";
                    return Err(self.wait_failed(id, EngineErrorKind::Conflict, why));
                }
            }
        }
    }

    async fn wait_once(&self, id: &str) -> Result<i64, EngineError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(rename = "StatusCode")]
            status_code: i64,
        }
        let target = container_target(op::WAIT, id)?;
        let mut body = self
            .streamed(RawRequest {
                op: op::WAIT,
                target: target.clone(),
                method: Method::POST,
                path: format!("/containers/{id}/wait"),
                body: Bytes::new(),
            })
            .await?;
        let mut text = Vec::new();
        while let Some(piece) =
            body.next().await.map_err(|fault| self.noted(broke(op::WAIT, &target, fault)))?
        {
            text.extend_from_slice(&piece);
            if text.len() > WAIT_ANSWER_MAX_BYTES {
                return Err(garbled(op::WAIT, &target, "an answer without end".to_owned()));
            }
        }
        match serde_json::from_slice(&text) {
            Ok(Answer { status_code }) if status_code >= 0 => Ok(status_code),
            Ok(_) | Err(_) => {
                let why = "the engine stopped waiting";
                Err(self.wait_failed(id, EngineErrorKind::Unreachable, why))
            }
        }
    }

    fn wait_failed(&self, id: &str, kind: EngineErrorKind, why: &str) -> EngineError {
        self.noted(EngineError::said(op::WAIT, format!("container {id}"), kind, why))
    }

    /// Where the container's root file system differs from its image. Mount points are always among
    /// them.
    pub(crate) async fn changed_paths(&self, id: &str) -> Result<Vec<ChangedPath>, EngineError> {
        let found =
            self.call_container(op::MEASURE, id, |docker| async move {
                docker.container_changes(id).await
            })
            .await?;
        let changed = found.unwrap_or_default().into_iter().map(|change| ChangedPath {
            path: change.path,
            kind: match change.kind {
                ChangeType::_0 => ChangeKind::Modified,
                ChangeType::_1 => ChangeKind::Added,
                ChangeType::_2 => ChangeKind::Deleted,
            },
        });
        Ok(changed.collect())
    }

    /// Bytes in the container's writable layer; `Ok(None)` if the container is not there.
    pub(crate) async fn size_rw(&self, id: &str) -> Result<Option<u64>, EngineError> {
        let options = InspectContainerOptionsBuilder::new().size(true).build();
        let found = self.look_at(op::MEASURE, id, Some(options)).await?;
        Ok(found.map(|found| found.size_rw.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)))
    }

    /// Makes an image of the container's root file system and returns its id; one that was made of it
    /// before under this name is kept. The image is configured as the container's own image is: nothing
    /// that was set for this one container lives on in it.
    pub(crate) async fn commit(
        &self,
        id: &str,
        repo: &str,
        tag: &str,
    ) -> Result<String, EngineError> {
        let name = format!("{repo}:{tag}");
        images::check_reference(op::COMMIT, &name)?;
        let made = self.list_images(&labels::filter(labels::MADE_FROM, id)).await?;
        if let Some(made) = made.into_iter().find(|made| made.tags.contains(&name)) {
            return Ok(made.id);
        }
        let Some(found) = self.look_at(op::COMMIT, id, None).await? else {
            let kind = EngineErrorKind::NotFound;
            return Err(EngineError::said(
                op::COMMIT,
                format!("container {id}"),
                kind,
                "not there",
            ));
        };
        let base = self.image_config(&found.image.unwrap_or_default()).await?;
        let config =
            convert::commit_config(&base, &found.config.unwrap_or_default(), self.node(), id);
        let options = CommitContainerOptionsBuilder::new()
            .container(id)
            .repo(repo)
            .tag(tag)
            .pause(true)
            .build();
        let made = self
            .call_container(op::COMMIT, id, |docker| async move {
                docker.commit_container(options, config).await
            })
            .await?;
        Ok(made.id)
    }
}

pub(super) fn observed(
    id: &str,
    found: &ContainerInspectResponse,
) -> Result<Observed, EngineError> {
    convert::observed(found).ok_or_else(|| {
        let target = format!("container {id}");
        let kind = EngineErrorKind::Internal;
        EngineError::said(op::INSPECT, target, kind, "the engine's answer has no state")
    })
}

pub(super) fn without_slash(name: String) -> String {
    name.strip_prefix('/').map(str::to_owned).unwrap_or(name)
}
