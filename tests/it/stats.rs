//! A workload's figures: now, in the last hour, and where the kernel's are out of reach.

use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ports::add;
use crate::support::numbers::free_port;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::{SOON, STATS_FIELDS};

#[tokio::test]
async fn stats_are_of_the_running_workload() {
    let daemon = Daemon::start().await;
    let id = daemon.id("stats");
    daemon.run(&id, json!({"startup_command": "guest say Ready -- alloc 8"})).await;
    let path = format!("/containers/{id}/stats");
    let stats = eventually("stats that show what was allocated", SOON, async || {
        let stats = daemon.client().get(&path).await.is(200);
        let is_there = stats["memory_usage"].as_u64().is_some_and(|used| used > 8 << 20);
        if is_there && stats["disk_usage"].is_u64() { Ok(stats) } else { Err(stats) }
    })
    .await;
    assert_eq!((&stats["memory_limit"], &stats["state"]), (&json!(64 << 20), &json!("running")));
    for field in STATS_FIELDS {
        assert!(stats[field].is_number(), "{field}: {stats}");
    }
    daemon.close().await;
}

/// What `docker stats` shows as the memory in use, what the page cache has beside it, and what was written to
/// disks. There are kernels that count none of that; then the engine's figure is 0 as well.
async fn as_docker_counts(daemon: &Daemon, id: &str) -> (u64, u64, u64) {
    let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
    let stats = daemon.docker.stats(&format!("lightd-{id}"), Some(options)).next().await;
    let stats = serde_json::to_value(stats.expect("stats").expect("stats")).expect("JSON");
    let memory = &stats["memory_stats"];
    let cache = ["total_inactive_file", "inactive_file"]
        .iter()
        .find_map(|name| memory["stats"][name].as_u64())
        .unwrap_or_else(|| panic!("no page cache in {memory}"));
    let disks = stats["blkio_stats"]["io_service_bytes_recursive"].as_array();
    let writes = disks
        .into_iter()
        .flatten()
        .filter(|disk| disk["op"].as_str().is_some_and(|op| op.eq_ignore_ascii_case("write")));
    let written = writes.filter_map(|disk| disk["value"].as_u64()).sum();
    (memory["usage"].as_u64().expect("a number") - cache, cache, written)
}

