//! What outsiders ask of the owner task: checked, decided by the machine, stored, answered.
//!
//! The answer goes out with the decision and says nothing of its effects. A wish that is refused, or
//! that cannot be stored, has changed nothing.

use std::sync::Arc;

use super::limits::LimitsWanted;
use super::record::{Change, Record};
use super::task::Owner;
use super::trail;
use super::workload::policy;
use super::{Accepted, Msg, Refusal, Request};
use crate::domain::audit::{Act, Actor};
use crate::domain::lifecycle::{Answer, Command, Denied, Effect, Machine, Phase};
use crate::domain::spec::ContainerSpec;
use crate::store::StoreError;

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

    pub(super) async fn update(
        &mut self,
        spec: ContainerSpec,
        actor: Actor,
    ) -> Result<Accepted, Refusal> {
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
}
