//! What is said of every call at once, from what is there already: the layers around it, its token, its
//! address, its body.
//!
//! Works on the document as JSON, where utoipa's types would have to be taken apart and put together.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::refusals::{self, CODES, Codes};
use crate::api::idempotency::KEYED;
use crate::api::permissions;

/// How long calls may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Deadline {
    /// The common one, with the layers of those that answer within it.
    Common,
    /// One of their own.
    Own,
}

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// The calls of a document: their address, method and description.
pub(super) fn calls(document: &mut Value) -> impl Iterator<Item = (&str, &str, &mut Value)> {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    paths.into_iter().flatten().flat_map(|(path, item)| {
        let calls = item.as_object_mut().into_iter().flatten();
        let calls = calls.filter(|(method, _)| METHODS.contains(&method.as_str()));
        calls.map(move |(method, call)| (path.as_str(), method.as_str(), call))
    })
}

/// Responses that calls share, by name.
type Shared = Map<String, Value>;

/// Makers of typed clients take a field with a default for one that has to be there, so none is said.
fn drop_defaults(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    object.remove("default");
    for (name, inner) in object.iter_mut() {
        match (name.as_str(), inner) {
            ("properties", Value::Object(fields)) => fields.values_mut().for_each(drop_defaults),
            ("allOf" | "oneOf" | "anyOf", Value::Array(parts)) => {
                parts.iter_mut().for_each(drop_defaults);
            }
            ("items" | "additionalProperties", inner) => drop_defaults(inner),
            _ => {}
        }
    }
}

pub(super) fn finish(part: &mut Value, deadline: Deadline) {
    let mut shared = Shared::new();
    for (path, method, call) in calls(part) {
        let creates = method == "post" && KEYED.contains(&path);
        name(call);
        if creates {
            take_key(call);
        }
        read_parameters(call);
        read_body(call);
        name_permissions(call, method, path);
        let mut codes = codes_of(call, deadline, creates);
        if !["get", "head"].contains(&method) {
            // Parameters that it does not have.
            codes.entry(400).or_default().insert("invalid".to_owned());
        }
        if ["post", "put", "patch", "delete"].contains(&method) && !creates {
            codes.entry(400).or_default().insert("idempotency_unsupported".to_owned());
        }
        shared.extend(tell_refusals(call, method, codes));
    }
    part["components"]["responses"] = shared.into();
    let schemas = part["components"]["schemas"].as_object_mut();
    schemas.into_iter().flat_map(Map::values_mut).for_each(drop_defaults);
}

/// Handlers are named in their file, calls in the document: `volumes_create`.
fn name(call: &mut Value) {
    let area = call["tags"][0].as_str().unwrap_or_default();
    let name = format!("{area}_{}", call["operationId"].as_str().unwrap_or_default());
    call["operationId"] = name.into();
}

/// What a token must allow for the call: one of these.
fn name_permissions(call: &mut Value, method: &str, path: &str) {
    let wanted = permissions::of_route(&method.to_ascii_uppercase(), path).unwrap_or_default();
    let names: Vec<&str> = wanted.iter().filter_map(|permission| permission.name()).collect();
    if !names.is_empty() {
        call["x-permissions"] = names.into();
    }
}

/// A parameter can be left out, but has no `null`.
fn read_parameters(call: &mut Value) {
    let parameters = call.get_mut("parameters").and_then(Value::as_array_mut);
    for schema in parameters.into_iter().flatten().filter_map(|one| one.get_mut("schema")) {
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|name| name != "null");
            if let [only] = types.as_slice() {
                schema["type"] = only.clone();
            }
        }
        if let Some(Value::Array(choices)) = schema.get_mut("oneOf") {
            choices.retain(|choice| choice["type"] != "null");
            if let [only] = choices.as_slice() {
                *schema = only.clone();
            }
        }
    }
}

/// A body can be left out, but is no `null`.
fn read_body(call: &mut Value) {
    let Some(body) = call.pointer_mut("/requestBody/content/application~1json/schema") else {
        return;
    };
    let Some(Value::Array(choices)) = body.get_mut("oneOf") else { return };
    choices.retain(|choice| choice["type"] != "null");
    if let [only] = choices.as_slice() {
        *body = only.clone();
    }
}

