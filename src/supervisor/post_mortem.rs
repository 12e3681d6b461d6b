//! Post-mortems: what is known of a run that crashed, kept in the container's own folder.
//!
//! The machine asks for one with each crash and again after a restart of lightd, until it is told that it
//! is on the disk. Each is one file, named by its run: written whole or not at all, and the same again
//! if it is written twice. The oldest ones go; all go with the container. What cannot be written is
//! logged, and tried again when lightd is started the next time.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::effects::Ctx;
use super::{ContainerHandle, Shared};
use crate::console::Query;
use crate::domain::ids::RunId;
use crate::domain::lifecycle::{Fact, LastExit};
use crate::domain::stats::history::{Point, Range, STEP_S};
use crate::domain::units::UnixSeconds;
use crate::util::atomic_file;

const LINES: u64 = 200;
/// Seconds of figures.
const STATS_S: i64 = 60;
/// The most of those lines that is kept: the end.
const LINES_MAX_BYTES: usize = 256 * 1024;
/// What a list leaves out.
const LONG_FIELDS: [&str; 2] = ["lines", "stats"];

/// What would not be there any more once the next run has begun.
#[derive(Debug)]
pub(super) struct Evidence {
    last_line: u64,
    stats: Vec<Point>,
}

impl Evidence {
    /// Of a run that began then and has just ended.
    pub(super) fn of(shared: &Shared, began_at_ms: Option<i64>) -> Self {
        let UnixSeconds(now) = UnixSeconds::now();
        let began = began_at_ms.map_or(now, |ms| UnixSeconds::from_ms(ms).0);
        let from = UnixSeconds(began.max(now - STATS_S));
        let range = Range { from, to: UnixSeconds(now), step_s: STEP_S };
        Self { last_line: shared.console.last_line(), stats: shared.history().points(range) }
    }
}

impl Ctx {
    pub(super) async fn keep_post_mortem(self, run: RunId, evidence: Evidence) {
        let keep = self.services.settings().post_mortems;
        if let Some(last) = self.snapshot.last_exit.as_ref().filter(|last| last.run == run)
            && keep > 0
        {
            let text = self.post_mortem(last, evidence).await.to_string();
            let folder = self.shared.post_mortems_folder();
            let written =
                tokio::task::spawn_blocking(move || write(&folder, run, &text, keep)).await;
            if let Err(error) = written.unwrap_or_else(|ended| Err(io::Error::other(ended))) {
                let id = &self.snapshot.id;
                tracing::warn!(container.id = %id, run.id = %run, %error, "a post-mortem is not kept");
                return;
            }
        }
        self.fact(Fact::PostMortemKept { run }).await;
    }

    async fn post_mortem(&self, last: &LastExit, evidence: Evidence) -> Value {
        let at = |ms: Option<i64>| ms.map(UnixSeconds::from_ms);
        let spec = &self.snapshot.spec;
        json!({
            "n": last.run,
            "run": last.run,
            "at": UnixSeconds::from_ms(last.exit.at_ms),
            "code": last.exit.code,
            "signal": last.exit.signal(),
            "oom_killed": last.exit.oom_killed(),
            "oom": {"engine": last.exit.oom_engine, "kernel": last.exit.oom_kernel},
            "ended_by": last.ended_by,
            "reason": last.reason,
            "started_at": at(last.times.launched_at_ms),
            "ready_at": at(last.times.ready_at_ms),
            "ready_after_ms": last.times.ready_after_ms(),
            "uptime_s": last.uptime_ms().map(|ms| ms / 1000),
            "image": spec.image,
            "startup_command": spec.startup_command,
            "limits": spec.limits,
            "lines": self.last_lines(last.run, evidence.last_line).await,
            "stats": evidence.stats,
        })
    }

