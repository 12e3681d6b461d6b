//! What an operator does: starts, stops, configures, asks, looks at a console.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::SOON;
use crate::support::numbers::free_port;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_daemon_answers_ends_on_sigterm_and_starts_again_on_the_same_data() {
    let mut daemon = Daemon::start().await;
    let ping = daemon.client().anonymous().get("/api/v1/public/ping").await.is(200);
    assert_eq!(ping, json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}));
    let health = daemon.client().anonymous().get("/health").await.is(200);
    assert_eq!((&health["status"], &health["version"]), (&json!("ok"), &ping["version"]));
    assert!(health["uptime"].is_u64() && health["timestamp"].is_u64(), "{health}");
    eventually("it is ready", SOON, async || {
        let answer = daemon.client().anonymous().get("/readyz").await;
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
    assert_eq!(daemon.client().get("/containers").await.is(200)["containers"], json!([]));
    daemon.restart().await;
    daemon.kill9().await;
    daemon.launch().await;
    daemon.signal(Signal::INT);
    assert!(daemon.ended(SOON).await.success());
    daemon.launch().await;
    daemon.close().await;
}

#[tokio::test]
async fn stopping_leaves_workloads_running_and_the_next_start_goes_on_with_them() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("stays");
    daemon
        .run(
            &id,
            json!({
                "startup_command": "echo Ready; while read line; do echo \"got $line\"; done",
                "tty": false,
            }),
        )
        .await;
    let before = daemon.inspect(&id).await;
    // A socket and a request under way must not hold it up.
    let mut socket = daemon.ws(&id).await;
    let exec = json!({"cmd": ["sleep", "60"], "timeout": 60});
    let path = format!("/containers/{id}/exec");
    let request = daemon.client().request(reqwest::Method::POST, &path).json(&exec);
    let mut under_way = tokio::task::JoinSet::new();
    under_way.spawn(request.send());
    daemon.terminate().await;
    assert_eq!(socket.expect_close().await, 1001);
    assert_eq!(daemon.inspect(&id).await["State"], before["State"]);

    daemon.launch().await;
    daemon.state(&id, "running").await;
    assert_eq!(daemon.inspect(&id).await["State"]["Pid"], before["State"]["Pid"]);
    let mut socket = daemon.ws(&id).await;
    socket.send(json!({"event": "send_command", "command": "again"})).await;
    let line = socket.expect("its answer", |frame| frame["event"] == "console").await;
    assert_eq!((&line["data"], &line["seq"]), (&json!("got again\n"), &json!(2)));
    daemon.close().await;
}

