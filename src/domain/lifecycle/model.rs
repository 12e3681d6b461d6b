//! The machine played against random sequences, and the rules that are easiest to break by name.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::domain::observed::{Observed, ObservedStatus};
use crate::domain::restart::RestartRule;

const POLICY: Policy = Policy {
    stop_grace: Duration::from_secs(30),
    stop_by: EndedBy::Signal,
    start_timeout: Some(Duration::from_secs(60)),
    crash: CrashPolicy::Restart(RULE),
    autostart: true,
    chance: 0.0,
};
const RULE: RestartRule =
    RestartRule { max_restarts: 5, window_s: 600, backoff_min_s: 1, backoff_max_s: 60 };
const DOWN: Policy = Policy { crash: CrashPolicy::StayDown, autostart: false, ..POLICY };
const NOW: Uptime = Duration::from_secs(1000);

fn exit(code: i64) -> Exit {
    Exit { code, oom_engine: false, oom_kernel: false, at_ms: 9000 }
}

fn installed() -> Machine {
    let (mut machine, _) = Machine::install();
    let run = machine.last_run();
    machine.fact(Fact::InstallEnded { run, result: Ok(()) }, POLICY, NOW);
    assert_eq!(machine.phase, Phase::Offline);
    machine
}

fn running() -> (Machine, RunId) {
    let mut machine = installed();
    machine.command(Command::Start, POLICY, NOW).unwrap();
    let run = machine.last_run();
    machine.fact(up(run), POLICY, NOW);
    assert_eq!(machine.phase, Phase::Running { run });
    (machine, run)
}

/// The engine has started it, and nothing is waited for.
fn up(run: RunId) -> Fact {
    Fact::Started { run, launched_at_ms: 1000, ready_at_ms: Some(1200) }
}

fn seen(status: ObservedStatus) -> Option<Observed> {
    Some(Observed { docker_id: "d".to_owned(), status, pid: None, started_at_ms: None, tty: false })
}

fn starts(effects: &[Effect], of: RunId) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Start { run, .. } if *run == of))
}

fn has_kill(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Kill { .. }))
}

#[test]
fn late_exit_of_an_earlier_run_is_ignored() {
    let (mut machine, first) = running();
    machine.command(Command::Restart, POLICY, NOW).unwrap();
    machine.fact(Fact::Exited { run: first, exit: exit(0) }, POLICY, NOW);
    let second = machine.last_run();
    assert_eq!(second, first.next());
    assert_eq!(machine.fact(Fact::Exited { run: first, exit: exit(1) }, POLICY, NOW), []);
    assert_eq!(machine.live_run(), Some(second));
}

#[test]
fn stop_is_killed_after_grace_and_not_before() {
    let (mut machine, run) = running();
    machine.command(Command::Stop, POLICY, NOW).unwrap();
    assert_eq!(machine.wake_at(), Some(NOW + POLICY.stop_grace));
    assert_eq!(machine.fact(Fact::Woke, POLICY, NOW + Duration::from_secs(29)), []);
    let effects = machine.fact(Fact::Woke, POLICY, NOW + POLICY.stop_grace);
    assert!(effects.contains(&Effect::Kill { run }), "{effects:?}");
    assert_eq!(machine.wake_at(), None, "it is killed once");
}

#[test]
fn a_look_before_the_launch_says_nothing_about_the_new_run() {
    let mut machine = installed();
    machine.command(Command::Start, POLICY, NOW).unwrap();
    let look =
        Fact::Seen { observed: seen(ObservedStatus::Exited(exit(0))), engine_was_away: false };
    assert_eq!(machine.fact(look, POLICY, NOW), []);
    assert!(matches!(machine.phase, Phase::Starting { .. }));
}

#[test]
fn what_the_engine_ended_is_started_again_without_a_crash() {
    let (mut machine, run) = running();
    let look =
        Fact::Seen { observed: seen(ObservedStatus::Exited(exit(137))), engine_was_away: true };
    let effects = machine.fact(look, DOWN, NOW);
    assert!(effects.contains(&Effect::Start { run: run.next(), paced: true }), "{effects:?}");
    assert_eq!(machine.last_exit().map(|last| last.ended_by), Some(EndedBy::Engine));
    assert_eq!((machine.exit(), machine.restarts().count()), (None, 0));
}

