//! What containers cost that do nothing: alone, and with somebody who watches their figures.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Result, TOKEN};
use crate::{Daemon, Node, docker};

/// How many are measured after each other; the last one tells what each further one costs.
const QUIET: [usize; 2] = [20, 200];
const WATCHED: usize = 40;
/// Until what a start costs is over.
const SETTLES: Duration = Duration::from_secs(20);
const MEASURED: Duration = Duration::from_secs(60);

/// Processor time and memory of lightd and of the engine while nothing happens.
pub(crate) fn part_idle(node: &Node) -> Result<()> {
    let daemon = node.start()?;
    let (mut running, mut memory_kib) = (0, 0);
    for quiet in QUIET {
        run_quiet(&daemon, running..quiet)?;
        std::thread::sleep(SETTLES);
        let (ours, engine) = loads(&daemon)?;
        let now_kib = daemon.resident_kib()?;
        println!(
            "{quiet} quiet containers: lightd {ours:.2} % of a core and {:.1} MB, the engine {engine:.2} %",
            now_kib as f64 / 1024.0,
        );
        if running > 0 {
            let more_kib = now_kib.saturating_sub(memory_kib) as f64 / (quiet - running) as f64;
            println!("each further container: {more_kib:.0} KiB of lightd");
        }
        (running, memory_kib) = (quiet, now_kib);
    }
    delete_quiet(&daemon, running)
}

/// What watching the figures of quiet containers costs the whole node, beside the engine's own streams.
pub(crate) fn part_stats(node: &Node) -> Result<()> {
    let daemon = node.start()?;
    run_quiet(&daemon, 0..WATCHED)?;
    std::thread::sleep(SETTLES);
    let nobody = loads(&daemon)?;
    let port = daemon.0.port;
    let by_lightd = watched(
        |n| {
            let mut socket = TcpStream::connect(("127.0.0.1", port))?;
            write!(
                socket,
                "GET /ws/quiet-{n}?token={TOKEN}&events=stats HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bGlnaHRkIGJlbmNoIGtleQ==\r\n\r\n"
            )?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        },
        &daemon,
    )?;
    let by_engine = watched(
        |n| {
            let mut socket = UnixStream::connect("/var/run/docker.sock")?;
            write!(
                socket,
                "GET /containers/lightd-quiet-{n}/stats HTTP/1.1\r\nHost: docker\r\n\r\n"
            )?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        },
        &daemon,
    )?;
    for (who, (lightd, engine)) in [
        ("nobody", nobody),
        ("readers through lightd", by_lightd),
        ("readers of the engine", by_engine),
    ] {
        println!(
            "{WATCHED} containers, {who}: lightd {lightd:.2} % of a core, the engine {engine:.2} %"
        );
    }
    let (ours, theirs) = (total(by_lightd) - total(nobody), total(by_engine) - total(nobody));
    println!("more than nobody: {ours:.2} % and {theirs:.2} %, ratio {:.3}", ours / theirs);
    delete_quiet(&daemon, WATCHED)
}

const PATIENCE: Duration = Duration::from_millis(200);

/// The load while each container has a reader who reads all that comes.
fn watched<S: Read + Send>(
    open: impl Fn(usize) -> Result<S>,
    daemon: &Daemon,
) -> Result<(f64, f64)> {
    let mut sockets = (0..WATCHED).map(open).collect::<Result<Vec<_>>>()?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for socket in &mut sockets {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut buffer = [0; 8192];
                // The end of a read's patience is no end of the stream.
                while !is_over.load(Ordering::Relaxed) && !matches!(socket.read(&mut buffer), Ok(0))
                {
                }
            });
        }
        std::thread::sleep(SETTLES / 2);
        let measured = loads(daemon);
        is_over.store(true, Ordering::Relaxed);
        measured
    })
}

/// Percent of a core that lightd and the engine take.
fn loads(daemon: &Daemon) -> Result<(f64, f64)> {
    let (ours, engine) = (daemon.cpu()?, docker::cpu()?);
    let began = Instant::now();
    std::thread::sleep(MEASURED);
    let seconds = began.elapsed().as_secs_f64();
    let percent = |now: f64, before: f64| (now - before) / seconds * 100.0;
    Ok((percent(daemon.cpu()?, ours), percent(docker::cpu()?, engine)))
}

fn total((ours, engine): (f64, f64)) -> f64 {
    ours + engine
}

fn run_quiet(daemon: &Daemon, which: std::ops::Range<usize>) -> Result<()> {
    for n in which.clone() {
        daemon.create(&format!("quiet-{n}"), "sleep 1000000", None)?;
    }
    for n in which {
        daemon.wait_for(&format!("quiet-{n}"), "offline")?;
        daemon.post(&format!("/containers/quiet-{n}/start"), "")?;
        daemon.wait_for(&format!("quiet-{n}"), "running")?;
    }
    Ok(())
}

fn delete_quiet(daemon: &Daemon, count: usize) -> Result<()> {
    (0..count).try_for_each(|n| daemon.delete(&format!("quiet-{n}")))
}
