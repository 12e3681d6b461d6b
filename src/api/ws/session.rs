//! One socket's task: what happens to the container goes out, what the client asks comes in.
//!
//! The task holds positions, not queues: a line number in the console, the newest sample, the newest
//! state. So a slow reader costs nothing and slows nobody; it loses signals and is then told the present
//! state again. A request of the client runs beside the output, one at a time, and the next frame is
//! read when it is answered: a client that floods slows itself.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_tungstenite::tungstenite;

use super::frame::{Inbound, Outbound, Subscription};
use super::requests::{self, Budget, Reply, Work};
use super::wire::{self, End};
use crate::access::Grant;
use crate::api::auth::{Auth, StayingAuth};
use crate::api::state::AppState;
use crate::console::{Cursor, Delivery, Start};
use crate::domain::access::Permission;
use crate::domain::event::{Signal, SignalKind, StateEvent, StateName};
use crate::domain::ids::RunId;
use crate::domain::lifecycle::Phase;
use crate::domain::stats::Sample;
use crate::files::operation::OperationView;
use crate::supervisor::{ContainerHandle, Snapshot};

const PING_EVERY: Duration = Duration::from_secs(30);
const LIFE_SIGN_WITHIN: Duration = Duration::from_secs(60);

pub(super) struct Session {
    state: AppState,
    handle: ContainerHandle,
    auth: Auth,
    wants: Subscription,
    since: Option<u64>,
    /// The last state that was sent, so that the one on connect is not told twice.
    told: Option<(StateName, RunId)>,
    budget: Budget,
    heard_at: Instant,
}

/// Where this socket's output comes from.
struct Sources {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    signals: broadcast::Receiver<Signal>,
    operations: broadcast::Receiver<OperationView>,
    console: Option<Cursor>,
    stats: Option<watch::Receiver<Option<Sample>>>,
    ping: Interval,
}

/// What the task has to do next.
enum Step {
    Snapshot(Option<Arc<Snapshot>>),
    Signal(Result<Signal, RecvError>),
    Operation(Result<OperationView, RecvError>),
    Console(Option<Delivery>),
    Stats(Option<Sample>),
    Ping,
    Reply(Reply),
    In(Option<Result<Message, axum::Error>>),
}

impl Sources {
    /// What happens next. Nothing is lost when this is dropped before it answers.
    async fn next(&mut self) -> Step {
        tokio::select! {
            changed = self.snapshots.changed() => {
                Step::Snapshot(changed.ok().map(|()| self.snapshots.borrow_and_update().clone()))
            }
            signal = self.signals.recv() => Step::Signal(signal),
            operation = self.operations.recv() => Step::Operation(operation),
            delivery = next_delivery(&mut self.console) => Step::Console(delivery),
            sample = next_sample(&mut self.stats) => Step::Stats(sample),
            _ = self.ping.tick() => Step::Ping,
        }
    }
}

async fn next_delivery(console: &mut Option<Cursor>) -> Option<Delivery> {
    let Some(cursor) = console else { return std::future::pending().await };
    let delivery = cursor.next().await;
    if delivery.is_none() {
        *console = None;
    }
    delivery
}

