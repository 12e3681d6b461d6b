//! A command beside a container's workload: run it, take its output, see how it ended.
//!
//! Called for a request of the API's. A command is never left without an end: at its deadline it is
//! killed, and how much of its output is kept is bounded.

use std::fs;
use std::time::Duration;

use bollard::models::{ExecConfig, ExecInspectResponse};
use bytes::Bytes;
use hyper::Method;

use super::error::EngineError;
use super::raw::RawRequest;
use super::streams::OutputStream;
use super::{Engine, op, plain_name};
use crate::domain::stream::Stream;

const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub(crate) struct ExecRequest {
    pub(crate) cmd: Vec<String>,
    /// `None`: the container's own.
    pub(crate) user: Option<String>,
    /// How long the command may run.
    pub(crate) deadline: Duration,
    /// How much output is kept, of both streams together. What is over it is read and dropped, so that
    /// the command does not stop at it.
    pub(crate) output_max_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExecResult {
    pub(crate) end: ExecEnd,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Some output was dropped.
    pub(crate) is_truncated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExecEnd {
    Exited(i64),
    /// It was still running at the deadline and was killed.
    TimedOut,
}

impl Engine {
    /// Runs a command to its end, or to its deadline.
    pub(crate) async fn exec(
        &self,
        id: &str,
        request: &ExecRequest,
    ) -> Result<ExecResult, EngineError> {
        let exec_id = self.create_exec(id, request).await?;
        let mut output = self.start_exec(id, &exec_id).await?;
        let mut kept = Kept::new(request.output_max_bytes);
        let ended = async {
            kept.read_to_end(&mut output).await?;
            self.exit_code(&exec_id).await
        };
        let end = match tokio::time::timeout(request.deadline, ended).await {
            Ok(code) => ExecEnd::Exited(code?),
            Err(_) => {
                self.kill_exec(id, &exec_id).await?;
                ExecEnd::TimedOut
            }
        };
        let Kept { stdout, stderr, is_truncated, .. } = kept;
        Ok(ExecResult { end, stdout, stderr, is_truncated })
    }

    async fn create_exec(&self, id: &str, request: &ExecRequest) -> Result<String, EngineError> {
        let config = ExecConfig {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(false),
            cmd: Some(request.cmd.clone()),
            user: request.user.clone(),
            ..ExecConfig::default()
        };
        let made =
            self.call_container(op::EXEC, id, |docker| async move {
                docker.create_exec(id, config).await
            })
            .await?;
        Ok(made.id)
    }

    async fn start_exec(&self, id: &str, exec_id: &str) -> Result<OutputStream, EngineError> {
        plain_name(op::EXEC, "command", exec_id)?;
        let target = format!("container {id}");
        let request = RawRequest {
            op: op::EXEC,
            target: target.clone(),
            method: Method::POST,
            path: format!("/exec/{exec_id}/start"),
            body: Bytes::from_static(br#"{"Detach":false,"Tty":false}"#),
        };
        Ok(OutputStream::new(op::EXEC, target, self.upgraded(request).await?, false))
    }

    /// The engine knows it a little later than the output ends, and much later of a command that closes
    /// its output and runs on.
    async fn exit_code(&self, exec_id: &str) -> Result<i64, EngineError> {
        loop {
            if let Some(code) = self.inspect_exec(exec_id).await?.exit_code {
                return Ok(code);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn inspect_exec(&self, exec_id: &str) -> Result<ExecInspectResponse, EngineError> {
        self.call(op::INSPECT, "a command in a container", |docker| async move {
            docker.inspect_exec(exec_id).await
        })
        .await
    }

    /// The engine has no call for this: the process is killed by its number, once the kernel confirms
    /// that the number is one of this container's. Where it can't be seen (the engine runs in another
    /// process namespace) the command is left to end with its container.
    async fn kill_exec(&self, id: &str, exec_id: &str) -> Result<(), EngineError> {
        let found = self.inspect_exec(exec_id).await?;
        let pid = found.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|&pid| pid > 1);
        let docker_id = found.container_id.unwrap_or_default();
        if let Some(pid) = pid
            && found.running == Some(true)
            && is_in_container(pid, &docker_id)
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        {
            tracing::warn!(container = id, %error, "cannot kill a command that ran too long");
        }
        Ok(())
    }
}

fn is_in_container(pid: i32, docker_id: &str) -> bool {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    docker_id.len() >= 12 && cgroups.contains(docker_id)
}

struct Kept {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    room: usize,
    is_truncated: bool,
}

impl Kept {
    fn new(room: usize) -> Self {
        Self { stdout: Vec::new(), stderr: Vec::new(), room, is_truncated: false }
    }

    async fn read_to_end(&mut self, output: &mut OutputStream) -> Result<(), EngineError> {
        while let Some(chunk) = output.next().await? {
            let kept = &chunk.bytes[..chunk.bytes.len().min(self.room)];
            self.room -= kept.len();
            self.is_truncated |= kept.len() < chunk.bytes.len();
            match chunk.stream {
                Stream::Out => self.stdout.extend_from_slice(kept),
                Stream::Err => self.stderr.extend_from_slice(kept),
            }
        }
        Ok(())
    }
}