#[test]
fn the_step_that_ended_it_is_kept() {
    let ended = |steps: &dyn Fn(&mut Machine), code| {
        let (mut machine, run) = running();
        steps(&mut machine);
        let effects = machine.fact(Fact::Exited { run, exit: exit(code) }, DOWN, NOW);
        let told = effects.iter().find_map(|effect| match effect {
            Effect::Emit(event) => event.last_exit.clone(),
            _ => None,
        });
        assert_eq!(told.as_ref(), machine.last_exit());
        let last = told.expect("an exit");
        assert_eq!((last.run, last.uptime_ms()), (run, Some(8000)));
        last.ended_by
    };
    let wish = |machine: &mut Machine, command| {
        machine.command(command, DOWN, NOW).unwrap();
    };
    let wait = |machine: &mut Machine| {
        machine.fact(Fact::Woke, DOWN, NOW + DOWN.stop_grace);
    };
    assert_eq!(ended(&|_| {}, 1), EndedBy::Itself);
    assert_eq!(ended(&|machine| wish(machine, Command::Stop), 0), EndedBy::Signal);
    assert_eq!(ended(&|machine| wish(machine, Command::Restart), 137), EndedBy::Signal);
    let overdue = |machine: &mut Machine| {
        wish(machine, Command::Stop);
        wait(machine);
    };
    assert_eq!(ended(&overdue, 137), EndedBy::Grace);
    assert_eq!(ended(&overdue, 0), EndedBy::Signal, "it had ended before");
    assert_eq!(ended(&|machine| wish(machine, Command::Kill), 137), EndedBy::Kill);
    let impatient = |machine: &mut Machine| {
        wish(machine, Command::Stop);
        wish(machine, Command::Kill);
    };
    assert_eq!(ended(&impatient, 137), EndedBy::Kill);
    let late = |machine: &mut Machine| {
        overdue(machine);
        wish(machine, Command::Kill);
    };
    assert_eq!(ended(&late, 137), EndedBy::Grace);
}

#[test]
fn a_crash_has_a_post_mortem_which_is_kept_once_also_over_a_crash_of_lightd() {
    let wanted = |effects: &[Effect], of| effects.contains(&Effect::PostMortem { run: of });
    let (mut machine, run) = running();
    let mut stopped = machine.clone();
    stopped.command(Command::Stop, POLICY, NOW).unwrap();
    let effects = stopped.fact(Fact::Exited { run, exit: exit(1) }, POLICY, NOW);
    assert!(!wanted(&effects, run), "{effects:?}");
    let mut ended = machine.clone();
    let effects = ended.fact(Fact::Exited { run, exit: exit(0) }, POLICY, NOW);
    assert!(!wanted(&effects, run), "{effects:?}");
    let effects = machine.fact(Fact::Exited { run, exit: exit(1) }, POLICY, NOW);
    assert!(wanted(&effects, run), "{effects:?}");
    let look = || seen(ObservedStatus::Exited(exit(1)));
    let effects = machine.clone().boot(look(), Interruption::None, POLICY, NOW);
    assert!(wanted(&effects, run), "{effects:?}");
    machine.fact(Fact::PostMortemKept { run }, POLICY, NOW);
    assert_eq!(machine.boot(look(), Interruption::None, POLICY, NOW), []);
    let (mut given_up, run) = starting();
    given_up.fact(Fact::Unready { run, reason: "no".to_owned() }, POLICY, NOW);
    let effects = given_up.fact(Fact::Exited { run, exit: exit(0) }, POLICY, NOW);
    assert!(wanted(&effects, run), "{effects:?}");
}

