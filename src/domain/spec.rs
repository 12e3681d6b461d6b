//! What a container should be: the specification that a panel sends and the store keeps.
//!
//! [`ContainerSpec::problems`] finds everything that is wrong with a specification by itself and on
//! this node; what depends on other rows (is the volume there, is the port free) is checked in the
//! store's transaction. A stored specification has passed both.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::VolumeId;
use super::template;
use super::units::MIB;

/// Everything needed to build a container's workload again from nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    /// The image asked for; what an install made of it stands in the container's row.
    pub(crate) image: String,
    pub(crate) volume_id: VolumeId,
    /// A shell command line with `{{NAME}}` placeholders.
    pub(crate) startup_command: String,
    pub(crate) start_pattern: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) install_script: Option<String>,
    /// An image for the install script alone.
    pub(crate) install_image: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) stop: StopPolicy,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) restart_on_crash: bool,
    pub(crate) autostart: bool,
    pub(crate) tty: bool,
    pub(crate) read_only: bool,
}

/// Changes to a specification; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SpecPatch {
    pub(crate) startup_command: Option<String>,
    /// `Some(None)` removes the pattern.
    pub(crate) start_pattern: Option<Option<String>>,
    /// Merged into the environment; `None` removes a variable.
    pub(crate) env: BTreeMap<String, Option<String>>,
    pub(crate) stop: Option<StopPolicy>,
    /// Replaces all labels.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) limits: Option<Limits>,
    pub(crate) restart_on_crash: Option<bool>,
    pub(crate) autostart: Option<bool>,
}

impl SpecPatch {
    /// The specification with these changes.
    pub(crate) fn apply(&self, to: &ContainerSpec) -> ContainerSpec {
        let mut spec = to.clone();
        spec.startup_command = self.startup_command.clone().unwrap_or(spec.startup_command);
        spec.start_pattern = self.start_pattern.clone().unwrap_or(spec.start_pattern);
        for (name, value) in &self.env {
            match value {
                Some(value) => spec.env.insert(name.clone(), value.clone()),
                None => spec.env.remove(name),
            };
        }
        spec.stop = self.stop.clone().unwrap_or(spec.stop);
        spec.labels = self.labels.clone().unwrap_or(spec.labels);
        spec.limits = self.limits.unwrap_or(spec.limits);
        spec.restart_on_crash = self.restart_on_crash.unwrap_or(spec.restart_on_crash);
        spec.autostart = self.autostart.unwrap_or(spec.autostart);
        spec
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

/// Signals that a stop policy may name. Real-time signals and those a workload cannot see
/// (`SIGKILL`, `SIGSTOP`) are left out on purpose.
pub(crate) const STOP_SIGNALS: &[&str] =
    &["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }
}

/// One port of the pool: an address of this node, a number and a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

/// A pool port published into a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct PortBinding {
    #[serde(flatten)]
    pub(crate) host: HostPort,
    pub(crate) container_port: u16,
}

/// One thing wrong with a request: the field, as the caller wrote it, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    pub(crate) field: String,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// What this node has and allows, against which limits are held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeCapacity {
    pub(crate) memory_bytes: u64,
    pub(crate) cpus: f64,
}

/// The least memory Docker gives a container.
const MEMORY_MIN_BYTES: u64 = 6 * MIB;
/// The size a compiled `start_pattern` may have; a larger one is a way to eat the daemon's memory.
pub(crate) const PATTERN_SIZE_LIMIT_BYTES: usize = 1 << 20;
const PATTERN_TEXT_LIMIT_BYTES: usize = 4096;
const COMMAND_LIMIT_BYTES: usize = 64 * 1024;
const SCRIPT_LIMIT_BYTES: usize = 1 << 20;
const ENV_LIMIT_BYTES: usize = 256 * 1024;
const PIDS_MAX: u64 = 1 << 22;
const GRACE_MAX: Duration = Duration::from_secs(3600);

impl ContainerSpec {
    /// All that is wrong with this specification on its own, each named by its field.
    pub(crate) fn problems(&self, node: NodeCapacity) -> Vec<Problem> {
        let mut found = Vec::new();
        for (field, image) in
            [("image", Some(&self.image)), ("install_image", self.install_image.as_ref())]
        {
            if let Some(Err(why)) = image.map(|image| check_image_reference(image)) {
                found.push(Problem::new(field, why));
            }
        }
        self.check_texts(&mut found);
        self.check_env(&mut found);
        found.extend(self.limits.problems(node));
        found.extend(self.stop.problems());
        found
    }

