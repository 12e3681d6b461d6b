//! What is in an archive, without unpacking it.
//!
//! A page is read off the archive's beginning, as far as the page reaches; what was passed over counts
//! against the same limits as when it is unpacked. Names are shown as they are: one that would be
//! refused on unpacking is no reason not to show it.

use std::ops::ControlFlow;

use super::streams::{Opened, open, without_ending};
use super::tar_read::read_tar;
use super::zip_read::Zip;
use super::{Head, HeadKind, name_text};
use crate::domain::path::RelPath;
use crate::domain::units::UnixSeconds;
use crate::files::error::FileError;
use crate::files::listing::{MAX_PAGE, Page};
use crate::files::progress::{Progress, Tracked};
use crate::files::volume::{Kind, Stat, Volume};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ArchiveEntry {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// As the archive claims; `None` where only reading all of it would tell.
    pub(crate) size: Option<u64>,
    pub(crate) mode: u32,
    pub(crate) modified_at: Option<UnixSeconds>,
    /// Where a link leads, or which other entry this is the same file as.
    pub(crate) target: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct ArchiveListing {
    /// As `compress` names formats; a single compressed file's is that of its compression.
    pub(crate) format: &'static str,
    pub(crate) entries: Vec<ArchiveEntry>,
    /// Where the next page begins; `None` on the last one.
    pub(crate) next: Option<String>,
}

impl Volume {
    /// Lists a page of an archive's entries, in the order in which they stand in it.
    pub(crate) fn list_archive(
        &self,
        archive: &RelPath,
        page: &Page,
        progress: &Progress,
    ) -> Result<ArchiveListing, FileError> {
        let from = match page.cursor.as_deref() {
            Some(cursor) => cursor.parse().map_err(|_| FileError::InvalidCursor)?,
            None => 0,
        };
        let (file, stat) = self.open_read(archive)?;
        progress.set_total_bytes(stat.size);
        let file = Tracked { inner: file, progress: progress.clone() };
        let name = archive.names().next_back().unwrap_or_default();
        let limit = page.limit.clamp(1, MAX_PAGE);
        let mut lister = Lister { from, limit, seen: 0, entries: Vec::new() };
        let format = open(file, stat.size, name, &self.limits, |opened| {
            lister.read(opened, (name, &stat), |seen| {
                progress.check()?;
                self.limits.check_entries(seen)
            })
        })?;
        let has_more = lister.entries.len() > limit;
        lister.entries.truncate(limit);
        let next = has_more.then(|| (from + limit as u64).to_string());
        Ok(ArchiveListing { format, entries: lister.entries, next })
    }
}

struct Lister {
    from: u64,
    limit: usize,
    /// How many entries there were, which is what a cursor counts.
    seen: u64,
    entries: Vec<ArchiveEntry>,
}

impl Lister {
    /// Goes through an archive as far as the page reaches, and says what it is. `check` is asked at each
    /// entry.
    fn read(
        &mut self,
        opened: Opened<'_>,
        (name, stat): (&str, &Stat),
        check: impl Fn(u64) -> Result<(), FileError>,
    ) -> Result<&'static str, FileError> {
        let mut see = |head: &Head| {
            let flow = self.see(head);
            check(self.seen).map(|()| flow)
        };
        match opened {
            Opened::Zip(file) => {
                let zip = Zip::open(file)?;
                zip.each(&mut |member| match member.is_link {
                    true => see(&zip.link(&member)?),
                    false => see(&member.head),
                })?;
                Ok("zip")
            }
            Opened::Tar(format, stream) => {
                read_tar(stream, &mut |head, _| see(head))?;
                Ok(format.as_str())
            }
            Opened::Single(compression, _) => {
                let name = without_ending(name, compression).unwrap_or(name);
                self.single(name, stat.mode, stat.modified_at);
                Ok(compression.ending())
            }
        }
    }

    fn see(&mut self, head: &Head) -> ControlFlow<()> {
        let name = name_text(&head.name);
        let name = match RelPath::parse(&name) {
            // What `./` stands for at the head of many archives.
            Ok(path) if path.is_root() => return ControlFlow::Continue(()),
            Ok(path) => path.as_str().to_owned(),
            Err(_) => name.into_owned(),
        };
        self.seen += 1;
        if self.seen > self.from {
            self.entries.push(entry(name, head));
        }
        // One more than asked for says that there is another page.
        match self.entries.len() > self.limit {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn single(&mut self, name: &str, mode: u32, modified_at: UnixSeconds) {
        if self.from > 0 {
            return;
        }
        self.entries.push(ArchiveEntry {
            name: name.to_owned(),
            kind: Kind::File,
            size: None,
            mode: mode & 0o777,
            modified_at: Some(modified_at),
            target: None,
        });
    }
}

fn entry(name: String, head: &Head) -> ArchiveEntry {
    let (kind, target) = match &head.kind {
        HeadKind::Folder => (Kind::Directory, None),
        HeadKind::File => (Kind::File, None),
        HeadKind::HardLink(target) => (Kind::File, Some(target)),
        HeadKind::Symlink(target) => (Kind::Symlink, Some(target)),
        HeadKind::Other => (Kind::Other, None),
    };
    let is_file = matches!(head.kind, HeadKind::File);
    ArchiveEntry {
        name,
        kind,
        size: Some(if is_file { head.size } else { 0 }),
        mode: head.mode & 0o777,
        modified_at: head.modified_at_seconds.map(UnixSeconds),
        target: target.map(|target| name_text(target).into_owned()),
    }
}
