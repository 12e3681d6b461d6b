//! How long to wait before trying again.

use std::time::Duration;

/// Doubling delays between a first and a longest one, each shortened by a random part of up to a half,
/// so that many who failed together do not come back together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The delay after the given number of failures in a row (1 for the first).
    pub(crate) fn delay(self, failures: u32) -> Duration {
        self.delay_by(failures, rand::random_range(0.0..=1.0))
    }

    /// As [`Backoff::delay`], with what chance says, from 0 to 1, given: 0 shortens nothing.
    pub(crate) fn delay_by(self, failures: u32, chance: f64) -> Duration {
        self.full_delay(failures).mul_f64(1.0 - chance / 2.0)
    }

    fn full_delay(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
        let seconds: Vec<u64> =
            [1, 2, 3, 6, 7, 400].map(|n| backoff.full_delay(n).as_secs()).to_vec();
        assert_eq!(seconds, [1, 2, 4, 32, 60, 60]);
        let drawn = backoff.delay(3);
        assert!((Duration::from_secs(2)..=Duration::from_secs(4)).contains(&drawn), "{drawn:?}");
        assert_eq!(backoff.delay_by(3, 0.0), Duration::from_secs(4));
        assert_eq!(backoff.delay_by(3, 1.0), Duration::from_secs(2));
    }
}
