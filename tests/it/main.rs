//! The integration tests: the real program, the real engine.

mod access;
mod architecture;
mod containers;
mod crash;
mod errors;
mod guest;
mod install;
mod operations;
mod outage;
mod ports;
mod sockets;
mod support;
mod volumes;
mod workflow;
