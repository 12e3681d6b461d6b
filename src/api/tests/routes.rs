use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};

use super::node::{Node, TOKEN, VENDOR, answer};

/// Every address that wants a token, with a method it takes.
const PROTECTED: &[(&str, &str)] = &[
    ("POST", "/auth/tokens"),
    ("GET", "/auth/tokens"),
    ("DELETE", "/auth/tokens/0190c6a0-0000-7000-8000-000000000000"),
    ("POST", "/network/ports"),
    ("GET", "/network/ports"),
    ("GET", "/network/ports/random"),
    ("POST", "/network/ports/bulk-delete"),
    ("POST", "/network/ports/allocate"),
    ("POST", "/network/ports/import"),
    ("GET", "/network/leases"),
    ("GET", "/network/leases/0190c6a0-0000-7000-8000-000000000000"),
    ("DELETE", "/network/leases/0190c6a0-0000-7000-8000-000000000000"),
    ("POST", "/network/leases/0190c6a0-0000-7000-8000-000000000000/renew"),
    ("GET", "/network/ports/0.0.0.0/1"),
    ("DELETE", "/network/ports/0.0.0.0/1"),
    ("PUT", "/network/ports/0.0.0.0/1/use"),
    ("POST", "/firewall/rules"),
    ("GET", "/firewall/rules/0190c6a0-0000-4000-8000-000000000000"),
    ("DELETE", "/firewall/rules/0190c6a0-0000-4000-8000-000000000000"),
    ("PUT", "/firewall/rules/0190c6a0-0000-4000-8000-000000000000/toggle"),
    ("GET", "/firewall/rules/container/a"),
    ("POST", "/firewall/ddos/a"),
    ("GET", "/firewall/ddos/a"),
    ("POST", "/firewall/networks/a"),
    ("GET", "/firewall/networks/a"),
    ("DELETE", "/firewall/networks/a"),
    ("DELETE", "/firewall/cleanup/a"),
    ("POST", "/containers"),
    ("GET", "/containers"),
    ("GET", "/containers/a"),
    ("PATCH", "/containers/a"),
    ("DELETE", "/containers/a"),
    ("POST", "/containers/a/start"),
    ("POST", "/containers/a/stop"),
    ("POST", "/containers/a/kill"),
    ("POST", "/containers/a/restart"),
    ("POST", "/containers/a/pause"),
    ("POST", "/containers/a/resume"),
    ("POST", "/containers/a/suspend"),
    ("POST", "/containers/a/unsuspend"),
    ("POST", "/containers/a/reinstall"),
    ("POST", "/containers/a/rebind-network"),
    ("GET", "/containers/a/logs"),
    ("POST", "/containers/a/command"),
    ("POST", "/containers/a/exec"),
    ("GET", "/containers/a/resources"),
    ("POST", "/containers/a/resources"),
    ("GET", "/containers/a/stats"),
    ("GET", "/containers/a/install-log"),
    ("POST", "/volumes"),
    ("GET", "/volumes"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000"),
    ("DELETE", "/volumes/0190c6a0-0000-4000-8000-000000000000"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000/quota"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/resize"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/snapshots"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000/snapshots"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000/snapshots/a"),
    ("DELETE", "/volumes/0190c6a0-0000-4000-8000-000000000000/snapshots/a"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/snapshots/a/restore"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000/files"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/files"),
    ("DELETE", "/volumes/0190c6a0-0000-4000-8000-000000000000/files"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000/files/contents?path=a"),
    ("PUT", "/volumes/0190c6a0-0000-4000-8000-000000000000/files/contents?path=a"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/folders"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/copy"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/rename"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/chmod"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/compress"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/decompress"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000/archive?path=a"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/upload"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/tus"),
    ("PATCH", "/volumes/0190c6a0-0000-4000-8000-000000000000/tus/a"),
    ("DELETE", "/volumes/0190c6a0-0000-4000-8000-000000000000/tus/a"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000/search?q=a"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000/checksum?path=a"),
    ("POST", "/volumes/0190c6a0-0000-4000-8000-000000000000/pull"),
    ("GET", "/volumes/0190c6a0-0000-4000-8000-000000000000/download"),
    ("GET", "/operations"),
    ("GET", "/operations/0190c6a0-0000-7000-8000-000000000000"),
    ("DELETE", "/operations/0190c6a0-0000-7000-8000-000000000000"),
    ("GET", "/remote/config"),
    ("POST", "/remote/config/reload"),
    ("GET", "/remote/status"),
    ("GET", "/remote/outbox"),
    ("DELETE", "/remote/outbox"),
    ("POST", "/remote/outbox/retry"),
    ("GET", "/remote/outbox/1"),
    ("DELETE", "/remote/outbox/1"),
    ("POST", "/remote/outbox/1/retry"),
    ("GET", "/billing/rates"),
    ("POST", "/billing/estimate"),
    ("POST", "/billing/estimate/volume"),
    ("GET", "/billing/containers"),
    ("GET", "/billing/usage/a/hourly"),
    ("GET", "/sync/snapshot"),
];

fn request(method: &str, uri: &str, headers: &[(header::HeaderName, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn every_protected_address_asks_for_a_token_then_for_the_vendor() {
    let node = Node::new().await;
    let bearer = format!("Bearer {TOKEN}");
    let wrong = "Bearer lightd_wrong-wrong-wrong";
    for (method, uri) in PROTECTED {
        for headers in [vec![], vec![(header::AUTHORIZATION, wrong)]] {
            let (status, body) = answer(node.send(request(method, uri, &headers)).await).await;
            assert_eq!((status.as_u16(), &body["code"]), (401, &json!("unauthorized")), "{uri}");
        }
        let headers = [(header::AUTHORIZATION, bearer.as_str()), (header::ACCEPT, "*/*")];
        let (status, body) = answer(node.send(request(method, uri, &headers)).await).await;
        assert_eq!((status.as_u16(), &body["code"]), (403, &json!("vendor")), "{uri}");
        let headers = [(header::AUTHORIZATION, bearer.as_str()), (header::ACCEPT, VENDOR)];
        let (status, body) = answer(node.send(request(method, uri, &headers)).await).await;
        assert!(![401, 403, 405, 500].contains(&status.as_u16()), "{method} {uri} {body}");
    }
}

#[tokio::test]
async fn unknown_addresses_and_methods_need_no_token() {
    let node = Node::new().await;
    for (method, uri, status, code) in [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/containers/a/nothing", 404, "not_found"),
        ("PUT", "/containers", 405, "method_not_allowed"),
    ] {
        let response = node.send(request(method, uri, &[])).await;
        let has_allow = response.headers().contains_key(header::ALLOW);
        let (got, body) = answer(response).await;
        assert_eq!((got.as_u16(), body["code"].as_str()), (status, Some(code)), "{uri}");
        assert_eq!(has_allow, status == 405);
    }
}

#[tokio::test]
async fn public_addresses_answer_while_the_engine_is_away() {
    let node = Node::new().await;
    let (status, ping) = answer(node.send(request("GET", "/api/v1/public/ping", &[])).await).await;
    assert_eq!((status.as_u16(), &ping["status"]), (200, &json!("ok")));
    assert_eq!(ping["version"], env!("CARGO_PKG_VERSION"));
    let (status, health) = answer(node.send(request("GET", "/health", &[])).await).await;
    assert_eq!((status.as_u16(), &health["engine"]), (200, &json!("unreachable")));
    assert!(health["uptime"].is_u64() && health["timestamp"].is_i64(), "{health}");
    assert_eq!(node.send(request("GET", "/livez", &[])).await.status(), 200);
    let response = node.send(request("GET", "/readyz", &[])).await;
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    let (status, ready) = answer(response).await;
    assert_eq!((status.as_u16(), &ready["code"]), (503, &json!("engine_unavailable")));
}

#[tokio::test]
async fn every_answer_has_the_callers_request_id_or_one_of_its_own() {
    let node = Node::new().await;
    let id = crate::api::layers::REQUEST_ID;
    let given = node.send(request("GET", "/nothing", &[(id.clone(), "panel-7")])).await;
    assert_eq!(given.headers()[&id], "panel-7");
    assert_eq!(given.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    let made = node.send(request("GET", "/livez", &[(id.clone(), "a b")])).await;
    assert_eq!(made.headers()[&id].len(), 16);
}

#[tokio::test]
async fn origins_are_free_without_a_list_and_held_to_it_with_one() {
    let node = Node::new().await;
    let from =
        |origin: &'static str| node.send(request("GET", "/livez", &[(header::ORIGIN, origin)]));
    let open = from("https://panel.example").await;
    assert_eq!(open.status(), 200);
    assert!(!open.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    node.access_settings.send_modify(|settings| {
        settings.allowed_origins = vec!["https://panel.example".to_owned()];
    });
    let listed = from("https://panel.example").await;
    let allowed = &listed.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN];
    assert_eq!(allowed, "https://panel.example");
    let (status, refused) = answer(from("https://evil.example").await).await;
    assert_eq!((status.as_u16(), &refused["code"]), (403, &json!("origin")));
    let preflight = [
        (header::ORIGIN, "https://panel.example"),
        (header::ACCESS_CONTROL_REQUEST_METHOD, "POST"),
    ];
    let response = node.send(request("OPTIONS", "/containers", &preflight)).await;
    assert_eq!(response.status(), 204);
}

#[tokio::test]
async fn a_container_is_made_shown_and_listed_without_its_secrets() {
    let node = Node::new().await;
    let add = json!({"ip": "127.0.0.1", "port": 46001});
    assert_eq!(node.ask("POST", "/network/ports", add).await.0, 201);
    let body = json!({
        "internal_id": "server-001", "image": "debian:12", "volume_id": node.volume,
        "startup_command": "run {{SERVER_PORT}} {{WORLD}}", "start_pattern": "Ready",
        "ports": [{"ip": "127.0.0.1", "port": 46001, "protocol": "TCP"}],
        "limits": {"memory": 536870912u64, "cpu": 0.5}, "env": {"WORLD": "x"},
        "stop": {"command": "stop", "timeout": 5}, "labels": {"tier": "gold"},
        "registry_auth": {"username": "u", "password": "hunter2"},
    });
    let (status, created) = node.ask("POST", "/containers", body.clone()).await;
    assert_eq!(status, 201, "{created}");
    assert_eq!(created["internal_id"], "server-001");
    assert_eq!(created["state"], "installing");

    let (_, shown) = node.ask("GET", "/containers/server-001", Value::Null).await;
    assert_eq!(shown["install_state"], "installing");
    assert_eq!(shown["ports"][0]["container_port"], 46001);
    assert_eq!(shown["limits"]["cpu"], 0.5);
    assert_eq!(shown["stop"], json!({"command": "stop", "timeout": 5}));
    for key in ["container_id", "install_error", "exit_code", "started_at", "unknown_since"] {
        assert!(shown.as_object().unwrap().contains_key(key), "{key}");
    }
    assert!(!shown.to_string().contains("hunter2"), "{shown}");

    let (status, again) = node.ask("POST", "/containers", body).await;
    assert_eq!((status.as_u16(), &again["code"]), (409, &json!("container_exists")));
    node.container("server-002").await;
    let ids = async |query: &str| {
        let (_, list) = node.ask("GET", &format!("/containers{query}"), Value::Null).await;
        let ids = list["containers"].as_array().unwrap().iter();
        let ids: Vec<String> =
            ids.map(|one| one["internal_id"].as_str().unwrap().to_owned()).collect();
        (ids.join(" "), list["next_cursor"].clone())
    };
    assert_eq!(ids("").await, ("server-001 server-002".to_owned(), Value::Null));
    assert_eq!(ids("?limit=1").await, ("server-001".to_owned(), json!("server-001")));
    assert_eq!(ids("?cursor=server-001").await.0, "server-002");
    assert_eq!(ids("?label=tier=gold").await.0, "server-001");
    assert_eq!(ids("?label=tier=lead").await.0, "");
    assert_eq!(ids("?state=running").await.0, "");
    let (status, bad) = node.ask("GET", "/containers?state=happy", Value::Null).await;
    assert_eq!((status.as_u16(), &bad["problems"][0]["field"]), (400, &json!("?state")));
}

#[tokio::test]
async fn a_bad_creation_is_told_all_that_is_wrong_before_anything_is_stored() {
    let node = Node::new().await;
    let fields = async |body: Value| {
        let (status, answer) = node.ask("POST", "/containers", body).await;
        let problems = answer["problems"].as_array().cloned().unwrap_or_default();
        let fields: Vec<String> =
            problems.iter().map(|one| one["field"].as_str().unwrap().to_owned()).collect();
        (status.as_u16(), fields.join(" "))
    };
    let base = |change: &dyn Fn(&mut Value)| {
        let mut body = json!({
            "internal_id": "a", "image": "debian:12", "volume_id": node.volume,
            "startup_command": "true",
        });
        change(&mut body);
        body
    };
    let missing = fields(json!({})).await;
    assert_eq!(missing, (400, "internal_id volume_id image startup_command".to_owned()));
    let several = base(&|body| {
        body["start_pattern"] = json!("(");
        body["startup_command"] = json!("{{NOBODY}}");
        body["limits"] = json!({"memory": 1});
        body["mount"] = json!({"/data": "/etc"});
    });
    let (status, found) = fields(several).await;
    assert_eq!(status, 400);
    for field in ["start_pattern", "startup_command", "limits.memory", "mount./data"] {
        assert!(found.split(' ').any(|one| one == field), "{field} in {found}");
    }
    for (change, field) in [
        (json!({"imag": "x"}), "imag"),
        (json!({"env": {"A": 5}}), "env.A"),
        (json!({"ports": [{"port": "80"}]}), "ports[0].port"),
        (json!({"limits": {"memry": 1}}), "limits.memry"),
        (json!({"volume_id": uuid::Uuid::new_v4()}), "volume_id"),
        (json!({"ports": [{"ip": "127.0.0.1", "port": 46009}]}), "ports"),
    ] {
        let body = base(&|body| {
            body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        });
        assert_eq!(fields(body).await, (400, field.to_owned()));
    }
    assert_eq!(node.ask("GET", "/containers/a", Value::Null).await.0, 404);
}

#[tokio::test]
async fn the_pool_is_filled_looked_at_and_emptied() {
    let node = Node::new().await;
    let port = json!({"ip": "127.0.0.1", "port": 46011, "protocol": "udp"});
    let (status, added) = node.ask("POST", "/network/ports", port.clone()).await;
    assert_eq!(status, 201);
    assert_eq!((&added["port"], &added["protocol"]), (&json!(46011), &json!("udp")));
    let (status, again) = node.ask("POST", "/network/ports", port).await;
    assert_eq!((status.as_u16(), &again["error"]), (409, &json!("Port already exists in pool")));
    let range = json!({"ip": "127.0.0.1", "from": 46011, "to": 46014});
    assert_eq!(node.ask("POST", "/network/ports", range).await.0, 201);
    let (_, list) = node.ask("GET", "/network/ports?protocol=tcp", Value::Null).await;
    assert_eq!(list["ports"].as_array().unwrap().len(), 4);
    assert_eq!(list["ports"][0]["in_use"], false);

    let uri = "/network/ports/127.0.0.1/46011";
    let (status, marked) =
        node.ask("PUT", &format!("{uri}/use?protocol=udp"), json!({"in_use": true})).await;
    assert_eq!((status.as_u16(), &marked["in_use"]), (200, &json!(true)));
    let (_, shown) = node.ask("GET", uri, Value::Null).await;
    assert_eq!(shown["in_use"], false, "the tcp port of that number is another one");
    assert_eq!(node.ask("DELETE", &format!("{uri}?protocol=udp"), Value::Null).await.0, 409);
    let (status, lease) =
        node.ask("POST", "/network/ports/allocate", json!({"count": 2, "contiguous": true})).await;
    assert_eq!(status, 201, "{lease}");
    assert_eq!(lease["ports"].as_array().unwrap().len(), 2);
    let (status, _) = node.ask("GET", "/network/ports/random?protocol=udp", Value::Null).await;
    assert_eq!(status, 404);
    let all =
        json!({"ports": [{"ip": "127.0.0.1", "port": 46011}, {"ip": "127.0.0.1", "port": 1}]});
    let (_, deleted) = node.ask("POST", "/network/ports/bulk-delete", all).await;
    let kept = deleted["kept"].as_array().unwrap().len();
    assert_eq!(deleted["deleted_count"].as_u64().unwrap() + u64::try_from(kept).unwrap(), 2);
}

#[tokio::test]
async fn issued_tokens_reach_what_they_name_and_end_when_revoked() {
    let node = Node::new().await;
    node.container("mine").await;
    node.container("other").await;
    let scope = json!({"ttl": "1h30m", "containers": ["mine"], "permissions": ["containers.read"]});
    let (status, issued) = node.ask("POST", "/auth/tokens", scope).await;
    assert_eq!(status, 201);
    assert!(issued["expires_at"].as_str().unwrap().ends_with('Z'), "{issued}");
    let token = issued["token"].as_str().unwrap().to_owned();
    let as_token = async |method: &str, uri: &str| {
        let (status, body) = node.ask_as(&token, method, uri, Value::Null).await;
        (status.as_u16(), body)
    };
    assert_eq!(as_token("GET", "/containers/mine").await.0, 200);
    for (method, uri) in [
        ("GET", "/containers/other"),
        ("GET", "/containers/nobodys"),
        ("POST", "/containers/mine/start"),
        ("GET", "/network/ports"),
        ("GET", "/remote/config"),
        ("POST", "/auth/tokens"),
    ] {
        let (status, body) = as_token(method, uri).await;
        assert_eq!((status, &body["code"]), (403, &json!("scope")), "{uri}");
    }
    let (_, list) = as_token("GET", "/containers").await;
    assert_eq!(list["containers"].as_array().unwrap().len(), 1);
    let (_, tokens) = node.ask("GET", "/auth/tokens", Value::Null).await;
    assert!(!tokens.to_string().contains(&token));
    let id = tokens["tokens"][0]["id"].as_str().unwrap();
    let revoked = node.ask("DELETE", &format!("/auth/tokens/{id}"), Value::Null).await;
    assert_eq!(revoked.0, 200);
    assert_eq!(as_token("GET", "/containers/mine").await.0, 401);
    for (body, field) in [
        (json!({"ttl": "90"}), "ttl"),
        (json!({"ttl": "0s"}), "ttl"),
        (json!({"permissions": ["everything"]}), "permissions[0]"),
        (json!({"containers": ["-x"]}), "containers[0]"),
    ] {
        let (status, answer) = node.ask("POST", "/auth/tokens", body).await;
        assert_eq!(
            (status.as_u16(), &answer["problems"][0]["field"]),
            (400, &json!(field)),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn what_needs_the_engine_says_that_it_is_away() {
    let node = Node::new().await;
    node.container("a").await;
    let (status, command) =
        node.ask("POST", "/containers/a/command", json!({"command": "x"})).await;
    // It is not known yet that the engine is away, or it is.
    let is_refused = |status: u16, code: &Value| {
        status == 409 && code == "not_running" || status == 503 && code == "engine_unavailable"
    };
    assert!(is_refused(status.as_u16(), &command["code"]), "{command}");
    let (status, start) = node.ask("POST", "/containers/a/start", Value::Null).await;
    assert!([409, 503].contains(&status.as_u16()), "{start}");
    let (status, stats) = node.ask("GET", "/containers/a/stats", Value::Null).await;
    assert_eq!((status.as_u16(), &stats["cpu_usage"]), (200, &json!(0.0)));
    let (status, logs) = node.ask("GET", "/containers/a/logs?lines=5&grep=x", Value::Null).await;
    assert_eq!((status.as_u16(), &logs["data"]), (200, &json!("")));
    let (status, bad) = node.ask("GET", "/containers/a/logs?grep=(", Value::Null).await;
    assert_eq!((status.as_u16(), &bad["problems"][0]["field"]), (400, &json!("?grep")));
    let (status, log) = node.ask("GET", "/containers/a/install-log", Value::Null).await;
    assert_eq!((status, &log["data"]), (StatusCode::OK, &json!("")));
}

#[tokio::test]
async fn limits_and_settings_are_changed_by_name() {
    let node = Node::new().await;
    node.container("a").await;
    let patch = json!({"env": {"A": "1"}, "limits": {"pids": 99}, "labels": {"k": "v"}});
    let (status, patched) = node.ask("PATCH", "/containers/a", patch).await;
    assert_eq!(status, 200, "{patched}");
    let (_, shown) = node.ask("GET", "/containers/a", Value::Null).await;
    assert_eq!(
        (&shown["env"]["A"], &shown["limits"]["pids"], &shown["labels"]["k"]),
        (&json!("1"), &json!(99), &json!("v"))
    );
    let (status, bad) = node.ask("PATCH", "/containers/a", json!({"limits": {"cpu": 99}})).await;
    assert_eq!((status.as_u16(), &bad["problems"][0]["field"]), (400, &json!("limits.cpu")));
    let (status, bad) = node.ask("POST", "/containers/a/resources", json!({"memory": 1})).await;
    assert_eq!((status.as_u16(), &bad["problems"][0]["field"]), (400, &json!("memory")));
}

/// CVE-2024-34066: who held the node's token could rewrite paths in the daemon's configuration.
#[tokio::test]
async fn cve_2024_34066_nothing_over_the_network_sets_a_path_a_socket_or_a_mount() {
    let node = Node::new().await;
    node.container("a").await;
    let (_, before) = node.ask("GET", "/remote/config", Value::Null).await;
    let wish = json!({
        "storage": {"base_path": "/etc", "volumes_path": "/"},
        "docker": {"socket_path": "/tmp/x", "allowed_mounts": ["/"]},
    });
    for method in ["PUT", "POST", "PATCH", "DELETE"] {
        let (status, told) = node.ask(method, "/remote/config", wish.clone()).await;
        assert_eq!((status.as_u16(), &told["code"]), (405, &json!("method_not_allowed")));
    }
    // Reads the file again, whatever is sent along.
    node.ask("POST", "/remote/config/reload", wish.clone()).await;
    let (_, after) = node.ask("GET", "/remote/config", Value::Null).await;
    assert_eq!(after, before);
    let places = [
        json!({"path": "/etc"}),
        json!({"mount": {"/data": "/etc"}}),
        json!({"binds": ["/etc:/data"]}),
        json!({"devices": ["/dev/sda"]}),
        json!({"privileged": true}),
        json!({"docker": {"socket_path": "/tmp/x"}}),
        wish,
    ];
    for place in places {
        for (method, uri) in
            [("PATCH", "/containers/a"), ("POST", "/containers"), ("POST", "/volumes")]
        {
            let (status, told) = node.ask(method, uri, place.clone()).await;
            assert_eq!(status, 400, "{method} {uri} {place}: {told}");
        }
    }
    let (_, made) = node.ask("POST", "/volumes", json!({"name": "/etc"})).await;
    let path = made["path"].as_str().expect("a path");
    assert!(!path.starts_with("/etc"), "{path}");
}

#[tokio::test]
async fn the_configuration_is_shown_masked_and_reloaded() {
    let node = Node::new().await;
    let (status, config) = node.ask("GET", "/remote/config", Value::Null).await;
    assert_eq!((status.as_u16(), &config["authorization"]["token"]), (200, &json!("***")));
    let (status, reloaded) = node.ask("POST", "/remote/config/reload", Value::Null).await;
    assert_eq!((status.as_u16(), &reloaded["needs_restart"]), (200, &json!([])));
    let (status, link) = node.ask("GET", "/remote/status", Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!((&link["state"], &link["outbox"]["waiting"]), (&json!("disabled"), &json!(0)));
}

/// GHSA-ghrq-5wpp-hxx5: a panic over one connection took the daemon down.
#[tokio::test]
async fn a_panic_is_an_answer_that_tells_nothing() {
    let node = Node::new().await;
    let routes = axum::Router::new()
        .route("/boom", axum::routing::get(async || -> &'static str { panic!("secret detail") }));
    let routes = crate::api::with_layers(routes, &node.state).with_state(node.state.clone());
    let peer = axum::extract::ConnectInfo(std::net::SocketAddr::from(([127, 0, 0, 1], 9)));
    let request = Request::builder().uri("/boom").extension(peer).body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(routes, request).await.unwrap();
    assert!(response.headers().contains_key(crate::api::layers::REQUEST_ID));
    let (status, body) = answer(response).await;
    assert_eq!((status.as_u16(), &body["code"]), (500, &json!("internal")));
    assert!(!body.to_string().contains("secret"), "{body}");
}
