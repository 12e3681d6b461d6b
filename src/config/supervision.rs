//! How lightd looks after containers of its own accord: as it is written, and what it means.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::validate::Check;
use crate::domain::units::Span;

/// As it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawSupervision {
    /// How many containers are started in a second that nobody has asked to start just now.
    pub(crate) starts_per_second: u64,
    /// How many post-mortems of crashes are kept of each container.
    pub(crate) post_mortems: u64,
    /// How long a start may take of a container that does not say; `null`: as long as it likes.
    pub(crate) start_timeout: Option<Span>,
}

impl Default for RawSupervision {
    fn default() -> Self {
        Self { starts_per_second: 4, post_mortems: 5, start_timeout: None }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Supervision {
    pub(crate) starts_per_second: u64,
    pub(crate) post_mortems: u64,
    pub(crate) start_timeout: Option<Duration>,
}

pub(super) fn supervision(raw: &RawSupervision, check: &mut Check<'_>) -> Supervision {
    let RawSupervision { starts_per_second, post_mortems, start_timeout } = *raw;
    Supervision {
        starts_per_second: check.within(
            "supervision.starts_per_second",
            starts_per_second,
            1,
            1000,
        ),
        post_mortems: check.within("supervision.post_mortems", post_mortems, 0, 100),
        start_timeout: start_timeout
            .map(|limit| check.span("supervision.start_timeout", limit.0, "1s", "1d")),
    }
}
