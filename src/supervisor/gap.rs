//! What a workload printed while nobody was attached: taken from the engine's log, joined to the
//! console's end line by line, and to the beginning of the new attach byte by byte ([`super::seam`]).
//!
//! Where the engine has rotated lines away, the gap is said and not papered over. A log that cannot be read
//! because the engine is away again is read later: nothing that follows is numbered before. After an outage
//! all containers want their logs at once; few of them are read at a time.

use std::borrow::Cow;
use std::time::Duration;

use super::effects::Ctx;
use super::seam::{self, Bounds, Early};
use crate::console::{EngineLine, Tail, join};
use crate::domain::ids::RunId;
use crate::domain::stream::Stream;
use crate::domain::units::{now_unix_ms, now_unix_nanos};
use crate::engine::{Chunk, EngineError, LogLine, OutputStream};
use crate::util::chain::Chain;

/// The most of a log that is joined; of a longer one only the end.
const LOG_MAX_BYTES: usize = 16 * 1024 * 1024;
const NANOS_PER_MS: i64 = 1_000_000;
/// So far the engine's log may lag behind its attach.
const LOG_LAG: Duration = Duration::from_millis(100);
/// So far an attach may lag behind the log.
const ATTACH_LAG: Duration = Duration::from_millis(20);
const TRIES: u32 = 4;
/// So far the console's time of a line may be behind the engine's.
const READ_LATE: Duration = Duration::from_secs(60);

/// The part of a Docker container's log that is of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunLog<'a> {
    pub(super) run: RunId,
    pub(super) docker_id: &'a str,
    /// When the run was decided, in Unix milliseconds, if others may have gone before it. The engine's
    /// own word on when it began is of no use: it is of after the first lines.
    pub(super) since_ms: Option<i64>,
    /// From the run's first line on, and not only as much as is needed to go on from the console's last.
    pub(super) whole: bool,
}

/// A run's output up to where an attach goes on.
#[derive(Debug, Default)]
pub(super) struct Caught {
    /// What the engine's log has of the run.
    pub(super) log: Vec<LogLine>,
    /// Of those, what the console did not have yet.
    pub(super) news: Vec<LogLine>,
    /// What the attach has delivered since.
    pub(super) early: Vec<Chunk>,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) lines: Vec<LogLine>,
    /// It begins with the run's first line.
    from_start: bool,
    /// Why lines before its first one may be missing.
    lacks: Option<Lack>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// It is so long that the engine may have thrown its beginning away.
    Rotated,
    /// Of what the engine has, only the end was taken.
    TooLong,
}

/// A time of which the console has nothing, in Unix milliseconds.
#[derive(Clone, Copy, Debug)]
struct Gap {
    from_ms: i64,
    until_ms: i64,
}

impl Gap {
    fn with(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        Self {
            from_ms: self.from_ms.min(other.from_ms),
            until_ms: self.until_ms.max(other.until_ms),
        }
    }
}

