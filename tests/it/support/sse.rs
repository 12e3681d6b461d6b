//! A client of event streams: what a browser's `EventSource` sees, without its reconnecting.

use reqwest::Method;
use serde_json::Value;
use tokio::time::timeout;

use super::SOON;
use super::client::Client;

#[derive(Debug)]
pub(crate) struct EventStream {
    response: reqwest::Response,
    buffer: Vec<u8>,
    /// Of the last event that had one.
    pub(crate) last_id: Option<String>,
    /// Lines that are no event, as they came.
    pub(crate) others: Vec<String>,
}

impl EventStream {
    pub(crate) async fn open(client: &Client, path: &str, last_id: Option<&str>) -> Self {
        let opened = Self::try_open(client, path, last_id).await;
        opened.unwrap_or_else(|(status, body)| panic!("{path} was refused: {status} {body}"))
    }

    /// The status and body of the refusal, if it is one.
    pub(crate) async fn try_open(
        client: &Client,
        path: &str,
        last_id: Option<&str>,
    ) -> Result<Self, (u16, Value)> {
        let mut request = client.request(Method::GET, path);
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        if status != 200 {
            return Err((status, response.json().await.expect("a JSON refusal")));
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let (last_id, others) = (last_id.map(str::to_owned), Vec::new());
        Ok(Self { response, buffer: Vec::new(), last_id, others })
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            let end = self.buffer.windows(2).position(|pair| pair == b"\n\n");
            let Some(end) = end else {
                let chunk = timeout(SOON, self.response.chunk()).await.expect("an event in time");
                match chunk.expect("a whole chunk") {
                    Some(bytes) => self.buffer.extend_from_slice(&bytes),
                    None => return None,
                }
                continue;
            };
            let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let mut data = None;
            for line in String::from_utf8(block).expect("text").lines() {
                match line.split_once(": ") {
                    Some(("id", id)) => self.last_id = Some(id.to_owned()),
                    Some(("data", text)) => data = serde_json::from_str(text).ok(),
                    _ if line.is_empty() => {}
                    _ => self.others.push(line.to_owned()),
                }
            }
            if data.is_some() {
                return data;
            }
        }
    }

    /// The first event from here that is looked for; those before it are passed over.
    pub(crate) async fn expect(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Value {
        loop {
            let event = self.next().await;
            let event = event.unwrap_or_else(|| panic!("the stream ended before {what}"));
            if wanted(&event) {
                return event;
            }
        }
    }
}
