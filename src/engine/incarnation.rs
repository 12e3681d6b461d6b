//! Which run of the engine answers, told by its process.
//!
//! The API does not say when the engine was started. Its pid file does, which lies beside its socket, and
//! else the socket itself: the kernel knows whose it is. A socket that a service manager holds is nobody's.
//! Where neither helps (an engine in another pid namespace) nothing is known, and nothing follows from it.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use super::{Engine, Health};

const CONNECTS_WITHIN: Duration = Duration::from_secs(2);

impl Engine {
    /// Which run of the engine answers now. Everybody learns of it: one that was started again faster
    /// than its health is asked shows in no failure.
    pub(crate) async fn note_incarnation(&self) -> Option<String> {
        let present = self.incarnation().await?;
        self.inner.health.send_if_modified(|health| match health {
            Health::Reachable { incarnation, .. } if incarnation.as_ref() != Some(&present) => {
                tracing::info!("the container engine was started again");
                *incarnation = Some(present.clone());
                true
            }
            _ => false,
        });
        Some(present)
    }

    /// A text that is another one once the engine, or the host, was started again.
    pub(super) async fn incarnation(&self) -> Option<String> {
        let socket = &self.inner.options.socket_path;
        let named = |pid: i32| started_at(pid).map(|ticks| format!("{pid}:{ticks}"));
        if let Some(engine) = pid_in(&socket.with_extension("pid")).and_then(named) {
            return Some(engine);
        }
        let connected = tokio::time::timeout(CONNECTS_WITHIN, UnixStream::connect(socket)).await;
        let peer = connected.ok()?.ok()?.peer_cred().ok()?.pid()?;
        Some(peer).filter(|&pid| pid > 1).and_then(named)
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
