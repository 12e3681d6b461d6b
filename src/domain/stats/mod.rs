//! Statistics of a running container: two readings of the kernel's counters make one sample.
//!
//! Pure; fed by the supervisor's sampler. A meter is of one run, since all counters begin again with the
//! next.

pub(crate) mod history;

use std::time::Duration;

use serde::Serialize;

/// A reading of a container's counters. All but the memory's and `pids` only grow within a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counters {
    /// When they were read: since the host's start, on a clock that never jumps.
    pub(crate) taken_at: Duration,
    /// Processor time used.
    pub(crate) cpu_ns: u64,
    /// Time in which it was held back by its limit.
    pub(crate) throttled_ns: u64,
    /// Without the page cache that could be dropped at once, as `docker stats` counts it.
    pub(crate) memory_bytes: u64,
    /// The container's limit, or all the memory of the machine.
    pub(crate) memory_limit_bytes: u64,
    /// Bytes that reached the container.
    pub(crate) network_rx: u64,
    /// Bytes that left the container.
    pub(crate) network_tx: u64,
    pub(crate) block_read: u64,
    pub(crate) block_write: u64,
    pub(crate) pids: u64,
    /// See [`Sample::memory_pressure`].
    pub(crate) memory_pressure: Option<f64>,
}

/// What goes out as a `stats` event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// In percent of one core.
    pub(crate) cpu_usage: f64,
    pub(crate) memory_usage: u64,
    pub(crate) memory_limit: u64,
    pub(crate) network_rx: u64,
    pub(crate) network_tx: u64,
    pub(crate) block_read: u64,
    pub(crate) block_write: u64,
    /// Bytes in the volume; `None` while they have not been counted.
    pub(crate) disk_usage: Option<u64>,
    /// Seconds since the run began.
    pub(crate) uptime: u64,
    pub(crate) pids: u64,
    /// Milliseconds since the run began in which the limit on the processor held it back.
    pub(crate) throttled_ms: u64,
    /// Percent of the last ten seconds in which some of it waited for memory; `None` where the kernel does
    /// not tell (<https://docs.kernel.org/accounting/psi.html>).
    pub(crate) memory_pressure: Option<f64>,
}

impl Sample {
    /// Whether anything but the time has changed.
    pub(crate) fn differs_from(&self, earlier: &Self) -> bool {
        Self { uptime: earlier.uptime, ..*self } != *earlier
    }
}

/// Turns readings of one run into samples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    last: Counters,
}

impl Meter {
    /// Begins a run at a moment of the readings' clock. The counters were 0 then, so the first sample
    /// of a young run is right; where a run that is old already is taken over, `read` once first.
    pub(crate) fn starting(at: Duration) -> Self {
        Self { last: Counters { taken_at: at, ..Counters::default() } }
    }

    /// The sample between the last reading and this one.
    pub(crate) fn read(
        &mut self,
        now: Counters,
        uptime: Duration,
        disk_usage: Option<u64>,
    ) -> Sample {
        let cpu_usage = cpu_percent(&self.last, &now);
        self.last = now;
        Sample {
            cpu_usage,
            memory_usage: now.memory_bytes,
            memory_limit: now.memory_limit_bytes,
            network_rx: now.network_rx,
            network_tx: now.network_tx,
            block_read: now.block_read,
            block_write: now.block_write,
            disk_usage,
            uptime: uptime.as_secs(),
            pids: now.pids,
            throttled_ms: now.throttled_ns / 1_000_000,
            memory_pressure: now.memory_pressure,
        }
    }
}

/// Rounded to hundredths, so that an idle container's samples are equal.
fn cpu_percent(earlier: &Counters, now: &Counters) -> f64 {
    let elapsed = now.taken_at.saturating_sub(earlier.taken_at).as_secs_f64();
    let used = Duration::from_nanos(now.cpu_ns.saturating_sub(earlier.cpu_ns)).as_secs_f64();
    if elapsed > 0.0 { (used / elapsed * 10_000.0).round() / 100.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn at(seconds: f64, cpu_ns: u64) -> Counters {
        let taken_at = START + Duration::from_secs_f64(seconds);
        Counters { taken_at, cpu_ns, memory_bytes: 7, memory_limit_bytes: 9, ..Counters::default() }
    }

    #[test]
    fn cpu_is_a_share_of_one_core_from_the_first_sample_on() {
        let mut meter = Meter::starting(START);
        let mut cpu = |counters| meter.read(counters, Duration::from_secs(1), None).cpu_usage;
        assert_eq!(cpu(at(0.5, 250_000_000)), 50.0);
        assert_eq!(cpu(at(1.5, 2_250_000_000)), 200.0);
        assert_eq!(cpu(at(2.5, 2_250_001_000)), 0.0);
        assert_eq!(cpu(at(2.5, 2_260_000_000)), 0.0, "no time has passed");
        assert_eq!(cpu(at(3.5, 1_000)), 0.0, "a counter that fell is no usage");
        assert_eq!(cpu(at(4.5, 123_457_000)), 12.35);
    }

    #[test]
    fn samples_go_out_with_the_contracts_names() {
        let sample = Meter::starting(START).read(at(1.0, 0), Duration::from_secs(61), Some(5));
        assert_eq!(
            serde_json::to_value(sample).unwrap(),
            serde_json::json!({
                "cpu_usage": 0.0, "memory_usage": 7, "memory_limit": 9, "network_rx": 0,
                "network_tx": 0, "block_read": 0, "block_write": 0, "disk_usage": 5, "uptime": 61,
                "pids": 0, "throttled_ms": 0, "memory_pressure": null
            })
        );
    }

    #[test]
    fn time_alone_is_no_change() {
        let mut meter = Meter::starting(START);
        let first = meter.read(at(1.0, 0), Duration::from_secs(1), None);
        let second = meter.read(at(2.0, 0), Duration::from_secs(2), None);
        let third = meter.read(at(3.0, 500_000_000), Duration::from_secs(3), None);
        assert!(!second.differs_from(&first));
        assert!(third.differs_from(&second));
    }
}