#[tokio::test]
async fn the_first_run_makes_a_configuration_with_a_token_that_only_the_owner_reads() {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let given = daemon.config();
    std::fs::remove_file(daemon.config_path()).expect("a file to remove");
    for (name, value) in [
        ("SERVER__PORT", given["server"]["port"].to_string()),
        ("SERVER__HOST", "127.0.0.1".to_owned()),
        ("DOCKER__NODE", daemon.node.clone()),
        ("STORAGE__BASE_PATH", daemon.data_path().display().to_string()),
        ("NETWORK__BRIDGE", daemon.bridge.clone()),
        ("NETWORK__SUBNETS", given["network"]["subnets"].as_str().expect("one").to_owned()),
    ] {
        daemon.set_environment(&format!("LIGHTD_{name}"), &value);
    }
    daemon.launch().await;
    let made = daemon.config();
    let mode = std::fs::metadata(daemon.config_path()).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(made["server"]["port"], 8070, "what the environment says is not written down");
    made["authorization"]["token"].as_str().expect("a token").clone_into(&mut daemon.token);
    assert!(daemon.token.starts_with("lightd_") && daemon.token.len() >= 20, "{}", daemon.token);
    daemon.client().get("/containers").await.is(200);
    let shown = daemon.client().get("/remote/config").await.is(200);
    assert_eq!(shown["server"]["port"], given["server"]["port"], "the environment counts");
    daemon.restart().await;
    assert_eq!(daemon.config(), made, "the second start makes no other");
    let secret = daemon.data_path().join("secret.key");
    if secret.exists() {
        let mode = std::fs::metadata(secret).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_bad_configuration_stops_the_start_with_every_key_and_what_was_expected() {
    let daemon = Daemon::prepare(|config| {
        config["server"]["port"] = json!("eighty");
        config["server"]["prot"] = json!(1);
        config["network"]["subnets"] = json!("10.0.0.0/33");
        config["authorization"]["token"] = json!("short");
        config["docker"]["user"] = json!("root");
        config["install"] = json!({"timeout": "soon"});
        config["remote"] = json!({"enabled": true});
    })
    .await;
    for arguments in [&["check-config"][..], &[]] {
        let refused = daemon.cli(arguments);
        let text = err(&refused);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        for key in ["server.port", "server.prot"] {
            assert!(text.contains(key), "{key}: {text}");
        }
        assert!(!text.contains("panicked"), "{text}");
    }
    // What has the right shape is checked for its meaning, all of it at once.
    daemon.edit_config(|config| {
        config["server"] = json!({"port": daemon.port});
        config["install"] = json!({"timeout": "1ms"});
    });
    let text = err(&daemon.cli(&["check-config"]));
    for key in [
        "network.subnets",
        "authorization.token",
        "docker.user",
        "install.timeout",
        "remote.url",
        "remote.token",
    ] {
        assert!(text.contains(&format!("{key}: ")), "{key}: {text}");
    }
    let broken = daemon.folder().join("broken.json");
    std::os::unix::fs::symlink("/dev/null", &broken).expect("a link");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lightd"));
    let output = command.arg("--config").arg(&broken).arg("check-config").output();
    let output = output.expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("is not JSON"), "{}", err(&output));
    daemon.close().await;
}

#[tokio::test]
async fn what_counts_is_shown_with_secrets_masked() {
    let mut daemon = Daemon::prepare(|config| {
        config["authorization"]["admin_key"] = json!("an-admin-key-for-this-test");
        config["remote"]["token"] = json!("a-token-of-the-panel");
    })
    .await;
    daemon.set_environment("LIGHTD_LIMITS__PIDS", "77");
    let shown = daemon.cli(&["check-config"]);
    assert!(shown.status.success(), "{}", err(&shown));
    let text = out(&shown);
    let config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["limits"]["pids"], 77);
    daemon.launch().await;
    let over_http = daemon.client().get("/remote/config").await.is(200);
    assert_eq!(over_http, config);
    for secret in [&daemon.token, "an-admin-key-for-this-test", "a-token-of-the-panel"] {
        assert!(!text.contains(secret), "{text}");
    }
    assert_eq!(config["authorization"]["token"], "***");
    daemon.close().await;
}

#[tokio::test]
async fn a_changed_configuration_is_taken_over_on_request_and_by_signal() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let reload = async || client.post_empty("/remote/config/reload").await;
    let nothing = reload().await.is(200);
    assert_eq!((&nothing["applied"], &nothing["needs_restart"]), (&json!([]), &json!([])));
    assert!(nothing["message"].is_string(), "{nothing}");

    daemon.edit_config(|config| {
        config["limits"] = json!({"pids": 99});
        config["server"]["max_body_bytes"] = json!(4096);
    });
    let changed = reload().await.is(200);
    assert_eq!(changed["applied"], json!(["limits.pids"]));
    assert_eq!(changed["needs_restart"], json!(["server.max_body_bytes"]));
    let id = daemon.id("pids");
    daemon.create(&id, json!({})).await;
    assert_eq!(daemon.inspect(&id).await["HostConfig"]["PidsLimit"], 99);

    // An invalid file changes nothing, and says what is wrong without the file's place.
    let before = client.get("/remote/config").await.is(200);
    daemon.edit_config(|config| {
        config["limits"] = json!({"pids": 0});
        config["authorization"]["token"] = json!("lightd_another_good_token");
    });
    let refused = reload().await.refused(400, "invalid_config");
    assert_eq!(refused["problems"][0]["field"], "limits.pids");
    assert!(!refused.to_string().contains("config.json"), "{refused}");
    assert_eq!(client.get("/remote/config").await.is(200), before);
    daemon.edit_config(|config| {
        config["limits"] = json!({"pids": 55});
        config["authorization"]["token"] = json!(daemon.token);
    });
    daemon.signal(Signal::HUP);
    eventually("the signal is followed", SOON, async || {
        let pids = client.get("/remote/config").await.is(200)["limits"]["pids"].clone();
        if pids == 55 { Ok(()) } else { Err(pids) }
    })
    .await;
    daemon.edit_config(|config| config["limits"] = json!("broken"));
    daemon.signal(Signal::HUP);
    eventually("the log says why not", SOON, async || {
        let log = daemon.log();
        if log.contains("the configuration stays as it was") { Ok(()) } else { Err("nothing yet") }
    })
    .await;
    assert_eq!(client.get("/remote/config").await.is(200)["limits"]["pids"], 55);
    daemon.close().await;
}

