//! The two requests that the panel knows, and what its answers mean.
//!
//! Every request has a deadline, and of an answer no more is read than tells something. Only an answer says
//! that an update was taken or will never be; anything else means later. The token goes to the configured
//! address and nowhere else, and is in no error.

use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode, header, redirect};
use uuid::Uuid;

use super::signature::{self, signature};
use super::{PanelError, PanelSettings};
use crate::domain::units::UnixSeconds;
use crate::store::outbox::OutboxRow;
use crate::util::secret::Secret;

const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an answer is read, and how long it is waited for once it has begun. The connection of one
/// that is longer, or slower, is given up.
const BODY_MAX_BYTES: usize = 64 * 1024;
const BODY_PATIENCE: Duration = Duration::from_secs(1);
/// How much of an answer is kept: enough for a reason.
const KEPT_BYTES: usize = 1024;

/// What became of an update.
#[derive(Debug)]
pub(super) enum Outcome {
    Accepted,
    /// The panel will not take it, however often it is sent.
    Refused(String),
    Later {
        error: PanelError,
        /// How long the panel asked to be left alone, if it did.
        asked: Option<Duration>,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Secret,
    /// Empty: nothing is signed.
    signing_secret: Secret,
    node: Uuid,
}

/// The body of an answer, as far as it was read.
struct Body {
    beginning: Vec<u8>,
    /// It ended before its end.
    broke_off: Option<reqwest::Error>,
}

impl Client {
    pub(super) fn new(settings: &PanelSettings, node: Uuid) -> Result<Self, PanelError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("lightd/", env!("CARGO_PKG_VERSION")))
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            // The token goes to the configured address and nowhere else.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(PanelError::Client)?;
        Ok(Self {
            http,
            base: settings.url.as_str().trim_end_matches('/').to_owned(),
            token: settings.token.clone(),
            signing_secret: settings.signing_secret.clone(),
            node,
        })
    }

    /// The same for another node of this process, over the same connections.
    #[cfg(feature = "benching")]
    pub(super) fn of_node(&self, node: Uuid) -> Self {
        Self { node, ..self.clone() }
    }

    pub(super) async fn health(&self) -> Result<(), PanelError> {
        let response = self.send(self.http.get(format!("{}/health", self.base))).await?;
        let status = response.status();
        let body = take_in(response).await;
        judge_health(status, body)
    }

    pub(super) async fn deliver(&self, row: &OutboxRow) -> Outcome {
        let mut request = self
            .http
            .post(format!("{}/update", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .header("X-Lightd-Delivery", row.delivery.to_string())
            .header("X-Lightd-Sequence", row.server_sequence);
        if !self.signing_secret.is_empty() {
            let signed = signature(&self.signing_secret, UnixSeconds::now(), &row.body_json);
            request = request.header(signature::HEADER, signed);
        }
        let response = match self.send(request.body(row.body_json.clone())).await {
            Ok(response) => response,
            Err(error) => return Outcome::Later { error, asked: None },
        };
        let status = response.status();
        let asked = retry_after(&response);
        let body = take_in(response).await;
        judge(status, asked, body)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, PanelError> {
        let request = request.bearer_auth(self.token.expose());
        let sent = request.header("X-Lightd-Node", self.node.to_string()).send().await;
        sent.map_err(without_url)
    }
}

/// Reads an answer to its end, so that its connection can be used again, or far enough.
async fn take_in(mut response: Response) -> Body {
    let (mut beginning, mut seen_bytes) = (Vec::new(), 0);
    let reading = async {
        while seen_bytes < BODY_MAX_BYTES {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    seen_bytes += chunk.len();
                    let room = KEPT_BYTES - beginning.len();
                    beginning.extend_from_slice(&chunk[..chunk.len().min(room)]);
                }
                Ok(None) => break,
                Err(why) => return Some(why).filter(|why| !why.is_timeout()),
            }
        }
        None
    };
    let broke_off = tokio::time::timeout(BODY_PATIENCE, reading).await.ok().flatten();
    Body { beginning, broke_off }
}

