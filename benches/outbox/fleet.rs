//! Many lightds' outboxes in one process, and one panel that comes back from an outage: what it hears in each
//! second, with jitter and without.
//!
//! The outboxes are the program's own (`lightd::benching::Outboxes`), and time is real, so the outage is one of
//! seconds. Nodes, panel and its connections share this machine: what it can take in a second is the most
//! that can be seen.

use std::time::{Duration, Instant};

use lightd::benching::Outboxes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Result;
use super::receiver::Receiver;

const NODES: usize = 5_000;
const UPDATES_EACH: usize = 2;
/// As it is if nobody sets it.
const HEALTH_INTERVAL: Duration = Duration::from_secs(30);
const OUTAGE: Duration = Duration::from_secs(45);
/// From the panel's return to the last update.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of a node, while it speaks: both ends of its connection, and one more of either.
const FILES_EACH: u64 = 4;

pub(crate) fn back_from_an_outage() -> Result<()> {
    let nodes = match std::env::var("BENCH_NODES") {
        Ok(text) => text.parse()?,
        Err(_) => NODES,
    };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    if limit.maximum.is_some_and(|most| most < nodes as u64 * FILES_EACH) {
        return Err(format!("{nodes} nodes may need {} files", nodes as u64 * FILES_EACH).into());
    }
    println!(
        "\n== fleet: {nodes} outboxes with {UPDATES_EACH} updates each, and a panel that is back after {OUTAGE:?}"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let spread = runtime.block_on(outage(nodes, true))?;
    let together = runtime.block_on(outage(nodes, false))?;
    let peak = |seconds: &[usize]| seconds.iter().copied().max().unwrap_or(0);
    let even = spread.iter().sum::<usize>() as u64 / HEALTH_INTERVAL.as_secs();
    println!(
        "peak with jitter:    {:>6} requests a second; evenly they would be {even}",
        peak(&spread)
    );
    println!("peak without jitter: {:>6} requests a second", peak(&together));
    println!("second  with jitter  without");
    for second in 0..spread.len().max(together.len()) {
        let at = |load: &[usize]| load.get(second).copied().unwrap_or(0);
        println!("{second:>6}  {:>11}  {:>7}", at(&spread), at(&together));
    }
    Ok(())
}

/// The requests in each second from the panel's return until the last update has come.
async fn outage(nodes: usize, has_jitter: bool) -> Result<Vec<usize>> {
    let port = super::client::free_port()?;
    let panel = format!("http://127.0.0.1:{port}/api");
    let outboxes = Outboxes::new(nodes, UPDATES_EACH, &panel, HEALTH_INTERVAL, has_jitter).await;
    let (over, is_over) = tokio::sync::oneshot::channel();
    // An end of the panel is an end as well.
    let mut running = tokio::task::JoinSet::new();
    running.spawn(outboxes.run(async move { drop(is_over.await) }));
    tokio::time::sleep(OUTAGE).await;
    let came = tokio::task::spawn_blocking(move || {
        let receiver = Receiver::start_on(port).map_err(|why| why.to_string())?;
        let began = Instant::now();
        let all = nodes * UPDATES_EACH;
        receiver.wait_for(all, PATIENCE).map_err(|why| why.to_string())?;
        Ok::<_, String>(receiver.per_second(began))
    });
    let came = came.await?;
    // Whoever runs them is still there: nobody else ends them.
    over.send(()).map_err(|()| "the outboxes have ended")?;
    running.join_all().await;
    Ok(came?)
}
