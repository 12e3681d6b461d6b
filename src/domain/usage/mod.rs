//! What containers have used: processor time, memory, storage, traffic and time, in whole numbers.
//!
//! A [`meter::UsageMeter`] turns readings of a run's counters into amounts by the hour; the store sums them
//! ([`Usage`]), [`calendar`] says where hours, days and months begin, and [`cost`] what a sum comes to. A GB
//! is 2^30 bytes throughout.

pub(crate) mod calendar;
pub(crate) mod cost;
pub(crate) mod meter;

/// How many quantities there are.
pub(crate) const QUANTITIES: usize = 7;

/// What was used in some time. The units are small enough that nothing of interest is lost, and large
/// enough that sums over years fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time in which a workload ran, paused or not.
    pub(crate) run_ms: u64,
    /// Processor time.
    pub(crate) cpu_us: u64,
    /// Memory in use, over time.
    pub(crate) memory_kib_s: u64,
    /// The limit on memory, over the time it ran; what it used where there was none.
    pub(crate) reserved_kib_s: u64,
    /// What its volume held, over time, also while nothing ran.
    pub(crate) storage_kib_s: u64,
    /// What left the container.
    pub(crate) egress_bytes: u64,
    /// What reached it.
    pub(crate) ingress_bytes: u64,
}

impl Usage {
    /// The quantities in the order of [`Usage::from_array`].
    pub(crate) fn to_array(self) -> [u64; QUANTITIES] {
        let Self { run_ms, cpu_us, memory_kib_s, reserved_kib_s, storage_kib_s, .. } = self;
        let Self { egress_bytes, ingress_bytes, .. } = self;
        [run_ms, cpu_us, memory_kib_s, reserved_kib_s, storage_kib_s, egress_bytes, ingress_bytes]
    }

    pub(crate) fn from_array(quantities: [u64; QUANTITIES]) -> Self {
        let [
            run_ms,
            cpu_us,
            memory_kib_s,
            reserved_kib_s,
            storage_kib_s,
            egress_bytes,
            ingress_bytes,
        ] = quantities;
        Self {
            run_ms,
            cpu_us,
            memory_kib_s,
            reserved_kib_s,
            storage_kib_s,
            egress_bytes,
            ingress_bytes,
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        let (mut sum, other) = (self.to_array(), other.to_array());
        for (quantity, more) in sum.iter_mut().zip(other) {
            *quantity = quantity.saturating_add(more);
        }
        Self::from_array(sum)
    }
}
