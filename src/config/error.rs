//! What is wrong with a configuration, all of it at once.

use std::fmt;
use std::path::PathBuf;

/// One thing wrong: the key's path (`server.port`), where its value came from if not from the file,
/// and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigProblem {
    pub(crate) key: String,
    pub(crate) origin: Option<String>,
    pub(crate) message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{} (from {origin}): {}", self.key, self.message),
            None => write!(f, "{}: {}", self.key, self.message),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {path}{hint}", hint = who_may(.source))]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write the configuration {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is being changed by another command; nothing was changed here")]
    Held { path: PathBuf },
    #[error(
        "there is no configuration at {path}; name one with --config FILE, or start lightd, which makes one"
    )]
    Missing { path: PathBuf },
    #[error("{path} is not JSON")]
    NotJson { path: PathBuf, source: serde_json::Error },
    #[error("the configuration {path} is not valid:{}", list(.problems))]
    Invalid { path: PathBuf, problems: Vec<ConfigProblem> },
}

fn who_may(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => " (only its owner may; use sudo)",
        _ => "",
    }
}

fn list(problems: &[ConfigProblem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}
