//! Between the engine's words and ours. Pure.
//!
//! Every container is made through `create_body`, so that no caller can forget a limit, a label or a
//! part of the hardening. An answer without a state is no look at all, and not one at a stopped container.

use std::collections::HashMap;

use bollard::models::{
    ContainerConfig, ContainerCreateBody, ContainerInspectResponse, ContainerState,
    ContainerStateStatusEnum, ContainerUpdateBody, HostConfig, HostConfigLogConfig, ImageConfig,
    Mount, MountType, PortBinding as VendorPort, PortMap, RestartPolicy, RestartPolicyNameEnum,
};

use super::labels;
use super::request::{Bind, CreateRequest, LogCap};
use crate::domain::observed::{Exit, Observed, ObservedStatus};
use crate::domain::spec::{HostPort, Limits, PortBinding, Protocol};
use crate::domain::units::{MIB, now_unix_ms};

/// `/tmp` is memory, counted against the container's own limit; the cap keeps a container without a
/// limit from filling the host's.
const TMP_MAX_BYTES: u64 = 256 * MIB;
/// The period behind `Limits::cpu`; the kernel's own default.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// The host ends workloads before its own services when it runs out of memory.
const OOM_SCORE_ADJ: i64 = 500;

pub(super) fn create_body(request: &CreateRequest, node: &str) -> ContainerCreateBody {
    let mut labels: HashMap<String, String> =
        request.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    labels.insert(labels::NODE.to_owned(), node.to_owned());
    let exposed = request.ports.iter().map(container_port).collect();
    ContainerCreateBody {
        image: Some(request.image.clone()),
        cmd: (!request.cmd.is_empty()).then(|| request.cmd.clone()),
        entrypoint: request.entrypoint.clone(),
        env: Some(request.env.clone()),
        user: request.user.clone(),
        working_dir: request.working_dir.clone(),
        tty: Some(request.tty),
        open_stdin: Some(true),
        // With `true` the first attach that ends would close the workload's standard input.
        stdin_once: Some(false),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        labels: Some(labels),
        stop_signal: request.stop_signal.clone(),
        exposed_ports: Some(exposed),
        host_config: Some(host_config(request)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(request: &CreateRequest) -> HostConfig {
    let limits = &request.limits;
    let (cpu_quota, cpu_period) = cpu_quota_and_period(limits);
    HostConfig {
        memory: limits.memory.map(signed),
        memory_swap: limits.memory_swap.or(limits.memory).map(signed),
        memory_reservation: limits.memory_reservation.map(signed),
        cpu_quota,
        cpu_period,
        cpu_shares: limits.cpu_shares.map(signed),
        pids_limit: limits.pids.map(signed),
        oom_score_adj: Some(OOM_SCORE_ADJ),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(request.hardening.cap_add.iter().map(|&name| name.to_owned()).collect()),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        readonly_rootfs: Some(request.hardening.read_only_root),
        init: Some(true),
        ipc_mode: Some("private".to_owned()),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), tmp_options(limits))])),
        mounts: Some(request.binds.iter().map(bind_mount).collect()),
        network_mode: Some(request.network.clone().unwrap_or_else(|| "none".to_owned())),
        port_bindings: Some(port_map(&request.ports)),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        log_config: Some(log_config(request.log)),
        ..HostConfig::default()
    }
}

/// Quota and period, never the engine's `NanoCpus`: a container made with one of the two ways cannot
/// be changed over to the other.
fn cpu_quota_and_period(limits: &Limits) -> (Option<i64>, Option<i64>) {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "cores are few; the kernel's least quota is 1000 µs"
    )]
    let from_cores =
        limits.cpu.map(|cores| ((cores * CPU_PERIOD_MICROS as f64).round() as i64).max(1000));
    match from_cores {
        Some(quota) => (Some(quota), Some(signed(CPU_PERIOD_MICROS))),
        None => (limits.cpu_quota.map(signed), limits.cpu_period.map(signed)),
    }
}

