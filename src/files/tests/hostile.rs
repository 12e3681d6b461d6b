use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::RenameFlags;
use tokio::time::Instant;

use super::super::archive::ArchiveFormat;
use super::super::archive::pack::PackRequest;
use super::super::volume::Page;
use super::*;
use crate::files::Progress;

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
    let before = snapshot(&scratch.outside());
    let stop = AtomicBool::new(false);
    let (done, refused, swaps) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let root = scratch.volume.root.as_fd();
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(root, "dir", root, "link", RenameFlags::EXCHANGE)
                    .expect("swap");
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_millis(500);
            while Instant::now() < deadline {
                for outcome in attack(&scratch) {
                    let counter = if outcome { &done } else { &refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    assert_eq!(snapshot(&scratch.outside()), before, "something outside was changed");
    let (done, refused) = (done.into_inner(), refused.into_inner());
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused, {swaps:?} swaps: no race");
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
        level: None,
        overwrite: true,
    };
    outcomes.push(volume.pack(&request, &progress).is_ok());
    outcomes.push(volume.unpack(&rel("dir/archive.tar"), &rel("dir/out"), &progress).is_ok());
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
    let dir = super::super::resolve::open_folder(scratch.volume.root(), "dir").expect("open");
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
        let outcome = scratch.volume.delete(&[rel("dir")], &Progress::default());
        stop.store(true, Ordering::Relaxed);
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
        scratch.volume.unpack(&rel("broken.zip"), &rel(""), &progress).err(),
    ];
    for error in errors {
        let text = error.expect("an error").to_string();
        assert!(!text.contains(&host) && !text.contains("/proc"), "{text}");
    }
}
