//! An engine that is stopped, restarted or killed: a private one, for the shared one is not ours to stop.
//! And outages at bad moments, by a door in front of the shared one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bollard::Docker;
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::chaos::Door;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::{SOON, engine, guest, numbers};

/// An engine with a runtime, a folder and a socket of its own.
pub(crate) struct Engine {
    folder: TempDir,
    /// The daemon's.
    bridge: String,
    /// Its own. Without one, dockerd would take the host's `docker0` away.
    default_bridge: String,
    containerd: Child,
    dockerd: Option<Child>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Plain,
    /// Workloads outlive dockerd (`--live-restore`).
    KeepsWorkloads,
    /// The socket outlives it, held by somebody else, as a service manager does. While there is no
    /// dockerd, who connects waits.
    HeldSocket(UnixListener),
}

impl Engine {
    async fn start(bridge: &str, folder: TempDir, kind: Kind) -> Self {
        let at = |name: &str| folder.path().join(name);
        // Not dockerd's own child, so that it outlives a kill of dockerd, as it does on a real host.
        let containerd = Command::new("containerd")
            .args(["--config", "/dev/null"])
            .arg("--root")
            .arg(at("containerd"))
            .arg("--state")
            .arg(at("containerd-state"))
            .arg("--address")
            .arg(at("containerd.sock"))
            .stdout(Stdio::null())
            .stderr(File::create(at("containerd.log")).expect("a log"))
            .spawn()
            .expect("containerd starts");
        let default_bridge = format!("{bridge}d");
        let subnet = numbers::free_subnet(&engine::subnets(&engine::connect().await).await);
        let address = subnet.replace(".0/", ".1/");
        for arguments in [
            format!("link add {default_bridge} type bridge"),
            format!("addr add {address} dev {default_bridge}"),
            format!("link set {default_bridge} up"),
        ] {
            let added = Command::new("ip").args(arguments.split(' ')).status();
            assert!(added.is_ok_and(|status| status.success()), "ip {arguments}");
        }
        let bridge = bridge.to_owned();
        let mut engine = Self { containerd, dockerd: None, bridge, default_bridge, folder, kind };
        engine.launch().await;
        engine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn docker(&self) -> Docker {
        let path = self.at("docker.sock");
        let path = path.to_str().expect("a plain path");
        Docker::connect_with_unix(path, 60, bollard::API_DEFAULT_VERSION).expect("a client")
    }

    pub(crate) async fn launch(&mut self) {
        let log = File::options().create(true).append(true).open(self.at("dockerd.log"));
        let listens = match &self.kind {
            Kind::Plain | Kind::KeepsWorkloads => {
                format!("unix://{}", self.at("docker.sock").display())
            }
            Kind::HeldSocket(_) => "fd://".to_owned(),
        };
        let held = match &self.kind {
            Kind::Plain | Kind::KeepsWorkloads => Stdio::null(),
            Kind::HeldSocket(listener) => {
                OwnedFd::from(listener.try_clone().expect("a listener")).into()
            }
        };
        // A socket is handed over as descriptor 3, with the receiver's pid (sd_listen_fds(3)).
        let handed_over = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec dockerd \"$@\"";
        let dockerd = Command::new("sh")
            .args(["-c", handed_over, "dockerd"])
            .stdin(held)
            .arg("--containerd")
            .arg(self.at("containerd.sock"))
            .arg("--data-root")
            .arg(self.at("data"))
            .arg("--exec-root")
            .arg(self.at("exec"))
            .arg("--pidfile")
            .arg(self.at("docker.pid"))
            .args(["-H", &listens])
            .args(["--bridge", &self.default_bridge])
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"])
            .args(matches!(self.kind, Kind::KeepsWorkloads).then_some("--live-restore"))
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn();
        let mut dockerd = dockerd.expect("dockerd starts");
        eventually("the private engine answers", SOON, async || {
            if let Some(status) = dockerd.try_wait().expect("a look") {
                let log = std::fs::read_to_string(self.at("dockerd.log")).unwrap_or_default();
                panic!("the private engine ended with {status}:\n{log}");
            }
            if !self.at("docker.sock").exists() {
                return Err("no socket".to_owned());
            }
            self.docker().ping().await.map_err(|error| error.to_string())
        })
        .await;
        self.dockerd = Some(dockerd);
    }

    fn signal(&self, signal: Signal) {
        let dockerd = self.dockerd.as_ref().expect("an engine that runs");
        kill_process(Pid::from_child(dockerd), signal).expect("a signal");
    }

    /// Ends it by a signal. One that is lost is sent again, once: dockerd takes the third for an order to
    /// leave everything as it is.
    pub(crate) async fn end(&mut self, signal: Signal) {
        self.signal(signal);
        let mut dockerd = self.dockerd.take().expect("an engine that runs");
        let (mut is_sent_again, again_at) = (false, Instant::now() + SOON / 2);
        eventually("the private engine ends", SOON * 2, async || {
            if !is_sent_again && Instant::now() > again_at {
                is_sent_again = true;
                kill_process(Pid::from_child(&dockerd), signal).expect("a signal");
            }
            dockerd.try_wait().expect("a look").ok_or("it runs")
        })
        .await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(mut dockerd) = self.dockerd.take() {
            if matches!(self.kind, Kind::KeepsWorkloads) {
                let remove = "docker -H \"unix://$0\" ps --all --quiet | xargs --no-run-if-empty docker -H \"unix://$0\" rm --force";
                let mut remove_all = Command::new("sh");
                remove_all
                    .args(["-c", remove])
                    .arg(self.at("docker.sock"))
                    .stdout(Stdio::null())
                    .status()
                    .ok();
            }
            // It may be stopped. Asked to end, it ends its containers.
            for signal in [Signal::CONT, Signal::TERM] {
                kill_process(Pid::from_child(&dockerd), signal).ok();
            }
            let end = Instant::now() + SOON;
            while matches!(dockerd.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(50));
            }
            dockerd.kill().ok();
            dockerd.wait().ok();
        }
        kill_process(Pid::from_child(&self.containerd), Signal::TERM).ok();
        self.containerd.wait().ok();
        // A dockerd that was killed leaves its folder mounted on itself, once each time.
        let unmount =
            || Command::new("umount").arg("-l").arg(self.at("data")).stderr(Stdio::null()).status();
        while unmount().is_ok_and(|status| status.success()) {}
        // Nobody but this engine knew of them; the first is gone after a test that went well.
        for bridge in [&self.bridge, &self.default_bridge] {
            let mut delete = Command::new("ip");
            delete.args(["link", "delete", bridge]).stderr(Stdio::null()).status().ok();
        }
    }
}

