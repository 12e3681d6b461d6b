//! Random commands and random kills of lightd, for as long as is asked for; afterwards rows, pool, engine
//! and console agree. `LIGHTD_SOAK_SECONDS` makes it long (`install-scripts/soak.sh`), `LIGHTD_SOAK_SEED`
//! repeats the commands of an earlier run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::SOON;
use crate::support::agreement::{agree, all_lines};
use crate::support::client::Client;
use crate::support::numbers::free_ports;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

const CONTAINERS: u16 = 4;
const HANDS: usize = 3;
const DEFAULT_SECONDS: u64 = 20;

/// Counts and answers; each run begins with a word of its own.
const WORKLOAD: &str = "trap 'exit 0' TERM; echo begin; \
    (n=0; while :; do n=$((n+1)); echo n$n; sleep 0.03; done) & \
    while :; do read line && echo \"got $line\" || sleep 0.1; done";

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// What a hand does next.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Power(&'static str),
    Command,
    Rebind,
    Reinstall,
    Recreate,
    Patch,
    /// Behind lightd's back.
    EngineKill,
    Look,
}

/// How often each is done, among all.
const DEEDS: [(Deed, u32); 13] = [
    (Deed::Power("start"), 90),
    (Deed::Power("stop"), 18),
    (Deed::Power("kill"), 12),
    (Deed::Power("restart"), 24),
    (Deed::Power("pause"), 12),
    (Deed::Power("resume"), 30),
    (Deed::Command, 90),
    (Deed::Rebind, 9),
    (Deed::Reinstall, 6),
    (Deed::Recreate, 1),
    (Deed::Patch, 12),
    (Deed::EngineKill, 9),
    (Deed::Look, 30),
];

struct Hand {
    client: Client,
    docker: bollard::Docker,
    ids: Vec<String>,
    specs: Vec<Value>,
    ports: Vec<u16>,
    random: StdRng,
    number: usize,
    commands: usize,
    /// Which were deleted, and may have been made again.
    is_anew: Arc<[AtomicBool]>,
}

impl Hand {
    async fn work(mut self, end: Instant) -> usize {
        let mut deeds = 0;
        while Instant::now() < end {
            let (deed, _) =
                *DEEDS.choose_weighted(&mut self.random, |deed| deed.1).expect("weights");
            let which = self.random.random_range(0..self.ids.len());
            self.act(deed, which).await;
            deeds += 1;
            let pause = Duration::from_millis(self.random.random_range(0..500));
            tokio::time::sleep(pause).await;
        }
        deeds
    }

    async fn act(&mut self, deed: Deed, which: usize) {
        let id = self.ids[which].clone();
        let path = format!("/containers/{id}");
        match deed {
            Deed::Power(action) => {
                self.ask(Method::POST, &format!("{path}/{action}"), None).await;
            }
            // A terminal would mix what is typed with what is printed.
            Deed::Command if self.specs[which]["tty"] == true => {}
            Deed::Command => {
                self.commands += 1;
                let command = json!({"command": format!("{}-{}", self.number, self.commands)});
                self.ask(Method::POST, &format!("{path}/command"), Some(command)).await;
            }
            Deed::Rebind => {
                let port = *self.ports.choose(&mut self.random).expect("there are some");
                let ports = json!({"ports": [{"ip": "127.0.0.1", "port": port}]});
                self.ask(Method::POST, &format!("{path}/rebind-network"), Some(ports)).await;
            }
            Deed::Reinstall => {
                self.ask(Method::POST, &format!("{path}/reinstall"), None).await;
            }
            Deed::Recreate => {
                self.is_anew[which].store(true, Ordering::Relaxed);
                self.ask(Method::DELETE, &path, None).await;
                self.ask(Method::POST, "/containers", Some(self.specs[which].clone())).await;
            }
            Deed::Patch => {
                let change = json!({"labels": {"round": self.commands.to_string()}});
                self.ask(Method::PATCH, &path, Some(change)).await;
            }
            Deed::Look => {
                // One whose recreation a kill broke off is made again.
                if self.ask(Method::GET, &format!("{path}/logs?lines=50"), None).await == Some(404)
                {
                    self.ask(Method::POST, "/containers", Some(self.specs[which].clone())).await;
                }
            }
            Deed::EngineKill => {
                // It may be stopped, or gone.
                self.docker.kill_container(&format!("lightd-{id}"), None).await.ok();
            }
        }
    }

