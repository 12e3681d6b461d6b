//! The whole node in one answer, so that a panel that was away can set itself right.
//!
//! All that is stored is read in one transaction: a container's state goes together with `last_sequence`,
//! the number of the newest update that it contains, so that a panel knows of each update whether it is
//! older than what it has just read. What is not stored (the engine's health, generations, how full volumes
//! are) is looked at before, and so is never newer than that.
//!
//! One answer is made at a time, and its size is that of what the node holds: about 1 KB for each container.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::container_view::{ExitView, PortView, RestartsView, ports};
use super::content_headers::Tags;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::openapi::Routes;
use crate::api::openapi::schemas::{ContainerState, DesiredState, InstallState};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::spec::{Limits, PortBinding};
use crate::domain::units::UnixSeconds;
use crate::engine::Health;
use crate::store::containers::ContainerFilter;
use crate::store::outbox::OutboxDepth;
use crate::store::volumes::VolumeRow;
use crate::store::{Read, StoreError};
use crate::supervisor::Snapshot;

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(snapshot))
}

/// How long volumes are counted for one answer; the others are told as they were last counted.
const COUNT_WITHIN: Duration = Duration::from_secs(1);
const COUNTED_AT_ONCE: usize = 4;

/// What this run of lightd keeps for snapshots.
#[derive(Debug)]
pub(crate) struct SyncState {
    /// Another one after each start: generations count within it.
    boot_id: Uuid,
    turn: Semaphore,
}

impl Default for SyncState {
    fn default() -> Self {
        Self { boot_id: Uuid::new_v4(), turn: Semaphore::new(1) }
    }
}

/// Which lightd this is, and when it was asked.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NodeIdentity)]
struct NodeView {
    /// As in the header `X-Lightd-Node`.
    id: Uuid,
    version: &'static str,
    /// Another one after each start of lightd; a container's `generation` counts within it.
    boot_id: Uuid,
    taken_at: UnixSeconds,
    /// Seconds.
    uptime: u64,
}

/// Whether the container engine answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NodeEngine)]
struct EngineView {
    /// `reachable` or `unreachable`.
    #[schema(example = "reachable")]
    state: &'static str,
    since: UnixSeconds,
    #[schema(required)]
    version: Option<String>,
}

impl From<&Health> for EngineView {
    fn from(health: &Health) -> Self {
        match health {
            Health::Reachable { version, since, .. } => {
                Self { state: "reachable", since: *since, version: Some(version.clone()) }
            }
            Health::Unreachable { since, .. } => {
                Self { state: "unreachable", since: *since, version: None }
            }
        }
    }
}

/// What the panel has not taken yet.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NodeOutbox)]
struct OutboxView {
    waiting: u64,
    parked: u64,
    #[schema(required)]
    oldest_at: Option<UnixSeconds>,
}

impl From<OutboxDepth> for OutboxView {
    fn from(depth: OutboxDepth) -> Self {
        Self { waiting: depth.waiting, parked: depth.parked, oldest_at: depth.oldest_at }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NodeVolume)]
struct VolumeView {
    id: VolumeId,
    #[schema(required)]
    name: Option<String>,
    /// In bytes; `null` for no limit.
    #[schema(required)]
    size: Option<u64>,
    /// In bytes; `null` where it was not counted yet.
    #[schema(required)]
    used: Option<u64>,
    created_at: UnixSeconds,
    /// The containers that use it.
    containers: Vec<ContainerId>,
}

/// What a panel has to know of a container that it has specified itself.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NodeContainer)]
struct SeenContainer<'a> {
    internal_id: &'a ContainerId,
    #[schema(required)]
    container_id: Option<&'a str>,
    #[schema(value_type = ContainerState)]
    state: &'static str,
    #[schema(value_type = DesiredState)]
    desired_state: &'static str,
    #[schema(value_type = InstallState)]
    install_state: &'static str,
    #[schema(required)]
    install_error: Option<&'a str>,
    #[schema(required)]
    start_error: Option<&'a str>,
    /// Of the latest run that has ended.
    #[schema(required)]
    last_exit: Option<ExitView<'a>>,
    restarts: RestartsView,
    restart_needed: bool,
    image: &'a str,
    volume_id: VolumeId,
    #[serde(serialize_with = "ports")]
    #[schema(value_type = Vec<PortView>)]
    ports: &'a [PortBinding],
    limits: &'a Limits,
    #[schema(required)]
    started_at: Option<UnixSeconds>,
    #[schema(required)]
    ready_at: Option<UnixSeconds>,
    created_at: UnixSeconds,
    updated_at: UnixSeconds,
    #[schema(required)]
    unknown_since: Option<UnixSeconds>,
    /// Grows with every change while `boot_id` is the same.
    generation: u64,
    /// The `X-Lightd-Sequence` of the newest update that this state contains; 0 if there was none.
    last_sequence: i64,
}

