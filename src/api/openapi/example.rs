//! Examples of bodies, put together from the examples of their fields, where a body has none of its own.

use serde_json::{Map, Value, json};

use super::finish::calls;

/// Deeper than any body is; a schema that holds itself ends here.
const DEPTH_MAX: usize = 12;

/// Gives every JSON body of the document an example.
pub(super) fn add_examples(document: &mut Value) {
    let schemas = document["components"]["schemas"].clone();
    for (_, _, call) in calls(document) {
        for place in bodies(call) {
            let Some(body) = call.pointer_mut(&place) else { continue };
            if body.get("example").is_none() && body.get("examples").is_none() {
                body["example"] = example(&body["schema"], &schemas, DEPTH_MAX);
            }
        }
    }
}

/// Where in a call its JSON bodies are.
fn bodies(call: &Value) -> Vec<String> {
    let statuses = call["responses"].as_object().into_iter().flatten();
    let answers = statuses.map(|(status, _)| format!("/responses/{status}"));
    let all = answers.chain(["/requestBody".to_owned()]);
    all.map(|place| format!("{place}/content/application~1json")).collect()
}

fn example(schema: &Value, schemas: &Value, depth: usize) -> Value {
    let Some(depth) = depth.checked_sub(1) else { return Value::Null };
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return example(&schemas[name], schemas, depth);
    }
    let said = [&schema["examples"][0], &schema["example"], &schema["const"], &schema["enum"][0]];
    if let Some(said) = said.into_iter().find(|said| !said.is_null()) {
        return said.clone();
    }
    if let Some(parts) = schema["allOf"].as_array() {
        let parts = parts.iter().map(|part| example(part, schemas, depth));
        let fields = parts.filter_map(|part| part.as_object().cloned()).flatten();
        return Value::Object(fields.collect());
    }
    let choices = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array());
    if let Some(choices) = choices {
        let chosen = choices.iter().find(|choice| choice["type"] != "null");
        return chosen.map_or(Value::Null, |choice| example(choice, schemas, depth));
    }
    plain(schema, schemas, depth)
}

/// Of a schema that is one type, or `null` beside it.
fn plain(schema: &Value, schemas: &Value, depth: usize) -> Value {
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null"),
        kind => Some(kind),
    };
    match kind.and_then(Value::as_str) {
        Some("object") => object(schema, schemas, depth),
        Some("array") => json!([example(&schema["items"], schemas, depth)]),
        Some("string") => "text".into(),
        Some("boolean") => false.into(),
        Some("integer" | "number") => match &schema["minimum"] {
            Value::Null => 0.into(),
            least => least.clone(),
        },
        // The properties of an object whose type is said elsewhere.
        _ if schema.get("properties").is_some() => object(schema, schemas, depth),
        _ => Value::Null,
    }
}

fn object(schema: &Value, schemas: &Value, depth: usize) -> Value {
    let fields = schema["properties"].as_object().into_iter().flatten();
    let mut object: Map<String, Value> =
        fields.map(|(name, field)| (name.clone(), example(field, schemas, depth))).collect();
    // What only says something if it is there, such as the problems of a refusal that has some.
    let required = schema["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
    object.retain(|name, value| is_required(name) || !value.is_null());
    if let further @ Value::Object(_) = &schema["additionalProperties"] {
        object.insert("NAME".to_owned(), example(further, schemas, depth));
    }
    Value::Object(object)
}
