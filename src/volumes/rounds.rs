//! Volumes that lightd itself holds to a size: counted again in rounds while a workload may let files grow,
//! and told of when they hold too much.
//!
//! The kernel stops no workload there; what the operator wants done is `quota.on_exceeded`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Inner, OnExceeded, Volumes, VolumesError};
use crate::domain::event::SignalKind;
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::lifecycle::{Command, Phase};
use crate::domain::quota::QuotaBackend;
use crate::files::Lane;
use crate::files::usage::ROLL_ENTRIES;
use crate::supervisor::{ContainerHandle, Request};
use crate::util::chain::Chain;

const ROUND: Duration = Duration::from_secs(10);

impl Volumes {
    /// Counts in rounds until `stop`.
    pub(crate) async fn watch(&self, stop: CancellationToken) {
        let mut exceeded = HashSet::new();
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            let round = self.inner.count_again(&mut exceeded);
            match stop.run_until_cancelled(round).await {
                Some(Err(error)) => {
                    tracing::warn!(error = %Chain(&error), "volumes were not counted again");
                }
                Some(Ok(())) => {}
                None => return,
            }
        }
    }
}

impl Inner {
    async fn count_again(&self, exceeded: &mut HashSet<VolumeId>) -> Result<(), VolumesError> {
        let mut running: HashMap<VolumeId, Vec<ContainerHandle>> = HashMap::new();
        for handle in self.supervisor.list() {
            let snapshot = handle.snapshot();
            if matches!(snapshot.phase, Phase::Running { .. } | Phase::Starting { .. }) {
                running.entry(snapshot.spec.volume_id).or_default().push(handle);
            }
        }
        exceeded.retain(|volume| running.contains_key(volume));
        for (volume, users) in running {
            let Some(limit_bytes) = self.soft_limit(volume).await? else { continue };
            let count =
                self.files.run_in(Lane::Heavy, volume, |volume| volume.recount(ROLL_ENTRIES));
            let used_bytes = match count.await {
                Ok(used_bytes) => used_bytes,
                Err(error) => {
                    tracing::debug!(%volume, error = %Chain(&error), "a volume cannot be counted");
                    continue;
                }
            };
            if used_bytes <= limit_bytes {
                exceeded.remove(&volume);
            } else if exceeded.insert(volume) {
                self.tell_exceeded(&users, used_bytes, limit_bytes);
            }
            if used_bytes > limit_bytes && self.settings.borrow().on_exceeded == OnExceeded::Stop {
                stop_all(&users).await;
            }
        }
        Ok(())
    }

    /// The limit that lightd itself has to watch over: of a volume without the kernel's, or one that a
    /// container has below it.
    async fn soft_limit(&self, id: VolumeId) -> Result<Option<u64>, VolumesError> {
        let look = self.store.read("look up a volume's limits", move |rx| {
            let row = rx.volume(id)?;
            let is_soft = row.backing.is_some_and(|backing| backing.backend == QuotaBackend::Soft);
            let size = row.size_bytes.filter(|_| is_soft);
            Ok(size.into_iter().chain(rx.disk_limit_of(id)?).min())
        });
        Ok(look.await?)
    }

    fn tell_exceeded(&self, users: &[ContainerHandle], used_bytes: u64, limit_bytes: u64) {
        let mb = |bytes: u64| bytes >> 20;
        let text = format!(
            "the volume holds {} MB, more than its limit of {} MB",
            mb(used_bytes),
            mb(limit_bytes)
        );
        for handle in users {
            let id: &ContainerId = handle.id();
            tracing::warn!(container.id = %id, used_bytes, limit_bytes, "a volume is over its limit");
            let services = self.supervisor.services();
            services.signal(id, SignalKind::DaemonMessage(text.clone()));
        }
    }
}

async fn stop_all(users: &[ContainerHandle]) {
    for handle in users {
        if let Err(refusal) = handle.send(Request::Command(Command::Stop)).await {
            tracing::info!(container.id = %handle.id(), error = %Chain(&refusal), "it is not stopped for its volume");
        }
    }
}
