//! How fast the panel is told, what telling it costs, and what a panel hears from a whole fleet.
//!
//! ```text
//! cargo bench --bench outbox             # drain and enqueue, about a minute
//! cargo bench --bench outbox -- drain    # the parts whose name holds the word: drain, enqueue, fleet
//! cargo bench --features benching --bench outbox -- fleet    # some three minutes
//! ```
//! Needs no containers and no Docker: lightd runs with a socket path at which there is none. The receiver is
//! written by hand, in this process. The machine's noise is in every figure.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]

#[path = "../client/mod.rs"]
mod client;
#[cfg(feature = "benching")]
mod fleet;
mod receiver;

use std::path::Path;
use std::time::{Duration, Instant};

use client::{Connection, Lightd, Result, between};
use receiver::Receiver;

const UPDATES: u32 = 10_000;
const CREATES: usize = 100;
const ROUNDS: usize = 6;

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    if is_wanted("drain") {
        println!("\n== drain: {UPDATES} updates that waited, to a receiver on this machine");
        for servers in [1, 100, UPDATES] {
            drain(servers)?;
        }
    }
    if is_wanted("enqueue") {
        println!("\n== enqueue: a container made with an update for the panel, and without");
        enqueue()?;
    }
    if is_wanted("fleet") {
        #[cfg(feature = "benching")]
        fleet::back_from_an_outage()?;
        #[cfg(not(feature = "benching"))]
        println!("\n== fleet: needs --features benching");
    }
    Ok(())
}

fn settings(folder: &Path, receiver: &Receiver, is_enabled: bool) -> String {
    format!(
        r#""storage": {{"base_path": "{folder}/data"}}, "log": {{"level": "error"}},
        "docker": {{"socket_path": "{folder}/none.sock"}}, "network": {{"firewall": "off"}},
        "remote": {{"enabled": {is_enabled}, "url": "http://127.0.0.1:{port}/api", "token": "bench",
            "signing_secret": "0123456789abcdef"}}"#,
        folder = folder.display(),
        port = receiver.port(),
    )
}

/// A backlog of so many servers, from the first delivery to the last.
fn drain(servers: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let receiver = Receiver::start()?;
    // Makes the store.
    drop(Lightd::start(folder.path(), &settings(folder.path(), &receiver, false))?);
    fill(&folder.path().join("data/lightd.db"), servers, UPDATES / servers)?;
    let lightd = Lightd::start(folder.path(), &settings(folder.path(), &receiver, true))?;
    receiver.wait_for(UPDATES as usize, Duration::from_secs(120))?;
    let took = receiver.took();
    let cpu = lightd.cpu()?;
    println!(
        "{servers:>6} servers: {:.0} updates/s over {} connection(s); lightd's CPU {:.2} s in all, {} KiB resident",
        f64::from(UPDATES) / took.as_secs_f64(),
        receiver.update_connections(),
        cpu,
        lightd.resident_kib()?,
    );
    Ok(())
}

/// Writes updates into a store that no lightd has open.
fn fill(path: &Path, servers: u32, each: u32) -> Result<()> {
    let mut store = rusqlite::Connection::open(path)?;
    let rows = store.transaction()?;
    for server in 0..servers {
        rows.execute(
            "INSERT INTO outbox_servers (server, last_sequence, due_ms) VALUES (?1, ?2, 0)",
            (format!("s{server}"), each),
        )?;
        for n in 1..=each {
            let body = format!(r#"{{"event":"update","server":"s{server}","status":"ready"}}"#);
            let delivery = uuid::Uuid::new_v4().to_string();
            rows.execute(
                "INSERT INTO outbox (delivery, server, server_sequence, kind, body_json, created_at)
                 VALUES (?1, ?2, ?3, 'result', ?4, 1)",
                (delivery, format!("s{server}"), n, body),
            )?;
        }
    }
    rows.commit()?;
    Ok(())
}

/// Creates with a panel and without, in turns, on one daemon.
fn enqueue() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let receiver = Receiver::start()?;
    let lightd = Lightd::start(folder.path(), &settings(folder.path(), &receiver, false))?;
    let volume = lightd.volume()?;
    let mut connection = Connection::open(lightd.port)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS * 2 {
        let is_enabled = round % 2 == 1;
        let path = folder.path().join("config.json");
        let text = std::fs::read_to_string(&path)?;
        let other = format!("\"enabled\": {}, \"url\"", !is_enabled);
        let this = format!("\"enabled\": {is_enabled}, \"url\"");
        client::write(&path, &text.replace(&other, &this))?;
        connection.send("POST", "/remote/config/reload", "")?;
        let times = if is_enabled { &mut with } else { &mut without };
        for n in 0..CREATES {
            let body = format!(
                r#"{{"internal_id": "c{round}-{n}", "image": "none:1", "volume_id": "{volume}",
                    "startup_command": "true"}}"#
            );
            let began = Instant::now();
            connection.send("POST", "/containers", &body)?;
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
    }
    let depth = connection.get("/remote/status")?;
    let (with, without) = (median(&mut with), median(&mut without));
    println!(
        "a create: {with:.3} ms with an update, {without:.3} ms without, {:+.3} ms (medians of {}); waiting {}",
        with - without,
        CREATES * ROUNDS,
        between(&depth, "\"waiting\":", ",").unwrap_or("?"),
    );
    Ok(())
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}