/// A certificate for the loopback address that nobody has signed.
fn make_certificate(daemon: &Daemon) -> (String, String) {
    let at = |name: &str| daemon.folder().join(name).display().to_string();
    let (cert, key) = (at("cert.pem"), at("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args(["-days", "2", "-subj", "/CN=lightd-test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-keyout", &key, "-out", &cert])
        .output()
        .expect("the tests need openssl: apt-get install openssl");
    assert!(made.status.success(), "{}", err(&made));
    (cert, key)
}

#[tokio::test]
async fn tls_is_served_by_configuration_and_by_flags() {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let (cert, key) = make_certificate(&daemon);
    daemon.use_tls();
    daemon.edit_config(|config| {
        config["server"]["tls"] = json!({"enabled": true, "cert": cert, "key": key});
    });
    daemon.launch().await;
    daemon.client().get("/containers").await.is(200);
    let plain = format!("http://127.0.0.1:{}/api/v1/public/ping", daemon.port);
    assert!(reqwest::get(&plain).await.is_err(), "it answers without TLS as well");
    // Its own tools trust its own certificate.
    let listed = daemon.cli(&["ps"]);
    assert!(listed.status.success(), "{}", err(&listed));
    let refused = daemon.client().with_token("lightd_nobodys_token_at_all");
    refused.get("/containers").await.refused(401, "unauthorized");

    daemon.terminate().await;
    daemon.edit_config(|config| drop(config["server"].as_object_mut().expect("one").remove("tls")));
    daemon.set_arguments(&["--enable-tls=true", "--tls-cert", &cert, "--tls-key", &key]);
    daemon.launch().await;
    daemon.client().get("/containers").await.is(200);
    daemon.terminate().await;

    let absent = daemon.cli(&["--enable-tls", "--tls-cert", "/no/such/file", "--tls-key", &key]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(err(&absent).contains("server.tls.cert"), "{}", err(&absent));
    let mixed_up = daemon.cli(&["--enable-tls", "--tls-cert", &key, "--tls-key", &cert]);
    assert_eq!(mixed_up.status.code(), Some(1), "{}", err(&mixed_up));
    daemon.launch().await;
    daemon.close().await;
}

#[tokio::test]
async fn flags_count_over_the_file() {
    let mut daemon = Daemon::prepare(|config| config["server"]["port"] = json!(1)).await;
    let port = daemon.port.to_string();
    daemon.set_arguments(&["--port", &port, "--host=127.0.0.1"]);
    daemon.launch().await;
    daemon.terminate().await;

    // Open to everyone is open to this machine only.
    let refused = daemon.cli(&["--disable-auth", "--host", "0.0.0.0", "--port", &port]);
    assert_eq!(refused.status.code(), Some(1), "{}", err(&refused));
    assert!(err(&refused).contains("127.0.0.1"), "{}", err(&refused));
    daemon.set_arguments(&["--port", &port, "--disable-auth"]);
    daemon.launch().await;
    let nobody = daemon.client().anonymous().without_accept();
    nobody.get("/containers").await.is(200);
    assert!(daemon.log().contains("AUTHORIZATION IS OFF"), "it does not shout");
    daemon.restart().await;
    daemon.set_arguments(&["--port", &port, "--disable-auth=false"]);
    daemon.restart().await;
    nobody.get("/containers").await.refused(401, "unauthorized");
    assert_eq!(daemon.cli(&["--no-such-flag"]).status.code(), Some(2));
    daemon.close().await;
}

#[tokio::test]
async fn two_daemons_do_not_share_a_port_or_a_store() {
    let daemon = Daemon::start().await;
    let port = free_port().to_string();
    let same_store = daemon.cli(&["--port", &port]);
    assert_eq!(same_store.status.code(), Some(1));
    assert!(err(&same_store).contains("in use by another lightd"), "{}", err(&same_store));
    let elsewhere = tempfile::tempdir().expect("a folder");
    let mut command = daemon.command(&[]);
    let same_port = command.env("LIGHTD_STORAGE__BASE_PATH", elsewhere.path()).output();
    let same_port = same_port.expect("the program runs");
    assert_eq!(same_port.status.code(), Some(1));
    assert!(err(&same_port).contains(&format!("127.0.0.1:{}", daemon.port)), "{}", err(&same_port));
    daemon.client().get("/containers").await.is(200);
    daemon.close().await;
}

#[tokio::test]
async fn ps_lists_and_doctor_says_what_is_wrong_and_how_to_mend_it() {
    let mut daemon = Daemon::start().await;
    let (id, port) = (daemon.id("listed"), free_port());
    daemon.client().post("/network/ports", json!({"ip": "127.0.0.1", "port": port})).await.is(201);
    daemon.run(&id, json!({"ports": [{"container_port": 80}]})).await;
    let listed = daemon.cli(&["ps"]);
    let text = out(&listed);
    let line = text.lines().find(|line| line.contains(&id)).unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("running") && line.contains(&format!("127.0.0.1:{port}->80/tcp")),
        "{line}"
    );

    let well = daemon.cli(&["doctor"]);
    assert!(well.status.success(), "{}", out(&well));
    assert!(out(&well).lines().count() >= 4, "{}", out(&well));
    let nobody = daemon.cli(&["console", "no-such-server"]);
    assert!(err(&nobody).contains("there is no server no-such-server"), "{}", err(&nobody));
    for arguments in [&["ps"][..], &["console", &id], &["doctor"]] {
        let mut command = daemon.command(arguments);
        command.env("LIGHTD_AUTHORIZATION__TOKEN", "lightd_of_another_daemon").stdin(Stdio::null());
        let other = command.output().expect("it runs");
        assert_eq!(other.status.code(), Some(1), "{arguments:?}");
        let text = format!("{}{}", out(&other), err(&other));
        assert!(text.contains("does not take the token"), "{arguments:?}: {text}");
    }
    daemon.terminate().await;
    let down = daemon.cli(&["ps"]);
    assert_eq!(down.status.code(), Some(1));
    assert!(err(&down).contains("is it running"), "{}", err(&down));
    let mut command = daemon.command(&["doctor"]);
    let ill = command.env("LIGHTD_DOCKER__SOCKET_PATH", "/no/such.sock").output().expect("it runs");
    assert_eq!(ill.status.code(), Some(1));
    let text = out(&ill);
    assert!(text.contains("FAIL engine") && text.contains("docker.socket_path"), "{text}");
    for shell in ["bash", "zsh", "fish"] {
        let script = daemon.cli(&["completions", shell]);
        assert!(script.status.success() && out(&script).contains("lightd"), "{shell}");
    }
    daemon.launch().await;
    daemon.close().await;
}

/// `lightd console`, with both ends of its terminal in hand.
struct Console {
    child: tokio::process::Child,
    seen: String,
}

impl Console {
    fn open(daemon: &Daemon, id: &str) -> Self {
        let mut command = daemon.command(&["console", id]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn().expect("the program starts");
        Self { child, seen: String::new() }
    }

    async fn type_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("a write");
    }

    async fn expect(&mut self, text: &str) {
        let stdout = self.child.stdout.as_mut().expect("a pipe");
        let reading = async {
            let mut buffer = [0; 4096];
            while !self.seen.contains(text) {
                let read = stdout.read(&mut buffer).await.expect("a read");
                assert!(read > 0, "the console ended without {text:?}: {:?}", self.seen);
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        };
        let found = tokio::time::timeout(SOON, reading).await;
        assert!(found.is_ok(), "no {text:?} in {:?}", self.seen);
    }

    /// Waits for its end; what it said on standard error.
    async fn end(mut self) -> (Option<i32>, String) {
        drop(self.child.stdin.take());
        let ended = tokio::time::timeout(SOON, self.child.wait_with_output()).await;
        let output = ended.expect("the console ends").expect("an end");
        (output.status.code(), err(&output))
    }
}

#[tokio::test]
async fn a_console_in_the_terminal_shows_and_takes_lines_and_outlives_the_daemon() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("console");
    daemon
        .run(&id, json!({
            "startup_command": "echo history; echo Ready; while read line; do echo \"got $line\"; done",
            "tty": false,
        }))
        .await;
    let mut console = Console::open(&daemon, &id);
    console.expect("history\nReady\n").await;
    console.type_line("hello").await;
    console.expect("got hello\n").await;

    daemon.restart().await;
    daemon.state(&id, "running").await;
    // It has come back by itself once this is taken.
    let command = json!({"command": "from the panel"});
    daemon.client().post(&format!("/containers/{id}/command"), command).await.is(202);
    console.expect("got from the panel\n").await;
    console.type_line("again").await;
    console.expect("got again\n").await;
    assert_eq!(console.seen.matches("got hello").count(), 1, "{}", console.seen);
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    console.type_line("once more").await;
    console.expect("got once more\n").await;
    let (code, said) = console.end().await;
    assert_eq!(code, Some(0), "{said}");
    let exit = "-- exit with code 137 (SIGKILL), killed as somebody wished --";
    for told in [exit, "-- the connection broke; trying again --", "-- connected again --"] {
        assert_eq!(said.matches(told).count(), 1, "{said}");
    }

    let mut ending = Console::open(&daemon, &id);
    ending.expect("got again").await;
    daemon.client().delete(&format!("/containers/{id}")).await.is(200);
    let stdin = ending.child.stdin.take();
    let (code, said) = ending.end().await;
    drop(stdin);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("deleted"), "{said}");
    let (code, said) = Console::open(&daemon, "nobody").end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("there is no server nobody"), "{said}");
    daemon.close().await;
}

