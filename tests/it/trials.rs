//! What a request would come to (`?dry_run=true`), limits that are changed on what runs, and lists in pages.

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::chaos::Door;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

fn fields(refused: &Value) -> Vec<String> {
    let problems = refused["problems"].as_array().unwrap_or_else(|| panic!("{refused}"));
    let name = |problem: &Value| problem["field"].as_str().unwrap_or_default().to_owned();
    let mut fields: Vec<String> = problems.iter().map(name).collect();
    fields.sort();
    fields
}

#[tokio::test]
async fn a_trial_of_a_creation_tells_everything_at_once_and_makes_nothing() {
    let daemon = Daemon::start().await;
    let (taken, free, client) = (daemon.id("taken"), daemon.id("free"), daemon.client());
    let port = crate::support::numbers::free_port();
    client.post("/network/ports", json!({"ip": "127.0.0.1", "port": port})).await.is(201);
    let ports = json!([{"ip": "127.0.0.1", "port": port}]);
    let made = daemon.create(&taken, json!({"ports": ports})).await;
    let trial = "/containers?dry_run=true";
    let all_wrong = json!({
        "internal_id": taken, "volume_id": uuid::Uuid::nil(), "image": "UPPER",
        "startup_command": "run {{NOBODY}}", "start_pattern": "(?:a{1000}){1000}",
        "limits": {"memory": 1_u64 << 50, "cpuu": 1}, "mount": {"/data": "/etc"},
        "ports": [{"ip": "127.0.0.1", "port": port}, {"ip": "127.0.0.1", "port": 1}, {}],
        "env": {"A": 1}, "autostart": "yes", "nonsense": true,
    });
    let told = client.post(trial, all_wrong).await.refused(400, "invalid");
    assert_eq!(
        fields(&told),
        [
            "autostart",
            "env.A",
            "image",
            "internal_id",
            "limits.cpuu",
            "limits.memory",
            "mount./data",
            "nonsense",
            "ports[0]",
            "ports[1]",
            "ports[2]",
            "start_pattern",
            "startup_command",
            "volume_id",
        ]
    );
    let codes: Vec<&Value> = told["problems"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|problem| problem["code"].is_string())
        .map(|problem| &problem["code"])
        .collect();
    assert_eq!(codes, ["container_exists", "port_in_use", "no_free_port"]);
    let empty = client.post(trial, json!({})).await.refused(400, "invalid");
    assert_eq!(fields(&empty), ["image", "internal_id", "startup_command", "volume_id"]);

    let conflicts =
        daemon.spec(&taken, json!({"ports": ports, "volume_id": made["volume_id"]})).await;
    let told = client.post(trial, conflicts).await.refused(409, "container_exists");
    assert_eq!(fields(&told), ["internal_id", "ports[0]"]);

    let other = crate::support::numbers::free_port();
    client.post("/network/ports", json!({"ip": "127.0.0.1", "port": other})).await.is(201);
    let good = json!({
        "ports": [{"container_port": 80}], "volume_id": made["volume_id"], "limits": {}, "stop": {"signal": "int"},
    });
    let good = daemon.spec(&free, good).await;
    let told = client.post(trial, good.clone()).await.is(200);
    assert_eq!((&told["dry_run"], &told["internal_id"]), (&json!(true), &json!(free)));
    assert_eq!(told["container"]["stop"], json!({"signal": "SIGINT", "timeout": 30}), "normalised");
    assert_eq!(
        told["ports"],
        json!([{"ip": null, "port": null, "protocol": "tcp", "container_port": 80, "from_pool": true}])
    );
    let warnings = told["warnings"].to_string();
    assert!(warnings.contains("limits.memory") && warnings.contains(&taken), "{told}");
    client.get(&format!("/containers/{free}")).await.refused(404, "not_found");
    let pool = client.get(&format!("/network/ports/127.0.0.1/{other}")).await.is(200);
    assert_eq!(pool["in_use"], false, "nothing was taken");
    client.post("/containers", good).await.is(201);
    daemon.install_state(&free, "ready").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_trial_goes_by_leases_as_the_real_thing_does_and_uses_none_up() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("leased"), daemon.client());
    let ports = crate::support::numbers::free_ports(3);
    let range = json!({"ip": "127.0.0.1", "from": ports[0], "to": ports[2]});
    client.post("/network/ports", range).await.is(201);
    let issued = client.post("/auth/tokens", json!({"ttl": "1h"})).await.is(201);
    let other = client.with_token(issued["token"].as_str().expect("a token"));
    let lease = client.post("/network/ports/allocate", json!({"count": 2, "reserve": "5m"})).await;
    let lease = lease.is(201);
    let (first, lease_id) = (&lease["ports"][0]["port"], &lease["lease_id"]);
    let trial = "/containers?dry_run=true";
    let leased = json!([{"ip": "127.0.0.1", "port": first}, {}, {}]);

    let spec = daemon.spec(&id, json!({"ports": leased})).await;
    let told = other.post(trial, spec.clone()).await.refused(409, "port_reserved");
    assert_eq!(fields(&told), ["ports[0]", "ports[2]"], "one is free, two are not");
    let mut shown = spec.clone();
    shown["lease_id"] = lease_id.clone();
    for _ in 0..2 {
        let told = other.post(trial, shown.clone()).await.is(200);
        assert_eq!(told["ports"][0]["port"], *first, "{told}");
    }
    let mut ended = spec;
    ended["lease_id"] = json!(uuid::Uuid::nil());
    ended["ports"] = json!([{}]);
    let told = other.post(trial, ended).await.refused(409, "lease_ended");
    assert_eq!(fields(&told), ["lease_id"]);
    other.post("/containers", shown).await.is(201);
    daemon.install_state(&id, "ready").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_trial_of_a_change_says_what_it_would_wait_for_and_changes_nothing() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("trial"), daemon.client());
    let before = daemon.run(&id, json!({"env": {"A": "1"}})).await;
    let path = format!("/containers/{id}");
    let trial = |action: &str| format!("{path}{action}?dry_run=true");
    let change =
        json!({"env": {"A": null, "B": "2"}, "labels": {"a": "b"}, "limits": {"disk": 1 << 30}});
    let told = client.patch(&trial(""), change).await.is(200);
    assert_eq!(told["waits_for_restart"], json!(["env"]));
    assert_eq!(told["warnings"], json!(["needs a restart: env"]));
    assert_eq!(
        (&told["container"]["env"], &told["container"]["labels"]),
        (&json!({"B": "2"}), &json!({"a": "b"}))
    );
    let bad = json!({"env": {"1X": "a"}, "stop": {"signal": "SIGNOPE"}, "limits": {"memory": "1"}, "image": "x"});
    let told = client.patch(&trial(""), bad).await.refused(400, "invalid");
    assert_eq!(fields(&told), ["env.1X", "image", "limits.memory", "stop.signal"]);

    let lift = client.post(&trial("/resources"), json!({"memory": null, "pids": 9})).await.is(200);
    assert_eq!(lift["waits_for_restart"], json!(["memory"]));
    let told = client.post(&trial("/resources"), json!({"memory": 1, "cpu": 1e9})).await;
    assert_eq!(fields(&told.refused(400, "invalid")), ["cpu", "memory"]);

    let told = client.post(&trial("/reinstall"), json!({"image": "UPPER"})).await;
    assert_eq!(fields(&told.refused(400, "invalid")), ["image"]);
    let told = client.post_empty(&trial("/reinstall")).await.is(200);
    assert!(told["warnings"][0].as_str().is_some_and(|text| text.contains("stopped")), "{told}");
    let ports = json!({"ports": [{"ip": "127.0.0.1", "port": 1}, {"ip": "127.0.0.1", "port": 0}]});
    let told = client.post(&trial("/rebind-network"), ports).await.refused(400, "invalid");
    assert_eq!(fields(&told), ["ports[0]", "ports[1].port"]);
    let told = client.post(&trial("/rebind-network"), json!({"ports": []})).await.is(200);
    assert_eq!(told["ports"], json!([]));
    for action in ["/stop", "/kill", "/restart", "/suspend", "/pause"] {
        client.post_empty(&trial(action)).await.is(200);
    }
    client.delete(&trial("")).await.is(200);
    client.post_empty(&trial("/resume")).await.is(200);
    let mut after = daemon.state(&id, "running").await;
    assert_eq!(after["generation"], before["generation"], "nothing was changed");
    after["generation"] = before["generation"].clone();
    assert_eq!(after, before);
    daemon.power(&id, "stop").await;
    daemon.state(&id, "offline").await;
    client.post_empty(&trial("/pause")).await.refused(409, "not_running");
    client.get("/containers/nobody").await.refused(404, "not_found");
    daemon.close().await;
}