    fn check_texts(&self, found: &mut Vec<Problem>) {
        if self.startup_command.trim().is_empty() {
            found.push(Problem::new("startup_command", "must not be empty"));
        }
        let texts = [
            ("startup_command", Some(&self.startup_command), COMMAND_LIMIT_BYTES),
            ("install_script", self.install_script.as_ref(), SCRIPT_LIMIT_BYTES),
        ];
        for (field, text, limit) in texts {
            let Some(text) = text else { continue };
            if text.contains('\0') {
                found.push(Problem::new(field, "must not contain a NUL character"));
            }
            if text.len() > limit {
                found.push(Problem::new(field, format!("must not be longer than {limit} bytes")));
            }
        }
        for name in template::unknown_names(&self.startup_command, &self.env) {
            found.push(Problem::new(
                "startup_command",
                format!(
                    "{{{{{name}}}}} is neither in env nor one of {}",
                    template::BUILT_IN.join(", ")
                ),
            ));
        }
        if let Some(Err(why)) = self.start_pattern.as_deref().map(compile_pattern) {
            found.push(Problem::new("start_pattern", why));
        }
    }

    fn check_env(&self, found: &mut Vec<Problem>) {
        for (name, value) in &self.env {
            if !is_env_name(name) {
                found.push(Problem::new(format!("env.{name}"), "is no name of a variable"));
            } else if template::BUILT_IN.contains(&name.as_str()) || name == "HOME" {
                found.push(Problem::new(format!("env.{name}"), "is set by lightd itself"));
            }
            if value.contains('\0') {
                found.push(Problem::new(format!("env.{name}"), "must not contain a NUL character"));
            }
        }
        if self.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
            > ENV_LIMIT_BYTES
        {
            found.push(Problem::new(
                "env",
                format!("must not be larger than {ENV_LIMIT_BYTES} bytes in all"),
            ));
        }
        let label_bytes: usize =
            self.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        if label_bytes > ENV_LIMIT_BYTES || self.labels.keys().any(String::is_empty) {
            found.push(Problem::new("labels", "must have names and at most 256 KiB in all"));
        }
    }
}

impl Limits {
    pub(crate) fn problems(&self, node: NodeCapacity) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut say = |field: &str, message: String| {
            found.push(Problem::new(format!("limits.{field}"), message))
        };
        if let Some(memory) = self.memory {
            if memory < MEMORY_MIN_BYTES {
                say("memory", format!("must be at least {MEMORY_MIN_BYTES} bytes"));
            } else if memory > node.memory_bytes {
                say(
                    "memory",
                    format!("must not be more than this node has, {} bytes", node.memory_bytes),
                );
            }
        }
        match (self.memory_swap, self.memory) {
            (Some(_), None) => say("memory_swap", "needs memory beside it".to_owned()),
            (Some(swap), Some(memory)) if swap < memory => {
                say(
                    "memory_swap",
                    "counts memory and swap together, so it must not be less than memory"
                        .to_owned(),
                );
            }
            _ => {}
        }
        if let (Some(reserved), Some(memory)) = (self.memory_reservation, self.memory)
            && reserved > memory
        {
            say("memory_reservation", "must not be more than memory".to_owned());
        }
        if let Some(cpu) = self.cpu {
            if !cpu.is_finite() || cpu < 0.01 {
                say("cpu", "must be at least 0.01 cores".to_owned());
            } else if cpu > node.cpus {
                say("cpu", format!("must not be more than this node has, {} cores", node.cpus));
            }
        }
        if self.cpu.is_some() && (self.cpu_quota.is_some() || self.cpu_period.is_some()) {
            say("cpu", "and cpu_quota or cpu_period exclude each other".to_owned());
        }
        for (field, value, least, most) in [
            ("pids", self.pids, 1, PIDS_MAX),
            ("cpu_shares", self.cpu_shares, 2, 262_144),
            ("cpu_quota", self.cpu_quota, 1_000, 1_000_000_000),
            ("cpu_period", self.cpu_period, 1_000, 1_000_000),
            ("disk", self.disk, MIB, 1 << 50),
        ] {
            if value.is_some_and(|value| !(least..=most).contains(&value)) {
                say(field, format!("must be between {least} and {most}"));
            }
        }
        found
    }
}

impl StopPolicy {
    fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        match &self.how {
            StopHow::Signal(name) if !STOP_SIGNALS.contains(&name.as_str()) => {
                found.push(Problem::new(
                    "stop.signal",
                    format!("must be one of {}", STOP_SIGNALS.join(", ")),
                ));
            }
            StopHow::Command(line)
                if line.is_empty() || line.len() > 4096 || line.contains(['\n', '\0']) =>
            {
                found.push(Problem::new("stop.command", "must be one line of 1 to 4096 bytes"));
            }
            StopHow::Signal(_) | StopHow::Command(_) => {}
        }
        if self.grace > GRACE_MAX {
            found.push(Problem::new("stop.timeout", "must not be more than 3600 seconds"));
        }
        found
    }
}

