//! One socket's task: what happens to the container goes out, what the client asks comes in.
//!
//! A request of the client runs beside the output, one at a time, and the next frame is read when it is
//! answered: a client that floods slows itself.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_tungstenite::tungstenite;

use super::feed::{Feed, Frame};
use super::frame::{Inbound, Outbound, RequestId, request_id};
use super::requests::{self, Budget, Reply, Work};
use super::wire::{self, End};
use crate::access::Grant;
use crate::api::auth::{Auth, StayingAuth};
use crate::api::state::AppState;
use crate::supervisor::ContainerHandle;

const PING_EVERY: Duration = Duration::from_secs(30);
const LIFE_SIGN_WITHIN: Duration = Duration::from_secs(60);

pub(super) struct Session {
    state: AppState,
    handle: ContainerHandle,
    auth: Auth,
    budget: Budget,
    heard_at: Instant,
    ping: Interval,
}

/// What the task has to do next.
enum Step {
    Out(Result<Frame, End>),
    Ping,
    Reply(Reply),
    In(Option<Result<Message, axum::Error>>),
}

async fn finish(work: &mut Option<Work>) -> Reply {
    let Some(running) = work else { return std::future::pending().await };
    let reply = running.await;
    *work = None;
    reply
}

impl Session {
    pub(super) fn new(
        state: AppState,
        handle: ContainerHandle,
        auth: Auth,
        frames_per_second: u32,
    ) -> Self {
        let now = Instant::now();
        let mut ping = tokio::time::interval_at(now + PING_EVERY, PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let budget = Budget::new(frames_per_second, now);
        Self { state, handle, auth, budget, heard_at: now, ping }
    }

    pub(super) async fn run(mut self, mut socket: WebSocket, feed: Feed, grant: Grant) {
        let end = self.serve(&mut socket, feed, grant).await;
        tracing::debug!(container.id = %self.handle.id(), ?end, "a socket ended");
        wire::close(socket, end).await;
    }

    async fn serve(&mut self, socket: &mut WebSocket, mut feed: Feed, mut grant: Grant) -> End {
        let mut work: Option<Work> = None;
        let stop = self.state.stop.clone();
        loop {
            let step = tokio::select! {
                () = stop.cancelled() => return End::Stopping,
                why = grant.ended() => return End::of(why),
                frame = feed.next() => Step::Out(frame),
                _ = self.ping.tick() => Step::Ping,
                reply = finish(&mut work) => Step::Reply(reply),
                frame = socket.recv(), if work.is_none() => Step::In(frame),
            };
            let step = match step {
                Step::Reply(Reply::Renewed(renewed, id)) => {
                    StayingAuth { auth: self.auth, grant } = *renewed;
                    feed.renew(&self.auth);
                    let Some(id) = id else { continue };
                    Step::Reply(Reply::Frame(Outbound::Done { id: &id }.text()))
                }
                step => step,
            };
            // A write may wait for a slow reader; what ends the socket does not.
            let taken = tokio::select! {
                () = stop.cancelled() => return End::Stopping,
                why = grant.ended() => return End::of(why),
                taken = self.take(socket, step) => taken,
            };
            match taken {
                Ok(None) => {}
                Ok(begun) => work = begun,
                Err(end) => return end,
            }
        }
    }

    /// Does one step; a request of the client comes back as work to run beside the rest.
    async fn take(&mut self, socket: &mut WebSocket, step: Step) -> Result<Option<Work>, End> {
        match step {
            Step::In(frame) => return self.take_frame(socket, frame).await,
            Step::Out(frame) => wire::send(socket, Message::Text(frame?.text)).await?,
            Step::Reply(Reply::Frame(text)) => wire::send(socket, Message::Text(text)).await?,
            Step::Reply(Reply::Done | Reply::Renewed(..)) => {}
            Step::Ping => {
                if self.heard_at.elapsed() > LIFE_SIGN_WITHIN {
                    return Err(End::Silent);
                }
                wire::send(socket, Message::Ping(axum::body::Bytes::new())).await?;
            }
        }
        Ok(None)
    }

    async fn take_frame(
        &mut self,
        socket: &mut WebSocket,
        frame: Option<Result<Message, axum::Error>>,
    ) -> Result<Option<Work>, End> {
        let message = match frame {
            None => return Err(End::Gone),
            Some(Ok(Message::Close(_))) => return Err(End::Left),
            Some(Err(error)) => return Err(end_by(&error)),
            Some(Ok(message)) => message,
        };
        self.heard_at = Instant::now();
        if !self.budget.allows(self.heard_at) {
            if self.budget.is_flooded() {
                return Err(End::Flood);
            }
            let id = message.to_text().ok().and_then(request_id);
            refuse(socket, "too many frames; slow down", "rate_limited", id.as_ref()).await?;
            return Ok(None);
        }
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => {
                refuse(socket, "frames are JSON texts", "invalid_json", None).await?;
                return Ok(None);
            }
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => return Ok(None),
        };
        let id = request_id(&text);
        match Inbound::parse(&text) {
            Ok(request) => {
                // A socket that goes on with another token acts for that one's holder.
                let (state, handle) =
                    (self.state.clone(), self.handle.clone().by(self.auth.actor()));
                Ok(Some(requests::work(request, id, &self.auth, state, handle)))
            }
            Err(bad) => {
                refuse(socket, &bad.message, bad.code, id.as_ref()).await?;
                Ok(None)
            }
        }
    }
}

async fn refuse(
    socket: &mut WebSocket,
    data: &str,
    code: &'static str,
    id: Option<&RequestId>,
) -> Result<(), End> {
    wire::send(socket, Message::Text(Outbound::Error { data, code, id }.text())).await
}

/// What the other side did wrong, if it is not just gone: axum's error holds the protocol's.
fn end_by(error: &axum::Error) -> End {
    use tungstenite::error::{Error, ProtocolError};
    let source = std::error::Error::source(error);
    match source.and_then(|source| source.downcast_ref::<Error>()) {
        Some(Error::Capacity(_)) => End::FrameTooLarge,
        Some(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => End::Gone,
        Some(Error::Protocol(_)) => End::BadProtocol,
        Some(Error::Utf8(_)) => End::BadText,
        _ => End::Gone,
    }
}
