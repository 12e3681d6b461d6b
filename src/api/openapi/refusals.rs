//! What calls refuse, by status and code: groups of them, and how a call names its own.
//!
//! A group is what one service may say, as `error.rs` maps it. [`refusals!`] makes a type of groups and codes
//! that stands among the responses of a route; `finish` puts all codes of one status together.

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::{RefOr, Response, ResponseBuilder};

/// Codes by status.
pub(in crate::api) type Codes = &'static [(u16, &'static [&'static str])];

/// Where a response keeps its codes until `finish` writes it out.
pub(super) const CODES: &str = "x-codes";

/// A token, and what it is for.
pub(super) const TOKEN: Codes =
    &[(401, &["unauthorized"]), (403, &["scope"]), (429, &["too_many_attempts"])];
/// The store, which every token is looked up in.
pub(super) const STORE: Codes = &[(503, &["busy", "stopping"]), (507, &["insufficient_storage"])];
pub(super) const JSON_BODY: Codes =
    &[(400, &["invalid_json", "invalid", "incomplete_body"]), (413, &["too_large"])];
pub(super) const IDEMPOTENCY: Codes = &[
    (400, &["invalid", "incomplete_body"]),
    (409, &["idempotency_in_progress", "idempotency_unknown"]),
    (413, &["too_large"]),
    (422, &["idempotency_key_reused"]),
];

/// A container that is named, and need not be there.
pub(in crate::api) const CONTAINER: Codes = &[(404, &["not_found"])];
/// Everything a state may forbid.
pub(in crate::api) const STATE: Codes = &[(
    409,
    &[
        "installing",
        "failed",
        "suspended",
        "starting",
        "stopping",
        "rebinding",
        "snapshot",
        "not_running",
        "deleting",
    ],
)];
/// A volume whose containers have to be down: the code is the state of one that is not.
pub(in crate::api) const IN_USE: Codes = &[(
    409,
    &[
        "installing",
        "starting",
        "running",
        "stopping",
        "paused",
        "rebinding",
        "deleting",
        "unknown",
    ],
)];
/// The container engine.
pub(in crate::api) const ENGINE: Codes =
    &[(400, &["engine_refused"]), (409, &["engine_conflict"]), (503, &["engine_unavailable"])];
/// A wish, handed to the container's owner.
pub(in crate::api) const WISH: Codes =
    &[(409, &["volume_busy"]), (503, &["busy", "engine_unavailable"])];
/// A wish that is waited for, and can't happen any more.
pub(in crate::api) const WAIT: Codes = &[(
    409,
    &["start_failed", "install_failed", "rebind_failed", "pause_refused", "superseded", "deleting"],
)];
/// Ports and a volume, bound to a container.
pub(in crate::api) const BINDING: Codes = &[(
    409,
    &[
        "port_in_use",
        "port_reserved",
        "port_quarantined",
        "port_held_by_host",
        "own_port",
        "no_free_port",
        "lease_ended",
    ],
)];
/// A volume that is named, and whatever is done inside it.
pub(in crate::api) const VOLUME: Codes = &[
    (404, &["not_found"]),
    (409, &["volume_busy"]),
    (503, &["busy", "volume_unavailable", "quota_backend_unusable"]),
];
/// Changes of a container's firewall.
pub(in crate::api) const FIREWALL: Codes = &[(503, &["busy", "firewall_unavailable"])];
/// A path in a volume.
pub(in crate::api) const PATH: Codes =
    &[(400, &["invalid_path", "not_a_file", "not_a_folder"]), (409, &["busy"])];
/// Changes inside a volume, which take room.
pub(in crate::api) const CHANGE: Codes =
    &[(409, &["already_exists"]), (507, &["quota_exceeded", "insufficient_storage"])];
/// Work that can be ended, and can be left to go on in the background.
pub(in crate::api) const WORK: Codes = &[(409, &["cancelled"]), (429, &["too_many_operations"])];
/// Reading an archive.
pub(in crate::api) const ARCHIVE: Codes =
    &[(400, &["archive_limit", "archive_corrupt", "archive_unsupported"])];

/// A piece of an upload that can go on after a break.
pub(in crate::api) const UPLOAD: Codes = &[
    (400, &["invalid", "incomplete_body"]),
    (409, &["offset_mismatch"]),
    (412, &["tus_version"]),
    (413, &["too_large"]),
    (423, &["upload_locked"]),
    (460, &["checksum_mismatch"]),
];

/// `refusals!(Name: GROUP, GROUP; 409: "code", "code"; 404: "code");`
macro_rules! refusals {
    ($name:ident: $($group:ident),* $(; $status:literal: $($code:literal),+)* $(;)?) => {
        enum $name {}

        impl utoipa::IntoResponses for $name {
            fn responses()
            -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::Response>>
            {
                #[allow(unused_imports)]
                use $crate::api::openapi::refusals::*;
                responses(&[$($group,)* &[$(($status, &[$($code),+])),*]])
            }
        }
    };
}
pub(in crate::api) use refusals;

/// The groups as responses that hold nothing but their codes.
pub(in crate::api) fn responses(groups: &[Codes]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for (status, codes) in groups.iter().copied().flatten() {
        by_status.entry(*status).or_default().extend(*codes);
    }
    let response = |(status, codes): (u16, Vec<&str>)| {
        let extensions = ExtensionsBuilder::new().add(CODES, json!(codes)).build();
        let response = ResponseBuilder::new().extensions(Some(extensions)).build();
        (status.to_string(), RefOr::T(response))
    };
    by_status.into_iter().map(response).collect()
}
