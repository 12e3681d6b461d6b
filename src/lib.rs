//! lightd: other people's servers, in Docker containers, on one machine.
#![allow(dead_code)]

mod access;
mod cli;
mod config;
mod domain;
mod network;
mod panel;
mod shutdown;
mod store;
mod telemetry;

mod util;
