//! Who did what, from where: an entry for each thing that was done, none for what was not, also across
//! kills.

mod crash;
mod network;
mod reading;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::client::{Answer, Client, answer};
use crate::support::numbers::free_port;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;
use crate::volumes::Volume;

/// All entries that a query finds, the oldest first.
pub(crate) async fn entries(client: &Client, query: &str) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("/audit?limit=1000&{query}{cursor}")).await.is(200);
        found.extend(page["entries"].as_array().expect("a list").clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    found.reverse();
    found
}

fn actions(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["action"].as_str().expect("a name")).collect()
}

/// One request, by a name that its entry will have.
async fn ask(client: &Client, name: &str, (method, path, body): (&str, &str, Value)) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let request = client.request(method, path).header("x-request-id", name);
    answer(if body.is_null() { request } else { request.json(&body) }).await
}

/// What was recorded of the request with this name.
async fn of_request(client: &Client, name: &str) -> Vec<Value> {
    let mut found = entries(client, "").await;
    found.retain(|entry| entry["request_id"] == name);
    found
}

/// Asks for each in turn; each must answer with its status and be recorded as its action, if it has one,
/// with who asked and from where.
async fn each_is_recorded(client: &Client, cases: &[(&str, &str, Value, u16, &str)]) {
    for (index, (method, path, body, status, _)) in cases.iter().enumerate() {
        let name = format!("case-{index}");
        let answered = ask(client, &name, (method, path, body.clone())).await;
        assert_eq!(answered.status, *status, "{method} {path}: {}", answered.text);
    }
    let all = entries(client, "").await;
    for (index, (method, path, _, _, action)) in cases.iter().enumerate() {
        let name = format!("case-{index}");
        let made: Vec<_> = all.iter().filter(|entry| entry["request_id"] == name).collect();
        let wanted = Vec::from_iter((!action.is_empty()).then_some(*action));
        let got: Vec<_> = made.iter().filter_map(|entry| entry["action"].as_str()).collect();
        assert_eq!(got, wanted, "{method} {path}");
        for entry in made {
            assert_eq!(entry["actor"], json!({"type": "node"}), "{entry}");
            assert_eq!((&entry["way"], &entry["address"]), (&json!("rest"), &json!("127.0.0.1")));
        }
    }
}

#[tokio::test]
async fn what_is_done_to_volumes_and_files_has_an_entry_each_and_what_changes_nothing_has_none() {
    let daemon = Daemon::start().await;
    let (client, volume) = (daemon.client(), Volume::new(&daemon, json!({"size": 64})).await);
    let at = |rest: &str| volume.uri(rest);
    let (files, folders) = (at("files"), at("folders"));
    let moved = |from: &str, to: &str| json!({"source": from, "destination": to});
    let zip = json!({"format": "zip", "output_name": "a.zip", "paths": ["f"]});
    let same = format!("/volumes/{}", volume.id);
    each_is_recorded(
        &client,
        &[
            ("POST", &files, json!({"path": "f/a", "content": "x"}), 201, "files.write"),
            ("POST", &files, json!({"path": "../a", "content": "x"}), 400, ""),
            ("POST", &files, json!({"path": "f/a", "content": "x", "create_only": true}), 409, ""),
            ("GET", &at("files?path="), Value::Null, 200, ""),
            ("POST", &folders, json!({"path": "g"}), 201, "files.make_folder"),
            ("POST", &folders, json!({"path": "g"}), 200, ""),
            ("POST", &at("copy"), moved("f/a", "b"), 201, "files.copy"),
            ("POST", &at("copy"), moved("nothing", "c"), 404, ""),
            ("POST", &at("rename"), moved("b", "c"), 200, "files.rename"),
            ("POST", &at("rename"), moved("b", "c"), 404, ""),
            ("POST", &at("rename"), moved("c", "c"), 200, ""),
            ("POST", &at("chmod"), json!({"path": "c", "mode": "0600"}), 200, "files.chmod"),
            ("POST", &at("chmod"), json!({"path": "c", "mode": "0600"}), 200, ""),
            ("POST", &at("compress"), zip.clone(), 201, "archive.compress"),
            ("POST", &at("compress"), zip, 409, ""),
            (
                "POST",
                &at("decompress"),
                json!({"archive_path": "a.zip", "destination": "h"}),
                201,
                "archive.decompress",
            ),
            ("DELETE", &files, json!({"paths": ["c", "a.zip"]}), 200, "files.delete"),
            ("POST", &at("resize"), json!({"size": 65}), 200, "volume.resize"),
            ("POST", &at("resize"), json!({"size": 65}), 200, ""),
            ("POST", "/volumes", json!({"name": "n"}), 201, "volume.create"),
            ("DELETE", &same, Value::Null, 200, "volume.delete"),
            ("DELETE", &same, Value::Null, 404, ""),
        ],
    )
    .await;
    let of_volume = entries(&client, &format!("volume={}", volume.id)).await;
    assert_eq!(actions(&of_volume).first(), Some(&"volume.create"));
    assert_eq!(actions(&of_volume).last(), Some(&"volume.delete"), "its past is kept");
    let deleted = of_volume.iter().find(|entry| entry["action"] == "files.delete");
    let deleted = deleted.expect("a deletion");
    let paths = json!({"paths": ["c", "a.zip"]});
    assert_eq!((&deleted["count"], &deleted["details"]), (&json!(2), &paths));
    daemon.close().await;
}

