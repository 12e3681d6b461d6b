//! The calls themselves: what they answer, what they refuse, and who may make them.

use serde_json::{Value, json};

use super::{Site, path_of};
use crate::support::process::Daemon;

/// A daemon and a container that need not run.
async fn at_rest(change: impl FnOnce(&mut Value)) -> (Daemon, String) {
    let daemon = Daemon::start_with(change).await;
    let id = daemon.id("a");
    daemon.create(&id, json!({})).await;
    (daemon, id)
}

#[tokio::test]
async fn a_rule_is_shown_as_it_was_made() {
    let (daemon, id) = at_rest(|_| {}).await;
    let client = daemon.client();
    let whole = json!({
        "container_id": id, "source_ip": "203.0.113.9/24", "source_port": 1024, "dest_port": 25565,
        "protocol": "tcp", "action": "accept",
        "rate_limit": {"requests": 100, "per_seconds": 60}, "description": "office",
    });
    let made = client.post("/firewall/rules", whole.clone()).await.is(201)["rule"].clone();
    assert_eq!(made["source_ip"], "203.0.113.0/24");
    for field in ["source_port", "dest_port", "protocol", "action", "rate_limit", "description"] {
        assert_eq!(made[field], whole[field], "{field}");
    }
    assert_eq!((&made["enabled"], &made["applied"]), (&json!(true), &json!(true)));
    assert_eq!(made["ports"], json!([]), "it has published none");
    assert_eq!(client.get(&path_of(&made)).await.is(200)["rule"], made);
    client.post("/firewall/rules", whole).await.refused(409, "rule_exists");
    for port in 1..=4 {
        let rule =
            json!({"container_id": id, "dest_port": port, "protocol": "udp", "action": "drop"});
        client.post("/firewall/rules", rule).await.is(201);
    }
    let list = format!("/firewall/rules/container/{id}");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("{list}?limit=2{cursor}")).await.is(200);
        seen.extend(
            page["rules"].as_array().expect("a list").iter().map(|rule| rule["dest_port"].clone()),
        );
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, [25565, 1, 2, 3, 4]);
    client.get(&format!("{list}?limit=101")).await.names_field("?limit");
    client.get(&format!("{list}?cursor=x")).await.refused(400, "invalid_cursor");
    for port in 5..=99 {
        let rule =
            json!({"container_id": id, "dest_port": port, "protocol": "udp", "action": "drop"});
        client.post("/firewall/rules", rule).await.is(201);
    }
    let over = json!({"container_id": id, "protocol": "icmp", "action": "drop"});
    client.post("/firewall/rules", over).await.refused(409, "too_many_rules");
    daemon.close().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_rule_is_named() {
    let (daemon, id) = at_rest(|_| {}).await;
    let client = daemon.client();
    for (field, value) in [
        ("container_id", json!("-")),
        ("source_ip", json!("example.org")),
        ("source_ip", json!("203.0.113.0/33")),
        ("source_port", json!(0)),
        ("dest_port", json!(70_000)),
        ("protocol", json!("sctp")),
        ("action", json!("log")),
        ("rate_limit.requests", json!({"requests": 0, "per_seconds": 1})),
        ("rate_limit.per_seconds", json!({"requests": 1})),
        ("description", json!("x".repeat(256))),
        ("prot", json!("tcp")),
    ] {
        let mut rule = json!({"container_id": id, "protocol": "tcp", "action": "drop"});
        rule[field.split('.').next().expect("a name")] = value;
        client.post("/firewall/rules", rule).await.names_field(field);
    }
    let icmp = json!({"container_id": id, "protocol": "icmp", "action": "drop", "dest_port": 7});
    client.post("/firewall/rules", icmp).await.names_field("dest_port");
    client
        .post("/firewall/rules", json!({"container_id": id, "action": "drop"}))
        .await
        .names_field("protocol");
    let nobodys = json!({"container_id": "nobody", "protocol": "tcp", "action": "drop"});
    client.post("/firewall/rules", nobodys).await.refused(404, "not_found");
    client.get("/firewall/rules/x").await.refused(400, "invalid_parameter");
    let unknown = "/firewall/rules/0190c6a0-0000-4000-8000-000000000000";
    client.get(unknown).await.refused(404, "not_found");
    client.delete(unknown).await.refused(404, "not_found");
    let ddos = format!("/firewall/ddos/{id}");
    for (field, body) in [
        ("enabled", json!({})),
        ("enabled", json!({"enabled": true, "syn_flood_protection": false})),
        ("connection_limit", json!({"enabled": true, "connection_limit": 0})),
        ("rate_limit", json!({"enabled": true, "rate_limit": "fast"})),
        ("rate_limit.requests", json!({"enabled": true, "rate_limit": 0})),
    ] {
        client.post(&ddos, body).await.names_field(field);
    }
    client.post("/firewall/ddos/nobody", json!({"enabled": true})).await.refused(404, "not_found");
    daemon.close().await;
}

