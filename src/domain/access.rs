//! Who is asking, and what they may do.
//!
//! A request is made by a [`Principal`]; [`allows`] is the only place that decides. The node's own
//! token may do everything. An issued token may do what its [`Scope`] leaves it, and never manages
//! tokens: otherwise a token of fifteen minutes could make itself one of a year.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ids::ContainerId;

/// Every token begins so.
pub(crate) const TOKEN_PREFIX: &str = "lightd_";
const TOKEN_MIN_CHARS: usize = 20;
const TOKEN_MAX_CHARS: usize = 512;

/// What a token must look like, for people.
pub(crate) const TOKEN_FORMAT: &str =
    "must start with lightd_, have 20 to 512 characters in all, and only A-Z a-z 0-9 _ -";

/// Whether a text has the format of a token.
pub(crate) fn is_token(text: &str) -> bool {
    text.starts_with(TOKEN_PREFIX)
        && (TOKEN_MIN_CHARS..=TOKEN_MAX_CHARS).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// An issued token, by the name that revokes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct TokenId(pub(crate) Uuid);

impl TokenId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl std::fmt::Display for TokenId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// The holder of the node's own token.
    Node,
    /// The holder of an issued token.
    Token { id: TokenId, scope: Scope },
    /// Anyone, on a node whose authorization is switched off.
    Anonymous,
}

impl Principal {
    /// The name that things are kept under that belong to whoever asked: `node`, `token <id>`.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Node => "node".to_owned(),
            Self::Anonymous => "anonymous".to_owned(),
            Self::Token { id, .. } => format!("token {id}"),
        }
    }
}

/// What an issued token is narrowed to; `None` does not narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) containers: Option<BTreeSet<ContainerId>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) permissions: Option<BTreeSet<Permission>>,
}

/// What can be allowed. The list is closed: a route that is none of these needs a new one. Which
/// permission each route wants stands in one table, `api::permissions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Permission {
    /// See a container: state, specification, statistics, the events of its socket.
    #[serde(rename = "containers.read")]
    ContainersRead,
    /// Create, change, reinstall, rebind and delete containers; create, resize and delete volumes.
    #[serde(rename = "containers.write")]
    ContainersWrite,
    /// Read the console and its history, and the install log.
    #[serde(rename = "console.read")]
    ConsoleRead,
    /// Write to the workload's standard input.
    #[serde(rename = "console.write")]
    ConsoleWrite,
    /// Start, stop, kill, restart, pause, resume.
    #[serde(rename = "power")]
    Power,
    /// Run a process beside the workload.
    #[serde(rename = "exec")]
    Exec,
    /// List, read and search a volume's files.
    #[serde(rename = "files.read")]
    FilesRead,
    /// Change a volume's files: write, move, delete, archives, pulls.
    #[serde(rename = "files.write")]
    FilesWrite,
    /// See the snapshots of a volume.
    #[serde(rename = "snapshots.read")]
    SnapshotsRead,
    /// Take and delete snapshots, and put a volume back to one.
    #[serde(rename = "snapshots.write")]
    SnapshotsWrite,
    /// See the port pool, and containers' firewalls.
    #[serde(rename = "network.read")]
    NetworkRead,
    /// Change the port pool, and containers' firewalls.
    #[serde(rename = "network.write")]
    NetworkWrite,
    /// See and reload the configuration, the panel's status, the audit log and the metrics.
    #[serde(rename = "node")]
    Node,
    /// Issue, list and revoke tokens. No issued token has it, so no scope can name it.
    #[serde(skip)]
    Tokens,
}

impl Permission {
    /// The names that a scope may hold.
    pub(crate) const NAMES: &[&str] = &[
        "containers.read",
        "containers.write",
        "console.read",
        "console.write",
        "power",
        "exec",
        "files.read",
        "files.write",
        "snapshots.read",
        "snapshots.write",
        "network.read",
        "network.write",
        "node",
    ];

