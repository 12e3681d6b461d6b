use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::RenameFlags;
use tokio::time::Instant;

use super::super::archive::ArchiveFormat;
use super::super::archive::pack::PackRequest;
use super::super::listing::Page;
use super::super::resolve::{open_file, open_folder};
use super::super::walk::Walk;
use super::*;
use crate::files::Progress;

/// CVE-2024-27102: the link comes after the look at the path and before the call.
#[test]
fn nothing_outside_changes_while_a_folder_is_swapped_for_a_link() {
    for resolver in [Resolver::detect(), Resolver::Steps] {
        for target in ["../outside", "absolute"] {
            race(resolver, target);
        }
    }
}

fn race(resolver: Resolver, target: &str) {
    let scratch = Scratch::with(resolver, ArchiveLimits::default());
    let target = if target == "absolute" { scratch.outside() } else { PathBuf::from(target) };
    put(&scratch.path("dir/secret"), b"inside");
    std::os::unix::fs::symlink(target, scratch.path("link")).expect("symlink");
    put(&scratch.outside().join("sub/file"), b"untouched");
    let before = outside_state(&scratch);
    let stop = AtomicBool::new(false);
    let (done, refused, swaps) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let root = scratch.volume.root.as_fd();
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(root, "dir", root, "link", RenameFlags::EXCHANGE)
                    .expect("swap");
                swaps.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            let _stop = Stop(&stop);
            let deadline = Instant::now() + Duration::from_millis(300);
            while Instant::now() < deadline {
                for outcome in attack(&scratch) {
                    let counter = if outcome { &done } else { &refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    });
    assert_eq!(outside_state(&scratch), before, "something outside was changed");
    let (done, refused) = (done.into_inner(), refused.into_inner());
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused, {swaps:?} swaps: no race");
}

/// Ends the other side of a race, also when an assertion on this side fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All that could have been changed outside, owners included.
pub(super) fn outside_state(scratch: &Scratch) -> (Tree, Vec<(u32, u32)>) {
    let outside = scratch.outside();
    let owner = |path: &Path| {
        let meta = fs::symlink_metadata(path).expect("stat");
        (meta.uid(), meta.gid())
    };
    let tree = snapshot(&outside);
    let owners = tree.keys().map(|path| owner(&outside.join(path))).chain([owner(&outside)]);
    let owners = owners.collect();
    (tree, owners)
}

/// CVE-2023-25168, with folders that turn into links while they are deleted.
#[test]
fn walks_do_not_leave_a_tree_whose_folders_turn_into_links() {
    let scratch = Scratch::new();
    put(&scratch.outside().join("sub/file"), b"untouched");
    let before = outside_state(&scratch);
    let progress = Progress::default();
    let deadline = Instant::now() + Duration::from_millis(1500);
    let mut rounds = 0;
    while Instant::now() < deadline {
        put(&scratch.path("tree/dir/sub/file"), b"inside");
        std::os::unix::fs::symlink(scratch.outside(), scratch.path("tree/link")).expect("symlink");
        let tree = open_folder(scratch.volume.root(), "tree").expect("open");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The handle stays on the tree also when it was moved aside to be removed.
                while !stop.load(Ordering::Relaxed) {
                    let flags = RenameFlags::EXCHANGE;
                    if rustix::fs::renameat_with(&tree, "dir", &tree, "link", flags).is_err() {
                        return;
                    }
                }
            });
            let _stop = Stop(&stop);
            for _ in 0..20 {
                if is_root() {
                    scratch.volume.chown_all(Owner { uid: 99, gid: rounds }).expect("chown");
                }
                let copied = scratch.volume.copy(&rel("tree"), &rel("copy"), true, &progress);
                copied.expect("copy");
                // What was a link just then was copied as one, and is not followed here either.
                if let Ok((mut file, _)) = scratch.volume.open_read(&rel("copy/dir/sub/file")) {
                    let mut content = String::new();
                    std::io::Read::read_to_string(&mut file, &mut content).expect("read");
                    assert_eq!(content, "inside", "copied from outside");
                }
            }
            scratch.volume.delete(&[rel("tree")], &progress).expect("delete");
        });
        rounds += 1;
    }
    assert_eq!(outside_state(&scratch), before, "after {rounds} rounds");
    assert!(rounds > 0 && !scratch.path("tree").exists());
}

