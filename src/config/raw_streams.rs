//! As [`super::raw`], of what goes out of containers as it comes: consoles and those who read them.

use serde::{Deserialize, Serialize};

use crate::domain::units::{MIB, Span};

/// Per container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Console {
    pub(crate) ring_bytes: u64,
    pub(crate) journal_bytes: u64,
    /// What is older goes, in parts of an eighth of the journal; `null`: nothing for its age.
    pub(crate) journal_max_age: Option<Span>,
}

/// WebSockets, and event streams where it is not about what comes in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Sockets {
    pub(crate) per_container: u64,
    pub(crate) per_node: u64,
    /// The largest frame that a client may send.
    pub(crate) frame_max_bytes: u64,
    /// How many it may send in the long run; three times as many at once.
    pub(crate) frames_per_second: u64,
}

impl Default for Console {
    fn default() -> Self {
        Self { ring_bytes: MIB / 4, journal_bytes: 16 * MIB, journal_max_age: None }
    }
}

impl Default for Sockets {
    fn default() -> Self {
        Self {
            per_container: 128,
            per_node: 2048,
            frame_max_bytes: 64 << 10,
            frames_per_second: 20,
        }
    }
}
