//! The whole node in one answer, and a panel that is written against the documentation alone.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::chaos::Door;
use crate::support::client::answer;
use crate::support::numbers::free_port;
use crate::support::panel::Panel;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

const PATH: &str = "/sync/snapshot";

fn find<'a>(list: &'a Value, name: &str, id: &str) -> &'a Value {
    let found = list.as_array().expect("a list").iter().find(|item| item[name] == id);
    found.unwrap_or_else(|| panic!("no {id} in {list}"))
}

#[tokio::test]
async fn one_answer_has_all_that_a_panel_must_know() {
    let panel = Panel::start().await;
    let (mut daemon, mut door) = Door::and_daemon().await;
    daemon.edit_config(|config| config["remote"] = panel.config());
    daemon.client().post_empty("/remote/config/reload").await.is(200);
    let (up, failed) = (daemon.id("up"), daemon.id("failed"));
    let port = free_port();
    daemon.client().post("/network/ports", json!({"ip": "127.0.0.1", "port": port})).await.is(201);
    daemon.run(&up, json!({"ports": [{"container_port": 80}]})).await;
    let spec = daemon.spec(&failed, json!({"install_script": "exit 3"})).await;
    daemon.client().post("/containers", spec).await.is(201);
    daemon.install_state(&failed, "failed").await;
    let volume =
        daemon.client().get(&format!("/containers/{up}")).await.is(200)["volume_id"].clone();
    let volume = volume.as_str().expect("an id");
    let file = json!({"path": "a", "content": "x".repeat(100_000)});
    daemon.client().post(&format!("/volumes/{volume}/files"), file).await.is(201);

    let seen = daemon.client().get(PATH).await.is(200);
    let node = &seen["node"];
    assert_eq!(node["version"], env!("CARGO_PKG_VERSION"), "{seen}");
    assert!(node["taken_at"].is_i64() && node["uptime"].is_u64(), "{node}");
    assert_eq!(seen["engine"]["state"], "reachable");
    let found = find(&seen["containers"], "internal_id", &up);
    let shown = daemon.client().get(&format!("/containers/{up}")).await.is(200);
    for field in [
        "state",
        "desired_state",
        "install_state",
        "container_id",
        "ports",
        "volume_id",
        "limits",
        "image",
        "started_at",
        "ready_at",
        "last_exit",
        "restarts",
        "generation",
    ] {
        assert_eq!(found[field], shown[field], "{field}");
    }
    assert_eq!((&found["state"], &found["ports"][0]["port"]), (&json!("running"), &json!(port)));
    assert_eq!(found["last_sequence"], 2);
    let broken = find(&seen["containers"], "internal_id", &failed);
    assert_eq!((&broken["state"], &broken["last_sequence"]), (&json!("failed"), &json!(2)));
    assert!(broken["install_error"].is_string(), "{broken}");
    let held = find(&seen["volumes"], "id", volume);
    assert_eq!(held["containers"], json!([up]));
    assert!(held["used"].as_u64() >= Some(100_000) && held["size"].is_null(), "{held}");
    assert!(seen["outbox"]["waiting"].is_u64() && seen["outbox"]["parked"] == 0, "{seen}");
    let update = panel.calls().into_iter().find(|call| call.path == "/api/update");
    assert_eq!(
        update.expect("an update").headers["x-lightd-node"],
        node["id"].as_str().expect("one")
    );

    door.shut();
    daemon.state(&up, "unknown").await;
    let away = daemon.client().get(PATH).await.is(200);
    assert_eq!(away["engine"]["state"], "unreachable");
    let found = find(&away["containers"], "internal_id", &up);
    assert!(found["state"] == "unknown" && found["unknown_since"].is_i64(), "{found}");
    door.reopen();
    daemon.state(&up, "running").await;
    daemon.restart().await;
    let again = daemon.client().get(PATH).await.is(200);
    assert_eq!(again["node"]["id"], node["id"]);
    assert_ne!(again["node"]["boot_id"], node["boot_id"], "generations begin anew");
    daemon.close().await;
}

