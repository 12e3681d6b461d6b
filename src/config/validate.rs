//! From the written configuration to one that means something.
//!
//! Each value that does not is reported under its key and stands in as something harmless, so that the
//! check goes on to the next; the result is used only if nothing was reported.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::audit::audit;
use super::authorization::authorization;
use super::billing::billing;
use super::error::ConfigProblem;
use super::network::network;
use super::raw::{self, Raw};
use super::supervision::supervision;
use super::{
    Archives, Config, Console, DefaultLimits, Docker, Install, Log, Pulls, Quota, Remote,
    RemotePanel, RunAs, Server, Snapshots, Sockets, Storage, TlsFiles, Uploads,
};
use crate::domain::quota::QuotaBackend;
use crate::util::secret::Secret;

pub(super) struct Check<'p> {
    problems: &'p mut Vec<ConfigProblem>,
}

impl<'p> Check<'p> {
    pub(super) fn new(problems: &'p mut Vec<ConfigProblem>) -> Self {
        Self { problems }
    }

    pub(super) fn say(&mut self, key: &str, message: impl Into<String>) {
        let message = message.into();
        self.problems.push(ConfigProblem { key: key.to_owned(), origin: None, message });
    }

    /// The value, or what stands in for it.
    pub(super) fn or<T>(&mut self, key: &str, value: Result<T, String>, stand_in: T) -> T {
        value.unwrap_or_else(|message| {
            self.say(key, message);
            stand_in
        })
    }

    pub(super) fn each<T, F>(&mut self, key: &str, texts: &[String], read: F) -> Vec<T>
    where
        F: Fn(&str) -> Result<T, String>,
    {
        let mut values = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            match read(text) {
                Ok(value) => values.push(value),
                Err(message) => self.say(&format!("{key}[{index}]"), message),
            }
        }
        values
    }

    pub(super) fn within(&mut self, key: &str, value: u64, least: u64, most: u64) -> u64 {
        if !(least..=most).contains(&value) {
            self.say(key, format!("must be between {least} and {most}, not {value}"));
        }
        value
    }

    pub(super) fn span(&mut self, key: &str, value: Duration, least: &str, most: &str) -> Duration {
        let bound = |text| humantime::parse_duration(text).unwrap_or_default();
        if value < bound(least) || value > bound(most) {
            self.say(key, format!("must be between {least} and {most}"));
        }
        value
    }
}

pub(super) fn validate(raw: Raw, problems: &mut Vec<ConfigProblem>) -> Config {
    let mut check = Check::new(problems);
    let server = server(&raw.server, &mut check);
    dialects(&raw.dialects, &mut check);
    Config {
        authorization: authorization(&raw.authorization, server.address.ip(), &mut check),
        server,
        docker: docker(&raw.docker, &mut check),
        storage: storage(&raw.storage, &mut check),
        network: network(&raw.network, &mut check),
        limits: DefaultLimits {
            pids: check.within("limits.pids", raw.limits.pids, 1, 1 << 22),
            log_max_bytes: check.within(
                "limits.log_max_bytes",
                raw.limits.log_max_bytes,
                64 << 10,
                1 << 40,
            ),
        },
        install: Install {
            timeout: check.span("install.timeout", raw.install.timeout.0, "1s", "7d"),
            max_image_bytes: raw.install.max_image_bytes,
        },
        console: console(&raw.console, &mut check),
        sockets: sockets(&raw.sockets, &mut check),
        archives: Archives {
            max_entries: check.within("archives.max_entries", raw.archives.max_entries, 1, 1 << 32),
            max_bytes: check.within("archives.max_bytes", raw.archives.max_bytes, 1, 1 << 50),
            max_ratio: check.within("archives.max_ratio", raw.archives.max_ratio, 1, 1 << 20),
        },
        supervision: supervision(&raw.supervision, &mut check),
        quota: quota(&raw.quota),
        snapshots: Snapshots {
            max_per_volume: check.within(
                "snapshots.max_per_volume",
                raw.snapshots.max_per_volume,
                0,
                10_000,
            ),
        },
        uploads: uploads(&raw.uploads, &mut check),
        pulls: Pulls {
            max_bytes: check.within("pulls.max_bytes", raw.pulls.max_bytes, 1, 1 << 50),
            timeout: check.span("pulls.timeout", raw.pulls.timeout.0, "1s", "7d"),
        },
        remote: remote(&raw.remote, &mut check),
        audit: audit(&raw.audit, &mut check),
        log: Log { format: raw.log.format, level: raw.log.level },
        billing: billing(&raw.billing, &mut check),
        raw,
    }
}

