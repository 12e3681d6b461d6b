//! What a container should be: the specification that a panel sends and the store keeps.
//!
//! [`ContainerSpec::problems`] finds everything that is wrong with a specification by itself and on
//! this node; what depends on other rows (is the volume there, is the port free) is checked in the
//! store's transaction. A stored specification has passed both.

mod image;
mod port;
mod problems;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::VolumeId;
use super::restart::RestartOnCrash;

pub(crate) use self::image::check_image_reference;
pub(crate) use self::port::{HostPort, PortBinding, Protocol};
pub(crate) use self::problems::{NodeCapacity, Problem, compile_pattern};

/// Everything needed to build a container's workload again from nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    /// The image asked for; what an install made of it stands in the container's row.
    pub(crate) image: String,
    pub(crate) volume_id: VolumeId,
    /// A shell command line with `{{NAME}}` placeholders.
    pub(crate) startup_command: String,
    pub(crate) start_pattern: Option<String>,
    /// Further ones; any of them says that it is ready.
    #[serde(default)]
    pub(crate) start_patterns: Vec<String>,
    /// What says, while it starts, that it will not come up.
    #[serde(default)]
    pub(crate) fail_patterns: Vec<String>,
    /// How long it may take from its process's start until it is ready.
    #[serde(default)]
    pub(crate) start_timeout: Option<Duration>,
    pub(crate) limits: Limits,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) install_script: Option<String>,
    /// An image for the install script alone.
    pub(crate) install_image: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) stop: StopPolicy,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) restart_on_crash: RestartOnCrash,
    pub(crate) autostart: bool,
    pub(crate) tty: bool,
    pub(crate) read_only: bool,
}

impl ContainerSpec {
    /// All that say that it is ready. Without any it is when its process is up.
    pub(crate) fn ready_patterns(&self) -> impl Iterator<Item = &str> {
        self.start_pattern.iter().chain(&self.start_patterns).map(String::as_str)
    }

    /// Whether a Docker container of the other one is as good as one of this. The start command and the
    /// policies are read at each start, and the size of the disk is lightd's own business.
    pub(crate) fn is_built_like(&self, other: &Self) -> bool {
        let limits = |spec: &Self| Limits { disk: None, ..spec.limits };
        self.env == other.env && limits(self) == limits(other)
    }

    /// Whether it is ready only when its output says so.
    pub(crate) fn waits_for_output(&self) -> bool {
        self.ready_patterns().next().is_some()
    }
}

/// Changes to a specification; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SpecPatch {
    pub(crate) startup_command: Option<String>,
    /// `Some(None)` removes the pattern.
    pub(crate) start_pattern: Option<Option<String>>,
    /// Replaces all of them, as `fail_patterns` does.
    pub(crate) start_patterns: Option<Vec<String>>,
    pub(crate) fail_patterns: Option<Vec<String>>,
    /// `Some(None)`: it may take as long as it likes.
    pub(crate) start_timeout: Option<Option<Duration>>,
    /// Merged into the environment; `None` removes a variable.
    pub(crate) env: BTreeMap<String, Option<String>>,
    pub(crate) stop: Option<StopPatch>,
    /// Replaces all labels.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) limits: Option<LimitsPatch>,
    pub(crate) restart_on_crash: Option<RestartOnCrash>,
    pub(crate) autostart: Option<bool>,
}

impl SpecPatch {
    /// The specification with these changes.
    pub(crate) fn apply(&self, to: &ContainerSpec) -> ContainerSpec {
        let mut spec = to.clone();
        spec.startup_command = self.startup_command.clone().unwrap_or(spec.startup_command);
        spec.start_pattern = self.start_pattern.clone().unwrap_or(spec.start_pattern);
        spec.start_patterns = self.start_patterns.clone().unwrap_or(spec.start_patterns);
        spec.fail_patterns = self.fail_patterns.clone().unwrap_or(spec.fail_patterns);
        spec.start_timeout = self.start_timeout.unwrap_or(spec.start_timeout);
        for (name, value) in &self.env {
            match value {
                Some(value) => spec.env.insert(name.clone(), value.clone()),
                None => spec.env.remove(name),
            };
        }
        spec.stop = self.stop.clone().unwrap_or_default().apply(spec.stop);
        spec.labels = self.labels.clone().unwrap_or(spec.labels);
        spec.limits = self.limits.unwrap_or_default().apply(spec.limits);
        spec.restart_on_crash = self.restart_on_crash.unwrap_or(spec.restart_on_crash);
        spec.autostart = self.autostart.unwrap_or(spec.autostart);
        spec
    }
}

/// Changes to limits; what is `None` stays, `Some(None)` lifts one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LimitsPatch {
    pub(crate) memory: Option<Option<u64>>,
    pub(crate) memory_swap: Option<Option<u64>>,
    pub(crate) memory_reservation: Option<Option<u64>>,
    pub(crate) cpu: Option<Option<f64>>,
    pub(crate) cpu_shares: Option<Option<u64>>,
    pub(crate) cpu_quota: Option<Option<u64>>,
    pub(crate) cpu_period: Option<Option<u64>>,
    pub(crate) pids: Option<Option<u64>>,
    pub(crate) disk: Option<Option<u64>>,
}

