//! Who gets in: as it is written, and what it means.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use url::Url;

use super::validate::{Check, ip_net, is_header_text};
use crate::domain::access;
use crate::util::secret::Secret;

/// As it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawAuthorization {
    pub(crate) enabled: bool,
    pub(crate) token: Secret,
    /// The token before it, and until when it is good as well: `lightd --token reset --grace 10m`.
    pub(crate) previous_token: Secret,
    pub(crate) previous_token_until: Option<Timestamp>,
    pub(crate) admin_key: Secret,
    pub(crate) allowed_origins: Vec<String>,
    /// Networks that requests may come from; empty: from anywhere.
    pub(crate) allowed_ips: Vec<String>,
    pub(crate) failed_attempts: RawFailedAttempts,
    /// How many issued tokens may be in force at once.
    pub(crate) max_tokens: u64,
}

/// How many bad tokens an address may send at once, and in the long run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawFailedAttempts {
    pub(crate) burst: u64,
    pub(crate) per_minute: u64,
}

impl Default for RawAuthorization {
    fn default() -> Self {
        Self {
            enabled: true,
            token: Secret::default(),
            previous_token: Secret::default(),
            previous_token_until: None,
            admin_key: Secret::default(),
            allowed_origins: Vec::new(),
            allowed_ips: Vec::new(),
            failed_attempts: RawFailedAttempts::default(),
            max_tokens: 10_000,
        }
    }
}

impl Default for RawFailedAttempts {
    fn default() -> Self {
        Self { burst: 20, per_minute: 20 }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    pub(crate) enabled: bool,
    /// Well-formed while authorization is enabled.
    pub(crate) token: Secret,
    pub(crate) previous: Option<PreviousToken>,
    /// As browsers send them: `https://panel.example`. Empty: no list.
    pub(crate) allowed_origins: Vec<String>,
    pub(crate) allowed_ips: Vec<IpNet>,
    pub(crate) failed_attempts: FailedAttempts,
    pub(crate) max_tokens: u64,
}

/// A node token that another one has followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PreviousToken {
    pub(crate) token: Secret,
    pub(crate) until: Timestamp,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FailedAttempts {
    pub(crate) burst: NonZeroU32,
    pub(crate) per_minute: NonZeroU32,
}

pub(super) fn authorization(
    raw: &RawAuthorization,
    host: IpAddr,
    check: &mut Check<'_>,
) -> Authorization {
    if raw.enabled {
        check_token(&raw.token, check);
    } else if host != IpAddr::from(Ipv4Addr::LOCALHOST) {
        check.say(
            "authorization.enabled",
            "may be false only while server.host is 127.0.0.1: anyone who reaches the port could do \
             everything",
        );
    }
    let key = raw.admin_key.expose();
    if !key.is_empty() && (key.len() < 20 || !is_header_text(key)) {
        check.say("authorization.admin_key", "must have at least 20 plain characters, or none");
    }
    Authorization {
        enabled: raw.enabled,
        token: raw.token.clone(),
        previous: previous(raw, check),
        allowed_origins: check.each("authorization.allowed_origins", &raw.allowed_origins, origin),
        allowed_ips: check.each("authorization.allowed_ips", &raw.allowed_ips, ip_net),
        failed_attempts: failed_attempts(&raw.failed_attempts, check),
        max_tokens: check.within("authorization.max_tokens", raw.max_tokens, 1, 1_000_000),
    }
}

fn check_token(token: &Secret, check: &mut Check<'_>) {
    let key = "authorization.token";
    if token.is_empty() {
        check.say(key, "is empty; a start makes one, or: lightd --token reset");
    } else if !access::is_token(token.expose()) {
        check.say(key, access::TOKEN_FORMAT);
    }
}

fn previous(raw: &RawAuthorization, check: &mut Check<'_>) -> Option<PreviousToken> {
    let token = &raw.previous_token;
    if token.is_empty() {
        return None;
    }
    if !access::is_token(token.expose()) {
        check.say("authorization.previous_token", access::TOKEN_FORMAT);
    }
    if raw.previous_token_until.is_none() {
        let message = "must be a time such as 2026-01-31T12:00:00Z while there is a previous_token";
        check.say("authorization.previous_token_until", message);
    }
    Some(PreviousToken { token: token.clone(), until: raw.previous_token_until? })
}

fn failed_attempts(raw: &RawFailedAttempts, check: &mut Check<'_>) -> FailedAttempts {
    let mut within = |name: &str, value| {
        let value =
            check.within(&format!("authorization.failed_attempts.{name}"), value, 1, 1 << 20);
        u32::try_from(value).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
    };
    FailedAttempts {
        burst: within("burst", raw.burst),
        per_minute: within("per_minute", raw.per_minute),
    }
}

fn origin(text: &str) -> Result<String, String> {
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
    });
    url.map(|url| url.origin().ascii_serialization())
        .ok_or_else(|| "must be an origin, such as https://panel.example".to_owned())
}
