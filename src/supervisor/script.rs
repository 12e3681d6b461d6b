//! An install script's run: begun once, followed to its exit, its output on the console and in the
//! install log.
//!
//! Called by the install, once its container is made or found. However often the engine goes away, or
//! lightd with it, the script is started only if it never ran, and each of its lines is kept once. What
//! takes longer than the limit has failed, counted from its real beginning.

use std::time::Duration;

use tokio::time::Instant;

use super::effects::Ctx;
use super::gap::RunLog;
use super::install::InstallError;
use super::install_log::InstallLog;
use super::launch::LaunchError;
use crate::domain::ids::RunId;
use crate::domain::observed::{Exit, ObservedStatus};
use crate::domain::units::now_unix_ms;
use crate::engine::{Chunk, EngineError, OutputStream};

/// A script that lightd comes back to after its time limit gets this long to be seen to have ended.
const LEAST_TO_JUDGE: Duration = Duration::from_secs(10);
/// How far the end of the output and the exit may be apart.
const DRAIN: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(300);

#[derive(Clone, Copy)]
pub(super) struct Script<'a> {
    ctx: &'a Ctx,
    run: RunId,
    docker_id: &'a str,
}

/// What an attempt to follow the script finds.
enum Found {
    NeverRan,
    UnderWay,
    Ended(Exit),
}

impl<'a> Script<'a> {
    pub(super) fn of(ctx: &'a Ctx, run: RunId, docker_id: &'a str) -> Self {
        Self { ctx, run, docker_id }
    }

    /// Follows the script until it has exited, however often the engine goes away meanwhile. `resumed`:
    /// its container was found, so that it may have run before.
    pub(super) async fn follow(self, resumed: bool) -> Result<Exit, InstallError> {
        let ctx = self.ctx;
        let limit = ctx.services.settings().install_timeout;
        let age = if resumed { self.age().await? } else { Duration::ZERO };
        let deadline = Instant::now() + limit.saturating_sub(age).max(LEAST_TO_JUDGE);
        let mut log = InstallLog::open(ctx.shared.install_log_path(), false).await;
        let mut is_new = !resumed;
        let followed = tokio::time::timeout_at(deadline, async {
            loop {
                ctx.services.engine_back().await;
                match self.follow_once(&mut log, is_new).await {
                    Err(InstallError::Engine(error)) if error.is_away() => {
                        is_new = false;
                        tokio::time::sleep(AGAIN).await;
                    }
                    ended => return ended,
                }
            }
        })
        .await;
        log.close().await;
        ctx.end_output().await;
        followed.unwrap_or(Err(InstallError::TimedOut(limit)))
    }

    /// How long ago the script began.
    async fn age(self) -> Result<Duration, EngineError> {
        let services = &self.ctx.services;
        let seen = services.insist(|| services.engine.inspect(self.docker_id)).await?;
        let now_ms = now_unix_ms();
        let age_ms = now_ms - seen.and_then(|seen| seen.started_at_ms).unwrap_or(now_ms);
        Ok(Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)))
    }

    /// One attempt, which ends early when the engine goes away. `is_new`: it was made for this attempt.
    async fn follow_once(self, log: &mut InstallLog, is_new: bool) -> Result<Exit, InstallError> {
        let found = if is_new { Found::NeverRan } else { self.look().await? };
        if let Found::Ended(exit) = found {
            self.read_rest(log).await;
            return Ok(exit);
        }
        let engine = &self.ctx.services.engine;
        let output = engine.attach(self.docker_id, false).await?.output;
        // Only what has never run is started: a script that was running a moment ago may have ended.
        if matches!(found, Found::NeverRan) {
            engine.start(self.docker_id).await?;
        }
        let (exit, all_read) = self.read_to_exit(log, output, is_new).await?;
        if !all_read {
            self.read_rest(log).await;
        }
        Ok(exit)
    }

    async fn look(self) -> Result<Found, InstallError> {
        let services = &self.ctx.services;
        match services.engine.inspect(self.docker_id).await?.map(|seen| seen.status) {
            None => Err(InstallError::Lost),
            Some(ObservedStatus::Exited(exit)) => Ok(Found::Ended(exit)),
            Some(ObservedStatus::Running | ObservedStatus::Paused) => Ok(Found::UnderWay),
            Some(ObservedStatus::Created) => {
                services.isolated().await.map_err(LaunchError::NotIsolated)?;
                self.ctx.volume_usable().await?;
                Ok(Found::NeverRan)
            }
        }
    }

    /// The exit, and whether the output was read to its end. `from_start`: nothing of it has passed.
    async fn read_to_exit(
        self,
        log: &mut InstallLog,
        mut output: OutputStream,
        from_start: bool,
    ) -> Result<(Exit, bool), EngineError> {
        let reading = async {
            if !from_start {
                let caught = self.ctx.catch_up(self.whole_log(), &mut output).await?;
                log.make_up(&caught.log, &caught.news).await;
                for chunk in &caught.early {
                    self.take_chunk(chunk, log).await;
                }
            }
            while let Ok(Some(chunk)) = output.next().await {
                self.take_chunk(&chunk, log).await;
            }
            Ok(())
        };
        let exit = self.ctx.services.engine.wait(self.docker_id);
        tokio::pin!(reading, exit);
        tokio::select! {
            biased;
            exit = &mut exit => {
                let drained = tokio::time::timeout(DRAIN, reading).await;
                Ok((exit?, matches!(drained, Ok(Ok(())))))
            }
            read = &mut reading => {
                read?;
                match tokio::time::timeout(DRAIN, exit.as_mut()).await {
                    Ok(exit) => Ok((exit?, true)),
                    Err(_) => Ok((exit.await?, false)),
                }
            }
        }
    }

    async fn take_chunk(self, chunk: &Chunk, log: &mut InstallLog) {
        let now_ms = now_unix_ms();
        self.ctx.shared.print(self.run, chunk.stream, now_ms, &chunk.bytes);
        log.write(&chunk.bytes).await;
    }

    /// What the engine's log has beyond what was read, of a script that has ended.
    async fn read_rest(self, log: &mut InstallLog) {
        let rest = self.ctx.take_rest(self.whole_log()).await;
        log.make_up(&rest.log, &rest.news).await;
    }

    fn whole_log(self) -> RunLog<'a> {
        RunLog { run: self.run, docker_id: self.docker_id, since_ms: None, whole: true }
    }
}