#[test]
fn what_is_to_start_with_the_host_does_and_what_is_suspended_does_not() {
    let with_host = Policy { autostart: true, ..DOWN };
    let mut machine = installed();
    let mut suspended = machine.clone();
    suspended.command(Command::Suspend, with_host, NOW).unwrap();
    assert_eq!(
        machine.clone().boot(None, Interruption::None, with_host, NOW),
        [],
        "lightd was restarted only"
    );
    let engine = Interruption::Engine;
    assert_eq!(machine.clone().boot(None, engine, with_host, NOW), [], "nor the engine");
    assert_eq!(machine.clone().boot(None, Interruption::Host, DOWN, NOW), []);
    assert_eq!(suspended.boot(None, Interruption::Host, with_host, NOW), []);
    let effects =
        machine.boot(seen(ObservedStatus::Exited(exit(0))), Interruption::Host, with_host, NOW);
    let run = machine.last_run();
    assert!(effects.contains(&Effect::Start { run, paced: true }), "{effects:?}");
}

#[test]
fn only_what_nobody_waits_for_waits_for_its_turn_and_can_be_called_off_meanwhile() {
    let mut machine = installed();
    let (_, effects) = machine.command(Command::Start, POLICY, NOW).unwrap();
    let run = machine.last_run();
    assert!(effects.contains(&Effect::Start { run, paced: false }), "{effects:?}");
    machine.fact(up(run), POLICY, NOW);
    machine.fact(Fact::Exited { run, exit: exit(1) }, POLICY, NOW);
    let effects = machine.fact(Fact::Woke, POLICY, NOW + Duration::from_secs(60));
    let run = run.next();
    assert!(effects.contains(&Effect::Start { run, paced: true }), "{effects:?}");
    let (_, effects) = machine.command(Command::Stop, POLICY, NOW).unwrap();
    assert!(effects.contains(&Effect::Stop { run, unpause: false }), "{effects:?}");
    machine.fact(Fact::StartFailed { run, reason: "it never began".to_owned() }, POLICY, NOW);
    assert_eq!((&machine.phase, machine.start_error()), (&Phase::Offline, None));
}

#[test]
fn a_crash_restarts_within_its_budget_and_then_stays_down() {
    let (mut machine, _) = running();
    for _ in 0..RULE.max_restarts {
        let run = machine.last_run();
        machine.fact(Fact::Exited { run, exit: exit(1) }, POLICY, NOW);
        assert!(matches!(machine.phase, Phase::Crashed { .. }));
        machine.fact(Fact::Woke, POLICY, NOW + Duration::from_secs(60));
        let run = machine.last_run();
        machine.fact(up(run), POLICY, NOW);
    }
    let run = machine.last_run();
    machine.fact(Fact::Exited { run, exit: exit(1) }, POLICY, NOW);
    assert_eq!(machine.phase, Phase::Offline);
}

#[test]
fn a_rebind_of_a_running_container_is_undone_when_the_start_fails() {
    let (mut machine, run) = running();
    machine.command(Command::Rebind, POLICY, NOW).unwrap();
    let effects = machine.fact(Fact::Exited { run, exit: exit(0) }, POLICY, NOW);
    assert!(effects.contains(&Effect::Rebind), "{effects:?}");
    machine.fact(Fact::Rebound, POLICY, NOW);
    let trial = machine.last_run();
    let effects = machine.fact(
        Fact::StartFailed { run: trial, reason: "port taken".to_owned() },
        POLICY,
        NOW,
    );
    assert!(effects.contains(&Effect::UndoRebind), "{effects:?}");
    let effects = machine.fact(Fact::Rebound, POLICY, NOW);
    assert!(starts(&effects, trial.next()), "{effects:?}");
    let effects = machine.fact(up(trial.next()), POLICY, NOW);
    assert!(!effects.contains(&Effect::FinishRebind), "the old ports stay: {effects:?}");
}

#[test]
fn a_reinstall_while_running_stops_first() {
    let (mut machine, run) = running();
    machine.command(Command::Reinstall, POLICY, NOW).unwrap();
    assert!(matches!(machine.phase, Phase::Stopping { next: AfterStop::Reinstall, .. }));
    let effects = machine.fact(Fact::Exited { run, exit: exit(0) }, POLICY, NOW);
    assert!(effects.contains(&Effect::Install { run: run.next() }), "{effects:?}");
    assert!(machine.command(Command::Start, POLICY, NOW).is_err());
}

