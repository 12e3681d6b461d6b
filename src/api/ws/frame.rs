//! The frames of a container's socket: one JSON object each, told apart by `event`.
//!
//! Console output is not here: it comes from the console already serialised and is shared by all who
//! read it.

use axum::extract::ws::Utf8Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::openapi::schemas::{EndedBy, StateSignal};
use crate::domain::event::StateEvent;
use crate::domain::lifecycle::LastExit;
use crate::domain::stats::Sample;
use crate::files::operation::OperationView;
use crate::util::serde_words::without_text;

const REQUEST_ID_MAX_BYTES: usize = 128;

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Frame)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Outbound<'a> {
    /// A state, as it comes.
    Event {
        #[schema(value_type = StateSignal)]
        data: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        exit_code: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        oom_killed: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        signal: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false, value_type = Option<EndedBy>)]
        ended_by: Option<&'static str>,
        /// Why it was not left to run.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        reason: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        uptime_s: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        ready_after_ms: Option<u64>,
    },
    /// What the container uses.
    Stats(&'a Sample),
    /// A sentence of lightd's for whoever looks.
    DaemonMessage { data: &'a str },
    /// The answer to `request_logs`.
    Logs {
        data: &'a str,
        /// The number of the last line in `data`; 0 if there is none.
        seq: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        id: Option<&'a RequestId>,
    },
    /// Work in the container's volume.
    Operation(&'a OperationView),
    /// What was asked for has been done: the command is written, the wish stands.
    Done { id: &'a RequestId },
    /// A request was refused, or the stream ends.
    Error {
        data: &'a str,
        code: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        id: Option<&'a RequestId>,
    },
}

/// What a client calls its request, to know the answer by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum RequestId {
    Number(i64),
    Text(String),
}

/// What a client may send.
#[derive(ToSchema)]
#[schema(as = ClientFrame)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(dead_code, reason = "it describes what `Inbound::parse` reads")]
pub(super) enum ClientFrame {
    /// A line for the standard input.
    SendCommand {
        #[schema(example = "say hello")]
        command: String,
        id: Option<RequestId>,
    },
    Power {
        action: PowerAction,
        id: Option<RequestId>,
    },
    /// Lines of the past: the last ones, or those behind `since`.
    RequestLogs {
        lines: Option<u64>,
        since: Option<u64>,
        id: Option<RequestId>,
    },
    /// Goes on with another token.
    Auth {
        token: String,
        id: Option<RequestId>,
    },
}

/// What a client is sent: one of these frames, or a piece of the console.
#[derive(ToSchema)]
#[schema(as = ServerFrame)]
#[serde(untagged)]
#[expect(dead_code, reason = "the console's frames come ready made")]
pub(super) enum ServerFrame<'a> {
    Console(ConsoleFrame),
    Other(Outbound<'a>),
}

/// Whole lines, or one that has stood unfinished for a while.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the console makes them, ready to be sent")]
pub(super) struct ConsoleFrame {
    #[schema(pattern = "^console$", example = "console")]
    event: String,
    #[schema(example = "Ready\n")]
    data: String,
    /// The number of the last line in `data`.
    #[schema(example = 1042)]
    seq: u64,
    /// The line goes on.
    #[schema(required = false)]
    partial: bool,
    /// Of a partial line: the place behind it.
    #[schema(required = false, example = "1041.12")]
    since: String,
}

impl<'a> Outbound<'a> {
    pub(super) fn state(event: &'a StateEvent) -> Self {
        let last = event.last_exit.as_ref();
        Self::Event {
            data: event.name.as_str(),
            exit_code: last.map(|last| last.exit.code),
            oom_killed: last.map(|last| last.exit.oom_killed()),
            signal: last.and_then(|last| last.exit.signal()),
            ended_by: last.map(|last| last.ended_by.as_str()),
            reason: last.and_then(|last| last.reason.as_deref()),
            uptime_s: last.and_then(LastExit::uptime_ms).map(|ms| ms / 1000),
            ready_after_ms: event.ready_after_ms,
        }
    }

    pub(super) fn text(&self) -> Utf8Bytes {
        serde_json::to_string(self).expect("invariant: frames have text keys only").into()
    }
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inbound {
    SendCommand { command: String },
    Power { action: PowerAction },
    RequestLogs { lines: Option<u64>, since: Option<u64> },
    Auth { token: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum PowerAction {
    Start,
    Stop,
    Kill,
    Restart,
}

/// The id of the frame, if it has one that can be sent back.
pub(super) fn request_id(text: &str) -> Option<RequestId> {
    #[derive(Deserialize)]
    struct Named {
        id: Option<RequestId>,
    }
    let named: Named = serde_json::from_str(text).ok()?;
    named.id.filter(is_answerable)
}

fn is_answerable(id: &RequestId) -> bool {
    !matches!(id, RequestId::Text(text) if text.len() > REQUEST_ID_MAX_BYTES)
}

/// Whether what stands as a frame's id, if anything does, is one. Nothing is done for a frame whose answer
/// could not name it: whoever waits for that would ask again.
fn is_id(id: Option<&serde_json::Value>) -> bool {
    let id = id.map(Option::<RequestId>::deserialize);
    id.is_none_or(|id| id.is_ok_and(|id| id.as_ref().is_none_or(is_answerable)))
}

/// Why a frame is no [`Inbound`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadFrame {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Inbound {
    pub(super) fn parse(text: &str) -> Result<Self, BadFrame> {
        let bad = |code, message: String| BadFrame { code, message };
        let frame: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|error| {
                bad("invalid_json", {
                    format!("a frame is one JSON object: {}", without_text(&error.to_string()))
                })
            })?;
        if !is_id(frame.get("id")) {
            let what = format!(
                "id: must be a whole number, or a text of up to {REQUEST_ID_MAX_BYTES} bytes"
            );
            return Err(bad("invalid", what));
        }
        let event = frame.get("event").and_then(|event| event.as_str()).unwrap_or_default();
        let known: fn(serde_json::Value) -> Result<Self, serde_json::Error> = match event {
            "send_command" => |frame| serde_json::from_value(frame).map(SendCommand::into),
            "power" => |frame| serde_json::from_value(frame).map(Power::into),
            "request_logs" => |frame| serde_json::from_value(frame).map(RequestLogs::into),
            "auth" => |frame| serde_json::from_value(frame).map(Auth::into),
            _ => {
                let known = "event must be one of send_command, power, request_logs, auth";
                return Err(bad("unknown_event", known.to_owned()));
            }
        };
        let event = event.to_owned();
        let told = |error: serde_json::Error| without_text(&error.to_string());
        known(frame.into()).map_err(|error| bad("invalid", format!("{event}: {}", told(error))))
    }
}

// Each event's own fields. Further ones are passed over, so that a client may be newer than the node.

#[derive(Deserialize)]
struct SendCommand {
    command: String,
}

#[derive(Deserialize)]
struct Power {
    action: PowerAction,
}

#[derive(Deserialize)]
struct RequestLogs {
    lines: Option<u64>,
    since: Option<u64>,
}

#[derive(Deserialize)]
struct Auth {
    token: String,
}

impl From<SendCommand> for Inbound {
    fn from(frame: SendCommand) -> Self {
        Self::SendCommand { command: frame.command }
    }
}

impl From<Power> for Inbound {
    fn from(frame: Power) -> Self {
        Self::Power { action: frame.action }
    }
}

impl From<RequestLogs> for Inbound {
    fn from(frame: RequestLogs) -> Self {
        Self::RequestLogs { lines: frame.lines, since: frame.since }
    }
}

impl From<Auth> for Inbound {
    fn from(frame: Auth) -> Self {
        Self::Auth { token: frame.token }
    }
}

/// The events a client has subscribed to with `?events=`. Errors always arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) event: bool,
    pub(super) console: bool,
    pub(super) stats: bool,
    pub(super) daemon_message: bool,
    pub(super) operation: bool,
}

impl Subscription {
    const NONE: Self = Self {
        event: false,
        console: false,
        stats: false,
        daemon_message: false,
        operation: false,
    };
    pub(super) const ALL: Self =
        Self { event: true, console: true, stats: true, daemon_message: true, operation: true };

    /// Reads `console,event`; the error is the name that is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut chosen = Self::NONE;
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "event" => chosen.event = true,
                "console" => chosen.console = true,
                "stats" => chosen.stats = true,
                "daemon_message" => chosen.daemon_message = true,
                "operation" => chosen.operation = true,
                // These only ever answer a request.
                "logs" | "done" | "error" => {}
                unknown => return Err(unknown.to_owned()),
            }
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::StateName;
    use crate::domain::ids::RunId;
    use crate::domain::lifecycle::{EndedBy, RunTimes};
    use crate::domain::observed::Exit;
    use serde_json::json;

    fn json_of(frame: &Outbound<'_>) -> serde_json::Value {
        serde_json::from_str(&frame.text()).unwrap()
    }

    #[test]
    fn outbound_frames_are_those_of_the_contract() {
        let run = RunId(2);
        let event = |name| StateEvent { name, run, last_exit: None, ready_after_ms: None };
        let paused = event(StateName::Paused);
        assert_eq!(json_of(&Outbound::state(&paused)), json!({"event": "event", "data": "paused"}));
        let running = StateEvent { ready_after_ms: Some(70), ..event(StateName::Running) };
        assert_eq!(
            json_of(&Outbound::state(&running)),
            json!({"event": "event", "data": "running", "ready_after_ms": 70})
        );
        let exit = Exit { code: 137, oom_engine: true, oom_kernel: false, at_ms: 5_500 };
        let times = RunTimes { launched_at_ms: Some(2000), ready_at_ms: None };
        let last = LastExit { run, exit, ended_by: EndedBy::Itself, times, reason: None };
        let exit = StateEvent { last_exit: Some(last), ..event(StateName::Exit) };
        assert_eq!(
            json_of(&Outbound::state(&exit)),
            json!({
                "event": "event", "data": "exit", "exit_code": 137, "oom_killed": true,
                "signal": "SIGKILL", "ended_by": "itself", "uptime_s": 3,
            })
        );
        assert_eq!(
            json_of(&Outbound::Logs { data: "a\n", seq: 7, id: None }),
            json!({"event": "logs", "data": "a\n", "seq": 7})
        );
        assert_eq!(
            json_of(&Outbound::Error { data: "no", code: "stopping", id: None }),
            json!({"event": "error", "data": "no", "code": "stopping"})
        );
    }

    #[test]
    fn inbound_frames_are_read_and_what_is_wrong_is_named() {
        let parse = Inbound::parse;
        assert_eq!(
            parse(r#"{"event":"send_command","command":"say hi"}"#),
            Ok(Inbound::SendCommand { command: "say hi".to_owned() })
        );
        assert_eq!(
            parse(r#"{"event":"power","action":"kill"}"#),
            Ok(Inbound::Power { action: PowerAction::Kill })
        );
        assert_eq!(
            parse(r#"{"event":"request_logs","lines":50}"#),
            Ok(Inbound::RequestLogs { lines: Some(50), since: None })
        );
        let code = |text| parse(text).unwrap_err().code;
        assert_eq!(code("nope"), "invalid_json");
        assert_eq!(code("[1]"), "invalid_json");
        assert_eq!(code("{}"), "unknown_event");
        assert_eq!(code(r#"{"event":"reboot"}"#), "unknown_event");
        assert_eq!(code(r#"{"event":"send_command"}"#), "invalid");
        for id in [json!("x".repeat(129)), json!({}), json!(1.5), json!([])] {
            let frame = json!({"event": "send_command", "command": "a", "id": id}).to_string();
            let refused = Inbound::parse(&frame).map_err(|bad| bad.code);
            assert_eq!(refused.err(), Some("invalid"), "{frame}");
        }
        assert!(Inbound::parse(r#"{"event":"send_command","command":"a","id":null}"#).is_ok());
        assert_eq!(code(r#"{"event":"power","action":"explode"}"#), "invalid");
    }

    #[test]
    fn a_request_is_known_by_its_id() {
        let text = |text: &str| Some(RequestId::Text(text.to_owned()));
        assert_eq!(request_id(r#"{"id":"a-1"}"#), text("a-1"));
        assert_eq!(request_id(r#"{"event":7,"id":5}"#), Some(RequestId::Number(5)));
        for none in ["", "{}", r#"{"id":null}"#, r#"{"id":{}}"#, r#"{"id":1.5}"#] {
            assert_eq!(request_id(none), None, "{none}");
        }
        assert_eq!(request_id(&json!({"id": "x".repeat(129)}).to_string()), None);
        let done = Outbound::Done { id: &RequestId::Number(5) };
        assert_eq!(json_of(&done), json!({"event": "done", "id": 5}));
    }

    #[test]
    fn subscriptions_name_events() {
        let some = Subscription::parse("console,event").unwrap();
        assert!(some.console && some.event && !some.stats);
        assert_eq!(Subscription::parse("console,x"), Err("x".to_owned()));
    }
}
