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
        Some((_, expected)) => format!("invalid type: string, expected {}", in_words(expected)),
        None if is_quote => "must not be a text".to_owned(),
        None => match message.rsplit_once(", expected ") {
            Some((found, expected)) => format!("{found}, expected {}", in_words(expected)),
            None => message.to_owned(),
        },
    }
}

/// A type of the program's own in words of the outside.
fn in_words(expected: &str) -> &str {
    match expected {
        "u16" => "a whole number from 0 to 65535",
        "u8" | "u32" | "u64" | "usize" => "a whole number from 0",
        "i64" => "a whole number",
        "f32" | "f64" => "a number",
        expected if expected.starts_with("struct ") => "an object",
        expected => expected,
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

    #[test]
    fn types_of_the_program_are_not_told() {
        for (said, told) in [
            (
                "invalid type: boolean `true`, expected struct Login",
                "boolean `true`, expected an object",
            ),
            (
                "invalid type: string \"hunter2\", expected u64",
                "string, expected a whole number from 0",
            ),
            (
                "invalid value: integer `70000`, expected u16",
                "integer `70000`, expected a whole number from 0 to 65535",
            ),
            ("invalid type: null, expected a string", "null, expected a string"),
        ] {
            assert_eq!(without_text(said).split_once(": ").unwrap().1, told);
        }
    }
}