    /// What a scope calls it; `None` for what none can hold.
    pub(crate) fn name(self) -> Option<&'static str> {
        Self::NAMES.iter().copied().find(|name| Self::parse(name) == Some(self))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        use serde::de::IntoDeserializer;
        use serde::de::value::{Error, StrDeserializer};
        let from: StrDeserializer<'_, Error> = text.into_deserializer();
        Self::deserialize(from).ok()
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Resource<'a> {
    Container(&'a ContainerId),
    /// A volume, by the containers that use it. One that nobody uses belongs to the node.
    Volume {
        used_by: &'a [ContainerId],
    },
    /// What belongs to no single container: the pool, the list of volumes, the node itself.
    Node,
}

/// Whether this principal may do this with anything at all, as for a list of what it may see.
pub(crate) fn permits(principal: &Principal, permission: Permission) -> bool {
    match principal {
        Principal::Node | Principal::Anonymous => true,
        Principal::Token { .. } if permission == Permission::Tokens => false,
        Principal::Token { scope, .. } => {
            scope.permissions.as_ref().is_none_or(|allowed| allowed.contains(&permission))
        }
    }
}

/// Whether this principal may do this with that.
///
/// A token narrowed to containers reaches a volume only when every container that uses the volume is
/// its own: a volume shared with a stranger's container is the stranger's too.
pub(crate) fn allows(principal: &Principal, permission: Permission, on: Resource<'_>) -> bool {
    if !permits(principal, permission) {
        return false;
    }
    let Principal::Token { scope: Scope { containers: Some(containers), .. }, .. } = principal
    else {
        return true;
    };
    match on {
        Resource::Container(id) => containers.contains(id),
        Resource::Volume { used_by } => {
            !used_by.is_empty() && used_by.iter().all(|id| containers.contains(id))
        }
        Resource::Node => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        ContainerId::parse(text).unwrap()
    }

    fn token(containers: Option<&[&str]>, permissions: Option<&[&str]>) -> Principal {
        let scope = Scope {
            containers: containers.map(|ids| ids.iter().map(|text| id(text)).collect()),
            permissions: permissions
                .map(|names| names.iter().map(|name| Permission::parse(name).unwrap()).collect()),
        };
        Principal::Token { id: TokenId::random(), scope }
    }

    #[test]
    fn tokens_are_held_to_their_format() {
        assert!(is_token("lightd_0123456789abc"));
        assert!(is_token("lightd_A-z_0123456789"));
        for bad in [
            "",
            "lightd_",
            "lightd_012345678901 ",
            "lightd_0123456789ab",
            "Lightd_0123456789abcdef",
            "lightd_0123456789äöü",
        ] {
            assert!(!is_token(bad), "{bad}");
        }
        assert!(!is_token(&format!("lightd_{}", "a".repeat(600))));
    }

    #[test]
    fn every_name_is_a_permission_and_back() {
        for name in Permission::NAMES {
            let permission = Permission::parse(name).unwrap();
            assert_eq!(serde_json::to_value(permission).unwrap(), *name);
        }
        assert_eq!(Permission::parse("tokens"), None);
        assert_eq!(Permission::parse("console"), None);
    }

    #[test]
    fn a_narrowed_token_does_only_what_it_names() {
        let narrow = token(Some(&["a"]), Some(&["console.read", "files.read"]));
        let (mine, other) = (id("a"), id("b"));
        let may = |permission, on| allows(&narrow, permission, on);
        assert!(may(Permission::ConsoleRead, Resource::Container(&mine)));
        assert!(!may(Permission::ConsoleRead, Resource::Container(&other)));
        assert!(!may(Permission::ConsoleWrite, Resource::Container(&mine)));
        assert!(!may(Permission::ConsoleRead, Resource::Node));
        let (ours, shared) = ([mine.clone()], [mine.clone(), other.clone()]);
        assert!(may(Permission::FilesRead, Resource::Volume { used_by: &ours }));
        assert!(!may(Permission::FilesRead, Resource::Volume { used_by: &shared }));
        assert!(!may(Permission::FilesRead, Resource::Volume { used_by: &[] }));
    }

    #[test]
    fn no_issued_token_manages_tokens() {
        let wide = token(None, None);
        assert!(allows(&wide, Permission::Node, Resource::Node));
        assert!(!allows(&wide, Permission::Tokens, Resource::Node));
        assert!(allows(&Principal::Node, Permission::Tokens, Resource::Node));
    }
}
