//! What a container to be created is made of, in our own words; [`super::convert`] turns it into the
//! engine's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::domain::spec::{Limits, PortBinding};

/// A container to be created. What is the same for all of lightd's containers is not in here: all
/// capabilities dropped, no new privileges, an init as first process, `/tmp` in memory, a private IPC
/// namespace, no restarts by the engine, standard input open for good.
#[derive(Clone, Debug)]
pub(crate) struct CreateRequest {
    pub(crate) name: String,
    pub(crate) image: String,
    /// Empty: the image's own.
    pub(crate) cmd: Vec<String>,
    /// `None`: the image's own; `Some` of nothing: none.
    pub(crate) entrypoint: Option<Vec<String>>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    /// `None`: the image's own.
    pub(crate) user: Option<String>,
    pub(crate) working_dir: Option<String>,
    pub(crate) tty: bool,
    pub(crate) labels: BTreeMap<String, String>,
    /// The network's name; `None`: no network at all.
    pub(crate) network: Option<String>,
    pub(crate) binds: Vec<Bind>,
    pub(crate) ports: Vec<PortBinding>,
    /// With the node's defaults filled in. `disk` is not the engine's business.
    pub(crate) limits: Limits,
    pub(crate) hardening: Hardening,
    pub(crate) stop_signal: Option<String>,
    pub(crate) log: LogCap,
}

/// A host folder or file in the container. It must exist: the engine makes none up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hardening {
    /// Capabilities given back after all were taken.
    pub(crate) cap_add: Vec<&'static str>,
    pub(crate) read_only_root: bool,
}

/// How much of a container's output the engine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogCap {
    pub(crate) max_size_bytes: u64,
    pub(crate) max_files: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) docker_id: String,
    /// What the engine could not give; for the person who asked.
    pub(crate) warnings: Vec<String>,
}