#[tokio::test]
async fn a_log_in_json_names_what_it_is_about() {
    let daemon =
        Daemon::start_with(|config| config["log"] = json!({"format": "json", "level": "info"}))
            .await;
    daemon.client().get("/containers/nobody").await.refused(404, "not_found");
    let lines: Vec<Value> = daemon
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect();
    let found = lines.iter().find(|line| line.to_string().contains("/containers/nobody"));
    let line = found.expect("the request's line").to_string();
    assert!(line.contains("not_found") && line.contains("request.id"), "{line}");
    daemon.close().await;
}

#[tokio::test]
async fn a_stop_under_load_ends_in_time() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("busy");
    // An install that does not end, and a workload that prints without end to a reader.
    let script = json!({"install_script": "while :; do sleep 1; done"});
    let spec = daemon.spec(&daemon.id("installs"), script).await;
    daemon.client().post("/containers", spec).await.is(201);
    let command = "echo Ready; while :; do echo again and again; done";
    daemon.run(&id, json!({"startup_command": command})).await;
    let mut socket = daemon.ws(&id).await;
    socket.expect_console("again and again").await;
    let began = tokio::time::Instant::now();
    daemon.terminate().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(daemon.inspect(&id).await["State"]["Running"], true);
    daemon.launch().await;
    daemon.state(&id, "running").await;
    daemon.install_state(&daemon.id("installs"), "installing").await;
    daemon.close().await;
}
