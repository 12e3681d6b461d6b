//! The engine module against the real engine.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::containers::{ChangeKind, ChangedPath};
use super::logs::LogMoment;
use super::networks::UsedSubnet;
use super::testing::{SOCKET, TestNode, read_until};
use super::*;
use crate::domain::observed::ObservedStatus;
use crate::domain::spec::Limits;
use crate::domain::stream::Stream;
use crate::domain::units::MIB;

const SOON: Duration = Duration::from_secs(20);

async fn status(engine: &Engine, id: &str) -> ObservedStatus {
    engine.inspect(id).await.expect("a look").expect("a container").status
}

async fn read_to_end(output: &mut OutputStream) -> (Vec<u8>, Vec<u8>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(chunk) = output.next().await.expect("no error") {
        match chunk.stream {
            Stream::Out => out.extend_from_slice(&chunk.bytes),
            Stream::Err => err.extend_from_slice(&chunk.bytes),
        }
    }
    (out, err)
}

#[tokio::test]
async fn what_is_attached_before_the_start_misses_nothing_and_the_exit_is_seen() {
    let node = TestNode::new().await;
    let engine = &node.engine;
    let cmd = ["guest", "lines", "20000", "--", "complain", "oops", "--", "exit", "7"];
    let id = engine.create(&node.request("a", &cmd)).await.expect("a container").docker_id;
    assert_eq!(status(engine, &id).await, ObservedStatus::Created);
    let mut attached = engine.attach(&id, false).await.expect("an attach");
    engine.start(&id).await.expect("a start");
    let (out, err) = timeout(SOON, read_to_end(&mut attached.output)).await.expect("an end");
    let lines: Vec<&str> = std::str::from_utf8(&out).expect("text").lines().collect();
    assert_eq!((lines.len(), lines[0], lines[19_999]), (20_000, "line 1 ", "line 20000 "));
    assert_eq!(err, b"oops\n");
    let exit = timeout(SOON, engine.wait(&id)).await.expect("an exit").expect("an exit");
    assert_eq!((exit.code, exit.oom_killed()), (7, false));
    assert_eq!(status(engine, &id).await, ObservedStatus::Exited(exit));
}

#[tokio::test]
async fn a_terminal_shows_prompts_and_odd_bytes_at_once_and_takes_input() {
    let node = TestNode::new().await;
    let script = r#"printf '\001AAAAAAAAAA'; guest prompt 'name> ' -- echo"#;
    let mut request = node.request("a", &["sh", "-c", script]);
    request.tty = true;
    let id = node.engine.create(&request).await.expect("a container").docker_id;
    let mut attached = node.engine.attach(&id, true).await.expect("an attach");
    node.engine.start(&id).await.expect("a start");
    read_until(&mut attached.output, "\u{1}AAAAAAAAAAname> ").await;
    attached.input.write_all(b"x\n").await.expect("a write");
    // A dropped writer must not end the output.
    let mut input = attached.input;
    read_until(&mut attached.output, "got: x\r\n").await;
    // Ctrl-P Ctrl-Q, at which the engine would let go by default.
    input.write_all(b"\x10\x11y\n").await.expect("a write");
    drop(input);
    read_until(&mut attached.output, "y\r\ngot: \x10y\r\n").await;
}

#[tokio::test]
async fn what_is_done_already_is_done_again_without_an_error() {
    let node = TestNode::new().await;
    let engine = &node.engine;
    let request = node.request("a", &["guest", "forever"]);
    let id = node.run(&request).await;
    engine.start(&id).await.expect("started twice");
    engine.pause(&id).await.expect("paused");
    engine.pause(&id).await.expect("paused twice");
    assert_eq!(status(engine, &id).await, ObservedStatus::Paused);
    engine.unpause(&id).await.expect("unpaused");
    engine.unpause(&id).await.expect("unpaused twice");
    let other_name = format!("{}-b", request.name);
    engine.rename(&id, &other_name).await.expect("renamed");
    engine.rename(&id, &other_name).await.expect("renamed twice");
    engine.kill(&id, "SIGKILL").await.expect("killed");
    let exit = timeout(SOON, engine.wait(&id)).await.expect("an exit").expect("an exit");
    assert_eq!((exit.code, exit.oom_killed()), (137, false));
    engine.kill(&id, "SIGKILL").await.expect("killed twice");
    engine.remove(&id).await.expect("removed");
    engine.remove(&id).await.expect("removed twice");
    engine.kill(&id, "SIGTERM").await.expect("killed when gone");
    assert_eq!(engine.inspect(&id).await.expect("a look"), None);
    let missing = engine.start(&id).await.expect_err("nothing to start");
    assert_eq!((missing.kind(), missing.is_away()), (EngineErrorKind::NotFound, false));
}

