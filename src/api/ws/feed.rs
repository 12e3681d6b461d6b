//! What happens to a container, for one reader, as frames: the same for a WebSocket and an event stream.
//!
//! It holds positions, not queues: a line number in the console, the newest sample, the newest state. So
//! a slow reader costs nothing and slows nobody; it loses signals and is then told the present state
//! again. [`Feed::next`] may be dropped at any time and loses nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::ws::Utf8Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::frame::{Outbound, Subscription};
use super::wire::End;
use crate::api::auth::Auth;
use crate::api::native::operations;
use crate::api::state::AppState;
use crate::console::{Cursor, Delivery, Mark, Start};
use crate::domain::access::Permission;
use crate::domain::event::{Signal, SignalKind, StateEvent, StateName};
use crate::domain::ids::RunId;
use crate::domain::lifecycle::Phase;
use crate::domain::stats::Sample;
use crate::files::operation::OperationView;
use crate::supervisor::{ContainerHandle, Snapshot};

/// A frame for the reader.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) text: Utf8Bytes,
    /// Up to where the reader has the console with this.
    pub(super) mark: Option<Mark>,
}

pub(super) struct Feed {
    state: AppState,
    handle: ContainerHandle,
    auth: Auth,
    wants: Subscription,
    /// The last state that was sent, so that the one on connect is not told twice.
    told: Option<(StateName, RunId)>,
    ready: VecDeque<Frame>,
    end: Option<End>,
    sources: Sources,
}

/// Where the frames come from.
struct Sources {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    signals: broadcast::Receiver<Signal>,
    operations: broadcast::Receiver<OperationView>,
    console: Option<Cursor>,
    stats: Option<watch::Receiver<Option<Sample>>>,
}

enum Step {
    Snapshot(Option<Arc<Snapshot>>),
    Signal(Result<Signal, RecvError>),
    Operation(Result<OperationView, RecvError>),
    Console(Option<(Delivery, Mark)>),
    Stats(Option<Sample>),
}

impl Sources {
    async fn next(&mut self) -> Step {
        tokio::select! {
            changed = self.snapshots.changed() => {
                Step::Snapshot(changed.ok().map(|()| self.snapshots.borrow_and_update().clone()))
            }
            signal = self.signals.recv() => Step::Signal(signal),
            operation = self.operations.recv() => Step::Operation(operation),
            delivery = next_delivery(&mut self.console) => Step::Console(delivery),
            sample = next_sample(&mut self.stats) => Step::Stats(sample),
        }
    }
}

async fn next_delivery(console: &mut Option<Cursor>) -> Option<(Delivery, Mark)> {
    let Some(cursor) = console else { return std::future::pending().await };
    let delivery = cursor.next().await;
    if delivery.is_none() {
        *console = None;
        return None;
    }
    Some((delivery?, cursor.mark()))
}

async fn next_sample(stats: &mut Option<watch::Receiver<Option<Sample>>>) -> Option<Sample> {
    let Some(samples) = stats else { return std::future::pending().await };
    if samples.changed().await.is_err() {
        *stats = None;
        return None;
    }
    *samples.borrow_and_update()
}

impl Feed {
    /// Begins with the present state and the last sample.
    pub(super) fn new(
        state: AppState,
        handle: ContainerHandle,
        auth: &Auth,
        wants: Subscription,
        since: Option<Mark>,
    ) -> Self {
        let reads_console = wants.console && auth.may(Permission::ConsoleRead, handle.id());
        let from = since.map_or(Start::Now, Start::After);
        let sources = Sources {
            // Before the state is read, so that nothing falls in between.
            signals: state.supervisor.signals(),
            operations: state.operations.subscribe(),
            snapshots: handle.watch(),
            console: reads_console.then(|| handle.console().cursor(from)),
            stats: wants.stats.then(|| handle.watch_stats()),
        };
        let (ready, end) = (VecDeque::new(), None);
        let auth = auth.clone();
        let mut feed = Self { state, handle, auth, wants, told: None, ready, end, sources };
        feed.greet();
        feed
    }

    fn greet(&mut self) {
        let snapshot = self.sources.snapshots.borrow_and_update().clone();
        self.take_snapshot(&snapshot, true);
        if let Some(stats) = &mut self.sources.stats {
            let sample = *stats.borrow_and_update();
            self.take_sample(sample);
        }
    }

