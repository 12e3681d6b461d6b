//! Small tools without an opinion on servers or containers.

pub(crate) mod backoff;
pub(crate) mod chain;
