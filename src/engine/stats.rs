//! A container's counters as the engine tells them, for where the kernel's own cannot be read.
//!
//! Called by the supervisor's sampler. Each answer costs the engine a walk over the container's control groups
//! (<https://github.com/moby/moby/issues/39664>), so it is asked rarely. What an engine leaves out counts as 0.

use bollard::models::{ContainerBlkioStats, ContainerMemoryStats, ContainerStatsResponse};
use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt as _;

use super::{Engine, EngineError, op};
use crate::domain::stats::Counters;

impl Engine {
    /// The counters now, without the time at which they were taken; `None` if nothing runs.
    pub(crate) async fn counters(&self, id: &str) -> Result<Option<Counters>, EngineError> {
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let answer = self
            .call_container(op::STATS, id, |docker| async move {
                docker.stats(id, Some(options)).next().await.transpose()
            })
            .await;
        match answer {
            Err(error) if error.kind() == super::EngineErrorKind::NotFound => Ok(None),
            answer => Ok(answer?.as_ref().and_then(counters)),
        }
    }
}

/// A container that does not run is answered for as well, with next to nothing in it.
fn counters(stats: &ContainerStatsResponse) -> Option<Counters> {
    let cpu = stats.cpu_stats.as_ref()?;
    let cpu_ns = cpu.cpu_usage.as_ref()?.total_usage?;
    let memory = stats.memory_stats.as_ref()?;
    let networks = stats.networks.iter().flat_map(|networks| networks.values());
    let total = |rx: u64, tx: u64, more: (Option<u64>, Option<u64>)| {
        (rx + more.0.unwrap_or(0), tx + more.1.unwrap_or(0))
    };
    let (network_rx, network_tx) = networks
        .fold((0, 0), |(rx, tx), network| total(rx, tx, (network.rx_bytes, network.tx_bytes)));
    let (block_read, block_write) = stats.blkio_stats.as_ref().map(block).unwrap_or_default();
    Some(Counters {
        cpu_ns,
        throttled_ns: cpu
            .throttling_data
            .as_ref()
            .and_then(|data| data.throttled_time)
            .unwrap_or(0),
        memory_bytes: without_cache(memory)?,
        memory_limit_bytes: memory.limit.unwrap_or(0),
        network_rx,
        network_tx,
        block_read,
        block_write,
        pids: stats.pids_stats.as_ref().and_then(|pids| pids.current).unwrap_or(0),
        ..Counters::default()
    })
}

/// As `docker stats` counts: without the page cache that could be dropped at once.
fn without_cache(memory: &ContainerMemoryStats) -> Option<u64> {
    let detail = |name| memory.stats.as_ref().and_then(|stats| stats.get(name)).copied();
    let cache = detail("total_inactive_file").or_else(|| detail("inactive_file")).unwrap_or(0);
    Some(memory.usage?.saturating_sub(cache))
}

fn block(stats: &ContainerBlkioStats) -> (u64, u64) {
    let entries = stats.io_service_bytes_recursive.iter().flatten();
    entries.fold((0, 0), |(read, write), entry| {
        let value = entry.value.unwrap_or(0);
        match entry.op.as_deref().unwrap_or_default() {
            op if op.eq_ignore_ascii_case("read") => (read + value, write),
            op if op.eq_ignore_ascii_case("write") => (read, write + value),
            _ => (read, write),
        }
    })
}
