//! What a handler takes from a request, each with a refusal in the API's own words.
//!
//! axum's extractors answer in plain text and do not name the field; these wrap or replace them. A
//! body is read up to its limit and no further, a struct takes no field it does not know (each request
//! struct says `deny_unknown_fields`), and what is wrong is named by its path in the body.

use std::fmt;
use std::marker::PhantomData;

use axum::body::{Body, Bytes};
use axum::extract::path::ErrorKind;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRef, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_path_to_error::Segment;

use super::error::ApiError;
use crate::domain::spec::Problem;
use crate::util::serde_words::without_text;

/// Of one body, that are told at once.
const PROBLEMS_MAX: usize = 64;
/// What is read for that in all: each problem takes one more reading of the whole body.
const READ_FOR_PROBLEMS_BYTES: usize = 32 << 20;
/// A body from this size on is looked through on a thread that may take its time.
const LONG_BYTES: usize = 64 << 10;
const DISCARDED_MAX_BYTES: usize = 64 << 20;

/// The largest body that is read into memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimit {
    pub(crate) bytes: usize,
}

/// A JSON object as the body. The content type is not looked at: what is no JSON is refused as that.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

/// As [`Json`], where no body at all means the default.
#[derive(Debug)]
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T>
where
    BodyLimit: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = read_body(request, BodyLimit::from_ref(state).bytes).await?;
        parse_object(&body).map(Self)
    }
}

impl<S: Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T>
where
    BodyLimit: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = read_body(request, BodyLimit::from_ref(state).bytes).await?;
        if body.trim_ascii().is_empty() {
            return Ok(Self(T::default()));
        }
        parse_object(&body).map(Self)
    }
}

/// For a field that is an object: of itself serde takes a list as well, for its fields in their order.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    struct Fields<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_none<E: serde::de::Error>(self) -> Result<Option<T>, E> {
            Ok(None)
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Option<T>, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Option<T>, D::Error> {
            from.deserialize_map(self)
        }

        fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Option<T>, A::Error> {
            T::deserialize(MapAccessDeserializer::new(fields)).map(Some)
        }
    }

    from.deserialize_option(Fields(PhantomData))
}

/// That there is no body, or one that says nothing: what it asked for would else be passed over in silence.
#[derive(Debug)]
pub(crate) struct NoBody;

impl<S: Sync> FromRequest<S> for NoBody
where
    BodyLimit: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}

        let body = read_body(request, BodyLimit::from_ref(state).bytes).await?;
        // What clients send that have nothing to say; some write an empty object as a list.
        if matches!(body.trim_ascii(), b"" | b"null" | b"[]") {
            return Ok(Self);
        }
        parse_object::<Nothing>(&body).map(|Nothing {}| Self)
    }
}

/// A body as it came, to be read as the request says.
#[derive(Debug)]
pub(crate) struct Whole(Bytes);

impl<S: Sync> FromRequest<S> for Whole
where
    BodyLimit: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        read_body(request, BodyLimit::from_ref(state).bytes).await.map(Self)
    }
}

impl Whole {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        parse_object(&self.0)
    }

    /// No body at all means the default.
    pub(crate) fn optional_json<T: DeserializeOwned + Default>(&self) -> Result<T, ApiError> {
        if self.is_empty() { Ok(T::default()) } else { self.json() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.trim_ascii().is_empty()
    }

    /// Everything of it that can be read, and all that is wrong with the rest.
    pub(crate) async fn as_far_as_possible<T: DeserializeOwned + Send + 'static>(
        &self,
        problems: &mut Vec<Problem>,
    ) -> Result<T, ApiError> {
        if self.0.len() < LONG_BYTES {
            return self.read_on(problems);
        }
        let (body, mut found) = (Self(self.0.clone()), Vec::new());
        let reading = tokio::task::spawn_blocking(move || {
            let read = body.read_on(&mut found);
            (read, found)
        });
        let (read, found) = reading.await.map_err(ApiError::internal)?;
        problems.extend(found);
        read
    }

    fn read_on<T: DeserializeOwned>(&self, problems: &mut Vec<Problem>) -> Result<T, ApiError> {
        let mut value: Value = parse_object(&self.0)?;
        for _ in 0..self.readings() {
            let (path, why) = match serde_path_to_error::deserialize(&value) {
                Ok(read) => return Ok(read),
                Err(error) => (error.path().clone(), error.into_inner().to_string()),
            };
            let error = named_problem(&path.to_string(), &why);
            problems.extend_from_slice(error.problems());
            if !take_out(&mut value, &steps(&path, &why)) {
                return Err(if problems.is_empty() { error } else { all(problems) });
            }
        }
        Err(all(problems))
    }

    fn readings(&self) -> usize {
        (READ_FOR_PROBLEMS_BYTES / self.0.len().max(1)).clamp(1, PROBLEMS_MAX)
    }
}