#[tokio::test]
async fn nothing_new_is_told_in_a_few_bytes_and_only_to_who_may_know() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    daemon.create(&daemon.id("one"), json!({})).await;
    let first = client.get(PATH).await;
    let etag = first.headers["etag"].to_str().expect("a text").to_owned();
    assert!(first.is(200)["containers"].is_array());
    let ask = async |etag: &str| {
        answer(client.request(Method::GET, PATH).header("If-None-Match", etag)).await
    };
    let same = ask(&etag).await;
    assert_eq!((same.status, same.text.as_str()), (304, ""));
    assert_eq!(same.headers["etag"], etag.as_str());
    client.post_empty("/volumes").await.is(201);
    let other = ask(&etag).await;
    assert_eq!((other.status, other.headers["etag"] != etag.as_str()), (200, true));

    let with = async |scope: Value| {
        let issued = client.post("/auth/tokens", scope).await.is(201);
        client.with_token(issued["token"].as_str().expect("a token")).get(PATH).await
    };
    with(json!({"permissions": ["node", "containers.read"]})).await.is(200);
    for scope in [
        json!({"permissions": ["node"]}),
        json!({"permissions": ["containers.read"]}),
        json!({"containers": [daemon.id("one")], "permissions": ["node", "containers.read"]}),
    ] {
        with(scope).await.refused(403, "scope");
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_state_and_the_number_of_its_newest_update_always_belong_together() {
    let panel = Panel::start().await;
    let daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    let id = daemon.id("flips");
    daemon.create(&id, json!({"install_script": "true"})).await;
    let mut looks = 0;
    for round in 1..=4 {
        daemon.client().post_empty(&format!("/containers/{id}/reinstall")).await.is(202);
        loop {
            let seen = daemon.client().get(PATH).await.is(200);
            let found = find(&seen["containers"], "internal_id", &id);
            let sequence = found["last_sequence"].as_u64().expect("a number");
            // Each install is two updates: its beginning and its end.
            let expected = if sequence % 2 == 1 { "installing" } else { "ready" };
            assert_eq!(found["install_state"], expected, "after update {sequence}: {found}");
            looks += 1;
            if sequence == 2 + 2 * round {
                break;
            }
        }
    }
    assert!(looks > 8, "{looks} looks saw nothing change");
    daemon.close().await;
}

/// The parts of the README's chapter that are in fences of this language.
fn chapter(language: &str) -> Vec<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).expect("a readable file");
    let (_, chapter) = readme.split_once("\n## A panel of your own\n").expect("the chapter");
    let (chapter, _) = chapter.split_once("\n## ").expect("an end of it");
    let fence = format!("```{language}\n");
    let parts = chapter.split(&fence).skip(1);
    parts.map(|part| part.split_once("```").expect("an end").0.to_owned()).collect()
}

fn program() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/panel/panel.py");
    std::fs::read_to_string(path).expect("the example")
}

#[test]
fn the_readme_shows_the_example_as_it_is() {
    assert_eq!(chapter("python"), [program()]);
    assert_eq!(chapter("json").len(), 1);
    assert!(program().lines().count() <= 50);
}

/// The example as a process, with what is of this test in the place of what is the demo's.
struct Example(Child);

impl Example {
    /// The program, changed for this test; where it is.
    fn write(daemon: &Daemon, port: u16, mine: &str) -> PathBuf {
        let text = program()
            .replace("9000", &port.to_string())
            .replace("lightd-demo:1", &daemon.image)
            .replace("\"mine\"", &format!("\"{mine}\""));
        let path = daemon.folder().join("panel.py");
        let mut file = std::fs::File::create(&path).expect("a file");
        file.write_all(text.as_bytes()).expect("a write");
        path
    }

    fn start(daemon: &Daemon) -> Self {
        let mut command = Command::new("python3");
        command.arg(daemon.folder().join("panel.py"));
        command.env("LIGHTD", daemon.url()).env("TOKEN", &daemon.token);
        command.env("SIGNING_SECRET", secret()).stderr(Stdio::null());
        Self(command.spawn().expect("the tests need python3"))
    }
}

