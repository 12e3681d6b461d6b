//! What lightd's console costs and how fast it is, beside the engine's attach in the same run.
//!
//! ```text
//! cargo bench --bench streams            # everything, some minutes
//! cargo bench --bench streams -- flood   # the parts whose name holds the word
//! ```
//! Needs root, Docker and the static busybox of Debian's `busybox-static`. Uses a data folder, a bridge
//! and container names of its own and removes them at the end. The machine's noise is in every figure:
//! compare within a run, round by round.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]

#[path = "../client/mod.rs"]
mod client;
mod load;
mod output;
mod plain;

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use client::{Lightd, Result, quietly};
use output::{Output, Piece};

const FLOOD_LINES: u64 = 200_000;
const FLOOD_ROUNDS: usize = 9;
const READERS: usize = 20;
const LINE_BYTES: u64 = 80;
const STAMPS: u64 = 1000;
const STAMPS_ROUNDS: usize = 5;
/// No line for so long: those that are missing will not come.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    plain::import_image()?;
    let node = Node::new()?;
    if is_wanted("flood") {
        println!("\n== flood: {FLOOD_LINES} lines of {LINE_BYTES} bytes to one reader");
        runtime.block_on(flood(&node, true))?;
        runtime.block_on(flood(&node, false))?;
    }
    if is_wanted("readers") {
        println!("\n== readers: {READERS} at 10,000 lines a second");
        runtime.block_on(readers(&node, true))?;
        runtime.block_on(readers(&node, false))?;
    }
    if is_wanted("latency") {
        println!("\n== latency: one reader, 100 lines a second");
        runtime.block_on(latency(&node))?;
    }
    if is_wanted("load") {
        println!("\n== load");
        runtime.block_on(load::run(&node))?;
    }
    Ok(())
}

/// The whole flood, as fast as it is delivered.
async fn flood(node: &Node, tty: bool) -> Result<()> {
    let daemon = node.start()?;
    node.run_container(&daemon, "flood", tty)?;
    plain::start("bench-streams-plain", tty)?;
    let mut ours = Output::socket(daemon.port, "flood").await?;
    let mut theirs = Output::raw("bench-streams-plain", tty).await?;
    let job = format!("lines {FLOOD_LINES} {LINE_BYTES}");
    let lines = FLOOD_LINES + u64::from(tty);
    let (mut ratios, mut ours_rates, mut theirs_rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu, mut seq) = (0.0, 0);
    for _ in 0..FLOOD_ROUNDS {
        let began = Instant::now();
        theirs.write(&format!("{job}\n")).await?;
        read_lines(&mut theirs, lines).await?;
        let raw = began.elapsed().as_secs_f64();

        let before = daemon.cpu()?;
        let began = Instant::now();
        order(&daemon, "flood", &job)?;
        let last = read_lines(&mut ours, lines).await?.ok_or("no number")?;
        let own = began.elapsed().as_secs_f64();
        cpu += daemon.cpu()? - before;
        if last - seq != lines {
            return Err(format!("{} lines got {lines} numbers", last - seq).into());
        }
        seq = last;
        ratios.push(raw / own);
        ours_rates.push(lines as f64 / own);
        theirs_rates.push(lines as f64 / raw);
    }
    let million = FLOOD_ROUNDS as f64 * lines as f64 / 1e6;
    println!(
        "{}: lightd {:.0} lines/s, raw attach {:.0}, ratio {:.2} ({:.2} to {:.2}); no loss; lightd's CPU \
         {:.2} s per million lines",
        if tty { "tty" } else { "no tty" },
        median(&mut ours_rates),
        median(&mut theirs_rates),
        median(&mut ratios),
        ratios[0],
        ratios[ratios.len() - 1],
        cpu / million,
    );
    Ok(())
}

/// Many readers of one console that is busy.
async fn readers(node: &Node, tty: bool) -> Result<()> {
    const LINES: u64 = 100_000;
    let daemon = node.start()?;
    node.run_container(&daemon, "readers", tty)?;
    let mut sockets = Vec::new();
    for _ in 0..READERS {
        sockets.push(Output::socket(daemon.port, "readers").await?);
    }
    let lines = LINES + u64::from(tty);
    let before = daemon.cpu()?;
    let engine = plain::cpu()?;
    let began = Instant::now();
    order(&daemon, "readers", &format!("paced 10000 {LINES} {LINE_BYTES}"))?;
    let reading = sockets.iter_mut().map(|socket| read_lines(socket, lines));
    for last in futures_util::future::join_all(reading).await {
        let last = last?;
        if last != Some(lines) {
            return Err(format!("{last:?} instead of {lines}").into());
        }
    }
    let delivered = READERS as f64 * lines as f64 / 1e6;
    println!(
        "{}: {delivered:.1} million lines delivered in {:.1} s, no loss; lightd's CPU {:.2} s per million \
         delivered (the engine's {:.2})",
        if tty { "tty" } else { "no tty" },
        began.elapsed().as_secs_f64(),
        (daemon.cpu()? - before) / delivered,
        (plain::cpu()? - engine) / delivered,
    );
    Ok(())
}