#[tokio::test]
async fn every_limit_is_applied_to_what_runs_and_what_can_not_be_lifted_is_named() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("live"), daemon.client());
    daemon.run(&id, json!({})).await;
    let pid = daemon.inspect(&id).await["State"]["Pid"].clone();
    let path = format!("/containers/{id}/resources");
    let all = json!({
        "memory": 96 << 20, "memory_swap": 128 << 20, "memory_reservation": 32 << 20, "cpu": null,
        "cpu_shares": 512, "cpu_quota": 30_000, "cpu_period": 50_000, "pids": 99,
    });
    let changed = client.post(&path, all.clone()).await.is(200);
    assert_eq!(changed["waits_for_restart"], json!([]), "{changed}");
    assert!(changed["warnings"].is_array(), "{changed}");
    for (name, value) in all.as_object().expect("an object") {
        assert_eq!(&changed[name], value, "{name}");
    }
    let host = daemon.inspect(&id).await["HostConfig"].clone();
    for (name, value) in [
        ("Memory", 96 << 20),
        ("MemorySwap", 128 << 20),
        ("MemoryReservation", 32 << 20),
        ("CpuShares", 512),
        ("CpuQuota", 30_000),
        ("CpuPeriod", 50_000),
        ("PidsLimit", 99),
    ] {
        assert_eq!(host[name], value, "{name}");
    }
    let read = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us \
                cpu/cpu.cfs_period_us cpu/cpu.shares pids/pids.max 2>/dev/null \
                || { cat memory.max; tr ' ' '\\n' < cpu.max; cat pids.max; }";
    let seen = client
        .post(&format!("/containers/{id}/exec"), json!({"cmd": ["sh", "-c", read]}))
        .await
        .is(200);
    let text = seen["stdout"].as_str().expect("a text");
    let v1 = format!("{}\n30000\n50000\n512\n99\n", 96 << 20);
    let v2 = format!("{}\n30000\n50000\n99\n", 96 << 20);
    assert!(text == v1 || text == v2, "{seen}");

    // From quota and period to cores, and the other way round.
    client.post(&path, json!({"cpu_quota": null, "cpu_period": null, "cpu": 0.5})).await.is(200);
    let host = daemon.inspect(&id).await["HostConfig"].clone();
    assert_eq!((&host["CpuQuota"], &host["CpuPeriod"]), (&json!(50_000), &json!(100_000)));
    let back = json!({"pids": null, "memory_swap": null});
    assert_eq!(client.post(&path, back).await.is(200)["waits_for_restart"], json!([]));
    let host = daemon.inspect(&id).await["HostConfig"].clone();
    assert_eq!(
        (&host["PidsLimit"], &host["MemorySwap"]),
        (&json!(512), &json!(96 << 20)),
        "the defaults"
    );

    let lifted =
        json!({"memory": null, "memory_reservation": null, "cpu": null, "cpu_shares": null});
    let told = client.post(&path, lifted).await.is(200);
    let waits = ["memory", "memory_reservation", "cpu", "cpu_shares"];
    assert_eq!(told["waits_for_restart"], json!(waits), "{told}");
    let shown = daemon.state(&id, "running").await;
    assert_eq!(
        (&shown["restart_needed"], &shown["limits"]["memory"]),
        (&json!(true), &Value::Null)
    );
    let state = daemon.inspect(&id).await;
    assert_eq!((&state["State"]["Pid"], &state["HostConfig"]["Memory"]), (&pid, &json!(96 << 20)));
    client.post_empty(&format!("/containers/{id}/restart?wait=50s")).await.is(200);
    let host = daemon.inspect(&id).await["HostConfig"].clone();
    assert_eq!(
        (&host["Memory"], &host["CpuShares"], &host["CpuQuota"]),
        (&json!(0), &json!(0), &json!(0))
    );
    assert_eq!(daemon.state(&id, "running").await["restart_needed"], false);
    daemon.close().await;
}