fn uploads(raw: &raw::Uploads, check: &mut Check<'_>) -> Uploads {
    let most = check.within("uploads.max_unfinished", raw.max_unfinished, 1, 1 << 16);
    Uploads {
        max_bytes: check.within("uploads.max_bytes", raw.max_bytes, 1, 1 << 50),
        max_unfinished: usize::try_from(most).unwrap_or(usize::MAX),
        expire_after: check.span("uploads.expire_after", raw.expire_after.0, "1s", "30d"),
    }
}

fn server(raw: &raw::Server, check: &mut Check<'_>) -> Server {
    let tls = raw.tls.enabled.then(|| {
        for (key, path) in [("server.tls.cert", &raw.tls.cert), ("server.tls.key", &raw.tls.key)] {
            if !path.is_file() {
                check.say(key, "must be the path of a PEM file while server.tls.enabled is true");
            }
        }
        TlsFiles { cert: raw.tls.cert.clone(), key: raw.tls.key.clone() }
    });
    let max_body = check.within("server.max_body_bytes", raw.max_body_bytes, 1 << 10, 1 << 30);
    Server {
        address: SocketAddr::new(address("server.host", &raw.host, check), raw.port),
        tls,
        trusted_proxies: check.each("server.trusted_proxies", &raw.trusted_proxies, ip_net),
        max_body_bytes: usize::try_from(max_body).unwrap_or(usize::MAX),
    }
}

/// An address is the network that it is alone in.
pub(super) fn ip_net(text: &str) -> Result<IpNet, String> {
    let alone = || text.parse().ok().map(|ip: IpAddr| ip.to_canonical().into());
    let network = text.parse().ok().map(|network: IpNet| network.trunc());
    network
        .or_else(alone)
        .ok_or_else(|| "must be an IP address or a network, such as 192.0.2.0/24".to_owned())
}

fn address(key: &str, text: &str, check: &mut Check<'_>) -> IpAddr {
    let read = text.parse().map_err(|_| {
        "must be an IP address of this machine, such as 127.0.0.1, 0.0.0.0 or ::".to_owned()
    });
    check.or(key, read, Ipv4Addr::LOCALHOST.into())
}

/// What this version does not speak is refused rather than switched on without effect.
fn dialects(raw: &raw::Dialects, check: &mut Check<'_>) {
    let all = [
        ("sessions", &raw.sessions),
        ("sandboxes", &raw.sandboxes),
        ("environments", &raw.environments),
        ("images", &raw.images),
    ];
    for (name, dialect) in all {
        if dialect.enabled {
            let why = "must be false: this version of lightd does not speak this dialect";
            check.say(&format!("dialects.{name}.enabled"), why);
        }
    }
}