/// The engine's own default forbids execution and takes the image's mode.
fn tmp_options(limits: &Limits) -> String {
    let size = limits.memory.map_or(TMP_MAX_BYTES, |memory| memory.min(TMP_MAX_BYTES));
    format!("rw,exec,nosuid,nodev,mode=1777,size={size}")
}

/// A mount and not a bind string: that would split at a colon in the path, and make missing folders
/// as root.
fn bind_mount(bind: &Bind) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.source.to_string_lossy().into_owned()),
        target: Some(bind.target.clone()),
        read_only: Some(bind.read_only),
        ..Mount::default()
    }
}

fn container_port(port: &PortBinding) -> String {
    format!("{}/{}", port.container_port, port.host.protocol.as_str())
}

fn port_map(ports: &[PortBinding]) -> PortMap {
    let mut map = PortMap::new();
    for port in ports {
        let host = VendorPort {
            host_ip: Some(port.host.ip.to_string()),
            host_port: Some(port.host.port.to_string()),
        };
        map.entry(container_port(port)).or_default().get_or_insert_default().push(host);
    }
    map
}

fn log_config(cap: LogCap) -> HostConfigLogConfig {
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from([
            ("max-size".to_owned(), cap.max_size_bytes.to_string()),
            ("max-file".to_owned(), cap.max_files.max(1).to_string()),
        ])),
    }
}

/// What is `None` stays as it is: the engine cannot lift a limit from a running container.
pub(super) fn update_body(limits: &Limits) -> ContainerUpdateBody {
    let (cpu_quota, cpu_period) = cpu_quota_and_period(limits);
    ContainerUpdateBody {
        // Together: memory alone above the present swap limit is refused.
        memory: limits.memory.map(signed),
        memory_swap: limits.memory_swap.or(limits.memory).map(signed),
        memory_reservation: limits.memory_reservation.map(signed),
        cpu_quota,
        cpu_period,
        cpu_shares: limits.cpu_shares.map(signed),
        pids_limit: limits.pids.map(signed),
        ..ContainerUpdateBody::default()
    }
}

/// `None` where the engine's answer lacks what it always has.
pub(super) fn observed(found: &ContainerInspectResponse) -> Option<Observed> {
    let state = found.state.as_ref()?;
    let started_at_ms = unix_ms(state.started_at.as_deref());
    Some(Observed {
        docker_id: found.id.clone()?,
        status: status(state, started_at_ms),
        pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid != 0),
        started_at_ms,
        tty: found.config.as_ref().and_then(|config| config.tty).unwrap_or(false),
    })
}

/// The engine writes "never" as the year 1.
fn unix_ms(text: Option<&str>) -> Option<i64> {
    let time = text?.parse::<jiff::Timestamp>().ok()?;
    Some(time.as_millisecond()).filter(|&ms| ms > 0)
}

fn status(state: &ContainerState, started_at_ms: Option<i64>) -> ObservedStatus {
    let exit = Exit {
        code: state.exit_code.unwrap_or(0),
        oom_engine: state.oom_killed.unwrap_or(false),
        oom_kernel: false,
        at_ms: unix_ms(state.finished_at.as_deref()).unwrap_or_else(now_unix_ms),
    };
    if state.paused == Some(true) {
        ObservedStatus::Paused
    } else if state.running == Some(true) {
        ObservedStatus::Running
    } else if state.status == Some(ContainerStateStatusEnum::CREATED)
        || (started_at_ms.is_none() && exit.code == 0)
    {
        ObservedStatus::Created
    } else {
        ObservedStatus::Exited(exit)
    }
}