/// A 2xx takes an update, and a 4xx refuses it. A web page does neither, whatever its status says: it is some
/// proxy's, or that of whoever has the address now. Nor does an answer that breaks off, whose author may not
/// have come to an end.
fn judge(status: StatusCode, asked: Option<Duration>, body: Body) -> Outcome {
    let later = |error| Outcome::Later { error, asked };
    // 401 is our token or theirs being changed; it will be set right.
    let passes =
        [StatusCode::UNAUTHORIZED, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    let refuses = status.is_client_error() && !passes.contains(&status);
    if status.is_success() || refuses {
        return match body.broke_off {
            Some(why) => later(PanelError::BrokeOff(why.without_url())),
            None if is_web_page(&body.beginning) => later(PanelError::WebPage),
            None if refuses => {
                let text = String::from_utf8_lossy(&body.beginning);
                Outcome::Refused(format!("{}: {}", status.as_u16(), text.trim()))
            }
            None => Outcome::Accepted,
        };
    }
    if status.is_redirection() {
        return later(PanelError::Redirect(status.as_u16()));
    }
    later(PanelError::Status(status.as_u16()))
}

/// Well is who says so with a 2xx, and with no other status in a JSON body.
fn judge_health(status: StatusCode, body: Body) -> Result<(), PanelError> {
    if status.is_redirection() {
        return Err(PanelError::Redirect(status.as_u16()));
    }
    if !status.is_success() {
        return Err(PanelError::Status(status.as_u16()));
    }
    if let Some(why) = body.broke_off {
        return Err(PanelError::BrokeOff(why.without_url()));
    }
    if is_web_page(&body.beginning) {
        return Err(PanelError::WebPage);
    }
    let said = serde_json::from_slice::<serde_json::Value>(&body.beginning).unwrap_or_default();
    match said["status"].as_u64() {
        Some(said) if !(200..300).contains(&said) => Err(PanelError::Unwell(said)),
        _ => Ok(()),
    }
}

fn is_web_page(body: &[u8]) -> bool {
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body).trim_ascii_start();
    ["<!doctype", "<html"].iter().any(|begin| {
        body.get(..begin.len()).is_some_and(|start| start.eq_ignore_ascii_case(begin.as_bytes()))
    })
}

fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    read_retry_after(text, UnixSeconds::now())
}

/// How long a `Retry-After` asks to wait, in seconds or as a date.
fn read_retry_after(text: &str, now: UnixSeconds) -> Option<Duration> {
    let seconds = match text.trim().parse::<u32>() {
        Ok(seconds) => u64::from(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp().as_second();
            u64::try_from(at.saturating_sub(now.0)).unwrap_or(0)
        }
    };
    Some(Duration::from_secs(seconds))
}

/// The address stands in the configuration; it need not stand in every log line.
fn without_url(error: reqwest::Error) -> PanelError {
    PanelError::Transport(error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = UnixSeconds(1_800_000_000);
        let read = |text| read_retry_after(text, now).map(|asked| asked.as_secs());
        assert_eq!(read("7"), Some(7));
        assert_eq!(read("Fri, 15 Jan 2027 08:00:30 GMT"), Some(30));
        assert_eq!(read("Wed, 15 Jan 2020 08:00:30 GMT"), Some(0));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn an_update_is_taken_refused_or_comes_again() {
        let judged = |status: u16, body: &str| {
            let body = Body { beginning: body.as_bytes().to_vec(), broke_off: None };
            match judge(StatusCode::from_u16(status).unwrap(), None, body) {
                Outcome::Accepted => "accepted".to_owned(),
                Outcome::Refused(reason) => format!("refused: {reason}"),
                Outcome::Later { error, .. } => format!("later: {error}"),
            }
        };
        for (status, body) in [(200, ""), (201, "ok"), (204, ""), (200, "{\"html\": \"<html\"}")] {
            assert_eq!(judged(status, body), "accepted", "{status} {body}");
        }
        assert_eq!(judged(422, " no such server\n"), "refused: 422: no such server");
        for status in [400, 403, 404, 410] {
            assert!(judged(status, "").starts_with("refused"), "{status}");
        }
        for status in [401, 408, 429, 500, 502, 503] {
            assert_eq!(judged(status, ""), format!("later: the panel answers {status}"));
        }
        assert!(judged(302, "").contains("redirects"));
        for page in ["<!DOCTYPE html><title>Sign in</title>", "\u{feff}\n <HTML>"] {
            for status in [200, 403, 404, 410] {
                let told = judged(status, page);
                assert_eq!(told, "later: the panel answers with a web page", "{status} {page}");
            }
        }
    }

    #[test]
    fn a_panel_is_well_that_says_so() {
        let judged = |status: u16, body: &str| {
            let body = Body { beginning: body.as_bytes().to_vec(), broke_off: None };
            judge_health(StatusCode::from_u16(status).unwrap(), body).is_ok()
        };
        assert!(judged(200, r#"{"status": 200, "endpoint": "active"}"#));
        assert!(judged(204, "") && judged(200, "fine") && judged(200, r#"{"status": "ok"}"#));
        assert!(!judged(200, r#"{"status": 503, "endpoint": "inactive"}"#));
        assert!(!judged(200, "<html>") && !judged(302, "") && !judged(404, "") && !judged(500, ""));
    }
}
