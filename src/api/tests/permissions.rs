//! The table of permissions, held against the routes there are and what they do.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};

use super::node::{Node, TOKEN, VENDOR, answer};
use crate::api::permissions::ROUTES;
use crate::domain::access::Permission;

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// The address with something in each of its variable parts: what is there, where that matters.
fn address(node: &Node, path: &str) -> String {
    let unknown = "0190c6a0-0000-7000-8000-000000000000";
    let id = if path.starts_with("/containers") || path.starts_with("/ws") {
        "a".to_owned()
    } else if path.starts_with("/volumes") {
        node.volume.to_string()
    } else {
        unknown.to_owned()
    };
    path.replace("{id}", &id)
        .replace("{upload}", unknown)
        .replace("{name}", "s")
        .replace("{n}", "1")
        .replace("{sequence}", "1")
        .replace("{ip}", "127.0.0.1")
        .replace("{port}", "46001")
}

/// A body that the route can read, so that its handler comes to ask about the caller.
fn body(method: &str, path: &str) -> Body {
    let last = path.rsplit('/').next().unwrap_or_default();
    let body = match (method, last) {
        ("DELETE", "files") => json!({"paths": ["x"]}),
        ("POST", "files") => json!({"path": "x", "content": "x"}),
        ("POST", "folders") => json!({"path": "x"}),
        ("POST", "copy" | "rename") => json!({"source": "x", "destination": "y"}),
        ("POST", "chmod") => json!({"path": "x", "mode": "0644"}),
        ("POST", "compress") => json!({"format": "zip", "output_name": "x.zip", "paths": ["x"]}),
        ("POST", "decompress") => json!({"archive_path": "x", "destination": "y"}),
        ("POST", "pull") => json!({"url": "http://127.0.0.1:1/x", "path": "x"}),
        ("POST", "resize") => json!({"size": 1}),
        ("POST", "snapshots") => json!({"name": "s"}),
        ("POST", "command") => json!({"command": "x"}),
        ("POST", "exec") => json!({"cmd": ["x"]}),
        ("POST", "rebind-network" | "bulk-delete") => json!({"ports": []}),
        ("POST", "ports") => json!({"ip": "127.0.0.1", "port": 46001}),
        ("PUT", "use") => json!({"in_use": true}),
        ("PUT", "toggle") => json!({"enabled": true}),
        ("POST" | "PATCH", _) => json!({}),
        _ => return Body::empty(),
    };
    Body::from(body.to_string())
}

async fn send(node: &Node, token: Option<&str>, method: &str, path: &str) -> (StatusCode, Value) {
    let uri = address(node, path);
    let mut request = Request::builder().method(method).uri(uri).header(header::ACCEPT, VENDOR);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if path.ends_with("{upload}") && method == "POST" {
        request = request.header("x-http-method-override", "DELETE");
    }
    let response = node.send(request.body(body(method, path)).unwrap()).await;
    let status = response.status();
    // Of others the body may go on for ever.
    let refused = status.is_client_error() || status.is_server_error();
    if refused && method != "HEAD" { answer(response).await } else { (status, Value::Null) }
}

/// A token that has these permissions, or all but these.
async fn token(node: &Node, named: &[&str], has: bool) -> String {
    let names = Permission::NAMES.iter().filter(|name| named.contains(name) == has);
    let names: Vec<&&str> = names.collect();
    let body = json!({"ttl": "1h", "permissions": names});
    let (status, issued) = node.ask("POST", "/auth/tokens", body).await;
    assert_eq!(status, 201, "{issued}");
    issued["token"].as_str().unwrap().to_owned()
}

fn names(wanted: &[Permission]) -> Vec<&'static str> {
    let parsed = |name: &&&str| wanted.contains(&Permission::parse(name).unwrap());
    Permission::NAMES.iter().filter(parsed).copied().collect()
}

#[tokio::test]
async fn a_token_gets_to_a_route_with_any_permission_it_wants_and_with_no_other() {
    let node = Node::new().await;
    node.container("a").await;
    for &(method, path, wanted) in ROUTES {
        if wanted.is_empty() {
            let (status, said) = send(&node, None, method, path).await;
            assert!(![401, 403, 404, 405].contains(&status.as_u16()), "{method} {path}: {said}");
            continue;
        }
        let without = token(&node, &names(wanted), false).await;
        let (status, said) = send(&node, Some(&without), method, path).await;
        assert_eq!(status.as_u16(), 403, "{method} {path}: {said}");
        assert!(method == "HEAD" || said["code"] == "scope", "{method} {path}: {said}");
        for name in names(wanted) {
            let with = token(&node, &[name], true).await;
            let (status, said) = send(&node, Some(&with), method, path).await;
            let refused = [401, 403, 405, 500].contains(&status.as_u16());
            assert!(!refused, "{method} {path} with {name}: {status} {said}");
            assert_ne!(said["code"], "invalid_json", "{method} {path}: a body that cannot be read");
        }
    }
}

#[tokio::test]
async fn no_issued_token_comes_near_tokens_and_the_nodes_own_does_everything() {
    let node = Node::new().await;
    node.container("a").await;
    let wide = token(&node, &[], false).await;
    for &(method, path, wanted) in ROUTES {
        let (status, said) = send(&node, Some(TOKEN), method, path).await;
        assert!(![401, 403, 405, 500].contains(&status.as_u16()), "{method} {path}: {said}");
        if wanted == [Permission::Tokens] {
            let (status, said) = send(&node, Some(&wide), method, path).await;
            assert_eq!((status.as_u16(), &said["code"]), (403, &json!("scope")), "{method} {path}");
        }
    }
}

/// What is not described cannot be routed, so the description has every call.
#[test]
fn the_table_has_every_call_and_no_other() {
    let described = crate::api::openapi::describe();
    let of_start = &described["paths"]["/containers/{id}/start"]["post"]["x-permissions"];
    assert_eq!(*of_start, json!(["power"]), "callers are told, too");
    let described: BTreeSet<String> = described["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods
                .filter(|name| METHODS.contains(&name.to_ascii_uppercase().as_str()))
                .map(move |method| format!("{} {path}", method.to_ascii_uppercase()))
        })
        .collect();
    let listed: BTreeSet<String> =
        ROUTES.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    assert_eq!(listed.len(), ROUTES.len(), "a call stands in the table twice");
    let missing: Vec<_> = described.difference(&listed).collect();
    assert!(missing.is_empty(), "not in the table of api::permissions: {missing:?}");
    let gone: Vec<_> = listed.difference(&described).collect();
    assert!(gone.is_empty(), "in the table of api::permissions, and no call: {gone:?}");
}

/// And stands in the README's table.
#[tokio::test]
async fn every_permission_is_wanted_somewhere() {
    let readme = include_str!("../../../README.md");
    for name in Permission::NAMES {
        let permission = Permission::parse(name).unwrap();
        assert!(ROUTES.iter().any(|(_, _, wanted)| wanted.contains(&permission)), "{name}");
        assert!(readme.contains(&format!("\n| `{name}` |")), "{name} is not documented");
    }
}
