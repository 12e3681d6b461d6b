//! The door for `benches/access.rs`: the check of a token, as each request makes it.

use std::path::Path;

use tokio::sync::watch;

use super::{Access, AccessSettings, AttemptLimit, TokenRequest};
use crate::domain::access::{Principal, Scope};
use crate::domain::client::ClientAddress;
use crate::domain::units::Span;
use crate::store::Store;
use crate::util::secret::{Secret, SecretDigest, random_text};

/// A node with issued tokens.
#[derive(Debug)]
pub struct TokenCheck {
    access: Access,
    from: ClientAddress,
    issued: Vec<Secret>,
    node: Secret,
    _settings: watch::Sender<AccessSettings>,
}

impl TokenCheck {
    /// With so many issued tokens, and a store in `folder`. Panics where that cannot be.
    pub async fn new(folder: &Path, tokens: u32) -> Self {
        let node = Secret::new(format!("lightd_{}", random_text()));
        let many = std::num::NonZeroU32::MAX;
        let (settings, receiver) = watch::channel(AccessSettings {
            enabled: true,
            node_token: node.digest(),
            previous: None,
            allowed_origins: Vec::new(),
            allowed_ips: Vec::new(),
            trusted_proxies: Vec::new(),
            failed_attempts: AttemptLimit { burst: many, per_minute: many },
            max_tokens: u64::from(tokens),
        });
        let store = Store::open(&folder.join("lightd.db")).expect("a store");
        let access = Access::new(store, receiver);
        let from = ClientAddress::new(std::net::Ipv4Addr::LOCALHOST.into());
        let issue = || async {
            let ttl = Span(std::time::Duration::from_secs(3600));
            let request = TokenRequest { ttl, remove_on_use: false, scope: Scope::default() };
            access.issue(request, &Principal::Node, from).await.expect("a token").token
        };
        let issued = futures_util::future::join_all((0..tokens).map(|_| issue())).await;
        Self { access, from, issued, node, _settings: settings }
    }

    /// The node's own.
    pub fn node_token(&self) -> &str {
        self.node.expose()
    }

    pub fn issued_tokens(&self) -> impl Iterator<Item = &str> {
        self.issued.iter().map(Secret::expose)
    }

    /// Whether the token is good.
    pub async fn check(&self, token: &str) -> bool {
        self.access.check(Some(token), self.from).await.is_ok()
    }

    /// What lies at the bottom of a check, for comparison.
    pub fn plain_digest(token: &str) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(SecretDigest::of(token).as_bytes());
        bytes
    }
}