/// From the writing of a line in the container to its arrival at the reader.
async fn latency(node: &Node) -> Result<()> {
    let daemon = node.start()?;
    node.run_container(&daemon, "latency", true)?;
    plain::start("bench-streams-plain", true)?;
    let mut ours = Output::socket(daemon.port, "latency").await?;
    let mut theirs = Output::raw("bench-streams-plain", true).await?;
    let job = format!("stamps 100 {STAMPS}");
    let mut rounds: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..STAMPS_ROUNDS {
        // At the same time: the machine's noise hits both.
        theirs.write(&format!("{job}\n")).await?;
        order(&daemon, "latency", &job)?;
        let both = (read_stamps(&mut theirs, STAMPS), read_stamps(&mut ours, STAMPS));
        let (raw, own) = tokio::join!(both.0, both.1);
        let (mut raw, mut own) = (raw?, own?);
        for (of, times) in rounds.iter_mut().zip([&mut own, &mut raw]) {
            times.sort_by(f64::total_cmp);
            of[0].push(percentile(times, 50));
            of[1].push(percentile(times, 99));
        }
    }
    let [[own50, own99], [raw50, raw99]] = &mut rounds;
    let mut over: Vec<f64> = own99.iter().zip(&*raw99).map(|(own, raw)| own - raw).collect();
    println!(
        "lightd p50 {:.2} p99 {:.2} ms, raw attach p50 {:.2} p99 {:.2} ms; p99 over it {:.2} ms (medians of \
         {STAMPS_ROUNDS} rounds)",
        median(own50),
        median(own99),
        median(raw50),
        median(raw99),
        median(&mut over),
    );
    Ok(())
}

/// Reads so many lines; the number of the last one.
async fn read_lines(output: &mut Output, lines: u64) -> Result<Option<u64>> {
    let (mut read, mut last) = (0, None);
    while read < lines {
        let piece = tokio::time::timeout(PATIENCE, output.next())
            .await
            .map_err(|_| format!("{} of {lines} lines are lost", lines - read))??;
        read += piece.lines;
        last = piece.seq;
    }
    if read == lines { Ok(last) } else { Err(format!("{read} lines instead of {lines}").into()) }
}

/// Reads so many stamped lines; how late they came, in milliseconds.
async fn read_stamps(output: &mut Output, count: u64) -> Result<Vec<f64>> {
    let mut late = Vec::new();
    while (late.len() as u64) < count {
        let piece = tokio::time::timeout(PATIENCE, output.next())
            .await
            .map_err(|_| format!("only {} of {count} lines came", late.len()))??;
        late.extend(lateness(&piece)?);
    }
    Ok(late)
}

fn lateness(piece: &Piece) -> Result<Vec<f64>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let text = std::str::from_utf8(&piece.bytes)?;
    let mut late = Vec::new();
    for stamp in text.split("stamp=").skip(1) {
        let digits = stamp.split(' ').next().unwrap_or_default();
        late.push(now.saturating_sub(digits.parse()?) as f64 / 1e6);
    }
    Ok(late)
}

/// Gives a container's printer a job.
fn order(daemon: &Lightd, id: &str, job: &str) -> Result<()> {
    let body = format!(r#"{{"command": "{job}"}}"#);
    daemon.post(&format!("/containers/{id}/command"), &body).map(drop)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// The folder and configuration that the daemons of this bench share.
struct Node {
    folder: TempDir,
}

impl Node {
    fn new() -> Result<Self> {
        Ok(Self { folder: TempDir::with_prefix("lightd-bench-")? })
    }

    /// A daemon on an empty folder.
    fn start(&self) -> Result<Lightd> {
        plain::remove_containers();
        let data = self.folder.path().join("data");
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        let sections = format!(
            r#""docker": {{"node": "{}"}}, "storage": {{"base_path": "{}"}},
                "network": {{"bridge": "{}", "subnets": "10.94.0.0/16"}},
                "log": {{"level": "warn"}}"#,
            plain::NODE,
            data.display(),
            plain::BRIDGE,
        );
        Lightd::start(self.folder.path(), &sections)
    }

    /// Makes and starts a container whose printer waits for jobs.
    fn run_container(&self, daemon: &Lightd, id: &str, tty: bool) -> Result<()> {
        let body = format!(
            r#"{{"internal_id": "{id}", "image": "{}", "volume_id": "{}", "tty": {tty},
                "startup_command": "printer"}}"#,
            plain::IMAGE,
            daemon.volume()?,
        );
        daemon.post("/containers", &body)?;
        daemon.wait_for(id, "offline")?;
        daemon.post(&format!("/containers/{id}/start"), "")?;
        daemon.wait_for(id, "running")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        plain::remove_all();
        for family in ["inet", "bridge"] {
            quietly(Command::new("nft").args(["delete", "table", family, plain::BRIDGE]));
        }
    }
}
