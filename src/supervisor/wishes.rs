//! What outsiders ask of the owner task: checked, decided by the machine, stored, answered.
//!
//! The answer goes out with the decision and says nothing of its effects. A wish that is refused, or
//! that cannot be stored, has changed nothing.

use std::sync::Arc;

use tokio::task::AbortHandle;

use super::record::{Change, Record, With};
use super::task::Owner;
use super::trail;
use super::workload::policy;
use super::{Accepted, Msg, Refusal, Reply, Request};
use crate::domain::audit::{Act, Actor};
use crate::domain::lifecycle::{Answer, Command, Denied, Effect, Machine, Phase};
use crate::domain::spec::{ContainerSpec, Limits, LimitsPatch};
use crate::engine::{EngineError, EngineErrorKind};
use crate::store::StoreError;

/// Changes of limits that wait for the engine to have taken others.
const LIMITS_WANTED: usize = 16;

/// A change of limits on its way.
#[derive(Debug)]
pub(super) struct LimitsWanted {
    pub(super) change: LimitsPatch,
    pub(super) actor: Actor,
    pub(super) reply: Reply,
}

impl Owner {
    pub(super) async fn take_request(&mut self, Msg { request, actor, reply }: Msg) {
        let decided = match request {
            Request::Resources(change) => {
                return self.resources(LimitsWanted { change, actor, reply }).await;
            }
            Request::Command(command) => self.wish(command, None, actor).await,
            Request::Reinstall { image, install_script } => {
                let spec = self.reinstalled(image, install_script);
                let change = Change::Spec(Box::new(spec));
                self.wish(Command::Reinstall, Some(change), actor).await
            }
            Request::Rebind { ports } => {
                self.wish(Command::Rebind, Some(Change::Ports(ports)), actor).await
            }
            Request::Update(patch) => self.update(patch.apply(&self.record.spec), actor).await,
            Request::Trial(request) => self.trial(*request),
        };
        // Whoever asked may have gone away; the decision stands.
        drop(reply.send(decided));
    }

    /// The specification that a reinstall asks for.
    pub(super) fn reinstalled(
        &self,
        image: Option<String>,
        install_script: Option<String>,
    ) -> ContainerSpec {
        let mut spec = (*self.record.spec).clone();
        spec.image = image.unwrap_or(spec.image);
        spec.install_script = install_script.or(spec.install_script);
        spec
    }

    /// Whether a wish may be taken on, and what follows from it for this machine.
    pub(super) fn decide(
        &self,
        machine: &mut Machine,
        command: Command,
        change: Option<&Change>,
    ) -> Result<(Answer, Vec<Effect>), Refusal> {
        let may_wait_for_engine =
            matches!(command, Command::Kill | Command::Delete | Command::Stop | Command::Thaw);
        if (self.unknown_since.is_some() || !self.booted) && !may_wait_for_engine {
            return Err(Refusal::EngineUnavailable);
        }
        if matches!(command, Command::Start | Command::Restart | Command::Reinstall)
            && let Some(work) = self.services.files.claimed_for(self.record.spec.volume_id)
        {
            return Err(Refusal::VolumeBusy(work));
        }
        if let Some(Change::Spec(spec)) = change {
            self.check(spec)?;
        }
        let policy = policy(&self.record.spec, &self.services.settings());
        Ok(machine.command(command, policy, self.services.uptime())?)
    }

