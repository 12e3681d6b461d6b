//! The integration tests: the real program, the real engine.

mod access;
mod architecture;
mod containers;
mod crash;
mod engine_down;
mod errors;
mod escape;
mod events;
mod guest;
mod hardening;
mod install;
mod isolation;
mod operations;
mod outage;
mod ports;
mod pulls;
mod quota;
mod reading;
mod recovery;
mod snapshots;
mod sockets;
mod support;
mod tus;
mod uploads;
mod volumes;
mod workflow;
