//! The threads that pack and unpack.
//!
//! They compute for minutes while others wait for answers, so they step back: the system gives the
//! processor to the rest of lightd whenever that has something to do.

use std::io;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// How far below the rest of lightd they stand; 19 would be the farthest.
const NICENESS: i32 = 10;
/// More than this would only take memory: the reader feeds no more.
const MAX_WORKERS: usize = 4;

/// How many threads compute at once for one archive.
pub(super) fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(MAX_WORKERS))
}

/// Starts a thread of low priority, and so all that it starts itself.
pub(super) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, move || {
        // On Linux this is the calling thread's alone. Where it is not allowed, the work is just less
        // polite.
        rustix::process::nice(NICENESS).ok();
        work()
    })
}

/// What a thread has returned; its panic goes on in the caller.
pub(super) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