    /// Goes on for another caller, who may see less, or more from now on.
    pub(super) fn renew(&mut self, auth: &Auth) {
        self.auth = auth.clone();
        let reads_console =
            self.wants.console && auth.may(Permission::ConsoleRead, self.handle.id());
        let console = self.sources.console.take().filter(|_| reads_console);
        let from_now = || reads_console.then(|| self.handle.console().cursor(Start::Now));
        self.sources.console = console.or_else(from_now);
    }

    /// Where the reader is in the console, before it has got anything.
    pub(super) fn mark(&self) -> Option<Mark> {
        self.sources.console.as_ref().map(Cursor::mark)
    }

    /// The next frame, or why there will be none.
    pub(super) async fn next(&mut self) -> Result<Frame, End> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(frame);
            }
            if let Some(end) = self.end {
                return Err(end);
            }
            let step = self.sources.next().await;
            self.take(step);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            // The owner has left: with its container, or because lightd stops.
            Step::Snapshot(None) if self.state.stop.is_cancelled() => {
                self.end = Some(End::Stopping)
            }
            Step::Snapshot(None) => self.end = Some(End::Deleted),
            Step::Snapshot(Some(snapshot)) => self.take_snapshot(&snapshot, false),
            Step::Signal(Ok(signal)) => self.take_signal(&signal),
            // Signals were lost: what is true now is told again.
            Step::Signal(Err(_)) => self.take_snapshot(&self.handle.snapshot(), true),
            Step::Operation(Ok(seen)) => self.take_operation(&seen),
            // Only the newest progress counts, and that comes next.
            Step::Operation(Err(_)) | Step::Console(None) => {}
            Step::Console(Some((delivery, mark))) => self.take_delivery(delivery, mark),
            Step::Stats(sample) => self.take_sample(sample),
        }
    }

    fn send(&mut self, frame: &Outbound<'_>) {
        self.ready.push_back(Frame { text: frame.text(), mark: None });
    }

    /// Ends where the container has. The state itself is told on connect, after a loss, and where no
    /// signal tells it: when the engine goes and comes back.
    fn take_snapshot(&mut self, snapshot: &Snapshot, tell: bool) {
        let is_suspended = matches!(snapshot.phase, Phase::Suspended { .. });
        let was_unknown = self.told.is_some_and(|(name, _)| name == StateName::Unknown);
        let is_unknown = snapshot.unknown_since.is_some();
        if tell || is_suspended || was_unknown != is_unknown {
            self.tell_state(&present_state(snapshot));
        }
        if snapshot.deleted {
            self.end = Some(End::Deleted);
        } else if is_suspended {
            self.end = Some(End::Suspended);
        }
    }

    fn take_signal(&mut self, signal: &Signal) {
        if signal.container != *self.handle.id() {
            return;
        }
        match &signal.kind {
            SignalKind::State(event) => self.tell_state(event),
            SignalKind::DaemonMessage(data) if self.wants.daemon_message => {
                self.send(&Outbound::DaemonMessage { data });
            }
            SignalKind::DaemonMessage(_) => {}
        }
    }

    fn tell_state(&mut self, state: &StateEvent) {
        let key = (state.name, state.run);
        if self.told.replace(key) != Some(key) && self.wants.event {
            self.send(&Outbound::state(state));
        }
    }

    fn take_operation(&mut self, seen: &OperationView) {
        let is_here = seen.volume == self.handle.snapshot().spec.volume_id;
        let may_see = || self.auth.may(operations::may_see(seen.kind), self.handle.id());
        if self.wants.operation && is_here && may_see() {
            self.send(&Outbound::Operation(seen));
        }
    }

    fn take_sample(&mut self, sample: Option<Sample>) {
        if let Some(sample) = sample {
            self.send(&Outbound::Stats(&sample));
        }
    }

    fn take_delivery(&mut self, delivery: Delivery, mark: Mark) {
        let text = match delivery {
            Delivery::Lines(block) => Utf8Bytes::try_from(block.frame())
                .expect("invariant: a console frame is JSON, and so UTF-8"),
            Delivery::Gap { lines_lost } => {
                let data = format!("{lines_lost} lines of output are no longer there");
                Outbound::DaemonMessage { data: &data }.text()
            }
        };
        self.ready.push_back(Frame { text, mark: Some(mark) });
    }
}

fn present_state(snapshot: &Snapshot) -> StateEvent {
    let name = match snapshot.unknown_since {
        Some(_) => StateName::Unknown,
        None => {
            let has_run = snapshot.exit().is_some() || snapshot.start_error.is_some();
            snapshot.phase.event_name(has_run)
        }
    };
    StateEvent { name, run: snapshot.run, last_exit: None, ready_after_ms: None }
}
