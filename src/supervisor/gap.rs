//! What a workload printed while nobody was attached: taken from the engine's log, joined to the
//! console's end line by line.
//!
//! The attach of now is already there when this reads, so a line may stand in both; what the log has
//! from after the attach began is left to it. Where the engine has rotated the lines away, the gap is
//! said and not papered over.

use super::effects::Ctx;
use crate::console::{EngineLine, Stream as ConsoleStream, join};
use crate::domain::ids::RunId;
use crate::domain::readiness::Readiness;
use crate::engine::{EngineError, LogLine, LogsRequest, Stream};

/// The most of a log that is joined; of a longer one only the end.
const LOG_MAX_BYTES: usize = 16 * 1024 * 1024;
const NANOS_PER_MS: i64 = 1_000_000;

impl Ctx {
    /// Brings the console up to the moment this is called. Returns whether the start pattern was seen.
    pub(super) async fn read_gap(
        &self,
        run: RunId,
        docker_id: &str,
        readiness: &mut Option<&mut Readiness>,
    ) -> Result<bool, EngineError> {
        let attached_at = jiff::Timestamp::now().as_millisecond() * NANOS_PER_MS;
        let engine = &self.services.engine;
        let Some(observed) = engine.inspect(docker_id).await? else { return Ok(false) };
        // A log that goes on over several runs is cut at this one's beginning.
        let since = observed.started_at_ms.map(|ms| {
            let nanos = u32::try_from(ms.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
            (ms.div_euclid(1000), nanos)
        });
        let request = LogsRequest { since, tail: None, follow: false };
        let mut log = engine.logs(docker_id, observed.tty, request).await?;
        let mut lines: Vec<LogLine> = Vec::new();
        let mut bytes = 0;
        let mut whole = true;
        while let Some(line) = log.next().await? {
            if line.at_nanos >= attached_at {
                break;
            }
            if readiness.as_mut().is_some_and(|readiness| readiness.feed(&line.bytes)) {
                *readiness = None;
            }
            bytes += line.bytes.len();
            lines.push(line);
            if bytes > LOG_MAX_BYTES {
                let half = lines.len() / 2;
                bytes -= lines.drain(..half).map(|line| line.bytes.len()).sum::<usize>();
                whole = false;
            }
        }
        self.push_new(run, &lines, whole).await;
        Ok(readiness.is_none())
    }

    async fn push_new(&self, run: RunId, lines: &[LogLine], whole: bool) {
        let mut skip: Vec<Option<usize>> = vec![None; lines.len()];
        let mut gap = false;
        for (stream, ours) in
            [(Stream::Stdout, ConsoleStream::Out), (Stream::Stderr, ConsoleStream::Err)]
        {
            let of_stream: Vec<usize> =
                (0..lines.len()).filter(|&index| lines[index].stream == stream).collect();
            if of_stream.is_empty() {
                continue;
            }
            let theirs: Vec<EngineLine<'_>> = of_stream
                .iter()
                .map(|&index| EngineLine {
                    time_ms: lines[index].at_nanos / NANOS_PER_MS,
                    text: &lines[index].bytes,
                })
                .collect();
            let tail = self.shared.console.tail(run, ours).await;
            let place = join(&tail, &theirs, whole);
            gap |= place.gap;
            for (nth, &index) in of_stream.iter().enumerate().skip(place.first_new) {
                skip[index] = Some(if nth == place.first_new { place.skip_bytes } else { 0 });
            }
        }
        if gap {
            self.say(
                "some lines are missing: the engine's log does not reach back to the last one",
            );
        }
        for (line, skip) in lines.iter().zip(skip) {
            let Some(skip) = skip else { continue };
            let stream = super::run::console_stream(line.stream);
            self.shared.console.push(
                run,
                stream,
                line.at_nanos / NANOS_PER_MS,
                &line.bytes[skip..],
            );
        }
    }
}
