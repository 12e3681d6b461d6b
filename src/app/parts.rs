//! What each part is given of the configuration: its own small struct, so that no part sees the whole,
//! and of the host, asked once or with each reload.
//!
//! Pure but for what it asks of the host: how large that is, and its time zone.

use uuid::Uuid;

use crate::access::{AccessSettings, AttemptLimit, PreviousToken};
use crate::config::{self, Config};
use crate::console::ConsoleOptions;
use crate::domain::spec::NodeCapacity;
use crate::domain::units::UnixSeconds;
use crate::engine::{EngineOptions, LogCap};
use crate::files::{ArchiveLimits, FilesOptions, Owner};
use crate::network::isolation::{Exceptions, Firewall, IsolationOptions};
use crate::network::isolation_rules::HostService;
use crate::network::pool::{PortPolicy, PortRange};
use crate::panel::PanelSettings;
use crate::supervisor::Settings;
use crate::volumes::{OnExceeded, VolumeSettings};

/// `node_id` is the store's, for where the configuration has none.
pub(super) fn engine(config: &Config, node_id: Uuid) -> EngineOptions {
    let node = config.docker.node.clone().unwrap_or_else(|| node_id.to_string());
    EngineOptions { socket_path: config.docker.socket_path.clone(), node }
}

pub(super) fn files(config: &Config) -> FilesOptions {
    let user = config.docker.user;
    let limits = &config.archives;
    FilesOptions {
        volumes_path: config.storage.volumes_path.clone(),
        owner: Some((user.uid, user.gid)),
        fsync: config.storage.fsync,
        limits: ArchiveLimits {
            max_entries: limits.max_entries,
            max_total_bytes: limits.max_bytes,
            max_ratio: limits.max_ratio,
        },
    }
}

pub(super) fn isolation(config: &Config) -> IsolationOptions {
    let network = &config.network;
    IsolationOptions {
        bridge: network.bridge.clone(),
        subnets: network.subnets,
        exceptions: exceptions(config),
        firewall: firewall(config),
    }
}

pub(super) fn firewall(config: &Config) -> Firewall {
    match config.network.firewall {
        config::Firewall::Nftables => Firewall::Nftables,
        config::Firewall::Off => Firewall::Off,
    }
}

pub(super) fn exceptions(config: &Config) -> Exceptions {
    let service = |service: &config::HostService| HostService {
        protocol: service.protocol,
        port: service.port,
    };
    let network = &config.network;
    Exceptions {
        host: network.allow_host.iter().map(service).collect(),
        private: network.allow_private.clone(),
    }
}

pub(super) fn panel(config: &Config) -> Option<PanelSettings> {
    let panel = config.remote.panel.as_ref()?;
    Some(PanelSettings {
        url: panel.url.clone(),
        token: panel.token.clone(),
        signing_secret: panel.signing_secret.clone(),
        health_interval: panel.health_interval,
    })
}

pub(super) fn settings(config: &Config) -> Settings {
    let user = config.docker.user;
    Settings {
        user: Owner { uid: user.uid, gid: user.gid },
        network: config.network.bridge.clone(),
        ports: port_policy(config),
        time_zone: host_time_zone(),
        default_pids: config.limits.pids,
        // Two files: a rotation throws away the older half, and not all there is.
        log: LogCap { max_size_bytes: config.limits.log_max_bytes / 2, max_files: 2 },
        allowed_mounts: config.docker.allowed_mounts.clone(),
        install_timeout: config.install.timeout,
        starts_per_second: u32::try_from(config.supervision.starts_per_second).unwrap_or(u32::MAX),
        start_timeout: config.supervision.start_timeout,
        post_mortems: usize::try_from(config.supervision.post_mortems).unwrap_or(usize::MAX),
        install_image_max_bytes: config.install.max_image_bytes,
        panel: config.remote.panel.is_some(),
        panel_power_events: config.remote.power_events,
    }
}

pub(super) fn volumes(config: &Config) -> VolumeSettings {
    VolumeSettings {
        backend: config.quota.backend,
        max_snapshots: config.snapshots.max_per_volume,
        on_exceeded: match config.quota.on_exceeded {
            config::OnExceeded::Tell => OnExceeded::Tell,
            config::OnExceeded::Stop => OnExceeded::Stop,
        },
    }
}

pub(super) fn access(config: &Config) -> AccessSettings {
    let authorization = &config.authorization;
    AccessSettings {
        enabled: authorization.enabled,
        node_token: authorization.token.digest(),
        previous: authorization.previous.as_ref().map(|previous| PreviousToken {
            digest: previous.token.digest(),
            until: UnixSeconds(previous.until.as_second()),
        }),
        allowed_origins: authorization.allowed_origins.clone(),
        allowed_ips: authorization.allowed_ips.clone(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        failed_attempts: AttemptLimit {
            burst: authorization.failed_attempts.burst,
            per_minute: authorization.failed_attempts.per_minute,
        },
        max_tokens: authorization.max_tokens,
    }
}

pub(super) fn console(config: &Config) -> ConsoleOptions {
    ConsoleOptions {
        ring_bytes: config.console.ring_bytes,
        journal_bytes: config.console.journal_bytes,
        ..ConsoleOptions::default()
    }
}

pub(super) fn port_seeds(config: &Config) -> Vec<PortRange> {
    let range = |seed: &config::PortSeed| PortRange {
        ip: seed.ip,
        ports: seed.ports.clone(),
        protocol: seed.protocol,
    };
    config.network.ports.iter().map(range).collect()
}

pub(super) fn port_policy(config: &Config) -> PortPolicy {
    PortPolicy { own: config.own_addresses().into(), quarantine: config.network.quarantine }
}

pub(super) fn capacity() -> NodeCapacity {
    let system = rustix::system::sysinfo();
    let memory_bytes = system.totalram.saturating_mul(u64::from(system.mem_unit));
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    NodeCapacity { memory_bytes, cpus: f64::from(u32::try_from(cpus).unwrap_or(u32::MAX)) }
}

/// The host's time zone by its name, for workloads; the containers' own is most often UTC.
fn host_time_zone() -> String {
    let named = std::fs::read_to_string("/etc/timezone").ok().map(|name| name.trim().to_owned());
    let linked = || {
        let target = std::fs::read_link("/etc/localtime").ok()?;
        Some(target.to_str()?.split_once("/zoneinfo/")?.1.to_owned())
    };
    named.filter(|name| !name.is_empty()).or_else(linked).unwrap_or_else(|| "UTC".to_owned())
}