/// The host's ports that a container publishes: those it was made with, and those it has now. Without an
/// address it is on all of them.
pub(super) fn published(found: &ContainerInspectResponse) -> Vec<HostPort> {
    let made_with = found.host_config.as_ref().and_then(|host| host.port_bindings.as_ref());
    let has_now = found.network_settings.as_ref().and_then(|network| network.ports.as_ref());
    let bound = |protocol: Protocol, binding: &VendorPort| {
        let ip = binding.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
        // Neither a range nor 0 says which port it is; what it is shows once it runs.
        let port = binding.host_port.as_deref()?.parse().ok().filter(|port| *port != 0)?;
        Some(HostPort { ip: ip.parse().ok()?, port, protocol })
    };
    let mut ports = Vec::new();
    for (name, bindings) in made_with.into_iter().chain(has_now).flatten() {
        let protocol = name
            .split_once('/')
            .map_or(Some(Protocol::Tcp), |(_, protocol)| Protocol::parse(protocol));
        let Some(protocol) = protocol else { continue };
        ports.extend(bindings.iter().flatten().filter_map(|binding| bound(protocol, binding)));
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

pub(super) fn address(found: &ContainerInspectResponse, network: &str) -> Option<std::net::IpAddr> {
    let endpoint = found.network_settings.as_ref()?.networks.as_ref()?.get(network)?;
    endpoint.ip_address.as_deref()?.parse().ok()
}

/// The configuration of an image made of a container, as its base image had it.
///
/// The engine fills whatever is left empty here from the container and joins its environment and
/// labels, so that a name can't be taken away, only be given another value: what the base image does
/// not have is set to nothing.
pub(super) fn commit_config(
    base: &ImageConfig,
    container: &ContainerConfig,
    node: &str,
    made_from: &str,
) -> ContainerConfig {
    let or = |value: &Option<String>, default: &str| {
        Some(value.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned()))
    };
    let mut labels = base.labels.clone().unwrap_or_default();
    for name in container.labels.iter().flatten().map(|(name, _)| name.as_str()) {
        labels.entry(name.to_owned()).or_default();
    }
    for name in labels::OF_CONTAINERS {
        labels.insert(name.to_owned(), String::new());
    }
    labels.insert(labels::IMAGE.to_owned(), node.to_owned());
    labels.insert(labels::MADE_FROM.to_owned(), made_from.to_owned());
    ContainerConfig {
        cmd: Some(base.cmd.clone().unwrap_or_default()),
        entrypoint: Some(base.entrypoint.clone().unwrap_or_default()),
        env: Some(env_as_in_base(base.env.as_deref(), container.env.as_deref())),
        user: or(&base.user, "0"),
        working_dir: or(&base.working_dir, "/"),
        stop_signal: base.stop_signal.clone(),
        labels: Some(labels),
        ..ContainerConfig::default()
    }
}

fn env_as_in_base(base: Option<&[String]>, container: Option<&[String]>) -> Vec<String> {
    let name_of = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env = base.unwrap_or_default().to_vec();
    let known: Vec<String> = env.iter().map(|entry| name_of(entry)).collect();
    let foreign = container.unwrap_or_default().iter().map(|entry| name_of(entry));
    env.extend(foreign.filter(|name| !known.contains(name)).map(|name| format!("{name}=")));
    env
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::request::Hardening;

    fn request() -> CreateRequest {
        CreateRequest {
            name: "lightd-a".to_owned(),
            image: "debian:12".to_owned(),
            cmd: vec!["true".to_owned()],
            entrypoint: None,
            env: vec!["A=b".to_owned()],
            user: Some("988:988".to_owned()),
            working_dir: None,
            tty: false,
            labels: [(labels::CONTAINER.to_owned(), "a".to_owned())].into(),
            network: None,
            binds: vec![Bind {
                source: "/srv/a:b".into(),
                target: "/home/container".to_owned(),
                read_only: false,
            }],
            ports: Vec::new(),
            limits: Limits::default(),
            hardening: Hardening { cap_add: vec!["CHOWN"], read_only_root: true },
            stop_signal: None,
            log: LogCap { max_size_bytes: 1 << 20, max_files: 2 },
        }
    }

    fn host(request: &CreateRequest) -> HostConfig {
        create_body(request, "n").host_config.expect("invariant: always set")
    }

    #[test]
    fn every_container_is_hardened() {
        let host = host(&request());
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.cap_add, Some(vec!["CHOWN".to_owned()]));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges:true".to_owned()]));
        assert_eq!((host.init, host.readonly_rootfs), (Some(true), Some(true)));
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.privileged, None);
        let tmp = &host.tmpfs.expect("a tmpfs")["/tmp"];
        assert_eq!(tmp, "rw,exec,nosuid,nodev,mode=1777,size=268435456");
    }

    #[test]
    fn the_nodes_label_is_added_and_cannot_be_forged() {
        let mut request = request();
        request.labels.insert(labels::NODE.to_owned(), "another".to_owned());
        let labels = create_body(&request, "mine").labels.expect("labels");
        assert_eq!(labels[labels::NODE], "mine");
        assert_eq!(labels[labels::CONTAINER], "a");
    }

    #[test]
    fn memory_and_swap_go_together() {
        let mut request = request();
        request.limits.memory = Some(64 * MIB);
        let without_swap = host(&request);
        assert_eq!(without_swap.memory_swap, without_swap.memory);
        assert!(without_swap.tmpfs.expect("a tmpfs")["/tmp"].ends_with("size=67108864"));
        request.limits.memory_swap = Some(96 * MIB);
        assert_eq!(host(&request).memory_swap, Some(96 << 20));
        assert_eq!(update_body(&request.limits).memory_swap, Some(96 << 20));
    }

    #[test]
    fn cores_become_quota_and_period_so_that_both_forms_can_be_changed_into_each_other() {
        let of = |limits: &Limits| cpu_quota_and_period(limits);
        let cores = Limits { cpu: Some(1.5), ..Limits::default() };
        assert_eq!(of(&cores), (Some(150_000), Some(100_000)));
        let least = Limits { cpu: Some(0.001), ..Limits::default() };
        assert_eq!(of(&least), (Some(1000), Some(100_000)));
        let long =
            Limits { cpu_quota: Some(20_000), cpu_period: Some(50_000), ..Limits::default() };
        assert_eq!(of(&long), (Some(20_000), Some(50_000)));
    }

    #[test]
    fn one_container_port_may_have_several_addresses_and_protocols() {
        let port = |ip: &str, port, protocol| PortBinding {
            host: HostPort { ip: ip.parse().expect("an address"), port, protocol },
            container_port: 80,
        };
        let map = port_map(&[
            port("127.0.0.1", 8080, Protocol::Tcp),
            port("::1", 8080, Protocol::Tcp),
            port("127.0.0.1", 8080, Protocol::Udp),
        ]);
        assert_eq!(map["80/tcp"].as_ref().map(Vec::len), Some(2));
        let udp = map["80/udp"].as_ref().expect("a binding");
        assert_eq!(udp[0].host_ip.as_deref(), Some("127.0.0.1"));
        assert_eq!(udp[0].host_port.as_deref(), Some("8080"));
    }

    fn seen(json: &str) -> Observed {
        let json = format!(r#"{{"Id":"x","Config":{{"Tty":true}},"State":{json}}}"#);
        observed(&serde_json::from_str(&json).expect("valid JSON")).expect("a state")
    }

    #[test]
    fn looks_become_observations() {
        let created = seen(
            r#"{"Status":"created","Running":false,"Pid":0,"ExitCode":0,"StartedAt":"0001-01-01T00:00:00Z"}"#,
        );
        assert_eq!(created.status, ObservedStatus::Created);
        assert_eq!((created.pid, created.started_at_ms, created.tty), (None, None, true));
        let running = seen(
            r#"{"Status":"running","Running":true,"Pid":7,"ExitCode":0,"StartedAt":"2026-01-01T00:00:00.5Z"}"#,
        );
        assert_eq!(running.status, ObservedStatus::Running);
        assert_eq!((running.pid, running.started_at_ms), (Some(7), Some(1_767_225_600_500)));
        let paused = seen(r#"{"Status":"paused","Running":true,"Paused":true,"Pid":7}"#);
        assert_eq!(paused.status, ObservedStatus::Paused);
        let exited = seen(
            r#"{"Status":"exited","Running":false,"OOMKilled":true,"ExitCode":137,"StartedAt":"2026-01-01T00:00:00Z","FinishedAt":"2026-01-01T00:00:02Z"}"#,
        );
        let exit = |code, oom_engine, at_ms| {
            ObservedStatus::Exited(Exit { code, oom_engine, oom_kernel: false, at_ms })
        };
        assert_eq!(exited.status, exit(137, true, 1_767_225_602_000));
        // Its start failed: the engine sets the exit code and no time.
        let failed =
            seen(r#"{"Status":"exited","ExitCode":127,"StartedAt":"0001-01-01T00:00:00Z"}"#);
        assert!(matches!(failed.status, ObservedStatus::Exited(Exit { code: 127, .. })));
    }

    #[test]
    fn an_image_made_of_a_container_is_configured_as_its_base() {
        let base = ImageConfig {
            env: Some(vec!["PATH=/bin".to_owned()]),
            cmd: Some(vec!["sh".to_owned()]),
            labels: Some([("vendor".to_owned(), "v".to_owned())].into()),
            ..ImageConfig::default()
        };
        let container = ContainerConfig {
            env: Some(vec!["PATH=/else".to_owned(), "SECRET=x=y".to_owned()]),
            labels: Some([("team".to_owned(), "t".to_owned())].into()),
            ..ContainerConfig::default()
        };
        let config = commit_config(&base, &container, "n", "c");
        assert_eq!(config.env, Some(vec!["PATH=/bin".to_owned(), "SECRET=".to_owned()]));
        assert_eq!(config.cmd, Some(vec!["sh".to_owned()]));
        assert_eq!(config.entrypoint, Some(Vec::new()));
        assert_eq!((config.user.as_deref(), config.working_dir.as_deref()), (Some("0"), Some("/")));
        let labels = config.labels.expect("labels");
        let value = |name: &str| labels.get(name).map(String::as_str);
        assert_eq!(value("vendor"), Some("v"));
        assert_eq!(value("team"), Some(""));
        assert_eq!(value(labels::NODE), Some(""));
        assert_eq!(value(labels::IMAGE), Some("n"));
    }

    #[test]
    fn what_a_container_publishes_is_read_from_what_it_was_made_with_and_what_it_has() {
        let map = |ports: &[(&str, &str, &str)]| {
            let mut map = PortMap::new();
            for (name, ip, port) in ports {
                let binding = VendorPort {
                    host_ip: Some((*ip).to_owned()),
                    host_port: Some((*port).to_owned()),
                };
                map.entry((*name).to_owned()).or_default().get_or_insert_default().push(binding);
            }
            map
        };
        let found = ContainerInspectResponse {
            host_config: Some(HostConfig {
                port_bindings: Some(map(&[
                    ("80/tcp", "", "8080"),
                    ("53/udp", "127.0.0.1", "53"),
                    ("81/tcp", "", "0"),
                    ("82/tcp", "", "9000-9010"),
                    ("83/sctp", "", "83"),
                ])),
                ..HostConfig::default()
            }),
            network_settings: Some(bollard::models::NetworkSettings {
                ports: Some(map(&[
                    ("80/tcp", "0.0.0.0", "8080"),
                    ("80/tcp", "::", "8080"),
                    ("81/tcp", "0.0.0.0", "49153"),
                ])),
                ..Default::default()
            }),
            ..ContainerInspectResponse::default()
        };
        let shown: Vec<String> = published(&found)
            .iter()
            .map(|at| format!("{} {} {}", at.ip, at.port, at.protocol.as_str()))
            .collect();
        assert_eq!(
            shown,
            ["0.0.0.0 8080 tcp", "0.0.0.0 49153 tcp", "127.0.0.1 53 udp", ":: 8080 tcp"]
        );
    }
}