    /// Nobody answers while lightd is dead. Who answers either does it or says why not.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Option<u16> {
        let asked = format!("{method} {path}");
        let mut request = self.client.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let text = response.text().await.unwrap_or_default();
        assert!(matches!(status, 200..=202 | 404 | 409 | 503), "{asked}: {status} {text}");
        Some(status)
    }
}

/// Reads a container's console until `end`, however often lightd is killed meanwhile: each line with its
/// number.
async fn read_on(url: String, end: Instant) -> Vec<(u64, String)> {
    let mut heard: Vec<(u64, String)> = Vec::new();
    while Instant::now() < end {
        let since = heard.last().map_or(0, |(seq, _)| *seq);
        let opened = Socket::open_if_there(&format!("{url}&events=console&since={since}")).await;
        let Some(mut socket) = opened else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        loop {
            let frame = match tokio::time::timeout_at(end, socket.receive()).await {
                Ok(Ok(frame)) => frame,
                // It was killed, or it is time.
                Ok(Err(_)) | Err(_) => break,
            };
            // The beginning of a line comes again with its end, for who asks with whole numbers.
            if frame.get("partial").is_some() {
                break;
            }
            let lines = frame["data"].as_str().expect("a text").lines();
            let last = frame["seq"].as_u64().expect("a number");
            let first = last + 1 - lines.clone().count() as u64;
            heard.extend((first..).zip(lines.map(|line| line.trim_end().to_owned())));
        }
    }
    heard
}

/// What was heard is what is kept, under the same numbers, each once.
fn assert_heard(id: &str, heard: &[(u64, String)], kept: &[String]) {
    for (at, (seq, line)) in heard.iter().enumerate() {
        assert_eq!(*seq, at as u64 + 1, "{id}: heard behind {:?}", heard[..at].last());
        let kept = usize::try_from(*seq).ok().and_then(|seq| kept.get(seq - 1));
        assert_eq!(kept, Some(line), "{id}: line {seq}");
    }
}

/// Runs count from 1 without a number missing or there twice, and no command was carried out twice.
fn assert_whole(id: &str, lines: &[String]) {
    let mut next = 1;
    let mut got = std::collections::HashSet::new();
    for (at, line) in lines.iter().enumerate() {
        let near = || lines[at.saturating_sub(8)..lines.len().min(at + 4)].join("\n");
        if line == "begin" {
            next = 1;
        } else if let Some(number) =
            line.strip_prefix('n').and_then(|text| text.parse::<u64>().ok())
        {
            assert_eq!(number, next, "{id}: a line is missing or there twice:\n{}", near());
            next += 1;
        } else if let Some(command) = line.strip_prefix("got ") {
            assert!(got.insert(command), "{id}: {command:?} was done twice:\n{}", near());
        } else {
            assert_eq!(line, "installed", "{id}: whose line is this?\n{}", near());
        }
    }
}

