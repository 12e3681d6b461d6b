//! Keeps the kernel at what the store has: at boot, when a container's ports or address change, after a
//! failure, and when somebody else has changed or flushed the rules.
//!
//! A task of the composition root. It never gives up: what fails is told by the status and tried again.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{Backend, Firewall, FirewallStatus, Kernel};
use crate::domain::event::{Signal, SignalKind, StateName};
use crate::engine::Health;
use crate::network::nft;
use crate::util::chain::Chain;

const AGAIN: Duration = Duration::from_secs(10);

/// What the keeper listens to.
#[derive(Debug)]
pub(crate) struct Cues {
    /// States of containers.
    pub(crate) signals: broadcast::Receiver<Signal>,
    pub(crate) health: watch::Receiver<Health>,
    /// Counts the times at which the kernel's rules have changed, by anybody.
    pub(crate) changes: watch::Receiver<u64>,
}

/// Why to look again.
enum Cue {
    Touched,
    Addresses,
    Disturbed,
    Again,
}

impl Firewall {
    pub(crate) async fn run(self, mut cues: Cues, stop: CancellationToken) {
        if self.inner.backend == Backend::Off {
            return self.remove_table().await;
        }
        let mut cue = Cue::Addresses;
        loop {
            self.keep(cue).await;
            match stop.run_until_cancelled(self.next(&mut cues)).await {
                Some(next) => cue = next,
                None => return,
            }
        }
    }

    /// Waits until the changes that were asked for are through.
    pub(crate) async fn drained(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Rules of a time when the firewall was on must not stay behind.
    async fn remove_table(&self) {
        match nft::apply(&nft::drop_table("inet", &self.inner.table)).await {
            Ok(()) | Err(nft::NftError::Missing | nft::NftError::Refused { .. }) => {}
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cannot remove the containers' firewall");
            }
        }
    }

    async fn keep(&self, cue: Cue) {
        let inner = &self.inner;
        let mut kernel = inner.kernel.lock().await;
        match cue {
            Cue::Touched | Cue::Again => {
                let moved = std::mem::take(&mut *inner.lock_moved());
                for container in &moved {
                    inner.find_address(&mut kernel, container).await;
                }
            }
            Cue::Addresses => inner.find_addresses(&mut kernel).await,
            Cue::Disturbed => look_after(&mut kernel).await,
        }
        if let Err(error) = inner.set(&mut kernel).await {
            tracing::error!(error = %Chain(&error), "the containers' firewall is not set; it will be tried again");
        }
    }

    async fn next(&self, cues: &mut Cues) -> Cue {
        let failed = matches!(self.status(), FirewallStatus::Failed { .. });
        let again = tokio::time::sleep(AGAIN);
        tokio::pin!(again);
        loop {
            tokio::select! {
                () = self.inner.touched.notified() => return Cue::Touched,
                changed = cues.changes.changed() => match changed {
                    Ok(()) => return Cue::Disturbed,
                    // Nobody watches any more: lightd is stopping.
                    Err(_) => std::future::pending::<()>().await,
                },
                signal = cues.signals.recv() => match signal {
                    Ok(Signal { kind: SignalKind::State(event), container }) => {
                        if is_end(event.name) {
                            self.moved(&container);
                        }
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => return Cue::Addresses,
                    Err(RecvError::Closed) => std::future::pending::<()>().await,
                },
                Ok(()) = cues.health.changed() => {
                    if cues.health.borrow_and_update().is_reachable() {
                        return Cue::Addresses;
                    }
                }
                () = &mut again, if failed => return Cue::Again,
            }
        }
    }
}

/// Whether a container may have lost its address with this state.
fn is_end(state: StateName) -> bool {
    matches!(state, StateName::Exit | StateName::Stopped | StateName::Failed)
}

/// Compares what stands with what was set; what is unlike is to be set whole.
async fn look_after(kernel: &mut Kernel) {
    let Some(standing) = &kernel.standing else { return };
    match standing.holds().await {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!("somebody has changed the containers' firewall; it is set anew");
            kernel.given = None;
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the containers' firewall cannot be looked at");
        }
    }
}
