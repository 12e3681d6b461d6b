//! What lightd costs its node, beside the plain thing in the same run.
//!
//! ```text
//! cargo bench --bench node            # everything, some minutes
//! cargo bench --bench node -- start   # the parts whose name holds the word
//! ```
//! Needs root, Docker and the static busybox of Debian's `busybox-static`. Uses a data folder, a bridge
//! and container names of its own and removes them at the end. The machine's noise is in every figure:
//! compare within a run.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

mod bare;
#[path = "../client/mod.rs"]
mod client;
mod docker;
mod quiet;

use tempfile::TempDir;

use client::{Connection, Lightd, Result, exchange, quietly};

type Part = fn(&Node) -> Result<()>;

const IMAGE: &str = "lightd-bench:1";
const NODE: &str = "bench-node";
const BRIDGE: &str = "ldbench0";
const STORED: usize = 200;

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if let Some(port) = std::env::var_os("LIGHTD_BENCH_BARE") {
        return bare::serve(port.to_string_lossy().parse()?);
    }
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    docker::import_image()?;
    let node = Node::new()?;
    let parts: [(&str, Part); 6] = [
        ("ready", part_ready),
        ("requests", part_requests),
        ("start", part_start),
        ("stats", quiet::part_stats),
        ("idle", quiet::part_idle),
        ("ready-200", part_ready_200),
    ];
    for (name, part) in parts {
        if is_wanted(name) {
            println!("\n== {name}");
            part(&node)?;
        }
    }
    Ok(())
}

/// From the start of the process to the first answered ping, with an empty store.
fn part_ready(node: &Node) -> Result<()> {
    report_ready(node, "empty store")
}

/// The same with many stored containers. Last, because making them takes its time.
fn part_ready_200(node: &Node) -> Result<()> {
    {
        let daemon = node.start()?;
        for n in 0..STORED {
            daemon.create(&format!("stored-{n}"), "sleep 1000000", None)?;
        }
        for n in 0..STORED {
            daemon.wait_for(&format!("stored-{n}"), "offline")?;
        }
    }
    report_ready(node, &format!("{STORED} stored containers"))
}

fn report_ready(node: &Node, what: &str) -> Result<()> {
    let mut times = Vec::new();
    let mut memory = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let daemon = node.start()?;
        times.push(began.elapsed());
        std::thread::sleep(Duration::from_secs(1));
        memory.push(daemon.resident_kib()?);
    }
    let mut bare = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let server = bare::start()?;
        bare.push(began.elapsed());
        drop(server);
    }
    println!("first ping, {what}: lightd {}, a bare axum server {}", spread(&times), spread(&bare));
    memory.sort_unstable();
    println!("resident a second later: {:.1} MB", memory[memory.len() / 2] as f64 / 1024.0);
    Ok(())
}

/// Requests a second for one container's state, beside a bare axum route with as large an answer.
fn part_requests(node: &Node) -> Result<()> {
    let daemon = node.start()?;
    daemon.create("requests", "sleep 1000000", None)?;
    daemon.wait_for("requests", "offline")?;
    let bare = bare::start()?;
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let ours = requests_per_second(daemon.0.port, "/containers/requests")?;
        let theirs = requests_per_second(bare.port, "/bare")?;
        println!(
            "GET /containers/:id {ours:.0}/s, bare axum route {theirs:.0}/s, ratio {:.2}",
            ours / theirs
        );
        ratios.push(ours / theirs);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}", ratios[ratios.len() / 2]);
    daemon.delete("requests")
}

