//! The two requests that the panel knows, and what its answers mean.
//!
//! Every request has a deadline. Only an answer says that an update was taken or will never be; anything
//! else means later. The token goes to the configured address and is in no error.

use std::time::Duration;

use reqwest::{Response, StatusCode, header, redirect};

use super::{PanelError, PanelSettings};
use crate::domain::units::UnixSeconds;
use crate::store::outbox::OutboxRow;
use crate::util::secret::Secret;

const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a panel may ask us to wait.
const RETRY_AFTER_MAX_SECONDS: i64 = 3600;
/// How much of a refusal's text is kept.
const REASON_MAX_BYTES: usize = 1024;

/// What became of an update.
#[derive(Debug)]
pub(super) enum Outcome {
    Accepted,
    /// The panel will not take it, however often it is sent.
    Refused(String),
    Later {
        error: PanelError,
        /// What the panel asked for, if it did.
        not_before: Option<UnixSeconds>,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Secret,
}

impl Client {
    pub(super) fn new(settings: &PanelSettings) -> Result<Self, PanelError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("lightd/", env!("CARGO_PKG_VERSION")))
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            // The token goes to the configured address and nowhere else.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(PanelError::Client)?;
        let base = settings.url.as_str().trim_end_matches('/').to_owned();
        Ok(Self { http, base, token: settings.token.clone() })
    }

    pub(super) async fn health(&self) -> Result<(), PanelError> {
        let request = self.http.get(format!("{}/health", self.base));
        let response = request.bearer_auth(self.token.expose()).send().await;
        let status = response.map_err(without_url)?.status();
        if status.is_success() { Ok(()) } else { Err(PanelError::Status(status.as_u16())) }
    }

    pub(super) async fn deliver(&self, row: &OutboxRow) -> Outcome {
        let request = self
            .http
            .post(format!("{}/update", self.base))
            .bearer_auth(self.token.expose())
            .header(header::CONTENT_TYPE, "application/json")
            .header("X-Lightd-Delivery", row.delivery.to_string())
            .header("X-Lightd-Sequence", row.server_sequence)
            .body(row.body_json.clone());
        match request.send().await {
            Ok(response) => judge(response).await,
            Err(why) => Outcome::Later { error: without_url(why), not_before: None },
        }
    }
}

async fn judge(response: Response) -> Outcome {
    let status = response.status();
    if status.is_success() {
        return Outcome::Accepted;
    }
    // 401 is our token or theirs being changed; it will be set right.
    let passes =
        [StatusCode::UNAUTHORIZED, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    if status.is_client_error() && !passes.contains(&status) {
        let text = beginning_of(response).await;
        return Outcome::Refused(format!("{}: {}", status.as_u16(), text.trim()));
    }
    let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let not_before = asked.and_then(|text| retry_after(text, UnixSeconds::now()));
    Outcome::Later { error: PanelError::Status(status.as_u16()), not_before }
}

/// The moment that a `Retry-After` means, in seconds or as a date, but not too far off.
fn retry_after(text: &str, now: UnixSeconds) -> Option<UnixSeconds> {
    let at = match text.trim().parse::<u32>() {
        Ok(seconds) => now.0 + i64::from(seconds),
        Err(_) => jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp().as_second(),
    };
    Some(UnixSeconds(at.clamp(now.0, now.0 + RETRY_AFTER_MAX_SECONDS)))
}

async fn beginning_of(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < REASON_MAX_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            // What has come is reason enough.
            Ok(None) | Err(_) => break,
        }
    }
    bytes.truncate(REASON_MAX_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The address stands in the configuration; it need not stand in every log line.
fn without_url(error: reqwest::Error) -> PanelError {
    PanelError::Transport(error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms_and_bounded() {
        let now = UnixSeconds(1_800_000_000);
        let read = |text| retry_after(text, now).map(|at| at.0 - now.0);
        assert_eq!(read("7"), Some(7));
        assert_eq!(read("Fri, 15 Jan 2027 08:00:30 GMT"), Some(30));
        assert_eq!(read("Wed, 15 Jan 2020 08:00:30 GMT"), Some(0));
        assert_eq!(read("999999"), Some(3600));
        assert_eq!(read("soon"), None);
    }
}