fn all(problems: &mut Vec<Problem>) -> ApiError {
    ApiError::invalid(std::mem::take(problems))
}

/// The way to what could not be read. To an unknown field, the path may end above it.
fn steps(path: &serde_path_to_error::Path, why: &str) -> Vec<Segment> {
    let mut steps: Vec<Segment> = path.iter().cloned().collect();
    let unknown = why.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    if let Some((name, _)) = unknown
        && !matches!(steps.last(), Some(Segment::Map { key }) if key == name)
    {
        steps.push(Segment::Map { key: name.to_owned() });
    }
    steps
}

/// Takes it out of a body; of a list, the list, so that the others' numbers stay right. False if that is the
/// body itself.
fn take_out(body: &mut Value, steps: &[Segment]) -> bool {
    let Some((last, above)) = steps.split_last() else { return false };
    let Segment::Map { key } = last else { return take_out(body, above) };
    let place = above.iter().try_fold(body, |value, step| match step {
        Segment::Map { key } => value.get_mut(key),
        Segment::Seq { index } => value.get_mut(*index),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    let object = place.and_then(Value::as_object_mut);
    object.is_some_and(|object| object.remove(key).is_some())
}

pub(super) async fn read_body(request: Request, limit_bytes: usize) -> Result<Bytes, ApiError> {
    let number = |text: &HeaderValue| text.to_str().ok()?.parse::<usize>().ok();
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(number);
    let waits_for_leave = request.headers().contains_key(header::EXPECT);
    let mut body = request.into_body();
    if announced.is_some_and(|bytes| bytes > limit_bytes) {
        if !waits_for_leave {
            discard(&mut body).await;
        }
        return Err(ApiError::too_large(limit_bytes));
    }
    match Limited::new(&mut body, limit_bytes).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            discard(&mut body).await;
            Err(ApiError::too_large(limit_bytes))
        }
        Err(error) => {
            Err(ApiError::malformed("incomplete_body", "the request's body broke off")
                .because(error))
        }
    }
}

/// Takes the rest of a body that is too large and throws it away: a client that reads only once it has
/// sent everything would else see a broken connection instead of the refusal.
async fn discard(body: &mut Body) {
    let mut left_bytes = DISCARDED_MAX_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(left) = left_bytes.checked_sub(length) else { return };
        left_bytes = left;
    }
}

/// Reads a JSON object. A struct would also be read from an array of its fields in order, which nobody
/// means.
fn parse_object<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let trimmed = body.trim_ascii_start();
    if trimmed.is_empty() {
        return Err(ApiError::malformed("invalid_json", "a JSON object is needed as the body"));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    if trimmed[0] != b'{' {
        // One that is no JSON at all is told where it goes wrong.
        serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(|error| syntax(&error))?;
        return Err(ApiError::malformed("invalid_json", "the body must be a JSON object"));
    }
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        field_error(&path, error.inner())
    })?;
    reader.end().map_err(|error| syntax(&error))?;
    Ok(value)
}

fn syntax(error: &serde_json::Error) -> ApiError {
    ApiError::malformed("invalid_json", format!("the body is no JSON: {error}"))
}

