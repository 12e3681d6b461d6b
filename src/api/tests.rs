//! The whole edge over real services in a folder of its own. The engine is away throughout: what it
//! does is tested where it is there; here it is about requests and answers.

mod audit;
mod containers;
mod holders;
mod idempotency;
pub(super) mod node;
mod operations;
mod permissions;
mod routes;
mod sockets;
mod sync;
