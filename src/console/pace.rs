//! How often lines become a block: at once while there are few, together while there are many.
//!
//! Asked by a console's state each time a reader finds lines that are in no block yet.

use std::time::Duration;

use tokio::time::Instant;

/// Up to this rate, blocks are made as soon as a reader asks, so that lines go out without delay.
const BLOCK_INTERVAL: Duration = Duration::from_millis(8);
/// So far may blocks run ahead of that rate, for output comes in bursts.
const BLOCK_BURST: Duration = Duration::from_millis(80);
/// Beyond it blocks are made at this one: otherwise each reader would get every line by itself, at
/// ten times the cost.
const BUSY_BLOCK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When all blocks so far would have been made at the quiet rate.
    until: Option<Instant>,
    is_busy: bool,
}

impl Pace {
    /// Counts a block, or says until when it has to wait for more lines.
    pub(super) fn count(&mut self, now: Instant) -> Option<Instant> {
        let until = self.until.map_or(now, |until| until.max(now));
        if until > now + BLOCK_BURST {
            self.is_busy = true;
            return Some(until - BLOCK_BURST);
        }
        let interval = if self.is_busy { BUSY_BLOCK_INTERVAL } else { BLOCK_INTERVAL };
        self.until = Some(until + interval);
        self.is_busy = false;
        None
    }
}
