//! What the kernel's log says of processes that were killed for want of memory, by the group that had none.
//!
//! Beside the watch on a run's group ([`super::oom`]): whoever runs out of memory at once is gone before the
//! group is found, and under load a group may be gone before its counter is looked at. One for the node, which
//! is read on now and then, so that it is known about when something was said. A sandbox may keep it away
//! (`ProtectKernelLogs`, a lack of `CAP_SYSLOG`); then it tells of nothing.
//!
//! Source: <https://docs.kernel.org/admin-guide/abi-testing.html> `dev-kmsg`: each read is one record; `EPIPE`
//! says that older ones were overwritten meanwhile.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// No record is larger.
const RECORD_MAX_BYTES: usize = 8192;
/// Read at once: an end also where others log faster than this is read.
const RECORDS_MAX: usize = 10_000;
/// For so long a kill counts for an end.
const LATELY: Duration = Duration::from_secs(10);
const KILLS_KEPT: usize = 256;

#[derive(Debug)]
pub(crate) struct KernelLog(Mutex<State>);

#[derive(Debug)]
struct State {
    file: Option<File>,
    /// The groups of those killed, and when that was read.
    kills: VecDeque<(Instant, String)>,
}

impl KernelLog {
    /// What is in it already is of no interest.
    pub(crate) fn from_now() -> Self {
        Self(Mutex::new(State { file: open(), kills: VecDeque::new() }))
    }

    /// Takes note of what is new.
    pub(crate) fn read_on(&self) {
        let State { file, kills } = &mut *self.lock();
        let Some(file) = file else { return };
        let mut record = [0; RECORD_MAX_BYTES];
        for _ in 0..RECORDS_MAX {
            match file.read(&mut record) {
                Ok(read @ 1..) => {
                    if let Some(group) = killed_group(&record[..read]) {
                        kills.push_back((Instant::now(), group));
                        if kills.len() > KILLS_KEPT {
                            kills.pop_front();
                        }
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Whether a process of this container was killed a moment ago. Each kill is told of once: it may have
    /// ended this run, and is none of the next one's.
    pub(crate) fn tells_of(&self, docker_id: &str) -> bool {
        self.read_on();
        let mut told = false;
        self.lock().kills.retain(|(at, group)| {
            let is_its = group.contains(docker_id);
            told |= is_its && at.elapsed() < LATELY;
            !is_its
        });
        told
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open() -> Option<File> {
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).ok()?;
    let opened = OpenOptions::new().read(true).custom_flags(nonblocking).open("/dev/kmsg");
    opened
        .and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file))
        .inspect_err(|error| tracing::debug!(%error, "the kernel's log cannot be read"))
        .ok()
}

/// A record is its numbers, a semicolon and its text.
fn killed_group(record: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(record);
    let (_, text) = text.split_once(';')?;
    let fields = text.strip_prefix("oom-kill:")?.split(',');
    fields
        .filter_map(|field| field.split_once('='))
        .find_map(|(name, group)| (name == "task_memcg").then(|| group.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_told_by_its_group() {
        let record = b"6,3042,53438977700,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),\
            cpuset=aaa,mems_allowed=0,oom_memcg=/system.slice,\
            task_memcg=/system.slice/docker-bbb.scope,task=java,pid=27333,uid=988\n SUBSYSTEM=x\n";
        assert_eq!(killed_group(record).as_deref(), Some("/system.slice/docker-bbb.scope"));
        assert_eq!(killed_group(b"6,1,1,-;somebody said: oom-kill:task_memcg=/bbb"), None);
        assert_eq!(killed_group(b"6,1,1,-;oom_reaper: reaped process 1"), None);
    }

    #[test]
    fn a_kill_counts_for_an_end_that_is_near() {
        let kills = VecDeque::from([
            (Instant::now() - 2 * LATELY, "/docker/old".to_owned()),
            (Instant::now(), "/docker/new".to_owned()),
        ]);
        let log = KernelLog(Mutex::new(State { file: None, kills }));
        assert!(!log.tells_of("old") && !log.tells_of("other"));
        assert!(log.tells_of("new") && !log.tells_of("new"), "once");
    }
}
