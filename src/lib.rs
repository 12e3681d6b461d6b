//! lightd: other people's servers, in Docker containers, on one machine.
#![allow(dead_code)]

mod access;
mod config;
mod domain;
mod files;
mod network;
mod store;
mod util;
