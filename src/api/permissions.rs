//! Which permission each route wants: the one table, for REST, event streams and sockets alike.
//!
//! [`super::auth`] looks here before a handler sees its request: a caller whose scope has none of a
//! route's permissions is refused, and so is everybody on a route that does not stand here. The handler
//! then asks about the container or volume itself, with the same permission; the tests walk the whole
//! table with narrowed tokens, and hold it against the description of the API, where each call names its
//! permissions from here.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::extract::MatchedPath;
use axum::http::Method;
use axum::http::request::Parts;

use super::error::ApiError;
use crate::domain::access::Permission::{
    self, ConsoleRead, ConsoleWrite, ContainersRead, ContainersWrite, Exec, FilesRead, FilesWrite,
    NetworkRead, NetworkWrite, Node, Power, SnapshotsRead, SnapshotsWrite, Tokens,
};
use crate::domain::access::{Principal, permits};

/// What a route wants: any one of these.
type Wanted = &'static [Permission];

/// No token at all.
const PUBLIC: Wanted = &[];

pub(super) const ROUTES: &[(&str, &str, Wanted)] = &[
    ("GET", "/api/v1/public/ping", PUBLIC),
    ("GET", "/health", PUBLIC),
    ("GET", "/livez", PUBLIC),
    ("GET", "/readyz", PUBLIC),
    ("GET", "/openapi.json", PUBLIC),
    ("POST", "/auth/tokens", &[Tokens]),
    ("GET", "/auth/tokens", &[Tokens]),
    ("DELETE", "/auth/tokens", &[Tokens]),
    ("GET", "/auth/tokens/{id}", &[Tokens]),
    ("DELETE", "/auth/tokens/{id}", &[Tokens]),
    ("POST", "/containers", &[ContainersWrite]),
    ("GET", "/containers", &[ContainersRead]),
    ("GET", "/containers/{id}", &[ContainersRead]),
    ("PATCH", "/containers/{id}", &[ContainersWrite]),
    ("DELETE", "/containers/{id}", &[ContainersWrite]),
    ("POST", "/containers/{id}/start", &[Power]),
    ("POST", "/containers/{id}/stop", &[Power]),
    ("POST", "/containers/{id}/kill", &[Power]),
    ("POST", "/containers/{id}/restart", &[Power]),
    ("POST", "/containers/{id}/pause", &[Power]),
    ("POST", "/containers/{id}/resume", &[Power]),
    // A suspension is the host's word against the tenant's.
    ("POST", "/containers/{id}/suspend", &[ContainersWrite]),
    ("POST", "/containers/{id}/unsuspend", &[ContainersWrite]),
    ("POST", "/containers/{id}/reinstall", &[ContainersWrite]),
    ("POST", "/containers/{id}/rebind-network", &[ContainersWrite]),
    ("GET", "/containers/{id}/resources", &[ContainersRead]),
    ("POST", "/containers/{id}/resources", &[ContainersWrite]),
    ("GET", "/containers/{id}/stats", &[ContainersRead]),
    ("GET", "/containers/{id}/logs", &[ConsoleRead]),
    ("GET", "/containers/{id}/install-log", &[ConsoleRead]),
    // The last lines stand in them.
    ("GET", "/containers/{id}/post-mortems", &[ConsoleRead]),
    ("GET", "/containers/{id}/post-mortems/{n}", &[ConsoleRead]),
    ("POST", "/containers/{id}/command", &[ConsoleWrite]),
    ("POST", "/containers/{id}/exec", &[Exec]),
    // What of it is sent, and what may be asked on it, is decided event by event.
    ("GET", "/containers/{id}/events", &[ContainersRead, ConsoleRead]),
    ("GET", "/ws/{id}", &[ContainersRead, ConsoleRead]),
    // A volume takes of the node's disk: making, sizing and removing one is not its user's.
    ("POST", "/volumes", &[ContainersWrite]),
    ("GET", "/volumes", &[FilesRead]),
    ("GET", "/volumes/{id}", &[FilesRead]),
    ("DELETE", "/volumes/{id}", &[ContainersWrite]),
    ("GET", "/volumes/{id}/quota", &[FilesRead]),
    ("POST", "/volumes/{id}/resize", &[ContainersWrite]),
    ("POST", "/volumes/{id}/snapshots", &[SnapshotsWrite]),
    ("GET", "/volumes/{id}/snapshots", &[SnapshotsRead]),
    ("GET", "/volumes/{id}/snapshots/{name}", &[SnapshotsRead]),
    ("DELETE", "/volumes/{id}/snapshots/{name}", &[SnapshotsWrite]),
    ("POST", "/volumes/{id}/snapshots/{name}/restore", &[SnapshotsWrite]),
    ("GET", "/volumes/{id}/files", &[FilesRead]),
    ("POST", "/volumes/{id}/files", &[FilesWrite]),
    ("DELETE", "/volumes/{id}/files", &[FilesWrite]),
    ("GET", "/volumes/{id}/files/contents", &[FilesRead]),
    ("PUT", "/volumes/{id}/files/contents", &[FilesWrite]),
    ("POST", "/volumes/{id}/folders", &[FilesWrite]),
    ("POST", "/volumes/{id}/rename", &[FilesWrite]),
    ("POST", "/volumes/{id}/copy", &[FilesWrite]),
    ("POST", "/volumes/{id}/chmod", &[FilesWrite]),
    ("POST", "/volumes/{id}/compress", &[FilesWrite]),
    ("POST", "/volumes/{id}/decompress", &[FilesWrite]),
    ("GET", "/volumes/{id}/archive", &[FilesRead]),
    ("POST", "/volumes/{id}/upload", &[FilesWrite]),
    ("POST", "/volumes/{id}/tus", &[FilesWrite]),
    ("OPTIONS", "/volumes/{id}/tus", PUBLIC),
    ("HEAD", "/volumes/{id}/tus/{upload}", &[FilesWrite]),
    ("PATCH", "/volumes/{id}/tus/{upload}", &[FilesWrite]),
    ("DELETE", "/volumes/{id}/tus/{upload}", &[FilesWrite]),
    ("POST", "/volumes/{id}/tus/{upload}", &[FilesWrite]),
    ("OPTIONS", "/volumes/{id}/tus/{upload}", PUBLIC),
    ("POST", "/volumes/{id}/pull", &[FilesWrite]),
    ("GET", "/volumes/{id}/search", &[FilesRead]),
    ("GET", "/volumes/{id}/checksum", &[FilesRead]),
    ("GET", "/volumes/{id}/download", &[FilesRead]),
    // By what the operation does.
    ("GET", "/operations", &[FilesRead, SnapshotsRead]),
    ("GET", "/operations/{id}", &[FilesRead, SnapshotsRead]),
    ("DELETE", "/operations/{id}", &[FilesWrite, SnapshotsWrite]),
    ("POST", "/network/ports", &[NetworkWrite]),
    ("GET", "/network/ports", &[NetworkRead]),
    ("GET", "/network/ports/random", &[NetworkRead]),
    ("POST", "/network/ports/bulk-delete", &[NetworkWrite]),
    ("POST", "/network/ports/allocate", &[NetworkWrite]),
    ("GET", "/network/ports/{ip}/{port}", &[NetworkRead]),
    ("DELETE", "/network/ports/{ip}/{port}", &[NetworkWrite]),
    ("PUT", "/network/ports/{ip}/{port}/use", &[NetworkWrite]),
    ("POST", "/network/ports/import", &[NetworkWrite]),
    ("GET", "/network/leases", &[NetworkRead]),
    ("GET", "/network/leases/{id}", &[NetworkRead]),
    ("DELETE", "/network/leases/{id}", &[NetworkWrite]),
    ("POST", "/network/leases/{id}/renew", &[NetworkWrite]),
    ("POST", "/firewall/rules", &[NetworkWrite]),
    ("GET", "/firewall/rules/container/{id}", &[NetworkRead]),
    ("GET", "/firewall/rules/{id}", &[NetworkRead]),
    ("PUT", "/firewall/rules/{id}/toggle", &[NetworkWrite]),
    ("DELETE", "/firewall/rules/{id}", &[NetworkWrite]),
    ("POST", "/firewall/ddos/{id}", &[NetworkWrite]),
    ("GET", "/firewall/ddos/{id}", &[NetworkRead]),
    ("POST", "/firewall/networks/{id}", &[NetworkWrite]),
    ("GET", "/firewall/networks/{id}", &[NetworkRead]),
    ("DELETE", "/firewall/networks/{id}", &[NetworkWrite]),
    ("DELETE", "/firewall/cleanup/{id}", &[NetworkWrite]),
    // What of it is told is decided entry by entry.
    ("GET", "/audit", &[ContainersRead, Node]),
    ("GET", "/billing/rates", &[ContainersRead]),
    ("POST", "/billing/estimate", &[ContainersRead]),
    // Of a size; that of a volume that there is also wants `files.read` of it.
    ("POST", "/billing/estimate/volume", &[ContainersRead]),
    ("GET", "/billing/containers", &[ContainersRead]),
    ("GET", "/billing/usage/{id}/{step}", &[ContainersRead]),
    ("GET", "/remote/config", &[Node]),
    ("POST", "/remote/config/reload", &[Node]),
    ("GET", "/remote/status", &[Node]),
    ("GET", "/remote/outbox", &[Node]),
    ("DELETE", "/remote/outbox", &[Node]),
    ("POST", "/remote/outbox/retry", &[Node]),
    ("GET", "/remote/outbox/{sequence}", &[Node]),
    ("DELETE", "/remote/outbox/{sequence}", &[Node]),
    ("POST", "/remote/outbox/{sequence}/retry", &[Node]),
    ("GET", "/sync/snapshot", &[Node]),
];

static WANTED: LazyLock<HashMap<(&str, &str), Wanted>> = LazyLock::new(|| {
    ROUTES.iter().map(|&(method, path, wanted)| ((method, path), wanted)).collect()
});

/// Refuses a caller whose scope has nothing to do with the route that a request has come to.
pub(super) fn check(parts: &Parts, principal: &Principal) -> Result<(), ApiError> {
    let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some(wanted) = wanted_of(&parts.method, path) else {
        let method = &parts.method;
        return Err(ApiError::internal(format!("no permission is listed for {method} {path}")));
    };
    let may = wanted.is_empty() || wanted.iter().any(|one| permits(principal, *one));
    if may { Ok(()) } else { Err(ApiError::scope()) }
}

fn wanted_of(method: &Method, path: &str) -> Option<Wanted> {
    // Who may read a thing may ask for its head.
    let as_read = || (*method == Method::HEAD).then(|| of_route("GET", path)).flatten();
    of_route(method.as_str(), path).or_else(as_read)
}

/// What a route wants; `None` where there is none.
pub(super) fn of_route(method: &str, path: &str) -> Option<Wanted> {
    WANTED.get(&(method, path)).copied()
}
