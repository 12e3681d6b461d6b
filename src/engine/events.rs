//! The engine's events, as hints where to look.
//!
//! A hint is never the truth: events are lost while the connection is down and come late under load.
//! After each (re)connect, and when the engine is back after an outage, everybody is told to look.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper::Method;
use serde::Deserialize;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::error::EngineError;
use super::raw::{RawRequest, StreamedBody, broke, garbled};
use super::{Engine, labels, op};
use crate::util::backoff::Backoff;
use crate::util::chain::Chain;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Something happened to the container with this label `lightd.container`.
    Container(String),
    /// Something may have happened to any of them.
    LookAtAll,
}

/// The engine is asked for these only: among the others are each command run in a container, with all
/// its arguments.
const ACTIONS: [&str; 8] =
    ["start", "die", "oom", "pause", "unpause", "destroy", "rename", "update"];
const RECONNECT: Backoff =
    Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(5) };
/// One event; it carries the labels of its container.
const EVENT_MAX_BYTES: usize = 4 << 20;
const TARGET: &str = "the engine's events";

impl Engine {
    /// Sends hints until cancelled. That nobody listens is no error.
    pub(crate) async fn watch_events(
        &self,
        hints: broadcast::Sender<Hint>,
        cancel: CancellationToken,
    ) {
        let mut failures = 0;
        let mut last_nanos = None;
        loop {
            let listened = tokio::select! {
                () = cancel.cancelled() => return,
                listened = self.listen(&hints, &mut last_nanos, &mut failures) => listened,
            };
            if let Err(error) = listened
                && failures == 0
            {
                tracing::warn!(error = %Chain(&error), "lost the engine's events");
            }
            failures += 1;
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(RECONNECT.delay(failures)) => {}
            }
        }
    }

    async fn listen(
        &self,
        hints: &broadcast::Sender<Hint>,
        last_nanos: &mut Option<i64>,
        failures: &mut u32,
    ) -> Result<(), EngineError> {
        let mut health = self.health();
        let mut events = self.events(path(&of_node(self.node()), *last_nanos)).await?;
        *failures = 0;
        tell(hints, Hint::LookAtAll);
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event? else { return Ok(()) };
                    *last_nanos = event.time_nanos.or(*last_nanos);
                    if let Some(hint) = event.hint() {
                        tell(hints, hint);
                    }
                }
                // A stopped engine that goes on keeps its connections.
                Ok(()) = health.changed() => {
                    if health.borrow_and_update().is_reachable() {
                        tell(hints, Hint::LookAtAll);
                    }
                }
            }
        }
    }
}

fn tell(hints: &broadcast::Sender<Hint>, hint: Hint) {
    // It fails only when nobody listens.
    drop(hints.send(hint));
}

impl Engine {
    async fn events(&self, path: String) -> Result<Events, EngineError> {
        let request = RawRequest {
            op: op::EVENTS,
            target: TARGET.to_owned(),
            method: Method::GET,
            path,
            body: Bytes::new(),
        };
        Ok(Events { body: self.streamed(request).await?, buffer: BytesMut::new() })
    }
}

fn of_node(node: &str) -> serde_json::Value {
    serde_json::json!({
        "type": ["container"],
        "event": ACTIONS,
        "label": [format!("{}={node}", labels::NODE)],
    })
}

const SECOND: i64 = 1_000_000_000;

fn path(filters: &serde_json::Value, since: Option<i64>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("filters", &filters.to_string());
    if let Some(nanos) = since {
        let at = format!("{}.{:09}", nanos.div_euclid(SECOND), nanos.rem_euclid(SECOND));
        query.append_pair("since", &at);
    }
    format!("/events?{}", query.finish())
}

/// As much of an event as is of use. Decoded here and not by the library, which gives up at a word it
/// does not know.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "Actor", default)]
    actor: Actor,
    #[serde(rename = "timeNano")]
    time_nanos: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
struct Actor {
    #[serde(rename = "Attributes", default)]
    attributes: HashMap<String, String>,
}

impl Event {
    fn hint(mut self) -> Option<Hint> {
        self.actor.attributes.remove(labels::CONTAINER).map(Hint::Container)
    }
}

struct Events {
    body: StreamedBody,
    buffer: BytesMut,
}

impl Events {
    async fn next(&mut self) -> Result<Option<Event>, EngineError> {
        loop {
            if let Some(event) =
                take_event(&mut self.buffer).map_err(|why| garbled(op::EVENTS, TARGET, why))?
            {
                return Ok(Some(event));
            }
            match self.body.next().await.map_err(|fault| broke(op::EVENTS, TARGET, fault))? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

/// Takes the next whole line that is an event off the buffer.
fn take_event(buffer: &mut BytesMut) -> Result<Option<Event>, String> {
    while let Some(end) = buffer.iter().position(|&b| b == b'\n') {
        let line = buffer.split_to(end);
        buffer.advance(1);
        if !line.trim_ascii().is_empty() {
            return serde_json::from_slice(&line).map(Some).map_err(|why| why.to_string());
        }
    }
    if buffer.len() > EVENT_MAX_BYTES {
        return Err("an event without an end".to_owned());
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_names_node_and_time() {
        let path = path(&of_node("a b"), Some(1_500_000_000_000_000_001));
        assert!(path.starts_with("/events?filters=%7B%22event%22"), "{path}");
        assert!(path.contains("lightd.node%3Da+b"), "{path}");
        assert!(path.ends_with("&since=1500000000.000000001"), "{path}");
    }

    #[test]
    fn events_cut_anywhere_become_hints() {
        let json = r#"{"status":"die","id":"x","Type":"container","Action":"die","Actor":{"ID":"x","Attributes":{"lightd.container":"a","exitCode":"1"}},"scope":"local","time":1,"timeNano":5}"#;
        let mut buffer = BytesMut::new();
        for &byte in json.as_bytes() {
            buffer.extend_from_slice(&[byte]);
            assert!(take_event(&mut buffer).expect("no error").is_none());
        }
        buffer.extend_from_slice(b"\n\n");
        let event = take_event(&mut buffer).expect("no error").expect("an event");
        assert_eq!(event.time_nanos, Some(5));
        assert_eq!(event.hint(), Some(Hint::Container("a".to_owned())));
        assert!(take_event(&mut buffer).expect("no error").is_none());
    }

    #[test]
    fn what_is_no_event_is_an_error() {
        assert!(take_event(&mut BytesMut::from(&b"<html>\n"[..])).is_err());
    }
}
