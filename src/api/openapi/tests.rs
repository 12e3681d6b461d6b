//! The document against the routes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::finish::calls;

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
        assert!(
            names.insert(text("operationId").to_owned()),
            "{method} {path}: {}",
            text("operationId")
        );
        assert!(!text("summary").is_empty(), "{method} {path} has no summary");
        let area = call["tags"][0].as_str().unwrap_or_default();
        assert!(areas.contains(area), "{method} {path}: {area}");
        for (status, response) in call["responses"].as_object().unwrap() {
            let said = response.get("$ref").or_else(|| response.get("description"));
            assert!(
                said.and_then(Value::as_str).is_some_and(|said| !said.is_empty()),
                "{path} {status}"
            );
        }
    }
}
