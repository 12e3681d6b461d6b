#![allow(dead_code, reason = "the tests that use the support code are not there yet")]

mod support;