#[tokio::test]
async fn what_goes_over_network_and_disk_is_counted_and_the_page_cache_is_no_memory() {
    const CACHED: u64 = 24 << 20;
    const SENT: usize = 300_000;
    let daemon = Daemon::start().await;
    let (id, port) = (daemon.id("counts"), free_port());
    add(&daemon.client(), port, "tcp").await;
    let command = format!(
        "dd if=/dev/zero of=data bs=1M count={} conv=fsync 2>/dev/null; \
         guest say Ready -- serve {port}",
        CACHED >> 20
    );
    let ports = json!([{"ip": "127.0.0.1", "port": port}]);
    daemon.run(&id, json!({"startup_command": command, "tty": false, "ports": ports})).await;
    let text = vec![b'x'; SENT];
    // Who publishes the port takes connections before the workload does.
    eventually("it echoes", SOON, async || {
        let mut peer = TcpStream::connect(("127.0.0.1", port)).await?;
        let (mut from, mut to) = peer.split();
        let mut back = vec![0; SENT];
        tokio::try_join!(to.write_all(&text), from.read_exact(&mut back))
    })
    .await;
    let path = format!("/containers/{id}/stats");
    let stats = eventually("all of it is counted", SOON, async || {
        let stats = daemon.client().get(&path).await.is(200);
        let number = |name: &str| stats[name].as_u64().unwrap_or(0);
        let all = number("network_rx") >= SENT as u64 && number("network_tx") >= SENT as u64;
        if all { Ok(stats) } else { Err(stats) }
    })
    .await;
    assert!(stats["network_rx"].as_u64() < Some(4 * SENT as u64), "{stats}");
    eventually("memory and disk as docker counts them", SOON, async || {
        let (memory, cache, written) = as_docker_counts(&daemon, &id).await;
        let ours = daemon.client().get(&path).await.is(200);
        let is_near = |name: &str, docker: u64| {
            ours[name].as_u64().is_some_and(|ours| ours.abs_diff(docker) < 1 << 20)
        };
        let all = is_near("memory_usage", memory) && is_near("block_write", written);
        let is_apart = cache > CACHED / 2 && memory < CACHED;
        if all && is_apart { Ok(()) } else { Err((ours.clone(), memory, cache, written)) }
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn the_last_hour_can_be_looked_at_also_when_nothing_runs_any_more() {
    let daemon = Daemon::start().await;
    let id = daemon.id("past");
    let busy = "guest say Ready; while :; do :; done";
    let up = daemon.run(&id, json!({"startup_command": busy, "limits": {"cpu": 0.2}})).await;
    let (client, path) = (daemon.client(), format!("/containers/{id}/stats"));
    let past = async |query: &str| {
        let past = client.get(&format!("{path}?{query}")).await.is(200);
        past["samples"].as_array().expect("a list").clone()
    };
    eventually("a second figure", SOON, async || {
        let seen = past("step=5").await;
        if seen.len() >= 2 { Ok(()) } else { Err(seen) }
    })
    .await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    assert_eq!(client.get(&path).await.is(200)["memory_usage"], 0);
    let seen = past("step=5").await;
    let number = |sample: &Value, name: &str| {
        sample[name].as_f64().unwrap_or_else(|| panic!("{name}: {sample}"))
    };
    // Each stands at the end of its five seconds, the last one at the latest now.
    let began = up["started_at"].as_i64().expect("a time") as f64;
    for sample in &seen {
        let late = number(sample, "at") - began - number(sample, "uptime");
        assert!((-1.0..7.0).contains(&late), "{began}: {seen:?}");
    }
    let answer = client.get(&format!("{path}?step=60")).await.is(200);
    let now = jiff::Timestamp::now().as_second() as f64;
    assert!(number(&answer, "to") <= now, "{answer}");
    assert!(
        answer["samples"]
            .as_array()
            .expect("a list")
            .iter()
            .all(|sample| number(sample, "at") <= now)
    );
    for pair in seen.windows(2) {
        let apart = number(&pair[1], "at") - number(&pair[0], "at");
        assert!(apart == 5.0 || (apart < 5.0 && pair[1] == seen[seen.len() - 1]), "{seen:?}");
        let used = number(&pair[1], "cpu_usage");
        assert!((5.0..40.0).contains(&used), "{seen:?}");
        assert!(number(&pair[1], "throttled_ms") > number(&pair[0], "throttled_ms"), "{seen:?}");
    }
    let last = seen.last().expect("two and more");
    // The step in which it ended may have got its last figure since.
    let after = format!("from={}", number(last, "at") + 10.0);
    eventually("nothing comes behind it", SOON, async || {
        let seen = past(&after).await;
        if seen.is_empty() { Ok(()) } else { Err(seen) }
    })
    .await;
    assert!((1..=2).contains(&past("step=3600").await.len()), "all in a point, or in two");
    client.get(&format!("{path}?step=7")).await.names_field("?step");
    client.get(&format!("{path}?from=5&to=4")).await.names_field("?to");
    daemon.close().await;
}

#[tokio::test]
async fn where_the_kernels_counters_are_out_of_reach_the_engine_is_asked() {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let without = "umount --recursive --lazy /sys/fs/cgroup; exec \"$0\" \"$@\"";
    daemon.set_wrapper(&["unshare", "--mount", "sh", "-c", without]);
    daemon.launch().await;
    let id = daemon.id("far");
    daemon.run(&id, json!({"startup_command": "guest say Ready -- alloc 8"})).await;
    let mut socket = daemon.ws(&id).await;
    let used = |frame: &Value| frame["memory_usage"].as_u64().unwrap_or(0);
    let stats =
        socket.expect("figures", |frame| frame["event"] == "stats" && used(frame) > 8 << 20).await;
    assert_eq!(stats["memory_limit"], 64 << 20, "{stats}");
    assert!(stats["pids"].as_u64() > Some(0), "{stats}");
    assert!(daemon.log().contains("figures are the engine's"));
    let usage = daemon.client().get(&format!("/billing/usage/{id}/hourly")).await.is(200);
    let ran = usage["total"]["duration_hours"].as_f64();
    assert!(ran > Some(0.0) && usage["total"]["memory_gb_hours"].as_f64() > Some(0.0), "{usage}");
    daemon.close().await;
}
