//! Putting an archive's entries into a staging folder, and refusing what must not be.
//!
//! No entry gets anywhere but below the staging folder: parents are opened step by step without
//! following links, files are made new, and links are made only where they lead to something inside.
//! Every cap is checked against what is really written.

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::room::{Near, Room, nameless};
use super::unpack::Unpacked;
use super::{Head, HeadKind, name_text};
use crate::domain::path::RelPath;
use crate::files::content::create_new;
use crate::files::error::{During, FileError, refuse_reserved};
use crate::files::progress::Progress;
use crate::files::resolve::{DIRECTORY, Resolver, give_name_to, kind_of, stat_name};
use crate::files::tree::modified_at;
use crate::files::volume::Volume;
use crate::files::walk::MAX_DEPTH;

/// Where containers see their volume. Absolute links into it stay inside for them, and tools such as
/// SteamCMD make them.
const CONTAINER_HOMES: [&str; 2] = ["/home/container/", "/mnt/server/"];
/// What is remembered of folders and links until the end, at most.
const MAX_REMEMBERED_BYTES: usize = 32 << 20;
const REMEMBERED_ENTRY_BYTES: usize = 96;

/// Takes an archive's entries one after the other.
pub(super) struct Extractor<'a> {
    room: Room<'a>,
    near: Near,
    seen: u64,
    entries: u64,
    skipped: u64,
    /// What of the archive is wanted, and whether it was met; all of it if there is nothing.
    wanted: Vec<(RelPath, bool)>,
    /// What folders are to look like once nothing more is put into them.
    folders: Vec<(RelPath, u32, Option<i64>)>,
    /// Links that were left out: nothing may be below them.
    left_out: HashSet<RelPath>,
    remembered_bytes: usize,
}

impl<'a> Extractor<'a> {
    /// Extracts into `tree`, an empty folder that nobody else can reach, what is `wanted`.
    pub(super) fn new(
        tree: OwnedFd,
        volume: &Volume,
        archive_bytes: u64,
        wanted: &[RelPath],
        progress: &'a Progress,
    ) -> Self {
        Self {
            room: Room::new(tree, volume, archive_bytes, progress),
            near: Near::default(),
            seen: 0,
            entries: 0,
            skipped: 0,
            wanted: wanted.iter().map(|path| (path.clone(), false)).collect(),
            folders: Vec::new(),
            left_out: HashSet::new(),
            remembered_bytes: 0,
        }
    }

    pub(super) fn tree(&self) -> &OwnedFd {
        &self.room.tree
    }