/// A daemon with an engine of its own. The engine is dropped last.
pub(crate) async fn with_an_engine() -> (Engine, Daemon) {
    with_an_engine_that(|_| Kind::Plain).await
}

/// `kind` is told where the socket will be.
async fn with_an_engine_that(kind: impl FnOnce(&Path) -> Kind) -> (Engine, Daemon) {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let folder = TempDir::with_prefix("lightd-engine-").expect("a folder");
    let kind = kind(&folder.path().join("docker.sock"));
    let engine = Engine::start(&daemon.bridge, folder, kind).await;
    daemon.docker = engine.docker();
    guest::ensure_image(&daemon.docker).await.expect("the test image");
    let path = engine.at("docker.sock");
    daemon.edit_config(|config| config["docker"]["socket_path"] = json!(path));
    daemon.launch().await;
    (engine, daemon)
}

fn count(text: &str, line: &str) -> usize {
    text.lines().filter(|found| found.trim_end() == line).count()
}

/// Each run counts from 1, and no number is missing or there twice.
fn assert_counts_up(text: &str, runs: usize) {
    let numbers = text.lines().filter_map(|line| line.trim_end().strip_prefix('n')?.parse().ok());
    let numbers: Vec<u64> = numbers.collect();
    let breaks = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1);
    let breaks: Vec<&[u64]> = breaks.collect();
    assert!(breaks.iter().all(|pair| pair[1] == 1), "lines lost or doubled: {breaks:?}");
    assert_eq!(breaks.len() + 1, runs, "one count for each run");
}

