//! An HTTP client that speaks as a panel does, and as one that gets it wrong.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use super::contract;

pub(crate) const VENDOR: &str = "Application/vnd.pkglatv1+json";
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    accept: Option<String>,
}

impl Client {
    /// With the token and the vendor's media type, as the reference has it.
    pub(crate) fn new(base: &str, token: &str) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(DEADLINE)
            // Tests make certificates of their own.
            .tls_danger_accept_invalid_certs(true)
            .build();
        Self {
            http: http.expect("a client"),
            base: base.to_owned(),
            token: Some(token.to_owned()),
            accept: Some(VENDOR.to_owned()),
        }
    }

    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub(crate) fn with_accept(&self, accept: &str) -> Self {
        Self { accept: Some(accept.to_owned()), ..self.clone() }
    }

    /// Without the vendor's media type.
    pub(crate) fn without_accept(&self) -> Self {
        Self { accept: None, ..self.clone() }
    }

    /// Without a token.
    pub(crate) fn anonymous(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// A request to add headers or a body to; [`answer`] sends it.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(accept) = &self.accept {
            request = request.header(ACCEPT, accept);
        }
        request
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        answer(self.request(Method::DELETE, path)).await
    }

    /// A POST without a body.
    pub(crate) async fn post_empty(&self, path: &str) -> Answer {
        answer(self.request(Method::POST, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        answer(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        answer(self.request(Method::PUT, path).json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        answer(self.request(Method::PATCH, path).json(&body)).await
    }
}

/// What came back. `body` is null where it is no JSON.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) asked: String,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) body: Value,
}

impl Answer {
    /// The body, if the status is this one.
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.asked, self.text);
        self.body
    }

    /// The body, if it is a refusal with this status and code, as every refusal must be.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) -> Value {
        let said = format!("{}: {} {}", self.asked, self.status, self.text);
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{said}");
        let sentence = self.body["error"].as_str().unwrap_or_default();
        assert!(!sentence.is_empty(), "no sentence: {said}");
        self.body
    }

    /// As [`Answer::refused`] with 400 `invalid`, naming this field first.
    #[track_caller]
    pub(crate) fn names_field(self, field: &str) -> Value {
        let said = format!("{}: {} {}", self.asked, self.status, self.text);
        let body = self.refused(400, "invalid");
        assert_eq!(body["problems"][0]["field"], field, "{said}");
        body
    }
}

pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let (client, request) = request.build_split();
    let request = request.expect("a request");
    let asked = format!("{} {}", request.method(), request.url());
    let (method, path) = (request.method().to_string(), request.url().path().to_owned());
    let response = client.execute(request).await;
    let response = response.unwrap_or_else(|error| panic!("{asked}: {error:?}"));
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap_or_else(|error| panic!("{asked}: {error:?}"));
    let media_type = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    contract::check(&method, &path, status, media_type, &text);
    let body = serde_json::from_str(&text).unwrap_or_default();
    Answer { asked, status, headers, text, body }
}