/// `POST start` until `running`, beside the engine's start of a container that is made alike.
fn part_start(node: &Node) -> Result<()> {
    let daemon = node.start()?;
    daemon.create("starter", "echo Ready; sleep 1000000", Some("Ready"))?;
    daemon.wait_for("starter", "offline")?;
    docker::create("bench-plain")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let began = Instant::now();
        daemon.post("/containers/starter/start", "")?;
        daemon.wait_for("starter", "running")?;
        ours.push(began.elapsed());
        daemon.post("/containers/starter/kill", "")?;
        daemon.wait_for("starter", "offline")?;

        let began = Instant::now();
        docker::start("bench-plain")?;
        theirs.push(began.elapsed());
        docker::kill("bench-plain")?;
    }
    let (a, b) = (median(&ours), median(&theirs));
    println!(
        "POST start to running {}, the engine's start alone {}",
        spread(&ours),
        spread(&theirs)
    );
    println!("difference of the medians {:.1} ms", (a.as_secs_f64() - b.as_secs_f64()) * 1000.0);
    daemon.delete("starter")
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

fn spread(times: &[Duration]) -> String {
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    let (least, most) = (ms(times.iter().min()), ms(times.iter().max()));
    format!("{:.1} ms ({least:.1} to {most:.1})", ms(Some(&median(times))))
}

/// The folder and configuration that the daemons of this bench share.
struct Node {
    folder: TempDir,
}

impl Node {
    fn new() -> Result<Self> {
        Ok(Self { folder: TempDir::with_prefix("lightd-bench-")? })
    }

    fn start(&self) -> Result<Daemon> {
        let sections = format!(
            r#""docker": {{"node": "{NODE}"}}, "storage": {{"base_path": "{}"}},
                "network": {{"bridge": "{BRIDGE}", "subnets": "10.93.0.0/16"}},
                "log": {{"level": "warn"}}"#,
            self.folder.path().join("data").display()
        );
        Ok(Daemon(Lightd::start(self.folder.path(), &sections)?))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        docker::remove_all();
        for family in ["inet", "bridge"] {
            quietly(Command::new("nft").args(["delete", "table", family, BRIDGE]));
        }
    }
}

/// lightd, and what this bench asks of it.
struct Daemon(Lightd);

impl Daemon {
    fn create(&self, id: &str, command: &str, pattern: Option<&str>) -> Result<()> {
        let volume = self.0.volume()?;
        let pattern =
            pattern.map(|text| format!(r#", "start_pattern": "{text}""#)).unwrap_or_default();
        let body = format!(
            r#"{{"internal_id": "{id}", "image": "{IMAGE}", "volume_id": "{volume}",
                "startup_command": "{command}"{pattern}}}"#
        );
        self.post("/containers", &body).map(drop)
    }

    fn delete(&self, id: &str) -> Result<()> {
        exchange(self.0.port, "DELETE", &format!("/containers/{id}"), "").map(drop)
    }

    fn post(&self, path: &str, body: &str) -> Result<String> {
        self.0.post(path, body)
    }

    fn wait_for(&self, id: &str, state: &str) -> Result<()> {
        self.0.wait_for(id, state)
    }

    fn cpu(&self) -> Result<f64> {
        self.0.cpu()
    }

    fn resident_kib(&self) -> Result<u64> {
        self.0.resident_kib()
    }
}

fn requests_per_second(port: u16, path: &str) -> Result<f64> {
    const CONNECTIONS: usize = 8;
    const FOR: Duration = Duration::from_secs(3);
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let total = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(|| {
                    let run = || -> Result<usize> {
                        let mut connection = Connection::open(port)?;
                        let mut count = 0;
                        while !over.load(Ordering::Relaxed) {
                            connection.get(path)?;
                            count += 1;
                        }
                        Ok(count)
                    };
                    run().map_err(|error| error.to_string())
                })
            })
            .collect();
        std::thread::sleep(FOR);
        over.store(true, Ordering::Relaxed);
        let counts = clients
            .into_iter()
            .map(|client| client.join().map_err(|_| "a client panicked".to_owned())?);
        counts.sum::<std::result::Result<usize, String>>()
    })?;
    Ok(total as f64 / began.elapsed().as_secs_f64())
}
