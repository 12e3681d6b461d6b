//! Putting an archive's entries into a staging folder, and refusing what must not be.
//!
//! No entry gets anywhere but below the staging folder: parents are opened step by step without
//! following links, files are made new, and links are made only where they lead to something inside.
//! Every cap is checked against what is really written.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::unpack::Unpacked;
use super::{ArchiveLimits, Head, HeadKind, reading};
use crate::domain::path::RelPath;
use crate::files::content::{CHUNK_BYTES, create_new};
use crate::files::error::{During, FileError, refuse_reserved};
use crate::files::progress::Progress;
use crate::files::resolve::{
    DIRECTORY, Owner, Resolver, give_name_to, give_to, kind_of, stat_name,
};
use crate::files::tree::modified_at;
use crate::files::volume::Volume;

/// Content below this is never a bomb, whatever its ratio.
const RATIO_FREE_BYTES: u64 = 64 << 20;
/// Where containers see their volume. Absolute links into it stay inside for them, and tools such as
/// SteamCMD make them.
const CONTAINER_HOMES: [&str; 2] = ["/home/container/", "/mnt/server/"];

pub(super) struct Extractor<'a> {
    tree: OwnedFd,
    owner: Option<Owner>,
    limits: ArchiveLimits,
    archive_bytes: u64,
    progress: &'a Progress,
    content_bytes: u64,
    entries: u64,
    skipped: u64,
    /// The folder of the last entry: archives keep neighbours together.
    last_parent: Option<(RelPath, OwnedFd)>,
    /// What folders are to look like once nothing more is put into them.
    folders: Vec<(RelPath, u32, Option<i64>)>,
    /// Links that were left out: nothing may be below them.
    left_out: HashSet<RelPath>,
}

impl<'a> Extractor<'a> {
    /// Extracts into `tree`, an empty folder that nobody else can reach.
    pub(super) fn new(
        tree: OwnedFd,
        volume: &Volume,
        archive_bytes: u64,
        progress: &'a Progress,
    ) -> Self {
        Self {
            tree,
            owner: volume.owner,
            limits: volume.limits,
            archive_bytes,
            progress,
            content_bytes: 0,
            entries: 0,
            skipped: 0,
            last_parent: None,
            folders: Vec::new(),
            left_out: HashSet::new(),
        }
    }

    pub(super) fn tree(&self) -> &OwnedFd {
        &self.tree
    }

    pub(super) fn progress(&self) -> &Progress {
        self.progress
    }

    pub(super) fn outcome(&self) -> Unpacked {
        Unpacked { entries: self.entries, skipped: self.skipped }
    }

    pub(super) fn limits(&self) -> &ArchiveLimits {
        &self.limits
    }

