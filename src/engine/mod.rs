//! The container engine, as lightd sees it: the only module that names Docker's types.
//!
//! [`Engine`] is a cheap handle; making one does no I/O and cannot fail, so lightd starts while the
//! engine is down and finds it when it comes. Every call
//!
//! - has a deadline from the one table in [`op`],
//! - is idempotent where it says so: starting what runs, killing or removing what is gone is `Ok`,
//! - fails with an [`EngineError`] of one of six kinds; `is_away()` ones say nothing about a container.
//!
//! Called by the supervisor, the network and whoever makes images. Output and input of containers do
//! not pass through the client library but through a connection of our own ([`streams`]), because the
//! library holds back and misreads terminal output.
//!
//! ```text
//!   call() ── one connection per call ──> /var/run/docker.sock
//!     └─ away? ─> wakes watch_health() ─> watch<Health>
//!   attach(), logs(), exec(), watch_events() ── raw connection, read until it ends
//! ```

mod containers;
mod convert;
mod error;
mod events;
mod exec;
mod frames;
mod health;
mod images;
mod incarnation;
pub(crate) mod labels;
mod listing;
mod logs;
mod networks;
mod op;
mod raw;
mod request;
mod stats;
mod streams;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use bollard::{ClientVersion, Docker};
use tokio::sync::{Notify, watch};

pub(crate) use self::{
    error::{EngineError, EngineErrorKind},
    events::Hint,
    exec::{ExecEnd, ExecRequest, ExecResult},
    frames::Chunk,
    health::Health,
    images::{PullProgress, RegistryAuth},
    listing::Ours,
    logs::LogLine,
    networks::BridgeSpec,
    request::{Bind, CreateRequest, Created, Hardening, LogCap},
    streams::{Attached, AttachedInput, OutputStream},
};

use error::Fault;
use op::Op;

/// Where the engine is, and whose objects on it are ours.
#[derive(Clone, Debug)]
pub(crate) struct EngineOptions {
    pub(crate) socket_path: PathBuf,
    /// The value of the label `lightd.node` on everything this daemon makes.
    pub(crate) node: String,
}

/// A handle on the engine.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: EngineOptions,
    health: watch::Sender<Health>,
    look_again: Notify,
}

impl Engine {
    pub(crate) fn new(options: EngineOptions) -> Self {
        let health = watch::Sender::new(Health::unknown());
        Self { inner: Arc::new(Inner { options, health, look_again: Notify::new() }) }
    }

    pub(crate) fn node(&self) -> &str {
        &self.inner.options.node
    }

    /// A client for one call. It is made anew each time because making it fails while the socket is
    /// missing; the library keeps no connections, so nothing is lost by that.
    fn docker(&self, op: Op) -> Result<Docker, bollard::errors::Error> {
        let path = self.inner.options.socket_path.to_string_lossy();
        let version = match &*self.inner.health.borrow() {
            Health::Reachable { api_version, .. } => parse_version(api_version),
            Health::Unreachable { .. } => None,
        };
        let version = version.as_ref().unwrap_or(bollard::API_DEFAULT_VERSION);
        // The library's own timeout ends at the headers; `call` has one for the whole. Here it must
        // only never be the shorter one.
        Docker::connect_with_unix(&path, op.deadline.as_secs() + 60, version)
    }

    /// Asks the engine one thing, within the operation's deadline.
    async fn call<T, Work, Answer>(
        &self,
        op: Op,
        target: impl Into<String>,
        work: Work,
    ) -> Result<T, EngineError>
    where
        Work: FnOnce(Docker) -> Answer,
        Answer: Future<Output = Result<T, bollard::errors::Error>>,
    {
        let answer = async { work(self.docker(op)?).await };
        let fault = match tokio::time::timeout(op.deadline, answer).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Fault::Vendor(error),
            Err(_) => Fault::Late(op.deadline),
        };
        Err(self.noted(EngineError::new(op, target, fault)))
    }

    /// As [`Engine::call`], for a container: its name goes into the path of the request, which the
    /// library does not escape, so it is proven plain first.
    async fn call_container<T, Work, Answer>(
        &self,
        op: Op,
        id: &str,
        work: Work,
    ) -> Result<T, EngineError>
    where
        Work: FnOnce(Docker) -> Answer,
        Answer: Future<Output = Result<T, bollard::errors::Error>>,
    {
        self.call(op, container_target(op, id)?, work).await
    }

    /// Passes an error on; one that says the engine is away also asks for a look at its health.
    fn noted(&self, error: EngineError) -> EngineError {
        if error.is_away() {
            self.inner.look_again.notify_one();
        }
        error
    }
}

/// How a container is named in errors, once its name is proven to be one.
fn container_target(op: Op, id: &str) -> Result<String, EngineError> {
    plain_name(op, "container", id)
}

fn plain_name(op: Op, what: &str, name: &str) -> Result<String, EngineError> {
    let target = format!("{what} {name:.80}");
    let mut bytes = name.bytes();
    let first_is_plain = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest_is_plain = bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if first_is_plain && rest_is_plain && name.len() <= 255 {
        Ok(target)
    } else {
        Err(EngineError::said(op, target, EngineErrorKind::Invalid, "the name is not plain"))
    }
}

fn parse_version(text: &str) -> Option<ClientVersion> {
    let (major, minor) = text.split_once('.')?;
    Some(ClientVersion { major_version: major.parse().ok()?, minor_version: minor.parse().ok()? })
}
