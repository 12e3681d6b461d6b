//! The integration tests: the real program, the real engine.
#![allow(dead_code, reason = "the tests that use the support code are not there yet")]

mod containers;
mod guest;
mod install;
mod operations;
mod support;
mod volumes;
