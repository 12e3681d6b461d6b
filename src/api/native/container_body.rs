//! What a panel sends to make or change a container, read into a specification.
//!
//! Everything that can be seen from the body alone is found here, all at once; what depends on the
//! node (limits, allowed mounts, the pool) the supervisor finds, in the same words.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use uuid::Uuid;

use super::port_body::{PortBody, check_ports};
use crate::api::error::ApiError;
use crate::api::extract::object;
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::restart::RestartOnCrash;
use crate::domain::spec::{
    ContainerSpec, Limits, LimitsPatch, Mount, Problem, SpecPatch, StopHow, StopPatch, StopPolicy,
};
use crate::engine::RegistryAuth;
use crate::supervisor::Request;

/// `POST /containers`. What is required is an `Option` too, so that all that is missing is told at
/// once.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CreateContainer, example = json!({
    "internal_id": "server-001", "image": "ubuntu:22.04",
    "volume_id": "0190c6a0-5f1e-4c8e-9d57-8a3f0c2b7e11",
    "startup_command": "while true; do echo Ready; sleep 1; done", "start_pattern": "Ready",
    "ports": [{"ip": "0.0.0.0", "port": 25565, "protocol": "tcp"}],
    "limits": {"memory": 536_870_912, "cpu": 1.0},
}))]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    #[schema(required = true, value_type = ContainerId)]
    internal_id: Option<String>,
    /// As `docker pull` takes it.
    #[schema(required = true, value_type = String, example = "ubuntu:22.04")]
    image: Option<String>,
    /// Mounted at `/home/container`, the working directory.
    #[schema(required = true, value_type = VolumeId)]
    volume_id: Option<String>,
    /// A shell command line. `{{NAME}}` is replaced from `env`, `SERVER_MEMORY`, `SERVER_IP` and `SERVER_PORT`.
    #[schema(required = true, value_type = String, max_length = 65536)]
    startup_command: Option<String>,
    /// A regular expression; it is `running` once a line of output matches. Without one: once its process is up.
    #[schema(max_length = 4096)]
    start_pattern: Option<String>,
    /// Further ones; any of them says so.
    #[schema(max_items = 16)]
    start_patterns: Option<Vec<String>>,
    /// What says, while it starts, that it will not come up.
    #[schema(max_items = 16)]
    fail_patterns: Option<Vec<String>>,
    /// Seconds in which it has to be `running`.
    #[schema(minimum = 1, maximum = 86_400)]
    start_timeout: Option<u64>,
    /// Ports of the pool to publish.
    ports: Option<Vec<PortBody>>,
    /// What `POST /network/ports/allocate` has handed out, to take the ports of.
    lease_id: Option<Uuid>,
    /// What it may use; what is left out is the node's default.
    #[schema(value_type = Option<LimitsBody>)]
    #[serde(default, deserialize_with = "object")]
    limits: Option<Limits>,
    /// Container path to host path, beneath `docker.allowed_mounts`.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    mount: Option<BTreeMap<String, PathBuf>>,
    /// Run once, as root, with the volume at `/home/container` and `/mnt/server`.
    #[schema(max_length = 1_048_576)]
    install_script: Option<String>,
    /// An image for the install script alone.
    install_image: Option<String>,
    /// Environment variables.
    env: Option<BTreeMap<String, String>>,
    /// How it is asked to end: `SIGTERM` and 30 seconds, unless this says otherwise.
    #[serde(default, deserialize_with = "object")]
    stop: Option<StopBody>,
    labels: Option<BTreeMap<String, String>>,
    restart_on_crash: Option<RestartOnCrash>,
    /// Start it with the host, also if it was stopped before.
    autostart: Option<bool>,
    /// Whether its console is a terminal; it is, unless this says otherwise.
    tty: Option<bool>,
    /// Whether its root file system is read-only; it is, unless this says otherwise.
    read_only: Option<bool>,
    registry_auth: Option<RegistryAuthBody>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Stop, example = json!({"signal": "SIGTERM", "timeout": 30}))]