impl Ctx {
    /// The log of a run of the workload.
    pub(super) fn workload_log<'a>(&self, run: RunId, docker_id: &'a str) -> RunLog<'a> {
        RunLog { run, docker_id, since_ms: self.begun_at_ms, whole: false }
    }

    /// Brings the console up to where `output`, an attach from just now, goes on. An engine that is away
    /// is an error, after which nothing was taken over: the attach is to be given up.
    pub(super) async fn catch_up(
        &self,
        of: RunLog<'_>,
        output: &mut OutputStream,
    ) -> Result<Caught, EngineError> {
        let attached_at = now_unix_nanos();
        let mut early = Early::default();
        let _turn = tokio::select! {
            turn = self.services.log_turns.acquire() => turn.ok(),
            () = early.collect(output) => None,
        };
        let read = self.read_up_to(of, output, &mut early, attached_at).await;
        if let Err(error) = &read
            && error.is_away()
        {
            return read.map(|_| Caught::default());
        }
        let mut caught = self.take_over(of, read).await;
        caught.early = early.into_chunks();
        Ok(caught)
    }

    /// Takes over the rest of a run that has ended and that nobody follows. Not if somebody reads after
    /// all: then a later run is on its way, and the log may have lines of that one too.
    pub(super) async fn take_unread(&self, run: RunId, docker_id: &str) {
        if let Ok(_reading) = self.shared.reading.try_lock() {
            self.take_rest(self.workload_log(run, docker_id)).await;
        }
    }

    /// Takes over all that the engine's log has of a run that has ended.
    pub(super) async fn take_rest(&self, of: RunLog<'_>) -> Caught {
        let turn = self.services.log_turns.acquire().await.ok();
        let read = self.services.insist(|| self.read_log(of)).await;
        let caught = self.take_over(of, read).await;
        drop(turn);
        self.end_output().await;
        caught
    }

    async fn take_over(&self, of: RunLog<'_>, read: Result<Log, EngineError>) -> Caught {
        match read {
            Ok(log) => {
                let news = self.push_new(of, &log).await;
                Caught { log: log.lines, news, early: Vec::new() }
            }
            Err(error) => {
                tracing::warn!(container.id = %self.snapshot.id, error = %Chain(&error), "cannot read the engine's log");
                self.tell_gap(
                    of.run,
                    "some output may be missing: the engine's log was not to be read",
                );
                Caught::default()
            }
        }
    }

    /// The log up to where the attach begins.
    async fn read_up_to(
        &self,
        of: RunLog<'_>,
        output: &mut OutputStream,
        early: &mut Early,
        attached_at: i64,
    ) -> Result<Log, EngineError> {
        let mut tries = 0;
        loop {
            tries += 1;
            early.collect_for(output, LOG_LAG).await;
            let in_log_by_now = Stream::ALL.map(|stream| early.whole_lines(stream));
            let mut log = tokio::select! {
                log = self.read_log(of) => log?,
                () = early.collect(output) => Log::default(),
            };
            early.collect_for(output, ATTACH_LAG).await;
            let mut places = [None; 2];
            for (index, stream) in Stream::ALL.into_iter().enumerate() {
                let bounds = Bounds {
                    not_before_nanos: output.asked_at_nanos(),
                    at_least_bytes: in_log_by_now[index],
                };
                places[index] = early.place_in(&log.lines, stream, bounds);
            }
            if places.contains(&None) && tries < TRIES {
                continue;
            }
            for (place, stream) in places.into_iter().zip(Stream::ALL) {
                match place {
                    Some(length) => seam::cut(&mut log.lines, stream, length),
                    // The log has other bytes than were printed, as with what is no UTF-8.
                    None => log
                        .lines
                        .retain(|line| line.stream != stream || line.at_nanos < attached_at),
                }
            }
            return Ok(log);
        }
    }

    async fn read_log(&self, of: RunLog<'_>) -> Result<Log, EngineError> {
        let overlap_ms = if of.whole { None } else { self.overlap_ms(of.run).await };
        // Of a run that is younger than that, all is read: then the count of lines decides where equal
        // ones are joined, and not how late they were read.
        let overlap_ms = overlap_ms.filter(|&from| of.since_ms.is_none_or(|since| from > since));
        let mut log = self.log_since(of.docker_id, overlap_ms.or(of.since_ms)).await?;
        log.from_start = overlap_ms.is_none() && log.lacks.is_none();
        Ok(log)
    }

    /// What the engine's log has since then, in Unix milliseconds.
    pub(super) async fn log_since(
        &self,
        docker_id: &str,
        since_ms: Option<i64>,
    ) -> Result<Log, EngineError> {
        let engine = &self.services.engine;
        let Some(observed) = engine.inspect(docker_id).await? else {
            return Ok(Log::default());
        };
        let since = since_ms.map(|ms| {
            let nanos = u32::try_from(ms.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
            (ms.div_euclid(1000), nanos)
        });
        let mut entries = engine.logs(docker_id, observed.tty, since).await?;
        let mut log = Log::default();
        let (mut bytes, mut stored_bytes) = (0, 0);
        while let Some(line) = entries.next().await? {
            bytes += line.bytes.len();
            stored_bytes += line.stored_bytes();
            log.lines.push(line);
            if bytes > LOG_MAX_BYTES {
                let half = log.lines.len() / 2;
                bytes -= log.lines.drain(..half).map(|line| line.bytes.len()).sum::<usize>();
                log.lacks = Some(Lack::TooLong);
            }
        }
        // The engine says nothing of what it has thrown away. It keeps a full file when it does.
        if stored_bytes >= self.services.settings().log.max_size_bytes {
            log.lacks.get_or_insert(Lack::Rotated);
        }
        Ok(log)
    }

    /// From when on the log must be read to be joined to the console's end; `None`: from the beginning.
    /// Reading whole logs of hundreds of containers after each outage would keep the engine busy.
    async fn overlap_ms(&self, run: RunId) -> Option<i64> {
        let mut from_ms: Option<i64> = None;
        for stream in Stream::ALL {
            let tail = self.shared.console.tail(run, stream).await;
            if tail.lines_in_run == Some(0) {
                continue;
            }
            let since_ms = tail.full_since_ms()?;
            from_ms = Some(from_ms.map_or(since_ms, |from_ms| from_ms.min(since_ms)));
        }
        Some(from_ms? - i64::try_from(READ_LATE.as_millis()).unwrap_or(0))
    }

    /// Pushes what the console does not have, and returns that.
    async fn push_new(&self, of: RunLog<'_>, log: &Log) -> Vec<LogLine> {
        let mut skip: Vec<Option<usize>> = vec![None; log.lines.len()];
        let mut gap: Option<Gap> = None;
        for stream in Stream::ALL {
            let tail = self.shared.console.tail(of.run, stream).await;
            if let Some(missing) = join_stream(&tail, log, stream, of.since_ms, &mut skip) {
                gap = Some(missing.with(gap));
            }
        }
        if let Some(gap) = gap {
            self.tell_gap(of.run, &missing(gap, log.lacks));
        }
        let mut news = Vec::new();
        for (line, skip) in log.lines.iter().zip(skip) {
            let Some(skip) = skip else { continue };
            let new = LogLine { bytes: line.bytes.slice(skip..), ..line.clone() };
            self.shared.print(of.run, line.stream, line.at_nanos / NANOS_PER_MS, &new.bytes);
            news.push(new);
        }
        news
    }

    /// Says at the console that something is missing there: to those who read now, and, as a line of it,
    /// to those who read it later.
    fn tell_gap(&self, run: RunId, what: &str) {
        self.say(what);
        self.shared.console.note(run, now_unix_ms(), &format!("[lightd] {what}"));
    }
}