#[test]
fn what_an_install_left_is_cleared_only_after_its_end() {
    let (mut machine, effects) = Machine::install();
    let run = machine.last_run();
    assert!(!effects.contains(&Effect::ClearInstall { run }));
    for result in [Ok(()), Err("it failed".to_owned())] {
        let mut machine = machine.clone();
        let effects = machine.fact(Fact::InstallEnded { run, result }, POLICY, NOW);
        assert!(effects.contains(&Effect::ClearInstall { run }), "{effects:?}");
    }
    let effects = machine.boot(None, Interruption::None, POLICY, NOW);
    assert_eq!(effects, [Effect::Install { run }]);
}

#[test]
fn the_grace_of_a_stop_begins_again_when_the_engine_is_back() {
    let (mut machine, run) = running();
    machine.command(Command::Stop, POLICY, NOW).unwrap();
    let back = NOW + POLICY.stop_grace * 2;
    machine.engine_back(POLICY, back);
    assert_eq!(machine.fact(Fact::Woke, POLICY, back), []);
    let effects = machine.fact(Fact::Woke, POLICY, back + POLICY.stop_grace);
    assert!(effects.contains(&Effect::Kill { run }), "{effects:?}");
}

#[test]
fn a_boot_is_no_crash() {
    let (mut machine, run) = running();
    machine.fact(Fact::Exited { run, exit: exit(1) }, POLICY, NOW);
    machine.fact(Fact::PostMortemKept { run }, POLICY, NOW);
    let mut again = machine.clone();
    for _ in 0..=RULE.max_restarts {
        assert_eq!(
            again.boot(seen(ObservedStatus::Exited(exit(1))), Interruption::None, POLICY, NOW),
            []
        );
        assert!(again.wake_at().is_some(), "it waits for its restart");
    }
}

#[test]
fn nobody_attaches_to_what_is_paused() {
    let (machine, run) = running();
    for (status, attaches) in [(ObservedStatus::Running, true), (ObservedStatus::Paused, false)] {
        let effects = machine.clone().boot(seen(status), Interruption::None, POLICY, NOW);
        assert_eq!(effects.contains(&Effect::Attach { run }), attaches, "{status:?}");
    }
}

#[test]
fn a_trial_that_lightd_did_not_see_start_keeps_its_new_ports() {
    let (mut machine, run) = running();
    machine.command(Command::Rebind, POLICY, NOW).unwrap();
    machine.fact(Fact::Exited { run, exit: exit(0) }, POLICY, NOW);
    machine.fact(Fact::Rebound, POLICY, NOW);
    let effects = machine.boot(seen(ObservedStatus::Running), Interruption::None, POLICY, NOW);
    assert!(effects.contains(&Effect::FinishRebind), "{effects:?}");
}

#[test]
fn a_workload_that_stands_still_goes_on_after_a_crash_of_lightd_at_any_point() {
    let (mut machine, run) = running();
    let stored = |machine: &Machine| -> Machine {
        serde_json::from_str(&serde_json::to_string(machine).unwrap()).unwrap()
    };
    let thaws = |machine: &Machine, status| {
        let mut booted = stored(machine);
        let effects = booted.boot(seen(status), Interruption::None, POLICY, NOW);
        assert!(effects.contains(&Effect::Thaw { run }), "{effects:?}");
        let again =
            stored(&booted).boot(seen(ObservedStatus::Paused), Interruption::None, POLICY, NOW);
        assert!(again.contains(&Effect::Thaw { run }), "{again:?}");
        booted.fact(Fact::Resumed { run }, POLICY, NOW);
        assert_eq!(booted.phase, Phase::Running { run });
        assert_eq!(
            booted.boot(seen(ObservedStatus::Running), Interruption::None, POLICY, NOW),
            [Effect::Attach { run }]
        );
    };
    let (_, effects) = machine.command(Command::Freeze, POLICY, NOW).unwrap();
    assert_eq!(effects, [Effect::Freeze { run }]);
    thaws(&machine, ObservedStatus::Running);
    thaws(&machine, ObservedStatus::Paused);
    machine.fact(Fact::FreezeEnded { run, frozen: true }, POLICY, NOW);
    assert!(machine.is_frozen());
    thaws(&machine, ObservedStatus::Paused);
    assert_eq!(machine.command(Command::Pause, POLICY, NOW), Err(Denied::Snapshot));
    let (_, effects) = machine.command(Command::Thaw, POLICY, NOW).unwrap();
    assert_eq!(effects, [Effect::Thaw { run }]);
    thaws(&machine, ObservedStatus::Paused);
}