/// Counts, and says goodbye on SIGTERM.
const COUNTS: &str = "trap 'echo bye; exit 0' TERM; echo Up; n=0; \
                      while :; do n=$((n+1)); echo n$n; sleep 0.05; done";

#[tokio::test]
async fn what_a_restarted_or_killed_engine_ended_is_started_again_and_counts_as_no_crash() {
    let (mut engine, daemon) = with_an_engine().await;
    let (id, crashes) = (daemon.id("a"), daemon.id("b"));
    let spec = json!({"startup_command": COUNTS, "tty": false, "start_pattern": "Up"});
    daemon.run(&id, spec).await;
    daemon.run(&crashes, json!({"restart_on_crash": true})).await;
    daemon.expect_log(&id, "n5").await;
    for (signal, runs) in [(Signal::TERM, 2), (Signal::KILL, 3)] {
        engine.end(signal).await;
        for id in [&id, &crashes] {
            daemon.state(id, "unknown").await;
        }
        let refused = daemon.client().post_empty(&format!("/containers/{id}/start")).await;
        assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
        refused.refused(503, "engine_unavailable");
        daemon.client().get("/api/v1/public/ping").await.is(200);
        engine.launch().await;
        eventually(&format!("it has come up {runs} times"), SOON, async || {
            let log = daemon.logs(&id).await;
            if count(&log, "Up") == runs { Ok(()) } else { Err(log) }
        })
        .await;
        for id in [&id, &crashes] {
            daemon.state(id, "running").await;
        }
    }
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    let log = daemon.logs(&id).await;
    assert_counts_up(&log, 3);
    // What it said when the engine ended it is here, although nobody was attached any more.
    assert!(count(&log, "bye") > 0, "{log}");
    assert!(!daemon.log().contains("it crashed"), "no crash was counted");
    daemon.close().await;
}

#[tokio::test]
async fn an_engine_that_is_restarted_behind_a_socket_that_stays_ends_no_workload_by_itself() {
    let (mut engine, daemon) = with_an_engine_that(|socket| {
        Kind::HeldSocket(UnixListener::bind(socket).expect("a socket"))
    })
    .await;
    let (id, other) = (daemon.id("a"), daemon.id("b"));
    let spec = json!({"startup_command": COUNTS, "tty": false, "start_pattern": "Up"});
    daemon.run(&id, spec).await;
    // It does not end by itself, and so the engine kills it.
    daemon.run(&other, json!({"restart_on_crash": true})).await;
    for runs in [2, 3] {
        engine.end(Signal::TERM).await;
        engine.launch().await;
        eventually(&format!("it has come up {runs} times"), SOON, async || {
            let log = daemon.logs(&id).await;
            if count(&log, "Up") == runs { Ok(()) } else { Err(log) }
        })
        .await;
        for id in [&id, &other] {
            let shown = daemon.state(id, "running").await;
            assert_eq!(shown["last_exit"]["ended_by"], "engine", "{shown}");
            assert_eq!(shown["restarts"]["count"], 0, "{shown}");
        }
    }
    assert_counts_up(&daemon.logs(&id).await, 3);
    daemon.close().await;
}

