//! Which query parameters a call knows: those that its description names.
//!
//! [`known`] is a layer of every described route and holds calls that change something to it, as their bodies
//! are held to their fields: a misspelt `dry_run` would else do what it was to try. Names are compared as
//! they stand, so that one that is written in escapes is unknown to everybody alike. Calls that only read pass:
//! a parameter more than they know costs nobody anything.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::error::ApiError;
use super::openapi;
use crate::domain::spec::Problem;

/// So many are named in an answer.
const PROBLEMS_MAX: usize = 64;

/// By method, in lower case, and path.
type Named = HashMap<(String, String), BTreeSet<String>>;

static NAMED: LazyLock<Named> = LazyLock::new(|| named(&openapi::describe()));

/// Refuses parameters that the call does not have.
pub(super) async fn known(request: Request, next: Next) -> Response {
    let changes = ![Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    if let (true, Some(query), Some(path)) = (changes, request.uri().query(), path) {
        let call = (request.method().as_str().to_ascii_lowercase(), path);
        let problems: Vec<Problem> = NAMED.get(&call).map_or_else(Vec::new, |known| {
            unknown(query, known)
                .map(|name| Problem::new(format!("?{name}"), "is not known here"))
                .collect()
        });
        if !problems.is_empty() {
            return ApiError::invalid(problems).into_response();
        }
    }
    next.run(request).await
}

fn unknown<'a>(query: &'a str, known: &BTreeSet<String>) -> impl Iterator<Item = &'a str> {
    let names = query.split('&').filter(|pair| !pair.is_empty());
    let names = names.map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name));
    names.filter(|name| !known.contains(*name)).take(PROBLEMS_MAX)
}

fn named(document: &Value) -> Named {
    let paths = document["paths"].as_object().into_iter().flatten();
    let calls = paths.flat_map(|(path, calls)| {
        calls.as_object().into_iter().flatten().map(move |(method, call)| (method, path, call))
    });
    let names = |call: &Value| {
        let parameters = call["parameters"].as_array().into_iter().flatten();
        let queries = parameters.filter(|parameter| parameter["in"] == "query");
        queries.filter_map(|query| query["name"].as_str().map(str::to_owned)).collect()
    };
    calls.map(|(method, path, call)| ((method.clone(), path.clone()), names(call))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_description_letter_for_letter() {
        let start = NAMED.get(&("post".to_owned(), "/containers/{id}/start".to_owned())).unwrap();
        let of = |query: &'static str| unknown(query, start).collect::<Vec<_>>();
        assert_eq!(of("wait=1s&dry_run=true&&"), Vec::<&str>::new());
        assert_eq!(of("wiat=1s&dry%5Frun=true&x"), ["wiat", "dry%5Frun", "x"]);
        let reload = NAMED.get(&("post".to_owned(), "/remote/config/reload".to_owned())).unwrap();
        assert!(reload.is_empty());
    }
}