    pub(super) async fn wish(
        &mut self,
        command: Command,
        change: Option<Change>,
        actor: Actor,
    ) -> Result<Accepted, Refusal> {
        let before = self.record.clone();
        let mut machine = before.machine.clone();
        let (answer, effects) = self.decide(&mut machine, command, change.as_ref())?;
        self.record.machine = machine;
        if command == Command::Start {
            self.shared.start_wanted.notify_waiters();
        }
        if answer == Answer::Satisfied && change.is_none() && self.record.machine == before.machine
        {
            return Ok(self.accepted(answer));
        }
        let mut acts = Vec::from_iter(self.wished(&before, (answer, command), &change, actor));
        acts.extend(self.happened(&before.machine, &effects));
        let with = self.with(&effects, change, acts);
        let ends_it = matches!(command, Command::Kill | Command::Stop | Command::Suspend);
        let mut stored = self.save(&effects, with.clone()).await;
        if let Err(StoreError::NoSpace { .. }) = stored
            && ends_it
            && self.services.store.give_up_reserve().await
        {
            stored = self.save(&effects, with.clone()).await;
        }
        if let Err(error) = stored {
            if !matches!(command, Command::Kill | Command::Stop | Command::Thaw) {
                self.record = before;
                return Err(Refusal::Store(error));
            }
            self.store_later(with, &error);
        }
        self.publish();
        let accepted = self.accepted(answer);
        self.carry_out(effects).await;
        Ok(accepted)
    }

    fn accepted(&self, answer: Answer) -> Accepted {
        let decided = Arc::clone(&self.snapshot.borrow());
        Accepted { decided, answer, warnings: Vec::new() }
    }

    /// The wish as the audit log has it. One that was satisfied already is none, unless it has changed more
    /// than what is counted of restarts.
    fn wished(
        &self,
        before: &Record,
        (answer, command): (Answer, Command),
        change: &Option<Change>,
        actor: Actor,
    ) -> Option<Act> {
        let (now, was) = (&self.record.machine, &before.machine);
        let has_changed = now.phase() != was.phase() || now.wanted_up() != was.wanted_up();
        if answer == Answer::Satisfied && !has_changed {
            return None;
        }
        trail::of_wish(actor, &self.record.id, command, &before.spec, change.as_ref())
    }

    async fn update(&mut self, spec: ContainerSpec, actor: Actor) -> Result<Accepted, Refusal> {
        let restart_needed = self.record.restart_needed || !spec.is_built_like(&self.record.spec);
        self.replace_spec(spec, restart_needed, actor).await
    }

    /// Stores a specification. `restart_needed`: the Docker container is of another one.
    pub(super) async fn replace_spec(
        &mut self,
        spec: ContainerSpec,
        restart_needed: bool,
        actor: Actor,
    ) -> Result<Accepted, Refusal> {
        if matches!(self.record.machine.phase(), Phase::Deleting) {
            return Err(Refusal::Denied(Denied::Deleting));
        }
        self.check(&spec)?;
        let before = self.record.clone();
        self.record.restart_needed = restart_needed;
        // One that a rebind has set aside has none of it.
        self.record.previous_restart_needed |=
            restart_needed || !spec.is_built_like(&self.record.spec);
        let act = trail::of_update(actor, &self.record.id, &self.record.spec, &spec);
        let change = Change::Spec(Box::new(spec));
        let with = self.with(&[], Some(change), Vec::from_iter(act));
        if let Err(error) = self.save(&[], with).await {
            self.record = before;
            return Err(Refusal::Store(error));
        }
        self.publish();
        Ok(self.accepted(Answer::Accepted))
    }

    pub(super) fn check(&self, spec: &ContainerSpec) -> Result<(), Refusal> {
        let problems = spec.problems(self.services.capacity);
        if problems.is_empty() { Ok(()) } else { Err(Refusal::Invalid(problems)) }
    }

    /// Limits are given to the running workload first: the engine may know better what is possible. One
    /// change after the other, each to what the ones before have left.
    async fn resources(&mut self, wanted: LimitsWanted) {
        if self.limits_wanted.len() >= LIMITS_WANTED {
            drop(wanted.reply.send(Err(Refusal::Busy)));
            return;
        }
        self.limits_wanted.push_back(wanted);
        self.next_limits().await;
    }