#[tokio::test]
async fn content_that_is_streamed_is_recorded_once_it_is_in_its_place() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let wrote = async || {
        let query = format!("volume={}&action=files.write", volume.id);
        let made = entries(&daemon.client(), &query).await;
        let count = |entry: &Value| entry["count"].as_u64().expect("a number");
        let paths = |entry: &Value| entry["details"]["paths"].as_array().expect("a list").clone();
        let paths: Vec<Value> = made.iter().flat_map(paths).collect();
        (made.iter().map(count).sum::<u64>(), json!(paths))
    };
    volume.put("p", "x", &[]).await.is(201);
    volume.put("p", "x", &[("if-match", "\"other\"")]).await.refused(412, "precondition_failed");
    assert_eq!(wrote().await, (1, json!(["p"])));
    let form = "--B\r\ncontent-disposition: form-data; name=a; filename=u\r\n\r\nx\r\n\
                --B\r\ncontent-disposition: form-data; name=a; filename=v\r\n\r\nx\r\n--B--\r\n";
    let request = volume.client.request(Method::POST, &volume.uri("upload?path=in"));
    let request = request.header("content-type", "multipart/form-data; boundary=B");
    answer(request.body(form)).await.is(201);
    assert_eq!(wrote().await, (3, json!(["p", "in/u", "in/v"])));

    let tus =
        |method, path: &str| volume.client.request(method, path).header("tus-resumable", "1.0.0");
    // "t", as base64.
    let begun = tus(Method::POST, &volume.uri("tus")).header("upload-metadata", "filename dA==");
    let begun = answer(begun.header("upload-length", "2")).await;
    let upload = begun.headers["location"].to_str().expect("an address").to_owned();
    for (offset, paths) in [("0", vec!["p", "in/u", "in/v"]), ("1", vec!["p", "in/u", "in/v", "t"])]
    {
        let piece = tus(Method::PATCH, &upload).header("upload-offset", offset);
        let piece = piece.header("content-type", "application/offset+octet-stream");
        assert_eq!(answer(piece.body("x")).await.status, 204);
        assert_eq!(wrote().await, (paths.len() as u64, json!(paths)));
    }
    for n in 0..50 {
        volume.put(&format!("n{n}"), "x", &[]).await.is(201);
    }
    assert_eq!(wrote().await.0, 54, "counted, each once");
    let made = entries(&daemon.client(), "action=files.write").await;
    assert!(made.len() < 20, "an uploader does not fill the log: {made:#?}");
    daemon.close().await;
}