#[test]
fn a_walk_that_lost_its_way_up_says_so() {
    let scratch = Scratch::new();
    let path = "d/".repeat(70);
    fs::create_dir_all(scratch.path(&path)).expect("mkdir");
    fs::create_dir(scratch.path("elsewhere")).expect("mkdir");
    put(&scratch.path("elsewhere/secret"), b"");
    let d = open_folder(scratch.volume.root(), "d").expect("open");
    let mut walk = Walk::new(d.as_fd()).expect("walk");
    while walk.depth() < 69 {
        walk.next().expect("on the way down").expect("more to come");
    }
    fs::rename(scratch.path(&"d/".repeat(4)), scratch.path("elsewhere/d")).expect("move");
    let error = loop {
        match walk.next() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it believed the wrong parent"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, FileError::Busy { .. }), "{error:?}");
}

#[test]
fn handles_are_never_opened_through_a_link() {
    let scratch = Scratch::new();
    std::os::unix::fs::symlink(scratch.outside(), scratch.path("dir")).expect("symlink");
    std::os::unix::fs::symlink(scratch.outside().join("secret"), scratch.path("file"))
        .expect("symlink");
    let root = scratch.volume.root();
    assert!(open_folder(root, "dir").is_err());
    assert!(open_file(root, "file").is_err());
    assert!(Resolver::Steps.open(root, &rel("dir/secret"), OFlags::PATH).is_err());
    assert!(Resolver::Steps.open_or_make(root, &rel("dir/new"), None).is_err());
    assert!(!scratch.outside().join("new").exists());
}

/// One round of everything that could be led astray. Says which calls were carried out.
fn attack(scratch: &Scratch) -> Vec<bool> {
    let volume = &scratch.volume;
    let progress = Progress::default();
    let mut outcomes = vec![
        scratch.write("dir/secret", b"inside").is_ok(),
        scratch.write("dir/sub/file", b"inside").is_ok(),
        volume.chmod(&rel("dir/secret"), 0o777).is_ok(),
        volume.mkdir_all(&rel("dir/made/here")).is_ok(),
    ];
    if let Ok((mut file, _)) = volume.open_read(&rel("dir/secret")) {
        let mut content = String::new();
        std::io::Read::read_to_string(&mut file, &mut content).expect("read");
        assert_eq!(content, "inside", "read from outside");
        outcomes.push(true);
    }
    if let Ok(listing) = volume.list(&rel("dir/sub"), &Page { limit: 10, cursor: None }) {
        let size = listing.entries.first().map_or(6, |entry| entry.stat.size);
        assert_eq!(size, 6, "listed outside");
    }
    outcomes.push(volume.rename(&rel("dir/sub"), &rel("dir/moved"), true).is_ok());
    outcomes.push(volume.copy(&rel("dir"), &rel("copied"), true, &progress).is_ok());
    let request = PackRequest {
        format: ArchiveFormat::Tar,
        output: rel("dir/archive.tar"),
        paths: vec![rel("dir/secret")],
        base: rel(""),
        ignore: Vec::new(),
        level: ArchiveFormat::Tar.default_level(),
        overwrite: true,
    };
    outcomes.push(volume.pack(&request, &progress).is_ok());
    outcomes.push(volume.unpack(&unpacking("dir/archive.tar", "dir/out"), &progress).is_ok());
    outcomes.push(volume.delete(&[rel("dir/moved")], &progress).is_ok());
    outcomes.push(volume.delete(&[rel("dir/secret")], &progress).is_ok());
    if is_root() {
        outcomes.push(volume.chown_all(Owner { uid: 99, gid: 99 }).is_ok());
    }
    volume.disk_usage().expect("usage");
    outcomes
}

#[test]
fn a_tree_that_refills_itself_does_not_keep_the_remover_for_ever() {
    let scratch = Scratch::new();
    let stop = AtomicBool::new(false);
    put(&scratch.path("dir/file"), b"");
    let dir = open_folder(scratch.volume.root(), "dir").expect("open");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let mode = Mode::from_raw_mode(0o600);
                // Fails once the folder is really gone, which is what is waited for.
                if rustix::fs::openat(&dir, format!("f{number}"), OFlags::CREATE, mode).is_err() {
                    return;
                }
            }
        });
        let _stop = Stop(&stop);
        let outcome = scratch.volume.delete(&[rel("dir")], &Progress::default());
        let ended = matches!(outcome, Ok(1) | Err(FileError::Busy { .. }));
        assert!(ended, "{outcome:?}");
    });
    assert!(!scratch.path("dir").exists());
}

#[test]
fn public_messages_never_name_the_host() {
    let scratch = Scratch::new();
    let host = scratch.dir.path().to_string_lossy().into_owned();
    std::os::unix::fs::symlink(scratch.outside(), scratch.path("out")).expect("symlink");
    put(&scratch.path("broken.zip"), b"PK\x03\x04 nonsense");
    let progress = Progress::default();
    let errors = [
        scratch.volume.open_read(&rel("out/secret")).err(),
        scratch.volume.open_read(&rel("missing")).err(),
        scratch.write("out/x", b"").err(),
        scratch.volume.delete(&[rel("out/secret")], &progress).err(),
        scratch.volume.unpack(&unpacking("broken.zip", ""), &progress).err(),
    ];
    for error in errors {
        let text = error.expect("an error").to_string();
        assert!(!text.contains(&host) && !text.contains("/proc"), "{text}");
    }
}
