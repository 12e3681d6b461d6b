//! A thousand sockets on a hundred containers, a hundred of which are never read.
//!
//! The readers are measured three times: those of one container while all others are silent, all of
//! them while all containers print, and the same again while a hundred further sockets are stuck in a
//! flood that they do not take.

use std::sync::{Arc, Mutex};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Node, PATIENCE, lateness, order, percentile, read_lines};
use crate::client::{Lightd, Result};
use crate::output::Output;

const CONTAINERS: usize = 100;
const READERS_OF_EACH: usize = 9;
const STAMPS: u64 = 50;
const PER_SECOND: u64 = 5;
/// More than the kernel buffers for one who does not read.
const FLOOD_LINES: u64 = 20_000;

pub(crate) async fn run(node: &Node) -> Result<()> {
    let daemon = node.start()?;
    let name = |n: usize| format!("load-{n}");
    for n in 0..CONTAINERS {
        node.run_container(&daemon, &name(n), true)?;
    }
    println!("{CONTAINERS} containers: {}", memory(&daemon)?);
    let mut readers = Vec::new();
    for n in 0..CONTAINERS {
        for _ in 0..READERS_OF_EACH {
            readers.push((n, Output::socket(daemon.port, &name(n)).await?));
        }
    }
    println!("and {} readers: {}", readers.len(), memory(&daemon)?);

    let all: Vec<usize> = (0..CONTAINERS).collect();
    let (others, mine): (Vec<_>, Vec<_>) = readers.into_iter().partition(|(n, _)| *n > 0);
    let (mine, quiet) = measure(&daemon, mine, &all[..1]).await?;
    report("the readers of one container, all else silent", &quiet);
    let readers = mine.into_iter().chain(others).collect();
    let (readers, busy) = measure(&daemon, readers, &all).await?;
    report("all readers, all containers print", &busy);

    let mut sleepers: Vec<TcpStream> = Vec::new();
    for n in 0..CONTAINERS {
        sleepers.push(Output::sleeper(daemon.port, &name(n)).await?);
    }
    let mut flooded = JoinSet::new();
    let began = daemon.cpu()?;
    for (_, mut output) in readers {
        flooded.spawn(async move {
            read_lines(&mut output, FLOOD_LINES + 1).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(output)
        });
    }
    for n in 0..CONTAINERS {
        order(&daemon, &name(n), &format!("lines {FLOOD_LINES} 80"))?;
    }
    let mut readers = Vec::new();
    while let Some(output) = flooded.join_next().await {
        readers.push((0, output??));
    }
    println!(
        "and {} sockets that are never read, after {} million lines for everyone else: {}, CPU {:.2} s per \
         million delivered, nothing lost",
        sleepers.len(),
        CONTAINERS as u64 * FLOOD_LINES / 1_000_000,
        memory(&daemon)?,
        (daemon.cpu()? - began) / (readers.len() as f64 * FLOOD_LINES as f64 / 1e6),
    );
    let (_, stuck) = measure(&daemon, readers, &all).await?;
    report("the same readers beside them", &stuck);
    println!(
        "p99 beside the sleepers / p99 without: {:.2}; / p99 all silent: {:.2}",
        percentile(&stuck, 99) / percentile(&busy, 99),
        percentile(&stuck, 99) / percentile(&quiet, 99),
    );
    println!("at the end: {}", memory(&daemon)?);
    Ok(())
}

/// How late stamped lines of these containers come to the readers, sorted, in milliseconds.
async fn measure(
    daemon: &Lightd,
    readers: Vec<(usize, Output)>,
    printing: &[usize],
) -> Result<(Vec<(usize, Output)>, Vec<f64>)> {
    let late = Arc::new(Mutex::new(Vec::new()));
    let mut reading = JoinSet::new();
    for (n, mut output) in readers {
        let late = Arc::clone(&late);
        reading.spawn(async move {
            let mut seen = 0;
            while seen < STAMPS {
                let piece = tokio::time::timeout(PATIENCE, output.next()).await??;
                let came = lateness(&piece)?;
                seen += came.len() as u64;
                late.lock().expect("nobody panics").extend(came);
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((n, output))
        });
    }
    for n in printing {
        order(daemon, &format!("load-{n}"), &format!("stamps {PER_SECOND} {STAMPS}"))?;
    }
    let mut readers = Vec::new();
    while let Some(done) = reading.join_next().await {
        readers.push(done??);
    }
    let mut late = std::mem::take(&mut *late.lock().expect("nobody panics"));
    late.sort_by(f64::total_cmp);
    Ok((readers, late))
}

fn report(what: &str, late: &[f64]) {
    println!(
        "{what}: p50 {:.2} p99 {:.2} ms of {} lines",
        percentile(late, 50),
        percentile(late, 99),
        late.len()
    );
}

fn memory(daemon: &Lightd) -> Result<String> {
    Ok(format!("{:.1} MB resident", daemon.resident_kib()? as f64 / 1024.0))
}