#[tokio::test]
async fn work_in_the_background_is_recorded_with_its_beginning_and_when_it_fails() {
    let daemon =
        Daemon::start_with(|config| config["network"]["allow_private"] = json!(["127.0.0.0/8"]));
    let daemon = daemon.await;
    let (client, volume) = (daemon.client(), Volume::new(&daemon, json!({})).await);
    volume.put("a", "x", &[]).await.is(201);
    let started = async |name: &str, rest: &str, body: Value| {
        let answered = ask(&client, name, ("POST", &volume.uri(rest), body)).await.is(202);
        answered["operation_id"].as_str().expect("an id").to_owned()
    };
    let ended = async |id: &str| {
        eventually("the operation ends", SOON, async || {
            let seen = client.get(&format!("/operations/{id}")).await.is(200);
            if seen["state"] == "running" { Err(seen) } else { Ok(seen["state"].clone()) }
        })
        .await
    };
    for (name, action, rest, body) in [
        (
            "copy",
            "files.copy",
            "copy",
            json!({"source": "a", "destination": "b", "background": true}),
        ),
        ("snapshot", "snapshot.take", "snapshots", json!({"name": "s"})),
        ("restore", "snapshot.restore", "snapshots/s/restore", Value::Null),
    ] {
        let id = started(name, rest, body).await;
        assert_eq!(ended(&id).await, "done");
        let [made] = of_request(&client, name).await.try_into().expect("one entry");
        assert_eq!(
            (&made["action"], &made["details"]["operation_id"]),
            (&json!(action), &json!(id))
        );
    }
    let nobody = format!("http://127.0.0.1:{}/a?key=b", free_port());
    let pull = json!({"url": nobody, "path": "c"});
    let id = started("pull", "pull", pull).await;
    assert_eq!(ended(&id).await, "failed");
    // An end is shown as soon as it is known, and then stored.
    let of_volume = eventually("its end is stored", SOON, async || {
        let all = entries(&client, &format!("volume={}", volume.id)).await;
        if actions(&all).last() == Some(&"operation.failed") { Ok(all) } else { Err(all) }
    })
    .await;
    let [.., pull, failed] = of_volume.as_slice() else { panic!("{of_volume:#?}") };
    assert_eq!(
        (&pull["action"], &pull["details"]["host"]),
        (&json!("files.pull"), &json!("127.0.0.1"))
    );
    assert_eq!(failed["actor"], json!({"type": "lightd"}));
    let details = json!({"operation_id": id, "state": "failed", "code": "fetch_failed"});
    assert_eq!((&failed["action"], &failed["details"]), (&json!("operation.failed"), &details));
    daemon.close().await;
}

#[tokio::test]
async fn the_pool_tokens_and_the_configuration_have_their_entries() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let port = free_port();
    let one = json!({"ip": "127.0.0.1", "port": port});
    let at = format!("/network/ports/127.0.0.1/{port}");
    let used = format!("{at}/use");
    let bulk = json!({"ports": [one.clone()]});
    each_is_recorded(
        &client,
        &[
            ("POST", "/network/ports", one.clone(), 201, "port.add"),
            ("POST", "/network/ports", one.clone(), 409, ""),
            ("PUT", &used, json!({"in_use": true}), 200, "port.mark"),
            ("PUT", &used, json!({"in_use": true}), 200, ""),
            ("DELETE", &at, Value::Null, 409, ""),
            ("PUT", &used, json!({"in_use": false}), 200, "port.mark"),
            ("DELETE", &at, Value::Null, 200, "port.delete"),
            ("DELETE", &at, Value::Null, 404, ""),
            ("POST", "/network/ports", one, 201, "port.add"),
            ("POST", "/network/ports/allocate", json!({"reserve": "1s"}), 201, "port.allocate"),
            ("POST", "/network/ports/bulk-delete", bulk, 200, ""),
            ("POST", "/auth/tokens", json!({"ttl": "1h", "containers": ["a"]}), 201, "token.issue"),
            ("POST", "/auth/tokens", json!({"ttl": "0s"}), 400, ""),
            ("DELETE", "/auth/tokens?container=a", Value::Null, 200, "token.revoke"),
            ("DELETE", "/auth/tokens?container=a", Value::Null, 200, ""),
            ("DELETE", "/remote/outbox?state=parked", Value::Null, 200, ""),
            ("POST", "/remote/outbox/retry", Value::Null, 200, ""),
            ("POST", "/remote/config/reload", Value::Null, 200, ""),
        ],
    )
    .await;
    let issued = client.post("/auth/tokens", json!({"ttl": "1h"})).await.is(201);
    let id = issued["id"].as_str().expect("an id");
    client.delete(&format!("/auth/tokens/{id}")).await.is(200);
    daemon.edit_config(|config| config["install"]["timeout"] = "5m".into());
    client.post_empty("/remote/config/reload").await.is(200);
    let all = entries(&client, "").await;
    let [.., issue, revoke, reload] = all.as_slice() else { panic!("{all:#?}") };
    assert_eq!(actions(&[issue.clone(), revoke.clone()]), ["token.issue", "token.revoke"]);
    assert_eq!(
        (&issue["details"]["token_id"], &revoke["details"]["token_id"]),
        (&json!(id), &json!(id))
    );
    assert_eq!(reload["details"], json!({"applied": ["install.timeout"]}));
    let token = issued["token"].as_str().expect("a token");
    assert!(!format!("{all:?}").contains(token), "a token stands in the log");
    daemon.close().await;
}

