//! What a container is made of: its entrypoint, its environment, the requests to the engine. Pure.
//!
//! **Signals.** The first process is the engine's small init in its process-group mode, the second a
//! shell running the entrypoint, the third the workload. A stop signal goes to the whole group. The
//! shell catches it, so that it outlives the workload (a shell that dies first takes an unsaved server
//! with it); when the workload has ended it waits for whatever else still runs, such as a server whose
//! own wrapping shell died of the signal, and ends with the workload's exit code. Caught signals are
//! reset to their defaults in children, so the workload sees an ordinary world.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Settings, Snapshot};
use crate::domain::ids::{ContainerId, RunId};
use crate::domain::lifecycle::{EndedBy, Policy};
use crate::domain::spec::{ContainerSpec, Limits, PortBinding, StopHow};
use crate::domain::template;
use crate::domain::units::MIB;
use crate::engine::{Bind, CreateRequest, Hardening, labels};

/// Where the volume is mounted, and the workload's home and working directory.
const HOME: &str = "/home/container";
/// Where install scripts of other panels expect the volume.
const INSTALL_HOME: &str = "/mnt/server";
/// Where lightd's own files for the container are mounted, read-only.
const DATA: &str = "/app/data";
pub(super) const ENTRYPOINT_FILE: &str = "entrypoint.sh";
pub(super) const INSTALL_FILE: &str = "install.sh";

/// What a workload that is not root and owns its volume needs of root's powers: to answer on low ports.
const WORKLOAD_CAPABILITIES: &[&str] = &["NET_BIND_SERVICE"];
/// What package managers need beside being root: to own, to hand over, to drop to their own users.
const INSTALL_CAPABILITIES: &[&str] =
    &["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "NET_BIND_SERVICE"];

/// The parts of a container's folder and its volume that are mounted.
#[derive(Clone, Debug)]
pub(super) struct Places<'a> {
    pub(super) volume: &'a Path,
    pub(super) data: &'a Path,
}

pub(super) fn policy(spec: &ContainerSpec, settings: &Settings) -> Policy {
    Policy {
        stop_grace: spec.stop.grace,
        stop_by: match spec.stop.how {
            StopHow::Signal(_) => EndedBy::Signal,
            StopHow::Command(_) => EndedBy::Command,
        },
        start_timeout: spec.start_timeout.or(settings.start_timeout),
        crash: spec.restart_on_crash.policy(),
        autostart: spec.autostart,
        chance: rand::random(),
    }
}

/// The script that runs the start command; see the module's text on signals.
pub(super) fn entrypoint(spec: &ContainerSpec, ports: &[PortBinding]) -> String {
    let mut values = spec.env.clone();
    values.extend(built_in_values(spec, ports));
    let command = template::render(&spec.startup_command, &values);
    format!(
        "#!/bin/sh\n\
         lightd_end() {{\n\
         \x20 while kill -0 -1 2>/dev/null; do sleep 0.05 2>/dev/null || sleep 1 || break; done\n\
         \x20 exit \"$1\"\n\
         }}\n\
         trap 'lightd_end $?' TERM INT HUP QUIT USR1 USR2\n\
         cd {HOME} || exit 126\n\
         {command}\n"
    )
}

fn built_in_values(spec: &ContainerSpec, ports: &[PortBinding]) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let memory_mb = spec.limits.memory.map_or(0, |bytes| bytes / MIB);
    values.insert("SERVER_MEMORY".to_owned(), memory_mb.to_string());
    if let Some(first) = ports.first() {
        values.insert("SERVER_IP".to_owned(), first.host.ip.to_string());
        values.insert("SERVER_PORT".to_owned(), first.container_port.to_string());
    }
    values
}

