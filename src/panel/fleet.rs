//! A model of many lightds and one panel that comes back after an hour, in simulated time: what the two
//! functions of [`super::pace`] do to the panel's first minutes.
//!
//! A test's only, for what no bench can wait for. It knows nothing of [`super::drain`] and [`super::health`]
//! but their pauses; that the real ones of 5,000 nodes spread as well is shown by `benches/outbox`.

use std::time::Duration;

use super::pace::{pause_before_retry, pause_before_second_look};

/// What happens to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fleet {
    pub(crate) nodes: usize,
    pub(crate) servers_per_node: usize,
    pub(crate) updates_per_server: usize,
    pub(crate) health_interval: Duration,
    pub(crate) outage: Duration,
    /// How long the panel takes for an answer.
    pub(crate) answer: Duration,
}

/// The requests in each second after the panel is back.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) per_second: Vec<u64>,
}

impl Load {
    pub(crate) fn peak(&self) -> u64 {
        self.per_second.iter().copied().max().unwrap_or(0)
    }

    pub(crate) fn total(&self) -> u64 {
        self.per_second.iter().sum()
    }

    fn add(&mut self, after: Duration) {
        let second = usize::try_from(after.as_secs()).unwrap_or(usize::MAX);
        if self.per_second.len() <= second {
            self.per_second.resize(second + 1, 0);
        }
        self.per_second[second] += 1;
    }
}

impl Fleet {
    /// All nodes were started in one moment, as by a roll-out, and the panel was lost in one, with an update
    /// of each server under way. `chance` is where the jitter comes from.
    pub(crate) fn run(&self, mut chance: impl FnMut() -> f64) -> Load {
        let mut load = Load { per_second: Vec::new() };
        for _ in 0..self.nodes {
            let looked_at = self.first_look_after(&mut chance);
            load.add(looked_at);
            let mut free_at = Duration::ZERO;
            let mut servers: Vec<Duration> = (0..self.servers_per_node)
                .map(|_| self.first_try_after(&mut chance).min(looked_at))
                .collect();
            servers.sort_unstable();
            for due_at in servers {
                for _ in 0..self.updates_per_server {
                    free_at = free_at.max(due_at);
                    load.add(free_at);
                    free_at += self.answer;
                }
            }
        }
        load
    }

    /// How long after the end of the outage a node finds the panel well.
    fn first_look_after(&self, chance: &mut impl FnMut() -> f64) -> Duration {
        let mut at = pause_before_second_look(self.health_interval, chance());
        while at < self.outage {
            at += self.health_interval;
        }
        at - self.outage
    }

    /// How long after the end of the outage the first update of a server is tried by itself.
    fn first_try_after(&self, chance: &mut impl FnMut() -> f64) -> Duration {
        let (mut at, mut failures) = (Duration::ZERO, 0);
        while at < self.outage {
            failures += 1;
            at += pause_before_retry(failures, None, chance());
        }
        at - self.outage
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    const FLEET: Fleet = Fleet {
        nodes: 5_000,
        servers_per_node: 4,
        updates_per_server: 5,
        health_interval: Duration::from_secs(30),
        outage: Duration::from_secs(3600),
        answer: Duration::from_millis(5),
    };

    #[test]
    fn jitter_spreads_the_fleet_over_the_interval_of_the_health_check() {
        let updates = 5_000 * 4 * 5 + 5_000;
        let together = FLEET.run(|| 0.0);
        assert_eq!(together.total(), updates);
        assert_eq!(together.peak(), updates, "without jitter all of it comes in one second");
        for seed in 0..8 {
            let mut random = StdRng::seed_from_u64(seed);
            let spread = FLEET.run(|| random.random());
            assert_eq!(spread.total(), updates, "nothing is lost");
            // Evenly over the 30 seconds would be the least that is possible.
            let even = updates / 30;
            assert!(spread.peak() < even * 2, "seed {seed}: {}, even {even}", spread.peak());
            assert!(spread.per_second.len() <= 32, "{}", spread.per_second.len());
        }
    }
}