/// Marks the lines of a stream that the console does not have, each with the bytes that it does have of
/// it, and says what is missing before them. `began_ms` is when the run was decided, if that is known.
fn join_stream(
    tail: &Tail,
    log: &Log,
    stream: Stream,
    began_ms: Option<i64>,
    skip: &mut [Option<usize>],
) -> Option<Gap> {
    let lines = whole_lines(&log.lines, stream);
    let theirs: Vec<EngineLine<'_>> =
        lines.iter().map(|line| EngineLine { time_ms: line.time_ms, text: &line.text }).collect();
    let first_ms = theirs.first()?.time_ms;
    let place = join(tail, &theirs, log.from_start);
    let mut known = place.skip_bytes;
    for &index in lines.iter().skip(place.first_new).flat_map(|line| &line.entries) {
        let length = log.lines[index].bytes.len();
        skip[index] = Some(known.min(length)).filter(|&skip| skip < length);
        known = known.saturating_sub(length);
    }
    match tail.last_time_ms() {
        Some(from_ms) if place.gap => {
            let until_ms = theirs.get(place.first_new).map_or(from_ms, |line| line.time_ms);
            Some(Gap { from_ms, until_ms })
        }
        Some(_) => None,
        // Of a stream that the console has nothing of, nobody knows how it began.
        None => {
            log.lacks.map(|_| Gap { from_ms: began_ms.unwrap_or(first_ms), until_ms: first_ms })
        }
    }
}

/// A line of one stream as the engine's log has it, in one entry or, where it is long, in several.
pub(super) struct WholeLine<'a> {
    pub(super) text: Cow<'a, [u8]>,
    /// Of the last entry.
    pub(super) time_ms: i64,
    entries: Vec<usize>,
}

/// The last one may lack its end.
pub(super) fn whole_lines(log: &[LogLine], stream: Stream) -> Vec<WholeLine<'_>> {
    let mut lines: Vec<WholeLine<'_>> = Vec::new();
    for (index, entry) in log.iter().enumerate().filter(|(_, entry)| entry.stream == stream) {
        let time_ms = entry.at_nanos / NANOS_PER_MS;
        match lines.last_mut() {
            Some(line) if !line.text.ends_with(b"\n") => {
                line.text.to_mut().extend_from_slice(&entry.bytes);
                line.time_ms = time_ms;
                line.entries.push(index);
            }
            _ => {
                let text = Cow::Borrowed(&entry.bytes[..]);
                lines.push(WholeLine { text, time_ms, entries: vec![index] });
            }
        }
    }
    lines
}

/// How much is missing: the engine counts no lines, so its length in time.
fn missing(Gap { from_ms, until_ms }: Gap, lacks: Option<Lack>) -> String {
    let at = |ms: i64| {
        jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |at| at.to_string())
    };
    let seconds = until_ms.saturating_sub(from_ms).max(0) as f64 / 1000.0;
    let why = match lacks {
        Some(Lack::TooLong) => "of the engine's log only the newest 16 MiB are taken over",
        Some(Lack::Rotated) | None => "the engine's log had been rotated",
    };
    format!(
        "the output of {seconds:.1} s is missing here, from {} to {}: {why}",
        at(from_ms),
        at(until_ms),
    )
}