#[test]
fn a_pause_that_comes_late_does_not_have_the_last_word() {
    let (mut machine, run) = running();
    machine.command(Command::Freeze, POLICY, NOW).unwrap();
    machine.command(Command::Thaw, POLICY, NOW).unwrap();
    let look = Fact::Seen { observed: seen(ObservedStatus::Running), engine_was_away: false };
    machine.fact(look, POLICY, NOW);
    let effects = machine.fact(Fact::FreezeEnded { run, frozen: true }, POLICY, NOW);
    assert!(effects.contains(&Effect::Thaw { run }), "{effects:?}");
    machine.fact(Fact::Resumed { run }, POLICY, NOW);
    assert_eq!(machine.phase, Phase::Running { run });
}

#[test]
fn a_stop_lets_a_workload_that_stands_still_go_on_first() {
    let (mut machine, run) = running();
    machine.command(Command::Freeze, POLICY, NOW).unwrap();
    let (_, effects) = machine.command(Command::Stop, POLICY, NOW).unwrap();
    assert!(effects.contains(&Effect::Stop { run, unpause: true }), "{effects:?}");
    assert!(!machine.is_frozen());
    let effects = machine.fact(Fact::FreezeEnded { run, frozen: true }, POLICY, NOW);
    assert_eq!(effects, [Effect::Thaw { run }]);
}

/// Started by the engine, and not ready.
fn starting() -> (Machine, RunId) {
    let mut machine = installed();
    machine.command(Command::Start, POLICY, NOW).unwrap();
    let run = machine.last_run();
    let up = Fact::Started { run, launched_at_ms: 1000, ready_at_ms: None };
    assert_eq!(machine.fact(up, POLICY, NOW), []);
    (machine, run)
}

#[test]
fn a_start_whose_output_shows_its_failure_is_stopped_and_counts_as_a_crash() {
    let (mut machine, run) = starting();
    let reason = "FAILED to bind".to_owned();
    let effects = machine.fact(Fact::Unready { run, reason: reason.clone() }, POLICY, NOW);
    assert!(effects.contains(&Effect::Stop { run, unpause: false }), "{effects:?}");
    assert_eq!(machine.start_error(), Some(reason.as_str()));
    assert!(machine.wanted_up(), "nobody asked it to rest");
    machine.fact(Fact::Exited { run, exit: exit(0) }, POLICY, NOW);
    assert!(matches!(machine.phase, Phase::Crashed { .. }), "{machine:?}");
    machine.fact(Fact::Woke, POLICY, NOW + Duration::from_secs(60));
    assert_eq!((machine.live_run(), machine.start_error()), (Some(run.next()), None));
}

#[test]
fn a_start_that_failed_stays_down_where_crashes_do_and_takes_wishes_meanwhile() {
    let (mut machine, run) = starting();
    machine.fact(Fact::Unready { run, reason: "no".to_owned() }, DOWN, NOW);
    let mut other = machine.clone();
    machine.fact(Fact::Exited { run, exit: exit(0) }, DOWN, NOW);
    assert_eq!((&machine.phase, machine.wanted_up()), (&Phase::Offline, false));
    assert_eq!(machine.start_error(), Some("no"));
    other.command(Command::Start, DOWN, NOW).unwrap();
    let effects = other.fact(Fact::Exited { run, exit: exit(0) }, DOWN, NOW);
    assert!(starts(&effects, run.next()), "{effects:?}");
}