#[tokio::test]
async fn a_containers_life_is_told_from_its_making_to_its_end() {
    let daemon = Daemon::start().await;
    let (client, id) = (daemon.client(), daemon.id("life"));
    let command = "echo Ready; read x; exit 3";
    let restart = json!({"max_restarts": 1, "backoff_min_s": 1, "backoff_max_s": 1});
    let changes = json!({"startup_command": command, "restart_on_crash": restart});
    daemon.run(&id, changes).await;
    let at = |rest: &str| format!("/containers/{id}/{rest}");
    let told = async |what: &str, wanted: &[&str]| {
        eventually(what, SOON * 2, async || {
            let told = entries(&client, &format!("container={id}")).await;
            if actions(&told).starts_with(wanted) && told.len() == wanted.len() {
                Ok(told)
            } else {
                Err(told)
            }
        })
        .await
    };
    client.post_empty(&at("start")).await.is(202);
    client.post(&at("exec"), json!({"cmd": ["echo", "x"]})).await.is(200);
    client.post(&at("command"), json!({"command": "x"})).await.is(202);
    let begun =
        ["container.create", "container.installed", "container.start", "exec", "console.command"];
    let crashed = [&begun[..], &["container.crashed", "container.start"]].concat();
    let told_of_crash = told("it is started again", &crashed).await;
    let [.., crash, again] = told_of_crash.as_slice() else { unreachable!("as was waited for") };
    assert_eq!(crash["details"]["exit_code"], 3, "{crash}");
    assert_eq!(
        (&again["actor"]["type"], &again["details"]["reason"]),
        (&json!("lightd"), &json!("crash"))
    );
    daemon.state(&id, "running").await;
    client.patch(&format!("/containers/{id}"), json!({"env": {"A": "b"}})).await.is(200);
    client.post_empty(&at("pause")).await.is(202);
    daemon.state(&id, "paused").await;
    client.post_empty(&at("pause")).await.is(202);
    client.post_empty(&at("resume")).await.is(202);
    daemon.state(&id, "running").await;
    client.post_empty(&at("kill")).await.is(202);
    daemon.state(&id, "offline").await;
    client.post_empty(&at("suspend")).await.is(202);
    client.post_empty(&at("start")).await.refused(409, "suspended");
    client.post_empty(&at("unsuspend")).await.is(202);
    client.delete(&format!("/containers/{id}")).await.is(200);
    let rest = [
        "container.update",
        "container.pause",
        "container.resume",
        "container.kill",
        "container.exited",
        "container.suspend",
        "container.suspended",
        "container.unsuspend",
        "container.delete",
        "container.deleted",
    ];
    let whole = told("its life is told", &[&crashed[..], &rest].concat()).await;
    let by_lightd: Vec<_> =
        whole.iter().filter(|entry| entry["actor"]["type"] == "lightd").collect();
    assert_eq!(by_lightd.len(), 6, "{whole:#?}");
    assert!(by_lightd.iter().all(|entry| entry["way"] == "lightd" && entry["address"].is_null()));
    daemon.close().await;
}