#[tokio::test]
async fn refusals_of_the_engine_have_kinds_and_words() {
    let node = TestNode::new().await;
    let engine = &node.engine;
    let mut request = node.request("a", &["true"]);
    request.user = Some("nobody-here".to_owned());
    let id = engine.create(&request).await.expect("a container").docker_id;
    let taken = engine.create(&request).await.expect_err("the name is taken");
    assert_eq!(taken.kind(), EngineErrorKind::Conflict);
    let waited = timeout(SOON, engine.wait(&id)).await.expect("at once");
    assert_eq!(waited.expect_err("never started").kind(), EngineErrorKind::Conflict);
    let failed = engine.start(&id).await.expect_err("no such user");
    assert!(failed.reason().contains("nobody-here"), "{}", failed.reason());
    assert!(!failed.is_away());
    let mut absent = node.request("b", &["true"]);
    absent.image = "lightd-test-absent:1".to_owned();
    let absent = engine.create(&absent).await.expect_err("no such image");
    assert_eq!(absent.kind(), EngineErrorKind::NotFound);
    let escaped = engine.start("a/../../images/evil?force=1").await.expect_err("no plain name");
    assert_eq!(escaped.kind(), EngineErrorKind::Invalid);
}

#[tokio::test]
async fn a_container_is_hardened_as_seen_from_inside() {
    let node = TestNode::new().await;
    let script = "grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; touch /x || echo read-only; \
                  cp /bin/busybox /tmp/echo && /tmp/echo from-tmp; stat -c %a /tmp; cat /proc/1/comm; \
                  grep -c . /proc/net/dev";
    let mut request = node.request("a", &["sh", "-c", script]);
    request.hardening = Hardening { cap_add: vec!["CHOWN"], read_only_root: true };
    let id = node.engine.create(&request).await.expect("a container").docker_id;
    let mut attached = node.engine.attach(&id, false).await.expect("an attach");
    node.engine.start(&id).await.expect("a start");
    let (out, _) = timeout(SOON, read_to_end(&mut attached.output)).await.expect("an end");
    let out = String::from_utf8_lossy(&out).replace('\t', " ");
    for expected in [
        "CapEff: 0000000000000001\n",
        "CapBnd: 0000000000000001\n",
        "NoNewPrivs: 1\n",
        "read-only\n",
        "from-tmp\n",
        "1777\n",
        "docker-init\n",
        // Two lines of headings and the loopback.
        "3\n",
    ] {
        assert!(out.contains(expected), "{expected:?} in {out:?}");
    }
}

#[tokio::test]
async fn limits_are_changed_live_in_either_form() {
    let node = TestNode::new().await;
    let mut request = node.request("a", &["guest", "forever"]);
    request.limits = Limits { memory: Some(64 * MIB), cpu: Some(0.5), ..request.limits };
    let id = node.run(&request).await;
    let limits = Limits {
        memory: Some(128 * MIB),
        cpu_quota: Some(20_000),
        cpu_period: Some(40_000),
        pids: Some(77),
        ..Limits::default()
    };
    node.engine.update_limits(&id, &limits).await.expect("changed");
    let found =
        node.engine.docker(op::INSPECT).expect("a client").inspect_container(&id, None).await;
    let host = found.expect("a look").host_config.expect("a host config");
    assert_eq!((host.memory, host.memory_swap), (Some(128 << 20), Some(128 << 20)));
    assert_eq!((host.cpu_quota, host.cpu_period), (Some(20_000), Some(40_000)));
    assert_eq!((host.pids_limit, host.nano_cpus), (Some(77), Some(0)));
}