#[test]
fn a_failure_that_shows_when_it_is_paused_already_counts_too() {
    let (mut machine, run) = starting();
    machine.fact(Fact::Paused { run }, POLICY, NOW);
    let effects = machine.fact(Fact::Unready { run, reason: "no".to_owned() }, POLICY, NOW);
    assert!(effects.contains(&Effect::Stop { run, unpause: true }), "{effects:?}");
}

#[test]
fn a_start_has_so_much_time_and_no_more() {
    let (mut machine, run) = starting();
    let due = NOW + POLICY.start_timeout.unwrap();
    assert_eq!(machine.wake_at(), Some(due));
    assert_eq!(machine.fact(Fact::Woke, POLICY, due - Duration::from_millis(1)), []);
    let mut ready = machine.clone();
    ready.fact(Fact::Ready { run, at_ms: 4000 }, POLICY, due);
    assert_eq!((ready.fact(Fact::Woke, POLICY, due), ready.wake_at()), (Vec::new(), None));
    assert_eq!(ready.times().ready_after_ms(), Some(3000));
    let effects = machine.fact(Fact::Woke, POLICY, due);
    assert!(effects.contains(&Effect::Stop { run, unpause: false }), "{effects:?}");
    assert_eq!(machine.start_error(), Some("it was not ready within 60 s"));
    assert_eq!(machine.fact(Fact::Ready { run, at_ms: 70_000 }, POLICY, due), []);
}

#[test]
fn a_deadline_that_passed_while_nobody_looked_counts_once_the_output_was_looked_at() {
    let (machine, run) = starting();
    let again = || -> Machine {
        let mut machine: Machine =
            serde_json::from_str(&serde_json::to_string(&machine).unwrap()).unwrap();
        machine.boot(seen(ObservedStatus::Running), Interruption::None, POLICY, NOW);
        assert_eq!(machine.wake_at(), None, "what it printed is not known yet");
        machine
    };
    let mut late = again();
    late.fact(Fact::CaughtUp { run, at_ms: 500_000 }, POLICY, NOW);
    let effects = late.fact(Fact::Woke, POLICY, NOW);
    assert!(effects.contains(&Effect::Stop { run, unpause: false }), "{effects:?}");
    let mut early = again();
    early.fact(Fact::CaughtUp { run, at_ms: 41_000 }, POLICY, NOW);
    assert_eq!(early.wake_at(), Some(NOW + Duration::from_secs(20)));
    let mut ready = again();
    ready.fact(Fact::Ready { run, at_ms: 2000 }, POLICY, NOW);
    assert_eq!(ready.phase, Phase::Running { run });
}

#[test]
fn a_pause_begins_the_time_of_a_start_anew() {
    let (mut machine, run) = starting();
    machine.fact(Fact::Paused { run }, POLICY, NOW);
    assert_eq!(machine.wake_at(), None);
    let later = NOW + Duration::from_secs(3600);
    machine.fact(Fact::Resumed { run }, POLICY, later);
    machine.fact(Fact::CaughtUp { run, at_ms: 9_000_000 }, POLICY, later);
    assert_eq!(machine.wake_at(), Some(later + POLICY.start_timeout.unwrap()));
}

#[test]
fn after_an_outage_a_start_is_not_given_up_before_its_output_is_here() {
    let (mut machine, _) = starting();
    let back = NOW + Duration::from_secs(600);
    machine.engine_back(POLICY, back);
    assert_eq!(machine.fact(Fact::Woke, POLICY, back), []);
    assert!(machine.wake_at() > Some(back));
}

#[test]
fn a_stray_that_runs_while_offline_is_killed() {
    let mut machine = installed();
    let look = Fact::Seen { observed: seen(ObservedStatus::Running), engine_was_away: false };
    assert!(has_kill(&machine.fact(look, POLICY, NOW)));
    assert_eq!(machine.phase, Phase::Offline);
}