#[tokio::test]
async fn a_containers_firewall_is_taken_out_and_brought_back_with_its_rules() {
    let site = Site::new().await;
    let client = site.daemon.client();
    let path = format!("/firewall/networks/{}", site.id);
    assert_eq!(client.get(&path).await.is(200)["network"]["enabled"], false);
    let made = client.post_empty(&path).await.is(201);
    assert_eq!(made["network"]["applied"], true);
    assert_eq!(made["network"]["ports"].as_array().map(Vec::len), Some(3), "{made}");
    client.post_empty(&path).await.is(200);
    let rule = site.rule(json!({"action": "drop"})).await;
    client.delete(&path).await.is(200);
    site.all_is_open();
    let shown = client.get(&path_of(&rule)).await.is(200)["rule"].clone();
    assert_eq!((&shown["enabled"], &shown["applied"]), (&json!(true), &json!(false)));
    assert!(shown["reason"].is_string(), "{shown}");
    client.post_empty(&path).await.is(201);
    assert_eq!(site.tcp(0), crate::support::outside::Reply::Nothing);
    let ddos = format!("/firewall/ddos/{}", site.id);
    let body = json!({"enabled": true, "connection_limit": 9, "rate_limit": 50});
    let set = client.post(&ddos, body).await.is(200)["ddos"].clone();
    assert_eq!(set["rate_limit"], json!({"requests": 50, "per_seconds": 1}));
    assert_eq!(set["syn_flood_protection"], true);
    assert_eq!(client.get(&ddos).await.is(200)["ddos"], set);
    let cleaned = client.delete(&format!("/firewall/cleanup/{}", site.id)).await.is(200);
    assert_eq!(cleaned["deleted_rules"], 1);
    assert!(site.table().is_none(), "nothing is left of it");
    assert_eq!(client.get(&ddos).await.is(200)["ddos"]["enabled"], false);
    site.daemon.close().await;
}

#[tokio::test]
async fn a_firewall_that_was_taken_out_keeps_new_rules_back_and_one_that_is_not_there_is_not_made()
{
    let (daemon, id) = at_rest(|_| {}).await;
    let client = daemon.client();
    let network = format!("/firewall/networks/{id}");
    let rule = |port: u16| json!({"container_id": id, "dest_port": port, "protocol": "tcp", "action": "drop"});
    let told = client.delete(&network).await.is(200);
    assert_eq!(told["message"], "There is no firewall network to remove");
    let detached = "/audit?action=firewall.detach";
    assert_eq!(client.get(detached).await.is(200)["entries"], json!([]));
    let first = client.post("/firewall/rules", rule(1)).await.is(201)["rule"].clone();
    assert_eq!(first["applied"], true, "nothing keeps it back: {first}");

    client.delete(&network).await.is(200);
    client.delete(&network).await.is(200);
    let entries = client.get(detached).await.is(200)["entries"].clone();
    assert_eq!(entries.as_array().map(Vec::len), Some(1), "{entries}");
    let kept = client.post("/firewall/rules", rule(2)).await.is(201)["rule"].clone();
    let ddos = json!({"enabled": true, "connection_limit": 9});
    let ddos = client.post(&format!("/firewall/ddos/{id}"), ddos).await.is(200)["ddos"].clone();
    for kept in [&kept, &ddos] {
        assert_eq!((&kept["enabled"], &kept["applied"]), (&json!(true), &json!(false)), "{kept}");
        assert!(kept["reason"].as_str().is_some_and(|why| why.contains("taken out")), "{kept}");
    }
    client.post_empty(&network).await.is(201);
    for rule in [&first, &kept] {
        assert_eq!(client.get(&path_of(rule)).await.is(200)["rule"]["applied"], true);
    }
    daemon.close().await;
}

