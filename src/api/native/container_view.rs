//! A container as the API shows it, serialised straight from its snapshot.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::api::openapi::schemas::{
    ContainerState, DesiredState, EndedBy, InstallState, IpAddress,
};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::lifecycle::LastExit;
use crate::domain::restart::RestartOnCrash;
use crate::domain::spec::{Limits, Mount, PortBinding, Protocol, StopHow, StopPolicy};
use crate::domain::units::UnixSeconds;
use crate::supervisor::{Restarts, Snapshot};

/// All stored fields of a container, and its state.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Container, example = json!({
    "internal_id": "server-001", "container_id": "9f1c2d3e4f50", "state": "running", "desired_state": "running",
    "install_state": "ready", "install_error": null, "exit_code": null, "oom_killed": false, "last_exit": null,
    "image": "ubuntu:22.04", "volume_id": "0190c6a0-5f1e-4c8e-9d57-8a3f0c2b7e11",
    "startup_command": "while true; do echo Ready; sleep 1; done", "start_pattern": "Ready",
    "start_patterns": [], "fail_patterns": [], "start_timeout": null, "state_reason": null, "start_error": null,
    "ports": [{"ip": "0.0.0.0", "port": 25565, "protocol": "tcp", "container_port": 25565}],
    "limits": {
        "memory": 536_870_912, "memory_swap": null, "memory_reservation": null, "cpu": 1.0, "cpu_shares": null,
        "cpu_quota": null, "cpu_period": null, "pids": null, "disk": null,
    },
    "mount": {}, "install_script": null, "install_image": null, "env": {"MODE": "fast"},
    "stop": {"signal": "SIGTERM", "timeout": 30}, "labels": {}, "restart_on_crash": true,
    "restarts": {"count": 0, "next_at": null, "gave_up": false}, "autostart": false, "tty": true,
    "read_only": true, "restart_needed": false, "started_at": 1_767_225_600, "ready_at": 1_767_225_604,
    "ready_after_ms": 4012, "created_at": 1_767_225_000, "updated_at": 1_767_225_604, "unknown_since": null,
    "generation": 12,
}))]
pub(super) struct ContainerView<'a> {
    internal_id: &'a ContainerId,
    /// Docker's id of it, once there is one.
    #[schema(required)]
    container_id: Option<&'a str>,
    #[schema(value_type = ContainerState)]
    state: &'static str,
    #[schema(value_type = DesiredState)]
    desired_state: &'static str,
    #[schema(value_type = InstallState)]
    install_state: &'static str,
    /// Why the install failed.
    #[schema(required)]
    install_error: Option<&'a str>,
    /// Of the last run, while it is down.
    #[schema(required)]
    exit_code: Option<i64>,
    oom_killed: bool,
    /// Of the latest run that has ended.
    #[schema(required)]
    last_exit: Option<ExitView<'a>>,
    image: &'a str,
    volume_id: VolumeId,
    startup_command: &'a str,
    #[schema(required)]
    start_pattern: Option<&'a str>,
    start_patterns: &'a [String],
    fail_patterns: &'a [String],
    /// Seconds.
    #[schema(required)]
    start_timeout: Option<u64>,
    /// `failed_start` where `state` is what it is because the last start came to nothing.
    #[schema(required)]
    state_reason: Option<&'a str>,
    /// Why the last start came to nothing.
    #[schema(required)]
    start_error: Option<&'a str>,
    #[serde(serialize_with = "ports")]
    #[schema(value_type = Vec<PortView>)]
    ports: &'a [PortBinding],
    limits: &'a Limits,
    /// Container path to host path.
    #[serde(serialize_with = "mounts")]
    #[schema(value_type = BTreeMap<String, String>)]
    mount: &'a [Mount],
    #[schema(required)]
    install_script: Option<&'a str>,
    #[schema(required)]
    install_image: Option<&'a str>,
    env: &'a BTreeMap<String, String>,
    stop: StopView<'a>,
    labels: &'a BTreeMap<String, String>,
    restart_on_crash: RestartOnCrash,
    restarts: RestartsView,
    autostart: bool,
    tty: bool,
    read_only: bool,
    /// A change waits for the next start.
    restart_needed: bool,
    /// Of the latest run.
    #[schema(required)]
    started_at: Option<UnixSeconds>,
    /// When it was `running`.
    #[schema(required)]
    ready_at: Option<UnixSeconds>,
    /// From its process's start until it was `running`.
    #[schema(required)]
    ready_after_ms: Option<u64>,
    created_at: UnixSeconds,
    updated_at: UnixSeconds,
    /// Since when the container engine does not answer; `state` is `unknown` then.
    #[schema(required)]
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
            state_reason: snapshot.start_error.is_some().then_some("failed_start"),
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
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Exit)]
pub(super) struct ExitView<'a> {
    run: u64,
    code: i64,
    /// The signal that the code stands for.
    #[schema(required)]
    signal: Option<&'static str>,
    oom_killed: bool,
    #[schema(value_type = EndedBy)]
    ended_by: &'static str,
    /// Why it was not left to run.
    #[schema(required)]
    reason: Option<&'a str>,
    at: UnixSeconds,
    #[schema(required)]
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
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Restarts)]
pub(super) struct RestartsView {
    count: u32,
    #[schema(required)]
    next_at: Option<UnixSeconds>,
    gave_up: bool,
}

impl From<&Restarts> for RestartsView {
    fn from(restarts: &Restarts) -> Self {
        let Restarts { count, next_at, gave_up } = *restarts;
        Self { count, next_at, gave_up }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StopPolicy)]
struct StopView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    signal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    command: Option<&'a str>,
    /// Seconds until it is killed.
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
#[derive(Serialize, ToSchema)]
#[schema(as = PublishedPort)]
pub(super) struct PortView {
    #[schema(value_type = IpAddress)]
    ip: IpAddr,
    #[schema(maximum = 65_535)]
    port: u16,
    protocol: Protocol,
    #[schema(maximum = 65_535)]
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