    /// Takes one entry; `data` is its content, of which only a file reads any.
    pub(super) fn add(&mut self, head: &Head, data: &mut dyn Read) -> Result<(), FileError> {
        self.progress.check()?;
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(FileError::ArchiveLimit { what: "the number of entries" });
        }
        let path = self.entry_path(&head.name)?;
        if path.is_root() {
            // `./` stands at the head of many archives; anything else there has no name.
            return match head.kind {
                HeadKind::Folder => Ok(()),
                _ => Err(FileError::corrupt("an entry has no name")),
            };
        }
        match &head.kind {
            HeadKind::Folder => {
                self.folder(&path)?;
                self.folders.push((path, head.mode, head.modified_at_seconds));
            }
            HeadKind::File => self.file(&path, head, data)?,
            HeadKind::Symlink(target) => self.symlink(&path, head, target)?,
            HeadKind::HardLink(target) => self.hard_link(&path, target)?,
            HeadKind::Other => self.skipped += 1,
        }
        self.progress.add_entry();
        Ok(())
    }

    fn entry_path(&self, name: &[u8]) -> Result<RelPath, FileError> {
        let name = String::from_utf8_lossy(name);
        let unsafe_name = |reason: String| FileError::corrupt(format!("{name:?}: {reason}"));
        let path = RelPath::parse(&name).map_err(|invalid| unsafe_name(invalid.to_string()))?;
        if path.names().count() > self.limits.max_depth {
            return Err(FileError::ArchiveLimit { what: "the depth of folders" });
        }
        refuse_reserved(&path).map_err(|refused| unsafe_name(refused.to_string()))?;
        Ok(path)
    }

    fn folder(&mut self, path: &RelPath) -> Result<OwnedFd, FileError> {
        let mut above = path.clone();
        while !self.left_out.is_empty() && !above.is_root() {
            if self.left_out.contains(&above) {
                return Err(FileError::corrupt(format!("{above} is a link and a folder in it")));
            }
            above = above.split_last().map_or_else(RelPath::root, |(parent, _)| parent);
        }
        match Resolver::Steps.open_or_make(self.tree.as_fd(), path, self.owner) {
            Err(FileError::NotADirectory { .. } | FileError::Escape { .. }) => {
                Err(FileError::corrupt(format!("{path} is a folder and something else in it")))
            }
            outcome => outcome,
        }
    }

    /// The open folder that holds `path`, and the last name.
    fn parent<'p>(&mut self, path: &'p RelPath) -> Result<(&OwnedFd, &'p str), FileError> {
        let Some((parent, name)) = path.split_last() else {
            return Err(FileError::corrupt("an entry has no name"));
        };
        if self.last_parent.as_ref().is_none_or(|(last, _)| *last != parent) {
            let dir = self.folder(&parent)?;
            self.last_parent = Some((parent, dir));
        }
        let (_, dir) = self.last_parent.as_ref().expect("invariant: set just above");
        Ok((dir, name))
    }

    /// Makes room for an entry: of two with one name the later counts, as in tar.
    fn parent_with_room<'p>(
        &mut self,
        path: &'p RelPath,
    ) -> Result<(&OwnedFd, &'p str), FileError> {
        let (dir, name) = self.parent(path)?;
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => {
                return Err(FileError::corrupt(format!(
                    "{path} is a folder and something else in it"
                )));
            }
            Err(errno) => return Err(errno).during("unpack", path),
        }
        self.left_out.remove(path);
        self.parent(path)
    }

    fn file(&mut self, path: &RelPath, head: &Head, data: &mut dyn Read) -> Result<(), FileError> {
        let (owner, progress) = (self.owner, self.progress);
        let (dir, name) = self.parent_with_room(path)?;
        let mut file = create_new(dir, name).during("unpack", path)?;
        self.each_chunk(data, |chunk| {
            progress.spend(chunk.len() as u64)?;
            file.write_all(chunk).during("unpack", path)
        })?;
        give_to(owner, &file).during("unpack", path)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(head.mode & 0o777)).during("unpack", path)?;
        if let Some(seconds) = head.modified_at_seconds {
            rustix::fs::futimens(&file, &modified_at(seconds, 0)).during("unpack", path)?;
        }
        Ok(())
    }

    /// Reads what nobody wants, within the same limits.
    pub(super) fn drain(&mut self, data: &mut dyn Read) -> Result<(), FileError> {
        self.each_chunk(data, |_| Ok(()))
    }

    fn each_chunk(
        &mut self,
        data: &mut dyn Read,
        mut take: impl FnMut(&[u8]) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = match data.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(reading(error)),
            };
            self.count_content(count as u64)?;
            take(&buffer[..count])?;
        }
    }

    fn count_content(&mut self, bytes: u64) -> Result<(), FileError> {
        self.progress.check()?;
        self.content_bytes = self.content_bytes.saturating_add(bytes);
        if self.content_bytes > self.limits.max_total_bytes {
            return Err(FileError::ArchiveLimit { what: "the size of its content" });
        }
        let allowed = self.archive_bytes.saturating_mul(self.limits.max_ratio);
        if self.content_bytes > allowed.saturating_add(RATIO_FREE_BYTES) {
            return Err(FileError::ArchiveLimit { what: "the compression ratio" });
        }
        Ok(())
    }

    fn symlink(&mut self, path: &RelPath, head: &Head, target: &[u8]) -> Result<(), FileError> {
        let owner = self.owner;
        let (dir, name) = self.parent_with_room(path)?;
        if !stays_inside(path, target) {
            self.left_out.insert(path.clone());
            self.skipped += 1;
            return Ok(());
        }
        rustix::fs::symlinkat(target, dir, name).during("unpack", path)?;
        give_name_to(owner, dir, name).during("unpack", path)?;
        if let Some(seconds) = head.modified_at_seconds {
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(dir, name, &modified_at(seconds, 0), nofollow)
                .during("unpack", path)?;
        }
        Ok(())
    }

    fn hard_link(&mut self, path: &RelPath, target: &[u8]) -> Result<(), FileError> {
        let target = self.entry_path(target)?;
        if target == *path {
            return Err(FileError::corrupt(format!("{path} is a link to itself")));
        }
        let no_file = || FileError::corrupt(format!("{path} is a link to no file in it"));
        let (parent, target_name) = target.split_last().ok_or_else(no_file)?;
        let target_dir =
            Resolver::Steps.open(self.tree.as_fd(), &parent, DIRECTORY).map_err(|_| no_file())?;
        let stat = stat_name(&target_dir, target_name).map_err(|_| no_file())?;
        if kind_of(&stat) != FileType::RegularFile {
            return Err(no_file());
        }
        let (dir, name) = self.parent_with_room(path)?;
        rustix::fs::linkat(&target_dir, target_name, dir, name, AtFlags::empty())
            .during("unpack", path)
    }

    /// Gives the folders their permissions and times, children before parents.
    pub(super) fn finish(&mut self) -> Result<(), FileError> {
        self.last_parent = None;
        let mut folders = std::mem::take(&mut self.folders);
        folders.sort_by(|one, other| other.0.cmp(&one.0));
        for (path, mode, modified_at_seconds) in folders {
            let dir = Resolver::Steps
                .open(self.tree.as_fd(), &path, DIRECTORY)
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
