//! The headers of a file's content: entity tags, byte ranges and the name to save it under. Pure.

use std::ops::Range;

use axum::http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// A list of entity tags, as in `If-Match` and `If-None-Match`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tags {
    Any,
    Listed(Vec<Tag>),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tag {
    text: String,
    is_weak: bool,
}

impl Tags {
    /// Reads what it can; what is no tag matches nothing. Our own tags hold no comma.
    pub(super) fn read(header: &HeaderValue) -> Self {
        let text = header.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Self::Any;
        }
        let tag = |item: &str| {
            let item = item.trim();
            let (item, is_weak) =
                item.strip_prefix("W/").map_or((item, false), |item| (item, true));
            let text = item.strip_prefix('"')?.strip_suffix('"')?;
            Some(Tag { text: text.to_owned(), is_weak })
        };
        Self::Listed(text.split(',').filter_map(tag).collect())
    }

    /// Whether one of them is this very content.
    pub(super) fn hold(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(tags) => tags.iter().any(|tag| !tag.is_weak && tag.text == etag),
        }
    }

    /// As [`Tags::hold`], where a weak tag is good enough, as for a cache.
    pub(super) fn hold_weakly(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(tags) => tags.iter().any(|tag| tag.text == etag),
        }
    }
}

/// A range that lies behind the end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotSatisfiable;

/// What a `Range` header asks of a file of this size. `None` for the whole: for what is no range of
/// bytes, and for several ranges, which a server need not serve apart.
pub(super) fn range_of(
    header: &HeaderValue,
    size: u64,
) -> Result<Option<Range<u64>>, NotSatisfiable> {
    let Some((first, last)) = header.to_str().ok().and_then(parse_range) else { return Ok(None) };
    let range = match (first, last) {
        (Some(first), Some(last)) if last < first => return Ok(None),
        (Some(first), last) => first..last.map_or(size, |last| last.saturating_add(1).min(size)),
        (None, Some(count)) => size.saturating_sub(count)..size,
        (None, None) => return Ok(None),
    };
    if range.start < range.end { Ok(Some(range)) } else { Err(NotSatisfiable) }
}

fn parse_range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    Some((number(first)?, number(last)?))
}

fn number(text: &str) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    // `parse` would take a plus sign as well.
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok().map(Some))?
}

/// What an extended parameter has as it is; RFC 5987 allows more, which not all readers know.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// `attachment` with the file's name, for old readers in plain letters and for all others in full.
pub(super) fn attachment(name: &str) -> HeaderValue {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._- ()+".contains(c);
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let full = utf8_percent_encode(name, UNRESERVED);
    let text = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{full}");
    HeaderValue::try_from(text).expect("invariant: plain letters are a header value")
}

/// The name of a file as a `Content-Disposition` gives it; the extended form is worth more. What
/// browsers and curl send differs: only a quote is ever escaped by a backslash in all of them.
pub(super) fn filename_of(header: &[u8]) -> Option<String> {
    let (mut plain, mut extended) = (None, None);
    let mut rest = header;
    while let Some(start) = rest.iter().position(|b| *b == b';') {
        rest = rest[start + 1..].trim_ascii_start();
        let Some(equals) = rest.iter().position(|b| matches!(b, b'=' | b';')) else { break };
        if rest[equals] == b';' {
            rest = &rest[equals..];
            continue;
        }
        let name = rest[..equals].trim_ascii().to_ascii_lowercase();
        let (value, after) = parameter(rest[equals + 1..].trim_ascii_start());
        rest = after;
        match name.as_slice() {
            b"filename" => {
                // What is no UTF-8 is Latin-1 (RFC 7230), and so no two names become one.
                let text = || {
                    String::from_utf8(value).unwrap_or_else(|other| {
                        other.as_bytes().iter().copied().map(char::from).collect()
                    })
                };
                plain = plain.or_else(|| Some(text()));
            }
            b"filename*" => extended = extended.or_else(|| extended_value(&value)),
            _ => {}
        }
    }
    extended.or(plain)
}

