//! What containers use, counted: on a real workload, over restarts of lightd, to the bill.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or_else(|| panic!("{name}: {of}"))
}

/// The total of the last hours.
async fn used(daemon: &Daemon, id: &str) -> Value {
    let path = format!("/billing/usage/{id}/hourly");
    daemon.client().get(&path).await.is(200)["total"].clone()
}

/// Waits until the total is as wanted.
async fn used_until(daemon: &Daemon, id: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(what, SOON * 2, async || {
        let total = used(daemon, id).await;
        if is(&total) { Ok(total) } else { Err(total) }
    })
    .await
}

const VCPU_SECOND: f64 = 1.0 / 3600.0;

#[tokio::test]
async fn what_a_workload_uses_is_counted_and_survives_restarts_and_its_end() {
    let mut daemon = Daemon::start_with(|config| {
        config["billing"] = json!({"rates": {"currency": "EUR", "vcpu_hour": "3600"}});
    })
    .await;
    let id = daemon.id("used");
    let port = crate::support::numbers::free_port();
    let pool = json!({"ip": "127.0.0.1", "port": port});
    daemon.client().post("/network/ports", pool).await.is(201);
    // Half a core, and whatever it is sent goes back.
    let made = daemon
        .run(
            &id,
            json!({
                "startup_command": "(while :; do :; done) & guest say Ready -- serve 7000",
                "ports": [{"ip": "127.0.0.1", "port": port, "container_port": 7000}],
            }),
        )
        .await;
    let sent = 3_u64 << 20;
    echo(port, sent).await;
    let seen = used_until(&daemon, &id, "two seconds of a processor and the traffic", |total| {
        number(total, "vcpu_hours") > 2.0 * VCPU_SECOND
            && number(total, "egress_gb") * 1_073_741_824.0 >= 3.0 * 1_048_576.0
    })
    .await;
    let ran_s = number(&seen, "duration_hours") * 3600.0;
    let cpu_s = number(&seen, "vcpu_hours") * 3600.0;
    assert!(cpu_s < ran_s * 0.7, "it has half a core: {seen}");
    assert!(number(&seen, "memory_gb_hours") > 0.0, "{seen}");
    let reserved = ran_s / 3600.0 / 16.0;
    assert!(
        (number(&seen, "memory_reserved_gb_hours") - reserved).abs() < reserved / 100.0,
        "{seen}"
    );
    let cost = seen["estimated_cost"]["vcpu"].as_str().and_then(|text| text.parse::<f64>().ok());
    assert!((cost.expect("a decimal number") - cpu_s).abs() < 0.01, "one a second: {seen}");
    assert_eq!(seen["estimated_cost"]["total"], seen["estimated_cost"]["vcpu"]);

    // lightd dies, the workload goes on: what it used meanwhile is found by its counters.
    daemon.kill9().await;
    let began = tokio::time::Instant::now();
    eventually("a second and a half", SOON, async || {
        let passed = began.elapsed();
        if passed > Duration::from_millis(1500) { Ok(()) } else { Err(passed) }
    })
    .await;
    daemon.launch().await;
    daemon.state(&id, "running").await;
    let after = used_until(&daemon, &id, "the use of the time that nobody looked", |total| {
        number(total, "vcpu_hours") > number(&seen, "vcpu_hours") + 0.5 * VCPU_SECOND
    })
    .await;
    assert!(number(&after, "egress_gb") >= number(&seen, "egress_gb"), "{after}");
    let ran_s = number(&after, "duration_hours") * 3600.0;
    assert!(number(&after, "vcpu_hours") * 3600.0 < ran_s * 0.7, "nothing twice: {after}");

    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    daemon.restart().await;
    daemon.state(&id, "offline").await;
    let stopped = used(&daemon, &id).await;
    assert!(number(&stopped, "vcpu_hours") >= number(&after, "vcpu_hours"), "{stopped}");
    daemon.restart().await;
    daemon.state(&id, "offline").await;
    let again = used(&daemon, &id).await;
    assert_eq!(again["duration_hours"], stopped["duration_hours"], "{again}");
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    used_until(&daemon, &id, "the next run counts as well", |total| {
        number(total, "vcpu_hours") > number(&stopped, "vcpu_hours") + 0.5 * VCPU_SECOND
    })
    .await;
    daemon.client().delete(&format!("/containers/{id}")).await.is(200);
    gone_but_known(&daemon, &id, number(&stopped, "vcpu_hours")).await;
    let volume = made["volume_id"].as_str().expect("an id");
    let body = json!({"volume_id": volume, "hours": 1});
    daemon.client().post("/billing/estimate/volume", body).await.is(200);
    daemon.close().await;
}