#[serde(deny_unknown_fields)]
pub(super) struct StopBody {
    /// `SIGTERM`, `SIGINT`, `SIGQUIT`, `SIGHUP`, `SIGUSR1`, `SIGUSR2` or `SIGWINCH`; in any case, also without `SIG`.
    signal: Option<String>,
    /// Or a line on its standard input.
    #[schema(max_length = 4096)]
    command: Option<String>,
    /// Seconds until it is killed.
    #[schema(maximum = 3600)]
    timeout: Option<u64>,
}

/// Credentials for the image's registry.
#[derive(Deserialize, ToSchema)]
#[schema(as = RegistryAuth, example = json!({"username": "me", "password": "secret"}))]
#[serde(deny_unknown_fields)]
pub(super) struct RegistryAuthBody {
    pub(super) username: String,
    pub(super) password: String,
    /// Where the image's name does not say it.
    #[serde(default)]
    pub(super) server: Option<String>,
}

impl std::fmt::Debug for RegistryAuthBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryAuthBody(***)")
    }
}

/// A creation that is well-formed by itself.
#[derive(Debug)]
pub(super) struct Creation {
    pub(super) id: ContainerId,
    pub(super) spec: ContainerSpec,
    pub(super) ports: Vec<PortBody>,
    pub(super) lease: Option<Uuid>,
    pub(super) registry_auth: Option<RegistryAuthBody>,
}

/// A creation as far as it could be read.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) id: Option<ContainerId>,
    pub(super) volume: Option<VolumeId>,
    /// Its volume is another's where there is none.
    pub(super) spec: ContainerSpec,
    pub(super) ports: Vec<PortBody>,
    pub(super) lease: Option<Uuid>,
    pub(super) registry_auth: Option<RegistryAuthBody>,
}

impl CreateBody {
    pub(super) fn read(self) -> Result<Creation, ApiError> {
        let mut problems = Vec::new();
        let Draft { id, volume, spec, ports, lease, registry_auth } = self.draft(&mut problems);
        match (id, volume) {
            (Some(id), Some(_)) if problems.is_empty() => {
                Ok(Creation { id, spec, ports, lease, registry_auth })
            }
            _ => Err(ApiError::invalid(problems)),
        }
    }

    /// Everything that can be read, and what is wrong with the rest.
    pub(super) fn draft(self, problems: &mut Vec<Problem>) -> Draft {
        let (id, volume) = self.names(problems);
        let stop = self.stop.map(|stop| stop.read(problems).apply(StopPolicy::default()));
        let ports = self.ports.unwrap_or_default();
        check_ports(&ports, problems);
        let mounts = self.mount.unwrap_or_default().into_iter();
        let spec = ContainerSpec {
            image: self.image.unwrap_or_default(),
            volume_id: volume.unwrap_or_else(VolumeId::random),
            startup_command: self.startup_command.unwrap_or_default(),
            start_pattern: non_empty(self.start_pattern),
            start_patterns: self.start_patterns.unwrap_or_default(),
            fail_patterns: self.fail_patterns.unwrap_or_default(),
            start_timeout: self.start_timeout.map(Duration::from_secs),
            limits: self.limits.unwrap_or_default(),
            mounts: mounts
                .map(|(target, source)| Mount { target, source, read_only: false })
                .collect(),
            install_script: non_empty(self.install_script),
            install_image: non_empty(self.install_image),
            env: self.env.unwrap_or_default(),
            stop: stop.unwrap_or_default(),
            labels: self.labels.unwrap_or_default(),
            restart_on_crash: self.restart_on_crash.unwrap_or_default(),
            autostart: self.autostart.unwrap_or(false),
            tty: self.tty.unwrap_or(true),
            read_only: self.read_only.unwrap_or(true),
        };
        Draft { id, volume, spec, ports, lease: self.lease_id, registry_auth: self.registry_auth }
    }

