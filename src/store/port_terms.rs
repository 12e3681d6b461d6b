//! On which terms ports change hands. Made by the pool's policy, which knows the configuration and the
//! host, and given to each transaction that takes or frees ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::spec::{HostPort, Protocol};
use crate::domain::units::UnixSeconds;

/// The terms on which ports change hands: the time, and what the store cannot know.
#[derive(Clone, Debug)]
pub(crate) struct PortTerms {
    pub(crate) now: UnixSeconds,
    /// How long a port rests when a container has let go of it.
    pub(crate) quarantine: Duration,
    /// Where lightd itself listens.
    pub(crate) own: Arc<[SocketAddr]>,
    /// Whether the host has a port free, outside of what the store knows.
    pub(crate) probe: fn(HostPort) -> bool,
}

impl PortTerms {
    pub(crate) fn is_own(&self, port: HostPort) -> bool {
        let own = |at: &SocketAddr| HostPort {
            ip: at.ip().to_canonical(),
            port: at.port(),
            protocol: Protocol::Tcp,
        };
        self.own.iter().any(|at| own(at).meets(port))
    }

    /// Whether nobody outside of the store has it.
    pub(super) fn may_hand_out(&self, port: HostPort) -> bool {
        !self.is_own(port) && (self.probe)(port)
    }

    /// The end of a quarantine that begins now, if there are any.
    pub(crate) fn rests_until(&self) -> Option<UnixSeconds> {
        let until = self.now.0.saturating_add_unsigned(self.quarantine.as_secs());
        (!self.quarantine.is_zero()).then_some(UnixSeconds(until))
    }
}
