//! What of a container's life stands in the audit log: wishes that were taken on, by whoever wished, and
//! what came of it, by lightd.
//!
//! Pure but for [`Sent`]: the owner task stores these acts with the state that they explain. A wish that
//! changed nothing, or was refused, is none.

use futures_util::FutureExt as _;
use serde_json::Value;

use super::record::Change;
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::event::{StateEvent, StateName};
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::{Command, Effect, EndedBy, LastExit, Machine, Phase};
use crate::domain::spec::{ContainerSpec, HostPort};
use crate::store::Store;
use crate::store::bindings::PortRequest;

/// A wish, with what it changes beside the state. `None` for what lightd does as part of something else.
pub(super) fn of_wish(
    actor: Actor,
    id: &ContainerId,
    command: Command,
    present: &ContainerSpec,
    change: Option<&Change>,
) -> Option<Act> {
    let act = Act::new(actor, Action::of_command(command)?).on(id);
    Some(match change {
        Some(Change::Spec(spec)) => {
            act.with("image", spec.image.as_str()).with("fields", changed_fields(present, spec))
        }
        Some(Change::Ports(wanted)) => act.listing("ports", wanted.ports.iter().map(text)),
        Some(Change::UndoPorts | Change::FinishPorts) | None => act,
    })
}

/// A change of the specification alone; `None` if it is none.
pub(super) fn of_update(
    actor: Actor,
    id: &ContainerId,
    before: &ContainerSpec,
    after: &ContainerSpec,
) -> Option<Act> {
    let fields = changed_fields(before, after);
    let act = Act::new(actor, Action::ContainerUpdate).on(id);
    (!fields.is_empty()).then(|| act.with("fields", fields))
}

/// The names of the fields that differ. Their values may be secret.
fn changed_fields(before: &ContainerSpec, after: &ContainerSpec) -> Vec<String> {
    let value = |spec| serde_json::to_value(spec).expect("invariant: a specification is JSON");
    let (before, after): (Value, Value) = (value(before), value(after));
    let names = [&before, &after].into_iter().filter_map(Value::as_object).flat_map(|it| it.keys());
    let mut names: Vec<String> =
        names.filter(|name| before.get(*name) != after.get(*name)).cloned().collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A port as it was asked for.
pub(super) fn text(port: &PortRequest) -> String {
    let protocol = port.protocol;
    match (port.ip, port.port) {
        (Some(ip), Some(port)) => HostPort { ip, port, protocol }.to_string(),
        (Some(ip), None) => format!("any of {ip}/{}", protocol.as_str()),
        (None, Some(port)) => format!("{port}/{}", protocol.as_str()),
        (None, None) => format!("any/{}", protocol.as_str()),
    }
}

/// What happened to a container, as far as people want to know it later.
pub(super) fn of_effects(
    id: &ContainerId,
    before: &Machine,
    after: &Machine,
    effects: &[Effect],
) -> Vec<Act> {
    let act = |action| Act::new(Actor::lightd(), action).on(id);
    let mut acts: Vec<Act> = Vec::new();
    for effect in effects {
        acts.extend(match effect {
            Effect::Emit(event) => of_event(event, after, act),
            Effect::Start { run, paced: true } => reason_of_start(before, after).map(|reason| {
                act(Action::ContainerStart).with("reason", reason).with("run", run.0)
            }),
            Effect::UndoRebind
                if !matches!(before.phase(), Phase::Rebinding { undo: true, .. }) =>
            {
                Some(act(Action::ContainerRebindFailed))
            }
            _ => None,
        });
    }
    if let Some(error) = after.start_error().filter(|_| before.start_error().is_none()) {
        acts.push(act(Action::ContainerStartFailed).with("error", error));
    }
    if after.restarts().gave_up() && !before.restarts().gave_up() {
        acts.push(act(Action::ContainerGaveUp));
    }
    acts
}

fn of_event(event: &StateEvent, after: &Machine, act: impl Fn(Action) -> Act) -> Option<Act> {
    match event.name {
        StateName::Ready => Some(act(Action::ContainerInstalled).with("run", event.run.0)),
        StateName::Failed => {
            let error = after.phase().install_error();
            Some(act(Action::ContainerInstallFailed).with_some("error", error))
        }
        StateName::Exit => event.last_exit.as_ref().map(|last| of_exit(last, act)),
        StateName::Suspended => Some(act(Action::ContainerSuspended)),
        StateName::Installing
        | StateName::Starting
        | StateName::Running
        | StateName::Stopping
        | StateName::Stopped
        | StateName::Paused
        | StateName::Deleting
        | StateName::Unknown => None,
    }
}

fn of_exit(last: &LastExit, act: impl Fn(Action) -> Act) -> Act {
    let is_crash = last.ended_by == EndedBy::Itself && last.exit.is_crash();
    let action = if is_crash { Action::ContainerCrashed } else { Action::ContainerExited };
    act(action)
        .with("run", last.run.0)
        .with("exit_code", last.exit.code)
        .with("oom_killed", last.exit.oom_killed())
        .with("ended_by", last.ended_by.as_str())
        .with_some("uptime_ms", last.uptime_ms())
}

/// Why lightd starts something. `None`: a start that somebody has asked for is taken up again.
fn reason_of_start(before: &Machine, after: &Machine) -> Option<&'static str> {
    match before.phase() {
        Phase::Starting { launched: false, .. } => None,
        Phase::Crashed { .. } => Some("crash"),
        _ if after.last_exit().is_some_and(|last| {
            last.ended_by == EndedBy::Engine && last.run == before.last_run()
        }) =>
        {
            Some("engine_restarted")
        }
        _ => Some("host_started"),
    }
}

