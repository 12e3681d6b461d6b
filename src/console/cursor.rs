//! A reader of a console: a position, and nothing that grows; a file of the journal while it reads there.
//!
//! It reads from memory where it can, from the journal where it is behind, and is told how many lines
//! are gone where neither has them. It may be dropped or left alone at any time; `next` may be
//! cancelled at any time and loses nothing.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::block::{Block, Mark, Position};
use super::read::{Place, Stored};
use super::state::Step;
use super::{Shared, lock, sleep_until};

#[derive(Debug)]
pub(crate) struct Cursor {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    at: Position,
    /// Where in the journal's files that is, while it reads from there.
    place: Option<Place>,
}

/// What a reader gets next.
#[derive(Clone, Debug)]
pub(crate) enum Delivery {
    Lines(Arc<Block>),
    /// So many lines are nowhere any more. What follows goes on behind them.
    Gap {
        lines_lost: u64,
    },
}

impl Cursor {
    pub(super) fn new(shared: Arc<Shared>, at: Position) -> Self {
        let changed = shared.changed.subscribe();
        Self { shared, changed, at, place: None }
    }

    /// The next piece of the console, as soon as there is one; `None` when the console was closed.
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        loop {
            // Before the look, so that a change after the look is not missed.
            self.changed.mark_unchanged();
            let wake = match self.look(false).await {
                Look::Got(delivery) => return Some(delivery),
                Look::Again => continue,
                Look::Closed => return None,
                Look::Nothing(wake) => wake,
            };
            tokio::select! {
                // The sender lives in `shared`, so this ends only with a change.
                result = self.changed.changed() => result.unwrap_or(()),
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Up to where the reader has the console.
    pub(crate) fn mark(&self) -> Mark {
        self.at.into()
    }

    /// The next piece if there is one already.
    pub(super) async fn next_at_hand(&mut self) -> Option<Delivery> {
        loop {
            match self.look(true).await {
                Look::Got(delivery) => return Some(delivery),
                Look::Again => {}
                Look::Closed | Look::Nothing(_) => return None,
            }
        }
    }

    async fn look(&mut self, eager: bool) -> Look {
        let step = lock(&self.shared.state).step(self.at, Instant::now(), eager);
        match step {
            Step::Block(block) => {
                self.place = None;
                Look::Got(self.deliver(block))
            }
            Step::Unsafe(end) => {
                self.shared.make_safe(end).await;
                Look::Again
            }
            Step::Behind(ring_start) => self.look_in_journal(ring_start).await,
            Step::Wait(wake) => Look::Nothing(wake),
            Step::Closed => Look::Closed,
        }
    }

    async fn look_in_journal(&mut self, ring_start: Position) -> Look {
        let (from, place) = (self.at, self.place.clone());
        let stored = self.shared.blocking(move |shared| shared.stored_at(from, place)).await;
        match stored.unwrap_or(Stored::End) {
            Stored::Block(block, place) => {
                self.place = Some(place);
                Look::Got(self.deliver(Arc::new(block)))
            }
            Stored::Gap(to) => self.skip_to(to.min(ring_start)),
            Stored::End => self.skip_to(ring_start),
        }
    }

    fn deliver(&mut self, block: Arc<Block>) -> Delivery {
        self.at = block.end;
        Delivery::Lines(block)
    }

    fn skip_to(&mut self, to: Position) -> Look {
        let lines_lost = self.at.lines_until(to);
        self.at = to;
        if lines_lost > 0 { Look::Got(Delivery::Gap { lines_lost }) } else { Look::Again }
    }
}

enum Look {
    Got(Delivery),
    /// There is more now, or the position moved and nothing was lost.
    Again,
    Nothing(Option<Instant>),
    Closed,
}
