//! The pure core: what lightd knows and decides, without doing anything.
//!
//! Everything above imports this, and this imports nothing of ours. It holds no socket, no file and no
//! lock, and no rule asks a clock (what reads it, in [`units`], is there for those above): time comes in
//! as a value, decisions go out as values. That is why each rule can be tested by playing sequences
//! against it.

pub(crate) mod access;
pub(crate) mod audit;
pub(crate) mod client;
pub(crate) mod event;
pub(crate) mod firewall;
pub(crate) mod ids;
pub(crate) mod lifecycle;
pub(crate) mod observed;
pub(crate) mod operation;
pub(crate) mod panel_update;
pub(crate) mod path;
pub(crate) mod quota;
pub(crate) mod readiness;
pub(crate) mod restart;
pub(crate) mod spec;
pub(crate) mod stats;
pub(crate) mod stream;
pub(crate) mod template;
pub(crate) mod units;
pub(crate) mod usage;
