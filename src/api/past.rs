//! Looking back at a console: what may be asked, over REST and on a socket alike.

use super::error::ApiError;
use crate::console::{Console, History, Query};
use crate::domain::ids::RunId;
use crate::domain::spec::compile_pattern;

const LINES_DEFAULT: u64 = 100;
const LINES_MAX: u64 = 10_000;

/// What of a console's past is wanted, as it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) lines: Option<u64>,
    pub(super) since: Option<u64>,
    pub(super) before: Option<u64>,
    pub(super) run: Option<u64>,
    pub(super) grep: Option<String>,
}

impl Past {
    /// Looks back. What is wrong is named with `prefix` before its field.
    pub(super) async fn look(self, console: &Console, prefix: &str) -> Result<History, ApiError> {
        let wrong = |field: &str, why: String| ApiError::field(format!("{prefix}{field}"), why);
        let lines = self.lines.unwrap_or(LINES_DEFAULT);
        if lines > LINES_MAX {
            return Err(wrong("lines", format!("must not be more than {LINES_MAX}")));
        }
        // Numbers are such that every language can read them.
        for (field, number) in [("since", self.since), ("before", self.before), ("run", self.run)] {
            if number.is_some_and(|number| i64::try_from(number).is_err()) {
                return Err(wrong(field, "is too large a number".to_owned()));
            }
        }
        let (since, before) = (self.since, self.before);
        if since.zip(before).is_some_and(|(since, before)| before <= since) {
            return Err(wrong("before", format!("must be more than {prefix}since")));
        }
        let grep = self.grep.as_deref().map(compile_pattern).transpose();
        let grep = grep.map_err(|why| wrong("grep", why))?;
        let lines = usize::try_from(lines).unwrap_or(usize::MAX);
        let run = self.run.map(RunId);
        let query = Query { lines, since, before, run, grep: grep.as_ref() };
        Ok(console.history(query).await)
    }
}
