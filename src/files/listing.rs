//! What is in a folder, page by page: folders first, then by name.
//!
//! A folder's order on disk is nobody's order, so each page reads all names once and keeps the first ones
//! that follow the page before: memory for one page and one look at the folder per page, however many
//! entries there are. A cursor is the last entry's own place in the order, so pages stay right while
//! entries come and go.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::error::{During, FileError};
use super::resolve::{HANDLE_ONLY, kind_of, open_file, stat_name};
use super::staging::{is_dot, is_reserved};
use super::volume::{Kind, Stat, Volume};
use crate::domain::path::RelPath;

/// The most entries one page of a listing holds.
pub(crate) const MAX_PAGE: usize = 10_000;
/// How much of a file is looked at to tell what it is.
const SNIFFED_BYTES: u64 = 8 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) stat: Stat,
    /// Of a symbolic link.
    pub(crate) link: Option<Link>,
    /// Of a regular file, where it was asked for.
    pub(crate) mime: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// As it is written.
    pub(crate) target: String,
    /// Whether it leads to no place outside of the volume; then it is followed.
    pub(crate) is_inside: bool,
    /// What it leads to; `None` for nothing, and for what is outside.
    pub(crate) kind: Option<Kind>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    pub(crate) limit: usize,
    pub(crate) cursor: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) entries: Vec<Entry>,
    /// Where the next page begins; `None` on the last one.
    pub(crate) next: Option<String>,
}

impl Volume {
    /// Lists a folder.
    pub(crate) fn list(&self, path: &RelPath, page: &Page) -> Result<Listing, FileError> {
        self.list_entries(path, page, false)
    }

    /// As [`Volume::list`], looking into each file for what it is.
    pub(crate) fn list_with_mime(&self, path: &RelPath, page: &Page) -> Result<Listing, FileError> {
        self.list_entries(path, page, true)
    }

    fn list_entries(&self, path: &RelPath, page: &Page, mime: bool) -> Result<Listing, FileError> {
        let dir = self.open_dir(path)?;
        let after = page.cursor.as_deref().map(SortKey::from_cursor).transpose()?;
        let limit = page.limit.clamp(1, MAX_PAGE);
        let mut keys = first_names(&dir, after.as_ref(), limit + 1).during("list", path)?;
        let has_more = keys.len() > limit;
        keys.truncate(limit);
        let next = if has_more { keys.last().map(SortKey::to_cursor) } else { None };
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            match self.entry(path, &dir, &key.name, mime) {
                Ok(entry) => entries.push(entry),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).during("list", path),
            }
        }
        Ok(Listing { entries, next })
    }

    fn entry(
        &self,
        folder: &RelPath,
        dir: &OwnedFd,
        name: &[u8],
        mime: bool,
    ) -> Result<Entry, Errno> {
        let stat = Stat::of(&stat_name(dir, name)?);
        let is_link = stat.kind == Kind::Symlink;
        let link = if is_link { self.link(folder, dir, name)? } else { None };
        let mime = if mime && stat.kind == Kind::File { mime_of(dir, name) } else { None };
        Ok(Entry { name: String::from_utf8_lossy(name).into_owned(), stat, link, mime })
    }

    fn link(&self, folder: &RelPath, dir: &OwnedFd, name: &[u8]) -> Result<Option<Link>, Errno> {
        let target = match rustix::fs::readlinkat(dir, name, Vec::new()) {
            Err(Errno::INVAL) => return Ok(None),
            target => target?.to_string_lossy().into_owned(),
        };
        let path = std::str::from_utf8(name).ok();
        let path = path.and_then(|name| RelPath::parse_non_empty(name).ok());
        let path = path.and_then(|name| folder.join(&name).ok());
        // The kernel says where it leads, as it would to whoever follows it.
        let found = path.map(|path| self.resolver.open(self.root(), &path, HANDLE_ONLY));
        let (is_inside, kind) = match found {
            Some(Ok(handle)) => (true, Some(Stat::of(&rustix::fs::fstat(&handle)?).kind)),
            Some(Err(Errno::NOENT | Errno::NOTDIR)) => (true, None),
            Some(Err(_)) | None => (false, None),
        };
        Ok(Some(Link { target, is_inside, kind }))
    }
}