impl<'a> SeenContainer<'a> {
    fn new(snapshot: &'a Snapshot, last_sequence: i64) -> Self {
        let spec = &*snapshot.spec;
        Self {
            internal_id: &snapshot.id,
            container_id: snapshot.docker_id.as_deref(),
            state: snapshot.state_name(),
            desired_state: if snapshot.wanted_up { "running" } else { "offline" },
            install_state: snapshot.phase.install_state(),
            install_error: snapshot.phase.install_error(),
            start_error: snapshot.start_error.as_deref(),
            last_exit: snapshot.last_exit.as_ref().map(ExitView::from),
            restarts: RestartsView::from(&snapshot.restarts),
            restart_needed: snapshot.restart_needed,
            image: &spec.image,
            volume_id: spec.volume_id,
            ports: &snapshot.ports,
            limits: &spec.limits,
            started_at: snapshot.started_at,
            ready_at: snapshot.times.ready_at_ms.map(UnixSeconds::from_ms),
            created_at: snapshot.created_at,
            updated_at: snapshot.updated_at,
            unknown_since: snapshot.unknown_since,
            generation: snapshot.generation,
            last_sequence,
        }
    }
}

/// How the whole answer looks. It is written from its parts, so none of these is made.
#[derive(ToSchema)]
#[schema(as = NodeSnapshot)]
#[expect(dead_code, reason = "only its description is used")]
struct SnapshotView<'a> {
    node: NodeView,
    engine: EngineView,
    outbox: OutboxView,
    /// The oldest first.
    volumes: Vec<VolumeView>,
    /// By name.
    containers: Vec<SeenContainer<'a>>,
}

/// Shows the whole node in one answer, for a panel that was away.
///
/// Each container's state goes together with `last_sequence`: an update whose `X-Lightd-Sequence` is no higher is older than
/// what is shown here. It wants the permissions `node` and `containers.read`, for all containers.
#[utoipa::path(
    get, path = "/sync/snapshot", tag = "remote",
    params(("If-None-Match" = Option<String>, Header, description = "Tags: 304 if nothing but the time is different")),
    responses(
        (status = 200, description = "Everything", body = SnapshotView,
         headers(("ETag" = String, description = "Of all but the time"))),
        (status = 304, description = "It is what the caller has", headers(("ETag" = String, description = "Of all but the time"))),
    ),
)]
async fn snapshot(
    auth: Auth,
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    auth.require(Permission::Node)?;
    auth.require(Permission::ContainersRead)?;
    let members = {
        let _turn = state.sync.turn.acquire().await.map_err(ApiError::internal)?;
        read_members(&state).await?
    };
    let etag = etag_of(&state, &members);
    let tag = HeaderValue::try_from(format!("W/\"{etag}\"")).map_err(ApiError::internal)?;
    let cache = HeaderValue::from_static("private, no-cache");
    let head = [(header::ETAG, tag), (header::CACHE_CONTROL, cache)];
    let known = headers.get(header::IF_NONE_MATCH);
    if known.is_some_and(|known| Tags::read(known).hold_weakly(&etag)) {
        return Ok((StatusCode::NOT_MODIFIED, head).into_response());
    }
    let node = json(&NodeView {
        id: state.store.node_id(),
        version: env!("CARGO_PKG_VERSION"),
        boot_id: state.sync.boot_id,
        taken_at: UnixSeconds::now(),
        uptime: state.began.elapsed().as_secs(),
    });
    let json_type = HeaderValue::from_static("application/json");
    let body = object([("node", node)].into_iter().chain(members));
    Ok((head, [(header::CONTENT_TYPE, json_type)], body).into_response())
}

