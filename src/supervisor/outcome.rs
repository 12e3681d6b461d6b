//! What became of a wish: whether what was asked for has happened, may still happen, or can't any more.
//!
//! Judged by levels: by the container's snapshot of the decision and those after it, whichever of them a
//! waiter gets to see. Several changes may lie between two looks, so what happened is read from what is kept
//! of a run (its times, its exit, its start error), and never from having seen it pass. Nothing here changes
//! anything: a waiter that goes away takes nothing with it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ContainerHandle, Snapshot};
use crate::domain::ids::RunId;
use crate::domain::lifecycle::{AfterStop, Command, EndedBy, Phase, Rest};
use crate::domain::spec::PortBinding;

/// What somebody waits for. Can be kept, and waited for again by another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Goal {
    /// This run, or a later one, is up.
    Up(RunId),
    /// This run has ended; `None`: nothing ran.
    Down(Option<RunId>),
    Paused,
    Resumed,
    Suspended,
    /// It may be started again.
    Unsuspended,
    /// The install of this run, or of a later one, is done.
    Installed(RunId),
    /// It has these ports, and runs again if it did before.
    Rebound {
        ports: Vec<PortBinding>,
        up: Option<RunId>,
    },
    Deleted,
}

/// Why what somebody waited for will not come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreached {
    #[error("the start failed: {0}")]
    StartFailed(String),
    #[error("the installation failed: {0}")]
    InstallFailed(String),
    #[error("{0}")]
    PauseRefused(String),
    #[error("the ports are as they were: {0}")]
    RebindFailed(String),
    #[error("something else came in between; the container is now {0}")]
    Superseded(&'static str),
    #[error("the container is being deleted")]
    Deleting,
}

/// How a wait ended.
#[derive(Debug)]
pub(crate) enum Waited {
    Reached(Arc<Snapshot>),
    Unreached(Unreached),
    /// The time is over; it may still come.
    TimedOut(Arc<Snapshot>),
    /// lightd is.
    Stopping,
    /// Whoever looks after the container is gone, and lightd is not stopping: a fault of its own.
    Abandoned,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Pending,
    Reached,
    Never(Unreached),
}

impl Goal {
    /// What a wish leads to, by the snapshot of its decision.
    pub(crate) fn of(command: Command, decided: &Snapshot) -> Self {
        let live = decided.phase.live_run();
        let stops = matches!(decided.phase, Phase::Stopping { .. });
        let next = decided.run.next();
        match command {
            // A run that is being ended, or none: the one that is meant is still to come.
            Command::Start | Command::Restart => Self::Up(match live {
                Some(run) if !stops => run,
                _ => next,
            }),
            Command::Stop | Command::Kill => Self::Down(live),
            Command::Pause | Command::Freeze => Self::Paused,
            Command::Resume | Command::Thaw => Self::Resumed,
            Command::Suspend => Self::Suspended,
            Command::Unsuspend => Self::Unsuspended,
            Command::Reinstall => Self::Installed(if stops { next } else { decided.run }),
            Command::Rebind => {
                let starts = matches!(decided.phase, Phase::Rebinding { start_after: true, .. });
                let up = (stops || starts).then_some(next);
                Self::Rebound { ports: decided.ports.to_vec(), up }
            }
            Command::Delete => Self::Deleted,
        }
    }

    fn judge(&self, seen: &Snapshot) -> Verdict {
        if let Self::Deleted = self {
            return if seen.deleted { Verdict::Reached } else { Verdict::Pending };
        }
        if seen.deleted || matches!(seen.phase, Phase::Deleting) {
            return Verdict::Never(Unreached::Deleting);
        }
        // What is shown is what was true before the engine was out of reach.
        if seen.unknown_since.is_some() {
            return Verdict::Pending;
        }
        match self {
            Self::Up(run) => up(*run, seen),
            Self::Down(run) => down(*run, seen),
            Self::Paused | Self::Resumed => paused(matches!(self, Self::Paused), seen),
            Self::Suspended => suspended(seen),
            Self::Unsuspended => Verdict::Reached,
            Self::Installed(run) => installed(*run, seen),
            Self::Rebound { ports, up } => rebound(ports, *up, seen),
            Self::Deleted => Verdict::Pending,
        }
    }
}

fn superseded(seen: &Snapshot) -> Verdict {
    Verdict::Never(Unreached::Superseded(seen.state_name()))
}

