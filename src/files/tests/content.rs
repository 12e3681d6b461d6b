use std::io::{self, Read};
use std::process::Command;

use super::*;

/// Yields so many bytes and then fails.
struct Breaks(usize);

impl Read for Breaks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("the sender is gone"));
        }
        let count = buffer.len().min(self.0);
        buffer[..count].fill(b'x');
        self.0 -= count;
        Ok(count)
    }
}

#[test]
fn a_write_makes_parents_keeps_the_mode_and_gives_to_the_owner() {
    let scratch = Scratch::new();
    assert_eq!(scratch.write("a/b/file", b"one").expect("write"), 3);
    let path = scratch.path("a/b/file");
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o644);
    set_mode(&path, 0o4750);
    scratch.write("a/b/file", b"two").expect("write");
    let meta = fs::metadata(&path).expect("stat");
    assert_eq!((scratch.read("a/b/file"), meta.mode() & 0o7777), (b"two".to_vec(), 0o750));
    if is_root() {
        assert_eq!((meta.uid(), meta.gid()), (4321, 4321));
    }
}

#[test]
fn a_write_that_breaks_off_leaves_the_old_file_and_nothing_else() {
    let scratch = Scratch::new();
    scratch.write("file", b"old").expect("write");
    let before = scratch.snapshot("");
    let outcome =
        scratch.volume.write_atomic(&rel("file"), &mut Breaks(300_000), &WriteMode::default());
    assert!(matches!(outcome, Err(FileError::Input { .. })), "{outcome:?}");
    assert_eq!(scratch.snapshot(""), before);
}

#[test]
fn create_only_never_replaces() {
    let scratch = Scratch::new();
    let only = WriteMode { create_only: true, if_match: None };
    let path = rel("file");
    scratch.volume.write_atomic(&path, &mut &b"one"[..], &only).expect("create");
    let outcome = scratch.volume.write_atomic(&path, &mut &b"two"[..], &only);
    assert!(matches!(outcome, Err(FileError::AlreadyExists { .. })), "{outcome:?}");
    assert_eq!(scratch.read("file"), b"one");
}

#[test]
fn if_match_lets_one_of_two_writers_win() {
    let scratch = Scratch::new();
    let path = rel("file");
    let missing = WriteMode { create_only: false, if_match: Some("x".to_owned()) };
    let outcome = scratch.volume.write_atomic(&path, &mut &b""[..], &missing);
    assert!(matches!(outcome, Err(FileError::PreconditionFailed { .. })), "{outcome:?}");
    scratch.write("file", b"start").expect("write");
    let tag = scratch.volume.stat(&path).expect("stat").etag;
    let mode = WriteMode { create_only: false, if_match: Some(tag) };
    let results: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| scratch.volume.write_atomic(&path, &mut &b"changed"[..], &mode))
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("writer")).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
}

#[test]
fn only_files_are_written_and_read() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("dir")).expect("mkdir");
    rustix::fs::mkfifoat(&scratch.volume.root, "pipe", Mode::from_raw_mode(0o600)).expect("fifo");
    std::os::unix::net::UnixListener::bind(scratch.path("socket")).expect("socket");
    for (name, is_folder) in [("dir", true), ("pipe", false), ("socket", false)] {
        let outcomes =
            [scratch.write(name, b"x").err(), scratch.volume.open_read(&rel(name)).err()];
        for outcome in outcomes {
            match outcome {
                Some(FileError::NotAFile { .. }) if is_folder => {}
                Some(FileError::Special { .. }) if !is_folder => {}
                other => panic!("{name}: {other:?}"),
            }
        }
    }
    let root = scratch.volume.open_read(&rel(""));
    assert!(matches!(root, Err(FileError::InvalidPath(_))), "{root:?}");
}

#[test]
fn a_write_to_a_link_goes_where_it_leads_if_that_is_inside() {
    let scratch = Scratch::new();
    put(&scratch.path("real/file"), b"old");
    std::os::unix::fs::symlink("../real/file", scratch.path("real/link")).expect("symlink");
    let secret = scratch.outside().join("secret");
    std::os::unix::fs::symlink(&secret, scratch.path("out")).expect("symlink");
    std::os::unix::fs::symlink("nowhere", scratch.path("dangling")).expect("symlink");
    if Resolver::detect() == Resolver::Kernel {
        scratch.write("real/link", b"new").expect("write");
        assert_eq!(scratch.read("real/file"), b"new");
    }
    assert!(fs::symlink_metadata(scratch.path("real/link")).expect("stat").is_symlink());
    let outcome = scratch.write("out", b"x");
    assert!(matches!(outcome, Err(FileError::Escape { .. })), "{outcome:?}");
    let outcome = scratch.write("dangling", b"x");
    assert!(matches!(outcome, Err(FileError::NotFound { .. })), "{outcome:?}");
    assert_eq!(fs::read(secret).expect("secret"), b"secret");
}

/// A file system of one MiB, unmounted again also when the test fails.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(&at)
            .status()
            .expect("run mount");
        assert!(status.success(), "this test mounts a tmpfs and so needs to be root");
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "could not unmount");
    }
}

#[test]
fn a_full_disk_is_named_and_leaves_the_old_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let disk = SmallDisk::mount(dir.path().to_owned());
    let volume = open_volume(dir.path(), Resolver::detect(), ArchiveLimits::default());
    let write =
        |content: &[u8]| volume.write_atomic(&rel("file"), &mut &*content, &WriteMode::default());
    write(b"old").expect("write");
    let before = snapshot(dir.path());
    let outcome = write(&vec![0; 4 << 20]);
    assert!(matches!(outcome, Err(FileError::NoSpace { .. })), "{outcome:?}");
    assert_eq!(snapshot(dir.path()), before);
    drop(volume);
    drop(disk);
}
