//! The table in the module's documentation, held against what the machine does.

use std::time::Duration;

use super::*;
use crate::domain::restart::CrashPolicy;

const POLICY: Policy = Policy {
    stop_grace: Duration::from_secs(30),
    stop_by: EndedBy::Signal,
    start_timeout: None,
    crash: CrashPolicy::StayDown,
    autostart: false,
    chance: 0.0,
};
const NOW: Uptime = Duration::from_secs(1000);
const RUN: RunId = RunId(7);

/// Each column of the table.
fn phase(name: &str) -> Phase {
    match name {
        "Offline" => Phase::Offline,
        "Crashed" => Phase::Crashed { restart_at: NOW },
        "Failed" => Phase::Failed { reason: "no".to_owned() },
        "Suspended" => Phase::Suspended { failed: None },
        "Installing" => Phase::Installing { run: RUN, suspend_after: false },
        "Starting" => Phase::Starting { run: RUN, launched: true, trial: false, ready_by: None },
        "Running" => Phase::Running { run: RUN },
        "Paused" => Phase::Paused { run: RUN, ready: true },
        "Stopping" => stopping(AfterStop::Rest),
        "Rebinding" => Phase::Rebinding { undo: false, start_after: false, rest: Rest::Offline },
        "Deleting" => Phase::Deleting,
        other => panic!("no phase: {other}"),
    }
}

fn stopping(next: AfterStop) -> Phase {
    let asked = EndedBy::Signal;
    Phase::Stopping { run: RUN, next, asked, killed: false, forced: false, kill_at: NOW }
}

/// Each row.
fn command(name: &str) -> Command {
    match name {
        "start" => Command::Start,
        "stop" => Command::Stop,
        "restart" => Command::Restart,
        "kill" => Command::Kill,
        "pause" => Command::Pause,
        "resume" => Command::Resume,
        "reinstall" => Command::Reinstall,
        "rebind" => Command::Rebind,
        "suspend" => Command::Suspend,
        "unsuspend" => Command::Unsuspend,
        "delete" => Command::Delete,
        "freeze" => Command::Freeze,
        "thaw" => Command::Thaw,
        other => panic!("no wish: {other}"),
    }
}

fn answer(phase: Phase, command: Command) -> &'static str {
    let (mut machine, _) = Machine::install();
    machine.phase = phase;
    match machine.command(command, POLICY, NOW) {
        Ok((Answer::Accepted, _)) => "A",
        Ok((Answer::Satisfied, _)) => "I",
        Err(_) => "D",
    }
}

#[test]
fn the_documented_table_is_what_the_machine_does() {
    let rows: Vec<Vec<&str>> = include_str!("mod.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! |"))
        .filter(|line| !line.starts_with('-'))
        .map(|line| line.trim_end_matches('|').split('|').map(str::trim).collect())
        .collect();
    let [columns, rows @ ..] = &rows[..] else { panic!("no table") };
    assert_eq!((columns.len(), rows.len()), (12, 13));
    let mut wrong = Vec::new();
    for row in rows {
        for (column, cell) in columns.iter().zip(row).skip(1) {
            let said = cell.split([',', ' ']).next().unwrap_or_default();
            let done = answer(phase(column), command(row[0]));
            if said != done {
                wrong.push(format!("{} while {column}: said {said}, done {done}", row[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_follows_a_stop_decides_what_a_wish_does() {
    use AfterStop::{GiveUp, Rebind, Reinstall, Rest, Start, Suspend};
    let all = [Rest, Start, Reinstall, Rebind, Suspend, GiveUp];
    for (wish, wanted) in [
        ("start", ["A", "I", "D", "I", "D", "A"]),
        ("stop", ["I"; 6]),
        ("restart", ["D", "I", "D", "D", "D", "D"]),
        ("kill", ["A"; 6]),
        ("reinstall", ["A", "A", "A", "D", "D", "A"]),
        ("rebind", ["D"; 6]),
        ("suspend", ["A", "A", "A", "D", "A", "A"]),
        ("unsuspend", ["I", "I", "I", "I", "A", "I"]),
        ("delete", ["A"; 6]),
    ] {
        let done = all.clone().map(|next| answer(stopping(next), command(wish)));
        assert_eq!(done, wanted, "{wish}");
    }
}
