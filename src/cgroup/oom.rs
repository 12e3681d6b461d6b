//! Being told by the kernel that a group ran out of memory, while the group is still there.
//!
//! The engine's own word on it is not to be relied on: under load, or with a control group of version 1
//! that is taken down at once, it records an exit without its cause. The kernel's counter goes with the
//! group, so it is read in the moment the kernel calls, while the group is there. Version 1 calls through
//! an event descriptor (`cgroup.event_control`), version 2 marks `memory.events` as urgent to read.
//!
//! Source: <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html> section 10,
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html> `memory.events`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Cgroup, Files, field};

/// More than any version of the file holds.
const FILE_MAX_BYTES: usize = 1024;

/// Waits for one group. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct OomWatch {
    counter: File,
    calls: Calls,
    /// Kills that were told of.
    told: u64,
}

#[derive(Debug)]
enum Calls {
    Event(AsyncFd<OwnedFd>),
    Urgent(AsyncFd<File>),
}

impl Cgroup {
    /// Begins to watch; to be called within a runtime.
    #[expect(
        deprecated,
        reason = "its successor is unsafe; an owned descriptor and a file, which never change the \
                  descriptor they hold, are what it is sound for"
    )]
    pub(crate) fn watch_oom(&self) -> io::Result<OomWatch> {
        match &self.files {
            Files::V1 { memory, .. } => {
                let counter = File::open(&memory.oom)?;
                let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                register(&memory.oom, &event, &counter)?;
                let event = AsyncFd::with_interest(event, Interest::READABLE)?;
                Ok(OomWatch { counter, calls: Calls::Event(event), told: 0 })
            }
            Files::V2 { memory, .. } => {
                let counter = File::open(&memory.oom)?;
                let urgent = AsyncFd::with_interest(counter.try_clone()?, Interest::PRIORITY)?;
                Ok(OomWatch { counter, calls: Calls::Urgent(urgent), told: 0 })
            }
        }
    }
}

fn register(oom_control: &Path, event: &OwnedFd, counter: &File) -> io::Result<()> {
    let control = oom_control.with_file_name("cgroup.event_control");
    let line = format!("{} {}", event.as_raw_fd(), counter.as_raw_fd());
    OpenOptions::new().write(true).open(control)?.write_all(line.as_bytes())
}

impl OomWatch {
    /// Returns when a process of the group was killed for want of memory since the last time, and only
    /// then.
    pub(crate) async fn killed(&mut self) {
        let watched = match &self.calls {
            Calls::Event(event) => self.called(event).await,
            Calls::Urgent(urgent) => self.counted(urgent).await,
        };
        match watched {
            Ok(kills) => self.told = kills,
            // The group is gone: nothing more will be told.
            Err(_) => std::future::pending().await,
        }
    }

    /// Version 1 calls before it kills, so the counter may not show it yet; that the counter is there
    /// tells the call from the one at the group's removal, when its files are gone already.
    async fn called(&self, event: &AsyncFd<OwnedFd>) -> io::Result<u64> {
        let kills = self.kills()?;
        if kills > self.told {
            return Ok(kills);
        }
        let mut called = event.readable().await?;
        // Reading the count of calls sets it back.
        rustix::io::read(event.get_ref(), &mut [0; 8])?;
        called.clear_ready();
        self.kills().map(|kills| kills.max(self.told + 1))
    }

    async fn counted(&self, urgent: &AsyncFd<File>) -> io::Result<u64> {
        loop {
            let kills = self.kills()?;
            if kills > self.told {
                return Ok(kills);
            }
            urgent.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }

    fn kills(&self) -> io::Result<u64> {
        let mut text = [0; FILE_MAX_BYTES];
        let read = self.counter.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..read]).unwrap_or_default();
        Ok(field(text, "oom_kill").unwrap_or(0))
    }
}