fn up(run: RunId, seen: &Snapshot) -> Verdict {
    match &seen.phase {
        Phase::Running { run: of } if *of >= run => Verdict::Reached,
        Phase::Paused { .. } => unless_refused(seen),
        Phase::Starting { .. }
        | Phase::Running { .. }
        | Phase::Stopping { next: AfterStop::Start | AfterStop::Rebind, .. }
        | Phase::Rebinding { start_after: true, rest: Rest::Offline, .. } => Verdict::Pending,
        Phase::Stopping { .. }
        | Phase::Installing { .. }
        | Phase::Failed { .. }
        | Phase::Offline
        | Phase::Crashed { .. }
        | Phase::Suspended { .. }
        | Phase::Rebinding { .. }
        | Phase::Deleting => not_up(run, seen),
    }
}

/// Whether it was up, or why it was not: by what is kept of the run.
fn not_up(run: RunId, seen: &Snapshot) -> Verdict {
    if seen.run < run {
        return superseded(seen);
    }
    if let Some(why) = &seen.start_error {
        return Verdict::Never(Unreached::StartFailed(why.clone()));
    }
    if seen.times.ready_at_ms.is_some() {
        return Verdict::Reached;
    }
    match seen.last_exit.as_ref().filter(|last| last.run == seen.run) {
        Some(last) if matches!(last.ended_by, EndedBy::Itself | EndedBy::Engine) => {
            let code = last.exit.code;
            let memory = if last.exit.oom_killed() { ", for want of memory," } else { "" };
            let why = format!("it ended with code {code}{memory} before it was ready");
            Verdict::Never(Unreached::StartFailed(why))
        }
        _ => superseded(seen),
    }
}

fn down(run: Option<RunId>, seen: &Snapshot) -> Verdict {
    let live = match seen.phase {
        Phase::Starting { run, .. }
        | Phase::Running { run }
        | Phase::Paused { run, .. }
        | Phase::Stopping { run, .. } => Some(run),
        _ => None,
    };
    match (run, live) {
        (Some(run), Some(live)) if live <= run => Verdict::Pending,
        _ => Verdict::Reached,
    }
}

fn paused(wanted: bool, seen: &Snapshot) -> Verdict {
    match seen.phase {
        Phase::Paused { .. } if wanted => Verdict::Reached,
        Phase::Running { .. } | Phase::Starting { .. } if !wanted => Verdict::Reached,
        Phase::Running { .. } | Phase::Starting { .. } | Phase::Paused { .. } => {
            unless_refused(seen)
        }
        _ => superseded(seen),
    }
}

/// A pause or resume that the engine has not answered yet, or has refused.
fn unless_refused(seen: &Snapshot) -> Verdict {
    match &seen.pause_error {
        Some(why) => Verdict::Never(Unreached::PauseRefused(why.clone())),
        None => Verdict::Pending,
    }
}

fn suspended(seen: &Snapshot) -> Verdict {
    match &seen.phase {
        Phase::Suspended { .. } | Phase::Rebinding { rest: Rest::Suspended { .. }, .. } => {
            Verdict::Reached
        }
        Phase::Stopping { next: AfterStop::Suspend, .. }
        | Phase::Installing { suspend_after: true, .. } => Verdict::Pending,
        _ => superseded(seen),
    }
}

fn installed(run: RunId, seen: &Snapshot) -> Verdict {
    match &seen.phase {
        Phase::Installing { .. } | Phase::Stopping { next: AfterStop::Reinstall, .. } => {
            Verdict::Pending
        }
        _ if seen.run < run => superseded(seen),
        phase => match phase.install_error() {
            Some(why) => Verdict::Never(Unreached::InstallFailed(why.to_owned())),
            None => Verdict::Reached,
        },
    }
}

fn rebound(ports: &[PortBinding], run: Option<RunId>, seen: &Snapshot) -> Verdict {
    match &seen.phase {
        Phase::Stopping { next: AfterStop::Rebind, .. }
        | Phase::Rebinding { undo: false, .. }
        | Phase::Starting { trial: true, .. } => Verdict::Pending,
        _ if *seen.ports != *ports => {
            let why = "the container engine could not give it the new ones";
            let why = seen.start_error.clone().unwrap_or_else(|| why.to_owned());
            Verdict::Never(Unreached::RebindFailed(why))
        }
        _ => run.map_or(Verdict::Reached, |run| up(run, seen)),
    }
}

