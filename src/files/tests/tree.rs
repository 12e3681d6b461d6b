use std::os::fd::{AsFd as _, OwnedFd};

use super::super::resolve::open_folder;
use super::*;
use crate::files::Progress;

const LONG_AGO: i64 = 1_600_000_001;

fn set_mtime(path: &Path, seconds: i64) {
    let times = crate::files::tree::modified_at(seconds, 0);
    let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, nofollow).expect("set the time");
}

/// A tree with one of everything that is to be kept.
pub(super) fn plant(scratch: &Scratch, below: &str) {
    let at = |path: &str| scratch.path(&format!("{below}/{path}"));
    put(&at("server.properties"), b"port=1");
    put(&at("bin/run"), b"#!/bin/sh\n");
    put(&at("Übung/日本 語.txt"), "naïve".as_bytes());
    put(&at(&format!("long/{}/{}", "n".repeat(120), "m".repeat(200))), b"deep");
    let noise: Vec<u8> = (0..700_000_u32).map(|n| n.wrapping_mul(n).to_le_bytes()[1]).collect();
    put(&at("world/region.bin"), &noise);
    put(&at("empty-file"), b"");
    fs::create_dir_all(at("empty/dir")).expect("mkdir");
    std::os::unix::fs::symlink("../bin/run", at("world/start")).expect("symlink");
    std::os::unix::fs::symlink("nowhere", at("dangling")).expect("symlink");
    std::os::unix::fs::symlink("/home/container/bin", at("steam")).expect("symlink");
    set_mode(&at("bin/run"), 0o755);
    set_mode(&at("server.properties"), 0o600);
    set_mode(&at("world/region.bin"), 0o444);
    set_mode(&at("empty/dir"), 0o700);
    for (number, path) in snapshot(&scratch.path(below)).keys().rev().enumerate() {
        set_mtime(&at(path), LONG_AGO + 2 * i64::try_from(number).expect("few"));
    }
}

#[test]
fn a_copy_keeps_modes_times_links_and_empty_folders() {
    let scratch = Scratch::new();
    plant(&scratch, "source");
    rustix::fs::mkfifoat(&scratch.volume.root, "source/pipe", Mode::from_raw_mode(0o600))
        .expect("fifo");
    let progress = Progress::default();
    scratch.volume.copy(&rel("source"), &rel("new/copy"), false, &progress).expect("copy");
    let mut want = scratch.snapshot("source");
    want.remove("pipe");
    assert_eq!(scratch.snapshot("new/copy"), want);
    assert_eq!(progress.done_bytes(), progress.total_bytes());
    if is_root() {
        let meta = fs::symlink_metadata(scratch.path("new/copy/dangling")).expect("stat");
        assert_eq!(meta.uid(), 4321);
    }
}

#[test]
fn a_copy_does_not_replace_unless_told_and_never_goes_into_itself() {
    let scratch = Scratch::new();
    put(&scratch.path("a/x"), b"new");
    put(&scratch.path("b/y"), b"old");
    put(&scratch.path("file"), b"file");
    let progress = Progress::default();
    let copy = |from, to, over| scratch.volume.copy(&rel(from), &rel(to), over, &progress);
    let before = scratch.snapshot("");
    let refused = copy("a", "b", false);
    assert!(matches!(refused, Err(FileError::AlreadyExists { .. })), "{refused:?}");
    for (from, to) in [("a", "a/below"), ("", "x"), ("a", "a"), ("a/x", "a")] {
        let refused = copy(from, to, true);
        assert!(matches!(refused, Err(FileError::IntoItself { .. })), "{from}: {refused:?}");
    }
    let refused = copy("file", "a", true);
    assert!(matches!(refused, Err(FileError::NotAFile { .. })), "{refused:?}");
    assert_eq!(scratch.snapshot(""), before);
    copy("a", "b", true).expect("replace");
    assert_eq!(scratch.snapshot("").keys().collect::<Vec<_>>(), ["a", "a/x", "b", "b/x", "file"]);
    copy("file", "b/x", true).expect("replace a file");
    assert_eq!(scratch.read("b/x"), b"file");
}

