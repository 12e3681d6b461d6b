//! How the files of a host were reached through a volume in daemons of this kind, by the number of the
//! advisory. Each way is tried with every call that could go it, through links of every sort, and with
//! both ways of resolving a path. What is done while links come and go is in `hostile`.

use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use tokio::time::Instant;

use super::super::archive::ArchiveFormat;
use super::super::archive::pack::PackRequest;
use super::super::archive::stream::StreamRequest;
use super::super::listing::Page;
use super::super::replica::replicate;
use super::archive::raw_tar;
use super::hostile::outside_state;
use super::*;
use crate::files::Progress;
use crate::files::digest::Algorithm;
use crate::files::resumable::{Info, Locks, Piece, ResumableLimits};
use crate::files::search::Search;

const SECRET: &str = "what no tenant may read";
/// Links to the folder outside.
const FOLDERS: [&str; 3] = ["relative", "absolute", "below/upwards"];
/// Links to a file outside, and to one that is not there yet.
const FILES: [&str; 2] = ["file", "dangling"];

type Outcome = Result<(), FileError>;

/// Runs `check` on volumes with links out, and sees that nothing outside has changed.
fn with_links_out(check: impl Fn(&Scratch)) {
    for resolver in [Resolver::detect(), Resolver::Steps] {
        let scratch = Scratch::with(resolver, ArchiveLimits::default());
        let outside = scratch.outside();
        put(&outside.join("secret"), SECRET.as_bytes());
        put(&outside.join("sub/file"), SECRET.as_bytes());
        set_mode(&outside.join("secret"), 0o600);
        put(&scratch.path("kept"), b"inside");
        put(&scratch.path("tree/file"), b"inside");
        fs::create_dir(scratch.path("below")).expect("mkdir");
        for (target, link) in [
            (Path::new("../outside"), "relative"),
            (&outside, "absolute"),
            (Path::new("../../outside"), "below/upwards"),
            (Path::new("../outside/secret"), "file"),
            (Path::new("../outside/new"), "dangling"),
        ] {
            symlink(target, scratch.path(link)).expect("symlink");
        }
        let before = outside_state(&scratch);
        check(&scratch);
        assert_eq!(outside_state(&scratch), before, "{resolver:?}: something outside was changed");
        assert!(!scratch.dir.path().join("new").exists(), "{resolver:?}");
    }
}

fn refused(what: &str, path: &str, outcome: Outcome) {
    assert!(outcome.is_err(), "{what} was carried out on {path}");
}

fn packing(output: &str, paths: &[&str]) -> PackRequest {
    PackRequest {
        format: ArchiveFormat::Tar,
        output: rel(output),
        paths: paths.iter().copied().map(rel).collect(),
        base: rel(""),
        ignore: Vec::new(),
        level: ArchiveFormat::Tar.default_level(),
        overwrite: true,
    }
}

/// A form with one file, sent to `folder`.
fn form(volume: &Volume, folder: &str, name: &str) -> Outcome {
    let mut upload = volume.begin_upload(rel(folder), WriteMode::default(), Progress::default())?;
    upload.begin_file(name.to_owned())?;
    upload.write(b"x")?;
    upload.end_file()?;
    upload.commit().into_iter().try_for_each(|file| file.outcome.map(drop))
}

/// An upload in pieces, of one piece.
fn resumable(volume: &Volume, path: &str) -> Outcome {
    let limits = ResumableLimits { max_bytes: 100, max_per_volume: 100, limit_bytes: None };
    let info = Info {
        length: Some(1),
        path: Some(path.to_owned()),
        create_only: false,
        metadata: None,
        is_joined: false,
    };
    let locks = Locks::default();
    let (_, lock) = volume.create_resumable(info, &limits, |id| locks.try_lock(id))?;
    let piece = Piece { offset: 0, length: None, checksum: None };
    volume.append(&lock, &piece, &mut &b"x"[..], &Progress::default(), &limits).map(drop)
}

