//! Structs of other modules that are served as they are: each has a double here that says how it looks.
//!
//! A double is never made. Tests compare its fields with what the original really writes.

use std::borrow::Cow;

use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::schemas::{EndedBy, IpAddress};
use crate::domain::firewall::RateLimit;
use crate::domain::ids::{RunId, VolumeId};
use crate::domain::operation::{OperationId, OperationKind, OperationState, OperationView};
use crate::domain::restart::RestartOnCrash;
use crate::domain::spec::{HostPort, Limits, Protocol};
use crate::domain::stats::Sample;
use crate::domain::stats::history::Point;
use crate::domain::units::UnixSeconds;

/// Gives a type the schema of its double.
macro_rules! mirrored {
    ($($type:ty = $double:ident as $name:literal),* $(,)?) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $double::schema()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }

            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                $double::schemas(schemas);
            }
        }
    )*};
}

mirrored!(
    Limits = LimitsDouble as "Limits",
    Sample = SampleDouble as "Sample",
    Point = PointDouble as "Point",
    HostPort = HostPortDouble as "HostPort",
    OperationView = OperationDouble as "Operation",
    RestartOnCrash = RestartDouble as "RestartOnCrash",
    RateLimit = RateLimitDouble as "RateLimit",
);

/// What a container may use; `null` is the node's default, or no limit where the node has none.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
struct LimitsDouble {
    /// Bytes of memory.
    #[schema(required, example = 536_870_912)]
    memory: Option<u64>,
    /// Bytes of memory and swap together; `null`: as `memory`, so no swap.
    #[schema(required)]
    memory_swap: Option<u64>,
    /// Bytes of memory that the kernel tries to leave the container under pressure.
    #[schema(required)]
    memory_reservation: Option<u64>,
    /// Cores; 0.5 is half of one.
    #[schema(required, example = 1.5)]
    cpu: Option<f64>,
    #[schema(required)]
    cpu_shares: Option<u64>,
    /// Microseconds of each period; with `cpu_period` the long form of `cpu`.
    #[schema(required)]
    cpu_quota: Option<u64>,
    #[schema(required)]
    cpu_period: Option<u64>,
    /// Processes and threads.
    #[schema(required, example = 512)]
    pids: Option<u64>,
    /// Bytes in the volume.
    #[schema(required)]
    disk: Option<u64>,
}

/// What a container uses.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
struct SampleDouble {
    /// In percent of one core.
    #[schema(minimum = 0, example = 12.5)]
    cpu_usage: f64,
    #[schema(example = 201_326_592)]
    memory_usage: u64,
    #[schema(example = 536_870_912)]
    memory_limit: u64,
    /// Bytes since the run began, as the next three.
    network_rx: u64,
    network_tx: u64,
    block_read: u64,
    block_write: u64,
    /// Bytes in the volume; `null` while they have not been counted.
    #[schema(required)]
    disk_usage: Option<u64>,
    /// Seconds since the run began.
    uptime: u64,
    pids: u64,
    /// Milliseconds since the run began in which the limit on the processor held it back.
    throttled_ms: u64,
    /// Percent of the last ten seconds in which some of it waited for memory; `null` where the kernel
    /// does not tell.
    #[schema(required)]
    memory_pressure: Option<f64>,
}

/// What a container used. Over several steps: the mean of `cpu_usage`, the most of `memory_usage`, and the rest as it was at
/// the end.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
struct PointDouble {
    /// When the time that it stands for began.
    at: UnixSeconds,
    #[serde(flatten)]
    sample: Sample,
}

/// A port of one of the node's addresses.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
struct HostPortDouble {
    #[schema(value_type = IpAddress)]
    ip: std::net::IpAddr,
    #[schema(maximum = 65_535, example = 25565)]
    port: u16,
    protocol: Protocol,
}

