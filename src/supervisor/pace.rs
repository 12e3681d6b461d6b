//! Turns: how many starts the node makes of its own accord in a second.
//!
//! After a start of the host, or of an engine that ended everything, hundreds of containers are to come
//! up; each waits here for its turn before it takes a start slot. Starts that somebody asked for do not.
//! A turn that is given up (its wait was dropped) is lost, and only delays those behind it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct StartPace {
    /// When the next turn may be taken.
    next: Mutex<Option<Instant>>,
}

impl StartPace {
    /// Waits for a turn, first come, first served.
    pub(super) async fn turn(&self, per_second: u32) {
        tokio::time::sleep_until(self.take(per_second)).await;
    }

    fn take(&self, per_second: u32) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + Duration::from_secs(1) / per_second.max(1));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_are_as_far_apart_as_they_should_be() {
        let (pace, began) = (StartPace::default(), Instant::now());
        for _ in 0..9 {
            pace.turn(4).await;
        }
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(60)).await;
        let later = Instant::now();
        pace.turn(4).await;
        assert_eq!(later.elapsed(), Duration::ZERO, "nothing is saved up, and nothing owed");
    }
}
