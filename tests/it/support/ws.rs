//! A WebSocket client: what a browser console sees.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::SOON;

/// Frames that a failure shows.
const SHOWN: usize = 40;

#[derive(Debug)]
pub(crate) struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    url: String,
    recent: VecDeque<String>,
}

impl Socket {
    pub(crate) async fn open(url: &str) -> Self {
        let opened = Self::try_open(url).await;
        opened.unwrap_or_else(|(status, body)| panic!("{url} was refused: {status} {body}"))
    }

    /// The status and body of the refusal, if it is one.
    pub(crate) async fn try_open(url: &str) -> Result<Self, (u16, Value)> {
        let connected = timeout(SOON, tokio_tungstenite::connect_async(url)).await;
        match connected.unwrap_or_else(|_| panic!("{url}: no answer")) {
            Ok((stream, _)) => Ok(Self { stream, url: url.to_owned(), recent: VecDeque::new() }),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                let body = serde_json::from_slice(body).unwrap_or_default();
                Err((response.status().as_u16(), body))
            }
            Err(error) => panic!("{url}: {error}"),
        }
    }

    /// As a proxy passes it on for a client of this address.
    pub(crate) async fn open_for(url: &str, address: &str) -> Self {
        let mut request = url.into_client_request().expect("an address");
        request.headers_mut().insert("x-forwarded-for", address.parse().expect("a header"));
        let (stream, _) = tokio_tungstenite::connect_async(request).await.expect("a socket");
        Self { stream, url: url.to_owned(), recent: VecDeque::new() }
    }

    /// Where the other side may be gone, or refuse.
    pub(crate) async fn open_if_there(url: &str) -> Option<Self> {
        let (stream, _) = tokio_tungstenite::connect_async(url).await.ok()?;
        Some(Self { stream, url: url.to_owned(), recent: VecDeque::new() })
    }

    pub(crate) async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.send_message(Message::text(text)).await;
    }

    pub(crate) async fn send_message(&mut self, message: Message) {
        self.recent.push_back(format!("> {message}"));
        let sent = self.stream.send(message).await;
        sent.unwrap_or_else(|error| self.fail(&format!("cannot send: {error}")));
    }

    /// Sends where the other side may be gone.
    pub(crate) async fn try_send(&mut self, frame: Value) -> Result<(), tungstenite::Error> {
        self.stream.send(Message::text(frame.to_string())).await
    }

    /// The first frame that is looked for; `None` where the connection ends before.
    pub(crate) async fn try_expect(&mut self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let looking = async {
            loop {
                match self.receive().await {
                    Ok(frame) if wanted(&frame) => return Some(frame),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        timeout(SOON, looking).await.expect("a frame or the end in time")
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Value {
        self.expect("a frame", |_| true).await
    }

    /// The first frame from here that is looked for; those before it are passed over.
    pub(crate) async fn expect(&mut self, what: &str, wanted: impl FnMut(&Value) -> bool) -> Value {
        self.expect_within(SOON, what, wanted).await
    }

    pub(crate) async fn expect_within(
        &mut self,
        deadline: Duration,
        what: &str,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Value {
        let looking = async {
            loop {
                match self.receive().await {
                    Ok(frame) if wanted(&frame) => return frame,
                    Ok(_) => {}
                    Err(end) => {
                        self.fail(&format!("waited for {what}, but the socket closed: {end:?}"))
                    }
                }
            }
        };
        match timeout(deadline, looking).await {
            Ok(frame) => frame,
            Err(_) => self.fail(&format!("waited {deadline:?} for {what}")),
        }
    }

    /// An `event` frame with this state.
    pub(crate) async fn expect_state(&mut self, state: &str) -> Value {
        let what = format!("the state {state:?}");
        self.expect(&what, |frame| frame["event"] == "event" && frame["data"] == state).await
    }

    /// Console output until it holds this text; all of it, from where the socket stands.
    pub(crate) async fn expect_console(&mut self, text: &str) -> String {
        let mut seen = String::new();
        let what = format!("{text:?} on the console");
        self.expect(&what, |frame| {
            if frame["event"] == "console" {
                seen.push_str(frame["data"].as_str().unwrap_or_default());
            }
            seen.contains(text)
        })
        .await;
        seen
    }

    /// The code with which the other side closes; what comes before is passed over.
    pub(crate) async fn expect_close(&mut self) -> u16 {
        let reading = async {
            loop {
                if let Err(code) = self.receive().await {
                    return code;
                }
            }
        };
        match timeout(SOON, reading).await {
            Ok(Some(code)) => code,
            Ok(None) => self.fail("the socket ended without a close code"),
            Err(_) => self.fail("waited for the socket to be closed"),
        }
    }

    /// The next JSON frame, or the code with which it ended.
    pub(crate) async fn receive(&mut self) -> Result<Value, Option<u16>> {
        loop {
            let message = match self.stream.next().await {
                Some(Ok(message)) => message,
                Some(Err(_)) | None => return Err(None),
            };
            self.recent.push_back(format!("< {message:?}"));
            if self.recent.len() > SHOWN {
                self.recent.pop_front();
            }
            match message {
                Message::Text(text) => {
                    let frame = serde_json::from_str(&text);
                    return Ok(frame.unwrap_or_else(|_| self.fail("a frame is no JSON")));
                }
                Message::Close(close) => return Err(close.map(|close| close.code.into())),
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Binary(_) | Message::Frame(_) => self.fail("a frame is no text"),
            }
        }
    }

    fn fail(&self, why: &str) -> ! {
        let recent: Vec<&str> = self.recent.iter().map(String::as_str).collect();
        panic!("{}: {why}; last frames:\n{}", self.url, recent.join("\n"))
    }
}