    async fn last_lines(&self, run: RunId, last_line: u64) -> String {
        let lines = usize::try_from(LINES).unwrap_or(usize::MAX);
        let query = Query { lines, run: Some(run), ..Query::default() };
        let since = Some(last_line.saturating_sub(LINES));
        let mut found = self.shared.console.history(Query { since, ..query }).await;
        // Others came between, or they are too long to be taken from their beginning.
        if found.text.is_empty() || found.last_seq < last_line {
            found = self.shared.console.history(query).await;
        }
        end_of(found.text)
    }
}

/// The end of a text, from the beginning of a line.
fn end_of(text: String) -> String {
    let Some(from) = text.len().checked_sub(LINES_MAX_BYTES) else { return text };
    let from = text.ceil_char_boundary(from);
    let line = text[from..].find('\n').map_or(0, |end| end + 1);
    text[from + line..].to_owned()
}

fn write(folder: &Path, run: RunId, text: &str, keep: usize) -> io::Result<()> {
    // Not the folders above it: the container may be on its way out.
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    atomic_file::write(&path_of(folder, run), text.as_bytes(), 0o600)?;
    for old in runs(folder)?.into_iter().skip(keep) {
        std::fs::remove_file(path_of(folder, old))?;
    }
    Ok(())
}

fn path_of(folder: &Path, run: RunId) -> PathBuf {
    folder.join(format!("{run}.json"))
}

/// Those that are kept, the newest first.
fn runs(folder: &Path) -> io::Result<Vec<RunId>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut runs = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let run = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok());
        runs.extend(run.map(RunId));
    }
    runs.sort_unstable_by(|a, b| b.cmp(a));
    Ok(runs)
}

fn read(folder: &Path, run: RunId) -> io::Result<Option<Value>> {
    match std::fs::read(path_of(folder, run)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        bytes => Ok(Some(serde_json::from_slice(&bytes?)?)),
    }
}

fn read_all(folder: &Path) -> io::Result<Vec<Value>> {
    let mut all = Vec::new();
    for run in runs(folder)? {
        // Gone meanwhile: a newer one has taken its place.
        let Some(mut found) = read(folder, run)? else { continue };
        if let Some(fields) = found.as_object_mut() {
            LONG_FIELDS.into_iter().for_each(|field| drop(fields.remove(field)));
        }
        all.push(found);
    }
    Ok(all)
}

impl ContainerHandle {
    /// The post-mortems that are kept, the newest first, without lines and statistics.
    pub(crate) async fn post_mortems(&self) -> io::Result<Vec<Value>> {
        let folder = self.shared.post_mortems_folder();
        let read = tokio::task::spawn_blocking(move || read_all(&folder));
        read.await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
    }

    /// The post-mortem of a run, whole.
    pub(crate) async fn post_mortem(&self, run: RunId) -> io::Result<Option<Value>> {
        let folder = self.shared.post_mortems_folder();
        let read = tokio::task::spawn_blocking(move || read(&folder, run));
        read.await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_kept_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let within = folder.path().join("post-mortems");
        assert_eq!(read_all(&within).unwrap(), Vec::<Value>::new());
        for run in [2, 9, 10, 11, 11] {
            let text = json!({"n": run, "lines": "a\n", "stats": []}).to_string();
            write(&within, RunId(run), &text, 3).unwrap();
        }
        let found = read_all(&within).unwrap();
        assert_eq!(found, [json!({"n": 11}), json!({"n": 10}), json!({"n": 9})]);
        assert_eq!(read(&within, RunId(2)).unwrap(), None);
        assert_eq!(read(&within, RunId(9)).unwrap().unwrap()["lines"], "a\n");
        let gone = folder.path().join("gone/post-mortems");
        assert!(write(&gone, RunId(1), "{}", 3).is_err(), "the folder above is not made again");
    }

    #[test]
    fn of_very_long_lines_the_end_is_kept() {
        assert_eq!(end_of("a\nb\n".to_owned()), "a\nb\n");
        let long = format!("{}\nlast\n", "\u{fc}".repeat(LINES_MAX_BYTES));
        assert_eq!(end_of(long), "last\n");
    }
}
