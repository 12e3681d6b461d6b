//! What serde says of a value that does not fit, without the value: a text in the wrong place may be a
//! secret, and refusals and logs repeat what they are told.

/// The message without a text that it quotes, and in words of the outside.
pub(crate) fn without_text(message: &str) -> String {
    let quotes = ["invalid type: string ", "invalid value: string "];
    let is_quote = quotes.iter().any(|start| message.starts_with(start));
    // What was expected stands last, and a quoted text cannot come after it.
    match message.rsplit_once(", expected ").filter(|_| is_quote) {
        Some((_, expected)) if expected.starts_with("struct ") => {
            "must be an object, not a text".to_owned()
        }
        Some((_, expected)) => format!("invalid type: string, expected {expected}"),
        None if is_quote => "must not be a text".to_owned(),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code, reason = "only whether it can be read matters")]
    struct Login {
        port: u16,
    }

    #[test]
    fn a_text_in_the_wrong_place_is_not_repeated() {
        let said = |json: &str| {
            let error = serde_json::from_str::<Login>(json).unwrap_err();
            without_text(&error.to_string())
        };
        assert_eq!(said(r#""hunter2, expected hunter2""#), "must be an object, not a text");
        let port = said(r#"{"port": "hunter2, expected x"}"#);
        assert!(port.starts_with("invalid type: string, expected u16"), "{port}");
        let number = said(r#"{"port": 70000}"#);
        assert!(number.starts_with("invalid value: integer `70000`"), "{number}");
    }
}
