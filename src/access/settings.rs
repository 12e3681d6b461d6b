//! The part of the configuration that decides who gets in.

use std::num::NonZeroU32;

use ipnet::IpNet;

use crate::domain::client::ClientAddress;
use crate::domain::units::UnixSeconds;
use crate::util::secret::SecretDigest;

/// What `access` is given; swapped whole when the configuration changes.
#[derive(Clone, Debug)]
pub(crate) struct AccessSettings {
    pub(crate) enabled: bool,
    pub(crate) node_token: SecretDigest,
    /// The token before it, for as long as that is good too.
    pub(crate) previous: Option<PreviousToken>,
    /// Empty: no list.
    pub(crate) allowed_origins: Vec<String>,
    /// Empty: no list.
    pub(crate) allowed_ips: Vec<IpNet>,
    /// Whose word on where a request comes from is taken.
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) failed_attempts: AttemptLimit,
    pub(crate) max_tokens: u64,
}

/// A node token that another one has followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PreviousToken {
    pub(crate) digest: SecretDigest,
    pub(crate) until: UnixSeconds,
}

/// How often an address may be wrong: so many times at once, and so many more each minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptLimit {
    pub(crate) burst: NonZeroU32,
    pub(crate) per_minute: NonZeroU32,
}

/// For how long a token is the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeTerm {
    Present,
    Until(UnixSeconds),
}

impl AccessSettings {
    /// Whether this is the node's token now, and for how long. Compares with both always.
    pub(super) fn node_term(&self, digest: SecretDigest, now: UnixSeconds) -> Option<NodeTerm> {
        let is_present = digest == self.node_token;
        let previous = self.previous.filter(|previous| digest == previous.digest);
        if is_present {
            return Some(NodeTerm::Present);
        }
        previous.filter(|previous| now < previous.until).map(|it| NodeTerm::Until(it.until))
    }

    /// Whether the allow-list lets this address in.
    pub(crate) fn admits(&self, client: ClientAddress) -> bool {
        let is_in = |network: &IpNet| network.contains(&client.ip());
        self.allowed_ips.is_empty() || self.allowed_ips.iter().any(is_in)
    }

    /// With the defaults of the configuration, and no limit worth the name on attempts.
    #[cfg(test)]
    pub(crate) fn for_tests(node_token: &str) -> Self {
        let many = NonZeroU32::MAX;
        Self {
            enabled: true,
            node_token: SecretDigest::of(node_token),
            previous: None,
            allowed_origins: Vec::new(),
            allowed_ips: Vec::new(),
            trusted_proxies: Vec::new(),
            failed_attempts: AttemptLimit { burst: many, per_minute: many },
            max_tokens: 10_000,
        }
    }
}
