//! Examples of bodies, put together from the examples of their fields, where a body has none of its own.

use serde_json::{Map, Value, json};

use super::finish::calls;

/// Deeper than any body is; a schema that holds itself ends here.
const DEPTH_MAX: usize = 12;

/// Gives every JSON body of the document an example: a request with all that it may say, an answer with
/// what it always says.
pub(super) fn add_examples(document: &mut Value) {
    let schemas = document["components"]["schemas"].take();
    for (_, _, call) in calls(document) {
        for (place, whole) in bodies(call) {
            let Some(body) = call.pointer_mut(&place) else { continue };
            if body.get("example").is_none() && body.get("examples").is_none() {
                let maker = Maker { schemas: &schemas, whole };
                body["example"] = maker.example(&body["schema"], DEPTH_MAX);
            }
        }
    }
    document["components"]["schemas"] = schemas;
}

/// Where in a call its JSON bodies are, and whether their examples say all.
fn bodies(call: &Value) -> Vec<(String, bool)> {
    let statuses = call["responses"].as_object().into_iter().flatten();
    let answers = statuses.map(|(status, _)| (format!("/responses/{status}"), false));
    let all = answers.chain([("/requestBody".to_owned(), true)]);
    all.map(|(place, whole)| (format!("{place}/content/application~1json"), whole)).collect()
}

struct Maker<'a> {
    schemas: &'a Value,
    whole: bool,
}

impl Maker<'_> {
    fn example(&self, schema: &Value, depth: usize) -> Value {
        let Some(depth) = depth.checked_sub(1) else { return Value::Null };
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            return self.example(&self.schemas[name], depth);
        }
        if let Some(said) = said(schema) {
            return said.clone();
        }
        if let Some(parts) = schema["allOf"].as_array() {
            let parts = parts.iter().map(|part| self.example(part, depth));
            let fields = parts.filter_map(|part| part.as_object().cloned()).flatten();
            return Value::Object(fields.collect());
        }
        let choices = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array());
        if let Some(choices) = choices {
            let chosen = choices.iter().find(|choice| choice["type"] != "null");
            return chosen.map_or(Value::Null, |choice| self.example(choice, depth));
        }
        self.plain(schema, depth)
    }

    /// Of a schema that is one type, or `null` beside it.
    fn plain(&self, schema: &Value, depth: usize) -> Value {
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null"),
            kind => Some(kind),
        };
        match kind.and_then(Value::as_str) {
            Some("object") => self.object(schema, depth),
            Some("array") => json!([self.example(&schema["items"], depth)]),
            Some("string") => "text".into(),
            Some("boolean") => false.into(),
            Some("integer" | "number") => match &schema["minimum"] {
                Value::Null => 0.into(),
                least => least.clone(),
            },
            _ => Value::Null,
        }
    }

    fn object(&self, schema: &Value, depth: usize) -> Value {
        let required = schema["required"].as_array();
        let is_said = |name: &String| {
            self.whole || required.is_none_or(|all| all.iter().any(|one| one == name))
        };
        let fields = schema["properties"].as_object().into_iter().flatten();
        let fields = fields.filter(|(name, _)| is_said(name));
        let mut object: Map<String, Value> =
            fields.map(|(name, field)| (name.clone(), self.example(field, depth))).collect();
        if let further @ Value::Object(_) = &schema["additionalProperties"] {
            object.insert("NAME".to_owned(), self.example(further, depth));
        }
        Value::Object(object)
    }
}

/// The example that a schema brings, if `null` is one as well.
fn said(schema: &Value) -> Option<&Value> {
    let examples = schema.get("examples").and_then(|all| all.get(0));
    let choices = schema.get("enum").and_then(|all| all.get(0));
    examples.or_else(|| schema.get("example")).or_else(|| schema.get("const")).or(choices)
}
