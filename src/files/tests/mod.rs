//! Tests of volumes against real files, with what a container might do to them.

mod advisories;
mod archive;
mod backing;
mod content;
mod gate;
mod hostile;
mod interop;
mod operation;
#[cfg(project_quotas)]
mod project;
mod quota;
mod replica;
mod resumable;
mod search;
mod tree;
mod upload;
mod usage;
mod volume;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::archive::ArchiveLimits;
use super::archive::unpack::UnpackRequest;
use super::content::WriteMode;
use super::error::FileError;
use super::resolve::{Owner, Resolver};
use super::volume::Volume;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;

/// A volume of its own, with a folder beside it that nothing may touch.
struct Scratch {
    dir: tempfile::TempDir,
    volume: Volume,
}

impl Scratch {
    fn new() -> Self {
        Self::with(Resolver::detect(), ArchiveLimits::default())
    }

    fn with(resolver: Resolver, limits: ArchiveLimits) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("volume")).expect("volume");
        fs::create_dir(dir.path().join("outside")).expect("outside");
        put(&dir.path().join("outside/secret"), b"secret");
        let volume = open_volume(&dir.path().join("volume"), resolver, limits);
        Self { dir, volume }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("volume").join(below)
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    fn write(&self, path: &str, content: &[u8]) -> Result<u64, FileError> {
        self.volume
            .write_atomic(&rel(path), &mut &*content, &WriteMode::default())
            .map(|written| written.size)
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn snapshot(&self, below: &str) -> Tree {
        snapshot(&self.path(below))
    }
}

fn open_volume(path: &Path, resolver: Resolver, limits: ArchiveLimits) -> Volume {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).expect("open the volume");
    let owner = Some(Owner { uid: 4321, gid: 4321 });
    Volume { owner, ..Volume::alone(root, resolver, limits) }
}

fn rel(path: &str) -> RelPath {
    RelPath::parse(path).expect("a valid path")
}

/// All of an archive.
fn unpacking(archive: &str, destination: &str) -> UnpackRequest {
    let (archive, destination) = (rel(archive), rel(destination));
    UnpackRequest { archive, destination, entries: Vec::new(), name: None }
}

fn put(path: &Path, content: &[u8]) {
    use std::io::Write as _;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).expect("parents");
    }
    let mut file = fs::File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.write_all(content).expect("write");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What is at each path: kind, mode, whole seconds of modification, content or link target.
type Tree = BTreeMap<String, (char, u32, i64, Vec<u8>)>;

fn snapshot(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("read a folder") {
            let path = entry.expect("entry").path();
            let meta = fs::symlink_metadata(&path).expect("stat");
            let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            let (kind, content) = if meta.is_dir() {
                todo.push(path.clone());
                ('d', Vec::new())
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).expect("link");
                ('l', target.as_os_str().as_encoded_bytes().to_vec())
            } else if meta.is_file() {
                ('f', fs::read(&path).expect("read"))
            } else {
                ('?', Vec::new())
            };
            tree.insert(name, (kind, meta.mode() & 0o7777, meta.mtime(), content));
        }
    }
    tree
}