    pub(super) async fn next_limits(&mut self) {
        while self.limits_task.as_ref().is_none_or(AbortHandle::is_finished)
            && let Some(wanted) = self.limits_wanted.pop_front()
        {
            let limits = wanted.change.apply(self.record.spec.limits);
            let decided = if let Err(refusal) = self.may_have(limits) {
                Err(refusal)
            } else if self.has_workload() {
                match self.doubt_limits().await {
                    Ok(()) => {
                        let applying = self.ctx().apply_limits(limits, wanted);
                        self.limits_task = Some(self.tasks.spawn(applying));
                        return;
                    }
                    Err(error) => Err(Refusal::Store(error)),
                }
            } else {
                let mut spec = (*self.record.spec).clone();
                spec.limits = limits;
                self.update(spec, wanted.actor).await
            };
            // Whoever asked may have gone away; the decision stands.
            drop(wanted.reply.send(decided));
        }
    }

    /// Before the engine is asked: a kill of lightd must not leave it with other limits than the store.
    async fn doubt_limits(&mut self) -> Result<(), StoreError> {
        self.record.limits_in_doubt = true;
        let stored = self.save(&[], With::default()).await;
        self.record.limits_in_doubt = stored.is_ok();
        stored
    }

    /// After a panic: those that wait shall not wait for ever, and nobody has told which limits there are.
    pub(super) async fn limits_task_ended(&mut self) {
        if self.limits_task.as_ref().is_some_and(AbortHandle::is_finished) {
            self.limits_task = None;
            self.record.restart_needed |= std::mem::take(&mut self.record.limits_in_doubt);
            self.next_limits().await;
        }
    }

    /// The engine has told that nothing was changed.
    async fn limits_refused(&mut self, refusal: Refusal) -> Refusal {
        if let Err(error) = self.save(&[], With::default()).await {
            self.store_later(With::default(), &error);
        }
        refusal
    }

    /// Whether these limits may be set. The engine is asked for those of a workload only.
    pub(super) fn may_have(&self, limits: Limits) -> Result<(), Refusal> {
        let problems = limits.problems(self.services.capacity);
        if !problems.is_empty() {
            return Err(Refusal::Invalid(problems));
        }
        let is_away = self.unknown_since.is_some() || !self.booted;
        if is_away && self.has_workload() { Err(Refusal::EngineUnavailable) } else { Ok(()) }
    }

    fn has_workload(&self) -> bool {
        self.record.docker_id.is_some() && self.record.machine.live_run().is_some()
    }

    /// The engine has answered to new limits for what runs. `is_replaced`: another Docker container has taken
    /// its place since.
    pub(super) async fn limits_applied(
        &mut self,
        change: LimitsPatch,
        actor: Actor,
        is_replaced: bool,
        result: Result<Vec<String>, EngineError>,
    ) -> Result<Accepted, Refusal> {
        self.record.limits_in_doubt = false;
        match result {
            Err(error) if error.is_away() => {
                // Stored already.
                self.record.restart_needed = true;
                self.publish();
                Err(Refusal::EngineUnavailable)
            }
            // So it says, for one, that more memory is in use than there would be.
            Err(error) if error.kind() == EngineErrorKind::Internal => {
                Err(self.limits_refused(Refusal::Limits(error)).await)
            }
            Err(error) => Err(self.limits_refused(Refusal::Engine(error)).await),
            Ok(warnings) => {
                let mut spec = (*self.record.spec).clone();
                spec.limits = change.apply(spec.limits);
                // The engine has them, but lifts none; what else waits for a restart goes on waiting.
                let waits = !spec.limits.lifted_since(&self.record.spec.limits).is_empty();
                let restart_needed = self.record.restart_needed || waits || is_replaced;
                let replaced = self.replace_spec(spec, restart_needed, actor).await;
                // The engine has limits then that are stored nowhere.
                self.record.restart_needed |= replaced.is_err();
                replaced.map(|accepted| Accepted { warnings, ..accepted })
            }
        }
    }
}
