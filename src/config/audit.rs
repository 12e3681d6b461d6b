//! What is kept of who did what: as it is written, and what it means.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::validate::Check;
use crate::domain::units::Span;

/// As it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawAudit {
    /// What is older is forgotten.
    pub(crate) keep: Span,
    /// And so is what goes beyond this number of rows, the oldest first.
    pub(crate) max_rows: u64,
    /// Whether the text of console commands and the arguments of processes are kept. They may hold
    /// secrets.
    pub(crate) commands: bool,
}

impl Default for RawAudit {
    fn default() -> Self {
        let keep = Span(Duration::from_secs(90 * 24 * 3600));
        Self { keep, max_rows: 1_000_000, commands: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Audit {
    pub(crate) keep: Duration,
    pub(crate) max_rows: u64,
    pub(crate) commands: bool,
}

pub(super) fn audit(raw: &RawAudit, check: &mut Check<'_>) -> Audit {
    let RawAudit { keep, max_rows, commands } = *raw;
    Audit {
        keep: check.span("audit.keep", keep.0, "1s", "3650d"),
        max_rows: check.within("audit.max_rows", max_rows, 1, 100_000_000),
        commands,
    }
}
