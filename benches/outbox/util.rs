//! As in the program, for what is taken from there.

#[path = "../../src/util/backoff.rs"]
#[allow(dead_code, unused_imports, reason = "the fleet needs a part of it")]
pub(crate) mod backoff;
