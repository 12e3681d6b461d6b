//! lightd: other people's servers, in Docker containers, on one machine.
//!
//! A pure core decides, one owner task per container holds the truth, adapters do, edges translate:
//!
//! ```text
//!   main -> cli -> app                     wiring only
//!   api, panel                             edges: HTTP and WebSocket in, the remote panel out
//!   volumes                                volumes as wholes: made, resized, copied, restored
//!   supervisor                             one owner task per container, effects, boot
//!   access, network                        who may; which ports, which packets
//!   engine  cgroup  store  files  console  fetch
//!                                          adapters; none knows another
//!   domain, util                           pure; small tools. Know nothing of ours
//! ```
//! Beside them stand `config` (the file, read, checked and swapped whole; each part is given its own
//! piece of it by `app`), `telemetry` (logs) and `shutdown` (signals).
//!
//! A module imports only what stands below it; `tests/it/architecture.rs` holds it to that. Nothing
//! below `api` knows a status code, nothing above `engine` a Docker type, nothing above `store` SQL.
//! After any crash, the store and the engine are compared and the difference is repaired.

mod access;
mod api;
mod app;
mod cgroup;
mod cli;
mod config;
mod console;
mod domain;
mod engine;
mod fetch;
mod files;
mod network;
mod panel;
mod shutdown;
mod store;
mod supervisor;
mod telemetry;
mod util;
mod volumes;

/// The door for the targets in `tests/fuzz/`.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::files::fuzzing::{path, unpack, unpack_tar};
}

/// The doors for `benches/access.rs` and `benches/outbox`.
#[cfg(feature = "benching")]
pub mod benching {
    pub use crate::access::benching::TokenCheck;
    pub use crate::panel::benching::Outboxes;
}

/// Reads the command line and does what it says.
pub fn main() -> std::process::ExitCode {
    cli::main()
}