type Members = [(&'static str, Vec<u8>); 4];

/// All but the node itself, as JSON. What is not stored comes first, so that it is never newer.
async fn read_members(state: &AppState) -> Result<Members, ApiError> {
    let engine = json(&EngineView::from(&*state.engine_health.borrow()));
    let live = live_snapshots(state);
    let used = used_bytes(state).await?;
    let read = move |rx: &Read<'_>| Stored::read(rx, &live, &used);
    let stored = state.store.read("take a snapshot", read).await?;
    Ok([
        ("engine", engine),
        ("outbox", stored.outbox),
        ("volumes", stored.volumes),
        ("containers", stored.containers),
    ])
}

/// What the owners have published.
fn live_snapshots(state: &AppState) -> HashMap<ContainerId, Arc<Snapshot>> {
    let handles = state.supervisor.list();
    handles.iter().map(|handle| (handle.id().clone(), handle.snapshot())).collect()
}

/// How full the volumes are, as far as that can be told soon.
async fn used_bytes(state: &AppState) -> Result<HashMap<VolumeId, u64>, ApiError> {
    let rows = state.store.read("list the volumes", |rx| rx.volumes()).await?;
    let ids: Vec<VolumeId> = rows.into_iter().map(|row| row.id).collect();
    let count = async |id| (id, state.files.used_bytes(id).await);
    let mut counted: HashMap<VolumeId, u64> = HashMap::new();
    let counting = futures_util::stream::iter(ids.iter().copied())
        .map(count)
        .buffer_unordered(COUNTED_AT_ONCE)
        .take_until(tokio::time::sleep(COUNT_WITHIN));
    tokio::pin!(counting);
    while let Some((id, used)) = counting.next().await {
        counted.extend(used.map(|used| (id, used)));
    }
    for id in &ids {
        if !counted.contains_key(id) {
            counted.extend(state.files.last_used_bytes(*id).map(|used| (*id, used)));
        }
    }
    Ok(counted)
}

/// What one transaction has seen, as JSON.
struct Stored {
    outbox: Vec<u8>,
    volumes: Vec<u8>,
    containers: Vec<u8>,
}

impl Stored {
    fn read(
        rx: &Read<'_>,
        live: &HashMap<ContainerId, Arc<Snapshot>>,
        used: &HashMap<VolumeId, u64>,
    ) -> Result<Self, StoreError> {
        let outbox = json(&OutboxView::from(rx.outbox_depth()?));
        let sequences: HashMap<ContainerId, i64> = rx.last_sequences()?.into_iter().collect();
        let mut containers = List::default();
        rx.each_container(&ContainerFilter::default(), |row| {
            let last_sequence = sequences.get(&row.id).copied().unwrap_or(0);
            let live = live.get(&row.id).map(|live| &**live);
            let snapshot = Snapshot::of_row(row, live)?;
            containers.push(&SeenContainer::new(&snapshot, last_sequence));
            Ok(())
        })?;
        let mut volumes = List::default();
        for (VolumeRow { id, name, size_bytes, created_at, .. }, users) in
            rx.volumes_after(None, usize::MAX, |_, _| true)?
        {
            let (size, used) = (size_bytes, used.get(&id).copied());
            volumes.push(&VolumeView { id, name, size, used, created_at, containers: users });
        }
        Ok(Self { outbox, volumes: volumes.end(), containers: containers.end() })
    }
}

/// A JSON array, written item by item: so many items need not all be there as values first.
#[derive(Default)]
struct List(Vec<u8>);

impl List {
    fn push(&mut self, item: &impl Serialize) {
        self.0.push(if self.0.is_empty() { b'[' } else { b',' });
        serde_json::to_writer(&mut self.0, item).expect("invariant: plain values are JSON");
    }

    fn end(mut self) -> Vec<u8> {
        if self.0.is_empty() {
            self.0.push(b'[');
        }
        self.0.push(b']');
        self.0
    }
}

fn object(members: impl Iterator<Item = (&'static str, Vec<u8>)>) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in members {
        text.push(if text.is_empty() { b'{' } else { b',' });
        text.extend_from_slice(format!("\"{name}\":").as_bytes());
        text.extend_from_slice(&value);
    }
    text.push(b'}');
    text
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: plain values are JSON")
}

/// Another one when anything is different but the time.
fn etag_of(state: &AppState, members: &Members) -> String {
    let mut hash = Sha256::new_with_prefix(state.sync.boot_id);
    for (_, value) in members {
        hash.update(value);
    }
    hex::encode(&hash.finalize()[..16])
}
