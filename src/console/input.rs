//! Commands to a container's standard input: in order, at most once, and acknowledged.
//!
//! The pump owns the [`InputWriter`] with the attached stream; everyone else holds a [`ConsoleInput`].
//! One pair lives as long as one attached stream. A command belongs either to its sender, who may give
//! up on it, or to the writer, who has begun to write it; it changes hands once and never back, so that
//! a sender who was told "nothing was written" can be sure of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

const QUEUE_COMMANDS: usize = 64;
/// A workload that takes nothing for so long is not going to.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a command was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InputError {
    #[error("the container is not running")]
    NotRunning,
    #[error("the container engine does not answer")]
    EngineUnavailable,
    #[error("too many commands are waiting for the container to take them")]
    QueueFull,
    #[error("the container takes no input; nothing was written")]
    Stalled,
    #[error("the container stopped taking input in the middle of the command")]
    CutShort,
}

#[derive(Debug)]
struct Command {
    bytes: Bytes,
    taken: Arc<AtomicBool>,
    written: oneshot::Sender<()>,
}

/// Sends commands; clones send to the same stream.
#[derive(Clone, Debug)]
pub(crate) struct ConsoleInput {
    queue: mpsc::Sender<Command>,
}

/// Writes what a [`ConsoleInput`] sends.
#[derive(Debug)]
pub(crate) struct InputWriter {
    queue: mpsc::Receiver<Command>,
}

/// A new pair.
pub(crate) fn input() -> (ConsoleInput, InputWriter) {
    let (sender, receiver) = mpsc::channel(QUEUE_COMMANDS);
    (ConsoleInput { queue: sender }, InputWriter { queue: receiver })
}

impl ConsoleInput {
    /// Has the bytes written as they are, and returns when they were. If the caller goes away before,
    /// the command is still written.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), InputError> {
        let (written, mut acknowledged) = oneshot::channel();
        let taken = Arc::new(AtomicBool::new(false));
        let command = Command { bytes, taken: Arc::clone(&taken), written };
        self.queue.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => InputError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => InputError::NotRunning,
        })?;
        let result = tokio::time::timeout(DEADLINE, &mut acknowledged).await;
        if let Ok(Ok(())) = result {
            return Ok(());
        }
        match (taken.swap(true, Ordering::AcqRel), result) {
            (true, _) => acknowledged.try_recv().map_err(|_| InputError::CutShort),
            (false, Err(_)) => Err(InputError::Stalled),
            (false, Ok(_)) => Err(InputError::NotRunning),
        }
    }
}

impl InputWriter {
    /// Writes until the senders are gone, or an error ends the stream. Dropping the future ends it
    /// too; the senders of all commands that are not written learn of it. The stream is not shut
    /// down: the engine would take that for the end of the output as well.
    pub(crate) async fn run(mut self, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
        while let Some(command) = self.queue.recv().await {
            if command.taken.swap(true, Ordering::AcqRel) {
                continue;
            }
            stream.write_all(&command.bytes).await?;
            stream.flush().await?;
            // An error means that the sender gave up waiting.
            command.written.send(()).unwrap_or(());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, duplex};

    fn line(n: usize) -> Bytes {
        Bytes::from(format!("command {n}\n"))
    }

    #[tokio::test]
    async fn commands_arrive_once_and_in_order() {
        let (input, writer) = input();
        let (near, mut far) = duplex(16);
        let senders = async {
            for n in 0..100 {
                input.send(line(n)).await.unwrap();
            }
            drop(input);
        };
        let mut arrived = String::new();
        let (written, (), read) =
            tokio::join!(writer.run(near), senders, far.read_to_string(&mut arrived));
        written.unwrap();
        read.unwrap();
        assert_eq!(arrived, (0..100).map(|n| format!("command {n}\n")).collect::<String>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_was_given_up_is_never_written() {
        let (input, writer) = input();
        let (near, mut far) = duplex(4);
        let first = input.send(line(1));
        let second = input.send(line(2));
        let outcomes = async { tokio::join!(first, second) };
        let mut running = std::pin::pin!(writer.run(near));
        let (first, second) = tokio::select! {
            outcomes = outcomes => outcomes,
            result = &mut running => panic!("the writer ended: {result:?}"),
        };
        assert_eq!(first, Err(InputError::CutShort));
        assert_eq!(second, Err(InputError::Stalled));

        let mut arrived = String::new();
        let third = async {
            input.send(line(3)).await.unwrap();
            drop(input);
        };
        let (written, (), read) = tokio::join!(running, third, far.read_to_string(&mut arrived));
        written.unwrap();
        read.unwrap();
        assert_eq!(arrived, "command 1\ncommand 3\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_and_an_ended_stream_are_told_apart() {
        let (input, writer) = input();
        let waiting = futures_util::future::join_all((0..QUEUE_COMMANDS).map(|n| {
            let input = input.clone();
            async move { input.send(line(n)).await }
        }));
        let one_more = async { input.send(line(99)).await };
        let end = async { drop(writer) };
        let (waiting, one_more, ()) = tokio::join!(waiting, one_more, end);
        assert!(waiting.iter().all(|outcome| *outcome == Err(InputError::NotRunning)));
        assert_eq!(one_more, Err(InputError::QueueFull));
        assert_eq!(input.send(line(0)).await, Err(InputError::NotRunning));
    }
}
