//! What the engine shows of a container, in our own words.

/// One successful look at a container in the engine. A look that failed is not one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    /// The engine's own id.
    pub(crate) docker_id: String,
    pub(crate) status: ObservedStatus,
    /// The first process, as the host numbers it, while there is one.
    pub(crate) pid: Option<u32>,
    /// When the present or last run began, in Unix milliseconds; `None` before the first.
    pub(crate) started_at_ms: Option<i64>,
    pub(crate) tty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObservedStatus {
    /// Made and never started.
    Created,
    Running,
    Paused,
    Exited(Exit),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Exit {
    /// The exit code; 128 + n for an end by signal n.
    pub(crate) code: i64,
    /// The engine says that it ran out of memory.
    pub(crate) oom_engine: bool,
    /// The kernel has killed a process of it for want of memory.
    pub(crate) oom_kernel: bool,
    /// In Unix milliseconds.
    pub(crate) at_ms: i64,
    /// How far the host's clock was set forward while somebody followed the run, in milliseconds: that much
    /// of `at_ms` has not passed.
    #[serde(default)]
    pub(crate) clock_set_by_ms: i64,
}

impl Exit {
    /// Whether that is how it ended: the engine forgets it now and then, and that some other process of
    /// the workload was killed does not end it.
    pub(crate) fn oom_killed(&self) -> bool {
        self.oom_engine || (self.oom_kernel && self.code != 0)
    }

    /// Whether it ended as a program does that has failed.
    pub(crate) fn is_crash(&self) -> bool {
        self.code != 0 || self.oom_killed()
    }

    /// The signal that the code stands for. A program may also end with such a code of its own accord.
    pub(crate) fn signal(&self) -> Option<&'static str> {
        // As numbered on Linux, on all architectures that containers run on.
        const NAMES: [&str; 31] = [
            "SIGHUP",
            "SIGINT",
            "SIGQUIT",
            "SIGILL",
            "SIGTRAP",
            "SIGABRT",
            "SIGBUS",
            "SIGFPE",
            "SIGKILL",
            "SIGUSR1",
            "SIGSEGV",
            "SIGUSR2",
            "SIGPIPE",
            "SIGALRM",
            "SIGTERM",
            "SIGSTKFLT",
            "SIGCHLD",
            "SIGCONT",
            "SIGSTOP",
            "SIGTSTP",
            "SIGTTIN",
            "SIGTTOU",
            "SIGURG",
            "SIGXCPU",
            "SIGXFSZ",
            "SIGVTALRM",
            "SIGPROF",
            "SIGWINCH",
            "SIGIO",
            "SIGPWR",
            "SIGSYS",
        ];
        let index = usize::try_from(self.code.checked_sub(129)?).ok()?;
        NAMES.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_above_128_name_their_signal() {
        let signal = |code| {
            Exit { code, oom_engine: false, oom_kernel: false, at_ms: 0, clock_set_by_ms: 0 }
                .signal()
        };
        assert_eq!(signal(137), Some("SIGKILL"));
        assert_eq!(signal(139), Some("SIGSEGV"));
        assert_eq!(signal(143), Some("SIGTERM"));
        assert_eq!([signal(0), signal(1), signal(128), signal(160), signal(i64::MIN)], [None; 5]);
    }
}
