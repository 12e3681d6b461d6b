//! lightd's own API: one file per area, each with its routes, its handlers and what they read and
//! write.
//!
//! A handler parses, asks whether the caller may, asks a service, and renders: it is short, so that a
//! client that goes away interrupts nothing half-way. Whatever fails is an `ApiError`.

mod archives;
mod audit;
mod billing;
mod body;
mod console;
mod container_body;
mod container_list;
mod container_view;
mod containers;
mod content_headers;
mod contents;
mod downloads;
mod dry_run;
mod estimates;
mod files;
mod firewall;
mod firewall_networks;
mod firewall_view;
mod leases;
mod listing;
pub(super) mod operations;
mod outbox;
mod paging;
mod port_body;
mod ports;
mod ports_in_bulk;
mod post_mortems;
mod power;
mod public;
mod pulls;
mod recording;
mod remote;
mod resources;
mod search;
mod snapshots;
mod sync;
mod tokens;
mod tus;
mod tus_create;
mod tus_headers;
mod uploads;
mod volumes;
mod waiting;

pub(in crate::api) use self::container_list::STATES;
pub(crate) use self::sync::SyncState;
pub(in crate::api) use self::waiting::Awaited;
use super::openapi::Routes;

/// Calls that answer within the common deadline.
pub(super) fn quick_routes() -> Routes {
    Routes::default()
        .merge(public::routes())
        .merge(tokens::routes())
        .merge(ports::routes())
        .merge(leases::routes())
        .merge(ports_in_bulk::routes())
        .merge(firewall::routes())
        .merge(firewall_networks::routes())
        .merge(containers::routes())
        .merge(container_list::routes())
        .merge(power::routes())
        .merge(post_mortems::routes())
        .merge(console::routes())
        .merge(resources::routes())
        .merge(remote::routes())
        .merge(outbox::routes())
        .merge(sync::routes())
        .merge(volumes::routes())
        .merge(snapshots::routes())
        .merge(files::routes())
        .merge(listing::routes())
        .merge(operations::routes())
        .merge(pulls::routes())
        .merge(audit::routes())
        .merge(billing::routes())
        .merge(estimates::routes())
}

/// Calls that bring their own deadline, or stream.
pub(super) fn long_routes() -> Routes {
    Routes::default()
        .merge(console::long_routes())
        .merge(volumes::long_routes())
        .merge(snapshots::long_routes())
        .merge(files::long_routes())
        .merge(contents::long_routes())
        .merge(archives::long_routes())
        .merge(uploads::long_routes())
        .merge(tus::long_routes())
        .merge(search::long_routes())
        .merge(downloads::long_routes())
}