#[tokio::test]
async fn what_was_made_is_answered_also_where_it_is_cleaned_up_at_that_moment() {
    let (daemon, id) = at_rest(|_| {}).await;
    let client = daemon.client();
    let rule = json!({"container_id": id, "protocol": "tcp", "action": "drop"});
    let (cleanup, ddos) = (format!("/firewall/cleanup/{id}"), format!("/firewall/ddos/{id}"));
    for _ in 0..60 {
        let protection = json!({"enabled": true, "connection_limit": 9});
        let (made, _, set, _) = tokio::join!(
            client.post("/firewall/rules", rule.clone()),
            client.delete(&cleanup),
            client.post(&ddos, protection),
            client.delete(&cleanup),
        );
        assert_eq!(made.is(201)["rule"]["container_id"], id.as_str());
        assert_eq!(set.is(200)["ddos"]["connection_limit"], 9, "what it has set");
        client.delete(&cleanup).await.is(200);
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_token_reaches_the_rules_of_its_own_containers() {
    let (daemon, mine) = at_rest(|_| {}).await;
    let other = daemon.id("b");
    daemon.create(&other, json!({})).await;
    let client = daemon.client();
    let rule = |id: &str| json!({"container_id": id, "protocol": "tcp", "action": "drop"});
    let others = client.post("/firewall/rules", rule(&other)).await.is(201)["rule"].clone();
    let issue = async |permissions: Value| {
        let body = json!({"ttl": "5m", "containers": [&mine], "permissions": permissions});
        let token = client.post("/auth/tokens", body).await.is(201);
        client.with_token(token["token"].as_str().expect("a token"))
    };
    let writer = issue(json!(["network.read", "network.write"])).await;
    let own = writer.post("/firewall/rules", rule(&mine)).await.is(201)["rule"].clone();
    writer.post("/firewall/rules", rule(&other)).await.refused(403, "scope");
    writer.delete(&path_of(&others)).await.refused(404, "not_found");
    writer.get(&path_of(&others)).await.refused(404, "not_found");
    let reader = issue(json!(["network.read"])).await;
    reader.get(&path_of(&own)).await.is(200);
    reader.get(&format!("/firewall/rules/container/{mine}")).await.is(200);
    reader.delete(&path_of(&own)).await.refused(403, "scope");
    reader.delete(&format!("/firewall/cleanup/{mine}")).await.refused(403, "scope");
    reader.get(&format!("/firewall/networks/{other}")).await.refused(403, "scope");
    daemon.close().await;
}

#[tokio::test]
async fn where_the_firewall_is_off_rules_are_refused() {
    let (mut daemon, id) = at_rest(|_| {}).await;
    let rule = json!({"container_id": id, "protocol": "tcp", "action": "drop"});
    let made = daemon.client().post("/firewall/rules", rule.clone()).await.is(201)["rule"].clone();
    daemon.edit_config(|config| config["network"]["firewall"] = json!("off"));
    daemon.restart().await;
    let client = daemon.client();
    let another = json!({"container_id": id, "protocol": "udp", "action": "drop"});
    client.post("/firewall/rules", another).await.refused(409, "firewall_off");
    let ddos = format!("/firewall/ddos/{id}");
    client.post(&ddos, json!({"enabled": true})).await.refused(409, "firewall_off");
    client.post_empty(&format!("/firewall/networks/{id}")).await.refused(409, "firewall_off");
    let shown = client.get(&path_of(&made)).await.is(200);
    assert_eq!(shown["rule"]["applied"], false, "{shown}");
    client.delete(&path_of(&made)).await.is(200);
    daemon.close().await;
}
