//! How lightd looks after containers of its own accord: as it is written, and what it means.

use serde::{Deserialize, Serialize};

use super::validate::Check;

/// As it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawSupervision {
    /// How many containers are started in a second that nobody has asked to start just now.
    pub(crate) starts_per_second: u64,
    /// How many post-mortems of crashes are kept of each container.
    pub(crate) post_mortems: u64,
}

impl Default for RawSupervision {
    fn default() -> Self {
        Self { starts_per_second: 4, post_mortems: 5 }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Supervision {
    pub(crate) starts_per_second: u64,
    pub(crate) post_mortems: u64,
}

pub(super) fn supervision(raw: &RawSupervision, check: &mut Check<'_>) -> Supervision {
    let RawSupervision { starts_per_second, post_mortems } = *raw;
    Supervision {
        starts_per_second: check.within(
            "supervision.starts_per_second",
            starts_per_second,
            1,
            1000,
        ),
        post_mortems: check.within("supervision.post_mortems", post_mortems, 0, 100),
    }
}