#[tokio::test]
async fn what_an_engine_ended_while_lightd_was_away_as_well_comes_back_and_counts_as_no_crash() {
    let (mut engine, mut daemon) = with_an_engine().await;
    let (id, done) = (daemon.id("a"), daemon.id("b"));
    let spec = json!({"startup_command": COUNTS, "tty": false, "start_pattern": "Up"});
    daemon.run(&id, spec).await;
    let spec = json!({"startup_command": "echo Ready; read line; exit 3"});
    daemon.run(&done, spec).await;
    daemon.power(&done, "stop").await;
    daemon.state(&done, "offline").await;
    for signal in [Signal::TERM, Signal::KILL] {
        daemon.kill9().await;
        engine.end(signal).await;
        engine.launch().await;
        daemon.launch().await;
        let shown = daemon.state(&id, "running").await;
        assert_eq!(shown["last_exit"]["ended_by"], "engine", "{shown}");
        assert_eq!(shown["restarts"]["count"], 0, "{shown}");
        daemon.state(&done, "offline").await;
    }
    // Nothing but lightd is restarted: an end is the workload's own.
    let started = daemon.state(&id, "running").await["started_at"].clone();
    daemon.kill9().await;
    daemon.docker.kill_container(&format!("lightd-{id}"), None).await.expect("a kill");
    daemon.launch().await;
    let shown = daemon.state(&id, "offline").await;
    assert_eq!(
        (&shown["last_exit"]["ended_by"], &shown["started_at"]),
        (&json!("itself"), &started)
    );
    daemon.close().await;
}

#[tokio::test]
async fn what_ended_by_itself_while_the_engine_was_stopped_is_not_taken_for_the_engines_doing() {
    let (engine, daemon) = with_an_engine().await;
    let id = daemon.id("a");
    let command = "echo run >> runs; echo Ready; until test -e go; do sleep 0.02; done; \
                   echo > over; exit 3";
    let shown = daemon.run(&id, json!({"startup_command": command})).await;
    engine.signal(Signal::STOP);
    daemon.state(&id, "unknown").await;
    let volume = shown["volume_id"].as_str().expect("a volume");
    let go = daemon.data_path().join("volumes").join(volume).join("go");
    File::create(go).expect("a file in the volume");
    eventually("it ends", SOON, async || daemon.volume_file(&shown, "over").ok_or("not yet")).await;
    engine.signal(Signal::CONT);
    let ended = daemon.state(&id, "offline").await;
    assert_eq!(
        (&ended["exit_code"], &ended["last_exit"]["ended_by"]),
        (&json!(3), &json!("itself"))
    );
    assert_eq!(daemon.volume_file(&shown, "runs").as_deref(), Some("run\n"));
    daemon.close().await;
}

#[tokio::test]
async fn a_stopped_engine_is_noticed_and_its_workloads_are_the_same_when_it_goes_on() {
    let (engine, daemon) = with_an_engine().await;
    let id = daemon.id("a");
    let spec = json!({"startup_command": COUNTS, "tty": false, "start_pattern": "Up"});
    let before = daemon.run(&id, spec).await;
    let pid = daemon.inspect(&id).await["State"]["Pid"].clone();
    let (client, path) = (daemon.client(), format!("/containers/{id}"));
    let (exec, resources) = (format!("{path}/exec"), format!("{path}/resources"));
    let deleted = daemon.id("b");
    daemon.create(&deleted, json!({})).await;
    engine.signal(Signal::STOP);
    // Nothing breaks; it just does not answer. What is under way by then ends at its own deadline.
    let asked = Instant::now();
    let (exec_begun, limits_begun, _) = tokio::join!(
        client.post(&exec, json!({"cmd": ["true"]})),
        client.post(&resources, json!({"cpu": 0.75})),
        daemon.state(&id, "unknown")
    );
    for answer in [exec_begun, limits_begun] {
        answer.refused(503, "engine_unavailable");
    }
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    // What comes now is answered at once.
    let asked = Instant::now();
    client.post_empty(&format!("{path}/restart")).await.refused(503, "engine_unavailable");
    client.post(&exec, json!({"cmd": ["true"]})).await.refused(503, "engine_unavailable");
    client.post(&resources, json!({"cpu": 0.75})).await.refused(503, "engine_unavailable");
    let ports = json!({"ports": [{"ip": "127.0.0.1"}]});
    let rebind = client.post(&format!("{path}/rebind-network"), ports).await;
    rebind.refused(503, "engine_unavailable");
    client.get(&path).await.is(200);
    client.delete(&format!("/containers/{deleted}")).await.is(202);
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    // Its input may still be open.
    let command = client.post(&format!("{path}/command"), json!({"command": "x"})).await;
    assert!(matches!(command.status, 202 | 503), "{command:?}");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    engine.signal(Signal::CONT);
    let after = daemon.state(&id, "running").await;
    assert_eq!(daemon.inspect(&id).await["State"]["Pid"], pid);
    assert_eq!(after["started_at"], before["started_at"]);
    daemon.expect_log(&id, "n200").await;
    assert_counts_up(&daemon.logs(&id).await, 1);
    daemon.close().await;
}

