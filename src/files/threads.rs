//! The threads that pack, unpack and copy.
//!
//! They work for minutes while others wait for answers, so they step back: the system gives the
//! processor to the rest of lightd whenever that has something to do. They end with the call that they
//! work for.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::error::{During, FileError};

/// How far below the rest of lightd they stand; 19 would be the farthest.
const NICENESS: i32 = 10;
/// More than this would only take memory: the reader feeds no more.
const MAX_WORKERS: usize = 4;

/// How many threads work at once for one call.
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

/// A queue that several threads take from. It is closed once none of them is left.
pub(super) struct Shared<T>(Arc<Mutex<Receiver<T>>>);

impl<T> Shared<T> {
    pub(super) fn new(queue: Receiver<T>) -> Self {
        Self(Arc::new(Mutex::new(queue)))
    }

    /// The next item; none once nobody can send any more.
    pub(super) fn next(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Has several threads work on what `feed` gives them, each with a state of its own. After the first
/// failure nothing more is begun, of which `feed` is told by a `false`.
pub(super) fn share_out<T: Send, S>(
    name: &str,
    items_ahead: usize,
    begin: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> Result<(), FileError> + Sync,
    feed: impl FnOnce(&mut dyn FnMut(T) -> bool) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let (send, queue) = sync_channel(items_ahead);
    let (queue, has_failed) = (Shared::new(queue), AtomicBool::new(false));
    let work_off = |queue: Shared<T>| {
        let (mut state, mut outcome) = (begin(), Ok(()));
        while let Some(item) = queue.next() {
            if !has_failed.load(Ordering::Relaxed) {
                let done = work(&mut state, item);
                if done.is_err() {
                    has_failed.store(true, Ordering::Relaxed);
                    outcome = done;
                }
            }
        }
        outcome
    };
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..workers() {
            let (queue, work_off) = (queue.clone(), &work_off);
            let thread = spawn(scope, name, move || work_off(queue));
            threads.push(thread.during("start a thread for", &name)?);
        }
        drop(queue);
        let fed = feed(&mut |item| send.send(item).is_ok() && !has_failed.load(Ordering::Relaxed));
        drop(send);
        threads.into_iter().map(join).fold(fed, |all, one| all.and(one))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn all_is_worked_off_until_one_fails() {
        let sum = AtomicU64::new(0);
        let add = |_: &mut (), n: u64| {
            sum.fetch_add(n, Ordering::Relaxed);
            if n == 1000 { Err(FileError::Cancelled) } else { Ok(()) }
        };
        let run = |end: u64| {
            share_out(
                "test",
                4,
                || (),
                add,
                |give| {
                    let given = (0..end).take_while(|n| give(*n)).count();
                    assert!(end < 1000 || given < 1_000_000, "it went on");
                    Ok(())
                },
            )
        };
        assert!(run(100).is_ok());
        assert_eq!(sum.swap(0, Ordering::Relaxed), 4950);
        let outcome = run(u64::MAX);
        assert!(matches!(outcome, Err(FileError::Cancelled)), "{outcome:?}");
    }

    #[test]
    fn a_panic_reaches_the_caller_and_nobody_waits_for_ever() {
        let outcome = std::panic::catch_unwind(|| {
            share_out(
                "test",
                1,
                || (),
                |_: &mut (), n: u32| panic!("{n}"),
                |give| {
                    while give(1) {}
                    Ok(())
                },
            )
        });
        assert!(outcome.is_err());
    }
}