#[tokio::test]
async fn random_commands_and_kills_leave_rows_pool_engine_and_console_in_agreement() {
    let seconds = from_environment("LIGHTD_SOAK_SECONDS").unwrap_or(DEFAULT_SECONDS);
    let seed = from_environment("LIGHTD_SOAK_SEED").unwrap_or_else(rand::random);
    println!("LIGHTD_SOAK_SEED={seed} LIGHTD_SOAK_SECONDS={seconds}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut daemon = Daemon::start_with(|config| {
        config["console"] = json!({"journal_bytes": 256 << 20});
        config["log"]["level"] = json!("info");
    })
    .await;
    let ports = free_ports(CONTAINERS + 2);
    for port in &ports {
        let body = json!({"ip": "127.0.0.1", "port": port});
        daemon.client().post("/network/ports", body).await.is(201);
    }
    let (mut ids, mut specs) = (Vec::new(), Vec::new());
    for n in 0..CONTAINERS {
        let id = daemon.id(&format!("soak{n}"));
        let changes = json!({
            "startup_command": WORKLOAD, "tty": n == 0, "start_pattern": if n % 2 == 0 { "begin" } else { "n3" },
            "ports": [{"ip": "127.0.0.1"}], "install_script": "echo installed; echo x > /kept",
            "restart_on_crash": n % 2 == 0, "stop": {"signal": "SIGTERM", "timeout": 1 + n},
        });
        specs.push(daemon.spec(&id, changes).await);
        ids.push(id);
    }
    for (id, spec) in ids.iter().zip(&specs) {
        daemon.client().post("/containers", spec.clone()).await.is(201);
        daemon.install_state(id, "ready").await;
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let is_anew: Arc<[AtomicBool]> = ids.iter().map(|_| AtomicBool::new(false)).collect();
    let mut hands = tokio::task::JoinSet::new();
    for number in 0..HANDS {
        let hand = Hand {
            client: daemon.client(),
            docker: daemon.docker.clone(),
            ids: ids.clone(),
            specs: specs.clone(),
            ports: ports.clone(),
            random: StdRng::seed_from_u64(random.random()),
            number,
            commands: 0,
            is_anew: Arc::clone(&is_anew),
        };
        hands.spawn(hand.work(end));
    }
    let mut readers = tokio::task::JoinSet::new();
    for (n, id) in ids.iter().enumerate() {
        let reading = read_on(daemon.ws_url(id, &daemon.token, ""), end);
        readers.spawn(async move { (n, reading.await) });
    }
    let mut kills = 0;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random.random_range(200..4000))).await;
        daemon.kill9().await;
        kills += 1;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..800))).await;
        daemon.launch().await;
    }
    let deeds: usize = hands.join_all().await.into_iter().sum();
    println!("{deeds} deeds, {kills} kills");
    settle(&daemon, &ids).await;
    for (n, heard) in readers.join_all().await {
        let id = &ids[n];
        println!("{id}: {} lines heard", heard.len());
        // One that was made anew counts from 1 again.
        if !is_anew[n].load(Ordering::Relaxed) {
            assert_heard(id, &heard, &all_lines(&daemon, id).await);
        }
    }
    daemon.close().await;
}

/// Waits for what is under way. An install that a kill broke off is begun anew.
async fn is_installed(daemon: &Daemon, id: &str) -> bool {
    let path = format!("/containers/{id}");
    eventually(&format!("{id} is there or gone"), SOON * 2, async || {
        let answer = daemon.client().get(&path).await;
        match answer.body["install_state"].as_str() {
            None if answer.status == 404 => return Ok(false),
            // A deletion that was told of before it was done is done in the end.
            _ if answer.body["state"] == "deleting" => {}
            Some("ready") => return Ok(true),
            Some("failed") => {
                drop(daemon.client().post_empty(&format!("{path}/reinstall")).await);
            }
            _ => {}
        }
        Err(answer.text)
    })
    .await
}

/// Brings all containers to rest, and looks whether everybody says the same of them, then running.
async fn settle(daemon: &Daemon, ids: &[String]) {
    let mut there = Vec::new();
    for id in ids {
        there.push(is_installed(daemon, id).await);
    }
    for state in ["offline", "running", "offline"] {
        let mut wanted = Vec::new();
        for (id, is_there) in ids.iter().zip(&there) {
            wanted.push((id.as_str(), is_there.then_some(state)));
            let action = if state == "running" { "start" } else { "stop" };
            if *is_there {
                eventually(&format!("{id} takes a {action}"), SOON * 2, async || {
                    let path = format!("/containers/{id}/{action}");
                    let answer = daemon.client().post_empty(&path).await;
                    if answer.status == 202 { Ok(()) } else { Err(answer.text) }
                })
                .await;
            }
        }
        let what = format!("all agree on {state}");
        eventually(&what, SOON * 2, async || agree(daemon, &wanted).await).await;
    }
    for (id, _) in ids.iter().zip(&there).filter(|(_, is_there)| **is_there) {
        let lines = all_lines(daemon, id).await;
        println!("{id}: {} lines", lines.len());
        assert_whole(id, &lines);
    }
}
