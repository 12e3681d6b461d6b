//! Signals from outside, turned into what the rest of lightd waits for.
//!
//! SIGTERM and SIGINT cancel one token that everything hangs on; SIGHUP asks for a reload of the
//! configuration. The service manager is told when lightd is ready and when it is stopping, if there
//! is one.

use std::io;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The handlers, in place from [`Signals::install`] on: a signal that comes during the start counts.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Must be called inside the runtime.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Passes signals on until one of them ends the daemon, or something else has.
    pub(crate) async fn run(mut self, shutdown: CancellationToken, reload: Arc<Notify>) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = self.terminate.recv() => break tracing::info!("stopping on SIGTERM"),
                _ = self.interrupt.recv() => break tracing::info!("stopping on SIGINT"),
                _ = self.hangup.recv() => {
                    tracing::info!("reloading the configuration on SIGHUP");
                    reload.notify_one();
                }
            }
        }
        shutdown.cancel();
    }
}

/// lightd serves now.
pub(crate) fn notify_ready() {
    notify(&[NotifyState::Ready]);
}

pub(crate) fn notify_stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(why) = sd_notify::notify(state) {
        tracing::debug!(error = %why, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn signals_reload_and_then_stop() {
        let signals = Signals::install().unwrap();
        let (shutdown, reload) = (CancellationToken::new(), Arc::new(Notify::new()));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(signals.run(shutdown.clone(), Arc::clone(&reload)));
        let kill = |signal| {
            rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
        };
        let deadline = Duration::from_secs(5);
        kill(rustix::process::Signal::HUP);
        tokio::time::timeout(deadline, reload.notified()).await.expect("no reload within 5 s");
        assert!(!shutdown.is_cancelled());
        kill(rustix::process::Signal::TERM);
        tokio::time::timeout(deadline, shutdown.cancelled()).await.expect("no stop within 5 s");
        tasks.join_all().await;
    }
}
