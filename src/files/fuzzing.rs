//! The door for the fuzz targets in `tests/fuzz/`, which is only there when they are built.
//!
//! Each call is one trial; it panics if a promise is broken. Checksums are not compared in such a build
//! (a fuzzer would not get past them).

use std::cell::OnceCell;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use super::archive::ArchiveLimits;
use super::archive::unpack::UnpackRequest;
use super::listing::Page;
use super::progress::Progress;
use super::resolve::Resolver;
use super::volume::Volume;
use crate::domain::path::RelPath;

/// A volume in memory, with something beside it that nobody may touch.
struct Playground {
    folder: PathBuf,
    volume: Volume,
}

impl Playground {
    fn new() -> Self {
        let folder =
            std::env::var_os("LIGHTD_FUZZ_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = folder.join(format!("lightd-fuzz-{}", std::process::id()));
        fs::create_dir_all(folder.join("volume")).expect("a folder in memory");
        let mut secret = fs::File::create(folder.join("secret")).expect("a file");
        secret.write_all(b"secret").expect("a file");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder.join("volume"), flags, Mode::empty()).expect("open");
        let limits = ArchiveLimits { max_entries: 1000, max_total_bytes: 4 << 20, max_ratio: 1000 };
        let volume = Volume::alone(root, Resolver::detect(), limits);
        Self { folder, volume }
    }

    fn names(&self, below: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join(below)).expect("a folder").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn unpack(&self, archive: &[u8]) {
        let file = self.folder.join("volume/archive.gz");
        fs::File::create(&file).and_then(|mut file| file.write_all(archive)).expect("write");
        let path = |text| RelPath::parse(text).expect("a path");
        let progress = Progress::default();
        let page = Page { limit: 10, cursor: None };
        drop(self.volume.list_archive(&path("archive.gz"), &page, &progress));
        let request = UnpackRequest {
            archive: path("archive.gz"),
            destination: path("out"),
            entries: Vec::new(),
            name: None,
        };
        let outcome = self.volume.unpack(&request, &progress);
        assert_eq!(self.names(""), ["secret", "volume"]);
        assert_eq!(fs::read(self.folder.join("secret")).expect("read"), b"secret");
        match outcome {
            Ok(_) => {
                assert_eq!(self.names("volume"), ["archive.gz", "out"]);
                self.volume.delete(&[path("out")], &progress).expect("delete");
            }
            Err(error) => assert_eq!(self.names("volume"), ["archive.gz"], "{error}"),
        }
    }
}

thread_local! {
    static PLAYGROUND: OnceCell<Playground> = const { OnceCell::new() };
}

/// Any bytes as an archive.
pub fn unpack(archive: &[u8]) {
    PLAYGROUND.with(|playground| playground.get_or_init(Playground::new).unpack(archive));
}

/// Any bytes as a tar, made to begin like one.
pub fn unpack_tar(archive: &[u8]) {
    let mut archive = archive.to_vec();
    archive.resize(archive.len().next_multiple_of(512).max(1024), 0);
    let mut header = tar::Header::from_byte_slice(&archive[..512]).clone();
    header.set_cksum();
    archive[..512].copy_from_slice(header.as_bytes());
    unpack(&archive);
}

/// Any text as a path in a volume.
pub fn path(text: &str) {
    let Ok(path) = RelPath::parse(text) else { return };
    assert!(path.as_str().len() <= 4095 && !path.as_str().contains('\0'));
    for name in path.names() {
        assert!(!name.is_empty() && name != "." && name != ".." && !name.contains('/'));
        assert!(name.len() <= 255);
    }
    assert_eq!(RelPath::parse(path.as_str()).as_ref(), Ok(&path), "read again it is another");
    assert!(path.as_path().is_relative() && path.is_within(&RelPath::root()));
    if let Some((parent, name)) = path.split_last() {
        let joined = parent.as_path().join(name);
        assert_eq!((joined.as_path(), path.is_within(&parent)), (path.as_path(), true));
    }
}