/// Sends so much to the workload and reads it back.
async fn echo(port: u16, bytes: u64) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let stream = eventually("the workload takes connections", SOON, async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await
    })
    .await;
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        write.write_all(&vec![b'x'; usize::try_from(bytes).expect("little")]).await.expect("sent");
    };
    let reading = async {
        let mut left = bytes;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            let read = read.read(&mut buffer).await.expect("an echo");
            assert!(read > 0, "{left} bytes did not come back");
            left -= read as u64;
        }
    };
    tokio::join!(sending, reading);
}

async fn gone_but_known(daemon: &Daemon, id: &str, at_least: f64) {
    let client = daemon.client();
    for step in ["hourly", "daily", "monthly"] {
        let seen = client.get(&format!("/billing/usage/{id}/{step}")).await.is(200);
        assert!(number(&seen["total"], "vcpu_hours") >= at_least, "{seen}");
        let buckets = seen["buckets"].as_array().expect("a list");
        assert!((1..=2).contains(&buckets.len()), "{seen}");
        assert_eq!(seen["next_cursor"], Value::Null);
        let sum: f64 = buckets.iter().map(|bucket| number(bucket, "vcpu_hours")).sum();
        assert!((sum - number(&seen["total"], "vcpu_hours")).abs() < 1e-6, "{seen}");
    }
    let month = client.get("/billing/containers").await.is(200);
    let ours = month["containers"].as_array().expect("a list").iter();
    let ours = ours.filter(|seen| seen["internal_id"] == id).collect::<Vec<_>>();
    assert_eq!((ours.len(), &ours[0]["deleted"]), (1, &json!(true)), "{month}");
    assert_eq!(month["total"]["vcpu_hours"], ours[0]["vcpu_hours"], "{month}");
    client.get("/billing/usage/nobody/hourly").await.refused(404, "not_found");
}

#[tokio::test]
async fn storage_is_counted_also_while_nothing_runs() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("stored"), daemon.client());
    let volume = daemon.volume().await;
    let content = json!({"path": "world", "content": "x".repeat(1 << 20)});
    client.post(&format!("/volumes/{volume}/files"), content).await.is(201);
    daemon.create(&id, json!({"volume_id": volume})).await;
    // Looked at within a minute, and counted from there.
    let seen = eventually("the volume's content counts", Duration::from_secs(180), async || {
        let total = used(&daemon, &id).await;
        if number(&total, "storage_gb_hours") > 0.0 { Ok(total) } else { Err(total) }
    })
    .await;
    assert_eq!(number(&seen, "duration_hours"), 0.0, "{seen}");
    daemon.close().await;
}

