//! Names of things, each proven well-formed once, at the edge, and trusted afterwards.
//!
//! A [`ContainerId`] goes into Docker names, label values and folder names without further escaping;
//! that is safe only because this is the one place that makes one.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A name chosen by the panel: `[A-Za-z0-9][A-Za-z0-9_.-]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ContainerId(String);

/// Why a text is no [`ContainerId`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be 1 to 63 characters of A-Z a-z 0-9 _ . - and must begin with a letter or a digit")]
pub(crate) struct InvalidContainerId;

impl ContainerId {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidContainerId> {
        let first_is_plain = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest_is_plain =
            text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if first_is_plain && rest_is_plain && text.len() <= 63 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidContainerId)
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the workload's container in Docker.
    pub(crate) fn docker_name(&self) -> String {
        format!("lightd-{}", self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = InvalidContainerId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

/// A volume; its folder under `storage.volumes_path` has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct VolumeId(Uuid);

impl TryFrom<String> for VolumeId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("must be the id that a volume was given, a UUID")
    }
}

impl VolumeId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// One run of a container, from an install or a start to its exit. Counts from 1 for the container's
/// life, so that a fact about an earlier run can be told from one about the present.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub(crate) struct RunId(pub(crate) u64);

impl RunId {
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_are_what_the_contract_allows() {
        let longest = "a".repeat(63);
        for good in ["a", "server-001", "A.b_c-d", "0", longest.as_str()] {
            assert!(ContainerId::parse(good).is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", ".a", "_a", "a/b", "a b", "a\n", "ä", "a?b", too_long.as_str()] {
            assert!(ContainerId::parse(bad).is_err(), "{bad}");
        }
    }
}