#[test]
fn stored_machines_read_back_as_they_were() {
    let (machine, _) = running();
    let text = serde_json::to_string(&machine).unwrap();
    assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        Just(Command::Start),
        Just(Command::Stop),
        Just(Command::Restart),
        Just(Command::Kill),
        Just(Command::Pause),
        Just(Command::Resume),
        Just(Command::Reinstall),
        Just(Command::Rebind),
        Just(Command::Suspend),
        Just(Command::Unsuspend),
        Just(Command::Freeze),
        Just(Command::Thaw),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Command(Command),
    /// The n-th pending effect ends, well or badly; a start ready at once or not.
    Finish {
        which: usize,
        well: bool,
        ready: bool,
    },
    /// The live run's output shows something.
    Output {
        ready: bool,
    },
    CaughtUp {
        after_seconds: i64,
    },
    WorkloadExits(i64),
    Look {
        running: bool,
        away: bool,
    },
    TimePasses(u64),
    Reboot {
        running: bool,
        interruption: Interruption,
    },
}

fn any_interruption() -> impl Strategy<Value = Interruption> {
    prop_oneof![Just(Interruption::None), Just(Interruption::Engine), Just(Interruption::Host)]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_command().prop_map(Step::Command),
        4 => (0..4usize, any::<bool>(), any::<bool>())
            .prop_map(|(which, well, ready)| Step::Finish { which, well, ready }),
        1 => any::<bool>().prop_map(|ready| Step::Output { ready }),
        1 => (0..200i64).prop_map(|after_seconds| Step::CaughtUp { after_seconds }),
        1 => (0..3i64).prop_map(Step::WorkloadExits),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(running, away)| Step::Look { running, away }),
        1 => (0..100u64).prop_map(Step::TimePasses),
        1 => (any::<bool>(), any_interruption())
            .prop_map(|(running, interruption)| Step::Reboot { running, interruption }),
    ]
}

/// What an effect's child task would report.
fn report(effect: &Effect, well: bool) -> Vec<Fact> {
    let failed = || "it failed".to_owned();
    match effect {
        Effect::Install { run } => {
            vec![Fact::InstallEnded {
                run: *run,
                result: if well { Ok(()) } else { Err(failed()) },
            }]
        }
        Effect::Start { run, .. } if well => vec![up(*run)],
        Effect::Start { run, .. } => vec![Fact::StartFailed { run: *run, reason: failed() }],
        Effect::Stop { run, .. } if well => vec![Fact::Exited { run: *run, exit: exit(0) }],
        Effect::Kill { run } => vec![Fact::Exited { run: *run, exit: exit(137) }],
        Effect::Freeze { run } => vec![Fact::FreezeEnded { run: *run, frozen: well }],
        Effect::Thaw { run } => vec![Fact::Resumed { run: *run }],
        Effect::Pause { run } => vec![Fact::Paused { run: *run }],
        Effect::Unpause { run } => vec![Fact::Resumed { run: *run }],
        Effect::Rebind | Effect::UndoRebind if well => vec![Fact::Rebound],
        Effect::Rebind | Effect::UndoRebind => vec![Fact::RebindFailed { reason: failed() }],
        Effect::Remove => vec![Fact::Removed],
        Effect::PostMortem { run } if well => vec![Fact::PostMortemKept { run: *run }],
        Effect::PostMortem { .. }
        | Effect::Stop { .. }
        | Effect::Attach { .. }
        | Effect::AbortInstall { .. }
        | Effect::ClearInstall { .. }
        | Effect::FinishRebind
        | Effect::Forget
        | Effect::Emit(_)
        | Effect::Say(_) => Vec::new(),
    }
}

struct World {
    machine: Machine,
    pending: Vec<Effect>,
    now: Uptime,
}

impl World {
    fn take(&mut self, effects: Vec<Effect>) {
        let waits = |effect: &Effect| !report(effect, true).is_empty();
        self.pending.extend(effects.into_iter().filter(waits));
    }

