//! What the operator decides: read, checked as a whole, and handed out in parts.
//!
//! ```text
//!   config.json < LIGHTD_… < command line --> raw (shape, defaults) --> Config (meaning)
//!                       Source                     raw.rs                validate.rs
//! ```
//!
//! A [`Config`] that exists is valid; a configuration that is not stops the start, or leaves a running
//! daemon as it was, with every problem named. Each part of lightd gets its own small struct by value;
//! only the composition root sees the whole. [`live::Live`] holds the present one and swaps it whole.

mod audit;
mod authorization;
mod billing;
pub(crate) mod edit;
pub(crate) mod error;
pub(crate) mod live;
mod network;
pub(crate) mod raw;
mod raw_streams;
pub(crate) mod reload;
pub(crate) mod source;
mod supervision;
mod validate;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use url::Url;

pub(crate) use self::audit::Audit;
use self::authorization::{Authorization, PreviousToken};
use self::billing::Billing;
pub(crate) use self::error::ConfigError;
pub(crate) use self::raw::{Firewall, LogFormat, LogLevel, OnExceeded};
use self::supervision::Supervision;
use crate::domain::quota::QuotaBackend;
use crate::domain::spec::Protocol;
use crate::util::secret::Secret;

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) authorization: Authorization,
    pub(crate) docker: Docker,
    pub(crate) storage: Storage,
    pub(crate) network: Network,
    pub(crate) limits: DefaultLimits,
    pub(crate) install: Install,
    pub(crate) console: Console,
    pub(crate) sockets: Sockets,
    pub(crate) supervision: Supervision,
    pub(crate) archives: Archives,
    pub(crate) quota: Quota,
    pub(crate) snapshots: Snapshots,
    pub(crate) uploads: Uploads,
    pub(crate) pulls: Pulls,
    pub(crate) remote: Remote,
    pub(crate) audit: Audit,
    pub(crate) log: Log,
    pub(crate) billing: Billing,
    /// What all of the above was made from; shown, and compared at a reload.
    raw: raw::Raw,
}

#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<TlsFiles>,
    /// Whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) max_body_bytes: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Clone, Debug)]
pub(crate) struct Docker {
    pub(crate) socket_path: PathBuf,
    pub(crate) user: RunAs,
    /// Absolute, without `..`.
    pub(crate) allowed_mounts: Vec<PathBuf>,
    /// `None`: the store's random id.
    pub(crate) node: Option<String>,
}

/// The user that workloads run as and that owns their files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunAs {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Where things are kept; absolute paths.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    pub(crate) base_path: PathBuf,
    pub(crate) volumes_path: PathBuf,
    pub(crate) containers_path: PathBuf,
    /// Whether a written file is on the disk before the answer goes out.
    pub(crate) fsync: bool,
}

impl Storage {
    pub(crate) fn store_path(&self) -> PathBuf {
        self.base_path.join("lightd.db")
    }

    pub(crate) fn secret_key_path(&self) -> PathBuf {
        self.base_path.join("secret.key")
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) ports: Vec<PortSeed>,
    pub(crate) subnets: Ipv4Net,
    pub(crate) bridge: String,
    pub(crate) firewall: Firewall,
    pub(crate) allow_host: Vec<HostService>,
    pub(crate) allow_private: Vec<IpNet>,
    /// How long a port rests when a container has let go of it.
    pub(crate) quarantine: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSeed {
    pub(crate) ip: IpAddr,
    pub(crate) ports: RangeInclusive<u16>,
    pub(crate) protocol: Protocol,
}

/// A port of the host that containers may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostService {
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct DefaultLimits {
    pub(crate) pids: u64,
    pub(crate) log_max_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Install {
    pub(crate) timeout: Duration,
    pub(crate) max_image_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    pub(crate) ring_bytes: usize,
    pub(crate) journal_bytes: u64,
    pub(crate) journal_max_age: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sockets {
    pub(crate) per_container: usize,
    pub(crate) per_node: usize,
    pub(crate) frame_max_bytes: usize,
    pub(crate) frames_per_second: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Archives {
    pub(crate) max_entries: u64,
    pub(crate) max_bytes: u64,
    pub(crate) max_ratio: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshots {
    pub(crate) max_per_volume: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    /// `None`: the best that works.
    pub(crate) backend: Option<QuotaBackend>,
    pub(crate) on_exceeded: OnExceeded,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Uploads {
    pub(crate) max_bytes: u64,
    pub(crate) max_unfinished: usize,
    pub(crate) expire_after: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pulls {
    pub(crate) max_bytes: u64,
    pub(crate) timeout: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// `None`: there is no panel to tell.
    pub(crate) panel: Option<RemotePanel>,
    pub(crate) power_events: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct RemotePanel {
    pub(crate) url: Url,
    pub(crate) token: Secret,
    /// Empty: updates are not signed.
    pub(crate) signing_secret: Secret,
    pub(crate) health_interval: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) level: LogLevel,
}

impl Config {
    /// The whole configuration with its secrets masked, for people.
    pub(crate) fn masked(&self) -> serde_json::Value {
        serde_json::to_value(&self.raw).expect("invariant: the configuration is JSON")
    }

    /// Where lightd itself listens, or will: the API, and SSH.
    pub(crate) fn own_addresses(&self) -> Vec<SocketAddr> {
        // Any address where the host is not one yet.
        let ssh = self.raw.ssh.host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let ssh = SocketAddr::new(ssh, self.raw.ssh.port);
        [self.server.address, ssh].into_iter().filter(|at| at.port() != 0).collect()
    }

    /// This configuration with another node token, and the one before it.
    fn with_tokens(&self, token: Secret, previous: Option<PreviousToken>) -> Self {
        let mut changed = self.clone();
        let raw = &mut changed.raw.authorization;
        raw.token = token.clone();
        raw.previous_token = previous.as_ref().map(|it| it.token.clone()).unwrap_or_default();
        raw.previous_token_until = previous.as_ref().map(|it| it.until);
        changed.authorization.token = token;
        changed.authorization.previous = previous;
        changed
    }
}

#[cfg(test)]
mod tests;
