//! A workload's figures: now, in the last hour, and where the kernel's are out of reach.

use serde_json::{Value, json};

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
    let after = format!("from={}", number(last, "at") + 5.0);
    assert_eq!(past(&after).await, Vec::<Value>::new());
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