fn field_error(path: &str, error: &serde_json::Error) -> ApiError {
    if !error.is_data() {
        return syntax(error);
    }
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    named_problem(path, &without_text(text))
}

/// Names the field that serde's message is about. For a missing or unknown field the path ends at, or
/// above, the struct, and the name stands in the message alone.
fn named_problem(path: &str, text: &str) -> ApiError {
    let path = if path == "." { "" } else { path };
    let quoted = |prefix: &str| text.strip_prefix(prefix)?.split_once('`');
    if let Some((name, _)) = quoted("missing field `") {
        return ApiError::field(join(path, name), "is required");
    }
    if let Some((name, rest)) = quoted("unknown field `") {
        let parent = path.strip_suffix(name).map_or(path, |parent| parent.trim_end_matches('.'));
        let known = rest.trim_start_matches(", ").replace('`', "");
        return ApiError::field(join(parent, name), format!("is not known here; {known}"));
    }
    if path.is_empty() {
        return ApiError::malformed("invalid", format!("the body is invalid: {text}"));
    }
    ApiError::field(path, text)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The variable parts of the address.
#[derive(Debug)]
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => {
                Err(path_error(error.into_kind()))
            }
            Err(other) => Err(ApiError::internal(other)),
        }
    }
}

fn path_error(kind: ErrorKind) -> ApiError {
    let why = match kind {
        ErrorKind::ParseErrorAtKey { key, .. } => format!("{{{key}}} in the address is not valid"),
        ErrorKind::DeserializeError { key, message, .. } => {
            format!("{{{key}}} in the address is not valid: {message}")
        }
        ErrorKind::InvalidUtf8InPathParam { key } => {
            format!("{{{key}}} in the address is not UTF-8")
        }
        ErrorKind::Message(message) if message.starts_with("unknown variant") => {
            format!("the name in the address is not valid: {message}")
        }
        ErrorKind::ParseErrorAtIndex { value, .. } => {
            format!("`{value}` in the address is not valid")
        }
        ErrorKind::Message(message) => format!("the name in the address {message}"),
        other => format!("the address is not valid: {other}"),
    };
    ApiError::malformed("invalid_parameter", why)
}

/// The parameters after the question mark. Unknown ones are passed over, as is usual on the web.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        utf8_query(parts.uri.query().unwrap_or_default())?;
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                // The source names the parameter: `limit: invalid digit found in string`.
                let why = std::error::Error::source(&error).map(ToString::to_string);
                let why = why.unwrap_or_default();
                let (name, text) = why.split_once(": ").unwrap_or(("", &why));
                let query = parts.uri.query().unwrap_or_default();
                Err(ApiError::field(format!("?{name}"), query_problem(query, name, text)))
            }
            Err(other) => Err(ApiError::internal(other)),
        }
    }
}

/// What is wanted of a parameter, where the standard library's words would say only what it met.
fn query_problem(query: &str, name: &str, text: &str) -> String {
    let is_negative = || {
        let values = url::form_urlencoded::parse(query.as_bytes()).filter(|(of, _)| of == name);
        let mut numbers = values.filter_map(|(_, value)| value.parse::<i128>().ok());
        numbers.any(|number| number < 0)
    };
    let wanted = match text {
        "invalid digit found in string" if is_negative() => "must not be negative",
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "must be a whole number"
        }
        "number too large to fit in target type" => "is too large a number",
        "number too small to fit in target type" => "is too small a number",
        "provided string was not `true` or `false`" => "must be true or false",
        text => text,
    };
    wanted.to_owned()
}