impl ContainerHandle {
    /// Waits until what was decided at this generation has happened, or can't any more. Changes nothing.
    pub(crate) async fn outcome(&self, goal: &Goal, generation: u64, patience: Duration) -> Waited {
        outcome(self.watch(), goal, generation, patience, &self.services.stop).await
    }
}

async fn outcome(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    goal: &Goal,
    generation: u64,
    patience: Duration,
    stop: &CancellationToken,
) -> Waited {
    let now = snapshots.clone();
    let decided = snapshots
        .wait_for(|seen| seen.generation >= generation && goal.judge(seen) != Verdict::Pending);
    let seen = tokio::select! {
        biased;
        seen = decided => seen.map(|seen| Arc::clone(&seen)),
        () = stop.cancelled() => return Waited::Stopping,
        () = tokio::time::sleep(patience) => return Waited::TimedOut(Arc::clone(&now.borrow())),
    };
    // The owner has left, and not because the container was deleted: that it says before.
    let Ok(seen) = seen else {
        return if stop.is_cancelled() { Waited::Stopping } else { Waited::Abandoned };
    };
    match goal.judge(&seen) {
        Verdict::Reached => Waited::Reached(seen),
        Verdict::Never(why) => Waited::Unreached(why),
        Verdict::Pending => Waited::TimedOut(seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{ContainerId, VolumeId};
    use crate::domain::lifecycle::{Fact, Machine, Policy};
    use crate::domain::observed::Exit;
    use crate::domain::restart::CrashPolicy;
    use crate::domain::spec::{ContainerSpec, HostPort, Protocol};
    use crate::domain::units::UnixSeconds;
    use crate::supervisor::record::Record;

    /// A container whose life is played by hand.
    struct Played(Record);

    impl Played {
        /// One that is being installed.
        fn new() -> Self {
            let (machine, _) = Machine::install();
            Self(Record {
                id: ContainerId::parse("a").unwrap(),
                machine,
                spec: Arc::new(ContainerSpec::plain(VolumeId::random())),
                ports: Vec::new().into(),
                previous_ports: None,
                previous_restart_needed: false,
                restart_needed: false,
                limits_in_doubt: false,
                begun_at_ms: None,
                docker_id: None,
                own_image: None,
                sealed_auth: None,
                created_at: UnixSeconds(0),
                updated_at: UnixSeconds(0),
            })
        }

        fn installed() -> Self {
            let mut played = Self::new();
            let run = played.run();
            played.fact(Fact::InstallEnded { run, result: Ok(()) });
            played
        }

        /// One whose process is up, and is ready when its output says so.
        fn starting() -> (Self, Goal) {
            let mut played = Self::installed();
            let goal = played.wish(Command::Start);
            let run = played.run();
            played.fact(Fact::Started { run, launched_at_ms: 1, ready_at_ms: None, up_for: None });
            (played, goal)
        }

        fn running() -> Self {
            let (mut played, _) = Self::starting();
            played.ready();
            played
        }

        fn policy() -> Policy {
            Policy {
                stop_grace: Duration::from_secs(5),
                stop_by: EndedBy::Signal,
                start_timeout: None,
                crash: CrashPolicy::StayDown,
                autostart: false,
                chance: 0.0,
            }
        }

        fn run(&self) -> RunId {
            self.0.machine.last_run()
        }

        fn seen(&self) -> Snapshot {
            self.0.snapshot(1, None, false)
        }

        fn wish(&mut self, command: Command) -> Goal {
            self.0.machine.command(command, Self::policy(), Duration::ZERO).unwrap();
            Goal::of(command, &self.seen())
        }

        fn fact(&mut self, fact: Fact) {
            self.0.machine.fact(fact, Self::policy(), Duration::ZERO);
        }

        fn ready(&mut self) {
            let run = self.run();
            self.fact(Fact::Ready { run, at_ms: 5 });
        }

        fn exit(&mut self, code: i64) {
            let exit =
                Exit { code, oom_engine: false, oom_kernel: false, at_ms: 9, clock_set_by_ms: 0 };
            let run = self.run();
            self.fact(Fact::Exited { run, exit });
        }

        fn judge(&self, goal: &Goal) -> Verdict {
            goal.judge(&self.seen())
        }
    }

    fn start_failed(text: &str) -> Verdict {
        Verdict::Never(Unreached::StartFailed(text.to_owned()))
    }

    #[tokio::test]
    async fn an_owner_that_is_lost_is_not_taken_for_an_end_of_lightd() {
        let (played, goal) = Played::starting();
        let stop = CancellationToken::new();
        let left = || {
            let (sender, seen) = watch::channel(Arc::new(played.seen()));
            drop(sender);
            seen
        };
        let waited = outcome(left(), &goal, 0, Duration::from_secs(60), &stop).await;
        assert!(matches!(waited, Waited::Abandoned), "{waited:?}");
        stop.cancel();
        let waited = outcome(left(), &goal, 0, Duration::from_secs(60), &stop).await;
        assert!(matches!(waited, Waited::Stopping), "{waited:?}");
    }

    #[test]
    fn a_start_has_happened_when_it_runs_and_also_if_it_has_ended_since() {
        let (mut played, goal) = Played::starting();
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.ready();
        assert_eq!(played.judge(&goal), Verdict::Reached);
        assert_eq!(played.judge(&Goal::of(Command::Start, &played.seen())), Verdict::Reached);
        played.exit(0);
        assert_eq!(played.judge(&goal), Verdict::Reached, "nobody looked while it ran");
    }

    #[test]
    fn a_start_that_fails_says_why() {
        let (mut played, goal) = Played::starting();
        let run = played.run();
        played.fact(Fact::Unready { run, reason: "it matched".to_owned() });
        assert_eq!(played.judge(&goal), start_failed("it matched"), "while it is being ended");
        played.exit(143);
        assert_eq!(played.judge(&goal), start_failed("it matched"));

        let (mut played, goal) = Played::starting();
        played.exit(3);
        assert_eq!(played.judge(&goal), start_failed("it ended with code 3 before it was ready"));

        let mut played = Played::installed();
        let goal = played.wish(Command::Start);
        let run = played.run();
        played.fact(Fact::StartFailed { run, reason: "no such image".to_owned() });
        assert_eq!(played.judge(&goal), start_failed("no such image"));
    }

    #[test]
    fn a_start_that_somebody_stops_is_told_from_one_that_fails() {
        let (mut played, goal) = Played::starting();
        played.wish(Command::Stop);
        assert_eq!(played.judge(&goal), Verdict::Never(Unreached::Superseded("stopping")));
        played.exit(143);
        assert_eq!(played.judge(&goal), Verdict::Never(Unreached::Superseded("offline")));
        played.wish(Command::Delete);
        assert_eq!(played.judge(&goal), Verdict::Never(Unreached::Deleting));
    }

    #[test]
    fn a_restart_waits_for_the_next_run_and_a_start_for_the_one_after_a_stop() {
        let mut played = Played::running();
        let goal = played.wish(Command::Restart);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.exit(0);
        assert_eq!(played.judge(&goal), Verdict::Pending, "it starts");
        played.ready();
        assert_eq!(played.judge(&goal), Verdict::Reached);

        let stop = played.wish(Command::Stop);
        let start = played.wish(Command::Start);
        assert_eq!(
            (played.judge(&stop), played.judge(&start)),
            (Verdict::Pending, Verdict::Pending)
        );
        played.exit(0);
        assert_eq!(
            (played.judge(&stop), played.judge(&start)),
            (Verdict::Reached, Verdict::Pending)
        );
    }

    #[test]
    fn a_start_waits_for_the_one_that_a_rebind_ends_with() {
        let mut played = Played::running();
        played.wish(Command::Rebind);
        let goal = played.wish(Command::Start);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.exit(0);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.fact(Fact::Rebound);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.ready();
        assert_eq!(played.judge(&goal), Verdict::Reached);
    }

    #[test]
    fn a_stop_of_what_rests_has_happened_already() {
        let mut played = Played::installed();
        for command in [Command::Stop, Command::Kill] {
            let goal = played.wish(command);
            assert_eq!(played.judge(&goal), Verdict::Reached);
        }
        let mut played = Played::running();
        let goal = played.wish(Command::Kill);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        let away = Snapshot { unknown_since: Some(UnixSeconds(1)), ..played.seen() };
        played.exit(137);
        assert_eq!(played.judge(&goal), Verdict::Reached);
        assert_eq!(goal.judge(&away), Verdict::Pending, "nobody knows");
    }

    #[test]
    fn pauses_and_suspensions_are_waited_for() {
        let mut played = Played::running();
        let run = played.run();
        let goal = played.wish(Command::Pause);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.fact(Fact::Paused { run });
        assert_eq!(played.judge(&goal), Verdict::Reached);
        let goal = played.wish(Command::Resume);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.fact(Fact::Resumed { run });
        assert_eq!(played.judge(&goal), Verdict::Reached);
        let goal = played.wish(Command::Suspend);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.exit(0);
        assert_eq!(played.judge(&goal), Verdict::Reached);
        let back = played.wish(Command::Unsuspend);
        assert_eq!(played.judge(&back), Verdict::Reached);
        assert_eq!(played.judge(&goal), Verdict::Never(Unreached::Superseded("offline")));
    }

    #[test]
    fn a_pause_or_resume_that_is_refused_says_why_and_another_one_is_waited_for_again() {
        let mut played = Played::running();
        let run = played.run();
        let refused = |why: &str| Verdict::Never(Unreached::PauseRefused(why.to_owned()));
        let refuse = |why: &str| Fact::PauseRefused { run, reason: why.to_owned() };
        let goal = played.wish(Command::Pause);
        played.fact(refuse("no freezer"));
        assert_eq!(played.judge(&goal), refused("no freezer"));
        let goal = played.wish(Command::Pause);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.fact(Fact::Paused { run });
        for command in [Command::Resume, Command::Start] {
            let goal = played.wish(command);
            assert_eq!(played.judge(&goal), Verdict::Pending);
            played.fact(refuse("it stands"));
            assert_eq!(played.judge(&goal), refused("it stands"), "{command:?}");
        }
        let goal = played.wish(Command::Restart);
        played.exit(0);
        assert_eq!(played.judge(&goal), Verdict::Pending, "another run");
    }

    #[test]
    fn an_install_is_done_or_says_why_not() {
        let mut played = Played::new();
        let goal = Goal::Installed(played.run());
        assert_eq!(played.judge(&goal), Verdict::Pending);
        let run = played.run();
        played.fact(Fact::InstallEnded { run, result: Err("exit code 3".to_owned()) });
        let failed = Verdict::Never(Unreached::InstallFailed("exit code 3".to_owned()));
        assert_eq!(played.judge(&goal), failed);
        let again = played.wish(Command::Reinstall);
        assert_eq!(played.judge(&again), Verdict::Pending);
        let run = played.run();
        played.fact(Fact::InstallEnded { run, result: Ok(()) });
        assert_eq!(played.judge(&again), Verdict::Reached);

        let mut played = Played::running();
        let goal = played.wish(Command::Reinstall);
        assert_eq!(played.judge(&goal), Verdict::Pending, "it is stopped first");
        played.wish(Command::Suspend);
        played.exit(0);
        assert_eq!(played.judge(&goal), Verdict::Never(Unreached::Superseded("suspended")));
    }

    #[test]
    fn a_rebind_stands_with_its_ports_or_is_undone() {
        let port = |port| PortBinding {
            host: HostPort { ip: [127, 0, 0, 1].into(), port, protocol: Protocol::Tcp },
            container_port: port,
        };
        let begin = |ports: &Arc<[PortBinding]>| {
            let mut played = Played::running();
            played.0.ports = Arc::clone(ports);
            let goal = played.wish(Command::Rebind);
            played.exit(0);
            assert_eq!(played.judge(&goal), Verdict::Pending);
            (played, goal)
        };
        let (old, new): (Arc<[PortBinding]>, Arc<[PortBinding]>) =
            ([port(1)].into(), [port(2)].into());
        let (mut played, goal) = begin(&new);
        played.fact(Fact::Rebound);
        assert_eq!(played.judge(&goal), Verdict::Pending, "it is tried");
        played.ready();
        assert_eq!(played.judge(&goal), Verdict::Reached);

        let (mut played, goal) = begin(&new);
        played.fact(Fact::Rebound);
        let run = played.run();
        played.fact(Fact::StartFailed { run, reason: "the port is taken".to_owned() });
        played.0.ports = old;
        let undone = Verdict::Never(Unreached::RebindFailed("the port is taken".to_owned()));
        assert_eq!(played.judge(&goal), undone);

        let mut played = Played::installed();
        played.0.ports = new;
        let goal = played.wish(Command::Rebind);
        assert_eq!(played.judge(&goal), Verdict::Pending);
        played.fact(Fact::Rebound);
        assert_eq!(played.judge(&goal), Verdict::Reached, "it rests, as before");
    }
}
