//! The integration tests: the real program, the real engine.
#![allow(dead_code, reason = "the tests that use the support code are not there yet")]

mod guest;
mod operations;
mod support;
