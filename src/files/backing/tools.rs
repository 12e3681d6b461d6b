//! Programs of the host that make, mount, check and limit file systems: called by absolute path, with
//! nothing of our environment, and not waited for without end.
//!
//! A program that works on an image is given the image as its standard input, locked. The lock lasts as
//! long as the program: one that outlived a killed lightd is waited for by the next ([`lock`]).

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::time::Instant;

const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
const LOOK_EVERY: Duration = Duration::from_millis(4);
const SAID_MAX_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error("{program} is missing; install the package {package}")]
    Missing { program: &'static str, package: &'static str },
    #[error("cannot run {program}")]
    Run { program: &'static str, source: std::io::Error },
    #[error("{program} took longer than {}", humantime::format_duration(*deadline))]
    Late { program: &'static str, deadline: Duration },
    #[error("{program} answered {code}: {said}")]
    Failed { program: &'static str, code: i32, said: String },
}

/// A program, and what is to be done with it.
#[derive(Debug)]
pub(super) struct Tool {
    program: &'static str,
    command: Command,
    deadline: Duration,
}

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) program: &'static str,
    pub(super) code: i32,
    /// What it printed, on both streams.
    pub(super) said: String,
}

impl Tool {
    pub(super) fn new(program: &'static str) -> Result<Self, ToolError> {
        let path = find(program)?;
        let mut command = Command::new(path);
        command.env_clear().env("PATH", FOLDERS.join(":")).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self { program, command, deadline: Duration::from_secs(60) })
    }

    pub(super) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(super) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(super) fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Holds this image for as long as the program runs.
    pub(super) fn holding(mut self, locked: &File) -> Result<Self, ToolError> {
        let program = self.program;
        let held = locked.try_clone().map_err(|source| ToolError::Run { program, source })?;
        self.command.stdin(Stdio::from(held));
        Ok(self)
    }

    /// Writes what it has to say into a file.
    pub(super) fn writing_to(mut self, file: File) -> Self {
        self.command.stdout(Stdio::from(file));
        self
    }

    /// As a user that the kernel holds to limits.
    pub(super) fn run_as(mut self, uid: u32, gid: u32) -> Self {
        self.command.uid(uid).gid(gid);
        self
    }

    /// Runs it to its end, which must be a success.
    pub(super) fn run(self) -> Result<Ended, ToolError> {
        let ended = self.end()?;
        if ended.code == 0 { Ok(ended) } else { Err(ended.into()) }
    }

    /// Runs it to its end, whichever that is. Blocking.
    pub(super) fn end(mut self) -> Result<Ended, ToolError> {
        let program = self.program;
        let failed = |source| ToolError::Run { program, source };
        let mut child = self.command.spawn().map_err(failed)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            // Both are read while it runs: a full pipe would hold it up.
            let out = scope.spawn(move || out.map(read_some));
            let err = scope.spawn(move || err.map(read_some));
            let code = wait(&mut child, self.deadline).map_err(failed)?;
            let text = |read: std::thread::ScopedJoinHandle<'_, Option<String>>| {
                read.join().ok().flatten().unwrap_or_default()
            };
            let said = format!("{} {}", text(out), text(err));
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            let code = code.ok_or(ToolError::Late { program, deadline: self.deadline })?;
            Ok(Ended { program, code, said })
        })
    }
}

impl From<Ended> for ToolError {
    fn from(ended: Ended) -> Self {
        Self::Failed { program: ended.program, code: ended.code, said: ended.said }
    }
}

/// The program's exit code; `None` for one that had to be killed.
fn wait(child: &mut Child, deadline: Duration) -> std::io::Result<Option<i32>> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.code().unwrap_or(-1)));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn read_some(mut stream: impl Read) -> String {
    let mut said = Vec::new();
    // What cannot be read was not said.
    stream.by_ref().take(SAID_MAX_BYTES).read_to_end(&mut said).ok();
    std::io::copy(&mut stream, &mut std::io::sink()).ok();
    String::from_utf8_lossy(&said).into_owned()
}

fn find(program: &'static str) -> Result<PathBuf, ToolError> {
    let package = match program {
        "setquota" => "quota",
        "mount" | "umount" => "mount",
        "losetup" => "util-linux",
        "dd" => "coreutils",
        _ => "e2fsprogs",
    };
    let mut paths = FOLDERS.iter().map(|folder| Path::new(folder).join(program));
    paths.find(|path| path.is_file()).ok_or(ToolError::Missing { program, package })
}

/// Waits until no program works on the image any more, and keeps others away from it for as long as the
/// file is open.
pub(super) fn lock(image: &File, within: Duration) -> Result<(), Errno> {
    let end = Instant::now() + within;
    loop {
        match rustix::fs::flock(image, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(LOOK_EVERY * 5),
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_heard_and_one_that_lasts_is_ended() {
        let ended = Tool::new("dd").unwrap().arg("nonsense").end().unwrap();
        assert!(ended.code != 0 && ended.said.contains("nonsense"), "{ended:?}");
        assert!(matches!(Tool::new("no-such-program"), Err(ToolError::Missing { .. })));
        let late = Tool::new("dd").unwrap().args(["if=/dev/zero", "of=/dev/null"]);
        let late = late.within(Duration::from_millis(20)).end();
        assert!(matches!(late, Err(ToolError::Late { .. })), "{late:?}");
    }

    #[test]
    fn an_image_stays_locked_while_a_program_works_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let image = File::create_new(&path).unwrap();
        lock(&image, Duration::ZERO).unwrap();
        let tool = Tool::new("dd").unwrap().holding(&image).unwrap();
        let tool = tool.args(["if=/dev/zero", "of=/dev/null"]).within(Duration::from_millis(200));
        let other = File::open(&path).unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(move || tool.end());
            drop(image);
            assert_eq!(lock(&other, Duration::ZERO), Err(Errno::WOULDBLOCK));
            lock(&other, Duration::from_secs(10)).unwrap();
            assert!(running.join().unwrap().is_err());
        });
    }
}
