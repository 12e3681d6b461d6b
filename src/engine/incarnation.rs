//! Which run of the engine answers, told by its process.
//!
//! The API does not say when the engine was started. Its socket does: the kernel knows whose it is. Where
//! a service manager holds the socket, the engine's pid file lies beside it. Where neither helps (an
//! engine in another pid namespace) nothing is known, and nothing follows from it.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use super::Engine;

const CONNECTS_WITHIN: Duration = Duration::from_secs(2);

impl Engine {
    /// A text that is another one once the engine, or the host, was started again.
    pub(super) async fn incarnation(&self) -> Option<String> {
        let socket = &self.inner.options.socket_path;
        let connected = tokio::time::timeout(CONNECTS_WITHIN, UnixStream::connect(socket)).await;
        let peer = connected.ok()?.ok()?.peer_cred().ok()?.pid()?;
        let pid = if peer > 1 { peer } else { pid_in(&socket.with_extension("pid"))? };
        started_at(pid).map(|ticks| format!("{pid}:{ticks}"))
    }
}

fn pid_in(file: &Path) -> Option<i32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// In ticks of the host's clock since its start: with the pid, no other process has it.
fn started_at(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_start() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(started_at(own).is_some());
        assert_eq!(started_at(own), started_at(own));
        assert_ne!(started_at(own), started_at(1), "not that of the first process");
        assert_eq!(started_at(i32::MAX), None);
    }
}