/// A line on its way to a workload. It is recorded once it was sent, and as well if whoever sent it has
/// gone before that was known: it may have been.
pub(super) struct Sent {
    store: Store,
    act: Option<Act>,
}

impl Sent {
    pub(super) fn new(store: &Store, act: Act) -> Self {
        Self { store: store.clone(), act: Some(act) }
    }

    pub(super) async fn recorded(mut self) {
        if let Some(act) = self.act.take() {
            self.store.record_done(act).await;
        }
    }

    /// It was not sent.
    pub(super) fn forget(mut self) {
        self.act = None;
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(act) = self.act.take() {
            // Asked once it is in the store's queue, and there is nobody to tell the rest.
            drop(self.store.record(act).now_or_never());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::ids::{RunId, VolumeId};
    use crate::domain::lifecycle::Policy;
    use crate::domain::restart::CrashPolicy;

    fn id() -> ContainerId {
        ContainerId::parse("a").unwrap()
    }

    #[test]
    fn a_change_names_its_fields_and_none_of_their_values() {
        let before = ContainerSpec::plain(VolumeId::random());
        let mut after = before.clone();
        after.env.insert("TOKEN".to_owned(), "very-secret".to_owned());
        after.startup_command = "also-secret".to_owned();
        let act = of_update(Actor::lightd(), &id(), &before, &after).unwrap();
        let details = Value::Object(act.details.clone());
        assert_eq!(details, serde_json::json!({"fields": ["env", "startup_command"]}));
        assert_eq!(of_update(Actor::lightd(), &id(), &before, &before), None);
        let change = Change::Spec(Box::new(after));
        let act = of_wish(Actor::lightd(), &id(), Command::Reinstall, &before, Some(&change));
        assert!(!format!("{act:?}").contains("secret"));
    }

    #[test]
    fn what_lightd_does_as_a_part_of_something_else_is_no_act_of_its_own() {
        let spec = ContainerSpec::plain(VolumeId::random());
        for command in [Command::Freeze, Command::Thaw] {
            assert_eq!(of_wish(Actor::lightd(), &id(), command, &spec, None), None);
        }
    }

    #[test]
    fn the_end_of_an_install_is_an_act_of_lightds() {
        let (before, _) = Machine::install();
        let mut after = before.clone();
        let fact = crate::domain::lifecycle::Fact::InstallEnded {
            run: RunId(1),
            result: Err("exit code 3".to_owned()),
        };
        let policy = Policy {
            stop_grace: Duration::ZERO,
            stop_by: EndedBy::Signal,
            start_timeout: None,
            crash: CrashPolicy::StayDown,
            autostart: false,
            chance: 0.0,
        };
        let effects = after.fact(fact, policy, Duration::ZERO);
        let acts = of_effects(&id(), &before, &after, &effects);
        let [failed] = acts.as_slice() else { panic!("{acts:?}") };
        assert_eq!(failed.action, Action::ContainerInstallFailed);
        assert_eq!(failed.actor, Actor::lightd());
        assert_eq!(failed.details["error"], "exit code 3");
    }
}
