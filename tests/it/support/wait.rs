//! Waiting for a state. Nothing in the tests sleeps for a time that should be enough: they look again
//! until what they wait for is there, or say what they saw last.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::Instant;

const AGAIN: Duration = Duration::from_millis(20);

/// Looks until `look` finds what is waited for (`Ok`); an `Err` says what was seen instead.
pub(crate) async fn eventually<T, E, F>(what: &str, deadline: Duration, mut look: F) -> T
where
    F: AsyncFnMut() -> Result<T, E>,
    E: Debug,
{
    let end = Instant::now() + deadline;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() >= end => {
                panic!("{what}: not within {deadline:?}; last seen: {seen:#?}")
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}
