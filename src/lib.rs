//! lightd: other people's servers, in Docker containers, on one machine.
#![allow(dead_code)]

mod domain;
mod store;

mod util;