    fn tell(&mut self, fact: Fact) {
        let effects = self.machine.fact(fact, POLICY, self.now);
        self.take(effects);
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Command(command) => {
                let before = self.machine.clone();
                match self.machine.command(command, POLICY, self.now) {
                    Ok((_, effects)) => self.take(effects),
                    Err(_) => {
                        assert_eq!(self.machine, before, "a denied wish changed something");
                    }
                }
            }
            Step::Finish { which, well, ready } if which < self.pending.len() => {
                let effect = self.pending.remove(which);
                for fact in report(&effect, well) {
                    self.tell(match fact {
                        Fact::Started { run, launched_at_ms, .. } if !ready => {
                            Fact::Started { run, launched_at_ms, ready_at_ms: None }
                        }
                        fact => fact,
                    });
                }
            }
            Step::Output { ready } => {
                if let Some(run) = self.machine.live_run() {
                    self.tell(match ready {
                        true => Fact::Ready { run, at_ms: 5000 },
                        false => Fact::Unready { run, reason: "it said so".to_owned() },
                    });
                }
            }
            Step::CaughtUp { after_seconds } => {
                if let Some(run) = self.machine.live_run() {
                    self.tell(Fact::CaughtUp { run, at_ms: 1000 + after_seconds * 1000 });
                }
            }
            Step::Finish { .. } => {}
            Step::WorkloadExits(code) => {
                if let Some(run) = self.machine.live_run() {
                    self.tell(Fact::Exited { run, exit: exit(code) });
                }
            }
            Step::Look { running, away } => {
                self.tell(Fact::Seen { observed: look(running), engine_was_away: away });
            }
            Step::TimePasses(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.tell(Fact::Woke);
                let next = self.machine.wake_at();
                assert!(next.is_none_or(|at| at > self.now), "slept over: {:?}", self.machine);
            }
            Step::Reboot { running, interruption } => {
                self.pending.clear();
                let text = serde_json::to_string(&self.machine).expect("it serialises");
                self.machine = serde_json::from_str(&text).expect("it reads back");
                let effects = self.machine.boot(look(running), interruption, POLICY, self.now);
                self.take(effects);
            }
        }
    }

    /// Lets everything pending end well, until nothing is.
    fn settle(&mut self) {
        for _ in 0..200 {
            if let Some(at) = self.machine.wake_at() {
                self.now = self.now.max(at);
                self.tell(Fact::Woke);
            }
            if self.pending.is_empty() {
                return;
            }
            self.play(Step::Finish { which: 0, well: true, ready: true });
        }
        panic!("it does not come to rest: {:?}, pending {:?}", self.machine, self.pending);
    }
}

fn look(running: bool) -> Option<Observed> {
    seen(if running { ObservedStatus::Running } else { ObservedStatus::Exited(exit(0)) })
}

proptest! {
    /// Whatever happens, in whatever order: the machine comes to rest in a phase that waits for nobody,
    /// runs never go back, and delete gets through.
    #[test]
    fn any_sequence_settles_and_delete_gets_through(steps in prop::collection::vec(any_step(), 1..60)) {
        let (machine, effects) = Machine::install();
        let mut world = World { machine, pending: Vec::new(), now: NOW };
        world.take(effects);
        let mut last_run = RunId::default();
        for step in steps {
            world.play(step);
            prop_assert!(world.machine.last_run() >= last_run);
            last_run = world.machine.last_run();
            if let Some(run) = world.machine.live_run() {
                prop_assert_eq!(run, last_run);
            }
        }
        world.settle();
        let at_rest = matches!(
            world.machine.phase,
            Phase::Failed { .. } | Phase::Offline | Phase::Suspended { .. } | Phase::Running { .. } | Phase::Paused { .. }
                | Phase::Starting { launched: true, .. }
        );
        prop_assert!(at_rest, "{:?}", world.machine);
        let effects = world.machine.command(Command::Delete, POLICY, world.now).map(|(_, effects)| effects);
        prop_assert!(effects.is_ok_and(|effects| effects.contains(&Effect::Remove)));
        prop_assert_eq!(world.machine.fact(Fact::Removed, POLICY, world.now), vec![Effect::Forget]);
    }
}
