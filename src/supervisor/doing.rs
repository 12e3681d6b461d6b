//! Carrying out what the machine has decided: signals, child tasks, and the container's last act.
//!
//! Called by the owner task once a decision is stored. Nothing here waits for the engine. What a child
//! task that panicked was about is found by looking; a row that cannot be deleted is tried again.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::effects::Ctx;
use super::looks::LOOK_SOON;
use super::post_mortem::Evidence;
use super::task::{Owner, Report};
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::event::SignalKind;
use crate::domain::ids::RunId;
use crate::domain::lifecycle::{Effect, Fact, Phase};
use crate::store::{StoreError, Tx};
use crate::util::chain::Chain;

/// A task that may be broken off.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) abort: AbortHandle,
    /// Once it does nothing any more: an abort takes effect only where the task waits next.
    ended: CancellationToken,
}

/// Breaks off a task; what is returned is cancelled once it does nothing any more.
fn abort(child: Option<Child>) -> Option<CancellationToken> {
    child.map(|Child { abort, ended }| {
        abort.abort();
        ended
    })
}

impl Owner {
    pub(super) async fn carry_out(&mut self, effects: Vec<Effect>) {
        self.shared.note_latest(self.record.machine.last_run());
        for effect in effects {
            match effect {
                Effect::Emit(event) => {
                    tracing::info!(container.id = %self.record.id, run.id = %event.run, state = event.name.as_str(), "state changed");
                    self.services.signal(&self.record.id, SignalKind::State(event));
                }
                Effect::Say(text) => {
                    self.services.signal(&self.record.id, SignalKind::DaemonMessage(text))
                }
                Effect::Forget => self.forget().await,
                // Before the boot look nothing is done: the look finds the stored phase and does it.
                work if self.booted => self.begin(work),
                _ => {}
            }
        }
    }

    /// Starts the child task for an effect on the engine.
    fn begin(&mut self, effect: Effect) {
        let ctx = self.ctx();
        match effect {
            Effect::Install { run } => self.install_task = Some(self.child(ctx.install(run))),
            Effect::AbortInstall { run } => {
                let ended = abort(self.install_task.take());
                self.tasks.spawn(ctx.remove_install(run, ended));
            }
            Effect::ClearInstall { run } => drop(self.tasks.spawn(ctx.remove_install(run, None))),
            Effect::Start { run, paced } => {
                let before = self.run_task.take().map(|(_, task)| task.abort);
                self.run_task = Some((run, self.child(ctx.start(run, paced, before))));
            }
            Effect::Attach { run } => {
                self.launched = Some(run);
                self.run_task = Some((run, self.child(ctx.resume(run))));
            }
            Effect::Stop { run, unpause } if self.launched == Some(run) => {
                self.tasks.spawn(ctx.stop(run, unpause));
            }
            Effect::Stop { run, .. } => self.kill(ctx, run),
            Effect::Kill { run } => self.kill(ctx, run),
            Effect::Pause { run } => drop(self.tasks.spawn(ctx.pause(run))),
            Effect::Unpause { run } => drop(self.tasks.spawn(ctx.unpause(run))),
            Effect::Freeze { run } => drop(self.tasks.spawn(ctx.freeze(run))),
            Effect::Thaw { run } => drop(self.tasks.spawn(ctx.thaw(run))),
            Effect::PostMortem { run } => self.keep_post_mortem(ctx, run),
            Effect::Rebind => self.rebind_task = Some(self.child(ctx.rebind())),
            Effect::UndoRebind => self.rebind_task = Some(self.child(ctx.undo_rebind())),
            Effect::FinishRebind => drop(self.tasks.spawn(ctx.finish_rebind())),
            Effect::Remove => {
                let run_task = self.run_task.take().map(|(_, task)| task);
                let at_work = [self.install_task.take(), run_task, self.rebind_task.take()];
                self.tasks.spawn(ctx.remove(at_work.into_iter().filter_map(abort).collect()));
            }
            Effect::Forget | Effect::Emit(_) | Effect::Say(_) => {}
        }
    }

    fn keep_post_mortem(&mut self, ctx: Ctx, run: RunId) {
        // Taken now: a restart may follow at once.
        let evidence = Evidence::of(&self.shared, self.record.machine.times().launched_at_ms);
        self.tasks.spawn(ctx.keep_post_mortem(run, evidence));
    }

    /// Ends a run that may not have begun. One task does it, however often it is asked for.
    fn kill(&mut self, ctx: Ctx, run: RunId) {
        if self.launched != Some(run) {
            self.abort_run();
        }
        let is_at_it =
            self.kill_task.as_ref().is_some_and(|(of, task)| *of == run && !task.is_finished());
        if !is_at_it {
            self.kill_task = Some((run, self.tasks.spawn(ctx.kill(run))));
        }
    }

    fn abort_run(&mut self) {
        abort(self.run_task.take().map(|(_, task)| task));
    }

    fn child(&mut self, work: impl Future<Output = ()> + Send + 'static) -> Child {
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let abort = self.tasks.spawn(async move {
            let _guard = guard;
            work.await;
        });
        Child { abort, ended }
    }

    /// The last act: the row goes, everybody learns of it, and only then is the name free.
    async fn forget(&mut self) {
        let (id, used) = (self.record.id.clone(), self.shared.take_usage());
        let (terms, last) = (self.services.port_terms(), used.clone());
        let delete = move |tx: &Tx<'_>| {
            tx.add_usage(&id, &last)?;
            tx.delete_container(&id, &terms)?;
            let gone = Act::new(Actor::lightd(), Action::ContainerDeleted).on(&id);
            tx.record(&gone, terms.now)
        };
        match self.services.store.write("delete a container", delete).await {
            Ok(()) | Err(StoreError::NoSuchContainer(_)) => {
                // Its rules went with the row.
                self.services.firewall.touch();
                self.generation += 1;
                let last = self.record.snapshot(self.generation, None, true);
                self.snapshot.send_replace(Arc::new(last));
                self.registry.remove(&self.record.id);
            }
            Err(error) => {
                self.shared.usage().give_back(&used);
                tracing::error!(container.id = %self.record.id, error = %Chain(&error), "cannot delete the row; it will be tried again");
                let ctx = self.ctx();
                self.tasks.spawn(async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    ctx.report(Report::Fact(Fact::Removed)).await;
                });
            }
        }
    }

    /// A child task that panicked has told nothing: what it was about is found by looking.
    pub(super) async fn task_ended(&mut self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(container.id = %self.record.id, %error, "a task of the container panicked");
            self.look_pending = false;
            self.look_at = Some(Instant::now() + LOOK_SOON);
            self.limits_task_ended().await;
            if let Phase::Installing { run, .. } = self.record.machine.phase() {
                let (ctx, run) = (self.ctx(), *run);
                let result = Err("an internal error ended the installation".to_owned());
                self.tasks.spawn(async move {
                    ctx.report(Report::Fact(Fact::InstallEnded { run, result })).await
                });
            }
        }
    }
}