#[tokio::test]
async fn an_install_that_fails_and_a_start_that_does_are_told_with_why() {
    let daemon = Daemon::start().await;
    let (client, id) = (daemon.client(), daemon.id("fails"));
    let changes = json!({"install_script": "exit 4", "startup_command": "echo no; guest forever",
        "fail_patterns": ["no"]});
    let spec = daemon.spec(&id, changes).await;
    client.post("/containers", spec).await.is(201);
    daemon.install_state(&id, "failed").await;
    let good = json!({"install_script": "exit 0"});
    client.post(&format!("/containers/{id}/reinstall"), good).await.is(202);
    daemon.install_state(&id, "ready").await;
    daemon.power(&id, "start").await;
    daemon.shown(&id, "the start has failed", |shown| shown["start_error"].is_string()).await;
    daemon.state(&id, "offline").await;
    let told = entries(&client, &format!("container={id}")).await;
    let wanted = [
        "container.create",
        "container.install_failed",
        "container.reinstall",
        "container.installed",
        "container.start",
        "container.start_failed",
        "container.exited",
    ];
    assert_eq!(actions(&told), wanted);
    assert!(told[1]["details"]["error"].as_str().expect("a reason").contains('4'), "{}", told[1]);
    assert_eq!(told[2]["details"]["fields"], json!(["install_script"]));
    assert!(told[5]["details"]["error"].is_string(), "{}", told[5]);
    daemon.close().await;
}

#[tokio::test]
async fn a_socket_and_the_command_line_are_known_by_their_ways_and_a_token_by_its_name() {
    let daemon = Daemon::start().await;
    let (client, id) = (daemon.client(), daemon.id("ways"));
    daemon.run(&id, json!({"startup_command": "guest say Ready -- echo"})).await;
    let issue = async || client.post("/auth/tokens", json!({"containers": [id]})).await.is(201);
    let (first, second) = (issue().await, issue().await);
    let token = |issued: &Value| issued["token"].as_str().expect("a token").to_owned();
    let mut socket = Socket::open(&daemon.ws_url(&id, &token(&first), "")).await;
    for (number, frame) in [
        (1, json!({"event": "send_command", "command": "one", "id": 1})),
        (2, json!({"event": "auth", "token": token(&second), "id": 2})),
        (3, json!({"event": "power", "action": "kill", "id": 3})),
    ] {
        socket.send(frame).await;
        let is_done = |frame: &Value| frame["event"] == "done" && frame["id"] == number;
        if number != 2 {
            socket.expect("it is done", is_done).await;
        }
    }
    let query = format!("container={id}&actor=token");
    let made = entries(&client, &query).await;
    assert_eq!(actions(&made), ["console.command", "container.kill"]);
    for (entry, issued) in made.iter().zip([&first, &second]) {
        let actor = json!({"type": "token", "token_id": issued["id"], "token_prefix": &token(issued)[..13]});
        assert_eq!((&entry["actor"], &entry["way"]), (&actor, &json!("websocket")), "{entry}");
        let by_id =
            entries(&client, &format!("actor={}", issued["id"].as_str().expect("an id"))).await;
        let by_prefix = entries(&client, &format!("actor={}", &token(issued)[..13])).await;
        assert_eq!(
            (by_id.as_slice(), by_prefix.as_slice()),
            ([entry.clone()].as_slice(), [entry.clone()].as_slice())
        );
    }
    daemon.state(&id, "offline").await;
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    typed(&daemon, &id, "two\n").await;
    let made = entries(&client, "action=console").await;
    assert_eq!(made.last().expect("an entry")["way"], "cli", "{made:#?}");
    let shown = daemon.cli(&["audit", "--container", &id, "--since", "1h", "--limit", "3"]);
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(shown.lines().nth(1).expect("a line").contains("console.command"), "{shown}");
    let json = daemon.cli(&["audit", "--actor", "token", "--json"]);
    let lines = String::from_utf8(json.stdout).expect("text");
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(!daemon.cli(&["audit", "--action", "nonsense"]).status.success());
    daemon.close().await;
}

/// Types into `lightd console` until it is echoed.
async fn typed(daemon: &Daemon, id: &str, text: &str) {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut console = daemon.command(&["console", id]);
    let console = console.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut console = console.expect("the program starts");
    let mut input = console.stdin.take().expect("a pipe");
    input.write_all(text.as_bytes()).expect("a write");
    daemon.expect_log(id, text.trim()).await;
    drop(input);
    console.kill().ok();
    console.wait().expect("an end");
}
