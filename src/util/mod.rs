//! Small tools without an opinion on servers or containers.

pub(crate) mod atomic_file;
pub(crate) mod backoff;
pub(crate) mod chain;
pub(crate) mod file_signature;
pub(crate) mod mountinfo;
pub(crate) mod secret;
pub(crate) mod serde_words;
