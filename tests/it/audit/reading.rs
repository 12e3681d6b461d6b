//! The log as it is read: pages, filters, who may see what, what is never in it, and what is forgotten.

use serde_json::{Value, json};

use super::{actions, entries};
use crate::support::SOON;
use crate::support::client::answer;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::volumes::Volume;

#[tokio::test]
async fn pages_go_on_where_they_ended_while_more_is_being_done() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let issue = async || client.post("/auth/tokens", json!({})).await.is(201)["id"].clone();
    let mut issued = Vec::new();
    for _ in 0..25 {
        issued.push(issue().await);
    }
    let (mut paged, mut query) = (Vec::new(), "/audit?action=token&limit=4".to_owned());
    loop {
        let page = client.get(&query).await.is(200);
        let found = page["entries"].as_array().expect("a list");
        paged.extend(found.iter().map(|entry| entry["details"]["token_id"].clone()));
        issue().await;
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("/audit?action=token&limit=4&cursor={cursor}");
    }
    issued.reverse();
    assert_eq!(paged, issued, "each once, the newest first, and none that came later");
    daemon.close().await;
}

#[tokio::test]
async fn filters_are_held_to_what_they_mean_and_refused_by_name() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let volume = Volume::new(&daemon, json!({})).await;
    volume.put("a", "x", &[]).await.is(201);
    client.post("/auth/tokens", json!({})).await.is(201);
    let made = entries(&client, "").await;
    assert_eq!(actions(&made), ["volume.create", "files.write", "token.issue"]);
    let at = made[1]["created_at"].as_i64().expect("a time");
    for (query, wanted) in [
        (format!("volume={}", volume.id), vec!["volume.create", "files.write"]),
        ("action=files".to_owned(), vec!["files.write"]),
        ("action=token.issue".to_owned(), vec!["token.issue"]),
        ("actor=node&action=volume".to_owned(), vec!["volume.create"]),
        ("actor=lightd".to_owned(), vec![]),
        (format!("since={}", at + 3600), vec![]),
        (format!("until={}", at - 3600), vec![]),
        (format!("since={}&action=files&until={}", at, at + 1), vec!["files.write"]),
        ("container=nobody".to_owned(), vec![]),
    ] {
        assert_eq!(actions(&entries(&client, &query).await), wanted, "{query}");
    }
    for (query, field) in [
        ("limit=0", "?limit"),
        ("limit=1001", "?limit"),
        ("action=start", "?action"),
        ("actor=me", "?actor"),
        ("since=2&until=1", "?until"),
        ("since=yesterday", "?since"),
        ("container=-", "?container"),
        ("volume=x", "?volume"),
    ] {
        client.get(&format!("/audit?{query}")).await.names_field(field);
    }
    client.get("/audit?cursor=x").await.refused(400, "invalid_cursor");
    daemon.close().await;
}

#[tokio::test]
async fn a_narrowed_token_sees_what_was_done_to_its_containers_by_whomever() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let (mine, theirs) = (daemon.id("mine"), daemon.id("theirs"));
    for id in [&mine, &theirs] {
        let shown = daemon.create(id, json!({})).await;
        let volume = shown["volume_id"].as_str().expect("an id");
        let file = json!({"path": "a", "content": "x"});
        client.post(&format!("/volumes/{volume}/files"), file).await.is(201);
    }
    let narrowed = async |scope: Value| {
        let issued = client.post("/auth/tokens", scope).await.is(201);
        client.with_token(issued["token"].as_str().expect("a token"))
    };
    let reads = json!(["containers.read", "files.read"]);
    let reader = narrowed(json!({"containers": [mine], "permissions": reads})).await;
    let life = ["container.create", "container.installed", "files.write"];
    let seen = entries(&reader, "").await;
    assert_eq!(actions(&seen), life);
    assert!(seen.iter().all(|entry| entry["container"] == mine.as_str()), "{seen:#?}");
    assert_eq!(actions(&entries(&reader, &format!("container={mine}")).await), life);
    reader.get(&format!("/audit?container={theirs}")).await.refused(403, "scope");
    let all = narrowed(json!({"permissions": reads})).await;
    let seen = entries(&all, "").await;
    assert_eq!(seen.len(), 6, "all that names a container, and no more: {seen:#?}");
    let few = narrowed(json!({"containers": [mine], "permissions": ["containers.read"]})).await;
    assert_eq!(actions(&entries(&few, "").await), life[..2], "files are for who may read files");
    few.get("/audit?action=files").await.refused(403, "scope");
    few.get("/audit?action=token").await.refused(403, "scope");
    let node = narrowed(json!({"permissions": ["node"]})).await;
    assert!(actions(&entries(&node, "").await).contains(&"token.issue"));
    for scope in
        [json!({"permissions": ["power"]}), json!({"containers": [mine], "permissions": ["node"]})]
    {
        narrowed(scope).await.get("/audit?limit=0").await.refused(403, "scope");
    }
    daemon.close().await;
}