    /// What has to be there, and the two names in it.
    fn names(&self, problems: &mut Vec<Problem>) -> (Option<ContainerId>, Option<VolumeId>) {
        let required = [
            ("internal_id", &self.internal_id),
            ("volume_id", &self.volume_id),
            ("image", &self.image),
            ("startup_command", &self.startup_command),
        ];
        for (name, _) in required.into_iter().filter(|(_, text)| text.is_none()) {
            problems.push(Problem::new(name, "is required"));
        }
        let id = self.internal_id.as_deref().map(ContainerId::parse);
        if let Some(Err(why)) = &id {
            problems.push(Problem::new("internal_id", why.to_string()));
        }
        let volume = self.volume_id.as_deref().map(VolumeId::parse);
        if volume == Some(None) {
            problems.push(Problem::new("volume_id", "must be the id of a volume"));
        }
        (id.and_then(Result::ok), volume.flatten())
    }
}

/// Panels send an empty text where they have nothing to say.
pub(super) fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

impl From<RegistryAuthBody> for RegistryAuth {
    fn from(body: RegistryAuthBody) -> Self {
        Self { username: body.username, password: body.password, server: body.server }
    }
}

impl StopBody {
    fn read(self, problems: &mut Vec<Problem>) -> StopPatch {
        let how = match (self.signal, self.command) {
            (Some(_), Some(_)) => {
                problems.push(Problem::new("stop", "takes a signal or a command, not both"));
                None
            }
            (Some(signal), None) => Some(StopHow::Signal(full_signal_name(&signal))),
            (None, Some(command)) => Some(StopHow::Command(command)),
            (None, None) => None,
        };
        StopPatch { how, grace: self.timeout.map(Duration::from_secs) }
    }
}

/// `term`, `TERM` and `SIGTERM` are one signal.
fn full_signal_name(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") }
}

/// `PATCH /containers/{id}`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = PatchContainer, example = json!({"startup_command": "./run", "env": {"MODE": "fast", "OLD": null}}))]
#[serde(deny_unknown_fields)]
pub(super) struct PatchBody {
    #[schema(max_length = 65536)]
    startup_command: Option<String>,
    #[schema(value_type = Option<String>, required = false, max_length = 4096)]
    #[serde(default, deserialize_with = "present")]
    start_pattern: Option<Option<String>>,
    #[schema(value_type = Option<Vec<String>>, required = false, max_items = 16)]
    #[serde(default, deserialize_with = "present")]
    start_patterns: Option<Option<Vec<String>>>,
    #[schema(value_type = Option<Vec<String>>, required = false, max_items = 16)]
    #[serde(default, deserialize_with = "present")]
    fail_patterns: Option<Option<Vec<String>>>,
    /// Seconds.
    #[schema(value_type = Option<u64>, required = false, minimum = 1, maximum = 86_400)]
    #[serde(default, deserialize_with = "present")]
    start_timeout: Option<Option<u64>>,
    /// Merged into what is there; `null` removes a variable.
    #[schema(value_type = BTreeMap<String, Option<String>>)]
    #[serde(default)]
    env: BTreeMap<String, Option<String>>,
    #[serde(default, deserialize_with = "object")]
    stop: Option<StopBody>,
    /// Replace all that are there.
    labels: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "object")]
    limits: Option<LimitsBody>,
    restart_on_crash: Option<RestartOnCrash>,
    autostart: Option<bool>,
}

/// The fields of a change that a running workload does not see.
pub(super) fn waits_for_start(before: &ContainerSpec, after: &ContainerSpec) -> Vec<&'static str> {
    let for_engine = |spec: &ContainerSpec| Limits { disk: None, ..spec.limits };
    let fields = [
        ("startup_command", before.startup_command != after.startup_command),
        ("start_pattern", before.start_pattern != after.start_pattern),
        ("start_patterns", before.start_patterns != after.start_patterns),
        ("fail_patterns", before.fail_patterns != after.fail_patterns),
        ("start_timeout", before.start_timeout != after.start_timeout),
        ("env", before.env != after.env),
        ("limits", for_engine(before) != for_engine(after)),
    ];
    fields.into_iter().filter(|(_, changes)| *changes).map(|(name, _)| name).collect()
}