fn take_key(call: &mut Value) {
    let key = json!({
        "name": "Idempotency-Key", "in": "header", "required": false,
        "description": "Of the caller's choice. The same request with the same key is done once: for a day it is answered \
                        as it was the first time, or, where that left the end open, with what has come of it since, and \
                        with `Idempotent-Replayed: true`.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    });
    match call.get_mut("parameters").and_then(Value::as_array_mut) {
        Some(parameters) => parameters.push(key),
        None => call["parameters"] = json!([key]),
    }
    let replayed = json!({
        "description": "`true` where the answer is that of an earlier request with the same key",
        "schema": {"type": "string"},
    });
    for (status, response) in call["responses"].as_object_mut().into_iter().flatten() {
        if status.starts_with('2') {
            response["headers"]["Idempotent-Replayed"] = replayed.clone();
        }
    }
}

fn codes_of(call: &Value, deadline: Deadline, creates: bool) -> BTreeMap<u16, BTreeSet<String>> {
    let mut codes: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    let mut add = |group: Codes| {
        for (status, more) in group {
            codes.entry(*status).or_default().extend(more.iter().map(|&code| code.to_owned()));
        }
    };
    add(&[(403, &["origin", "address"]), (500, &["internal"])]);
    if wants(call, "token") {
        add(refusals::TOKEN);
        add(refusals::STORE);
    }
    if wants(call, "vendor") {
        add(&[(403, &["vendor"])]);
    }
    if has_parameter(call, "path") {
        add(&[(400, &["invalid_parameter"])]);
    }
    if has_parameter(call, "query") {
        add(&[(400, &["invalid_parameter", "invalid"])]);
    }
    if call.pointer("/requestBody/content/application~1json").is_some() {
        add(refusals::JSON_BODY);
    }
    if deadline == Deadline::Common {
        add(&[(503, &["timeout"])]);
    }
    if creates {
        add(refusals::IDEMPOTENCY);
    }
    for (status, response) in call["responses"].as_object().into_iter().flatten() {
        let own = response.get(CODES).and_then(Value::as_array).into_iter().flatten();
        let own = own.filter_map(|code| code.as_str().map(str::to_owned));
        if let Ok(status) = status.parse() {
            let mut own = own.peekable();
            if own.peek().is_some() {
                codes.entry(status).or_default().extend(own);
            }
        }
    }
    codes
}

/// Whether a call wants this to be shown; what says nothing of it wants what the document says for all.
pub(super) fn wants(call: &Value, scheme: &str) -> bool {
    match call.get("security").and_then(Value::as_array) {
        None => true,
        Some(ways) => ways.iter().any(|way| way.get(scheme).is_some()),
    }
}

fn has_parameter(call: &Value, place: &str) -> bool {
    let parameters = call["parameters"].as_array();
    parameters.into_iter().flatten().any(|parameter| parameter["in"] == place)
}

/// Calls share what they have in common: a response is named after its status and codes.
fn tell_refusals(call: &mut Value, method: &str, codes: BTreeMap<u16, BTreeSet<String>>) -> Shared {
    let mut shared = Shared::new();
    for (status, codes) in codes {
        let names: Vec<&str> = codes.iter().map(String::as_str).collect();
        // The answer to HEAD is all head.
        let kind = if method == "head" { "head." } else { "" };
        let name = format!("{kind}{status}.{}", names.join("."));
        call["responses"][status.to_string()] =
            json!({"$ref": format!("#/components/responses/{name}")});
        shared.insert(name, refusal(status, &names, method != "head"));
    }
    shared
}

fn refusal(status: u16, codes: &[&str], has_body: bool) -> Value {
    let description = format!("{}: `{}`", meaning(status), codes.join("`, `"));
    let mut response = json!({"description": description});
    if has_body {
        let code = json!({"type": "object", "properties": {"code": {"enum": codes}}});
        let schema = json!({"allOf": [{"$ref": "#/components/schemas/Error"}, code]});
        let example = json!({"error": meaning(status), "code": codes[0]});
        response["content"] = json!({"application/json": {"schema": schema, "example": example}});
    }
    let header = |description: &str, kind: &str| json!({"description": description, "schema": {"type": kind}});
    match status {
        401 => response["headers"] = json!({"WWW-Authenticate": header("`Bearer`", "string")}),
        429 | 503 => {
            response["headers"] = json!({"Retry-After": header("Seconds to wait", "integer")});
        }
        _ => {}
    }
    response
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "Malformed or invalid",
        401 => "No token, or one that is not good",
        403 => "Not with this token, without the `Accept` header, or from another origin",
        404 => "There is none",
        409 => "Not in the present state",
        412 => "A condition does not hold",
        413 => "Too large",
        415 => "Another media type is needed",
        416 => "Behind the end",
        422 => "The key was sent with another request",
        423 => "Another request is at work on it",
        429 => "Too many; come back after `Retry-After`",
        460 => "The checksum is another",
        500 => "lightd failed",
        502 => "The other side failed",
        503 => "Not now; come back after `Retry-After`",
        507 => "No room",
        _ => "Refused",
    }
}
