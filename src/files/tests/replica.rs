//! Exact copies: all that a file is, and nothing that it is not.

use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, XattrFlags};

use super::super::replica::{replicate, tally};
use super::*;
use crate::files::Progress;

/// Everything that a replica keeps, by path; the group of a file with several names is its first one.
type Facts = BTreeMap<String, (u32, u32, u32, i64, i64, u64, u64, String, Vec<u8>)>;

fn facts(root: &Path) -> Facts {
    let (mut facts, mut first) = (Facts::new(), BTreeMap::new());
    let mut todo = vec![root.to_owned()];
    let mut all = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("list") {
            let path = entry.expect("entry").path();
            if fs::symlink_metadata(&path).expect("stat").is_dir() {
                todo.push(path.clone());
            }
            all.push(path);
        }
    }
    all.sort();
    for path in all {
        let meta = fs::symlink_metadata(&path).expect("stat");
        let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
        let group = first.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
        let content = if meta.is_file() {
            fs::read(&path).expect("read")
        } else if meta.is_symlink() {
            fs::read_link(&path).expect("link").into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        let size = if meta.is_dir() { 0 } else { meta.len() };
        let holes = u64::from(meta.is_file() && meta.blocks() * 512 < meta.len());
        facts.insert(
            name,
            (
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                size,
                holes,
                group,
                content,
            ),
        );
    }
    facts
}

fn copy(scratch: &Scratch, progress: &Progress) -> Result<super::super::replica::Tally, FileError> {
    let to = scratch.dir.path().join("replica");
    fs::create_dir(&to).expect("a folder");
    let to = fs::File::open(&to).expect("open");
    replicate(scratch.volume.root(), to.as_fd(), progress)
}

#[test]
fn a_replica_is_all_that_the_tree_is() {
    let scratch = Scratch::new();
    let at = |path: &str| scratch.path(path);
    put(&at("plain"), b"plain");
    put(&at("a/b/c/deep"), b"deep");
    fs::hard_link(at("plain"), at("a/b/other name")).expect("link");
    fs::hard_link(at("plain"), at("zz")).expect("link");
    symlink("../outside/secret", at("a/link")).expect("symlink");
    symlink("/etc/passwd", at("absolute")).expect("symlink");
    fs::create_dir(at("empty")).expect("mkdir");
    let sparse = fs::File::create(at("sparse")).expect("create");
    sparse.set_len(8 << 20).expect("length");
    sparse.write_at(b"in the middle", 4 << 20).expect("write");
    set_mode(&at("a/b/c/deep"), 0o6711);
    set_mode(&at("a/b"), 0o1770);
    let run = |program: &str, arguments: &[&str], path: &str| {
        let mut command = std::process::Command::new(program);
        assert!(command.args(arguments).arg(at(path)).status().expect(program).success());
    };
    run("mkfifo", &["-m", "0622"], "a/fifo");
    if is_root() {
        for (path, id) in [("plain", 1000), ("a/link", 1001), ("empty", 1002), ("a/fifo", 1003)] {
            std::os::unix::fs::lchown(at(path), Some(id), Some(id + 1)).expect("chown");
        }
        set_mode(&at("a/b/c/deep"), 0o6711);
        let null = rustix::fs::makedev(1, 3);
        let cwd = rustix::fs::CWD;
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(cwd, at("device"), FileType::CharacterDevice, mode, null)
            .expect("mknod");
    }
    let set = rustix::fs::setxattr(at("plain"), "user.note", &[7; 3000], XattrFlags::empty());
    let keeps_attributes = set.is_ok();
    let past = SystemTime::now() - Duration::new(1_000_000, 123_456_789);
    for path in ["plain", "a/b", "empty"] {
        fs::File::open(at(path)).expect("open").set_modified(past).expect("utimes");
    }
    put(&at(".lightd-staging-x/half"), b"of lightd's own");
    let expected = tally(scratch.volume.root()).expect("tally");
    let progress = Progress::default();
    let copied = copy(&scratch, &progress).expect("copy");
    assert_eq!(copied, expected);
    assert_eq!(copied.bytes, 5 + 4 + (8 << 20));
    let replica = scratch.dir.path().join("replica");
    assert_eq!(tally(fs::File::open(&replica).expect("open").as_fd()).expect("tally"), expected);
    let mut wanted = facts(&scratch.path(""));
    wanted.retain(|name, _| !name.starts_with(".lightd-") && name != "device");
    let wanted_root = wanted.remove("");
    let mut seen = facts(&replica);
    let seen_root = seen.remove("").map(|root| (root.0, root.1, root.2));
    assert_eq!(seen, wanted);
    assert_eq!(seen_root, wanted_root.map(|root| (root.0, root.1, root.2)));
    if keeps_attributes {
        let mut value = vec![0; 4000];
        let length = rustix::fs::getxattr(replica.join("plain"), "user.note", &mut value[..]);
        assert_eq!((length, value[0]), (Ok(3000), 7));
    }
    assert_eq!(progress.done_bytes(), expected.bytes);
}

#[test]
fn a_replica_that_is_cancelled_ends_as_that() {
    let scratch = Scratch::new();
    put(&scratch.path("file"), b"x");
    let progress = Progress::default();
    progress.cancel();
    assert!(matches!(copy(&scratch, &progress), Err(FileError::Cancelled)));
}

#[test]
fn a_tree_that_changes_while_it_is_copied_is_never_followed_outside() {
    let scratch = Scratch::new();
    for index in 0..40 {
        put(&scratch.path(&format!("folder/{index}/file")), b"inside");
    }
    let (inside, outside) = (scratch.path("folder/7"), scratch.outside());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let aside = scratch.path("aside");
                fs::rename(&inside, &aside).expect("rename");
                symlink(&outside, &inside).expect("symlink");
                fs::remove_file(&inside).expect("remove");
                fs::rename(&aside, &inside).expect("rename");
            }
        });
        for _ in 0..30 {
            match copy(&scratch, &Progress::default()) {
                Ok(_) | Err(FileError::Busy { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
            let replica = scratch.dir.path().join("replica");
            for (name, (.., content)) in facts(&replica) {
                assert!(content != b"secret", "{name} came from outside");
            }
            fs::remove_dir_all(replica).expect("remove");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
