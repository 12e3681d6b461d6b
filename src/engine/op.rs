//! Everything that is asked of the engine, and how long each may take to answer.
//!
//! The one table of deadlines. They are far above what a healthy engine needs: a deadline that is met
//! by a busy engine would turn load into failures.

use std::time::Duration;

/// An operation: its verb for error messages, and its deadline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(super) verb: &'static str,
    pub(super) deadline: Duration,
}

const fn op(verb: &'static str, seconds: u64) -> Op {
    Op { verb, deadline: Duration::from_secs(seconds) }
}

/// A stopped engine accepts connections and never answers; this is how soon that is noticed.
pub(super) const PING: Op = op("reach", 3);
/// The engine runs helper programs for it, which on a busy disk takes its time.
pub(super) const VERSION: Op = op("ask for the version of", 15);

pub(super) const CREATE: Op = op("create", 60);
pub(super) const START: Op = op("start", 60);
pub(super) const KILL: Op = op("send a signal to", 15);
pub(super) const PAUSE: Op = op("pause", 15);
pub(super) const UNPAUSE: Op = op("unpause", 15);
/// Killing and taking the file system apart; slow on a loaded disk.
pub(super) const REMOVE: Op = op("remove", 60);
pub(super) const RENAME: Op = op("rename", 15);
pub(super) const UPDATE: Op = op("change the limits of", 15);
pub(super) const INSPECT: Op = op("inspect", 10);
/// Walks the container's whole writable layer.
pub(super) const MEASURE: Op = op("measure", 120);
/// The engine reads control groups for it, slowly when it has many to read.
pub(super) const STATS: Op = op("read the figures of", 10);
pub(super) const LIST: Op = op("list", 20);
/// Until the headers, which are sent at once; the answer itself comes when the container exits.
pub(super) const WAIT: Op = op("wait for", 15);
pub(super) const COMMIT: Op = op("make an image of", 900);
/// Until the engine has begun the command; the caller brings the deadline for its end.
pub(super) const EXEC: Op = op("run a command in", 15);
/// Until the connection stands; then it lives as long as the container.
pub(super) const ATTACH: Op = op("attach to", 15);
/// Until the headers, and from one piece to the next.
pub(super) const LOGS: Op = op("read the log of", 15);
pub(super) const EVENTS: Op = op("listen to", 15);

/// Between two signs of life of a pull, not for the whole of it.
pub(super) const PULL: Op = op("pull", 120);
pub(super) const INSPECT_IMAGE: Op = op("look for", 15);
pub(super) const REMOVE_IMAGE: Op = op("remove", 120);

pub(super) const NETWORK: Op = op("set up", 30);