/// So many at once, and refilled evenly within so many seconds.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its description is used")]
struct RateLimitDouble {
    /// New connections; packets of UDP and ICMP.
    #[schema(minimum = 1, maximum = 1_000_000, example = 100)]
    requests: u32,
    #[schema(minimum = 1, maximum = 86_400, example = 10)]
    per_seconds: u32,
}

/// Work in the background, as it stands.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
struct OperationDouble {
    operation_id: OperationId,
    kind: OperationKind,
    /// What is being worked on.
    volume_id: VolumeId,
    state: OperationState,
    done_bytes: u64,
    /// 0 while it is not known.
    total_bytes: u64,
    /// Files and folders done.
    entries: u64,
    /// Why it ended without being done.
    #[schema(required, example = json!(null))]
    error: Option<String>,
    /// The same for programs, as in refusals; and `fetch_failed`, `disturbed`, `snapshot_damaged` and `interrupted`.
    #[schema(required, example = json!(null))]
    code: Option<String>,
    /// What the work has made, where there is more to say than that it is done.
    #[schema(required, value_type = Option<Object>, example = json!(null))]
    result: Option<Value>,
    started_at: UnixSeconds,
    #[schema(required)]
    finished_at: Option<UnixSeconds>,
}

/// Whether a workload that crashes is started again, or how often and how soon.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(example = true)]
#[expect(dead_code, reason = "only its description is used")]
enum RestartDouble {
    Plain(bool),
    Rule(RestartRuleDouble),
}

/// How often a workload that crashes is started again, and how soon.
#[derive(ToSchema)]
#[schema(as = RestartRule)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its description is used")]
struct RestartRuleDouble {
    /// Restarts within the window; a crash beyond them is the last. 5 if it is left out.
    #[schema(required = false, minimum = 1, maximum = 100, example = 5)]
    max_restarts: u32,
    /// 600 if it is left out.
    #[schema(required = false, minimum = 1, maximum = 604_800, example = 600)]
    window_s: u32,
    /// Before the first restart of a window; doubled with each further one. 1 if it is left out.
    #[schema(required = false, minimum = 0, maximum = 86_400, example = 1)]
    backoff_min_s: u32,
    /// 60 if it is left out.
    #[schema(required = false, minimum = 0, maximum = 86_400, example = 60)]
    backoff_max_s: u32,
}

/// What is known of a run that crashed. One of an earlier version of lightd has what was known then.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
pub(in crate::api) struct PostMortem {
    /// The run's number, by which it is asked for.
    n: RunId,
    #[schema(required = false)]
    run: RunId,
    #[schema(required = false)]
    at: UnixSeconds,
    #[schema(required = false, example = 137)]
    code: i64,
    #[schema(example = "SIGKILL")]
    signal: Option<String>,
    #[schema(required = false)]
    oom_killed: bool,
    /// Who has seen that memory ran out.
    #[schema(required = false)]
    oom: OomDouble,
    #[schema(required = false, value_type = EndedBy)]
    ended_by: String,
    /// Why it was not left to run.
    reason: Option<String>,
    started_at: Option<UnixSeconds>,
    ready_at: Option<UnixSeconds>,
    ready_after_ms: Option<u64>,
    uptime_s: Option<u64>,
    #[schema(required = false, example = "ubuntu:22.04")]
    image: String,
    #[schema(required = false)]
    startup_command: String,
    #[schema(required = false)]
    limits: Limits,
    /// The last lines; not in the list.
    #[schema(required = false)]
    lines: String,
    /// The last minute; not in the list.
    #[schema(required = false)]
    stats: Vec<Point>,
}

#[derive(ToSchema)]
#[schema(as = Oom)]
#[expect(dead_code, reason = "only its description is used")]
struct OomDouble {
    engine: bool,
    kernel: bool,
}

#[cfg(test)]
pub(super) fn restart_rule() -> Value {
    serde_json::to_value(RestartRuleDouble::schema()).unwrap()
}