async fn next_sample(stats: &mut Option<watch::Receiver<Option<Sample>>>) -> Option<Sample> {
    let Some(samples) = stats else { return std::future::pending().await };
    if samples.changed().await.is_err() {
        *stats = None;
        return None;
    }
    *samples.borrow_and_update()
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
        wants: Subscription,
        since: Option<u64>,
        frames_per_second: u32,
    ) -> Self {
        let now = Instant::now();
        Self {
            state,
            handle,
            auth,
            wants,
            since,
            told: None,
            budget: Budget::new(frames_per_second, now),
            heard_at: now,
        }
    }

    pub(super) async fn run(mut self, mut socket: WebSocket, grant: Grant) {
        let mut sources = self.sources();
        let stop = self.state.stop.clone();
        let greeted = tokio::select! {
            () = stop.cancelled() => Err(End::Stopping),
            greeted = self.greet(&mut socket, &mut sources) => greeted,
        };
        let end = match greeted {
            Ok(()) => self.serve(&mut socket, &mut sources, grant).await,
            Err(end) => end,
        };
        tracing::debug!(container.id = %self.handle.id(), ?end, "a socket ended");
        wire::close(socket, end).await;
    }

    fn sources(&self) -> Sources {
        let mut ping = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let from = self.since.map_or(Start::Now, Start::Since);
        let reads_console = self.wants.console && self.may(Permission::ConsoleRead);
        Sources {
            // Before the state is read, so that nothing falls in between.
            signals: self.state.supervisor.signals(),
            operations: self.state.operations.subscribe(),
            snapshots: self.handle.watch(),
            console: reads_console.then(|| self.handle.console().cursor(from)),
            stats: self.wants.stats.then(|| self.handle.watch_stats()),
            ping,
        }
    }

    fn may(&self, permission: Permission) -> bool {
        self.auth.may(permission, self.handle.id())
    }

    /// The present state, then the last sample.
    async fn greet(&mut self, socket: &mut WebSocket, sources: &mut Sources) -> Result<(), End> {
        let snapshot = sources.snapshots.borrow_and_update().clone();
        self.take_snapshot(socket, &snapshot, true).await?;
        if let Some(stats) = &mut sources.stats {
            let sample = *stats.borrow_and_update();
            send_sample(socket, sample).await?;
        }
        Ok(())
    }

    async fn serve(
        &mut self,
        socket: &mut WebSocket,
        sources: &mut Sources,
        mut grant: Grant,
    ) -> End {
        let mut work: Option<Work> = None;
        let stop = self.state.stop.clone();
        loop {
            let step = tokio::select! {
                () = stop.cancelled() => return End::Stopping,
                _ = grant.ended() => return End::Unauthorized,
                step = sources.next() => step,
                reply = finish(&mut work) => Step::Reply(reply),
                frame = socket.recv(), if work.is_none() => Step::In(frame),
            };
            if let Step::Reply(Reply::Renewed(renewed)) = step {
                StayingAuth { auth: self.auth, grant } = *renewed;
                sources.console.take_if(|_| !self.may(Permission::ConsoleRead));
                continue;
            }
            // A write may wait for a slow reader; what ends the socket does not.
            let taken = tokio::select! {
                () = stop.cancelled() => return End::Stopping,
                _ = grant.ended() => return End::Unauthorized,
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
            // The owner has left: with its container, or because lightd stops.
            Step::Snapshot(None) if self.state.stop.is_cancelled() => return Err(End::Stopping),
            Step::Snapshot(None) => return Err(End::Deleted),
            Step::Snapshot(Some(snapshot)) => self.take_snapshot(socket, &snapshot, false).await?,
            Step::Signal(Ok(signal)) => self.take_signal(socket, signal).await?,
            // Signals were lost: what is true now is told again.
            Step::Signal(Err(_)) => {
                let snapshot = self.handle.snapshot();
                self.take_snapshot(socket, &snapshot, true).await?;
            }
            Step::Operation(Ok(seen)) => self.take_operation(socket, &seen).await?,
            // Only the newest progress counts, and that comes next.
            Step::Operation(Err(_)) => {}
            Step::Console(delivery) => send_delivery(socket, delivery).await?,
            Step::Stats(sample) => send_sample(socket, sample).await?,
            Step::Reply(Reply::Frame(text)) => wire::send(socket, Message::Text(text)).await?,
            Step::Reply(Reply::Done | Reply::Renewed(_)) => {}
            Step::Ping => {
                if self.heard_at.elapsed() > LIFE_SIGN_WITHIN {
                    return Err(End::Silent);
                }
                wire::send(socket, Message::Ping(axum::body::Bytes::new())).await?;
            }
        }
        Ok(None)
    }

    /// Ends the socket where the container has. The state itself is told on connect, after a loss, and
    /// where no signal tells it: when the engine goes and comes back.
    async fn take_snapshot(
        &mut self,
        socket: &mut WebSocket,
        snapshot: &Snapshot,
        tell: bool,
    ) -> Result<(), End> {
        let is_suspended = matches!(snapshot.phase, Phase::Suspended { .. });
        let was_unknown = self.told.is_some_and(|(name, _)| name == StateName::Unknown);
        let is_unknown = snapshot.unknown_since.is_some();
        if tell || is_suspended || was_unknown != is_unknown {
            self.tell_state(socket, &present_state(snapshot)).await?;
        }
        if snapshot.deleted {
            return Err(End::Deleted);
        }
        if is_suspended { Err(End::Suspended) } else { Ok(()) }
    }

    async fn take_signal(&mut self, socket: &mut WebSocket, signal: Signal) -> Result<(), End> {
        if signal.container != *self.handle.id() {
            return Ok(());
        }
        let text = match &signal.kind {
            SignalKind::State(event) => return self.tell_state(socket, event).await,
            SignalKind::DaemonMessage(data) if self.wants.daemon_message => {
                Outbound::DaemonMessage { data }.text()
            }
            SignalKind::DaemonMessage(_) => return Ok(()),
        };
        wire::send(socket, Message::Text(text)).await
    }

    async fn take_operation(
        &mut self,
        socket: &mut WebSocket,
        seen: &OperationView,
    ) -> Result<(), End> {
        if !self.wants.operation || seen.volume != self.handle.snapshot().spec.volume_id {
            return Ok(());
        }
        wire::send(socket, Message::Text(Outbound::Operation(seen).text())).await
    }

    async fn tell_state(&mut self, socket: &mut WebSocket, state: &StateEvent) -> Result<(), End> {
        let key = (state.name, state.run);
        if self.told == Some(key) {
            return Ok(());
        }
        self.told = Some(key);
        if !self.wants.event {
            return Ok(());
        }
        wire::send(socket, Message::Text(Outbound::state(state).text())).await
    }

    async fn take_frame(
        &mut self,
        socket: &mut WebSocket,
        frame: Option<Result<Message, axum::Error>>,
    ) -> Result<Option<Work>, End> {
        let message = match frame {
            None => return Err(End::Gone),
            Some(Ok(Message::Close(_))) => return Err(End::Left),
            Some(Err(error)) if is_too_large(&error) => return Err(End::FrameTooLarge),
            Some(Err(_)) => return Err(End::Gone),
            Some(Ok(message)) => message,
        };
        self.heard_at = Instant::now();
        if !self.budget.allows(self.heard_at) {
            if self.budget.is_flooded() {
                return Err(End::Flood);
            }
            refuse(socket, "too many frames; slow down", "rate_limited").await?;
            return Ok(None);
        }
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => {
                refuse(socket, "frames are JSON texts", "invalid_json").await?;
                return Ok(None);
            }
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => return Ok(None),
        };
        match Inbound::parse(&text) {
            Ok(request) => {
                let (state, handle) = (self.state.clone(), self.handle.clone());
                Ok(Some(requests::work(request, &self.auth, state, handle)))
            }
            Err(bad) => {
                refuse(socket, &bad.message, bad.code).await?;
                Ok(None)
            }
        }
    }
}

