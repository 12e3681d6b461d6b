//! lightd: other people's servers, in Docker containers, on one machine.
#![allow(dead_code)]

mod access;
mod cgroup;
mod cli;
mod config;
mod console;
mod domain;
mod engine;
mod files;
mod network;
mod panel;
mod shutdown;
mod store;
mod supervisor;
mod telemetry;
mod util;