/// CVE-2023-25152: files and folders were made on the host through links in a server's folder.
#[test]
fn cve_2023_25152_nothing_is_made_outside_through_a_link() {
    with_links_out(|scratch| {
        let (volume, progress) = (&scratch.volume, Progress::default());
        let inside = raw_tar(&[("new", b'0', "", b"x"), ("sub/new", b'0', "", b"x")]);
        put(&scratch.path("inside.tar"), &inside);
        let below_new = FOLDERS.map(|link| format!("{link}/new"));
        for path in below_new.iter().map(String::as_str).chain(FILES) {
            refused("a write", path, scratch.write(path, b"x").map(drop));
            refused("a copy", path, volume.copy(&rel("kept"), &rel(path), false, &progress));
            refused("a folder", path, volume.mkdir_all(&rel(path)));
            refused("an unpacking", path, {
                volume.unpack(&unpacking("inside.tar", path), &progress).map(drop)
            });
            refused("a form", path, form(volume, "", path));
            refused("an upload", path, resumable(volume, path));
        }
        for link in FOLDERS {
            let path = &*format!("{link}/new");
            refused("a copy", path, volume.copy(&rel("tree"), &rel(path), true, &progress));
            refused("a rename", path, volume.rename(&rel("kept"), &rel(path), true).map(drop));
            refused("a packing", path, volume.pack(&packing(path, &["tree"]), &progress).map(drop));
            refused("an unpacking", link, {
                volume.unpack(&unpacking("inside.tar", link), &progress).map(drop)
            });
            refused("a form", link, form(volume, link, "new"));
            let entry = raw_tar(&[(path, b'0', "", b"x")]);
            put(&scratch.path("through.tar"), &entry);
            refused("an entry", path, {
                volume.unpack(&unpacking("through.tar", ""), &progress).map(drop)
            });
        }
        // An archive that brings the link along.
        for target in ["../outside", "../../outside", "/tmp"] {
            let brings = raw_tar(&[("way", b'2', target, b""), ("way/new", b'0', "", b"x")]);
            put(&scratch.path("brings.tar"), &brings);
            refused("a link and an entry", target, {
                volume.unpack(&unpacking("brings.tar", "at"), &progress).map(drop)
            });
        }
    });
}

/// CVE-2023-25168: deleting a folder followed the links in it, and emptied folders of the host.
#[test]
fn cve_2023_25168_nothing_outside_is_deleted_or_replaced_through_a_link() {
    with_links_out(|scratch| {
        let (volume, progress) = (&scratch.volume, Progress::default());
        for link in FOLDERS {
            for name in ["secret", "sub", "sub/file"] {
                let path = &*format!("{link}/{name}");
                refused("a delete", path, volume.delete(&[rel(path)], &progress).map(drop));
                refused("a rename", path, volume.rename(&rel("kept"), &rel(path), true).map(drop));
                refused("a copy", path, volume.copy(&rel("kept"), &rel(path), true, &progress));
            }
        }
        for (source, link) in [("tree", "absolute"), ("kept", "file")] {
            // Whichever it is, refused or put in the link's place: what it leads to stays.
            volume.copy(&rel(source), &rel(link), true, &progress).ok();
        }
        let all = ["relative", "absolute", "below", "file", "dangling", "tree"].map(rel);
        assert_eq!(volume.delete(&all, &progress).expect("delete"), 6);
        assert_eq!(scratch.snapshot("").keys().collect::<Vec<_>>(), ["kept"]);
    });
}

