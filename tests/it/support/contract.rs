//! The document, held against every answer that a test gets.
//!
//! An answer has to be one that the document has: its status, its media type, and every field of a JSON body.
//! Schemas are closed for that, so that a field that is not described is found as well.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::{Map, Value, json};

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("../../../docs/openapi.json");
    serde_json::from_str(text).expect("docs/openapi.json is JSON")
});

/// The components with all objects closed.
static CLOSED: LazyLock<Value> = LazyLock::new(|| {
    let schemas = DOCUMENT["components"]["schemas"].as_object().expect("schemas");
    let closed = schemas.iter().map(|(name, schema)| (name.clone(), close(schema, false)));
    json!({"schemas": closed.collect::<Map<String, Value>>()})
});

/// Fails where the document does not have this answer. Addresses that it does not have are left alone: they are
/// refused, which other tests look at.
pub(crate) fn check(method: &str, path: &str, status: u16, media_type: Option<&str>, text: &str) {
    let Some(template) = template_of(path) else {
        let is_page = path.starts_with("/docs");
        let is_refused = status >= 400 || is_page || method == "OPTIONS";
        assert!(is_refused, "{method} {path} answers {status} and is not in docs/openapi.json");
        return;
    };
    let call = &DOCUMENT["paths"][&template][method.to_lowercase()];
    if call.is_null() {
        let is_taken = status < 400 && !matches!(method, "HEAD" | "OPTIONS");
        assert!(!is_taken, "{method} {template} answers {status} and is not in docs/openapi.json");
        return;
    }
    let asked = format!("{method} {template} ({path})");
    let response = resolve(&call["responses"][status.to_string()]);
    assert!(!response.is_null(), "{asked}: docs/openapi.json has no {status}: {text}");
    let Some(content) = response["content"].as_object() else {
        assert!(text.is_empty(), "{asked}: docs/openapi.json has no body for {status}: {text}");
        return;
    };
    let media_type = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let body = content.get(media_type);
    let body = body.unwrap_or_else(|| panic!("{asked}: {status} as {media_type:?}: {text}"));
    if media_type == "application/json" {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{asked}: {text}"));
        let key = format!("{method} {template} {status}");
        let wrong = problems(&key, &body["schema"], &value);
        assert!(
            wrong.is_empty(),
            "{asked}: {status} is not as docs/openapi.json says: {wrong:#?}\n{text}"
        );
    }
}

/// Looks at every example; the number of those that there are.
pub(crate) fn check_examples() -> usize {
    let mut count = 0;
    let mut check = |what: &str, body: &Value| {
        if let Some(example) = body.get("example") {
            let wrong = problems(what, &body["schema"], example);
            assert!(wrong.is_empty(), "{what}: {wrong:#?}\n{example:#}");
            count += 1;
        }
    };
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    for (path, item) in paths {
        for (method, call) in item.as_object().expect("calls") {
            check(&format!("{method} {path}"), &call["requestBody"]["content"]["application/json"]);
            for (status, response) in call["responses"].as_object().expect("responses") {
                let body = &resolve(response)["content"]["application/json"];
                check(&format!("{method} {path} {status} example"), body);
            }
        }
    }
    count
}

fn resolve(response: &'static Value) -> &'static Value {
    match response["$ref"].as_str() {
        Some(reference) => DOCUMENT.pointer(reference.trim_start_matches('#')).expect("a response"),
        None => response,
    }
}

/// The address of the document that this is one of: of several, the one with the fewest places to fill.
fn template_of(path: &str) -> Option<String> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |template: &&String| {
        let places: Vec<&str> = template.split('/').collect();
        let fits = |(place, part): (&&str, &&str)| place.starts_with('{') || place == part;
        places.len() == parts.len() && places.iter().zip(&parts).all(fits)
    };
    let templates = DOCUMENT["paths"].as_object().expect("paths").keys();
    templates.filter(fits).min_by_key(|template| template.matches('{').count()).cloned()
}

fn problems(key: &str, schema: &Value, value: &Value) -> Vec<String> {
    static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> =
        LazyLock::new(Mutex::default);
    let known = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
    let validator = known.unwrap_or_else(|| {
        let mut root = close(schema, false);
        root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
        root["components"] = CLOSED.clone();
        let made = Arc::new(jsonschema::validator_for(&root).expect("a schema"));
        let mut all = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key.to_owned(), Arc::clone(&made));
        made
    });
    let wrong = validator.iter_errors(value);
    wrong.map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// The schema with no room for further fields. A part of an `allOf` cannot see the fields of the other parts, so
/// the whole is closed instead, and what a part refers to stands in its place.
fn close(schema: &Value, is_part: bool) -> Value {
    let Value::Object(object) = schema else { return schema.clone() };
    if let (true, Some(name)) = (is_part, object.get("$ref").and_then(Value::as_str)) {
        let target = DOCUMENT.pointer(name.trim_start_matches('#')).expect("a schema");
        return close(target, true);
    }
    let mut closed = object.clone();
    for name in ["properties", "items", "additionalProperties"] {
        if let Some(inner) = object.get(name) {
            closed[name] = match inner {
                Value::Object(fields) if name == "properties" => {
                    let fields =
                        fields.iter().map(|(name, field)| (name.clone(), close(field, false)));
                    Value::Object(fields.collect())
                }
                inner => close(inner, false),
            };
        }
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        if let Some(parts) = object.get(name).and_then(Value::as_array) {
            let is_part = is_part || name == "allOf";
            closed[name] = parts.iter().map(|part| close(part, is_part)).collect();
        }
    }
    let has_fields = object.contains_key("properties") || object.contains_key("allOf");
    if has_fields && !is_part && !object.contains_key("additionalProperties") {
        closed.insert("unevaluatedProperties".to_owned(), false.into());
    }
    if is_part && closed.get("additionalProperties") == Some(&Value::Bool(false)) {
        closed.remove("additionalProperties");
    }
    Value::Object(closed)
}
