//! The integration tests: the real program, the real engine.
#![allow(dead_code, reason = "the tests that use the support code are not there yet")]

mod access;
mod architecture;
mod containers;
mod errors;
mod guest;
mod install;
mod operations;
mod ports;
mod sockets;
mod support;
mod volumes;
mod workflow;