#[tokio::test]
async fn an_engine_that_keeps_its_workloads_is_restarted_under_them_and_no_line_is_missing() {
    let (mut engine, daemon) = with_an_engine_that(|_| Kind::KeepsWorkloads).await;
    let id = daemon.id("a");
    let spec = json!({"startup_command": COUNTS, "tty": false, "start_pattern": "Up"});
    let before = daemon.run(&id, spec).await;
    let pid = daemon.inspect(&id).await["State"]["Pid"].clone();
    for signal in [Signal::TERM, Signal::KILL] {
        engine.end(signal).await;
        daemon.state(&id, "unknown").await;
        engine.launch().await;
        let after = daemon.state(&id, "running").await;
        assert_eq!(daemon.inspect(&id).await["State"]["Pid"], pid, "{signal:?}");
        assert_eq!(after["started_at"], before["started_at"], "{signal:?}");
        let said = daemon.logs(&id).await.lines().count();
        eventually("the console goes on", SOON, async || {
            let now = daemon.logs(&id).await.lines().count();
            if now > said + 20 { Ok(()) } else { Err(now) }
        })
        .await;
        assert_counts_up(&daemon.logs(&id).await, 1);
    }
    daemon.close().await;
}

#[tokio::test]
async fn an_install_that_the_engine_ended_has_failed_and_is_not_run_again() {
    let (mut engine, daemon) = with_an_engine().await;
    let id = daemon.id("a");
    let script = "echo run >> runs; echo begun; while :; do sleep 0.05; done";
    let spec = daemon.spec(&id, json!({"install_script": script})).await;
    daemon.client().post("/containers", spec).await.is(201);
    daemon.expect_log(&id, "begun").await;
    engine.end(Signal::KILL).await;
    daemon.state(&id, "unknown").await;
    engine.launch().await;
    let shown = daemon.install_state(&id, "failed").await;
    assert_eq!(daemon.volume_file(&shown, "runs").as_deref(), Some("run\n"));
    assert_eq!(count(&daemon.logs(&id).await, "begun"), 1);
    daemon.close().await;
}

#[tokio::test]
async fn a_stop_asked_for_during_an_outage_has_its_whole_grace_after_it() {
    let (daemon, mut door) = Door::and_daemon().await;
    let (signal, command) = (daemon.id("signal"), daemon.id("command"));
    let saves = "trap 'sleep 1; echo saved; exit 5' TERM; echo Up; while :; do sleep 0.05; done";
    let spec = json!({
        "startup_command": saves, "start_pattern": "Up", "tty": false,
        "stop": {"signal": "SIGTERM", "timeout": 3},
    });
    daemon.run(&signal, spec).await;
    let reads = "echo Up; read line; sleep 1; echo saved $line; exit 5";
    let spec = json!({
        "startup_command": reads, "start_pattern": "Up", "tty": false,
        "stop": {"command": "end", "timeout": 3},
    });
    daemon.run(&command, spec).await;
    door.shut();
    for id in [&signal, &command] {
        daemon.state(id, "unknown").await;
        daemon.power(id, "stop").await;
    }
    let asked = Instant::now();
    eventually("an outage that is longer than the grace", SOON, async || {
        let lasts = asked.elapsed();
        if lasts > Duration::from_secs(4) { Ok(()) } else { Err(lasts) }
    })
    .await;
    door.reopen();
    for (id, last) in [(&signal, "saved"), (&command, "saved end")] {
        let shown = daemon.state(id, "offline").await;
        assert_eq!(shown["exit_code"], 5, "{id} was killed");
        assert_eq!(count(&daemon.logs(id).await, last), 1);
    }
    daemon.close().await;
}

