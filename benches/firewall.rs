//! How long it takes until all firewall rules of a node stand again, beside `nft` alone with the same rules.
//!
//! ```text
//! cargo bench --bench firewall
//! ```
//! 200 rules on 100 containers: the table is taken away, and a call that changes one rule finds it gone and
//! sets all. Then `nft -f` is given what lightd has set. Needs root and nftables, and no engine: the
//! containers are stored, not made. The table has a name of its own and is removed.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]

mod client;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use client::{Connection, Lightd, Result, between, quietly, write};

const CONTAINERS: usize = 100;
const ROUNDS: usize = 9;
const FIRST_PORT: usize = 20_000;
const TABLE: &str = "inet ldfw0_rules";

fn main() -> Result<()> {
    let folder = TempDir::with_prefix("lightd-bench-firewall-")?;
    let table = Table;
    let daemon = start(folder.path())?;
    let mut connection = Connection::open(daemon.port)?;
    let rule = make_rules(&daemon, &mut connection)?;
    let saved = folder.path().join("rules.nft");
    write(&saved, &format!("delete table {TABLE}\n{}", nft(&format!("-s list table {TABLE}"))?))?;
    let (mut ours, mut bare, mut single) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        single.push(toggle(&mut connection, &rule, false)?);
        nft(&format!("delete table {TABLE}"))?;
        ours.push(toggle(&mut connection, &rule, true)?);
        let began = Instant::now();
        nft(&format!("-f {}", saved.display()))?;
        bare.push(began.elapsed());
    }
    println!(
        "200 rules on {CONTAINERS} containers set anew: lightd {}, nft -f alone {}; one rule switched: {}",
        spread(&mut ours),
        spread(&mut bare),
        spread(&mut single)
    );
    drop(daemon);
    drop(table);
    Ok(())
}

/// The table, taken away at the end: lightd leaves it standing.
struct Table;

impl Drop for Table {
    fn drop(&mut self) {
        for table in [TABLE, "inet ldfw0", "bridge ldfw0"] {
            quietly(Command::new("nft").args(["delete", "table"]).args(table.split(' ')));
        }
    }
}

fn start(folder: &Path) -> Result<Lightd> {
    let shown = folder.display();
    let last = FIRST_PORT + CONTAINERS;
    let sections = format!(
        r#""docker": {{"socket_path": "{shown}/no.sock"}},
            "storage": {{"base_path": "{shown}/data"}},
            "network": {{"bridge": "ldfw0", "subnets": "10.93.0.0/20",
                "ports": [{{"ip": "127.0.0.1", "from": {FIRST_PORT}, "to": {last}}}]}},
            "log": {{"level": "error"}}"#
    );
    Lightd::start(folder, &sections)
}

/// Two rules for each container; the id of the last.
fn make_rules(daemon: &Lightd, connection: &mut Connection) -> Result<String> {
    let mut last = String::new();
    for n in 0..CONTAINERS {
        let (volume, port) = (daemon.volume()?, FIRST_PORT + n);
        let spec = format!(
            r#"{{"internal_id": "bench-{n}", "image": "none:1", "volume_id": "{volume}", "startup_command": "true",
                "ports": [{{"ip": "127.0.0.1", "port": {port}}}]}}"#
        );
        connection.send("POST", "/containers", &spec)?;
        for rest in [
            format!(
                r#""protocol": "tcp", "dest_port": {port}, "action": "accept", "rate_limit": {{"requests": 30, "per_seconds": 7}}"#
            ),
            format!(
                r#""protocol": "all", "source_ip": "203.0.113.0/24", "action": "reject", "description": "{n}""#
            ),
        ] {
            let body = format!(r#"{{"container_id": "bench-{n}", {rest}}}"#);
            let made = connection.send("POST", "/firewall/rules", &body)?;
            between(&made, "\"id\":\"", "\"").ok_or("no rule was made")?.clone_into(&mut last);
        }
    }
    Ok(last)
}

fn toggle(connection: &mut Connection, rule: &str, enabled: bool) -> Result<Duration> {
    let began = Instant::now();
    let body = format!(r#"{{"enabled": {enabled}}}"#);
    connection.send("PUT", &format!("/firewall/rules/{rule}/toggle"), &body)?;
    Ok(began.elapsed())
}

fn nft(arguments: &str) -> Result<String> {
    let output = Command::new("nft").args(arguments.split(' ')).stdin(Stdio::null()).output()?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?)
    } else {
        Err(format!("nft {arguments}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |at: usize| times[at].as_secs_f64() * 1000.0;
    format!("{:.0} ms (of {ROUNDS}: {:.0} to {:.0})", ms(ROUNDS / 2), ms(0), ms(ROUNDS - 1))
}
