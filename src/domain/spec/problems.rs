//! What is wrong with a specification, told all at once.
//!
//! Whoever takes one from the outside asks: the registry before it stores one, the owner task before it
//! changes one. Each problem names its field as the caller wrote it, in a sentence for that person.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;

use super::image::check_image_reference;
use super::{ContainerSpec, Limits, StopHow, StopPolicy};
use crate::domain::readiness::Patterns;
use crate::domain::restart::RestartOnCrash;
use crate::domain::template;
use crate::domain::units::MIB;

/// One thing wrong with a request: the field, as the caller wrote it, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    pub(crate) field: String,
    pub(crate) message: String,
    /// For programs, where it is not that the field is invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<&'static str>,
}

impl Problem {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), code: None }
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
const PATTERN_SIZE_LIMIT_BYTES: usize = 1 << 20;
const PATTERN_TEXT_LIMIT_BYTES: usize = 4096;
/// In each of the lists.
const PATTERNS_MAX: usize = 16;
const START_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const COMMAND_LIMIT_BYTES: usize = 64 * 1024;
const SCRIPT_LIMIT_BYTES: usize = 1 << 20;
const ENV_LIMIT_BYTES: usize = 256 * 1024;
const LABELS_LIMIT_BYTES: usize = 256 * 1024;
const PIDS_MAX: u64 = 1 << 22;
const GRACE_MAX: Duration = Duration::from_secs(3600);

/// Signals that a stop policy may name. Real-time signals and those a workload cannot see
/// (`SIGKILL`, `SIGSTOP`) are left out on purpose.
const STOP_SIGNALS: &[&str] =
    &["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"];

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
        self.check_start(&mut found);
        self.check_env(&mut found);
        self.check_labels(&mut found);
        found.extend(self.limits.problems(node));
        found.extend(self.stop.problems());
        if let RestartOnCrash::Rule(rule) = self.restart_on_crash
            && let Some((field, why)) = rule.problem()
        {
            found.push(Problem::new(format!("restart_on_crash.{field}"), why));
        }
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
    }

    fn check_start(&self, found: &mut Vec<Problem>) {
        let before = found.len();
        if let Some(Err(why)) = self.start_pattern.as_deref().map(compile_pattern) {
            found.push(Problem::new("start_pattern", why));
        }
        let lists =
            [("start_patterns", &self.start_patterns), ("fail_patterns", &self.fail_patterns)];
        for (field, patterns) in lists {
            if patterns.len() > PATTERNS_MAX {
                found.push(Problem::new(field, format!("must not be more than {PATTERNS_MAX}")));
                continue;
            }
            for (index, pattern) in patterns.iter().enumerate() {
                if let Err(why) = compile_pattern(pattern) {
                    found.push(Problem::new(format!("{field}[{index}]"), why));
                }
            }
        }
        if !self.fail_patterns.is_empty() && !self.waits_for_output() {
            let why = "need start_pattern or start_patterns beside them: without one a start is over \
                       when the process is up";
            found.push(Problem::new("fail_patterns", why));
        }
        if self.start_timeout.is_some_and(|limit| !START_TIMEOUT.contains(&limit)) {
            found.push(Problem::new("start_timeout", "must be between 1 and 86400 seconds"));
        }
        if found.len() == before
            && let Err(why) = self.compile_start()
        {
            found.push(Problem::new("start_patterns", why));
        }
    }

    /// All patterns of a start; `None`: it is ready when its process is up.
    pub(crate) fn compile_start(&self) -> Result<Option<Patterns>, String> {
        if !self.waits_for_output() {
            return Ok(None);
        }
        let fail = self.fail_patterns.iter().map(String::as_str);
        Patterns::compile(self.ready_patterns(), fail).map(Some)
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
        if bytes_of(&self.env) > ENV_LIMIT_BYTES {
            found.push(Problem::new(
                "env",
                format!("must not be larger than {ENV_LIMIT_BYTES} bytes in all"),
            ));
        }
    }

    fn check_labels(&self, found: &mut Vec<Problem>) {
        if bytes_of(&self.labels) > LABELS_LIMIT_BYTES || self.labels.keys().any(String::is_empty) {
            found.push(Problem::new("labels", "must have names and at most 256 KiB in all"));
        }
    }
}

