//! The configuration as it is written: every key with its default, unknown keys refused.
//!
//! `config.example.json` is this with nothing set. Nothing is checked here but the shape; what a value
//! means is decided in the parent module.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::audit::RawAudit;
use super::authorization::RawAuthorization;
use super::billing::RawBilling;
pub(crate) use super::raw_streams::{Console, Sockets};
use super::supervision::RawSupervision;
use crate::domain::spec::Protocol;
use crate::domain::units::{MIB, Span};
use crate::util::secret::Secret;

/// Serialises with secrets masked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Raw {
    pub(crate) server: Server,
    pub(crate) authorization: RawAuthorization,
    pub(crate) docker: Docker,
    pub(crate) storage: Storage,
    pub(crate) network: Network,
    pub(crate) limits: Limits,
    pub(crate) install: Install,
    pub(crate) console: Console,
    pub(crate) sockets: Sockets,
    pub(crate) supervision: RawSupervision,
    pub(crate) archives: Archives,
    pub(crate) quota: Quota,
    pub(crate) snapshots: Snapshots,
    pub(crate) uploads: Uploads,
    pub(crate) pulls: Pulls,
    pub(crate) remote: Remote,
    pub(crate) ssh: Ssh,
    pub(crate) dialects: Dialects,
    pub(crate) audit: RawAudit,
    pub(crate) log: Log,
    pub(crate) billing: RawBilling,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Tls,
    /// Networks of proxies whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: Vec<String>,
    /// The largest request body that is read into memory; streamed uploads are not held to it.
    pub(crate) max_body_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) enabled: bool,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Docker {
    pub(crate) socket_path: PathBuf,
    pub(crate) user: String,
    pub(crate) allowed_mounts: Vec<PathBuf>,
    /// The label by which this node knows its own containers; empty: the store's random id.
    pub(crate) node: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Storage {
    pub(crate) base_path: PathBuf,
    pub(crate) volumes_path: Option<PathBuf>,
    pub(crate) containers_path: Option<PathBuf>,
    /// Whether a written file is on the disk before the answer goes out.
    pub(crate) fsync: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Network {
    /// Put into the pool at the start, where they are not in it.
    pub(crate) ports: Vec<PortSeed>,
    pub(crate) subnets: String,
    pub(crate) bridge: String,
    pub(crate) firewall: Firewall,
    /// Ports of the host that containers may reach: `5432`, `5432/tcp`, `53/udp`.
    pub(crate) allow_host: Vec<String>,
    /// Private networks that file pulls may fetch from.
    pub(crate) allow_private: Vec<String>,
    /// How long a port rests when a container has let go of it; nothing by default.
    pub(crate) quarantine: Span,
}

/// Either `port` or `from` and `to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortSeed {
    pub(crate) ip: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<u16>,
    #[serde(default = "tcp")]
    pub(crate) protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Firewall {
    Nftables,
    /// Somebody else keeps containers away from the host.
    Off,
}

/// What a container gets that does not say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) pids: u64,
    /// The size at which the engine rotates a container's own log.
    pub(crate) log_max_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Install {
    pub(crate) timeout: Span,
    /// The largest image that an install may leave behind.
    pub(crate) max_image_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Archives {
    pub(crate) max_entries: u64,
    pub(crate) max_bytes: u64,
    /// Unpacked bytes for each packed one.
    pub(crate) max_ratio: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Quota {
    /// Who holds a new volume to its size.
    pub(crate) backend: QuotaChoice,
    /// What follows when a workload brings its volume over a soft limit.
    pub(crate) on_exceeded: OnExceeded,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnExceeded {
    /// The people at its console and the log are told.
    #[default]
    Tell,
    /// And it is stopped.
    Stop,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Snapshots {
    pub(crate) max_per_volume: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QuotaChoice {
    /// The first of project, image and soft that works here.
    Auto,
    Project,
    Image,
    #[default]
    Soft,
}

/// Uploads that can go on where they broke off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Uploads {
    /// The longest one.
    pub(crate) max_bytes: u64,
    /// Per volume.
    pub(crate) max_unfinished: u64,
    /// After so long without a byte one is given up.
    pub(crate) expire_after: Span,
}

/// Files that are fetched from elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Pulls {
    pub(crate) max_bytes: u64,
    pub(crate) timeout: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Remote {
    pub(crate) enabled: bool,
    pub(crate) url: String,
    pub(crate) token: Secret,
    /// What updates are signed with; empty: they are not.
    pub(crate) signing_secret: Secret,
    pub(crate) power_events: bool,
    pub(crate) health_interval: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Ssh {
    pub(crate) host: String,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Dialects {
    pub(crate) sessions: Dialect,
    pub(crate) sandboxes: Dialect,
    pub(crate) environments: Dialect,
    pub(crate) images: Dialect,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Dialect {
    pub(crate) enabled: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) level: LogLevel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

impl Default for Server {
    fn default() -> Self {
        Self {
            host: "0.0.0.0".to_owned(),
            port: 8070,
            tls: Tls::default(),
            trusted_proxies: Vec::new(),
            max_body_bytes: 16 * MIB,
        }
    }
}

impl Default for Docker {
    fn default() -> Self {
        Self {
            socket_path: "/var/run/docker.sock".into(),
            user: "988:988".to_owned(),
            allowed_mounts: Vec::new(),
            node: String::new(),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            base_path: "/var/lib/lightd".into(),
            volumes_path: None,
            containers_path: None,
            fsync: true,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            ports: Vec::new(),
            subnets: "10.86.0.0/16".to_owned(),
            bridge: "lightd0".to_owned(),
            firewall: Firewall::Nftables,
            allow_host: Vec::new(),
            allow_private: Vec::new(),
            quarantine: Span(Duration::ZERO),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { pids: 512, log_max_bytes: 16 * MIB }
    }
}

impl Default for Install {
    fn default() -> Self {
        Self { timeout: Span(Duration::from_secs(30 * 60)), max_image_bytes: 10 * 1024 * MIB }
    }
}

impl Default for Archives {
    fn default() -> Self {
        Self { max_entries: 1_000_000, max_bytes: 64 * 1024 * MIB, max_ratio: 200 }
    }
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { max_per_volume: 10 }
    }
}

impl Default for Uploads {
    fn default() -> Self {
        Self {
            max_bytes: 100 * 1024 * MIB,
            max_unfinished: 256,
            expire_after: Span(Duration::from_secs(24 * 3600)),
        }
    }
}

impl Default for Pulls {
    fn default() -> Self {
        Self { max_bytes: 64 * 1024 * MIB, timeout: Span(Duration::from_secs(2 * 3600)) }
    }
}

impl Default for Remote {
    fn default() -> Self {
        Self {
            enabled: false,
            url: String::new(),
            token: Secret::default(),
            signing_secret: Secret::default(),
            power_events: false,
            health_interval: Span(Duration::from_secs(30)),
        }
    }
}

impl Default for Ssh {
    fn default() -> Self {
        Self { host: "0.0.0.0".to_owned(), port: 2022 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: LogLevel::Info }
    }
}
