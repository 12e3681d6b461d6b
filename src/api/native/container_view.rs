//! A container as the API shows it, serialised straight from its snapshot.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::lifecycle::LastExit;
use crate::domain::restart::RestartOnCrash;
use crate::domain::spec::{Limits, Mount, PortBinding, Protocol, StopHow, StopPolicy};
use crate::domain::units::UnixSeconds;
use crate::supervisor::{Restarts, Snapshot};

/// All stored fields of a container, and its state.
#[derive(Debug, Serialize)]
pub(super) struct ContainerView<'a> {
    internal_id: &'a ContainerId,
    container_id: Option<&'a str>,
    state: &'static str,
    /// What it was last asked to be: `running` or `offline`.
    desired_state: &'static str,
    install_state: &'static str,
    install_error: Option<&'a str>,
    exit_code: Option<i64>,
    oom_killed: bool,
    /// Of the latest run that has ended.
    last_exit: Option<ExitView<'a>>,
    image: &'a str,
    volume_id: VolumeId,
    startup_command: &'a str,
    start_pattern: Option<&'a str>,
    start_patterns: &'a [String],
    fail_patterns: &'a [String],
    /// Seconds.
    start_timeout: Option<u64>,
    start_error: Option<&'a str>,
    #[serde(serialize_with = "ports")]
    ports: &'a [PortBinding],
    limits: &'a Limits,
    #[serde(serialize_with = "mounts")]
    mount: &'a [Mount],
    install_script: Option<&'a str>,
    install_image: Option<&'a str>,
    env: &'a BTreeMap<String, String>,
    stop: StopView<'a>,
    labels: &'a BTreeMap<String, String>,
    restart_on_crash: RestartOnCrash,
    restarts: RestartsView,
    autostart: bool,
    tty: bool,
    read_only: bool,
    restart_needed: bool,
    started_at: Option<UnixSeconds>,
    /// Of the latest run.
    ready_at: Option<UnixSeconds>,
    ready_after_ms: Option<u64>,
    created_at: UnixSeconds,
    updated_at: UnixSeconds,
    unknown_since: Option<UnixSeconds>,
    /// Grows with every change, so that a reader can tell an older answer from a newer one.
    generation: u64,
}

impl<'a> From<&'a Snapshot> for ContainerView<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        let spec = &*snapshot.spec;
        Self {
            internal_id: &snapshot.id,
            container_id: snapshot.docker_id.as_deref(),
            state: snapshot.state_name(),
            desired_state: if snapshot.wanted_up { "running" } else { "offline" },
            install_state: snapshot.phase.install_state(),
            install_error: snapshot.phase.install_error(),
            exit_code: snapshot.exit().map(|exit| exit.code),
            oom_killed: snapshot.exit().is_some_and(|exit| exit.oom_killed()),
            last_exit: snapshot.last_exit.as_ref().map(ExitView::from),
            image: &spec.image,
            volume_id: spec.volume_id,
            startup_command: &spec.startup_command,
            start_pattern: spec.start_pattern.as_deref(),
            start_patterns: &spec.start_patterns,
            fail_patterns: &spec.fail_patterns,
            start_timeout: spec.start_timeout.map(|limit| limit.as_secs()),
            start_error: snapshot.start_error.as_deref(),
            ports: &snapshot.ports,
            limits: &spec.limits,
            mount: &spec.mounts,
            install_script: spec.install_script.as_deref(),
            install_image: spec.install_image.as_deref(),
            env: &spec.env,
            stop: StopView::from(&spec.stop),
            labels: &spec.labels,
            restart_on_crash: spec.restart_on_crash,
            restarts: RestartsView::from(&snapshot.restarts),
            autostart: spec.autostart,
            tty: spec.tty,
            read_only: spec.read_only,
            restart_needed: snapshot.restart_needed,
            started_at: snapshot.started_at,
            ready_at: snapshot.times.ready_at_ms.map(UnixSeconds::from_ms),
            ready_after_ms: snapshot.times.ready_after_ms(),
            created_at: snapshot.created_at,
            updated_at: snapshot.updated_at,
            unknown_since: snapshot.unknown_since,
            generation: snapshot.generation,
        }
    }
}

/// How a run ended.
#[derive(Debug, Serialize)]
pub(super) struct ExitView<'a> {
    run: u64,
    code: i64,
    signal: Option<&'static str>,
    oom_killed: bool,
    ended_by: &'static str,
    /// Why it was not left to run.
    reason: Option<&'a str>,
    at: UnixSeconds,
    uptime_s: Option<u64>,
}

impl<'a> From<&'a LastExit> for ExitView<'a> {
    fn from(last: &'a LastExit) -> Self {
        Self {
            run: last.run.0,
            code: last.exit.code,
            signal: last.exit.signal(),
            oom_killed: last.exit.oom_killed(),
            ended_by: last.ended_by.as_str(),
            reason: last.reason.as_deref(),
            at: UnixSeconds::from_ms(last.exit.at_ms),
            uptime_s: last.uptime_ms().map(|ms| ms / 1000),
        }
    }
}

/// The restarts after crashes.
#[derive(Debug, Serialize)]
pub(super) struct RestartsView {
    count: u32,
    next_at: Option<UnixSeconds>,
    gave_up: bool,
}

impl From<&Restarts> for RestartsView {
    fn from(restarts: &Restarts) -> Self {
        let Restarts { count, next_at, gave_up } = *restarts;
        Self { count, next_at, gave_up }
    }
}

#[derive(Debug, Serialize)]
struct StopView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    timeout: u64,
}

impl<'a> From<&'a StopPolicy> for StopView<'a> {
    fn from(policy: &'a StopPolicy) -> Self {
        let (signal, command) = match &policy.how {
            StopHow::Signal(name) => (Some(name.as_str()), None),
            StopHow::Command(line) => (None, Some(line.as_str())),
        };
        Self { signal, command, timeout: policy.grace.as_secs() }
    }
}

/// A published port, written out: a flattened struct would be collected in a map first.
#[derive(Serialize)]
struct PortView {
    ip: IpAddr,
    port: u16,
    protocol: Protocol,
    container_port: u16,
}

pub(super) fn ports<S: Serializer>(bindings: &[PortBinding], to: S) -> Result<S::Ok, S::Error> {
    let mut list = to.serialize_seq(Some(bindings.len()))?;
    for PortBinding { host, container_port } in bindings {
        list.serialize_element(&PortView {
            ip: host.ip,
            port: host.port,
            protocol: host.protocol,
            container_port: *container_port,
        })?;
    }
    list.end()
}

/// Mounts as they were asked for: container path to host path.
fn mounts<S: Serializer>(mounts: &[Mount], to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(mounts.len()))?;
    for mount in mounts {
        map.serialize_entry(&mount.target, &path_text(&mount.source))?;
    }
    map.end()
}

fn path_text(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}
