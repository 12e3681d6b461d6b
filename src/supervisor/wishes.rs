//! What outsiders ask of the owner task: checked, decided by the machine, stored, answered.
//!
//! The answer goes out with the decision and says nothing of its effects. A wish that is refused, or
//! that cannot be stored, has changed nothing.

use tokio::task::AbortHandle;

use super::record::Change;
use super::task::Owner;
use super::workload::policy;
use super::{Accepted, Msg, Refusal, Reply, Request};
use crate::domain::lifecycle::{Answer, Command, Denied, Phase};
use crate::domain::spec::{ContainerSpec, Limits, LimitsPatch};
use crate::engine::EngineError;

/// Changes of limits that wait for the engine to have taken others.
const LIMITS_WANTED: usize = 16;

impl Owner {
    pub(super) async fn take_request(&mut self, Msg { request, reply }: Msg) {
        let decided = match request {
            Request::Resources(change) => return self.resources(change, reply).await,
            Request::Command(command) => self.wish(command, None).await,
            Request::Reinstall { image, install_script } => {
                let mut spec = (*self.record.spec).clone();
                spec.image = image.unwrap_or(spec.image);
                spec.install_script = install_script.or(spec.install_script);
                self.wish(Command::Reinstall, Some(Change::Spec(Box::new(spec)))).await
            }
            Request::Rebind { ports } => {
                self.wish(Command::Rebind, Some(Change::Ports(ports))).await
            }
            Request::Update(patch) => self.update(patch.apply(&self.record.spec)).await,
        };
        // Whoever asked may have gone away; the decision stands.
        drop(reply.send(decided));
    }

    pub(super) async fn wish(
        &mut self,
        command: Command,
        change: Option<Change>,
    ) -> Result<Accepted, Refusal> {
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
        if let Some(Change::Spec(spec)) = &change {
            self.check(spec)?;
        }
        let before = self.record.clone();
        let policy = policy(&self.record.spec, &self.services.settings());
        let (answer, effects) =
            self.record.machine.command(command, policy, self.services.uptime())?;
        if command == Command::Start {
            self.shared.start_wanted.notify_waiters();
        }
        if answer == Answer::Satisfied && change.is_none() && self.record.machine == before.machine
        {
            return Ok(Accepted { generation: self.generation, answer });
        }
        if let Err(error) = self.save(&effects, change).await {
            if !matches!(command, Command::Kill | Command::Stop | Command::Thaw) {
                self.record = before;
                return Err(Refusal::Store(error));
            }
            self.store_later(&effects, &error);
        }
        self.publish();
        self.carry_out(effects).await;
        Ok(Accepted { generation: self.generation, answer })
    }

    async fn update(&mut self, spec: ContainerSpec) -> Result<Accepted, Refusal> {
        // The start command and the policies are read at each start; the rest is built into the Docker
        // container.
        let built_in = |spec: &ContainerSpec| (spec.env.clone(), spec.limits);
        let restart_needed =
            self.record.restart_needed || built_in(&spec) != built_in(&self.record.spec);
        self.replace_spec(spec, restart_needed).await
    }

    /// Stores a specification. `restart_needed`: the Docker container is of another one.
    pub(super) async fn replace_spec(
        &mut self,
        spec: ContainerSpec,
        restart_needed: bool,
    ) -> Result<Accepted, Refusal> {
        if matches!(self.record.machine.phase(), Phase::Deleting) {
            return Err(Refusal::Denied(Denied::Deleting));
        }
        self.check(&spec)?;
        let before = self.record.clone();
        self.record.restart_needed = restart_needed;
        if let Err(error) = self.save(&[], Some(Change::Spec(Box::new(spec)))).await {
            self.record = before;
            return Err(Refusal::Store(error));
        }
        self.publish();
        Ok(Accepted { generation: self.generation, answer: Answer::Accepted })
    }

    fn check(&self, spec: &ContainerSpec) -> Result<(), Refusal> {
        let problems = spec.problems(self.services.capacity);
        if problems.is_empty() { Ok(()) } else { Err(Refusal::Invalid(problems)) }
    }

    /// Limits are given to the running workload first: the engine may know better what is possible. One
    /// change after the other, each to what the ones before have left.
    async fn resources(&mut self, change: LimitsPatch, reply: Reply) {
        if self.limits_wanted.len() >= LIMITS_WANTED {
            drop(reply.send(Err(Refusal::Busy)));
            return;
        }
        self.limits_wanted.push_back((change, reply));
        self.next_limits().await;
    }

    pub(super) async fn next_limits(&mut self) {
        while self.limits_task.as_ref().is_none_or(AbortHandle::is_finished)
            && let Some((change, reply)) = self.limits_wanted.pop_front()
        {
            let limits = change.apply(self.record.spec.limits);
            let problems = limits.problems(self.services.capacity);
            let decided = if !problems.is_empty() {
                Err(Refusal::Invalid(problems))
            } else if self.unknown_since.is_some() || !self.booted {
                Err(Refusal::EngineUnavailable)
            } else if self.record.docker_id.is_some() && self.record.machine.live_run().is_some() {
                let applying = self.ctx().apply_limits(limits, change, reply);
                self.limits_task = Some(self.tasks.spawn(applying));
                return;
            } else {
                let mut spec = (*self.record.spec).clone();
                spec.limits = limits;
                self.update(spec).await
            };
            // Whoever asked may have gone away; the decision stands.
            drop(reply.send(decided));
        }
    }

    /// The engine has answered to new limits for what runs.
    pub(super) async fn limits_applied(
        &mut self,
        change: LimitsPatch,
        result: Result<(), EngineError>,
    ) -> Result<Accepted, Refusal> {
        match result {
            Err(error) if error.is_away() => Err(Refusal::EngineUnavailable),
            Err(error) => Err(Refusal::Engine(error)),
            Ok(()) => {
                let mut spec = (*self.record.spec).clone();
                spec.limits = change.apply(spec.limits);
                // The engine has them, but lifts none; what else waits for a restart goes on waiting.
                let waits = lifts_a_limit(&self.record.spec.limits, &spec.limits);
                self.replace_spec(spec, self.record.restart_needed || waits).await
            }
        }
    }
}

/// Whether there is a limit less: the engine can lift none from what runs.
fn lifts_a_limit(before: &Limits, after: &Limits) -> bool {
    let has_cpu = |limits: &Limits| limits.cpu.is_some() || limits.cpu_quota.is_some();
    [
        (before.memory.is_some(), after.memory.is_some()),
        (before.memory_reservation.is_some(), after.memory_reservation.is_some()),
        (before.cpu_shares.is_some(), after.cpu_shares.is_some()),
        (has_cpu(before), has_cpu(after)),
    ]
    .contains(&(true, false))
}
