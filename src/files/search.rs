//! Finding files by name and by what is in them.
//!
//! A search reads one file at a time with memory for one long line, follows no link, opens nothing but
//! regular files, and ends at the first of its bounds: results, entries seen, depth, time. What it found
//! until then is its answer, with the bound that ended it.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use globset::{GlobBuilder, GlobMatcher};
use regex::bytes::{Regex, RegexBuilder};
use rustix::fs::{FileType, Stat as RawStat};
use tokio::time::Instant;

use super::error::{During, FileError};
use super::progress::Progress;
use super::resolve::{kind_of, open_file};
use super::volume::{Stat, Volume};
use super::walk::{Lossy, MAX_DEPTH, Visit, Walk};
use crate::domain::path::RelPath;

const MAX_PATTERN_BYTES: usize = 1024;
const MAX_COMPILED_BYTES: usize = 1 << 20;
const MAX_ENTRIES: u64 = 5_000_000;
/// How much of a file is looked through.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// A file is taken for text if there is no NUL in so much of its beginning.
const SNIFFED_BYTES: usize = 8 * 1024;
const READ_BYTES: usize = 64 * 1024;
/// A longer line is looked through in pieces.
const MAX_LINE_BYTES: usize = 256 * 1024;
const MAX_MATCHES_PER_FILE: usize = 50;
const EXCERPT_BEFORE_CHARS: usize = 60;
const EXCERPT_CHARS: usize = 200;

/// What to look for.
#[derive(Debug)]
pub(crate) struct Search {
    folder: RelPath,
    name: Option<NamePattern>,
    content: Option<Regex>,
    limit: usize,
    until: Instant,
}

#[derive(Debug)]
enum NamePattern {
    /// Anywhere in the name; in small letters.
    Substring(String),
    Name(GlobMatcher),
    /// A pattern with a slash, held against the whole path below the folder.
    Path(GlobMatcher),
}

#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) hits: Vec<Hit>,
    /// Why there may be more.
    pub(crate) ended_by: Option<Bound>,
    /// Files of which only the beginning was looked through.
    pub(crate) cut_files: u64,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    Limit,
    Entries,
    Depth,
    Time,
}

#[derive(Debug)]
pub(crate) struct Hit {
    /// From the volume's root.
    pub(crate) path: String,
    pub(crate) stat: Stat,
    pub(crate) matches: Vec<Match>,
}

/// A place in a file; line and column count from 1, the column in characters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) line: u64,
    pub(crate) column: usize,
    pub(crate) excerpt: String,
}

impl Search {
    pub(crate) fn new(
        folder: RelPath,
        name: Option<&str>,
        content: Option<&str>,
        limit: usize,
        until: Instant,
    ) -> Result<Self, FileError> {
        let name = name.map(NamePattern::parse).transpose()?;
        let content = content.map(compile).transpose()?;
        Ok(Self { folder, name, content, limit, until })
    }
}

fn invalid(pattern: &str) -> FileError {
    FileError::InvalidPattern { pattern: pattern.chars().take(100).collect() }
}

fn compile(pattern: &str) -> Result<Regex, FileError> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(invalid(pattern));
    }
    RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|_| invalid(pattern))
}

impl NamePattern {
    fn parse(pattern: &str) -> Result<Self, FileError> {
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(invalid(pattern));
        }
        if !pattern.contains(['*', '?', '[', '{']) {
            return Ok(Self::Substring(pattern.to_lowercase()));
        }
        let glob = GlobBuilder::new(pattern.trim_start_matches('/'))
            .case_insensitive(true)
            .literal_separator(true)
            .build()
            .map_err(|_| invalid(pattern))?
            .compile_matcher();
        Ok(if pattern.contains('/') { Self::Path(glob) } else { Self::Name(glob) })
    }

    fn matches(&self, path: &[u8]) -> bool {
        let path = String::from_utf8_lossy(path);
        let name = path.rsplit('/').next().unwrap_or_default();
        match self {
            Self::Substring(text) => name.to_lowercase().contains(text.as_str()),
            Self::Name(glob) => glob.is_match(name),
            Self::Path(glob) => glob.is_match(&*path),
        }
    }
}