async fn entries(node: &TestNode, id: &str, tty: bool, since: Option<LogMoment>) -> Vec<LogLine> {
    let mut log = node.engine.logs(id, tty, since).await.expect("a log");
    let mut lines = Vec::new();
    while let Some(line) = log.next().await.expect("no error") {
        lines.push(line);
    }
    lines
}

fn text(lines: &[LogLine], stream: Stream) -> String {
    let of_stream = lines.iter().filter(|line| line.stream == stream);
    of_stream.map(|line| String::from_utf8_lossy(&line.bytes)).collect()
}

#[tokio::test]
async fn the_log_gives_the_same_bytes_also_of_long_lines_and_from_a_moment_on() {
    for tty in [false, true] {
        let node = TestNode::new().await;
        let cmd = ["guest", "lines", "3", "--", "lines", "1", "50000", "--", "complain", "oops"];
        let mut request = node.request("a", &cmd);
        request.tty = tty;
        let id = node.run(&request).await;
        timeout(SOON, node.engine.wait(&id)).await.expect("an exit").expect("an exit");
        let lines = entries(&node, &id, tty, None).await;
        let end = if tty { "\r\n" } else { "\n" };
        let long = format!("line 1 {}", "x".repeat(50_000 - 7));
        let expected = format!("line 1 {end}line 2 {end}line 3 {end}{long}{end}");
        let errors = format!("oops{end}");
        if tty {
            assert_eq!(text(&lines, Stream::Out), format!("{expected}{errors}"));
        } else {
            assert_eq!(text(&lines, Stream::Out), expected);
            assert_eq!(text(&lines, Stream::Err), errors);
        }
        assert!(lines.iter().all(|line| line.bytes.len() <= 16 * 1024));
        let third = lines[2].at_nanos;
        let since =
            Some((third / 1_000_000_000, u32::try_from(third % 1_000_000_000).expect("nanos")));
        let later = entries(&node, &id, tty, since).await;
        assert!(later.iter().all(|line| line.at_nanos >= third), "from that moment on");
        assert!(later.contains(&lines[2]), "itself included");
    }
}

fn exec(cmd: &[&str]) -> ExecRequest {
    ExecRequest {
        cmd: cmd.iter().map(|&part| part.to_owned()).collect(),
        user: None,
        deadline: SOON,
        output_max_bytes: 1000,
    }
}

