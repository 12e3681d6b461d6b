//! What a client asks for on its socket, and how often it may.
//!
//! A request is a future that owns what it needs, so that the container's output goes on while it is
//! answered. A refusal is an `error` event with the code that the same refusal has over REST.

use std::future::Future;
use std::pin::Pin;

use axum::extract::ws::Utf8Bytes;
use tokio::time::Instant;

use super::frame::{Inbound, Outbound, PowerAction, RequestId};
use crate::api::auth::{Auth, StayingAuth};
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::console::Query;
use crate::domain::access::Permission;
use crate::domain::client::ClientAddress;
use crate::domain::lifecycle::Command;
use crate::supervisor::{ContainerHandle, Request};

const LOG_LINES_DEFAULT: usize = 100;
pub(in crate::api) const LOG_LINES_MAX: usize = 10_000;

pub(super) type Work = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// What a request comes to.
pub(super) enum Reply {
    Done,
    Frame(Utf8Bytes),
    /// The socket goes on with this, and whoever asked for it waits to hear so.
    Renewed(Box<StayingAuth>, Option<RequestId>),
}

/// The request as work to do; one that is not permitted is a refusal already.
pub(super) fn work(
    request: Inbound,
    id: Option<RequestId>,
    auth: &Auth,
    state: AppState,
    handle: ContainerHandle,
) -> Work {
    let needed = match &request {
        Inbound::SendCommand { .. } => Some(Permission::ConsoleWrite),
        Inbound::Power { .. } => Some(Permission::Power),
        Inbound::RequestLogs { .. } => Some(Permission::ConsoleRead),
        Inbound::Auth { .. } => None,
    };
    if needed.is_some_and(|permission| !auth.may(permission, handle.id())) {
        return Box::pin(std::future::ready(refused(&ApiError::scope(), id.as_ref())));
    }
    let client = auth.client();
    Box::pin(async move {
        let done = match request {
            Inbound::SendCommand { command } => send_command(&handle, command).await,
            Inbound::Power { action } => power(&handle, action).await,
            Inbound::RequestLogs { lines, since } => logs(&handle, lines, since, id.as_ref()).await,
            Inbound::Auth { token } => renew(&state, &handle, &token, client).await,
        };
        match (done, id) {
            (Ok(Reply::Done), Some(id)) => Reply::Frame(Outbound::Done { id: &id }.text()),
            (Ok(Reply::Renewed(renewed, _)), id) => Reply::Renewed(renewed, id),
            (Ok(reply), _) => reply,
            (Err(error), id) => refused(&error, id.as_ref()),
        }
    })
}

async fn send_command(handle: &ContainerHandle, command: String) -> Result<Reply, ApiError> {
    handle.write_input(command).await?;
    Ok(Reply::Done)
}

async fn power(handle: &ContainerHandle, action: PowerAction) -> Result<Reply, ApiError> {
    let command = match action {
        PowerAction::Start => Command::Start,
        PowerAction::Stop => Command::Stop,
        PowerAction::Kill => Command::Kill,
        PowerAction::Restart => Command::Restart,
    };
    handle.send(Request::Command(command)).await?;
    Ok(Reply::Done)
}

async fn logs(
    handle: &ContainerHandle,
    lines: Option<u64>,
    since: Option<u64>,
    id: Option<&RequestId>,
) -> Result<Reply, ApiError> {
    let lines = lines.map_or(LOG_LINES_DEFAULT, |lines| {
        usize::try_from(lines).unwrap_or(LOG_LINES_MAX).min(LOG_LINES_MAX)
    });
    let query = Query { lines, since, ..Query::default() };
    let history = handle.console().history(query).await;
    let frame = Outbound::Logs { data: &history.text, seq: history.last_seq, id };
    Ok(Reply::Frame(frame.text()))
}

/// Carries on with another token, if it is good for this container.
async fn renew(
    state: &AppState,
    handle: &ContainerHandle,
    token: &str,
    client: ClientAddress,
) -> Result<Reply, ApiError> {
    let renewed = StayingAuth::check(state, Some(token), client).await?;
    let sees = [Permission::ContainersRead, Permission::ConsoleRead];
    if !sees.into_iter().any(|permission| renewed.auth.may(permission, handle.id())) {
        return Err(ApiError::scope());
    }
    Ok(Reply::Renewed(Box::new(renewed), None))
}

fn refused(error: &ApiError, id: Option<&RequestId>) -> Reply {
    if let Some(cause) = error.cause() {
        tracing::warn!(code = error.code(), cause, "a socket's request failed");
    }
    Reply::Frame(Outbound::Error { data: error.message(), code: error.code(), id }.text())
}

/// So many seconds' frames may come at once.
const BURST_SECONDS: f64 = 3.0;
/// A client that has so many more refused than taken is cut off.
const FRAMES_REFUSED_MAX: u32 = 200;

/// How many frames a client may still send.
#[derive(Debug)]
pub(super) struct Budget {
    per_second: f64,
    left: f64,
    at: Instant,
    refused: u32,
}

impl Budget {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second * BURST_SECONDS, at: now, refused: 0 }
    }

    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + earned).min(self.per_second * BURST_SECONDS);
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            self.refused = self.refused.saturating_sub(1);
            return true;
        }
        self.refused += 1;
        false
    }

    pub(super) fn is_flooded(&self) -> bool {
        self.refused > FRAMES_REFUSED_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn frames_are_budgeted_and_a_flood_is_seen_as_one() {
        let start = Instant::now();
        let mut budget = Budget::new(20, start);
        let passed = (0..100).filter(|_| budget.allows(start)).count();
        assert_eq!(passed, 60);
        assert!(!budget.is_flooded());
        assert!(budget.allows(start + Duration::from_secs(1)), "it comes back with time");
        let later = start + Duration::from_secs(1);
        let refused = (0..1000).filter(|_| !budget.allows(later)).count();
        assert!(refused > 900);
        assert!(budget.is_flooded());
    }
}