impl Volume {
    pub(crate) fn search(&self, search: &Search, progress: &Progress) -> Result<Found, FileError> {
        let dir = self.open_dir(&search.folder)?;
        let mut walk = Walk::new(dir.as_fd())?;
        let mut looking = Looking { search, progress, found: Found::default() };
        while let Some(visit) = walk.next()? {
            progress.check()?;
            if let Some(bound) = looking.bound() {
                looking.found.ended_by = Some(bound);
                break;
            }
            match visit {
                Visit::Enter { stat, .. } => {
                    let path = walk.path().to_vec();
                    looking.entry(walk.dir(), None, &path, &stat)?;
                    if walk.depth() >= MAX_DEPTH {
                        looking.found.ended_by = Some(Bound::Depth);
                        walk.skip()?;
                    }
                }
                Visit::Leaf { name, stat } => {
                    let path = walk.path_of(&name);
                    looking.entry(walk.dir(), Some(&name), &path, &stat)?;
                }
                Visit::Leave => {}
            }
        }
        Ok(looking.found)
    }
}

struct Looking<'a> {
    search: &'a Search,
    progress: &'a Progress,
    found: Found,
}

impl Looking<'_> {
    /// The bound that has been reached.
    fn bound(&self) -> Option<Bound> {
        if self.found.hits.len() >= self.search.limit {
            Some(Bound::Limit)
        } else if self.found.entries >= MAX_ENTRIES {
            Some(Bound::Entries)
        } else if Instant::now() >= self.search.until {
            Some(Bound::Time)
        } else {
            None
        }
    }

    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        file: Option<&CStr>,
        path: &[u8],
        stat: &RawStat,
    ) -> Result<(), FileError> {
        self.found.entries += 1;
        self.progress.add_entry();
        if self.search.name.as_ref().is_some_and(|pattern| !pattern.matches(path)) {
            return Ok(());
        }
        let matches = match (&self.search.content, file) {
            (None, _) => Vec::new(),
            (Some(regex), Some(name)) if kind_of(stat) == FileType::RegularFile => {
                // Gone, or something else by now: not what was looked for.
                let Ok((file, _)) = open_file(dir, name) else { return Ok(()) };
                let matches = self.content(file, regex).during("read", &Lossy(path))?;
                if matches.is_empty() {
                    return Ok(());
                }
                matches
            }
            (Some(_), _) => return Ok(()),
        };
        let below = String::from_utf8_lossy(path);
        let folder = &self.search.folder;
        let path = if folder.is_root() { below.into_owned() } else { format!("{folder}/{below}") };
        self.found.hits.push(Hit { path, stat: Stat::of(stat), matches });
        Ok(())
    }

    fn content(&mut self, file: File, regex: &Regex) -> std::io::Result<Vec<Match>> {
        let size = file.metadata()?.len();
        let mut content = file.take(MAX_FILE_BYTES);
        let mut lines = Lines { regex, line: 1, matches: Vec::new() };
        let mut pending = Vec::new();
        let mut chunk = vec![0; READ_BYTES];
        let mut total = 0;
        loop {
            let count = content.read(&mut chunk)?;
            if total == 0 && chunk[..count.min(SNIFFED_BYTES)].contains(&0) {
                return Ok(Vec::new());
            }
            total += count as u64;
            self.found.bytes += count as u64;
            self.progress.add_bytes(count as u64);
            self.progress.check().map_err(FileError::into_io)?;
            pending.extend_from_slice(&chunk[..count]);
            let is_last = count == 0;
            let whole = pending.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let ready = if is_last || whole == 0 && pending.len() > MAX_LINE_BYTES {
                pending.len()
            } else {
                whole
            };
            lines.look_through(&pending[..ready]);
            pending.drain(..ready);
            if is_last || lines.is_full() || Instant::now() >= self.search.until {
                self.found.cut_files += u64::from(is_last && total < size);
                return Ok(lines.matches);
            }
        }
    }
}

struct Lines<'r> {
    regex: &'r Regex,
    line: u64,
    matches: Vec<Match>,
}

impl Lines<'_> {
    fn is_full(&self) -> bool {
        self.matches.len() >= MAX_MATCHES_PER_FILE
    }

    fn look_through(&mut self, text: &[u8]) {
        for line in text.split_inclusive(|b| *b == b'\n') {
            let bare = line.strip_suffix(b"\n").unwrap_or(line);
            let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
            if let Some(found) = self.regex.find(bare)
                && !self.is_full()
            {
                self.matches.push(Match::new(self.line, bare, found.start()));
            }
            self.line += u64::from(line.ends_with(b"\n"));
        }
    }
}

impl Match {
    fn new(line: u64, text: &[u8], start: usize) -> Self {
        let before = String::from_utf8_lossy(&text[..start]);
        let column = before.chars().count() + 1;
        let skipped = (column - 1).saturating_sub(EXCERPT_BEFORE_CHARS);
        let after = String::from_utf8_lossy(&text[start..]);
        let excerpt =
            before.chars().skip(skipped).chain(after.chars()).take(EXCERPT_CHARS).collect();
        Self { line, column, excerpt }
    }
}
