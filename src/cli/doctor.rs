//! `lightd doctor`: looks at what lightd needs and says how to mend what is missing.
//!
//! Every look is made, whatever the ones before have found; none changes anything.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::client::{ClientError, Daemon, block_on};
use super::serve::how_to_listen;
use crate::config::source::Source;
use crate::config::{Config, Firewall};
use crate::domain::quota::QuotaBackend;
use crate::domain::units::MIB;
use crate::engine::{Engine, EngineOptions, Health};
use crate::files::backing;
use crate::network::{firewall, nft};
use crate::util::chain::Chain;

/// A finding: what was looked at, and what is wrong with how to mend it, or what was found good.
type Finding = (&'static str, Result<String, String>);

const ENGINE_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// With less, the next install or world save is likely to fail.
const FREE_MIN_BYTES: u64 = 1024 * MIB;

/// Exit code 0 if all is well, 1 if something is not.
pub(super) fn run(source: &Source, out: &mut dyn Write) -> ExitCode {
    let findings = match source.preview() {
        Ok(config) => look(source, &config),
        Err(error) => vec![("configuration", Err(Chain(&error).to_string()))],
    };
    let mut all_well = true;
    for (what, finding) in findings {
        let (mark, text) = match finding {
            Ok(text) => ("ok  ", text),
            Err(text) => {
                all_well = false;
                ("FAIL", text)
            }
        };
        if writeln!(out, "{mark} {what}: {text}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn look(source: &Source, config: &Config) -> Vec<Finding> {
    vec![
        ("configuration", Ok(source.path().display().to_string())),
        ("rights", rights()),
        ("storage", writable(&config.storage.base_path)),
        ("quota", quota(config)),
        ("disk", room(&config.storage.volumes_path)),
        ("engine", engine(config)),
        ("firewall", rules(config)),
        ("daemon", daemon(source, config)),
    ]
}

fn rights() -> Result<String, String> {
    if rustix::process::geteuid().is_root() {
        Ok("root".to_owned())
    } else {
        Err("not root, so neither the firewall nor the servers' files can be set up; use sudo"
            .to_owned())
    }
}

/// Of the file system that the folder is on, or will be on.
fn room(folder: &Path) -> Result<String, String> {
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    let system = rustix::fs::statvfs(there)
        .map_err(|error| format!("{} cannot be looked at: {error}", there.display()))?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    let text = format!("{} MiB are free for {}", free / MIB, folder.display());
    if free >= FREE_MIN_BYTES {
        Ok(text)
    } else {
        Err(format!("only {text}; make room, or set storage.volumes_path to a larger disk"))
    }
}

fn writable(folder: &Path) -> Result<String, String> {
    let shown = folder.display();
    tempfile_in(folder).map(|()| format!("{shown} can be written")).map_err(|error| {
        format!("{shown} cannot be written ({error}); make it, or set storage.base_path, or run as a user that may")
    })
}

fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let probe = folder.join(format!(".doctor-{}", std::process::id()));
    std::fs::File::create_new(&probe)?;
    std::fs::remove_file(&probe)
}

/// Every backend is tried; only the configured one must work.
fn quota(config: &Config) -> Result<String, String> {
    let volumes = &config.storage.volumes_path;
    std::fs::create_dir_all(volumes)
        .map_err(|error| format!("{} cannot be made ({error})", volumes.display()))?;
    let owner = (config.docker.user.uid, config.docker.user.gid);
    let mut works = Vec::new();
    let mut not = Vec::new();
    for backend in QuotaBackend::ALL {
        match backing::probe(backend, volumes, owner) {
            Ok(()) => works.push(backend),
            Err(error) => not.push((backend, Chain(&error).to_string())),
        }
    }
    let names = |list: &[QuotaBackend]| {
        list.iter().map(|backend| backend.as_str()).collect::<Vec<_>>().join(", ")
    };
    let why: Vec<_> =
        not.iter().map(|(backend, why)| format!("{} does not: {why}", backend.as_str())).collect();
    let mut said = format!("works: {}", names(&works));
    if !why.is_empty() {
        said = format!("{said}; {}", why.join("; "));
    }
    match config.quota.backend {
        Some(wanted) if !works.contains(&wanted) => Err(format!(
            "quota.backend is {}, so volumes with a size cannot be made; {said}",
            wanted.as_str()
        )),
        Some(wanted) => Ok(format!("{} is configured; {said}", wanted.as_str())),
        None => {
            Ok(format!("auto takes {}; {said}", works.first().map_or("none", |best| best.as_str())))
        }
    }
}

fn engine(config: &Config) -> Result<String, String> {
    let socket_path = config.docker.socket_path.clone();
    let shown = socket_path.display().to_string();
    let engine = Engine::new(EngineOptions { socket_path, node: "doctor".to_owned() });
    let mut health = engine.health();
    let look = async {
        let stop = tokio_util::sync::CancellationToken::new();
        let answered =
            tokio::time::timeout(ENGINE_ANSWERS_WITHIN, health.wait_for(Health::is_reachable));
        let answered = tokio::select! {
            answered = answered => answered.is_ok(),
            () = engine.watch_health(stop) => false,
        };
        Ok::<bool, ClientError>(answered)
    };
    let answered = block_on(look).unwrap_or(false);
    match &*engine.health().borrow() {
        Health::Reachable { version, api_version, .. } if answered => {
            Ok(format!("version {version}, API {api_version}, at {shown}"))
        }
        Health::Unreachable { reason, .. } => Err(format!(
            "does not answer at {shown}: {}",
            how_to_reach(&config.docker.socket_path, reason)
        )),
        Health::Reachable { .. } => Err(format!("does not answer at {shown} in time")),
    }
}

fn how_to_reach(socket: &Path, reason: &str) -> String {
    let advice = match UnixStream::connect(socket).map_err(|error| error.kind()) {
        Err(io::ErrorKind::NotFound) => {
            "there is no such socket; install Docker (apt-get install docker.io), start it (systemctl \
             start docker), or set docker.socket_path"
        }
        Err(io::ErrorKind::PermissionDenied) => "this user may not use it; use sudo",
        Err(io::ErrorKind::ConnectionRefused) => {
            "nobody listens; start Docker (systemctl start docker), or see why it ended (journalctl -u \
             docker)"
        }
        _ => reason,
    };
    advice.to_owned()
}

fn rules(config: &Config) -> Result<String, String> {
    match config.network.firewall {
        Firewall::Off => {
            Ok("off by configuration: containers are kept apart by other means".to_owned())
        }
        Firewall::Nftables => match nft::find_nft() {
            Some(path) => containers_rules(config).map(|()| {
                format!("nftables, by {}; the kernel takes rules for containers", path.display())
            }),
            None => Err("nft is missing; install the package nftables, or no container is started"
                .to_owned()),
        },
    }
}

/// Whether the kernel would take all kinds of rules that may be asked for; none is set.
fn containers_rules(config: &Config) -> Result<(), String> {
    let bridge = config.network.bridge.clone();
    let probe = async move { Ok::<_, ClientError>(firewall::probe(&bridge).await) };
    match block_on(probe) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!(
            "rules for containers cannot be set: {}; they need Linux 5.9 or newer with nf_tables, and root",
            Chain(&error)
        )),
        Err(error) => Err(Chain(&error).to_string()),
    }
}

fn daemon(source: &Source, config: &Config) -> Result<String, String> {
    let daemon = Daemon::with(source, config);
    // A call that needs the token, so that another one's daemon is not taken for this one.
    let answer = block_on(async move {
        daemon.get("/containers?limit=1").await?;
        daemon.get("/api/v1/public/ping").await
    });
    match answer {
        Ok(answer) => {
            let version = answer["version"].as_str().unwrap_or("?");
            Ok(format!("version {version} runs on {}", config.server.address))
        }
        Err(ClientError::Connect(..)) => match std::net::TcpListener::bind(config.server.address) {
            Ok(_) => Ok(format!("is not running; {} is free", config.server.address)),
            Err(error) => Err(format!(
                "cannot listen on {}: {error} ({})",
                config.server.address,
                how_to_listen(&error)
            )),
        },
        Err(error) => Err(Chain(&error).to_string()),
    }
}
