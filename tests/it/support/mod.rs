//! What the integration tests share.

pub(crate) mod agreement;
pub(crate) mod chaos;
pub(crate) mod client;
pub(crate) mod contract;
pub(crate) mod engine;
pub(crate) mod guest;
pub(crate) mod numbers;
pub(crate) mod outside;
pub(crate) mod panel;
pub(crate) mod process;
pub(crate) mod rude;
pub(crate) mod sse;
pub(crate) mod wait;
pub(crate) mod ws;

use std::time::Duration;

/// What should take a moment, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// The numbers that figures of a running workload have.
pub(crate) const STATS_FIELDS: [&str; 11] = [
    "cpu_usage",
    "memory_usage",
    "memory_limit",
    "network_rx",
    "network_tx",
    "block_read",
    "block_write",
    "disk_usage",
    "uptime",
    "pids",
    "throttled_ms",
];