#[tokio::test]
async fn no_secret_is_in_it_and_commands_only_if_the_operator_wants_them() {
    let daemon = Daemon::start().await;
    let (client, id) = (daemon.client(), daemon.id("quiet"));
    let changes = json!({
        "startup_command": "echo Ready; cat # secret", "env": {"KEY": "secret"},
        "install_script": "echo secret", "labels": {"a": "secret"},
        "registry_auth": {"username": "me", "password": "secret"},
    });
    daemon.run(&id, changes).await;
    let at = |rest: &str| format!("/containers/{id}/{rest}");
    let say = async |text: &str| {
        client.post(&at("command"), json!({"command": text})).await.is(202);
        client.post(&at("exec"), json!({"cmd": ["echo", text]})).await.is(200);
    };
    say("secret").await;
    client.patch(&format!("/containers/{id}"), json!({"env": {"B": "secret"}})).await.is(200);
    let volume = Volume::new(&daemon, json!({})).await;
    volume.put("a", "secret", &[]).await.is(201);
    let pull = json!({"url": "http://nobody.invalid/secret?k=secret", "path": "b"});
    volume.post("pull", pull).await.is(202);
    let all = entries(&client, "").await;
    assert!(all.len() >= 9, "{all:#?}");
    assert!(!json!(all).to_string().contains("secret"), "{all:#?}");
    daemon.edit_config(|config| config["audit"] = json!({"commands": true}));
    client.post_empty("/remote/config/reload").await.is(200);
    let settled = async || {
        say("wanted").await;
        let all = entries(&client, &format!("container={id}")).await;
        let [.., command, exec] = all.as_slice() else { return Err(all) };
        let known = (command["details"] == json!({"command": "wanted"}))
            && exec["details"] == json!({"program": "echo", "arguments": ["wanted"]});
        if known { Ok(()) } else { Err(all) }
    };
    eventually("the text is kept", SOON, settled).await;
    daemon.close().await;
}

#[tokio::test]
async fn what_is_too_old_or_too_much_is_forgotten_also_after_a_reload() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let issue = async || client.post("/auth/tokens", json!({})).await.is(201)["id"].clone();
    for _ in 0..10 {
        issue().await;
    }
    let reload = async |audit: Value| {
        daemon.edit_config(|config| config["audit"] = audit);
        client.post_empty("/remote/config/reload").await.is(200);
    };
    reload(json!({"max_rows": 3})).await;
    // The reload itself may come after the sweep that follows from it.
    eventually("the newest three are left", SOON, async || {
        let left = entries(&client, "").await;
        let named = actions(&left);
        let [.., "token.issue", "token.issue", "config.reload"] = *named else { return Err(left) };
        if left.len() <= 4 { Ok(()) } else { Err(left) }
    })
    .await;
    reload(json!({"keep": "1s"})).await;
    eventually("nothing is left", SOON, async || {
        let left = entries(&client, "").await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let newest = issue().await;
    let shown = entries(&client, "").await;
    assert_eq!(shown.last().expect("it is there at first")["details"]["token_id"], newest);
    for (key, bad) in [("keep", json!("0s")), ("max_rows", json!(0)), ("kept", json!(1))] {
        daemon.edit_config(|config| config["audit"] = json!({key: bad}));
        let refused = client.post_empty("/remote/config/reload").await;
        assert!(
            refused.refused(400, "invalid_config").to_string().contains(&format!("audit.{key}"))
        );
    }
    daemon.close().await;
}

#[tokio::test]
async fn where_authorization_is_off_anyone_is_called_so() {
    let daemon =
        Daemon::start_with(|config| config["authorization"]["enabled"] = false.into()).await;
    let client = daemon.client().anonymous();
    answer(client.request(reqwest::Method::POST, "/volumes")).await.is(201);
    let made = entries(&client, "actor=anonymous").await;
    assert_eq!(actions(&made), ["volume.create"]);
    daemon.close().await;
}
