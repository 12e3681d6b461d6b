//! What a workload gets, what it may do, and how it ends.

use serde_json::{Value, json};

use crate::support::process::Daemon;

/// CVE-2021-32699: the limit on processes is there also where nobody asked for one.
#[tokio::test]
async fn a_workload_is_hardened_by_default() {
    let daemon = Daemon::start().await;
    let id = daemon.id("hard");
    let limits = json!({"memory": 64 << 20, "cpu": 0.5});
    daemon.run(&id, json!({"limits": limits})).await;
    let seen = daemon.inspect(&id).await;
    let (host, config) = (&seen["HostConfig"], &seen["Config"]);
    assert_eq!(config["User"], "988:988");
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["CapAdd"], json!(["NET_BIND_SERVICE"]));
    assert_eq!(host["ReadonlyRootfs"], true);
    let options = host["SecurityOpt"].to_string();
    assert!(options.contains("no-new-privileges"), "{options}");
    assert!(!options.contains("unconfined"), "{options}");
    assert_eq!(host["PidsLimit"], 512);
    assert_eq!(host["Memory"], 64 << 20);
    assert_eq!(host["MemorySwap"], 64 << 20, "no swap unless asked for");
    assert_eq!((&host["CpuQuota"], &host["CpuPeriod"]), (&json!(50_000), &json!(100_000)));
    assert_eq!(host["NetworkMode"], daemon.bridge.as_str());
    assert_eq!(host["RestartPolicy"]["Name"], "no", "restarts are lightd's decision");
    assert_eq!(host["LogConfig"]["Config"], json!({"max-size": "8388608", "max-file": "2"}));
    assert_eq!(host["PortBindings"], json!({}));
    for namespace in ["PidMode", "UTSMode", "UsernsMode"] {
        assert_eq!(host[namespace], "", "{namespace}");
    }
    assert_ne!(host["IpcMode"], "host");
    let tmp = host["Tmpfs"]["/tmp"].as_str().expect("a tmpfs");
    assert!(tmp.contains("mode=1777") && !tmp.contains("noexec"), "{tmp}");
    let mounts = seen["Mounts"].as_array().expect("mounts");
    let of = |at: &str| {
        let found = mounts.iter().find(|mount| mount["Destination"] == at);
        found.map(|mount| mount["RW"] == true)
    };
    assert_eq!(
        (mounts.len(), of("/home/container"), of("/app/data")),
        (2, Some(true), Some(false))
    );

    // And what of it the kernel says, inside.
    let cmd =
        json!({"cmd": ["sh", "-c", "id -u; id -g; cat /proc/self/status; cat /proc/1/status"]});
    let answer = daemon.client().post(&format!("/containers/{id}/exec"), cmd).await.is(200);
    let text = answer["stdout"].as_str().expect("a text");
    assert!(text.starts_with("988\n988\n"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    assert!(text.contains("CapPrm:\t0000000000000000"), "{text}");
    assert!(text.contains("Seccomp:\t2"), "{text}");
    daemon.close().await;
}

#[tokio::test]
async fn the_root_is_read_only_unless_asked_otherwise_and_tmp_and_home_can_be_written() {
    let daemon = Daemon::start().await;
    let command = "touch /usr/mark && echo root-written; touch /app/data/x && echo data-written; \
        cp /bin/busybox /tmp/echo && /tmp/echo tmp-runs; touch mark && echo home-written; \
        stat -c %a /tmp; pwd; guest say Ready -- forever";
    let (hard, soft) = (daemon.id("hard"), daemon.id("soft"));
    daemon.run(&hard, json!({"startup_command": command})).await;
    let text = daemon.logs(&hard).await.replace('\r', "");
    for written in ["tmp-runs\n", "home-written\n", "1777\n", "\n/home/container\n"] {
        assert!(text.contains(written), "{written}: {text}");
    }
    assert!(!text.contains("root-written"), "{text}");
    assert!(!text.contains("data-written"), "{text}");
    // The test image's folders belong to root, and the workload is not root: only /tmp of the image
    // can show that the rest is not mounted read-only.
    daemon.run(&soft, json!({"startup_command": command, "read_only": false})).await;
    assert_eq!(daemon.inspect(&soft).await["HostConfig"]["ReadonlyRootfs"], false);
    daemon.close().await;
}

/// CVE-2024-34066: who held the node's token could have any folder of the host.
#[tokio::test]
async fn mounts_are_taken_from_beneath_the_allowed_folders_only() {
    let allowed = tempfile::tempdir().expect("a folder");
    let inside = allowed.path().join("shared");
    std::fs::create_dir(&inside).expect("a folder");
    std::os::unix::fs::symlink("/etc", allowed.path().join("link")).expect("a link");
    let sibling = format!("{}b", allowed.path().display());
    std::fs::create_dir(&sibling).expect("a folder");
    let daemon = Daemon::start_with(|config| {
        config["docker"]["allowed_mounts"] = json!([allowed.path()]);
    })
    .await;
    let id = daemon.id("mounts");
    let client = daemon.client();
    for source in ["/etc", &sibling, &format!("{}/link", allowed.path().display())] {
        let spec = daemon.spec(&id, json!({"mount": {"/data": source}})).await;
        let refusal = client.post("/containers", spec).await.names_field("mount./data");
        assert!(!refusal.to_string().contains(source), "{refusal}");
    }
    std::fs::remove_dir(&sibling).expect("it is empty");
    let command = "ls -d /data && guest say Ready -- forever";
    let mount = json!({"mount": {"/data": inside}, "startup_command": command});
    daemon.run(&id, mount).await;
    assert!(daemon.logs(&id).await.contains("/data"));
    daemon.close().await;
}

#[tokio::test]
async fn the_environment_and_placeholders_reach_the_workload() {
    let daemon = Daemon::start().await;
    let id = daemon.id("env");
    let port = crate::support::numbers::free_port();
    let pool = json!({"ip": "127.0.0.1", "port": port});
    daemon.client().post("/network/ports", pool.clone()).await.is(201);
    daemon
        .run(&id, json!({
            "startup_command": "echo \"$GREETING|{{GREETING}}|{{SERVER_MEMORY}}|{{SERVER_IP}}|\
                {{SERVER_PORT}}|$SERVER_PORT|$HOME|${TZ:+zone}|{{ GREETING }}\"; guest say Ready -- forever",
            "env": {"GREETING": "hello {{SERVER_PORT}} $HOME"},
            "ports": [pool],
        }))
        .await;
    let text = daemon.logs(&id).await;
    // A placeholder's value is plain text in a shell's command line; it is not read for placeholders.
    let expected = format!(
        "hello {{{{SERVER_PORT}}}} $HOME|hello {{{{SERVER_PORT}}}} /home/container|64|127.0.0.1|\
         {port}|{port}|/home/container|zone|{{{{ GREETING }}}}"
    );
    assert!(text.contains(&expected), "{expected}\n{text}");
    daemon.close().await;
}

#[tokio::test]
async fn a_stop_signal_reaches_the_workload_behind_any_command_line() {
    let daemon = Daemon::start().await;
    let ids = ["simple", "compound", "notty"].map(|name| daemon.id(name));
    let commands = [
        json!({"startup_command": "exec guest trap-term exit"}),
        json!({"startup_command": "cd /tmp && guest trap-term exit; echo saved"}),
        json!({"startup_command": "true; guest trap-term exit; true", "tty": false}),
    ];
    for (id, command) in ids.iter().zip(commands) {
        let mut changes = json!({"start_pattern": "waiting for SIGTERM"});
        changes["startup_command"] = command["startup_command"].clone();
        changes["tty"] = command.get("tty").cloned().unwrap_or(json!(true));
        daemon.run(id, changes).await;
        daemon.power(id, "stop").await;
        let ended = daemon.state(id, "offline").await;
        let text = daemon.expect_log(id, "got SIGTERM, ending").await;
        assert_ne!(ended["exit_code"], 137, "{id} was killed: {text}");
    }
    // The other end of a pipe gets the signal as well, so that what this one says is not heard.
    let id = daemon.id("piped");
    let server = "trap 'echo saved > saved; exit 0' TERM; echo waiting for SIGTERM; \
        while :; do sleep 1 & wait $!; done";
    let command = format!("sh -c \"{server}\" | cat").replace("$!", "\\$!");
    let piped = json!({"startup_command": command, "start_pattern": "waiting for SIGTERM"});
    let shown = daemon.run(&id, piped).await;
    daemon.power(&id, "stop").await;
    daemon.state(&id, "offline").await;
    assert_eq!(daemon.volume_file(&shown, "saved").as_deref(), Some("saved\n"));
    daemon.close().await;
}

#[tokio::test]
async fn a_workload_that_does_not_stop_is_killed_after_its_grace() {
    let daemon = Daemon::start().await;
    let id = daemon.id("stubborn");
    daemon
        .run(
            &id,
            json!({
                "startup_command": "exec guest trap-term ignore", "start_pattern": "waiting",
                "stop": {"signal": "term", "timeout": 1},
            }),
        )
        .await;
    daemon.power(&id, "stop").await;
    let ended = daemon.state(&id, "offline").await;
    assert_eq!(ended["exit_code"], 137);
    assert!(daemon.logs(&id).await.contains("got SIGTERM, going on"));
    daemon.close().await;
}

#[tokio::test]
async fn a_workload_is_stopped_by_its_command() {
    let daemon = Daemon::start().await;
    for (name, tty) in [("tty", true), ("notty", false)] {
        let id = daemon.id(name);
        let command = "echo Ready; read line; echo \"saving, because $line\"; exit 0";
        daemon
            .run(
                &id,
                json!({
                    "startup_command": command, "stop": {"command": "stop now"}, "tty": tty,
                }),
            )
            .await;
        daemon.power(&id, "stop").await;
        assert_eq!(daemon.state(&id, "offline").await["exit_code"], 0);
        daemon.expect_log(&id, "saving, because stop now").await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_tty_is_given_by_default_and_can_be_refused() {
    let daemon = Daemon::start().await;
    let command = "test -t 1 && echo is-a-tty || echo is-no-tty; guest complain wrong -- say Ready \
        -- forever";
    let (tty, plain) = (daemon.id("tty"), daemon.id("plain"));
    daemon.run(&tty, json!({"startup_command": command})).await;
    let text = daemon.logs(&tty).await;
    assert!(text.contains("is-a-tty") && text.contains("wrong"), "{text}");
    daemon.run(&plain, json!({"startup_command": command, "tty": false})).await;
    let text = daemon.expect_log(&plain, "wrong").await;
    assert!(text.contains("is-no-tty\n") && text.contains("Ready\n"), "{text}");
    assert_eq!(daemon.inspect(&plain).await["Config"]["Tty"], false);
    daemon.close().await;
}

#[tokio::test]
async fn commands_go_to_the_standard_input_and_exec_beside_the_workload() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("input"), daemon.client());
    daemon.run(&id, json!({"startup_command": "guest say Ready -- echo"})).await;
    let command = async |text: &str| {
        client.post(&format!("/containers/{id}/command"), json!({"command": text})).await
    };
    let taken = command("say hi").await.is(202);
    assert_eq!(taken["internal_id"], json!(id));
    daemon.expect_log(&id, "got: say hi").await;
    command("with its own line feed\n").await.is(202);
    command("next").await.is(202);
    let text = daemon.expect_log(&id, "got: next").await;
    assert!(text.contains("got: with its own line feed"), "{text}");
    assert!(!text.contains("got: \r\n") && !text.contains("got: \n"), "an empty line: {text}");
    command(&"x".repeat(70_000)).await.names_field("command");

    let exec = async |body: Value| client.post(&format!("/containers/{id}/exec"), body).await;
    let done =
        exec(json!({"cmd": ["sh", "-c", "echo out; echo err >&2; pwd; exit 3"]})).await.is(200);
    assert_eq!(done["exit_code"], 3);
    assert_eq!(done["stdout"], "out\n/home/container\n");
    assert_eq!(done["stderr"], "err\n");
    let late = exec(json!({"cmd": ["sleep", "600"], "timeout": 1})).await.is(200);
    assert_eq!((&late["exit_code"], &late["timed_out"]), (&Value::Null, &json!(true)));
    exec(json!({"cmd": []})).await.names_field("cmd");
    exec(json!({"cmd": "ls"})).await.names_field("cmd");
    exec(json!({"cmd": ["true"], "timeout": 0})).await.names_field("timeout");
    daemon.close().await;
}

#[tokio::test]
async fn an_exit_is_told_with_its_code_and_a_memory_that_ran_out_as_such() {
    let daemon = Daemon::start().await;
    let (exits, eats) = (daemon.id("exits"), daemon.id("eats"));
    daemon.run(&exits, json!({"startup_command": "echo Ready; read x; exit 42"})).await;
    let command = json!({"command": "end"});
    daemon.client().post(&format!("/containers/{exits}/command"), command).await.is(202);
    let ended = daemon.state(&exits, "offline").await;
    assert_eq!((&ended["exit_code"], &ended["oom_killed"]), (&json!(42), &json!(false)));

    daemon
        .create(
            &eats,
            json!({
                "startup_command": "guest say Ready -- alloc 200", "limits": {"memory": 32 << 20},
            }),
        )
        .await;
    daemon.power(&eats, "start").await;
    let ended = daemon.shown(&eats, "it has ended", |shown| shown["oom_killed"] == true).await;
    assert_eq!(ended["exit_code"], 137, "{ended}");
    daemon.close().await;
}

#[tokio::test]
async fn a_workload_that_crashes_is_started_again_if_it_is_wanted() {
    let daemon = Daemon::start().await;
    let id = daemon.id("crashes");
    // The second run finds what the first has left.
    let command = "test -e was && guest say Ready -- forever; touch was; exit 1";
    daemon.create(&id, json!({"startup_command": command, "restart_on_crash": true})).await;
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    daemon.power(&id, "kill").await;
    let killed = daemon.state(&id, "offline").await;
    assert_eq!(killed["exit_code"], 137, "a kill is no crash");
    daemon.close().await;
}

#[tokio::test]
async fn a_start_without_a_pattern_runs_at_once_and_a_pattern_is_found_behind_colours() {
    let daemon = Daemon::start().await;
    let (none, coloured) = (daemon.id("none"), daemon.id("coloured"));
    daemon.run(&none, json!({"startup_command": "guest forever", "start_pattern": null})).await;
    let command =
        r"printf 'server \033[32mre'; sleep 0.1; printf 'ady\033[0m (1.5s)\n'; guest forever";
    let pattern = r"^server ready \([0-9.]+s\)\s*$";
    daemon.run(&coloured, json!({"startup_command": command, "start_pattern": pattern})).await;
    daemon.close().await;
}

/// CVE-2021-32699: without a limit on processes a fork bomb took the host.
#[tokio::test]
async fn a_workload_cannot_make_more_processes_than_it_may() {
    let daemon = Daemon::start().await;
    let id = daemon.id("forks");
    daemon
        .run(
            &id,
            json!({
                "startup_command": "guest fork 200", "start_pattern": "forked [0-9]+",
                "limits": {"memory": 64 << 20, "pids": 40},
            }),
        )
        .await;
    let text = daemon.logs(&id).await;
    let forked = text.split("forked ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let forked: u32 = forked.expect("a number").parse().expect("a number");
    assert!((10..40).contains(&forked), "{forked}");
    daemon.close().await;
}
