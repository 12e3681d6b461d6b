//! What of a changed configuration a running daemon takes over.
//!
//! Every key is either live or waits for a restart; a test holds the two lists against the keys there
//! are. Called by [`super::live`], which swaps the new value in whole, with the keys that wait as they were:
//! this says what that means.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::Config;
use super::source::pointer;

/// Keys, or sections, whose new value counts at once (for what begins after it: a running install
/// keeps its limit).
pub(super) const LIVE: &[&str] = &[
    "authorization",
    "server.trusted_proxies",
    "docker.allowed_mounts",
    "network.ports",
    "network.allow_host",
    "network.allow_private",
    "network.quarantine",
    "limits",
    "install",
    "console.journal_max_age",
    "sockets",
    "supervision",
    "archives",
    "quota",
    "snapshots",
    "uploads",
    "pulls",
    "remote",
    "audit",
    "log.level",
    "billing",
];

/// Keys, or sections, that wait for a restart; none holds a secret. With the ones above, all there are.
pub(super) const RESTART: &[&str] = &[
    "server.host",
    "server.port",
    "server.tls",
    "server.max_body_bytes",
    "docker.socket_path",
    "docker.user",
    "docker.node",
    "storage",
    "console.ring_bytes",
    "console.journal_bytes",
    "network.subnets",
    "network.bridge",
    "network.firewall",
    "ssh",
    "dialects",
    "log.format",
];

/// The paths of changed keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Changes {
    pub(crate) applied: Vec<String>,
    pub(crate) needs_restart: Vec<String>,
}

/// What changes from the configuration that counts now, and what waits since the one the daemon was
/// started with.
pub(super) fn compare(started_with: &Config, current: &Config, new: &Config) -> Changes {
    let is_live = |key: &String| LIVE.iter().any(|live| is_at_or_below(key, live));
    let (applied, _) = differences(current, new).into_iter().partition(is_live);
    let (_, needs_restart): (Vec<_>, Vec<_>) =
        differences(started_with, new).into_iter().partition(is_live);
    Changes { applied, needs_restart }
}

/// What waits for a restart, as it is.
pub(super) fn kept(started_with: &Config) -> Vec<(&'static str, Value)> {
    let value = started_with.masked();
    let of = |key: &&'static str| Some((*key, value.pointer(&pointer(key))?.clone()));
    RESTART.iter().filter_map(of).collect()
}

pub(super) fn is_at_or_below(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn differences(a: &Config, b: &Config) -> Vec<String> {
    let (old, new) = (keys(&a.masked()), keys(&b.masked()));
    let mut changed: Vec<String> = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(*value))
        .map(|(key, _)| key.clone())
        .collect();
    let (a, b) = (&a.raw, &b.raw);
    // Masked, every secret looks the same.
    for (key, differs) in [
        ("authorization.token", a.authorization.token != b.authorization.token),
        (
            "authorization.previous_token",
            a.authorization.previous_token != b.authorization.previous_token,
        ),
        ("authorization.admin_key", a.authorization.admin_key != b.authorization.admin_key),
        ("remote.token", a.remote.token != b.remote.token),
        ("remote.signing_secret", a.remote.signing_secret != b.remote.signing_secret),
    ] {
        if differs && !changed.iter().any(|known| known == key) {
            changed.push(key.to_owned());
        }
    }
    changed
}

/// Every key with its value, by its path; a list is a value.
pub(super) fn keys(value: &Value) -> BTreeMap<String, Value> {
    fn collect(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(section) => {
                for (name, value) in section {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    collect(&format!("{prefix}{dot}{name}"), value, into);
                }
            }
            leaf => {
                into.insert(prefix.to_owned(), leaf.clone());
            }
        }
    }
    let mut found = BTreeMap::new();
    collect("", value, &mut found);
    found
}