#[tokio::test]
async fn a_command_beside_the_workload_gives_output_and_code_within_its_bounds() {
    let node = TestNode::new().await;
    let id = node.run(&node.request("a", &["guest", "forever"])).await;
    let run = async |request: ExecRequest| node.engine.exec(&id, &request).await.expect("a result");
    let plain = run(exec(&["sh", "-c", "echo out; echo err >&2; exit 3"])).await;
    assert_eq!(plain.end, ExecEnd::Exited(3));
    assert_eq!((&plain.stdout[..], &plain.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert!(!plain.is_truncated);
    let much = run(exec(&["guest", "lines", "100000"])).await;
    assert_eq!((much.end, much.stdout.len(), much.is_truncated), (ExecEnd::Exited(0), 1000, true));
    let quiet = run(exec(&["sh", "-c", "exec >/dev/null 2>&1; sleep 0.3; exit 4"])).await;
    assert_eq!(quiet.end, ExecEnd::Exited(4), "its output ended before it did");
    let mut endless = exec(&["sh", "-c", "echo begun; exec sleep 4242"]);
    endless.deadline = Duration::from_millis(500);
    let endless = run(endless).await;
    assert_eq!((endless.end, &endless.stdout[..]), (ExecEnd::TimedOut, &b"begun\n"[..]));
    let still_there = run(exec(&["sh", "-c", "ps | grep -q '[s]leep 4242'"])).await;
    assert_eq!(still_there.end, ExecEnd::Exited(1), "what ran too long was killed");
    node.engine.kill(&id, "SIGKILL").await.expect("killed");
    timeout(SOON, node.engine.wait(&id)).await.expect("an exit").expect("an exit");
    let stopped = node.engine.exec(&id, &exec(&["true"])).await.expect_err("nothing runs");
    assert_eq!(stopped.kind(), EngineErrorKind::Conflict);
}

#[tokio::test]
async fn an_image_made_of_a_container_keeps_its_files_and_nothing_else_of_it() {
    let node = TestNode::new().await;
    let engine = &node.engine;
    let mut request = node.request("a", &["guest", "write", "/installed", "1"]);
    request.entrypoint = Some(vec!["/bin/busybox".to_owned(), "env".to_owned()]);
    request.env = vec!["SECRET=x".to_owned()];
    request.user = Some("0:0".to_owned());
    request.labels.insert(labels::CONTAINER.to_owned(), "a".to_owned());
    request.labels.insert(labels::ROLE.to_owned(), labels::ROLE_INSTALL.to_owned());
    let id = node.run(&request).await;
    timeout(SOON, engine.wait(&id)).await.expect("an exit").expect("an exit");
    let changed = engine.changed_paths(&id).await.expect("changes");
    let added = ChangedPath { path: "/installed".to_owned(), kind: ChangeKind::Added };
    assert!(changed.contains(&added), "{changed:?}");
    let size = engine.size_rw(&id).await.expect("a size").expect("a container");
    assert!((MIB..2 * MIB).contains(&size), "{size}");

    let repo = request.name.clone();
    let image_id = engine.commit(&id, &repo, "1").await.expect("an image");
    let made = engine.find_image(&format!("{repo}:1")).await.expect("a look").expect("an image");
    assert_eq!(made.id, image_id);
    assert_eq!(made.cmd, ["/bin/sh"], "the base image's own");
    assert_eq!(made.entrypoint, Vec::<String>::new());
    assert!(!made.env.iter().any(|entry| entry.contains("=x")), "{:?}", made.env);
    let ours = engine.list_our_images().await.expect("images");
    assert_eq!(ours.len(), 1);
    let config = engine.image_config(&ours[0].id).await.expect("a look");
    let labels = config.labels.unwrap_or_default();
    assert_eq!(labels.get(labels::CONTAINER).map(String::as_str), Some(""));

    let mut second = node.request("b", &["cat", "/installed"]);
    second.image = image_id.clone();
    let id = node.run(&second).await;
    let exit = timeout(SOON, engine.wait(&id)).await.expect("an exit").expect("an exit");
    assert_eq!(exit.code, 0, "the file is there");
    let details = engine.inspect_details(&id).await.expect("a look").expect("a container");
    assert_eq!((details.image_id.as_str(), details.name.as_str()), (&*image_id, &*second.name));
    let in_use = engine.remove_image(&image_id).await.expect_err("a container is made of it");
    assert_eq!(in_use.kind(), EngineErrorKind::Conflict);
    engine.remove(&id).await.expect("removed");
    engine.remove_image(&format!("{repo}:1")).await.expect("removed");
    engine.remove_image(&format!("{repo}:1")).await.expect("removed twice");
    assert!(engine.find_image(&image_id).await.expect("a look").is_none());
}

#[tokio::test]
async fn only_this_nodes_containers_are_ours() {
    let (node, other) = (TestNode::new().await, TestNode::new().await);
    let mut request = node.request("a", &["guest", "forever"]);
    request.labels.insert(labels::CONTAINER.to_owned(), "a".to_owned());
    let id = node.run(&request).await;
    other.run(&other.request("a", &["guest", "forever"])).await;
    let ours = node.engine.list_ours().await.expect("a list");
    assert_eq!(ours.len(), 1);
    assert_eq!((&ours[0].docker_id, &ours[0].name), (&id, &request.name));
    assert_eq!(ours[0].labels.get(labels::CONTAINER).map(String::as_str), Some("a"));
}

#[tokio::test]
async fn events_hint_at_our_containers_only() {
    let (node, other) = (TestNode::new().await, TestNode::new().await);
    let (sender, mut hints) = broadcast::channel(64);
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (engine, stop) = (node.engine.clone(), cancel.clone());
    tasks.spawn(async move { engine.watch_events(sender, stop).await });
    let next = async |hints: &mut broadcast::Receiver<Hint>| {
        timeout(SOON, hints.recv()).await.expect("a hint").expect("a hint")
    };
    assert_eq!(next(&mut hints).await, Hint::LookAtAll);
    other.run(&other.request("x", &["true"])).await;
    let mut request = node.request("a", &["guest", "exit", "1"]);
    request.labels.insert(labels::CONTAINER.to_owned(), "a".to_owned());
    node.run(&request).await;
    for _ in ["start", "die"] {
        assert_eq!(next(&mut hints).await, Hint::Container("a".to_owned()));
    }
    cancel.cancel();
    timeout(SOON, tasks.join_next()).await.expect("the watcher ends when told to");
}

/// Compiles only while all that is called from tasks may move between threads.
#[test]
fn calls_may_move_between_threads() {
    fn is_send<T: Send>(_: T) {}
    let options = EngineOptions { socket_path: SOCKET.into(), node: "test-send".to_owned() };
    let engine = Engine::new(options);
    is_send(engine.start("a"));
    is_send(engine.remove("a"));
    is_send(engine.rename("a", "b"));
    is_send(engine.inspect_details("a"));
    is_send(engine.commit("a", "b", "c"));
    is_send(engine.ensure("a", None, |_| {}));
    is_send(engine.logs("a", true, None));
    is_send(engine.exec("a", &exec(&[])));
    is_send(engine.subnets_in_use());
}

/// A socket in front of the engine that can be cut and stalled.
struct Gate {
    path: PathBuf,
    folder: tempfile::TempDir,
    tasks: JoinSet<()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Open,
    /// Connections are taken and never answered, as by a stopped engine.
    Stalled,
}

impl Gate {
    fn new() -> (Self, watch::Sender<Pass>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("docker.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("a mode");
        let (pass, watched) = watch::channel(Pass::Open);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pump(client, watched.clone()));
            }
        });
        (Self { path, folder, tasks }, pass)
    }

    async fn cut(&mut self) {
        std::fs::remove_file(&self.path).expect("the socket's file");
        self.tasks.shutdown().await;
    }

    fn engine(&self, node: &TestNode) -> Engine {
        let node = node.engine.node().to_owned();
        Engine::new(EngineOptions { socket_path: self.path.clone(), node })
    }
}