async fn refuse(socket: &mut WebSocket, data: &str, code: &'static str) -> Result<(), End> {
    wire::send(socket, Message::Text(Outbound::Error { data, code }.text())).await
}

async fn send_sample(socket: &mut WebSocket, sample: Option<Sample>) -> Result<(), End> {
    let Some(sample) = sample else { return Ok(()) };
    wire::send(socket, Message::Text(Outbound::Stats(&sample).text())).await
}

async fn send_delivery(socket: &mut WebSocket, delivery: Option<Delivery>) -> Result<(), End> {
    let text = match delivery {
        None => return Ok(()),
        Some(Delivery::Lines(block)) => Utf8Bytes::try_from(block.frame())
            .expect("invariant: a console frame is JSON, and so UTF-8"),
        Some(Delivery::Gap { lines_lost }) => {
            let data = format!("{lines_lost} lines of output are no longer there");
            Outbound::DaemonMessage { data: &data }.text()
        }
    };
    wire::send(socket, Message::Text(text)).await
}

fn present_state(snapshot: &Snapshot) -> StateEvent {
    let name = match snapshot.unknown_since {
        Some(_) => StateName::Unknown,
        None => snapshot.phase.event_name(snapshot.last_exit.is_some()),
    };
    StateEvent { name, run: snapshot.run, exit_code: None, oom_killed: None }
}

/// Whether a frame was over the limit: axum's error holds the protocol's.
fn is_too_large(error: &axum::Error) -> bool {
    let source = std::error::Error::source(error);
    let protocol = source.and_then(|source| source.downcast_ref::<tungstenite::Error>());
    matches!(protocol, Some(tungstenite::Error::Capacity(_)))
}