/// CVE-2024-27102: a link, or a folder swapped for one at the right moment, let files of the host be
/// read. The right moment is tried in `hostile` and, with a container, in the tests of the whole.
#[test]
fn cve_2024_27102_nothing_outside_is_read_through_a_link() {
    with_links_out(|scratch| {
        let (volume, progress) = (&scratch.volume, Progress::default());
        let page = Page { limit: 10, cursor: None };
        let search = |folder: &str| {
            let until = Instant::now() + Duration::from_secs(60);
            let search = Search::new(rel(folder), None, Some("tenant"), 100, until);
            volume.search(&search.expect("a search"), &progress)
        };
        let below = FOLDERS.map(|link| format!("{link}/secret"));
        for path in below.iter().map(String::as_str).chain(["file"]) {
            refused("a read", path, volume.open_read(&rel(path)).map(drop));
            refused("a look", path, volume.stat(&rel(path)).map(drop));
            refused("a checksum", path, {
                volume.checksum(&rel(path), Algorithm::Sha256, &progress).map(drop)
            });
            refused("a list of an archive", path, {
                volume.list_archive(&rel(path), &page, &progress).map(drop)
            });
            refused("an unpacking", path, {
                volume.unpack(&unpacking(path, "got"), &progress).map(drop)
            });
        }
        for link in FOLDERS {
            let path = &*format!("{link}/secret");
            refused("a list", link, volume.list(&rel(link), &page).map(drop));
            refused("a search", link, search(link).map(drop));
            refused("a copy", path, volume.copy(&rel(path), &rel("got"), true, &progress));
            refused("a rename", path, volume.rename(&rel(path), &rel("got"), true).map(drop));
            refused("a packing", path, volume.pack(&packing("got", &[path]), &progress).map(drop));
        }
        assert_eq!(search("").expect("a search").hits.len(), 0);
        // What is copied or packed with links in it holds the links, and nothing of what they lead to.
        fs::create_dir(scratch.path("got")).expect("mkdir");
        for link in FOLDERS.iter().chain(&FILES) {
            volume
                .rename(&rel(link), &rel(&format!("tree/link-{}", link.replace('/', "-"))), false)
                .expect("a link is moved as such");
        }
        volume.copy(&rel("tree"), &rel("got/copy"), false, &progress).expect("copy");
        volume.pack(&packing("got/packed.tar", &["tree"]), &progress).expect("pack");
        let mut sent = Vec::new();
        let all = StreamRequest {
            format: ArchiveFormat::Tar,
            base: rel(""),
            paths: Vec::new(),
            level: ArchiveFormat::Tar.default_level(),
        };
        volume.pack_stream(all, &mut sent, &progress).expect("stream");
        put(&scratch.path("got/sent.tar"), &sent);
        fs::create_dir(scratch.dir.path().join("replica")).expect("mkdir");
        let to = fs::File::open(scratch.dir.path().join("replica")).expect("open");
        replicate(volume.root(), to.as_fd(), &progress).expect("a replica");
        for tree in [scratch.snapshot(""), snapshot(&scratch.dir.path().join("replica"))] {
            let holds = |content: &[u8]| {
                content.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes())
            };
            let stolen: Vec<_> = tree
                .iter()
                .filter(|(_, (.., content))| holds(content))
                .map(|(path, _)| path)
                .collect();
            assert!(stolen.is_empty(), "{stolen:?}");
        }
    });
}

/// GHSA-rhq6-9rgh-v45c: permissions and owners of the host's files were changed through links.
#[test]
fn ghsa_rhq6_9rgh_v45c_no_permission_or_owner_outside_changes_through_a_link() {
    with_links_out(|scratch| {
        let (volume, progress) = (&scratch.volume, Progress::default());
        let below = FOLDERS.map(|link| format!("{link}/secret"));
        for path in below.iter().map(String::as_str).chain(FOLDERS).chain(FILES) {
            refused("a chmod", path, volume.chmod(&rel(path), 0o777).map(drop));
        }
        // An archive that has a folder, with permissions, where the volume has a link.
        for link in ["relative", "absolute", "file"] {
            let kind = if link == "file" { b'0' } else { b'5' };
            put(&scratch.path("modes.tar"), &raw_tar(&[(link, kind, "", b"")]));
            volume.unpack(&unpacking("modes.tar", ""), &progress).ok();
            volume.unpack(&unpacking("modes.tar", "tree"), &progress).expect("no link there");
        }
        if is_root() {
            volume.chown_all(Owner { uid: 99, gid: 99 }).expect("chown");
        }
    });
}
