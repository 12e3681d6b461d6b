//! The headers of the protocol for resumable uploads. Pure.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::api::error::ApiError;
use crate::files::digest::Algorithm;
use crate::files::resumable::ResumableId;

const METADATA_MAX_BYTES: usize = 16 * 1024;

/// What an upload is in an upload made of several.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Concat {
    Partial,
    /// With the addresses of the parts, in order.
    Final(Vec<String>),
}

impl Concat {
    pub(super) fn read(header: &HeaderValue) -> Result<Self, ApiError> {
        let text = header.to_str().unwrap_or_default().trim();
        match text.split_once(';') {
            None if text == "partial" => Ok(Self::Partial),
            Some(("final", parts)) => {
                Ok(Self::Final(parts.split_ascii_whitespace().map(str::to_owned).collect()))
            }
            _ => {
                let message = "must be partial, or final; and the addresses of the parts";
                Err(ApiError::field("Upload-Concat", message))
            }
        }
    }
}

/// The upload that an address, absolute or not, ends in.
pub(super) fn part_id(address: &str) -> Option<ResumableId> {
    let path = address.split(['?', '#']).next()?;
    ResumableId::parse(path.rsplit('/').next()?)
}

pub(super) fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if is_plain => Ok(Some(number)),
        _ => Err(ApiError::field(shown(name), "must be a whole number of bytes")),
    }
}

pub(super) fn required_number(headers: &HeaderMap, name: &HeaderName) -> Result<u64, ApiError> {
    number(headers, name)?.ok_or_else(|| ApiError::field(shown(name), "is required"))
}

/// `upload-offset` as people write it.
fn shown(name: &HeaderName) -> String {
    let capital = |word: &str| word[..1].to_ascii_uppercase() + &word[1..];
    name.as_str().split('-').map(capital).collect::<Vec<_>>().join("-")
}

/// `key value-in-base64` pairs with commas between them; a key may stand alone.
pub(super) fn metadata(header: Option<&HeaderValue>) -> Result<Vec<(String, String)>, ApiError> {
    let bad = |message| ApiError::field("Upload-Metadata", message);
    let Some(header) = header else { return Ok(Vec::new()) };
    if header.len() > METADATA_MAX_BYTES {
        return Err(bad("is too long"));
    }
    let text = header.to_str().map_err(|_| bad("must be ASCII"))?;
    let mut pairs = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
        let value =
            STANDARD.decode(value.trim()).map_err(|_| bad("has a value that is not base64"))?;
        let value = String::from_utf8(value).map_err(|_| bad("has a value that is not UTF-8"))?;
        pairs.push((key.to_owned(), value));
    }
    Ok(pairs)
}

/// A value that says something: clients write out what they have no value for.
pub(super) fn metadata_value<'p>(pairs: &'p [(String, String)], key: &str) -> Option<&'p str> {
    let value = pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())?;
    let says_nothing =
        value.is_empty() || (key == "relativePath" && matches!(value, "null" | "undefined"));
    (!says_nothing).then_some(value)
}

/// `sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=`
pub(super) fn checksum(header: &HeaderValue) -> Result<(Algorithm, Vec<u8>), ApiError> {
    let bad = |message: &str| ApiError::field("Upload-Checksum", message);
    let text = header.to_str().unwrap_or_default();
    let (name, sum) = text.split_once(' ').ok_or_else(|| bad("must be an algorithm and base64"))?;
    let algorithm = Algorithm::parse(name).ok_or_else(|| bad("names an unknown algorithm"))?;
    let sum = STANDARD.decode(sum.trim()).map_err(|_| bad("is not base64"))?;
    Ok((algorithm, sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> HeaderValue {
        HeaderValue::from_str(text).unwrap()
    }

    #[test]
    fn metadata_is_pairs_of_names_and_base64() {
        let read = |text: &str| metadata(Some(&value(text))).ok();
        let pairs = read("filename w7wudHh0, relativePath bnVsbA==,is_confidential,name ").unwrap();
        assert_eq!(metadata_value(&pairs, "filename"), Some("ü.txt"));
        for nothing in ["relativePath", "is_confidential", "name", "absent"] {
            assert_eq!(metadata_value(&pairs, nothing), None, "{nothing}");
        }
        assert_eq!(read(""), Some(Vec::new()));
        for bad in ["filename w7wudHh0=", "filename ?", "filename /w=="] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn parts_are_found_by_the_end_of_their_address() {
        let id = "0190c6a0-0000-4000-8000-000000000000";
        let header = value(&format!("final;/volumes/x/tus/{id} https://node/a/{id}?x=/y"));
        let Ok(Concat::Final(parts)) = Concat::read(&header) else { panic!("not read") };
        let found: Vec<_> = parts.iter().map(|part| part_id(part).unwrap().to_string()).collect();
        assert_eq!(found, [id, id]);
        assert_eq!(part_id("/volumes/x/tus/.."), None);
        assert_eq!(Concat::read(&value("partial")).ok(), Some(Concat::Partial));
        assert!(Concat::read(&value("finally;x")).is_err());
    }

    #[test]
    fn numbers_and_checksums_are_plain() {
        let name = HeaderName::from_static("upload-offset");
        let read = |text: &str| {
            let headers = [(name.clone(), value(text))].into_iter().collect();
            number(&headers, &name).map_err(|error| error.message().to_owned())
        };
        assert_eq!(read("10"), Ok(Some(10)));
        for bad in ["", "-1", "+1", "1.0", "99999999999999999999"] {
            let want = "Upload-Offset: must be a whole number of bytes".to_owned();
            assert_eq!(read(bad), Err(want), "{bad}");
        }
        let read = |text: &str| checksum(&value(text)).ok();
        assert_eq!(read("sha1 AAEC"), Some((Algorithm::Sha1, vec![0, 1, 2])));
        for bad in ["sha1", "sha1 ?", "sha0 AAEC"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