/// Compiles a start pattern within its size limits; the error is meant for the person who wrote it.
pub(crate) fn compile_pattern(text: &str) -> Result<regex::bytes::Regex, String> {
    if text.is_empty() || text.len() > PATTERN_TEXT_LIMIT_BYTES {
        return Err(format!("must have 1 to {PATTERN_TEXT_LIMIT_BYTES} bytes"));
    }
    regex::bytes::RegexBuilder::new(text)
        .size_limit(PATTERN_SIZE_LIMIT_BYTES)
        .build()
        .map_err(|why| format!("is no regular expression lightd takes: {why}"))
}

/// The grammar of image references, as far as it keeps a name from becoming part of a URL's path:
/// `[host[:port]/]name[/name…][:tag][@algorithm:hex]`.
/// Source: <https://pkg.go.dev/github.com/distribution/reference>
pub(crate) fn check_image_reference(text: &str) -> Result<(), &'static str> {
    const WHY: &str = "must be an image reference, such as debian:12 or host:5000/name@sha256:…";
    if text.is_empty() || text.len() > 512 {
        return Err(WHY);
    }
    let (name, digest) =
        text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let digest_is_good = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty()
                && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b))
                && hex.len() >= 32
                && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    });
    let last_slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[last_slash..].rfind(':') {
        Some(at) => (&name[..last_slash + at], Some(&name[last_slash + at + 1..])),
        None => (name, None),
    };
    let tag_is_good = tag.is_none_or(|tag| {
        !tag.is_empty()
            && tag.len() <= 128
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    });
    let mut parts = path.split('/').enumerate();
    let path_is_good = parts.all(|(index, part)| {
        let is_host =
            index == 0 && path.contains('/') && part.contains(['.', ':']) || part == "localhost";
        let allowed: &[u8] = if is_host { b".-:" } else { b"._-" };
        let plain = |b: u8| {
            b.is_ascii_digit() || b.is_ascii_lowercase() || (is_host && b.is_ascii_uppercase())
        };
        part.bytes().next().is_some_and(plain)
            && part.bytes().next_back().is_some_and(plain)
            && !part.contains("..")
            && part.bytes().all(|b| plain(b) || allowed.contains(&b))
    });
    if digest_is_good && tag_is_good && path_is_good { Ok(()) } else { Err(WHY) }
}

fn is_env_name(name: &str) -> bool {
    name.len() <= 255
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn plain_spec() -> ContainerSpec {
        ContainerSpec {
            image: "debian:12".to_owned(),
            volume_id: VolumeId::random(),
            startup_command: "true".to_owned(),
            start_pattern: None,
            limits: Limits::default(),
            mounts: Vec::new(),
            install_script: None,
            install_image: None,
            env: BTreeMap::new(),
            stop: StopPolicy::default(),
            labels: BTreeMap::new(),
            restart_on_crash: false,
            autostart: false,
            tty: true,
            read_only: true,
        }
    }

    const NODE: NodeCapacity = NodeCapacity { memory_bytes: 8 << 30, cpus: 2.0 };

    fn fields(spec: &ContainerSpec) -> Vec<String> {
        spec.problems(NODE).into_iter().map(|problem| problem.field).collect()
    }

    #[test]
    fn a_plain_spec_has_no_problems() {
        assert_eq!(fields(&plain_spec()), Vec::<String>::new());
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let mut spec = plain_spec();
        spec.image = "../../images/evil?force=1".to_owned();
        spec.startup_command = "run {{NOBODY}}".to_owned();
        spec.start_pattern = Some("(".to_owned());
        spec.env.insert("1X".to_owned(), String::new());
        spec.limits.memory = Some(1);
        spec.limits.cpu = Some(99.0);
        spec.stop.how = StopHow::Signal("SIGNOPE".to_owned());
        assert_eq!(
            fields(&spec),
            [
                "image",
                "startup_command",
                "start_pattern",
                "env.1X",
                "limits.memory",
                "limits.cpu",
                "stop.signal"
            ]
        );
    }

    #[test]
    fn a_pattern_that_would_eat_the_memory_is_refused() {
        assert!(compile_pattern(r"(?:a{1000}){1000}").is_err());
        assert!(compile_pattern("Done|Ready").is_ok());
    }

    #[test]
    fn image_references_are_held_to_their_grammar() {
        let digest = format!("host:5000/a/b@sha256:{}", "a".repeat(64));
        for good in [
            "debian",
            "debian:12",
            "a/b-c/d_e:1.2-x",
            "localhost:5000/x",
            "Reg.Example:443/x:T",
            &digest,
        ] {
            assert!(check_image_reference(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "A",
            "a b",
            "a/../b",
            "a?x=1",
            "a#b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a@sha256:zz",
            "a//b",
            "a\nb",
        ] {
            assert!(check_image_reference(bad).is_err(), "{bad}");
        }
    }
}