#[tokio::test]
async fn rates_are_shown_and_estimates_are_exact() {
    let daemon = Daemon::start_with(|config| {
        config["billing"] = json!({
            "memory": "reserved",
            "rates": {"currency": "CHF", "memory_gb_hour": "0.005", "vcpu_hour": "0.01",
                      "storage_gb_hour": "0.0001", "egress_gb": "0.02"},
        });
    })
    .await;
    let client = daemon.client();
    let rates = client.get("/billing/rates").await.is(200);
    assert_eq!(
        rates,
        json!({"currency": "CHF", "memory_gb_hour": "0.005", "vcpu_hour": "0.01",
               "storage_gb_hour": "0.0001", "egress_gb": "0.02", "memory": "reserved",
               "gb_bytes": 1_073_741_824})
    );
    let body = json!({"memory": 2_u64 << 30, "cpu": 0.5, "storage": 10_u64 << 30,
                      "egress": 1_u64 << 30, "hours": 100});
    let seen = client.post("/billing/estimate", body).await.is(200);
    assert_eq!(
        seen["estimated_cost"],
        json!({"memory": "1.000000", "vcpu": "0.500000", "storage": "0.100000",
               "egress": "0.020000", "total": "1.620000"})
    );
    assert_eq!((&seen["currency"], &seen["vcpu_hours"]), (&json!("CHF"), &json!(50.0)));
    let volume = client.post("/billing/estimate/volume", json!({"size": 1024})).await.is(200);
    assert_eq!(
        (&volume["hours"], &volume["estimated_cost"]["total"]),
        (&json!(730.0), &json!("0.073000"))
    );
    for (path, body, field) in [
        ("", json!({"cpu": -1}), "cpu"),
        ("", json!({"hours": 1e9}), "hours"),
        ("", json!({"memory": u64::MAX}), "memory"),
        ("", json!({"memroy": 1}), "memroy"),
        ("", json!({"memory": 1_u64 << 50, "hours": 87_600}), "memory"),
        ("/volume", json!({"size": 1 << 30, "hours": 87_600}), "size"),
        ("/volume", json!({}), "size"),
        ("/volume", json!({"size": u64::MAX}), "size"),
        ("/volume", json!({"size": 1, "volume_id": uuid::Uuid::nil()}), "size"),
    ] {
        client.post(&format!("/billing/estimate{path}"), body).await.names_field(field);
    }
    daemon.edit_config(|config| config["billing"]["rates"]["egress_gb"] = json!("1,5"));
    let refused = client.post_empty("/remote/config/reload").await.refused(400, "invalid_config");
    assert_eq!(refused["problems"][0]["field"], "billing.rates.egress_gb");
    daemon.edit_config(|config| config["billing"]["rates"]["egress_gb"] = json!("1.5"));
    client.post_empty("/remote/config/reload").await.is(200);
    assert_eq!(client.get("/billing/rates").await.is(200)["egress_gb"], "1.5");
    daemon.close().await;
}

#[tokio::test]
async fn what_is_asked_wrongly_about_usage_is_named() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("asked"), daemon.client());
    daemon.create(&id, json!({})).await;
    let path = format!("/billing/usage/{id}");
    client.get(&format!("{path}/hourly?from=5&to=4000&limit=1")).await.is(200);
    client.get(&format!("{path}/hourly?from=90000&to=4")).await.names_field("?to");
    client.get(&format!("{path}/daily?from=x")).await.names_field("?from");
    client.get(&format!("{path}/daily?limit=0")).await.names_field("?limit");
    client.get(&format!("{path}/daily?cursor=x")).await.refused(400, "invalid_cursor");
    client.get(&format!("{path}/yearly")).await.refused(400, "invalid_parameter");
    client.get("/billing/containers?month=2026").await.names_field("?month");
    client.get("/billing/containers?cursor=-").await.refused(400, "invalid_cursor");
    let past = client.get("/billing/containers?month=2020-02").await.is(200);
    assert_eq!((&past["containers"], &past["from"]), (&json!([]), &json!(1_580_515_200)));
    let narrow = json!({"ttl": "1h", "containers": ["other"], "permissions": ["containers.read"]});
    let token = client.post("/auth/tokens", narrow).await.is(201);
    let other = client.with_token(token["token"].as_str().expect("a token"));
    other.get(&format!("{path}/hourly")).await.refused(403, "scope");
    assert_eq!(other.get("/billing/containers").await.is(200)["containers"], json!([]));
    daemon.close().await;
}