/// Types the chapter's commands into a shell; what they print.
async fn follow_the_chapter(daemon: &Daemon, port: u16, program: &Path) -> String {
    let readme = include_str!("../../README.md");
    let api = readme.lines().find(|line| line.starts_with("api() {")).expect("the tour's api");
    let commands = chapter("sh")
        .concat()
        .replace("9000", &port.to_string())
        .replace("examples/panel/panel.py", &program.display().to_string());
    let script = format!("{api}\ntrap 'kill $!' EXIT\n{commands}");
    let mut shell = tokio::process::Command::new("bash");
    shell.args(["-ec", &script]).env("LIGHTD", daemon.url()).env("TOKEN", &daemon.token);
    let output = tokio::time::timeout(SOON * 2, shell.stdin(Stdio::null()).output()).await;
    let output = output.expect("the commands end").expect("the tests need bash");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

impl Drop for Example {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The chapter's own.
fn settings() -> Value {
    let settings = chapter("json");
    serde_json::from_str(&format!("{{{}}}", settings[0])).expect("members of an object")
}

/// The chapter's settings, with the panel at this port and looked after more often.
fn tell_of_panel(daemon: &Daemon, port: u16) {
    let mut settings = settings();
    settings["remote"]["url"] = json!(format!("http://127.0.0.1:{port}/api"));
    settings["remote"]["health_interval"] = json!("1s");
    daemon.edit_config(|config| config["remote"] = settings["remote"].take());
}

fn secret() -> String {
    settings()["remote"]["signing_secret"].as_str().expect("a secret").to_owned()
}

#[tokio::test]
async fn the_readmes_panel_makes_a_server_hears_of_it_and_lets_a_browser_in() {
    let daemon = Daemon::start().await;
    let (port, mine) = (free_port(), daemon.id("mine"));
    tell_of_panel(&daemon, port);
    let program = Example::write(&daemon, port, &mine);
    let said = follow_the_chapter(&daemon, port, &program).await;
    let knows = format!(r#"{{"{mine}": {{"sequence": 2, "status": "ready"}}}}"#);
    assert!(said.contains("Configuration reloaded") && said.contains(&knows), "{said}");

    let ask = async |path: &str| -> Value {
        let answer = reqwest::get(format!("http://127.0.0.1:{port}{path}")).await;
        match answer {
            Ok(answer) => answer.json().await.expect("JSON"),
            Err(error) => json!({"error": error.to_string()}),
        }
    };
    // It has started its server, because it was told that it is ready; started again, it makes no other.
    daemon.state(&mine, "running").await;
    let example = Example::start(&daemon);
    eventually("the panel runs again, and knows", SOON, async || {
        let seen = ask("/").await;
        if seen[&mine]["status"] == "running" { Ok(()) } else { Err(seen) }
    })
    .await;
    let console = ask(&format!("/console/{mine}")).await;
    let mut browser = Socket::open(console["socket"].as_str().expect("an address")).await;
    browser.send(json!({"event": "send_command", "command": "hello"})).await;
    browser.expect_console("You said hello").await;
    browser.send(json!({"event": "power", "action": "kill"})).await;
    let refused = browser.expect("a refusal", |frame| frame["event"] == "error").await;
    assert_eq!(refused["code"], "scope", "{refused}");

    // What is not signed by the node is nobody's word; what is, only once.
    let update = format!("http://127.0.0.1:{port}/api/update");
    let forged = json!({"event": "update", "server": mine, "error": "failed", "data": "forged"});
    let forged =
        reqwest::Client::new().post(&update).header("X-Lightd-Sequence", "99").json(&forged);
    assert_eq!(forged.send().await.expect("an answer").status(), 401);
    assert_eq!(ask("/").await[&mine]["sequence"], 2);

    // A panel that was away asks once, and knows.
    drop(example);
    daemon.power(&mine, "kill").await;
    daemon.state(&mine, "offline").await;
    let _again = Example::start(&daemon);
    eventually("the panel is back and knows", SOON, async || {
        let seen = ask("/").await;
        if seen[&mine]["status"] == "offline" { Ok(()) } else { Err(seen) }
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn the_readmes_panel_starts_what_became_ready_while_it_was_away() {
    let daemon = Daemon::start().await;
    let (port, mine) = (free_port(), daemon.id("mine"));
    tell_of_panel(&daemon, port);
    daemon.client().post_empty("/remote/config/reload").await.is(200);
    // As if it had ended right after it made its server: what it was to hear is kept for it.
    daemon.create(&mine, json!({})).await;
    daemon.install_state(&mine, "ready").await;
    Example::write(&daemon, port, &mine);
    let _panel = Example::start(&daemon);
    daemon.state(&mine, "running").await;
    eventually("all is told", SOON, async || {
        let status = daemon.client().get("/remote/status").await.is(200);
        if status["outbox"]["waiting"] == 0 { Ok(()) } else { Err(status) }
    })
    .await;
    daemon.close().await;
}