impl PatchBody {
    pub(super) fn read(self) -> Result<SpecPatch, ApiError> {
        let mut problems = Vec::new();
        let patch = self.patch(&mut problems);
        if problems.is_empty() { Ok(patch) } else { Err(ApiError::invalid(problems)) }
    }

    /// Everything that can be read, and what is wrong with the rest.
    pub(super) fn patch(self, problems: &mut Vec<Problem>) -> SpecPatch {
        SpecPatch {
            startup_command: self.startup_command,
            start_pattern: self.start_pattern.map(non_empty),
            start_patterns: self.start_patterns.map(Option::unwrap_or_default),
            fail_patterns: self.fail_patterns.map(Option::unwrap_or_default),
            start_timeout: self.start_timeout.map(|limit| limit.map(Duration::from_secs)),
            env: self.env,
            stop: self.stop.map(|stop| stop.read(problems)),
            labels: self.labels,
            limits: self.limits.map(LimitsBody::read),
            restart_on_crash: self.restart_on_crash,
            autostart: self.autostart,
        }
    }
}

/// `POST /containers/{id}/reinstall`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = Reinstall, example = json!({"image": "ubuntu:24.04"}))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ReinstallBody {
    /// As it is, if this is left out.
    image: Option<String>,
    /// As it is, if this is left out.
    #[schema(max_length = 1_048_576)]
    install_script: Option<String>,
}

impl From<ReinstallBody> for Request {
    fn from(body: ReinstallBody) -> Self {
        Self::Reinstall {
            image: non_empty(body.image),
            install_script: non_empty(body.install_script),
        }
    }
}

/// Some limits changed: one that is left out stays, `null` lifts it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = LimitsChange)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LimitsBody {
    /// Bytes of memory.
    #[schema(value_type = Option<u64>, minimum = 6_291_456, example = 536_870_912)]
    #[serde(deserialize_with = "present")]
    memory: Option<Option<u64>>,
    /// Bytes of memory and swap together, as Docker counts.
    #[schema(value_type = Option<u64>)]
    #[serde(deserialize_with = "present")]
    memory_swap: Option<Option<u64>>,
    /// Bytes of memory that the kernel tries to leave it under pressure.
    #[schema(value_type = Option<u64>)]
    #[serde(deserialize_with = "present")]
    memory_reservation: Option<Option<u64>>,
    /// Cores; 0.5 is half of one.
    #[schema(value_type = Option<f64>, minimum = 0.01, example = 1.5)]
    #[serde(deserialize_with = "present")]
    cpu: Option<Option<f64>>,
    #[schema(value_type = Option<u64>, minimum = 2, maximum = 262_144)]
    #[serde(deserialize_with = "present")]
    cpu_shares: Option<Option<u64>>,
    /// Microseconds of each period; with `cpu_period` the long form of `cpu`.
    #[schema(value_type = Option<u64>, minimum = 1_000, maximum = 1_000_000_000)]
    #[serde(deserialize_with = "present")]
    cpu_quota: Option<Option<u64>>,
    #[schema(value_type = Option<u64>, minimum = 1_000, maximum = 1_000_000)]
    #[serde(deserialize_with = "present")]
    cpu_period: Option<Option<u64>>,
    /// Processes and threads.
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 4_194_304, example = 512)]
    #[serde(deserialize_with = "present")]
    pids: Option<Option<u64>>,
    /// Bytes in the volume.
    #[schema(value_type = Option<u64>, minimum = 1_048_576, maximum = 1_125_899_906_842_624_u64)]
    #[serde(deserialize_with = "present")]
    disk: Option<Option<u64>>,
}

