//! What containers reach and what reaches them.

pub(crate) mod pool;
