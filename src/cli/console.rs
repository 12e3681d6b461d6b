//! `lightd console ID`: a container's console in a terminal. Lines typed go to the workload, what it
//! prints comes out; a broken connection is made again and goes on where it stopped.

use std::io::{self, Write as _};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};

use super::client::{ClientError, Daemon, Socket, USER_AGENT, block_on};
use crate::config::source::Source;
use crate::domain::ids::{ContainerId, InvalidContainerId};
use crate::util::backoff::Backoff;

const HISTORY_LINES: u64 = 100;
const AGAIN: Backoff =
    Backoff { first: Duration::from_millis(250), longest: Duration::from_secs(5) };
/// The daemon's word that coming back is no use.
const CLOSED_FOR_GOOD: std::ops::RangeInclusive<u16> = 4400..=4499;

#[derive(Debug, thiserror::Error)]
pub(super) enum ConsoleError {
    #[error("the container's id")]
    Id(#[from] InvalidContainerId),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("there is no server {0} (lightd ps lists them)")]
    NoSuchServer(ContainerId),
    #[error("the console was closed: {0}")]
    Closed(String),
    #[error("the connection broke")]
    Socket(#[source] Box<tungstenite::Error>),
    #[error("cannot read or write the terminal")]
    Terminal(#[from] io::Error),
}

impl From<tungstenite::Error> for ConsoleError {
    fn from(error: tungstenite::Error) -> Self {
        Self::Socket(Box::new(error))
    }
}

/// What has been shown, for going on after a break.
#[derive(Default)]
struct Shown {
    seq: Option<u64>,
    /// A line without its end stands there, of this many bytes.
    partial_bytes: usize,
    /// The state that was shown last, without what only an event has.
    state: Option<String>,
}

/// How a connection ended without an error.
enum End {
    Broke,
    InputEnded,
}

pub(super) fn run(source: &Source, id: &str) -> Result<(), ConsoleError> {
    let id = ContainerId::parse(id)?;
    let daemon = Daemon::of(source)?;
    block_on(async {
        let mut input = BufReader::new(tokio::io::stdin()).lines();
        let mut shown = Shown::default();
        let mut failures = 0;
        loop {
            match attend(&daemon, &id, &mut input, &mut shown, &mut failures).await {
                Ok(End::InputEnded) => return Ok(()),
                Ok(End::Broke) | Err(ConsoleError::Socket(_)) => {}
                // A daemon that is restarted is away for a moment; one that never was there is an error.
                Err(ConsoleError::Client(ClientError::Connect(..))) if shown.seq.is_some() => {}
                Err(error) => return Err(error),
            }
            failures += 1;
            if failures == 1 {
                eprintln!("-- the connection broke; trying again --");
            }
            tokio::time::sleep(AGAIN.delay(failures)).await;
        }
    })
}

async fn attend(
    daemon: &Daemon,
    id: &ContainerId,
    input: &mut Lines<BufReader<Stdin>>,
    shown: &mut Shown,
    failures: &mut u32,
) -> Result<End, ConsoleError> {
    let mut socket = open(daemon, id, shown).await?;
    if std::mem::take(failures) > 0 {
        eprintln!("-- connected again --");
    }
    if shown.seq.is_none() {
        shown.seq = Some(0);
        let history = json!({"event": "request_logs", "lines": HISTORY_LINES});
        socket.send(Message::text(history.to_string())).await?;
    }
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => show(text.as_str(), shown)?,
                Some(Ok(Message::Close(Some(why)))) if CLOSED_FOR_GOOD.contains(&u16::from(why.code)) => {
                    return Err(ConsoleError::Closed(why.reason.to_string()));
                }
                Some(Ok(Message::Close(_))) | None => return Ok(End::Broke),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
            },
            line = input.next_line() => match line? {
                Some(line) => {
                    let command = json!({"event": "send_command", "command": line});
                    socket.send(Message::text(command.to_string())).await?;
                }
                None => {
                    socket.close(None).await?;
                    return Ok(End::InputEnded);
                }
            },
        }
    }
}