/// Refuses what would be read as something else: two names that are not UTF-8 would become one.
pub(in crate::api) fn utf8_query(query: &str) -> Result<(), ApiError> {
    match percent_decode_str(query).decode_utf8() {
        Ok(_) => Ok(()),
        Err(_) => Err(ApiError::malformed("invalid_parameter", "the parameters are not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use serde::Deserialize;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::domain::ids::ContainerId;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only whether it can be read matters")]
    struct Outer {
        name: String,
        #[serde(default)]
        inner: Vec<Inner>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only whether it can be read matters")]
    struct Inner {
        port: u16,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only whether it can be read matters")]
    struct Paging {
        limit: Option<u32>,
    }

    async fn ask(method: &str, uri: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let routes = Router::new()
            .route("/outer", post(async |Json(_): Json<Outer>| "read"))
            .route("/maybe", post(async |OptionalJson(_): OptionalJson<Option<Outer>>| "read"))
            .route("/wish", post(async |NoBody: NoBody| "read"))
            .route("/named/{id}", get(async |Path(_): Path<ContainerId>| "read"))
            .route("/at/{ip}/{port}", get(async |Path(_): Path<(std::net::IpAddr, u16)>| "read"))
            .route("/paged", get(async |Query(_): Query<Paging>| "read"));
        let routes = crate::api::with_fallbacks(routes).with_state(BodyLimit { bytes: 64 });
        let request = Request::builder().method(method).uri(uri).body(body.into()).unwrap();
        let response = routes.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn refused(body: impl Into<Body>) -> (u16, String, String) {
        let (status, answer) = ask("POST", "/outer", body).await;
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        let field = answer["problems"][0]["field"].as_str().unwrap_or_default().to_owned();
        assert!(!text("error").is_empty(), "{answer}");
        (status.as_u16(), text("code"), field)
    }

    #[tokio::test]
    async fn a_long_body_is_read_fewer_times_and_elsewhere() {
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Read {
            text: String,
        }
        let body = |bytes: usize| {
            let wrong: Vec<String> = (0..100).map(|n| format!("\"x{n}\":1")).collect();
            let text = "y".repeat(bytes);
            Whole(format!("{{\"text\":\"{text}\",{}}}", wrong.join(",")).into())
        };
        for (bytes, told) in [(1, PROBLEMS_MAX), (1 << 20, 31), (40 << 20, 1)] {
            let mut problems = Vec::new();
            let read = body(bytes).as_far_as_possible::<Read>(&mut problems).await;
            let told_of = read.map(|read| read.text.len()).unwrap_err().problems().len();
            assert_eq!(told_of, told, "{bytes}");
        }
    }

    #[tokio::test]
    async fn a_body_is_read_as_far_as_it_can_be_and_all_problems_are_told() {
        #[derive(Debug, Default, Deserialize, PartialEq)]
        #[serde(default, deny_unknown_fields)]
        struct Port {
            port: Option<u16>,
        }
        #[derive(Debug, Default, Deserialize, PartialEq)]
        #[serde(default, deny_unknown_fields)]
        struct Read {
            name: String,
            ports: Vec<Port>,
            words: Vec<String>,
            env: std::collections::BTreeMap<String, String>,
        }
        let body = json!({
            "name": "a", "nam": 1, "ports": [{"port": 70_000}, {"port": 1, "prot": "x"}],
            "words": ["a", 5], "env": {"A.B": 1, "C": "d"},
        });
        let mut problems = Vec::new();
        let whole = Whole(body.to_string().into());
        let read: Read = whole.as_far_as_possible(&mut problems).await.unwrap();
        let mut fields: Vec<&str> = problems.iter().map(|found| found.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["env.A.B", "nam", "ports[0].port", "ports[1].prot", "words[1]"]);
        assert_eq!((read.name.as_str(), read.words.len(), read.env.len()), ("a", 0, 1));
        assert_eq!(read.ports, [Port::default(), Port { port: Some(1) }]);
        for (text, code) in [("[]", "invalid_json"), ("{", "invalid_json"), ("", "invalid_json")] {
            let read = Whole(text.into()).as_far_as_possible::<Read>(&mut problems).await;
            assert_eq!(read.unwrap_err().code(), code, "{text}");
        }
    }

    #[tokio::test]
    async fn a_body_is_read_whatever_its_content_type() {
        assert_eq!(ask("POST", "/outer", r#" {"name":"a"} "#).await.0, 200);
        assert_eq!(ask("POST", "/maybe", "").await.0, 200);
        assert_eq!(ask("POST", "/maybe", r#"{"name":"a"}"#).await.0, 200);
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_body_is_named() {
        for (body, code, field) in [
            ("", "invalid_json", ""),
            ("nope", "invalid_json", ""),
            (r#"{"name":"#, "invalid_json", ""),
            (r#"{"name":"a"} x"#, "invalid_json", ""),
            (r#"["a"]"#, "invalid_json", ""),
            ("{}", "invalid", "name"),
            (r#"{"name":1}"#, "invalid", "name"),
            (r#"{"name":"a","portt":1}"#, "invalid", "portt"),
            (r#"{"name":"a","inner":[{"port":70000}]}"#, "invalid", "inner[0].port"),
            (r#"{"name":"a","inner":[{"prt":1}]}"#, "invalid", "inner[0].prt"),
            (r#"{"name":"a","inner":[{}]}"#, "invalid", "inner[0].port"),
        ] {
            assert_eq!(refused(body).await, (400, code.to_owned(), field.to_owned()), "{body}");
        }
    }

    #[tokio::test]
    async fn where_no_body_is_taken_one_that_says_something_is_refused() {
        for nothing in ["", " ", "{}", " { }\n", "[]", "null"] {
            assert_eq!(ask("POST", "/wish", nothing).await.0, 200, "{nothing}");
        }
        for (body, code) in [
            (r#"{"timeout":1}"#, "invalid"),
            ("[1]", "invalid_json"),
            ("timeout=1", "invalid_json"),
            (r#"{"timeout"#, "invalid_json"),
        ] {
            let (status, answer) = ask("POST", "/wish", body).await;
            assert_eq!((status.as_u16(), answer["code"].as_str()), (400, Some(code)), "{body}");
        }
        let (_, answer) = ask("POST", "/wish", r#"{"timeout":1}"#).await;
        assert_eq!(answer["problems"][0]["field"], json!("timeout"));
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_announced_or_not() {
        let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(100));
        assert_eq!(refused(long.clone()).await.0, 413);
        let chunks: Vec<Result<String, std::io::Error>> = vec![Ok(long)];
        let unannounced = Body::from_stream(futures_util::stream::iter(chunks));
        assert_eq!(refused(unannounced).await.0, 413);
        let broken: Vec<Result<String, std::io::Error>> =
            vec![Ok("{".to_owned()), Err(std::io::Error::other("gone"))];
        let broken = Body::from_stream(futures_util::stream::iter(broken));
        assert_eq!(refused(broken).await.1, "incomplete_body");
    }

    #[tokio::test]
    async fn addresses_and_parameters_are_refused_in_json() {
        for (uri, status, code) in [
            ("/named/server-1", 200, None),
            ("/named/-x", 400, Some("invalid_parameter")),
            ("/named/a%20b", 400, Some("invalid_parameter")),
            ("/named/%ff", 400, Some("invalid_parameter")),
            ("/paged?x=a%ff", 400, Some("invalid_parameter")),
            ("/at/::1/80", 200, None),
            ("/at/1.2.3/80", 400, Some("invalid_parameter")),
            ("/at/1.2.3.4/70000", 400, Some("invalid_parameter")),
            ("/paged?limit=3&other=x", 200, None),
            ("/paged?limit=x", 400, Some("invalid")),
            ("/nothing", 404, Some("not_found")),
            ("/outer", 405, Some("method_not_allowed")),
        ] {
            let (got, answer) = ask("GET", uri, "").await;
            assert_eq!(got, status, "{uri} {answer}");
            assert_eq!(answer["code"].as_str(), code, "{uri} {answer}");
            assert_eq!(answer["error"].is_string(), status != 200, "{uri} {answer}");
        }
        for (limit, why) in [
            ("x", "must be a whole number"),
            ("", "must be a whole number"),
            ("27.5", "must be a whole number"),
            ("-1", "must not be negative"),
            ("99999999999", "is too large a number"),
        ] {
            let (_, answer) = ask("GET", &format!("/paged?limit={limit}"), "").await;
            assert_eq!(answer["problems"], json!([{"field": "?limit", "message": why}]));
        }
    }
}