async fn pump(mut client: UnixStream, mut pass: watch::Receiver<Pass>) {
    if pass.wait_for(|&pass| pass == Pass::Open).await.is_err() {
        return;
    }
    let mut engine = UnixStream::connect(SOCKET).await.expect("the engine");
    // Either end may break the connection, that is what these tests are about.
    drop(tokio::io::copy_bidirectional(&mut client, &mut engine).await);
}

#[tokio::test]
async fn a_wait_whose_connection_breaks_is_no_exit() {
    let node = TestNode::new().await;
    let (mut gate, _pass) = Gate::new();
    let engine = gate.engine(&node);
    let id = node.run(&node.request("a", &["guest", "forever"])).await;
    let mut attached = engine.attach(&id, false).await.expect("an attach");
    let mut waiting = JoinSet::new();
    let (waiter, of) = (engine.clone(), id.clone());
    waiting.spawn(async move { waiter.wait(&of).await });
    tokio::task::yield_now().await;
    gate.cut().await;
    let waited = timeout(SOON, waiting.join_next()).await.expect("an end").expect("a task");
    let error = waited.expect("no panic").expect_err("the connection broke");
    assert_eq!(error.kind(), EngineErrorKind::Unreachable);
    let end = timeout(SOON, attached.output.next()).await.expect("an end");
    assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");
    let looked = engine.inspect(&id).await.expect_err("a look that failed is not \"not there\"");
    assert!(looked.is_away());
    assert_eq!(status(&node.engine, &id).await, ObservedStatus::Running);
}