fn docker(raw: &raw::Docker, check: &mut Check<'_>) -> Docker {
    let user = run_as(&raw.user)
        .ok_or_else(|| "must be the numbers of a user and a group, such as 988:988".to_owned());
    let mut allowed_mounts = Vec::new();
    for (index, path) in raw.allowed_mounts.iter().enumerate() {
        if path.is_absolute() && !path.components().any(|part| part == Component::ParentDir) {
            allowed_mounts.push(path.clone());
        } else {
            check.say(
                &format!("docker.allowed_mounts[{index}]"),
                "must be an absolute path without '..'",
            );
        }
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if raw.node.len() > 63 || !raw.node.bytes().all(plain) {
        check.say("docker.node", "must have at most 63 characters of A-Z a-z 0-9 _ . -");
    }
    if !raw.socket_path.is_absolute() {
        check.say("docker.socket_path", "must be an absolute path");
    }
    Docker {
        socket_path: raw.socket_path.clone(),
        user: check.or("docker.user", user, RunAs { uid: 988, gid: 988 }),
        allowed_mounts,
        node: Some(raw.node.clone()).filter(|node| !node.is_empty()),
    }
}

fn run_as(text: &str) -> Option<RunAs> {
    let (uid, gid) = text.split_once(':')?;
    // The highest number means "leave it" to chown.
    let id = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
    Some(RunAs { uid: id(uid)?, gid: id(gid)? })
}

fn storage(raw: &raw::Storage, check: &mut Check<'_>) -> Storage {
    let mut absolute = |key: &str, path: &Path| -> PathBuf {
        let made = std::path::absolute(path).map_err(|why| format!("must be a path: {why}"));
        check.or(key, made, PathBuf::new())
    };
    let base_path = absolute("storage.base_path", &raw.base_path);
    let mut below = |key: &str, path: &Option<PathBuf>, name: &str| {
        path.as_ref().map_or_else(|| base_path.join(name), |path| absolute(key, path))
    };
    Storage {
        volumes_path: below("storage.volumes_path", &raw.volumes_path, "volumes"),
        containers_path: below("storage.containers_path", &raw.containers_path, "containers"),
        base_path,
        fsync: raw.fsync,
    }
}

fn console(raw: &raw::Console, check: &mut Check<'_>) -> Console {
    let ring = check.within("console.ring_bytes", raw.ring_bytes, 16 << 10, 64 << 20);
    Console {
        ring_bytes: usize::try_from(ring).unwrap_or(usize::MAX),
        journal_bytes: check.within("console.journal_bytes", raw.journal_bytes, 64 << 10, 1 << 40),
        journal_max_age: raw
            .journal_max_age
            .map(|age| check.span("console.journal_max_age", age.0, "1h", "3650d")),
    }
}

fn sockets(raw: &raw::Sockets, check: &mut Check<'_>) -> Sockets {
    let mut within = |key: &str, value, least, most| {
        let value = check.within(&format!("sockets.{key}"), value, least, most);
        usize::try_from(value).unwrap_or(usize::MAX)
    };
    let per_second = within("frames_per_second", raw.frames_per_second, 1, 10_000);
    Sockets {
        per_container: within("per_container", raw.per_container, 1, 1 << 20),
        per_node: within("per_node", raw.per_node, 1, 1 << 20),
        frame_max_bytes: within("frame_max_bytes", raw.frame_max_bytes, 1 << 10, 16 << 20),
        frames_per_second: u32::try_from(per_second).unwrap_or(u32::MAX),
    }
}

fn quota(raw: &raw::Quota) -> Quota {
    let backend = match raw.backend {
        raw::QuotaChoice::Auto => None,
        raw::QuotaChoice::Project => Some(QuotaBackend::Project),
        raw::QuotaChoice::Image => Some(QuotaBackend::Image),
        raw::QuotaChoice::Soft => Some(QuotaBackend::Soft),
    };
    Quota { backend, on_exceeded: raw.on_exceeded }
}

/// A shorter one could be guessed from what it has signed.
const SIGNING_SECRET_MIN_BYTES: usize = 16;

fn remote(raw: &raw::Remote, check: &mut Check<'_>) -> Remote {
    let health_interval = check.span("remote.health_interval", raw.health_interval.0, "1s", "1h");
    if !raw.enabled {
        return Remote { panel: None, power_events: raw.power_events };
    }
    let url = panel_url(&raw.url);
    if let Err(message) = &url {
        check.say("remote.url", message);
    }
    let token: &Secret = &raw.token;
    if token.is_empty() || !is_header_text(token.expose()) {
        check.say("remote.token", "must be set, in plain characters, while remote.enabled is true");
    }
    let signing_secret = raw.signing_secret.clone();
    if !signing_secret.is_empty() && signing_secret.expose().len() < SIGNING_SECRET_MIN_BYTES {
        let message = format!("must have at least {SIGNING_SECRET_MIN_BYTES} characters, or none");
        check.say("remote.signing_secret", message);
    }
    let panel = url.ok().map(|url| RemotePanel {
        url,
        token: token.clone(),
        signing_secret,
        health_interval,
    });
    Remote { panel, power_events: raw.power_events }
}

fn panel_url(text: &str) -> Result<Url, String> {
    let is_plain = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    let url = Url::parse(text).ok().filter(is_plain).ok_or_else(|| {
        "must be the panel's address while remote.enabled is true, such as \
         https://panel.example/api"
            .to_owned()
    })?;
    // It is shown where the configuration is shown.
    if url.username().is_empty() && url.password().is_none() {
        Ok(url)
    } else {
        Err("must not hold a user name or password; the panel is told remote.token".to_owned())
    }
}

pub(super) fn is_header_text(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}
