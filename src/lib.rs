//! lightd: other people's servers, in Docker containers, on one machine.
#![allow(dead_code)]

mod cgroup;
#[allow(unused_imports)]
mod console;
mod domain;

mod util;