impl LimitsBody {
    pub(super) fn read(self) -> LimitsPatch {
        LimitsPatch {
            memory: self.memory,
            memory_swap: self.memory_swap,
            memory_reservation: self.memory_reservation,
            cpu: self.cpu,
            cpu_shares: self.cpu_shares,
            cpu_quota: self.cpu_quota,
            cpu_period: self.cpu_period,
            pids: self.pids,
            disk: self.disk,
        }
    }
}

/// Tells a field that is `null` from one that is not there.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::spec::Protocol;
    use serde_json::json;

    fn full() -> serde_json::Value {
        json!({
            "internal_id": "server-001",
            "image": "ubuntu:22.04",
            "volume_id": uuid::Uuid::new_v4(),
            "startup_command": "bash -c \"while true; do echo Ready; sleep 1; done\"",
            "start_pattern": "Ready",
            "ports": [{"ip": "0.0.0.0", "port": 25565, "protocol": "tcp"}],
            "limits": {"memory": 536870912, "cpu": 1.0},
            "install_script": "#!/bin/bash\nwget https://example.com/server.jar"
        })
    }

    fn read(body: serde_json::Value) -> Result<Creation, ApiError> {
        serde_json::from_value::<CreateBody>(body).unwrap().read()
    }

    #[test]
    fn the_documents_example_is_read_with_hard_defaults() {
        let Creation { id, spec, ports, registry_auth, .. } = read(full()).unwrap();
        assert_eq!(id.as_str(), "server-001");
        assert_eq!(spec.limits.memory, Some(536_870_912));
        assert_eq!(spec.limits.cpu, Some(1.0));
        assert_eq!(ports[0].port, Some(25565));
        assert_eq!(ports[0].protocol, Some(Protocol::Tcp));
        assert!(spec.read_only && !spec.autostart);
        assert_eq!(spec.restart_on_crash, RestartOnCrash::Plain(false));
        assert!(registry_auth.is_none());
    }

    #[test]
    fn all_that_is_missing_or_malformed_is_told_at_once() {
        let error = read(json!({
            "internal_id": "-x", "volume_id": "nope", "ports": [{"port": 0}],
            "stop": {"signal": "TERM", "command": "stop"}
        }))
        .unwrap_err();
        let fields: Vec<&str> =
            error.problems().iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(
            fields,
            ["image", "startup_command", "internal_id", "volume_id", "stop", "ports[0].port"]
        );
    }

    #[test]
    fn stop_takes_a_signal_by_any_of_its_names_or_a_line() {
        let stop = |stop: serde_json::Value| {
            let mut body = full();
            body["stop"] = stop;
            read(body).unwrap().spec.stop
        };
        for name in ["term", "TERM", "SIGTERM"] {
            assert_eq!(stop(json!({"signal": name})).how, StopHow::Signal("SIGTERM".to_owned()));
        }
        let policy = stop(json!({"command": "stop", "timeout": 5}));
        assert_eq!(policy.how, StopHow::Command("stop".to_owned()));
        assert_eq!(policy.grace, Duration::from_secs(5));
    }

    #[test]
    fn a_patch_changes_what_it_names_and_null_lifts() {
        let mut before = read(full()).unwrap().spec;
        before.limits.pids = Some(64);
        let patch: PatchBody = serde_json::from_value(json!({
            "start_pattern": null, "env": {"A": "1", "B": null},
            "limits": {"memory": null, "cpu": 2}, "stop": {"timeout": 3}
        }))
        .unwrap();
        let after = patch.read().unwrap().apply(&before);
        assert_eq!(after.start_pattern, None);
        assert_eq!(after.env.get("A").map(String::as_str), Some("1"));
        assert_eq!((after.limits.memory, after.limits.cpu), (None, Some(2.0)));
        assert_eq!(after.limits.pids, Some(64));
        assert_eq!(after.stop.how, before.stop.how);
        assert_eq!(after.stop.grace, Duration::from_secs(3));
        assert_eq!(after.startup_command, before.startup_command);
    }
}