#[test]
fn a_copy_keeps_holes_and_what_is_between_them() {
    use std::os::unix::fs::FileExt as _;
    let scratch = Scratch::new();
    let file = fs::File::create(scratch.path("sparse")).expect("create");
    file.write_all_at(b"start", 0).expect("write");
    file.write_all_at(b"middle", 40 << 20).expect("write");
    file.set_len(64 << 20).expect("grow");
    scratch.volume.copy(&rel("sparse"), &rel("copy"), false, &Progress::default()).expect("copy");
    let copy = fs::metadata(scratch.path("copy")).expect("stat");
    assert_eq!(copy.len(), 64 << 20);
    assert!(copy.blocks() * 512 < 4 << 20, "the holes were filled: {} blocks", copy.blocks());
    assert!(scratch.read("copy") == scratch.read("sparse"), "the contents differ");
}

#[test]
fn a_cancelled_copy_leaves_nothing() {
    let scratch = Scratch::new();
    plant(&scratch, "source");
    let before = scratch.snapshot("");
    let progress = Progress::default();
    progress.cancel();
    let outcome = scratch.volume.copy(&rel("source"), &rel("copy"), false, &progress);
    assert!(matches!(outcome, Err(FileError::Cancelled)), "{outcome:?}");
    assert_eq!(scratch.snapshot(""), before);
}

#[test]
fn disk_usage_counts_blocks_once() {
    let scratch = Scratch::new();
    put(&scratch.path("file"), &vec![1; 1 << 20]);
    let one = scratch.volume.disk_usage().expect("usage");
    assert!((1 << 20..(1 << 20) + 65_536).contains(&one), "{one}");
    fs::hard_link(scratch.path("file"), scratch.path("again")).expect("link");
    assert_eq!(scratch.volume.disk_usage().expect("usage"), one);
    put(&scratch.path(".lightd-hidden"), &vec![1; 1 << 20]);
    let hidden = scratch.volume.disk_usage().expect("usage");
    assert!(hidden >= one + (1 << 20), "{hidden}: what is hidden takes space too");
}

#[test]
fn chown_gives_away_links_and_not_what_they_lead_to() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    put(&scratch.path("a/b"), b"");
    let secret = scratch.outside().join("secret");
    std::os::unix::fs::symlink(&secret, scratch.path("a/link")).expect("symlink");
    scratch.volume.chown_all(Owner { uid: 77, gid: 78 }).expect("chown");
    for path in ["", "a", "a/b", "a/link"] {
        let meta = fs::symlink_metadata(scratch.path(path)).expect("stat");
        assert_eq!((meta.uid(), meta.gid()), (77, 78), "{path}");
    }
    assert_eq!(fs::metadata(secret).expect("stat").uid(), 0);
}

#[test]
fn trees_deeper_than_any_path_are_measured_given_away_and_removed() {
    let scratch = Scratch::new();
    const DEPTH: usize = 3000;
    let mut dir: OwnedFd = scratch.volume.root.try_clone().expect("clone");
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&dir, "d", Mode::from_raw_mode(0o755)).expect("mkdir");
        dir = open_folder(dir.as_fd(), "d").expect("open");
    }
    drop(dir);
    put(&scratch.path("d/beside"), b"x");
    let usage = scratch.volume.disk_usage().expect("usage");
    assert!(usage >= DEPTH as u64, "{usage}");
    scratch.volume.chown_all(Owner { uid: 4321, gid: 4321 }).expect("chown");
    let progress = Progress::default();
    let outcome = scratch.volume.copy(&rel("d"), &rel("copy"), false, &progress);
    assert!(matches!(outcome, Err(FileError::TooDeep { .. })), "{outcome:?}");
    assert_eq!(scratch.volume.delete(&[rel("d")], &progress).expect("delete"), 1);
    assert!(scratch.snapshot("").is_empty());
}