    pub(super) fn room(&self) -> &Room<'a> {
        &self.room
    }

    pub(super) fn left_out(&self) -> &HashSet<RelPath> {
        &self.left_out
    }

    pub(super) fn outcome(&self) -> Unpacked {
        Unpacked { entries: self.entries, skipped: self.skipped }
    }

    /// Counts an entry and says where it goes; nowhere if it is not wanted.
    pub(super) fn admit(&mut self, head: &Head) -> Result<Option<RelPath>, FileError> {
        self.room.progress.check()?;
        self.seen += 1;
        self.room.limits.check_entries(self.seen)?;
        let path = self.entry_path(&head.name)?;
        if path.is_root() {
            // `./` stands at the head of many archives; anything else there has no name.
            return match head.kind {
                HeadKind::Folder => {
                    self.entries += u64::from(self.wanted.is_empty());
                    Ok(None)
                }
                _ => Err(nameless()),
            };
        }
        for (wanted, is_met) in &mut self.wanted {
            *is_met |= path.is_within(wanted);
        }
        let is_wanted = self.wants(&path);
        self.entries += u64::from(is_wanted);
        Ok(is_wanted.then_some(path))
    }

    fn wants(&self, path: &RelPath) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|(wanted, _)| path.is_within(wanted))
    }

    /// As [`Extractor::admit`], of what was counted before.
    pub(super) fn admitted(&self, head: &Head) -> Result<Option<RelPath>, FileError> {
        let path = self.entry_path(&head.name)?;
        Ok(Some(path).filter(|path| !path.is_root() && self.wants(path)))
    }

    /// Takes one entry; `data` is its content, of which only a file reads any.
    pub(super) fn add(&mut self, head: &Head, data: &mut dyn Read) -> Result<(), FileError> {
        match self.admit(head)? {
            Some(path) => self.put(&path, head, data),
            None => Ok(()),
        }
    }

    /// Puts what was admitted in its place.
    pub(super) fn put(
        &mut self,
        path: &RelPath,
        head: &Head,
        data: &mut dyn Read,
    ) -> Result<(), FileError> {
        match &head.kind {
            HeadKind::Folder => {
                self.remember(path)?;
                self.room.folder(path, &self.left_out)?;
                self.folders.push((path.clone(), head.mode, head.modified_at_seconds));
            }
            HeadKind::File => {
                let file = self.make(path, |dir, name| create_new(dir, name))?;
                return self.room.fill(&file, &mut self.near.buffer, (path, head), data);
            }
            HeadKind::Symlink(target) => self.symlink(path, head, target)?,
            HeadKind::HardLink(target) => self.hard_link(path, target)?,
            HeadKind::Other => self.skipped += 1,
        }
        self.room.progress.add_entry();
        Ok(())
    }

    fn entry_path(&self, name: &[u8]) -> Result<RelPath, FileError> {
        let name = name_text(name);
        let unsafe_name = |reason: String| FileError::corrupt(format!("{name:?}: {reason}"));
        let path = RelPath::parse(&name).map_err(|invalid| unsafe_name(invalid.to_string()))?;
        if path.names().count() > MAX_DEPTH {
            return Err(FileError::ArchiveLimit { what: "the depth of folders" });
        }
        refuse_reserved(&path).map_err(|refused| unsafe_name(refused.to_string()))?;
        Ok(path)
    }

    /// Accounts for what stays in memory until the end.
    fn remember(&mut self, path: &RelPath) -> Result<(), FileError> {
        self.remembered_bytes += path.as_str().len() + REMEMBERED_ENTRY_BYTES;
        if self.remembered_bytes > MAX_REMEMBERED_BYTES {
            return Err(FileError::ArchiveLimit { what: "the number of folders" });
        }
        Ok(())
    }

    /// Makes something under a name. Of two with one name the later counts, as in tar.
    fn make<T>(
        &mut self,
        path: &RelPath,
        make: impl Fn(&OwnedFd, &str) -> Result<T, Errno>,
    ) -> Result<T, FileError> {
        self.left_out.remove(path);
        let (dir, name) = self.room.parent(&mut self.near.parent, path, &self.left_out)?;
        match make(dir, name) {
            Err(Errno::EXIST) => {}
            outcome => return outcome.during("unpack", path),
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => make(dir, name).during("unpack", path),
            Err(Errno::ISDIR) => {
                Err(FileError::corrupt(format!("{path} is a folder and something else in it")))
            }
            Err(errno) => Err(errno).during("unpack", path),
        }
    }

    fn symlink(&mut self, path: &RelPath, head: &Head, target: &[u8]) -> Result<(), FileError> {
        if !stays_inside(path, target) {
            self.remember(path)?;
            self.remove(path)?;
            self.left_out.insert(path.clone());
            self.skipped += 1;
            return Ok(());
        }
        let owner = self.room.owner;
        self.make(path, |dir, name| {
            rustix::fs::symlinkat(target, dir, name)?;
            give_name_to(owner, dir, name)?;
            let Some(seconds) = head.modified_at_seconds else { return Ok(()) };
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(dir, name, &modified_at(seconds, 0), nofollow)
        })
    }

    /// Removes what an earlier entry has put there.
    fn remove(&mut self, path: &RelPath) -> Result<(), FileError> {
        let (dir, name) = self.room.parent(&mut self.near.parent, path, &self.left_out)?;
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                Err(FileError::corrupt(format!("{path} is a folder and something else in it")))
            }
            Err(errno) => Err(errno).during("unpack", path),
        }
    }

    fn hard_link(&mut self, path: &RelPath, target: &[u8]) -> Result<(), FileError> {
        let target = self.entry_path(target)?;
        if target == *path {
            return Err(FileError::corrupt(format!("{path} is a link to itself")));
        }
        if !self.wants(&target) {
            let reason = format!("{path} is the same file as {target}: both must be asked for");
            return Err(FileError::UnsupportedArchive { reason });
        }
        let no_file = || FileError::corrupt(format!("{path} is a link to no file in it"));
        let (parent, target_name) = target.split_last().ok_or_else(no_file)?;
        let target_dir = Resolver::Steps
            .open(self.room.tree.as_fd(), &parent, DIRECTORY)
            .map_err(|_| no_file())?;
        let stat = stat_name(&target_dir, target_name).map_err(|_| no_file())?;
        if kind_of(&stat) != FileType::RegularFile {
            return Err(no_file());
        }
        self.make(path, |dir, name| {
            rustix::fs::linkat(&target_dir, target_name, dir, name, AtFlags::empty())
        })
    }

    /// Gives the folders their permissions and times, children before parents. All that was asked for
    /// must have been met.
    pub(super) fn finish(&mut self) -> Result<(), FileError> {
        if let Some((path, _)) = self.wanted.iter().find(|(_, is_met)| !is_met) {
            return Err(FileError::NotFound { path: format!("{path} in the archive") });
        }
        self.near.parent = None;
        let mut folders = std::mem::take(&mut self.folders);
        folders.sort_by(|one, other| other.0.cmp(&one.0));
        for (path, mode, modified_at_seconds) in folders {
            let dir = Resolver::Steps
                .open(self.room.tree.as_fd(), &path, DIRECTORY)
                .during("unpack", &path)?;
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode & 0o777)).during("unpack", &path)?;
            if let Some(seconds) = modified_at_seconds {
                rustix::fs::futimens(&dir, &modified_at(seconds, 0)).during("unpack", &path)?;
            }
        }
        Ok(())
    }
}

/// Whether a link at `path` leads to something below the archive's own root. `..` is taken only at the
/// front, where it counts from a folder that is known to be no link itself.
fn stays_inside(path: &RelPath, target: &[u8]) -> bool {
    let Ok(target) = std::str::from_utf8(target) else { return false };
    if target.is_empty() || target.contains('\0') {
        return false;
    }
    if let Some(below) = CONTAINER_HOMES.iter().find_map(|home| target.strip_prefix(home)) {
        return RelPath::parse(below).is_ok();
    }
    if target.starts_with('/') {
        return false;
    }
    let mut names = target.split('/').filter(|name| !name.is_empty() && *name != ".").peekable();
    let mut ups = 0;
    while names.next_if_eq(&"..").is_some() {
        ups += 1;
    }
    ups < path.names().count() && !names.any(|name| name == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_kept_only_where_they_stay_inside() {
        for (path, target, want) in [
            ("a", "b", true),
            ("d/a", "../b", true),
            ("d/a", "../../b", false),
            ("a", "..", false),
            ("d/a", "..", true),
            ("a", "/etc/passwd", false),
            ("a", "/home/container/x", true),
            ("a", "/home/container/../x", false),
            ("a", "/home/containerx", false),
            ("a", "x/../../b", false),
            ("a", "./b//c", true),
            ("a", "", false),
        ] {
            let path = RelPath::parse(path).expect("path");
            assert_eq!(stays_inside(&path, target.as_bytes()), want, "{path} -> {target}");
        }
    }
}
