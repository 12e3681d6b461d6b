//! `GET /ws/{id}`: a container's socket, from the upgrade to its task; and its like without one.
//!
//! Everything is decided before the upgrade, so that a refusal is an answer with a status. Each socket
//! is one task of [`Sockets`], which bounds how many there are, of one container and in all, and lets
//! shutdown wait for them: the HTTP server forgets a connection once it is upgraded. Event streams are
//! counted with them.

mod events;
mod feed;
mod frame;
mod requests;
mod session;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use serde::Deserialize;
use tokio_util::task::TaskTracker;
use utoipa::{IntoParams, OpenApi as _};
use utoipa_axum::routes;

use self::feed::Feed;
use self::frame::{ClientFrame, ServerFrame, Subscription};
use self::session::Session;
use super::auth::{Auth, StayingAuth};
use super::error::ApiError;
use super::extract::{Path, Query};
use super::openapi::Routes;
use super::openapi::params::ContainerPath;
use super::openapi::refusals::refusals;
use super::state::AppState;
use crate::config::Sockets as Caps;
use crate::console::Mark;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::supervisor::ContainerHandle;

/// The buffers of the protocol's implementation are 128 KiB each unless told otherwise: too much for
/// a socket that mostly sleeps.
const READ_BUFFER_BYTES: usize = 4 * 1024;
const WRITE_BUFFER_BYTES: usize = 16 * 1024;
/// What may wait in the write buffer: no more than one frame of console output can leave there.
const WRITE_BUFFER_MAX_BYTES: usize = 4 * 1024 * 1024;

pub(super) fn routes() -> Routes {
    #[derive(utoipa::OpenApi)]
    #[openapi(components(schemas(ServerFrame<'_>, ClientFrame)))]
    struct Frames;

    Routes::with_openapi(Frames::openapi()).routes(routes!(connect)).routes(routes!(events::stream))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ConnectQuery {
    /// Only these, with commas between them; all if it is left out. Errors always come. Without `event` there is no first frame
    /// that says where the console begins.
    #[param(example = "console,event")]
    events: Option<String>,
    /// Go on in the console behind this place; from now on if it is left out.
    since: Option<Mark>,
}

impl ConnectQuery {
    fn subscription(&self) -> Result<Subscription, ApiError> {
        let Some(names) = self.events.as_deref() else { return Ok(Subscription::ALL) };
        Subscription::parse(names)
            .map_err(|name| ApiError::field("?events", format!("{name} is no event that is sent")))
    }
}

refusals!(ConnectRefusals: CONTAINER; 400: "not_a_websocket"; 429: "too_many_sockets");

/// A container's socket: what happens to it goes out, what the client asks comes in.
///
/// Text frames, one JSON object each: lightd sends what `ServerFrame` says and takes what `ClientFrame` says. The present state comes
/// first. It ends with 4401 (the token, or the address), 4404 (deleted), 4409 (suspended), 1001 (lightd stops), 1002 (what came is no frame), 1007 (a text
/// that is not UTF-8), 1008 (a client that floods or is silent) or 1009 (a frame that is too large).
#[utoipa::path(
    get, path = "/ws/{id}", tag = "live",
    security(("token" = []), ("token_in_address" = [])),
    params(ContainerPath, ConnectQuery),
    extensions(
        ("x-frames-sent" = json!({"$ref": "#/components/schemas/ServerFrame"})),
        ("x-frames-taken" = json!({"$ref": "#/components/schemas/ClientFrame"})),
    ),
    responses((status = 101, description = "It is a WebSocket from here on"), ConnectRefusals),
)]
async fn connect(
    StayingAuth { auth, grant }: StayingAuth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<ConnectQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let handle = visible(&auth, &state, &id)?;
    let wants = query.subscription()?;
    let upgrade = upgrade.map_err(|rejection| {
        ApiError::malformed("not_a_websocket", "this address takes WebSocket connections only")
            .because(rejection)
    })?;
    let caps = state.config.current().sockets;
    let sockets = state.sockets.clone();
    let ticket = sockets.enter(&id, caps)?;
    let feed = Feed::new(state.clone(), handle.clone(), &auth, wants, query.since);
    let session = Session::new(state, handle, auth, caps.frames_per_second);
    let upgrade = upgrade
        .max_message_size(caps.frame_max_bytes)
        .max_frame_size(caps.frame_max_bytes)
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_MAX_BYTES);
    // Tracked from here on, not only once the upgrade is through.
    let tracked = sockets.tracker.token();
    Ok(upgrade.on_upgrade(async move |socket| {
        session.run(socket, feed, grant).await;
        drop((ticket, tracked));
    }))
}

/// The container, if this caller may see anything of it.
fn visible(auth: &Auth, state: &AppState, id: &ContainerId) -> Result<ContainerHandle, ApiError> {
    auth.container(state, id, Permission::ContainersRead)
        .or_else(|_| auth.container(state, id, Permission::ConsoleRead))
}

/// All sockets of this node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sockets {
    open: Arc<Mutex<HashMap<ContainerId, usize>>>,
    tracker: TaskTracker,
}

impl Sockets {
    /// Waits until every socket has ended. What ends them is the daemon's stop signal.
    pub(crate) async fn drained(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    fn enter(&self, container: &ContainerId, caps: Caps) -> Result<Ticket, ApiError> {
        let mut open = self.lock();
        let in_all: usize = open.values().sum();
        let here = open.get(container).copied().unwrap_or(0);
        if in_all >= caps.per_node || here >= caps.per_container {
            return Err(ApiError::too_many(
                "too_many_sockets",
                "too many sockets are open; close some first",
                Duration::from_secs(10),
            ));
        }
        open.insert(container.clone(), here + 1);
        drop(open);
        Ok(Ticket { sockets: self.clone(), container: container.clone() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open socket; it counts until this is dropped.
#[derive(Debug)]
struct Ticket {
    sockets: Sockets,
    container: ContainerId,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut open = self.sockets.lock();
        if let Some(count) = open.get_mut(&self.container) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.container);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CVE-2025-69199, by many sockets at once.
    #[test]
    fn sockets_are_bounded_by_container_and_in_all_and_count_while_they_live() {
        let caps =
            Caps { per_container: 3, per_node: 5, frame_max_bytes: 1024, frames_per_second: 1 };
        let sockets = Sockets::default();
        let [a, b, c] = ["a", "b", "c"].map(|id| ContainerId::parse(id).unwrap());
        let enter = |id: &ContainerId| sockets.enter(id, caps).map_err(|error| error.code());
        let mut tickets: Vec<Ticket> = (0..3).map(|_| enter(&a).unwrap()).collect();
        assert_eq!(enter(&a).unwrap_err(), "too_many_sockets");
        tickets.extend((0..2).map(|_| enter(&b).unwrap()));
        assert_eq!(enter(&c).unwrap_err(), "too_many_sockets");
        tickets.pop();
        assert!(enter(&c).is_ok(), "and is gone again");
        tickets.remove(0);
        assert!(enter(&a).is_ok());
        drop(tickets);
        assert!(sockets.lock().is_empty());
    }
}