/// What a file is, told by its beginning and, where that does not tell, by its name.
fn mime_of(dir: &OwnedFd, name: &[u8]) -> Option<String> {
    let (file, _) = open_file(dir.as_fd(), name).ok()?;
    let mut start = Vec::new();
    file.take(SNIFFED_BYTES).read_to_end(&mut start).ok()?;
    Some(mime(&start, &String::from_utf8_lossy(name)).to_owned())
}

fn mime(start: &[u8], name: &str) -> &'static str {
    let by_name = mime_guess::from_path(name).first_raw();
    let by_content = infer::get(start).map(|kind| kind.mime_type());
    let is_text = !start.contains(&0) && is_text(start);
    match (by_content, by_name) {
        // A zip is what many formats are made of; the name tells which.
        (Some("application/zip"), Some(named)) if named.starts_with("application/") => named,
        (Some(known), _) => known,
        (None, Some(named)) if is_text || !named.starts_with("text/") => named,
        (None, _) if is_text => "text/plain",
        (None, _) => "application/octet-stream",
    }
}

/// A character may be cut where we stopped to read.
fn is_text(start: &[u8]) -> bool {
    match std::str::from_utf8(start) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none() && start.len() - error.valid_up_to() < 4,
    }
}

/// Where an entry stands in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SortKey {
    is_folder: bool,
    name: Vec<u8>,
}

impl Ord for SortKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for SortKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl SortKey {
    /// As it is compared: folders first, then the bytes of the name.
    fn place(&self) -> (bool, &[u8]) {
        (!self.is_folder, &self.name)
    }

    fn to_cursor(&self) -> String {
        let mark = if self.is_folder { b"d" } else { b"f" };
        URL_SAFE_NO_PAD.encode([mark.as_slice(), &self.name].concat())
    }

    fn from_cursor(cursor: &str) -> Result<Self, FileError> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| FileError::InvalidCursor)?;
        match bytes.split_first() {
            Some((b'd', name)) => Ok(Self { is_folder: true, name: name.to_vec() }),
            Some((b'f', name)) => Ok(Self { is_folder: false, name: name.to_vec() }),
            _ => Err(FileError::InvalidCursor),
        }
    }
}

/// The first `count` names after `after`, in order.
fn first_names(
    dir: &OwnedFd,
    after: Option<&SortKey>,
    count: usize,
) -> Result<Vec<SortKey>, Errno> {
    let mut first: BinaryHeap<SortKey> = BinaryHeap::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_dot(name) || is_reserved(name.to_bytes()) {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match stat_name(dir, name) {
                Ok(raw) => kind_of(&raw),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            },
            known => known,
        };
        let place = (kind != FileType::Directory, name.to_bytes());
        let is_seen = after.is_some_and(|after| place <= after.place());
        let is_late =
            first.len() >= count && first.peek().is_some_and(|last| place >= last.place());
        // Most names of a large folder are neither on this page nor kept for it.
        if is_seen || is_late {
            continue;
        }
        first.push(SortKey { is_folder: !place.0, name: name.to_bytes().to_vec() });
        if first.len() > count {
            first.pop();
        }
    }
    Ok(first.into_sorted_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_content_and_then_by_its_name() {
        let png = b"\x89PNG\r\n\x1a\n____";
        let zip = b"PK\x03\x04____________";
        for (start, name, want) in [
            (&png[..], "a.png", "image/png"),
            (png, "innocent.txt", "image/png"),
            (zip, "world.zip", "application/zip"),
            (zip, "plugin.jar", "application/java-archive"),
            (zip, "cat.png", "application/zip"),
            (b"a: 1", "config.json", "application/json"),
            (b"a: 1", "noname", "text/plain"),
            ("h\u{e4}".as_bytes(), "page.html", "text/html"),
            (b"h\xc3", "cut.txt", "text/plain"),
            (b"\x00\x01\x02", "evil.txt", "application/octet-stream"),
            (b"\x00\x01\x02", "level.dat", "application/octet-stream"),
            (b"", "empty", "text/plain"),
        ] {
            assert_eq!(mime(start, name), want, "{name}");
        }
    }
}