/// The environment of workload and install script, `NAME=value`.
fn environment(spec: &ContainerSpec, ports: &[PortBinding], settings: &Settings) -> Vec<String> {
    let mut values = spec.env.clone();
    values.extend(built_in_values(spec, ports));
    values.entry("TZ".to_owned()).or_insert_with(|| settings.time_zone.clone());
    values.insert("HOME".to_owned(), HOME.to_owned());
    values.insert("TINI_KILL_PROCESS_GROUP".to_owned(), "1".to_owned());
    values.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The request for the container that runs the workload.
pub(super) fn workload_request(
    of: &Snapshot,
    ports: &[PortBinding],
    places: &Places<'_>,
    settings: &Settings,
) -> CreateRequest {
    let spec = &of.spec;
    let mut binds = vec![bind(places.volume, HOME, false), bind(places.data, DATA, true)];
    binds.extend(
        spec.mounts.iter().map(|mount| bind(&mount.source, &mount.target, mount.read_only)),
    );
    CreateRequest {
        name: of.id.docker_name(),
        image: of.own_image.clone().unwrap_or_else(|| spec.image.clone()),
        cmd: vec!["/bin/sh".to_owned(), format!("{DATA}/{ENTRYPOINT_FILE}")],
        entrypoint: Some(Vec::new()),
        env: environment(spec, ports, settings),
        user: Some(settings.user_text()),
        working_dir: Some(HOME.to_owned()),
        tty: spec.tty,
        labels: labels_of(&of.id, labels::ROLE_WORKLOAD, of.run),
        network: Some(settings.network.clone()),
        binds,
        ports: ports.to_vec(),
        limits: with_defaults(spec.limits, settings),
        hardening: Hardening {
            cap_add: WORKLOAD_CAPABILITIES.to_vec(),
            read_only_root: spec.read_only,
        },
        stop_signal: None,
        log: settings.log,
    }
}

/// The request for the container that runs the install script: the workload's limits and isolation, but
/// root, on a writable root file system, with no port and no host folder.
pub(super) fn install_request(
    of: &Snapshot,
    script: &str,
    places: &Places<'_>,
    settings: &Settings,
) -> CreateRequest {
    let spec = &of.spec;
    CreateRequest {
        name: install_name(&of.id),
        image: spec.install_image.clone().unwrap_or_else(|| spec.image.clone()),
        cmd: interpreter(script),
        entrypoint: Some(Vec::new()),
        env: environment(spec, &of.ports, settings),
        user: Some("0:0".to_owned()),
        working_dir: Some(HOME.to_owned()),
        tty: false,
        labels: labels_of(&of.id, labels::ROLE_INSTALL, of.run),
        network: Some(settings.network.clone()),
        binds: vec![
            bind(places.volume, HOME, false),
            bind(places.volume, INSTALL_HOME, false),
            bind(places.data, DATA, true),
        ],
        ports: Vec::new(),
        limits: with_defaults(spec.limits, settings),
        hardening: Hardening { cap_add: INSTALL_CAPABILITIES.to_vec(), read_only_root: false },
        stop_signal: None,
        log: settings.log,
    }
}

pub(super) fn install_name(id: &ContainerId) -> String {
    format!("lightd.install-{id}")
}

/// The name under which a container waits while its successor is tried.
pub(super) fn aside_name(id: &ContainerId) -> String {
    format!("lightd.aside-{id}")
}

/// The repository of images that install scripts leave behind. Image names know no capitals, so the
/// container's name is written in hexadecimal where it has any.
pub(super) fn own_image_repository(id: &ContainerId) -> String {
    let plain = id.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if plain {
        format!("lightd-installed/{id}")
    } else {
        format!("lightd-installed/h-{}", hex::encode(id.as_str()))
    }
}

/// Whether a path that an install changed belongs to the image rather than to something mounted.
pub(super) fn is_in_root_file_system(path: &str) -> bool {
    const NOT_KEPT: &[&str] = &[HOME, INSTALL_HOME, DATA, "/tmp", "/dev", "/proc", "/sys", "/run"];
    // What the engine itself makes: mount points, the folders above them and its own small files.
    const MADE_BY_ENGINE: &[&str] = &[
        "/home",
        "/mnt",
        "/app",
        "/etc",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/etc/mtab",
        "/sbin",
        "/sbin/docker-init",
        "/.dockerenv",
    ];
    let within = |root: &str| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    !NOT_KEPT.iter().any(|root| within(root)) && !MADE_BY_ENGINE.contains(&path)
}

/// The command line that the script's first line asks for, `/bin/sh` without one.
fn interpreter(script: &str) -> Vec<String> {
    let file = format!("{DATA}/{INSTALL_FILE}");
    let first = script.lines().next().unwrap_or_default();
    let mut words: Vec<String> = match first.strip_prefix("#!").map(str::trim) {
        // As the kernel reads it: one program, and the rest as one argument; but `env` is given words.
        Some(line) if !line.is_empty() => line.split_whitespace().map(str::to_owned).collect(),
        _ => vec!["/bin/sh".to_owned()],
    };
    words.push(file);
    words
}

fn bind(source: &Path, target: &str, read_only: bool) -> Bind {
    Bind { source: source.to_owned(), target: target.to_owned(), read_only }
}

fn labels_of(id: &ContainerId, role: &str, run: RunId) -> BTreeMap<String, String> {
    [
        (labels::CONTAINER, id.to_string()),
        (labels::ROLE, role.to_owned()),
        (labels::RUN, run.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

pub(super) fn with_defaults(limits: Limits, settings: &Settings) -> Limits {
    Limits { pids: Some(limits.pids.unwrap_or(settings.default_pids)), ..limits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_of_the_first_line_runs_the_script() {
        let file = "/app/data/install.sh".to_owned();
        assert_eq!(interpreter("echo"), ["/bin/sh", &file]);
        assert_eq!(interpreter("#!/bin/bash\necho"), ["/bin/bash", &file]);
        assert_eq!(
            interpreter("#! /usr/bin/env bash -e\r\n"),
            ["/usr/bin/env", "bash", "-e", &file]
        );
        assert_eq!(interpreter("#!\n"), ["/bin/sh", &file]);
    }

    #[test]
    fn only_what_no_mount_holds_makes_an_image() {
        for kept in ["/usr/bin/curl", "/etc/passwd", "/home/other", "/appendix"] {
            assert!(is_in_root_file_system(kept), "{kept}");
        }
        for not in [
            "/home/container",
            "/home/container/x",
            "/mnt/server",
            "/app",
            "/tmp/x",
            "/etc",
            "/etc/hosts",
        ] {
            assert!(!is_in_root_file_system(not), "{not}");
        }
    }

    #[test]
    fn image_repositories_are_lower_case_and_tell_names_apart() {
        let repository = |text: &str| own_image_repository(&ContainerId::parse(text).unwrap());
        assert_eq!(repository("abc1"), "lightd-installed/abc1");
        assert_ne!(repository("Abc1"), repository("abc1"));
        assert_ne!(repository("a-b"), repository("a.b"));
        let all_plain = |text: String| {
            text.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'/' || b == b'-')
        };
        assert!(all_plain(repository("Ab.C_d")));
    }
}
