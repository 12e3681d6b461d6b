//! Patterns for what to leave out of an archive: `*.log`, `cache/`, `world/**/session.lock`.
//!
//! `*` and `?` stand for characters of one name, `**` for any number of folders. A pattern without a
//! slash is held against names anywhere, one with a slash against the whole path; a slash at the end
//! means folders only.

use regex::bytes::{RegexSet, RegexSetBuilder};

use crate::files::error::FileError;

const MAX_PATTERNS: usize = 256;
const MAX_PATTERN_BYTES: usize = 512;
const MAX_COMPILED_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Ignore {
    all: RegexSet,
    folders: RegexSet,
}

impl Ignore {
    pub(super) fn parse(patterns: &[String]) -> Result<Self, FileError> {
        if patterns.len() > MAX_PATTERNS {
            return Err(FileError::InvalidPattern { pattern: "a list of over 256".to_owned() });
        }
        let (mut all, mut folders) = (Vec::new(), Vec::new());
        for pattern in patterns {
            let trimmed = pattern.trim_end_matches('/');
            let is_refused =
                trimmed.is_empty() || trimmed.len() > MAX_PATTERN_BYTES || trimmed.starts_with('!');
            if is_refused {
                return Err(FileError::InvalidPattern { pattern: pattern.clone() });
            }
            let list = if trimmed.len() < pattern.len() { &mut folders } else { &mut all };
            list.push(to_regex(trimmed));
        }
        Ok(Self { all: compile(&all)?, folders: compile(&folders)? })
    }

    pub(super) fn matches(&self, path: &[u8], is_folder: bool) -> bool {
        self.all.is_match(path) || (is_folder && self.folders.is_match(path))
    }
}

fn compile(expressions: &[String]) -> Result<RegexSet, FileError> {
    RegexSetBuilder::new(expressions)
        .unicode(false)
        .size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|_| FileError::InvalidPattern { pattern: "the list of patterns".to_owned() })
}

fn to_regex(pattern: &str) -> String {
    let anywhere = if pattern.contains('/') { "" } else { "(?:.*/)?" };
    let mut rest = pattern.trim_start_matches('/');
    let mut regex = format!("(?s-u)^{anywhere}");
    while let Some(first) = rest.chars().next() {
        let (piece, length) = if rest.starts_with("**/") {
            ("(?:.*/)?".to_owned(), 3)
        } else if rest.starts_with("**") {
            (".*".to_owned(), 2)
        } else if first == '*' {
            ("[^/]*".to_owned(), 1)
        } else if first == '?' {
            ("[^/]".to_owned(), 1)
        } else {
            (regex::escape(&rest[..first.len_utf8()]), first.len_utf8())
        };
        regex.push_str(&piece);
        rest = &rest[length..];
    }
    regex + "$"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(pattern: &str, path: &str, is_folder: bool) -> bool {
        let ignore = Ignore::parse(&[pattern.to_owned()]).expect("pattern");
        ignore.matches(path.as_bytes(), is_folder)
    }

    #[test]
    fn patterns_match_names_paths_and_folders() {
        for (pattern, path, is_folder, want) in [
            ("*.log", "a.log", false, true),
            ("*.log", "deep/er/a.log", false, true),
            ("*.log", "a.log.txt", false, false),
            ("a.b", "axb", false, false),
            ("cache/", "cache", true, true),
            ("cache/", "x/cache", true, true),
            ("cache/", "cache", false, false),
            ("/top", "top", false, true),
            ("/top", "x/top", false, false),
            ("logs/*.gz", "logs/1.gz", false, true),
            ("logs/*.gz", "logs/old/1.gz", false, false),
            ("world/**/lock", "world/lock", false, true),
            ("world/**/lock", "world/a/b/lock", false, true),
            ("world/**", "world/a/b", false, true),
            ("?", "x", false, true),
            ("?", "xy", false, false),
            ("ü*", "übung", false, true),
        ] {
            assert_eq!(ignored(pattern, path, is_folder), want, "{pattern} on {path}");
        }
    }

    #[test]
    fn senseless_patterns_are_refused() {
        for pattern in ["", "/", "!keep", &"x".repeat(600)] {
            assert!(Ignore::parse(&[pattern.to_owned()]).is_err(), "{pattern:?}");
        }
        assert!(Ignore::parse(&vec!["a".to_owned(); 257]).is_err());
    }
}