#[tokio::test]
async fn limits_that_what_runs_does_not_fit_into_change_nothing() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("tight"), daemon.client());
    daemon.run(&id, json!({"startup_command": "guest say Ready -- alloc 24"})).await;
    daemon.expect_log(&id, "took 24 MiB").await;
    let path = format!("/containers/{id}/resources");
    let answer = client.post(&path, json!({"memory": 8 << 20})).await;
    // With the second version of control groups, the kernel takes the limit and ends the workload.
    if std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        answer.refused(409, "engine_conflict");
        let shown = daemon.state(&id, "running").await;
        assert_eq!(
            (&shown["limits"]["memory"], &shown["restart_needed"]),
            (&json!(64 << 20), &json!(false))
        );
    }
    daemon.close().await;
}

/// All entries of a list, asked for page by page.
async fn paged(daemon: &Daemon, path: &str, name: &str, pages: usize) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    for page in 1.. {
        let answer = daemon.client().get(&format!("{path}{cursor}")).await.is(200);
        found.extend(answer[name].as_array().unwrap_or_else(|| panic!("{answer}")).clone());
        match answer["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => {
                assert_eq!(page, pages, "{path}: {answer}");
                break;
            }
        }
    }
    found
}

#[tokio::test]
async fn lists_come_in_pages_and_show_what_is_asked_for() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let mut ids: Vec<String> = ["One", "two", "three"].iter().map(|name| daemon.id(name)).collect();
    for id in &ids {
        daemon.create(id, json!({"labels": {"tier": id.clone()}})).await;
    }
    ids.sort();
    let names = |found: &[Value], field: &str| -> Vec<String> {
        found.iter().map(|seen| seen[field].as_str().unwrap_or_default().to_owned()).collect()
    };
    let all = paged(&daemon, "/containers?limit=2", "containers", 2).await;
    assert_eq!(names(&all, "internal_id"), ids);
    let volume = all[0]["volume_id"].as_str().expect("an id");
    for (query, count) in [
        ("name=ONE".to_owned(), 1),
        (format!("volume={volume}"), 1),
        (format!("image={}&state=offline", daemon.image), 3),
        ("image=other".to_owned(), 0),
        ("label=tier&name=t".to_owned(), 2 + usize::from(daemon.id("").contains('t'))),
    ] {
        let found = client.get(&format!("/containers?{query}")).await.is(200);
        let found = found["containers"].as_array().expect("a list");
        assert!(found.len() == count || query.contains("name=t"), "{query}: {found:?}");
    }
    client.get("/containers?cursor=-").await.refused(400, "invalid_cursor");
    client.get("/containers?volume=x").await.names_field("?volume");
    client.get("/containers?limit=1001").await.names_field("?limit");

    let spare = client.post("/volumes", json!({"name": "Spare world"})).await.is(201);
    let unused = paged(&daemon, "/volumes?unused=true&limit=1", "volumes", 1).await;
    assert_eq!(names(&unused, "id"), [spare["id"].as_str().expect("an id")]);
    assert_eq!(paged(&daemon, "/volumes?unused=false&limit=1", "volumes", 3).await.len(), 3);
    assert_eq!(paged(&daemon, "/volumes?name=WORLD&limit=9", "volumes", 1).await.len(), 1);
    client.get("/volumes?cursor=x").await.refused(400, "invalid_cursor");

    for output in ["a", "b", "c"] {
        let body = json!({"format": "tar", "output_name": output, "background": true});
        client.post(&format!("/volumes/{volume}/compress"), body).await.is(202);
    }
    let done = "/operations?state=done&kind=compress&limit=2";
    let operations = eventually("all are packed", SOON, async || {
        let running = client.get("/operations?state=running").await.is(200);
        if running["operations"] == json!([]) { Ok(()) } else { Err(running) }
    });
    operations.await;
    let operations = paged(&daemon, done, "operations", 2).await;
    assert_eq!(operations.len(), 3);
    assert!(operations[0]["started_at"].as_i64() >= operations[2]["started_at"].as_i64());
    assert_eq!(paged(&daemon, "/operations?kind=pull&limit=2", "operations", 1).await.len(), 0);
    let other = format!("/operations?volume={}&limit=2", spare["id"].as_str().expect("an id"));
    assert_eq!(paged(&daemon, &other, "operations", 1).await.len(), 0);
    client.get("/operations?state=odd").await.names_field("?state");
    client.get("/operations?cursor=x").await.refused(400, "invalid_cursor");

    for name in ["b", "a"] {
        let taken = client
            .post(&format!("/volumes/{volume}/snapshots"), json!({"name": name}))
            .await
            .is(202);
        let operation = format!("/operations/{}", taken["operation_id"].as_str().expect("an id"));
        eventually("the snapshot is taken", SOON, async || {
            let seen = client.get(&operation).await.is(200);
            if seen["state"] == "done" { Ok(()) } else { Err(seen) }
        })
        .await;
    }
    let path = format!("/volumes/{volume}/snapshots?limit=1");
    assert_eq!(paged(&daemon, &path, "snapshots", 2).await.len(), 2);
    client
        .get(&format!("/volumes/{volume}/snapshots?cursor=x"))
        .await
        .refused(400, "invalid_cursor");
    client
        .get(&format!("/containers/{}/post-mortems?cursor=x", ids[0]))
        .await
        .refused(400, "invalid_cursor");
    daemon.close().await;
}

#[tokio::test]
async fn a_trial_of_limits_needs_the_engine_where_the_real_thing_does() {
    let (daemon, mut door) = Door::and_daemon().await;
    let (runs, rests, client) = (daemon.id("runs"), daemon.id("rests"), daemon.client());
    daemon.create(&rests, json!({})).await;
    daemon.run(&runs, json!({})).await;
    door.shut();
    for id in [&runs, &rests] {
        daemon.state(id, "unknown").await;
    }
    for query in ["?dry_run=true", ""] {
        let set = async |id| {
            let path = format!("/containers/{id}/resources{query}");
            client.post(&path, json!({"memory": 80 << 20})).await
        };
        set(&runs).await.refused(503, "engine_unavailable");
        set(&rests).await.is(200);
    }
    door.reopen();
    for (id, state) in [(&runs, "running"), (&rests, "offline")] {
        daemon.state(id, state).await;
    }
    daemon.power(&rests, "start").await;
    daemon.state(&rests, "running").await;
    assert_eq!(daemon.inspect(&rests).await["HostConfig"]["Memory"], 80 << 20);
    daemon.close().await;
}
