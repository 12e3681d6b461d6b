//! `{{NAME}}` in a start command: found, checked and replaced as plain text.
//!
//! Values are inserted as they are: the start command is a shell command line written by the panel,
//! and so are the values it chose to put there.

use std::collections::BTreeMap;

/// Names that lightd sets itself; `SERVER_MEMORY` is in MB.
pub(crate) const BUILT_IN: &[&str] = &["SERVER_MEMORY", "SERVER_IP", "SERVER_PORT"];

/// A part of a template: text as it stands, or the name between two braces.
enum Part<'a> {
    Text(&'a str),
    Name(&'a str),
}

/// The template's names that have no value, each once, in order.
pub(crate) fn unknown_names(text: &str, env: &BTreeMap<String, String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for part in parts(text) {
        if let Part::Name(name) = part
            && !env.contains_key(name)
            && !BUILT_IN.contains(&name)
            && !found.iter().any(|known| known == name)
        {
            found.push(name.to_owned());
        }
    }
    found
}

/// The text with each known name replaced; a name without a value stays as it is. What is inserted is
/// not read again.
pub(crate) fn render(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Name(name) => match values.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("{{");
                    out.push_str(name);
                    out.push_str("}}");
                }
            },
        }
    }
    out
}

fn parts(text: &str) -> Vec<Part<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find("{{") {
        let after = &rest[open + 2..];
        let length = after.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        if length > 0 && after[length..].starts_with("}}") {
            found.push(Part::Text(&rest[..open]));
            found.push(Part::Name(&after[..length]));
            rest = &after[length + 2..];
        } else {
            found.push(Part::Text(&rest[..open + 2]));
            rest = after;
        }
    }
    found.push(Part::Text(rest));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_are_replaced_once_and_as_plain_text() {
        let values = values(&[("A", "{{B}}"), ("B", "$x; 'y'")]);
        assert_eq!(
            render("a {{A}} {{B}} {{C}} {{ A }} {{", &values),
            "a {{B}} $x; 'y' {{C}} {{ A }} {{"
        );
    }

    #[test]
    fn unknown_names_are_listed_once() {
        let env = values(&[("A", "")]);
        assert_eq!(unknown_names("{{A}} {{X}} {{X}} {{SERVER_PORT}} {{a-b}}", &env), ["X"]);
    }
}