#[tokio::test]
async fn health_follows_the_engine_through_absence_and_standstill() {
    let node = TestNode::new().await;
    let (gate, pass) = Gate::new();
    let absent = EngineOptions {
        socket_path: gate.folder.path().join("absent.sock"),
        node: node.engine.node().to_owned(),
    };
    let nobody = Engine::new(absent).inspect("a").await.expect_err("nobody is there");
    assert_eq!(nobody.kind(), EngineErrorKind::Unreachable);

    let engine = gate.engine(&node);
    let mut health = engine.health();
    assert!(!health.borrow().is_reachable(), "nobody looked yet");
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (watcher, stop) = (engine.clone(), cancel.clone());
    tasks.spawn(async move { watcher.watch_health(stop).await });
    let good = timeout(SOON, health.wait_for(Health::is_reachable)).await.expect("in time");
    let Health::Reachable { api_version, .. } = good.expect("a health").clone() else {
        unreachable!("waited for it")
    };
    assert!(parse_version(&api_version).is_some(), "{api_version}");
    engine.inspect("absent").await.expect("asks with the engine's version");

    pass.send_replace(Pass::Stalled);
    let bad = timeout(SOON, health.wait_for(|health| !health.is_reachable())).await.is_ok();
    assert!(bad, "a standstill is noticed");
    pass.send_replace(Pass::Open);
    let good = timeout(SOON, health.wait_for(Health::is_reachable)).await.is_ok();
    assert!(good, "the return is noticed");
    cancel.cancel();
    timeout(SOON, tasks.join_next()).await.expect("the watcher ends when told to");
}

#[tokio::test]
async fn a_bridge_is_made_once_and_made_anew_only_while_nobody_is_on_it() {
    let node = TestNode::new().await;
    let engine = &node.engine;
    let bridge_name = format!("lt{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let mut spec = BridgeSpec {
        name: bridge_name.clone(),
        bridge_name,
        subnet: "10.91.16.0/24".parse().expect("a subnet"),
        icc: false,
    };
    engine.ensure_bridge(&spec).await.expect("made");
    engine.ensure_bridge(&spec).await.expect("kept");
    let used = engine.subnets_in_use().await.expect("subnets");
    let subnet = ipnet::IpNet::V4(spec.subnet);
    assert!(used.contains(&UsedSubnet { network: spec.name.clone(), subnet }), "{used:?}");
    let mut request = node.request("a", &["guest", "forever"]);
    request.network = Some(spec.name.clone());
    let id = node.run(&request).await;
    let details = engine.inspect_details(&id).await.expect("a look").expect("a container");
    let address = details.address.expect("an address");
    assert!(subnet.contains(&address), "{address}");

    spec.subnet = "10.91.17.0/24".parse().expect("a subnet");
    let refused = engine.ensure_bridge(&spec).await.expect_err("somebody is on it");
    assert_eq!(refused.kind(), EngineErrorKind::Conflict);
    engine.kill(&id, "SIGKILL").await.expect("killed");
    timeout(SOON, engine.wait(&id)).await.expect("an exit").expect("an exit");
    engine.ensure_bridge(&spec).await.expect("made anew");
    engine.start(&id).await.expect("a container of the former one starts in the new one");
    let details = engine.inspect_details(&id).await.expect("a look").expect("a container");
    let subnet = ipnet::IpNet::V4(spec.subnet);
    assert!(details.address.is_some_and(|address| subnet.contains(&address)), "{details:?}");
}

/// A registry with one image of one layer, for those who log in as `user:secret`.
struct Registry {
    address: String,
    /// Ends with the registry.
    _tasks: JoinSet<()>,
}