/// A parameter's value, and what follows it.
fn parameter(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|b| *b == b';').unwrap_or(text.len());
        return (text[..end].trim_ascii_end().to_vec(), &text[end..]);
    };
    let mut value = Vec::new();
    let mut at = 0;
    while let Some(&byte) = quoted.get(at) {
        if quoted[at..].starts_with(b"\\\"") {
            value.push(b'"');
            at += 2;
            continue;
        }
        at += 1;
        if byte == b'"' {
            break;
        }
        value.push(byte);
    }
    (value, &quoted[at..])
}

/// `UTF-8''na%C3%AFve.txt`. Other character sets are hardly seen and not read.
fn extended_value(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let (charset, rest) = text.split_once('\'')?;
    let (_language, encoded) = rest.split_once('\'')?;
    let text = percent_decode_str(encoded).decode_utf8().ok()?;
    charset.eq_ignore_ascii_case("utf-8").then(|| text.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tags(text: &'static str) -> Tags {
        Tags::read(&HeaderValue::from_static(text))
    }

    #[test]
    fn tags_are_compared_weakly_only_by_caches() {
        assert!(tags("*").hold("a"));
        assert!(tags("\"x\", \"a\"").hold("a"));
        assert!(!tags("W/\"a\"").hold("a"));
        assert!(tags("W/\"a\"").hold_weakly("a"));
        for not_it in ["", "a", "\"b\"", "\"a", "a\""] {
            assert!(!tags(not_it).hold_weakly("a"), "{not_it}");
        }
    }

    #[test]
    fn ranges_are_cut_to_the_file() {
        let range = |text: &str, size| range_of(&HeaderValue::from_str(text).unwrap(), size);
        for (text, want) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-5", 2..6),
            ("bytes=2-", 2..10),
            ("bytes=-3", 7..10),
            ("bytes=-30", 0..10),
            ("Bytes=5-99999999999999999", 5..10),
            ("bytes=0-18446744073709551615", 0..10),
        ] {
            assert_eq!(range(text, 10), Ok(Some(want)), "{text}");
        }
        for text in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
            assert_eq!(range(text, 10), Err(NotSatisfiable), "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Err(NotSatisfiable));
        for text in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "lines=1-2",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=0-1,3-4",
        ] {
            assert_eq!(range(text, 10), Ok(None), "{text}");
        }
    }

    #[test]
    fn a_file_is_saved_under_its_name() {
        assert_eq!(
            attachment("a b.txt"),
            "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"
        );
        assert_eq!(
            attachment("ü\"\r\n"),
            "attachment; filename=\"____\"; filename*=UTF-8''%C3%BC%22%0D%0A"
        );
    }

    #[test]
    fn a_disposition_names_a_file_in_every_way_that_is_used() {
        for (given, want) in [
            ("form-data; name=\"f\"; filename=\"a.txt\"", Some("a.txt")),
            ("form-data; filename=\"dir/ü;b.txt\"; name=f", Some("dir/ü;b.txt")),
            (r#"form-data; filename="a\"b\c.txt""#, Some(r#"a"b\c.txt"#)),
            ("attachment; FileName = plain.zip ; x=y", Some("plain.zip")),
            ("attachment; filename*=UTF-8''na%C3%AFve.txt; filename=\"x\"", Some("naïve.txt")),
            ("attachment; filename=\"x\"; filename*=latin1''na%EFve", Some("x")),
            ("attachment; filename=\"x\"; filename*=utf-8'de'%ff", Some("x")),
            ("form-data; filename=\"\"", Some("")),
            ("form-data; filename=\"open", Some("open")),
            ("form-data; name=\"filename=x\"", None),
            ("form-data; name; filename", None),
            ("", None),
        ] {
            assert_eq!(filename_of(given.as_bytes()).as_deref(), want, "{given}");
        }
    }

    proptest! {
        #[test]
        fn any_disposition_is_read_to_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            drop(filename_of(&bytes));
        }

        #[test]
        fn what_we_write_we_read(name in "[^\\x00]{1,30}") {
            let header = attachment(&name);
            prop_assert_eq!(filename_of(header.as_bytes()), Some(name));
        }

        #[test]
        fn any_name_makes_a_header(name in "\\PC{0,40}|.{0,40}") {
            let value = attachment(&name);
            prop_assert_eq!(value.to_str().unwrap().matches('"').count(), 2);
        }

        #[test]
        fn any_range_lies_in_the_file(text in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in 0u64..100) {
            if let Ok(Some(range)) = range_of(&HeaderValue::from_str(&text).unwrap(), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