impl Limits {
    /// All that is wrong with these limits, on their own and for this node.
    pub(crate) fn problems(&self, node: NodeCapacity) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut say = |field: &str, message: String| {
            found.push(Problem::new(format!("limits.{field}"), message))
        };
        self.check_memory(node, &mut say);
        self.check_cpu(node, &mut say);
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

    fn check_memory(&self, node: NodeCapacity, say: &mut impl FnMut(&str, String)) {
        let has = node.memory_bytes;
        match self.memory {
            Some(memory) if memory < MEMORY_MIN_BYTES => {
                say("memory", format!("must be at least {MEMORY_MIN_BYTES} bytes"));
            }
            Some(memory) if memory > has => {
                say("memory", format!("must not be more than this node has, {has} bytes"));
            }
            _ => {}
        }
        match (self.memory_swap, self.memory) {
            (Some(_), None) => say("memory_swap", "needs memory beside it".to_owned()),
            (Some(swap), Some(memory)) if swap < memory => {
                let why = "counts memory and swap together, so it must not be less than memory";
                say("memory_swap", why.to_owned());
            }
            _ => {}
        }
        if let (Some(reserved), Some(memory)) = (self.memory_reservation, self.memory)
            && reserved > memory
        {
            say("memory_reservation", "must not be more than memory".to_owned());
        }
    }

    fn check_cpu(&self, node: NodeCapacity, say: &mut impl FnMut(&str, String)) {
        match self.cpu {
            Some(cpu) if !cpu.is_finite() || cpu < 0.01 => {
                say("cpu", "must be at least 0.01 cores".to_owned());
            }
            Some(cpu) if cpu > node.cpus => {
                say("cpu", format!("must not be more than this node has, {} cores", node.cpus));
            }
            _ => {}
        }
        if self.cpu.is_some() && (self.cpu_quota.is_some() || self.cpu_period.is_some()) {
            say("cpu", "and cpu_quota or cpu_period exclude each other".to_owned());
        }
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

fn bytes_of(texts: &BTreeMap<String, String>) -> usize {
    texts.iter().map(|(name, value)| name.len() + value.len()).sum()
}

fn is_env_name(name: &str) -> bool {
    name.len() <= 255
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::VolumeId;

    const NODE: NodeCapacity = NodeCapacity { memory_bytes: 8 << 30, cpus: 2.0 };

    fn fields(spec: &ContainerSpec) -> Vec<String> {
        spec.problems(NODE).into_iter().map(|problem| problem.field).collect()
    }

    #[test]
    fn a_plain_spec_has_no_problems() {
        assert_eq!(fields(&ContainerSpec::plain(VolumeId::random())), Vec::<String>::new());
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let mut spec = ContainerSpec::plain(VolumeId::random());
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
    fn what_a_start_may_look_for_is_bounded_and_named() {
        let mut spec = ContainerSpec::plain(VolumeId::random());
        spec.fail_patterns = vec!["FAILED".to_owned()];
        assert_eq!(fields(&spec), ["fail_patterns"], "nothing is waited for");
        spec.start_patterns = vec!["Done".to_owned(), "(".to_owned()];
        spec.start_timeout = Some(Duration::ZERO);
        assert_eq!(fields(&spec), ["start_patterns[1]", "start_timeout"]);
        spec.start_patterns = vec!["Done".to_owned(); PATTERNS_MAX + 1];
        spec.start_timeout = Some(Duration::from_secs(60));
        assert_eq!(fields(&spec), ["start_patterns"]);
        spec.start_patterns = vec!["(?:a{1000}){12}".to_owned(); PATTERNS_MAX];
        assert_eq!(fields(&spec), ["start_patterns"], "each of them is small enough");
        spec.start_patterns.truncate(1);
        assert_eq!(fields(&spec), Vec::<String>::new());
    }

    #[test]
    fn a_pattern_that_would_eat_the_memory_is_refused() {
        assert!(compile_pattern(r"(?:a{1000}){1000}").is_err());
        assert!(compile_pattern("Done|Ready").is_ok());
    }
}
