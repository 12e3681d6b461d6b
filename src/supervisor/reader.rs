//! Reading a run's output: onto the console, past the patterns of its start.
//!
//! Made by the follower of a run, which it ends with. It never waits for anyone who reads the console. Where
//! it was attached to a run that was up already, the first line that ends may lack its beginning: what a
//! workload prints of a line reaches the engine's log with the line's end, so nobody had it when the attach
//! began. It is looked up then, and told.

use std::time::Duration;

use super::effects::Ctx;
use super::gap::{RunLog, whole_lines};
use crate::console::{likeness, missing_part};
use crate::domain::ids::RunId;
use crate::domain::lifecycle::Fact;
use crate::domain::readiness::{Readiness, Shown};
use crate::domain::stream::Stream;
use crate::domain::units::now_unix_ms;
use crate::engine::{Chunk, EngineError, OutputStream};
use crate::util::chain::Chain;

/// A line without an end is looked at for the start pattern after so long: it may be a prompt.
const PROMPT_AFTER: Duration = Duration::from_millis(50);
/// So far the engine's log may lag behind its attach.
const LOG_LAG: Duration = Duration::from_millis(100);
/// So far back a line is looked for that has just ended: a long one is logged in pieces as it grows.
const BACK_MS: i64 = 60_000;
const NANOS_PER_MS: i64 = 1_000_000;

pub(super) struct Reader<'a> {
    pub(super) ctx: &'a Ctx,
    pub(super) run: RunId,
    pub(super) docker_id: &'a str,
    /// `None` once it is known whether the start was one.
    pub(super) readiness: Option<Readiness>,
    /// Streams of which no line has ended since the attach, where something may have passed before.
    pub(super) fresh: [bool; 2],
}

impl Reader<'_> {
    /// What passed before the attach, and what the attach had by the time that was known.
    pub(super) async fn catch_up(&mut self, output: &mut OutputStream) -> Result<(), EngineError> {
        self.fresh = [true; 2];
        // From the beginning where the pattern is waited for: that it had matched may not have been stored.
        let log = RunLog {
            whole: self.readiness.is_some(),
            ..self.ctx.workload_log(self.run, self.docker_id)
        };
        let caught = self.ctx.catch_up(log, output).await?;
        for line in &caught.log {
            self.look(line.stream, &line.bytes, line.at_nanos / NANOS_PER_MS).await;
            tokio::task::consume_budget().await;
        }
        for chunk in &caught.early {
            self.take(chunk).await;
        }
        if self.readiness.is_some() {
            self.ctx.fact(Fact::CaughtUp { run: self.run, at_ms: now_unix_ms() }).await;
        }
        Ok(())
    }

    /// Reads on until the connection ends.
    pub(super) async fn pump(mut self, mut output: OutputStream) {
        loop {
            match self.next(&mut output).await {
                Ok(Some(chunk)) => self.take(&chunk).await,
                Ok(None) => return,
                Err(error) => {
                    let id = &self.ctx.snapshot.id;
                    tracing::debug!(container.id = %id, error = %Chain(&error), "the output broke off");
                    return;
                }
            }
        }
    }

    /// The next piece of output; a pause in it is looked at for a prompt.
    async fn next(&mut self, output: &mut OutputStream) -> Result<Option<Chunk>, EngineError> {
        if let Some(readiness) = &mut self.readiness {
            match tokio::time::timeout(PROMPT_AFTER, output.next()).await {
                Ok(next) => return next,
                Err(_) => {
                    if let Some(shown) = readiness.feed_idle() {
                        self.tell(shown, now_unix_ms()).await;
                    }
                }
            }
        }
        output.next().await
    }

    async fn take(&mut self, chunk: &Chunk) {
        let Chunk { stream, bytes } = chunk;
        let line_end =
            bytes.iter().position(|&b| b == b'\n').filter(|_| self.fresh[stream.index()]);
        match line_end {
            Some(end) => {
                self.print(*stream, &bytes[..=end]).await;
                self.fresh[stream.index()] = false;
                self.look_up_beginning(*stream).await;
                self.print(*stream, &bytes[end + 1..]).await;
            }
            None => self.print(*stream, bytes).await,
        }
        // Reading what is there already costs the runtime nothing that it counts, so a flood would keep
        // everything else of this task from its turn.
        tokio::task::consume_budget().await;
    }

    async fn print(&mut self, stream: Stream, bytes: &[u8]) {
        if !bytes.is_empty() {
            let now_ms = now_unix_ms();
            self.ctx.shared.print(self.run, stream, now_ms, bytes);
            self.look(stream, bytes, now_ms).await;
        }
    }

    async fn look(&mut self, stream: Stream, bytes: &[u8], at_ms: i64) {
        let shown = self.readiness.as_mut().and_then(|readiness| readiness.feed(stream, bytes));
        if let Some(shown) = shown {
            self.tell(shown, at_ms).await;
        }
    }

    async fn tell(&mut self, shown: Shown, at_ms: i64) {
        self.readiness = None;
        // Whoever watches sees the line before what follows from it.
        self.ctx.shared.console.settle().await;
        let run = self.run;
        let fact = match shown {
            Shown::Ready => Fact::Ready { run, at_ms },
            Shown::Failed { pattern } => {
                let reason = format!("its output matched the fail pattern `{pattern}`");
                Fact::Unready { run, reason }
            }
        };
        self.ctx.fact(fact).await;
    }

    /// The stream's first line since the attach has just ended. If the engine's log has more of it than the
    /// console, that is said, and the start patterns get the whole.
    async fn look_up_beginning(&mut self, stream: Stream) {
        let ended_ms = now_unix_ms();
        tokio::time::sleep(LOG_LAG).await;
        let _turn = self.ctx.services.log_turns.acquire().await.ok();
        let log = match self.ctx.log_since(self.docker_id, Some(ended_ms - BACK_MS)).await {
            Ok(log) => log.lines,
            Err(error) => {
                let id = &self.ctx.snapshot.id;
                tracing::debug!(container.id = %id, error = %Chain(&error), "the log was not to be read");
                return;
            }
        };
        let tail = self.ctx.shared.console.tail(self.run, stream).await;
        let Some(ours) = tail.lines.last() else { return };
        // The same line, or else one that it may be the end of; of several the nearest in time.
        let of_it = whole_lines(&log, stream).into_iter().filter_map(|line| {
            let likeness = likeness(&ours.text, &line.text)?;
            Some((likeness, line.time_ms.abs_diff(ended_ms), line))
        });
        let Some((.., whole)) = of_it.min_by_key(|(likeness, apart, _)| (*likeness, *apart)) else {
            return;
        };
        if let Some(missing) = missing_part(&ours.text, &whole.text) {
            let missing = String::from_utf8_lossy(missing);
            let note = format!(
                "[lightd] of the line before, this was printed while nobody read: {missing}"
            );
            self.ctx.shared.console.note(self.run, now_unix_ms(), &note);
            self.look(stream, &whole.text, now_unix_ms()).await;
        }
    }
}
