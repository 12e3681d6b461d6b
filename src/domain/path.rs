//! Paths inside a volume, proven relative and plain before anything opens them.
//!
//! This is the first of two walls. It refuses what can be seen to be wrong from the text alone, with a
//! clear reason; that a path stays inside the volume is decided by the kernel when it is opened
//! (`files::volume`), never here.

use std::fmt;
use std::path::Path;

use serde::{Serialize, Serializer};

/// The longest name Linux file systems take (`NAME_MAX`).
const NAME_MAX_BYTES: usize = 255;
/// The longest path the kernel takes in one call (`PATH_MAX`), less room for the final NUL.
const PATH_MAX_BYTES: usize = 4095;

/// A relative path of plain names: no `..`, no `.`, no empty part, no NUL. The empty path is the
/// volume's own root.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct RelPath(String);

/// Why a text is no path inside a volume.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum InvalidPath {
    #[error("a path must not contain '..'")]
    ParentReference,
    #[error("a path must not contain a NUL character")]
    Nul,
    #[error("a path must not have a Windows drive or network prefix")]
    WindowsPrefix,
    #[error("a name in a path must not be longer than 255 bytes")]
    NameTooLong,
    #[error("a path must not be longer than 4095 bytes")]
    PathTooLong,
    #[error("a path to a file or folder is needed here, not the volume's root")]
    Empty,
}

impl RelPath {
    /// Reads a path as a caller writes it: `/x` means `x`, doubled and final slashes and `.` parts
    /// fall away.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidPath> {
        if text.contains('\0') {
            return Err(InvalidPath::Nul);
        }
        if text.starts_with(r"\\") || text.starts_with("//?/") || has_drive_prefix(text) {
            return Err(InvalidPath::WindowsPrefix);
        }
        // A backslash is a plain character to Linux; archives and panels on Windows mean a slash.
        if text.split(['/', '\\']).any(|name| name == "..") {
            return Err(InvalidPath::ParentReference);
        }
        let names: Vec<&str> =
            text.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        if names.iter().any(|name| name.len() > NAME_MAX_BYTES) {
            return Err(InvalidPath::NameTooLong);
        }
        let joined = names.join("/");
        // What had something before it that fell away.
        if joined.starts_with(r"\\") || has_drive_prefix(&joined) {
            return Err(InvalidPath::WindowsPrefix);
        }
        if joined.len() > PATH_MAX_BYTES {
            return Err(InvalidPath::PathTooLong);
        }
        Ok(Self(joined))
    }

    /// As [`RelPath::parse`], where the root itself is no answer.
    pub(crate) fn parse_non_empty(text: &str) -> Result<Self, InvalidPath> {
        let path = Self::parse(text)?;
        if path.is_root() { Err(InvalidPath::Empty) } else { Ok(path) }
    }

    pub(crate) fn root() -> Self {
        Self::default()
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The path's parts, from the root down.
    pub(crate) fn names(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|name| !name.is_empty())
    }

    /// The last name, and the folder that holds it. `None` for the root.
    pub(crate) fn split_last(&self) -> Option<(RelPath, &str)> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.rsplit_once('/') {
            Some((parent, name)) => (Self(parent.to_owned()), name),
            None => (Self::root(), self.0.as_str()),
        })
    }

    /// The path that `below` is, counted from this one.
    pub(crate) fn join(&self, below: &RelPath) -> Result<Self, InvalidPath> {
        Self::parse(&format!("{self}/{below}"))
    }

    /// Whether this is `other` or lies below it.
    pub(crate) fn is_within(&self, other: &RelPath) -> bool {
        self.as_path().starts_with(other.as_path())
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn has_drive_prefix(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 3
        && bytes[0].is_ascii_alphabetic()
        && bytes[1] == b':'
        && matches!(bytes[2], b'\\' | b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_forms_are_normalised() {
        for (given, want) in [
            ("a", "a"),
            ("/a/b/", "a/b"),
            ("./a//b", "a/b"),
            ("", ""),
            ("/", ""),
            (".", ""),
            ("a:b", "a:b"),
            ("...", "..."),
            ("ü/名", "ü/名"),
        ] {
            assert_eq!(
                RelPath::parse(given).map(|p| p.to_string()),
                Ok(want.to_owned()),
                "{given}"
            );
        }
    }

    #[test]
    fn escapes_are_refused_by_name() {
        for (given, want) in [
            ("..", InvalidPath::ParentReference),
            ("a/../b", InvalidPath::ParentReference),
            (r"a\..\b", InvalidPath::ParentReference),
            ("a\0b", InvalidPath::Nul),
            (r"C:\x", InvalidPath::WindowsPrefix),
            ("c:/x", InvalidPath::WindowsPrefix),
            (r"\\host\share", InvalidPath::WindowsPrefix),
            ("/C:/x", InvalidPath::WindowsPrefix),
            (r"./C:\.", InvalidPath::WindowsPrefix),
            (r"/\\host\share", InvalidPath::WindowsPrefix),
        ] {
            assert_eq!(RelPath::parse(given), Err(want), "{given:?}");
        }
        assert_eq!(RelPath::parse(&"n".repeat(256)), Err(InvalidPath::NameTooLong));
        assert_eq!(RelPath::parse_non_empty("/"), Err(InvalidPath::Empty));
    }

    proptest! {
        #[test]
        fn what_parses_is_relative_plain_and_stable(text in ".{0,64}") {
            if let Ok(path) = RelPath::parse(&text) {
                prop_assert!(path.as_path().is_relative());
                let plain = path.names().all(|name| name != ".." && name != "." && !name.is_empty());
                prop_assert!(plain);
                prop_assert_eq!(RelPath::parse(path.as_str()), Ok(path));
            }
        }
    }
}