async fn open(
    daemon: &Daemon,
    id: &ContainerId,
    shown: &Shown,
) -> Result<WebSocketStream<Box<dyn Socket>>, ConsoleError> {
    let stream = daemon.connect().await?;
    let since = shown.seq.map(|seq| format!("&since={seq}")).unwrap_or_default();
    let address = daemon.address;
    let url =
        format!("ws://{address}/ws/{id}?events=console,event,daemon_message,logs,error{since}");
    let mut request = url.into_client_request()?;
    let bearer = format!("Bearer {}", daemon.token.expose());
    let value = bearer.parse().map_err(|_| daemon.refusal(401, &Value::Null))?;
    request.headers_mut().insert("Authorization", value);
    request.headers_mut().insert("User-Agent", HeaderValue::from_static(USER_AGENT));
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => Err(match response.status().as_u16() {
            404 => ConsoleError::NoSuchServer(id.clone()),
            status => {
                let body = response.body().as_deref().unwrap_or_default();
                daemon.refusal(status, &serde_json::from_slice(body).unwrap_or_default()).into()
            }
        }),
        Err(other) => Err(other.into()),
    }
}

fn show(frame: &str, shown: &mut Shown) -> Result<(), ConsoleError> {
    let Ok(frame) = serde_json::from_str::<Value>(frame) else { return Ok(()) };
    let data = frame["data"].as_str().unwrap_or_default();
    let out = &mut io::stdout();
    match frame["event"].as_str() {
        Some("console" | "logs") => {
            write!(out, "{data}")?;
            out.flush()?;
            shown.partial_bytes = if data.ends_with('\n') { 0 } else { data.len() };
            let partial = frame["partial"].as_bool().unwrap_or(false);
            if let Some(seq) = frame["seq"].as_u64().filter(|_| !partial) {
                shown.seq = Some(seq);
            }
        }
        // The present state comes with each connection.
        Some("event") if shown.state.as_deref() == Some(data) => {}
        Some("event") => {
            eprintln!("-- {} --", described(data, &frame));
            shown.state = Some(data.to_owned());
        }
        Some("daemon_message" | "error") => eprintln!("-- lightd: {data} --"),
        _ => {}
    }
    Ok(())
}

/// A state, and of an exit how it came to it.
fn described(state: &str, frame: &Value) -> String {
    let Some(code) = frame["exit_code"].as_i64() else { return state.to_owned() };
    let mut text = format!("{state} with code {code}");
    if let Some(signal) = frame["signal"].as_str() {
        text.push_str(&format!(" ({signal})"));
    }
    text.push_str(match frame["ended_by"].as_str() {
        Some("itself") => ", by itself",
        Some("signal") => ", stopped by its signal",
        Some("command") => ", stopped by its command",
        Some("grace") => ", killed as it did not stop in time",
        Some("kill") => ", killed as somebody wished",
        Some("engine") => ", with the engine",
        _ => "",
    });
    if frame["oom_killed"] == true {
        text.push_str(", out of memory");
    }
    if let Some(reason) = frame["reason"].as_str() {
        text.push_str(&format!(": {reason}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_told_with_its_code_and_its_reason() {
        let exit = |ended_by: &str, more: Value| {
            let mut frame = json!({"exit_code": 137, "signal": "SIGKILL", "ended_by": ended_by});
            frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            described("exit", &frame)
        };
        assert_eq!(
            exit("itself", json!({"oom_killed": true})),
            "exit with code 137 (SIGKILL), by itself, out of memory"
        );
        assert_eq!(
            exit("grace", json!({"reason": "it was not ready within 3 s"})),
            "exit with code 137 (SIGKILL), killed as it did not stop in time: it was not ready within 3 s"
        );
        let plain = json!({"exit_code": 3, "signal": null, "ended_by": "itself", "reason": null});
        assert_eq!(described("exit", &plain), "exit with code 3, by itself");
        assert_eq!(described("running", &json!({})), "running");
    }
}