#[tokio::test]
async fn an_outage_in_the_middle_of_a_start_makes_it_no_second_one() {
    let (daemon, mut door) = Door::and_daemon().await;
    let id = daemon.id("a");
    let spec = json!({
        "startup_command": "echo run >> runs; echo Up; guest forever", "start_pattern": "Up",
        "tty": false,
    });
    let shown = daemon.create(&id, spec).await;
    for (n, delay_ms) in [0, 40, 100, 200, 350].into_iter().enumerate() {
        daemon.power(&id, "start").await;
        // The moment is what is varied; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        door.shut();
        daemon.state(&id, "unknown").await;
        door.reopen();
        daemon.state(&id, "running").await;
        let runs = daemon.volume_file(&shown, "runs").unwrap_or_default();
        assert_eq!(runs, "run\n".repeat(n + 1), "cut {delay_ms} ms into a start");
        assert_eq!(count(&daemon.logs(&id).await, "Up"), n + 1, "cut {delay_ms} ms into a start");
        daemon.power(&id, "kill").await;
        daemon.state(&id, "offline").await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_run_that_was_over_before_its_start_was_answered_is_no_reason_for_a_second_one() {
    let (daemon, mut door) = Door::and_daemon().await;
    let id = daemon.id("short");
    let spec = json!({"startup_command": "echo run >> runs; echo over", "start_pattern": null, "tty": false});
    let shown = daemon.create(&id, spec).await;
    for n in 1..=2 {
        door.lose_the_answer_to_a_start();
        daemon.power(&id, "start").await;
        door.the_answer_was_lost().await;
        door.shut();
        eventually("it has run", SOON, async || {
            let state = daemon.inspect(&id).await["State"].clone();
            if state["Status"] == "exited" { Ok(()) } else { Err(state) }
        })
        .await;
        door.reopen();
        daemon.state(&id, "offline").await;
        let runs = daemon.volume_file(&shown, "runs").unwrap_or_default();
        assert_eq!(runs, "run\n".repeat(n));
        assert_eq!(count(&daemon.logs(&id).await, "over"), n);
    }
    daemon.close().await;
}

#[tokio::test]
async fn after_an_outage_all_goes_on_within_five_seconds_and_what_was_asked_for_is_installed() {
    let (daemon, mut door) = Door::and_daemon().await;
    let (id, new) = (daemon.id("there"), daemon.id("new"));
    daemon.run(&id, json!({"startup_command": COUNTS, "tty": false, "start_pattern": "Up"})).await;
    door.shut();
    daemon.state(&id, "unknown").await;
    let spec = daemon.spec(&new, json!({"install_script": "echo installed"})).await;
    daemon.client().post("/containers", spec).await.is(201);
    daemon.state(&new, "unknown").await;
    door.reopen();
    let (client, path) = (daemon.client(), format!("/containers/{id}"));
    eventually("it is picked up", Duration::from_secs(5), async || {
        let shown: Value = client.get(&path).await.is(200);
        if shown["state"] == "running" { Ok(()) } else { Err(shown) }
    })
    .await;
    daemon.install_state(&new, "ready").await;
    assert_eq!(daemon.logs(&new).await, "installed\n");
    daemon.close().await;
}

#[tokio::test]
async fn after_an_outage_many_containers_go_on_within_five_seconds_and_no_line_is_missing() {
    const MANY: usize = 20;
    let (daemon, mut door) = Door::and_daemon().await;
    let counts = "echo Up; n=0; while :; do n=$((n+1)); echo n$n; sleep 0.2; done";
    let spec = json!({"startup_command": counts, "tty": false, "start_pattern": "Up"});
    let ids: Vec<String> = (0..MANY).map(|n| daemon.id(&format!("m{n}"))).collect();
    join_all(ids.iter().map(|id| daemon.run(id, spec.clone()))).await;
    door.shut();
    join_all(ids.iter().map(|id| daemon.state(id, "unknown"))).await;
    let mut said = Vec::new();
    for id in &ids {
        said.push(daemon.logs(id).await.lines().count());
    }
    door.reopen();
    let client = daemon.client();
    let back = Instant::now();
    for (id, said) in ids.iter().zip(said) {
        let left = Duration::from_secs(5).saturating_sub(back.elapsed());
        eventually("it runs, and its console goes on", left, async || {
            let shown = client.get(&format!("/containers/{id}")).await.is(200);
            let lines = daemon.logs(id).await.lines().count();
            let is_back = shown["state"] == "running" && lines > said;
            if is_back { Ok(()) } else { Err((shown["state"].clone(), said, lines)) }
        })
        .await;
    }
    for id in &ids {
        let log = daemon.logs(id).await;
        assert_counts_up(&log, 1);
        assert!(log.starts_with("Up\nn1\nn2\n") && !log.contains("[lightd]"), "{log}");
    }
    daemon.close().await;
}

#[tokio::test]
async fn what_a_restarted_engine_ended_comes_back_in_turn_and_not_all_at_once() {
    const MANY: usize = 6;
    let (mut engine, mut daemon) = with_an_engine().await;
    daemon.terminate().await;
    daemon.edit_config(|config| config["supervision"] = json!({"starts_per_second": 2}));
    daemon.launch().await;
    let command = "date +%s >> began; trap 'exit 0' TERM; echo Ready; while :; do sleep 0.1; done";
    let ids: Vec<String> = (0..MANY).map(|n| daemon.id(&format!("m{n}"))).collect();
    let spec = json!({"startup_command": command});
    let made = join_all(ids.iter().map(|id| daemon.run(id, spec.clone()))).await;
    engine.end(Signal::TERM).await;
    join_all(ids.iter().map(|id| daemon.state(id, "unknown"))).await;
    engine.launch().await;
    let mut began: Vec<u64> = Vec::new();
    for (id, made) in ids.iter().zip(&made) {
        let times = eventually("its second run", SOON, async || {
            let times = daemon.volume_file(made, "began").unwrap_or_default();
            if times.lines().count() == 2 { Ok(times) } else { Err(times) }
        })
        .await;
        began.extend(times.lines().last().and_then(|time| time.parse::<u64>().ok()));
        let shown = daemon.state(id, "running").await;
        assert_eq!(shown["restarts"]["count"], 0, "{shown}");
    }
    began.sort_unstable();
    // Five pauses of half a second; `date` has seconds.
    let took = began[MANY - 1] - began[0];
    assert!(began.len() == MANY && (2..=10).contains(&took), "two a second: {began:?}");
    daemon.close().await;
}

#[tokio::test]
async fn a_node_is_ready_once_its_containers_take_commands_and_no_sooner() {
    let (mut daemon, door) = Door::and_daemon().await;
    let id = daemon.id("rests");
    daemon.create(&id, json!({})).await;
    daemon.terminate().await;
    door.hold_lists();
    daemon.launch().await;
    let (client, anonymous) = (daemon.client(), daemon.client().anonymous());
    eventually("the engine answers", SOON, async || {
        let health = anonymous.get("/health").await.is(200);
        if health["engine"] == "reachable" { Ok(()) } else { Err(health) }
    })
    .await;
    anonymous.get("/readyz").await.refused(503, "starting_up");
    anonymous.get("/livez").await.is(200);
    client.post_empty(&format!("/containers/{id}/start")).await.refused(503, "engine_unavailable");
    door.let_list();
    eventually("it is ready", SOON, async || {
        let answer = anonymous.get("/readyz").await;
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
    client.post_empty(&format!("/containers/{id}/start")).await.is(202);
    daemon.state(&id, "running").await;
    daemon.close().await;
}