impl LimitsPatch {
    /// The limits with these changes.
    pub(crate) fn apply(&self, to: Limits) -> Limits {
        Limits {
            memory: self.memory.unwrap_or(to.memory),
            memory_swap: self.memory_swap.unwrap_or(to.memory_swap),
            memory_reservation: self.memory_reservation.unwrap_or(to.memory_reservation),
            cpu: self.cpu.unwrap_or(to.cpu),
            cpu_shares: self.cpu_shares.unwrap_or(to.cpu_shares),
            cpu_quota: self.cpu_quota.unwrap_or(to.cpu_quota),
            cpu_period: self.cpu_period.unwrap_or(to.cpu_period),
            pids: self.pids.unwrap_or(to.pids),
            disk: self.disk.unwrap_or(to.disk),
        }
    }
}

/// What a container may use. `None` is the node's default, or no limit where the node has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Bytes of memory.
    pub(crate) memory: Option<u64>,
    /// Bytes of memory and swap together, as Docker counts; `None`: as `memory`, so no swap.
    pub(crate) memory_swap: Option<u64>,
    /// Bytes of memory the kernel tries to leave the container under pressure.
    pub(crate) memory_reservation: Option<u64>,
    /// Cores; 0.5 is half of one.
    pub(crate) cpu: Option<f64>,
    pub(crate) cpu_shares: Option<u64>,
    /// Microseconds of each period; with `cpu_period` the long form of `cpu`.
    pub(crate) cpu_quota: Option<u64>,
    pub(crate) cpu_period: Option<u64>,
    /// Processes and threads.
    pub(crate) pids: Option<u64>,
    /// Bytes in the volume.
    pub(crate) disk: Option<u64>,
}

impl Limits {
    /// The limits that there were and are no more, by name: the engine can lift none of these from what runs.
    pub(crate) fn lifted_since(&self, before: &Self) -> Vec<&'static str> {
        let is_lifted = |before: bool, after: bool| before && !after;
        let cores = |limits: &Self| limits.cpu.is_some() || limits.cpu_quota.is_some();
        let no_cores = is_lifted(cores(before), cores(self));
        let swap_goes = before.memory_swap.is_some() && self.memory_swap.is_none();
        let lifted = [
            ("memory", is_lifted(before.memory.is_some(), self.memory.is_some())),
            // Beside a limit on memory, none on swap means that there is no swap.
            ("memory_swap", swap_goes && self.memory.is_none()),
            (
                "memory_reservation",
                is_lifted(before.memory_reservation.is_some(), self.memory_reservation.is_some()),
            ),
            ("cpu", no_cores && before.cpu.is_some()),
            ("cpu_quota", no_cores && before.cpu_quota.is_some()),
            (
                "cpu_period",
                is_lifted(before.cpu_period.is_some(), self.cpu_period.is_some())
                    && self.cpu.is_none(),
            ),
            ("cpu_shares", is_lifted(before.cpu_shares.is_some(), self.cpu_shares.is_some())),
        ];
        lifted.into_iter().filter(|(_, is_lifted)| *is_lifted).map(|(name, _)| name).collect()
    }
}

/// A host folder inside the container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) target: String,
    pub(crate) source: PathBuf,
    pub(crate) read_only: bool,
}

/// How a workload is asked to end before it is killed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StopPolicy {
    pub(crate) how: StopHow,
    pub(crate) grace: Duration,
}

/// Changes to how it is asked; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StopPatch {
    pub(crate) how: Option<StopHow>,
    pub(crate) grace: Option<Duration>,
}

impl StopPatch {
    /// The policy with these changes.
    pub(crate) fn apply(self, to: StopPolicy) -> StopPolicy {
        StopPolicy { how: self.how.unwrap_or(to.how), grace: self.grace.unwrap_or(to.grace) }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StopHow {
    /// A signal to the workload, by its name (`SIGTERM`).
    Signal(String),
    /// A line on its standard input.
    Command(String),
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self { how: StopHow::Signal("SIGTERM".to_owned()), grace: Duration::from_secs(30) }
    }
}

#[cfg(test)]
impl ContainerSpec {
    /// One without problems, that does nothing.
    pub(crate) fn plain(volume_id: VolumeId) -> Self {
        Self {
            image: "debian:12".to_owned(),
            volume_id,
            startup_command: "true".to_owned(),
            start_pattern: None,
            start_patterns: Vec::new(),
            fail_patterns: Vec::new(),
            start_timeout: None,
            limits: Limits::default(),
            mounts: Vec::new(),
            install_script: None,
            install_image: None,
            env: BTreeMap::new(),
            stop: StopPolicy::default(),
            labels: BTreeMap::new(),
            restart_on_crash: RestartOnCrash::default(),
            autostart: false,
            tty: true,
            read_only: true,
        }
    }
}