struct Contents {
    manifest: Vec<u8>,
    blobs: Vec<Vec<u8>>,
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

impl Contents {
    /// `is_whole: false`: the layer is announced and cannot be had.
    fn new(is_whole: bool) -> Self {
        // Unique, so that the engine does not have it from an earlier test.
        let mut archive = tar::Builder::new(Vec::new());
        let file = uuid::Uuid::new_v4().into_bytes();
        let mut header = tar::Header::new_gnu();
        header.set_size(16);
        archive.append_data(&mut header, "file", &file[..]).expect("an archive");
        let layer = archive.into_inner().expect("an archive");
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/file"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        })
        .to_string()
        .into_bytes();
        let kind = "application/vnd.docker";
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": format!("{kind}.distribution.manifest.v2+json"),
            "config": {"mediaType": format!("{kind}.container.image.v1+json"),
                "size": config.len(), "digest": digest(&config)},
            "layers": [{"mediaType": format!("{kind}.image.rootfs.diff.tar"),
                "size": layer.len(), "digest": digest(&layer)}],
        });
        let blobs = if is_whole { vec![config, layer] } else { vec![config] };
        Self { manifest: manifest.to_string().into_bytes(), blobs }
    }

    fn answer(&self, path: &str, is_logged_in: bool) -> (&'static str, &'static str, &[u8]) {
        let json = "application/vnd.docker.distribution.manifest.v2+json";
        if !is_logged_in {
            return ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"", "text/plain", b"");
        }
        let blob = self.blobs.iter().find(|blob| path.ends_with(&digest(blob)));
        match blob {
            Some(blob) => ("200 OK", "application/octet-stream", blob),
            None if path == "/v2/" => ("200 OK", "application/json", b"{}"),
            None if path.contains("/manifests/") => ("200 OK", json, &self.manifest),
            None => ("404 Not Found", "text/plain", b""),
        }
    }
}

impl Registry {
    async fn new(is_whole: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let contents = Arc::new(Contents::new(is_whole));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&contents)));
            }
        });
        Self { address, _tasks: tasks }
    }

    fn image(&self) -> String {
        format!("{}/lightd-test-pulled:1", self.address)
    }
}

async fn serve(mut stream: tokio::net::TcpStream, contents: Arc<Contents>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            // The engine tries TLS first; a closed connection makes it go on at once.
            Ok(byte) if byte.is_ascii() => request.push(byte),
            Ok(_) | Err(_) => return,
        }
    }
    let request = String::from_utf8_lossy(&request);
    let path = request.split(' ').nth(1).unwrap_or_default();
    // `user:secret`
    let is_logged_in = request.contains("Basic dXNlcjpzZWNyZXQ=");
    let (status, kind, body) = contents.answer(path, is_logged_in);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let body = if request.starts_with("HEAD") { &[][..] } else { body };
    // The engine may go away early.
    drop(stream.write_all(&[head.as_bytes(), body].concat()).await);
}

#[tokio::test]
async fn an_image_is_pulled_with_the_registrys_login_and_only_once() {
    let node = TestNode::new().await;
    let engine = &node.engine;
    let registry = Registry::new(true).await;
    let image = registry.image();
    assert!(engine.find_image(&image).await.expect("a look").is_none());
    let auth = RegistryAuth {
        username: "user".to_owned(),
        password: "secret".to_owned(),
        server: Some(registry.address.clone()),
    };
    let mut told = Vec::new();
    let pulled = engine.ensure(&image, Some(auth), |progress| told.push(progress)).await;
    let pulled = pulled.expect("an image");
    let last = told.last().expect("progress");
    assert_eq!((last.layers, last.layers_done), (1, 1));
    let again = engine.ensure(&image, None, |_| panic!("it is here already")).await;
    assert_eq!(again.expect("an image"), pulled);
    engine.remove_image(&image).await.expect("removed");
}

#[tokio::test]
async fn a_pull_that_fails_is_an_error_with_the_engines_words_also_when_it_fails_late() {
    let node = TestNode::new().await;
    let registry = Registry::new(true).await;
    let refused = node.engine.ensure(&registry.image(), None, |_| {}).await.expect_err("no login");
    assert!(!refused.is_away() && !refused.reason().is_empty(), "{refused:?}");
    let broken = Registry::new(false).await;
    let auth =
        RegistryAuth { username: "user".to_owned(), password: "secret".to_owned(), server: None };
    let failed = node.engine.ensure(&broken.image(), Some(auth), |_| {}).await;
    let failed = failed.expect_err("a layer is missing");
    assert!(!failed.is_away() && !failed.reason().is_empty(), "{failed:?}");
    let nobody = node.engine.ensure("127.0.0.1:1/lightd-test-absent:1", None, |_| {}).await;
    assert!(!nobody.expect_err("no registry").is_away());
}
