//! The document against the routes, the sources, and what is really written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde::Serialize;
use serde_json::Value;
use utoipa::PartialSchema;

use super::finish::{calls, wants};
use crate::api::tests::node::{Node, answer};
use crate::domain::ids::VolumeId;
use crate::domain::operation::{OperationId, OperationKind, OperationState, OperationView};
use crate::domain::restart::RestartRule;
use crate::domain::spec::{HostPort, Limits, Protocol};
use crate::domain::stats::Sample;
use crate::domain::stats::history::Point;
use crate::domain::units::UnixSeconds;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api")
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => rust_files(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

#[test]
fn the_document_in_docs_is_the_one_that_the_code_makes() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let kept = std::fs::read_to_string(file).unwrap_or_default();
    let is_same = kept == super::text();
    assert!(is_same, "it is another; refresh it: cargo run -- openapi > docs/openapi.json");
}

#[test]
fn every_call_has_a_name_of_its_own_an_area_and_words() {
    let mut document = super::describe();
    let areas: BTreeSet<String> = document["tags"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|tag| tag["name"].as_str().unwrap().to_owned())
        .collect();
    let mut names = BTreeSet::new();
    for (path, method, call) in calls(&mut document) {
        let text = |name: &str| call[name].as_str().unwrap_or_default();
        assert!(names.insert(text("operationId").to_owned()), "{method} {path} has another's name");
        assert!(!text("summary").is_empty(), "{method} {path} has no summary");
        let area = call["tags"][0].as_str().unwrap_or_default();
        assert!(areas.contains(area), "{method} {path}: {area}");
        for (status, response) in call["responses"].as_object().unwrap() {
            let said = response.get("$ref").or_else(|| response.get("description"));
            let said = said.and_then(Value::as_str).unwrap_or_default();
            assert!(!said.is_empty(), "{method} {path}: {status}");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = super::describe();
    let text = document.to_string();
    for reference in text.split("\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        let found = document.pointer(reference);
        assert!(found.is_some(), "{reference}: name it in openapi/mod.rs, at OfParameters");
    }
}

/// Two bodies of one name would be one in the document.
#[test]
fn every_schema_has_a_name_of_its_own() {
    let derived = r"(?s)#\[derive\([^)]*ToSchema[^)]*\)\]\s*(.*?)(?:struct|enum) (\w+)";
    let derived = regex::Regex::new(derived).unwrap();
    let given = regex::Regex::new(r"\bas = (\w+)").unwrap();
    let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
    for file in rust_files(&source()) {
        let text = std::fs::read_to_string(&file).unwrap();
        for found in derived.captures_iter(&text) {
            let name =
                given.captures(&found[1]).map_or(&found[2], |given| given.get(1).unwrap().as_str());
            let other = names.insert(name.to_owned(), file.clone());
            assert_eq!(other, None, "{name} also in {}", file.display());
        }
    }
    assert!(names.len() > 80, "{names:?}");
}

/// Only what is routed with its description is routed at all.
#[test]
fn no_route_but_the_pages_goes_without_a_description() {
    for file in rust_files(&source()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let is_other =
            file.ends_with("openapi/docs.rs") || file.starts_with(source().join("tests"));
        assert!(is_other || !code.contains(".route(\""), "{}", file.display());
    }
}

/// An address of the document, with something in each of its places.
fn address(path: &str) -> String {
    let id = "0190c6a0-5f1e-4c8e-9d57-8a3f0c2b7e11";
    let places =
        [("{id}", id), ("{ip}", "127.0.0.1"), ("{port}", "1"), ("{name}", "a"), ("{n}", "1")];
    let path = places.iter().fold(path.to_owned(), |path, (place, text)| path.replace(place, text));
    // Whatever else there is takes a name, or a number.
    let place = regex::Regex::new(r"\{\w+\}").unwrap();
    place.replace_all(&path, "1").into_owned()
}

#[tokio::test]
async fn what_the_document_says_is_routed_and_nothing_else_at_those_addresses() {
    let node = Node::new().await;
    let mut document = super::describe();
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut protected = BTreeSet::new();
    for (path, method, call) in calls(&mut document) {
        known.entry(path.to_owned()).or_default().insert(method.to_uppercase());
        if wants(call, "token") {
            protected.insert((path.to_owned(), method.to_uppercase()));
        }
    }
    for (path, methods) in &known {
        for method in ["GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"] {
            let request = Request::builder().method(method).uri(address(path));
            let response = node.send(request.body(Body::empty()).unwrap()).await;
            let status = response.status();
            if method == "HEAD" && methods.contains("GET") {
                // axum answers it as it answers GET.
                continue;
            }
            if !methods.contains(method) {
                assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            } else if protected.contains(&(path.clone(), method.to_owned())) {
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
            } else {
                assert!(![401, 404, 405].contains(&status.as_u16()), "{method} {path}: {status}");
            }
        }
    }
    let request = Request::builder().method(Method::GET).uri("/nowhere");
    assert_eq!(answer(node.send(request.body(Body::empty()).unwrap()).await).await.0, 404);
}

#[tokio::test]
async fn the_pages_are_there_without_a_token_and_load_nothing_from_elsewhere() {
    let node = Node::new().await;
    let get = async |uri: &str| {
        let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
        node.send(request).await
    };
    let moved = get("/docs").await;
    assert_eq!(
        (moved.status(), &moved.headers()["location"]),
        (StatusCode::PERMANENT_REDIRECT, &"/docs/".parse().unwrap())
    );
    for name in
        ["", "index.html", "swagger-ui.css", "swagger-ui-bundle.js", "swagger-initializer.js"]
    {
        let page = get(&format!("/docs/{name}")).await;
        assert_eq!(page.status(), StatusCode::OK, "{name}");
        let policy = page.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("http"), "{policy}");
    }
    assert_eq!(answer(get("/docs/nothing.js").await).await.0, StatusCode::NOT_FOUND);
    let (status, document) = answer(get("/openapi.json").await).await;
    assert_eq!((status, &document["openapi"]), (StatusCode::OK, &"3.1.0".into()));
}

/// The fields that a type writes are those that its double has.
fn writes_what_it_says<T: PartialSchema + Serialize>(value: &T) {
    let said = serde_json::to_value(T::schema()).unwrap();
    let fields = |schema: &Value| -> BTreeSet<String> {
        let object = schema["properties"].as_object();
        object.into_iter().flat_map(|object| object.keys().cloned()).collect()
    };
    let mut described = fields(&said);
    for part in said["allOf"].as_array().into_iter().flatten() {
        described.extend(fields(part));
        if part.get("$ref").is_some() {
            described.extend(fields(&serde_json::to_value(Sample::schema()).unwrap()));
        }
    }
    let written = serde_json::to_value(value).unwrap();
    let written: BTreeSet<String> = written.as_object().unwrap().keys().cloned().collect();
    assert_eq!(described, written, "{said:#}");
}

#[test]
fn doubles_have_the_fields_of_their_originals() {
    let at = UnixSeconds(0);
    writes_what_it_says(&Limits::default());
    writes_what_it_says(&Sample::default());
    writes_what_it_says(&Point { at, sample: Sample::default() });
    let ip = std::net::Ipv4Addr::LOCALHOST.into();
    writes_what_it_says(&HostPort { ip, port: 1, protocol: Protocol::Tcp });
    writes_what_it_says(&OperationView {
        id: OperationId::next(),
        kind: OperationKind::Copy,
        volume: VolumeId::random(),
        state: OperationState::Done,
        done_bytes: 0,
        total_bytes: 0,
        entries: 0,
        error: None,
        code: None,
        result: None,
        started_at: at,
        finished_at: None,
    });
    let rule = super::mirrors::restart_rule();
    let said = rule["properties"].as_object().unwrap().keys();
    let written = serde_json::to_value(RestartRule::default()).unwrap();
    assert!(said.eq(written.as_object().unwrap().keys()));
}
