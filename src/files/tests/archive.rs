use std::io::Write as _;

use proptest::prelude::*;

use super::super::archive::ArchiveFormat;
use super::super::archive::list::ArchiveEntry;
use super::super::archive::pack::{PackRequest, Packed};
use super::super::archive::unpack::Unpacked;
use super::super::walk::MAX_DEPTH;
use super::tree::plant;
use super::*;
use crate::files::Progress;
use crate::files::listing::Page;
use crate::files::volume::Kind;

pub(super) const FORMATS: [ArchiveFormat; 6] = [
    ArchiveFormat::Zip,
    ArchiveFormat::Tar,
    ArchiveFormat::TarGz,
    ArchiveFormat::TarBz2,
    ArchiveFormat::TarZst,
    ArchiveFormat::TarXz,
];

pub(super) fn request(format: ArchiveFormat, output: &str) -> PackRequest {
    PackRequest {
        format,
        output: rel(output),
        paths: Vec::new(),
        base: rel(""),
        ignore: Vec::new(),
        level: format.default_level(),
        overwrite: false,
    }
}

impl Scratch {
    pub(super) fn pack(&self, request: &PackRequest) -> Result<Packed, FileError> {
        self.volume.pack(request, &Progress::default())
    }

    pub(super) fn unpack(&self, archive: &str, destination: &str) -> Result<Unpacked, FileError> {
        self.volume.unpack(&unpacking(archive, destination), &Progress::default())
    }

    /// Unpacks what must be refused, and checks that nothing has come of it.
    pub(super) fn refuses(&self, what: &str, archive: &[u8]) -> FileError {
        put(&self.path("archive"), archive);
        let before = (self.snapshot(""), snapshot(&self.outside()));
        for destination in ["", "new"] {
            let outcome = self.unpack("archive", destination);
            assert!(outcome.is_err(), "{what} was unpacked: {outcome:?}");
        }
        assert!((self.snapshot(""), snapshot(&self.outside())) == before, "{what} left something");
        self.unpack("archive", "").expect_err("refused")
    }
}

#[test]
fn every_format_brings_back_what_was_packed() {
    let levels = [None, Some(0), Some(9)];
    for (format, level) in
        FORMATS.into_iter().flat_map(|format| levels.map(|level| (format, level)))
    {
        let scratch = Scratch::new();
        plant(&scratch, "source");
        let mut packing = request(format, "out/archive");
        let level = level.filter(|level| format.levels().contains(level));
        packing.level = level.unwrap_or_else(|| format.default_level());
        packing.base = rel("source");
        let packed = scratch.pack(&packing).expect("pack");
        let meta = fs::metadata(scratch.path("out/archive")).expect("stat");
        assert_eq!((meta.len(), meta.mode() & 0o7777), (packed.size, 0o644), "{format:?}");
        let unpacked = scratch.unpack("out/archive", "back/here").expect("unpack");
        assert_eq!((packed.entries, unpacked.skipped), (unpacked.entries, 0), "{format:?}");
        assert_eq!(scratch.snapshot("back/here"), scratch.snapshot("source"), "{format:?}");
        if is_root() {
            for path in ["back", "back/here/bin/run", "back/here/dangling", "back/here/empty/dir"] {
                let meta = fs::symlink_metadata(scratch.path(path)).expect("stat");
                assert_eq!((meta.uid(), meta.gid()), (4321, 4321), "{path}");
            }
        }
    }
}

#[test]
fn what_is_packed_can_be_unpacked_however_deep_and_copied_then() {
    let scratch = Scratch::new();
    put(&scratch.path(&format!("tree/{}x", "d/".repeat(MAX_DEPTH - 1))), b"x");
    let mut packing = request(ArchiveFormat::Zip, "deep.zip");
    packing.base = rel("tree");
    scratch.pack(&packing).expect("pack");
    scratch.unpack("deep.zip", "back").expect("unpack");
    assert_eq!(scratch.snapshot("back"), scratch.snapshot("tree"));
    scratch.volume.copy(&rel("back"), &rel("copy"), false, &Progress::default()).expect("copy");
    packing.base = rel("");
    packing.output = rel("too-deep.zip");
    let refused = scratch.pack(&packing);
    assert!(matches!(refused, Err(FileError::TooDeep { .. })), "{refused:?}");
}

#[test]
fn an_archive_takes_what_was_asked_for_and_never_itself() {
    let scratch = Scratch::new();
    for path in ["a/keep", "a/drop.log", "b/x", "b/cache/y", "c"] {
        put(&scratch.path(path), path.as_bytes());
    }
    rustix::fs::mkfifoat(&scratch.volume.root, "a/pipe", Mode::from_raw_mode(0o600)).expect("fifo");
    let mut packing = request(ArchiveFormat::Tar, "a/archive.tar");
    packing.paths = vec![rel("a"), rel("b")];
    packing.ignore = vec!["*.log".to_owned(), "cache/".to_owned()];
    let packed = scratch.pack(&packing).expect("pack");
    assert_eq!((packed.entries, packed.skipped), (4, 1));
    let again = scratch.pack(&packing);
    assert!(matches!(again, Err(FileError::AlreadyExists { .. })), "{again:?}");
    packing.overwrite = true;
    let replaced = scratch.pack(&packing).expect("replace");
    assert_eq!(replaced, Packed { is_new: false, ..packed }, "it took itself in");
    scratch.unpack("a/archive.tar", "back").expect("unpack");
    let back = scratch.snapshot("back");
    assert_eq!(back.keys().collect::<Vec<_>>(), ["a", "a/keep", "b", "b/x"]);
    packing.base = rel("a");
    assert!(scratch.pack(&packing).is_err(), "b does not lie in a");
    packing.paths = vec![rel("missing")];
    packing.base = rel("");
    let missing = scratch.pack(&packing);
    assert!(matches!(missing, Err(FileError::NotFound { .. })), "{missing:?}");
}

#[test]
fn damaged_archives_leave_nothing_in_any_format() {
    for format in FORMATS {
        let scratch = Scratch::new();
        plant(&scratch, "source");
        scratch.pack(&request(format, "whole")).expect("pack");
        let whole = scratch.read("whole");
        fs::remove_file(scratch.path("whole")).expect("remove");
        let length = whole.len();
        for cut in [1, 7, 500, 512, 513, 1023, 1024, length / 3, length / 2, length - 1] {
            let what = format!("{format:?} without its last {cut} bytes");
            // A tar's end is two zero blocks, of which one is enough to know.
            if format == ArchiveFormat::Tar && cut == 512 {
                continue;
            }
            scratch.refuses(&what, &whole[..length - cut]);
        }
        scratch
            .refuses(&format!("{format:?} with more after it"), &[&whole, &b"more"[..]].concat());
        let mut bent = whole.clone();
        bent[length / 2] ^= 0x10;
        if format != ArchiveFormat::Tar {
            let error = scratch.refuses(&format!("{format:?} with a bit turned"), &bent);
            assert!(matches!(error, FileError::ArchiveCorrupt { .. }), "{format:?}: {error:?}");
        }
    }
    let scratch = Scratch::new();
    let mut tar = raw_tar(&[("a", b'0', "", b"data"), ("b", b'0', "", b"data")]);
    tar[1024 + 3] = b'x';
    let error = scratch.refuses("a tar with a wrong checksum", &tar);
    assert!(matches!(error, FileError::ArchiveCorrupt { .. }), "{error:?}");
}

#[test]
fn the_format_is_told_by_content() {
    let scratch = Scratch::new();
    for nothing in [&b""[..], b"hello", b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9", &[7; 600]] {
        scratch.refuses("no archive", nothing);
    }
    let gz = |data: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(data).expect("gzip");
        gz.finish().expect("gzip")
    };
    let error = scratch.refuses("a compressed text", &gz(&[b'x'; 2000]));
    assert!(matches!(error, FileError::UnsupportedArchive { .. }), "{error:?}");
    let tar = raw_tar(&[("a", b'0', "", &[b'a'; 3000])]);
    // What parallel compressors write: one stream of several members.
    put(&scratch.path("members.zip"), &[gz(&tar[..700]), gz(&tar[700..])].concat());
    assert_eq!(scratch.unpack("members.zip", "m").expect("unpack").entries, 1);
    assert_eq!(scratch.read("m/a"), [b'a'; 3000]);
    put(&scratch.path("empty"), &[0; 1024]);
    assert_eq!(scratch.unpack("empty", "e").expect("unpack").entries, 0);
    assert!(scratch.path("e").is_dir());
}

/// A tar made by hand, so that it can say what no packer would: name, type, link target, data.
pub(super) fn raw_tar(entries: &[(&str, u8, &str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, kind, link, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o6755);
        header.set_mtime(1);
        header.set_entry_type(tar::EntryType::new(*kind));
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn raw_zip(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, mode, data) in entries {
        let options = zip::write::SimpleFileOptions::default().external_attributes(mode << 16);
        zip.start_file(*name, options).expect("start");
        zip.write_all(data).expect("write");
    }
    zip.finish().expect("finish").into_inner()
}

#[test]
fn tars_that_want_out_are_refused() {
    let scratch = Scratch::new();
    let deep = format!("{}x", "d/".repeat(MAX_DEPTH));
    for (what, entries) in [
        ("a parent reference", vec![("../evil", b'0', "", &b"x"[..])]),
        ("a parent reference in the middle", vec![("a/../../evil", b'0', "", b"x")]),
        ("a Windows drive", vec![(r"C:\evil", b'0', "", b"x")]),
        ("a reserved name", vec![(".lightd-staging-1/x", b'0', "", b"x")]),
        ("no name", vec![("", b'0', "", b"x")]),
        ("a file through a link", vec![("l", b'2', "d", b""), ("l/x", b'0', "", b"x")]),
        (
            "a file through an outward link",
            vec![("l", b'2', "../outside", b""), ("l/x", b'0', "", b"x")],
        ),
        ("a folder through a link", vec![("l", b'2', "d", b""), ("l/x/", b'5', "", b"")]),
        ("a hard link to the host", vec![("h", b'1', "/etc/passwd", b"")]),
        ("a hard link upwards", vec![("h", b'1', "../outside/secret", b"")]),
        (
            "a hard link through a link",
            vec![("d/f", b'0', "", b"x"), ("l", b'2', "d", b""), ("h", b'1', "l/f", b"")],
        ),
        ("a hard link to a link", vec![("l", b'2', "x", b""), ("h", b'1', "l", b"")]),
        ("a hard link to itself", vec![("h", b'0', "", b"x"), ("h", b'1', "h", b"")]),
        ("a file over a folder", vec![("d/x", b'0', "", b"x"), ("d", b'0', "", b"x")]),
        ("a folder over a file", vec![("d", b'0', "", b"x"), ("d/x", b'0', "", b"x")]),
        ("a sparse file", vec![("s", b'S', "", b"x")]),
        (
            "too deep a path",
            vec![("././@LongLink", b'L', "", deep.as_bytes()), ("x", b'0', "", b"x")],
        ),
    ] {
        drop(scratch.refuses(what, &raw_tar(&entries)));
    }
}

#[test]
fn what_is_harmless_is_made_harmless() {
    let scratch = Scratch::new();
    let tar = raw_tar(&[
        ("./", b'5', "", b""),
        ("/abs/file", b'0', "", b"abs"),
        ("dev", b'3', "", b""),
        ("block", b'4', "", b""),
        ("pipe", b'6', "", b""),
        ("out", b'2', "../../outside", b""),
        ("etc", b'2', "/etc", b""),
        ("in", b'2', "abs/file", b""),
        ("twice", b'0', "", b"first"),
        ("twice", b'0', "", b"second"),
        ("hard", b'1', "abs/file", b""),
        ("old-style-folder/", b'0', "", b""),
    ]);
    put(&scratch.path("archive"), &tar);
    let unpacked = scratch.unpack("archive", "new").expect("unpack");
    assert_eq!(unpacked, Unpacked { entries: 12, skipped: 5 });
    let tree = scratch.snapshot("new");
    let names: Vec<_> = tree.keys().map(String::as_str).collect();
    assert_eq!(names, ["abs", "abs/file", "hard", "in", "old-style-folder", "twice"]);
    assert_eq!(tree["twice"], ('f', 0o755, 1, b"second".to_vec()));
    let meta = |path| fs::metadata(scratch.path(path)).expect("stat");
    assert_eq!(meta("new/hard").ino(), meta("new/abs/file").ino());
}

#[test]
fn zips_that_want_out_are_refused() {
    let scratch = Scratch::new();
    for (what, entries) in [
        ("a parent reference", vec![("../evil", 0o100_644, &b"x"[..])]),
        ("backslashes upwards", vec![(r"a\..\..\evil", 0o100_644, b"x")]),
        ("a file through a link", vec![("l", 0o120_777, b"d"), ("l/x", 0o100_644, b"x")]),
        (
            "a file through an outward link",
            vec![("l", 0o120_777, b"/etc"), ("l/x", 0o100_644, b"x")],
        ),
    ] {
        scratch.refuses(what, &raw_zip(&entries));
    }
    let zip = raw_zip(&[
        ("pipe", 0o010_644, b""),
        ("out", 0o120_777, b"/etc/passwd"),
        ("set", 0o106_755, b"x"),
        ("/abs", 0o100_600, b"x"),
    ]);
    put(&scratch.path("archive"), &zip);
    let unpacked = scratch.unpack("archive", "new").expect("unpack");
    assert_eq!(unpacked, Unpacked { entries: 4, skipped: 2 });
    let modes: Vec<_> =
        scratch.snapshot("new").into_iter().map(|(name, entry)| (name, entry.1)).collect();
    assert_eq!(modes, [("abs".to_owned(), 0o600), ("set".to_owned(), 0o755)]);
}

#[test]
fn bombs_are_stopped_by_what_they_write() {
    let zeros = vec![0_u8; 80 << 20];
    let bomb = |format| {
        let scratch = Scratch::new();
        put(&scratch.path("zeros"), &zeros);
        scratch.pack(&request(format, "bomb")).expect("pack");
        scratch.read("bomb")
    };
    for format in FORMATS.into_iter().filter(|format| *format != ArchiveFormat::Tar) {
        let bomb = bomb(format);
        for (what, limits) in [
            ("ratio", ArchiveLimits { max_ratio: 5, ..ArchiveLimits::default() }),
            ("size", ArchiveLimits { max_total_bytes: 1 << 20, ..ArchiveLimits::default() }),
        ] {
            let scratch = Scratch::with(Resolver::detect(), limits);
            let error = scratch.refuses(what, &bomb);
            assert!(matches!(error, FileError::ArchiveLimit { .. }), "{format:?}: {error:?}");
        }
    }
    let many: Vec<String> = (0..50).map(|number| format!("f{number}")).collect();
    let tar: Vec<_> = many.iter().map(|name| (name.as_str(), b'0', "", &b""[..])).collect();
    let zip: Vec<_> = many.iter().map(|name| (name.as_str(), 0o100_644, &b""[..])).collect();
    let limits = ArchiveLimits { max_entries: 49, ..ArchiveLimits::default() };
    let scratch = Scratch::with(Resolver::detect(), limits);
    for archive in [raw_tar(&tar), raw_zip(&zip)] {
        let error = scratch.refuses("too many entries", &archive);
        assert!(matches!(error, FileError::ArchiveLimit { .. }), "{error:?}");
    }
}

#[test]
fn long_headers_and_long_ends_are_not_read_into_memory() {
    let scratch = Scratch::new();
    for kind in [b'L', b'K', b'x', b'g'] {
        let archive = raw_tar(&[("h", kind, "", &[b'n'; 70_000]), ("f", b'0', "", b"")]);
        let error = scratch.refuses("a long header", &archive);
        assert!(matches!(error, FileError::ArchiveLimit { .. }), "{error:?}");
    }
    let mut archive = raw_tar(&[("f", b'0', "", b"")]);
    archive.resize(archive.len() + (17 << 20), 0);
    let error = scratch.refuses("a long end", &archive);
    assert!(matches!(error, FileError::ArchiveLimit { .. }), "{error:?}");
    for records in ["no number", "5 a=b", "99 path=x\n", "11 path=x\n", "9 size=x\n", "0 \n"] {
        let archive = raw_tar(&[("h", b'x', "", records.as_bytes()), ("f", b'0', "", b"")]);
        scratch.refuses(records, &archive);
    }
    let records = b"12 path=pax\n20 mtime=1600000.75\n9 size=3\n";
    put(&scratch.path("pax.tar"), &raw_tar(&[("h", b'x', "", records), ("f", b'0', "", b"abc")]));
    scratch.unpack("pax.tar", "p").expect("unpack");
    assert_eq!(scratch.snapshot("p")["pax"], ('f', 0o755, 1_600_000, b"abc".to_vec()));
}

#[test]
fn an_archive_is_merged_into_a_folder_that_is_there() {
    let scratch = Scratch::new();
    put(&scratch.path("source/both/new"), b"new");
    put(&scratch.path("source/both/same"), b"new");
    put(&scratch.path("source/only/new"), b"new");
    std::os::unix::fs::symlink("both/new", scratch.path("source/link")).expect("symlink");
    let mut packing = request(ArchiveFormat::TarGz, "a.tar.gz");
    packing.base = rel("source");
    scratch.pack(&packing).expect("pack");
    put(&scratch.path("there/both/old"), b"old");
    put(&scratch.path("there/both/same"), b"old");
    let secret = scratch.outside().join("secret");
    std::os::unix::fs::symlink(&secret, scratch.path("there/link")).expect("symlink");
    scratch.unpack("a.tar.gz", "there").expect("unpack");
    let tree = scratch.snapshot("there");
    let contents: Vec<_> = tree.iter().map(|(name, entry)| (name.as_str(), &*entry.3)).collect();
    assert_eq!(
        contents,
        [
            ("both", &b""[..]),
            ("both/new", b"new"),
            ("both/old", b"old"),
            ("both/same", b"new"),
            ("link", b"both/new"),
            ("only", b""),
            ("only/new", b"new"),
        ]
    );
    assert_eq!(fs::read(secret).expect("secret"), b"secret");
}

#[test]
fn a_merge_across_kinds_is_refused_before_anything_moves() {
    let scratch = Scratch::new();
    let archive =
        raw_tar(&[("a", b'0', "", b"new"), ("m/x", b'0', "", b"new"), ("z", b'0', "", b"new")]);
    for (what, path) in [("a file", "there/z/file"), ("a folder", "there/m")] {
        put(&scratch.path(path), b"old");
        put(&scratch.path("archive.tar"), &archive);
        let before = scratch.snapshot("");
        let outcome = scratch.unpack("archive.tar", "there");
        let is_refused =
            matches!(outcome, Err(FileError::NotAFile { .. } | FileError::NotADirectory { .. }));
        assert!(is_refused, "{what}: {outcome:?}");
        assert_eq!(scratch.snapshot(""), before, "{what}");
        fs::remove_dir_all(scratch.path("there")).expect("remove");
    }
    put(&scratch.path("a-file"), b"");
    let outcome = scratch.unpack("archive.tar", "a-file");
    assert!(matches!(outcome, Err(FileError::NotADirectory { .. })), "{outcome:?}");
}

/// Lists in pages of this many.
fn listed(scratch: &Scratch, archive: &str, limit: usize) -> Vec<ArchiveEntry> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let page = Page { limit, cursor };
        let listing = scratch.volume.list_archive(&rel(archive), &page, &Progress::default());
        let listing = listing.unwrap_or_else(|error| panic!("{archive}: {error:?}"));
        assert!(listing.entries.len() <= limit, "{archive}");
        all.extend(listing.entries);
        cursor = listing.next;
        if cursor.is_none() {
            return all;
        }
    }
}

#[test]
fn an_archive_is_listed_page_by_page_without_being_unpacked() {
    let scratch = Scratch::new();
    plant(&scratch, "source");
    for format in FORMATS {
        let mut packing = request(format, format.as_str());
        packing.base = rel("source");
        let packed = scratch.pack(&packing).expect("pack");
        let whole = listed(&scratch, format.as_str(), 10_000);
        assert_eq!(whole.len() as u64, packed.entries);
        assert_eq!(listed(&scratch, format.as_str(), 3), whole, "{format:?}");
        let seen: Tree = whole
            .into_iter()
            .map(|entry| {
                let kind = match entry.kind {
                    Kind::Directory => 'd',
                    Kind::Symlink => 'l',
                    _ => 'f',
                };
                let target = entry.target.unwrap_or_default().into_bytes();
                let size = usize::try_from(entry.size.expect("a size")).expect("small");
                let content = if kind == 'l' { target } else { vec![b's'; size] };
                let modified_at = entry.modified_at.expect("a time").0;
                (entry.name, (kind, entry.mode, modified_at, content))
            })
            .collect();
        let mut want = scratch.snapshot("source");
        for entry in want.values_mut().filter(|entry| entry.0 == 'f') {
            entry.3.fill(b's');
        }
        assert!(seen == want, "{format:?}: {seen:?}");
    }
    let page = Page { limit: 1, cursor: Some("x".to_owned()) };
    let listing = scratch.volume.list_archive(&rel("tar"), &page, &Progress::default());
    assert!(matches!(listing, Err(FileError::InvalidCursor)), "{listing:?}");
    // Names that would be refused are shown.
    put(&scratch.path("evil"), &raw_tar(&[("../evil", b'0', "", b"x"), ("h", b'1', "/etc", b"")]));
    let names: Vec<_> =
        listed(&scratch, "evil", 1).into_iter().map(|e| (e.name, e.target)).collect();
    assert_eq!(names, [("../evil".to_owned(), None), ("h".to_owned(), Some("/etc".to_owned()))]);
}

#[test]
fn a_listing_is_held_to_the_limits_of_unpacking() {
    let scratch = Scratch::new();
    put(&scratch.path("zeros"), &vec![0_u8; 80 << 20]);
    scratch.pack(&request(ArchiveFormat::TarZst, "bomb")).expect("pack");
    let many: Vec<String> = (0..50).map(|number| format!("f{number}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), b'0', "", &b""[..])).collect();
    for (archive, limits) in [
        (scratch.read("bomb"), ArchiveLimits { max_ratio: 5, ..ArchiveLimits::default() }),
        (raw_tar(&many), ArchiveLimits { max_entries: 49, ..ArchiveLimits::default() }),
    ] {
        let scratch = Scratch::with(Resolver::detect(), limits);
        put(&scratch.path("archive"), &archive);
        let page = Page { limit: 100, cursor: None };
        let listing = scratch.volume.list_archive(&rel("archive"), &page, &Progress::default());
        assert!(matches!(listing, Err(FileError::ArchiveLimit { .. })), "{listing:?}");
    }
}

#[test]
fn some_entries_are_unpacked_without_the_others() {
    let scratch = Scratch::new();
    plant(&scratch, "source");
    let want = scratch.snapshot("source");
    for format in FORMATS {
        let mut packing = request(format, format.as_str());
        packing.base = rel("source");
        scratch.pack(&packing).expect("pack");
        let mut unpacking = unpacking(format.as_str(), &format!("out-{}", format.as_str()));
        unpacking.entries = vec![rel("world"), rel("Übung/日本 語.txt"), rel("dangling")];
        let unpacked = scratch.volume.unpack(&unpacking, &Progress::default()).expect("unpack");
        assert_eq!(unpacked, Unpacked { entries: 5, skipped: 0 }, "{format:?}");
        let seen = scratch.snapshot(unpacking.destination.as_str());
        let names: Vec<_> = seen.keys().map(String::as_str).collect();
        let wanted =
            ["dangling", "world", "world/region.bin", "world/start", "Übung", "Übung/日本 語.txt"];
        assert_eq!(names, wanted, "{format:?}");
        for name in wanted.iter().filter(|name| **name != "Übung") {
            assert!(seen[*name] == want[*name], "{format:?}: {name}");
        }
        let before = scratch.snapshot("");
        unpacking.entries = vec![rel("world"), rel("none")];
        unpacking.destination = rel("new");
        let outcome = scratch.volume.unpack(&unpacking, &Progress::default());
        let Err(FileError::NotFound { path }) = &outcome else { panic!("{outcome:?}") };
        assert!(path.starts_with("none"), "{path}");
        assert!(scratch.snapshot("") == before);
    }
    let linked = raw_tar(&[("a/f", b'0', "", b"x"), ("b", b'1', "a/f", b"")]);
    put(&scratch.path("linked"), &linked);
    let mut unpacking = unpacking("linked", "linked-out");
    unpacking.entries = vec![rel("b")];
    let outcome = scratch.volume.unpack(&unpacking, &Progress::default());
    assert!(matches!(outcome, Err(FileError::UnsupportedArchive { .. })), "{outcome:?}");
    unpacking.entries.push(rel("a"));
    scratch.volume.unpack(&unpacking, &Progress::default()).expect("unpack");
    assert_eq!(scratch.read("linked-out/b"), b"x");
}

#[test]
fn a_path_named_twice_is_packed_once() {
    let scratch = Scratch::new();
    put(&scratch.path("a/b/c"), b"c");
    for format in FORMATS {
        let mut packing = request(format, format.as_str());
        packing.paths = vec![rel("a/b"), rel("a"), rel("a"), rel("a/b/c")];
        assert_eq!(scratch.pack(&packing).expect("pack").entries, 3, "{format:?}");
        assert_eq!(scratch.unpack(format.as_str(), "out").expect("unpack").entries, 3);
    }
}

#[test]
fn progress_counts_what_is_packed_and_nothing_that_is_ignored() {
    let scratch = Scratch::new();
    put(&scratch.path("source/a"), &[7; 300_000]);
    put(&scratch.path("source/b.log"), &[7; 500_000]);
    for format in FORMATS {
        let mut packing = request(format, format.as_str());
        (packing.base, packing.ignore) = (rel("source"), vec!["*.log".to_owned()]);
        let progress = Progress::default();
        scratch.volume.pack(&packing, &progress).expect("pack");
        let seen = (progress.done_bytes(), progress.total_bytes(), progress.entries());
        assert_eq!(seen, (300_000, 300_000, 1), "{format:?}");
    }
}

#[test]
fn zips_with_unusual_frames_are_read_or_refused_in_words() {
    let scratch = Scratch::new();
    let whole = raw_zip(&[("a", 0o100_644, b"content"), ("b", 0o100_644, b"content")]);
    let ok = |what: &str, archive: &[u8]| {
        put(&scratch.path("archive"), archive);
        let to = what.replace(' ', "-");
        assert_eq!(scratch.unpack("archive", &to).expect(what).entries, 2, "{what}");
        assert_eq!(scratch.read(&format!("{to}/b")), b"content", "{what}");
    };
    ok("as it is", &whole);
    // A program in front that unpacks itself; its offsets do not count what stands before.
    let mut before = b"PK\x03\x04 not really".to_vec();
    before.extend_from_slice(&whole);
    ok("with something before", &before);
    let mut commented = whole.clone();
    let length = commented.len();
    commented[length - 2] = 7;
    commented.extend_from_slice(b"comment");
    ok("with a comment", &commented);
    let directory = whole.windows(4).position(|at| at == b"PK\x01\x02").expect("a directory");
    let end = length - 22;
    let with = |at: usize, bytes: &[u8]| {
        let mut bent = whole.clone();
        bent[at..at + bytes.len()].copy_from_slice(bytes);
        bent
    };
    for (what, archive) in [
        ("an entry more than there is", with(end + 10, &[3])),
        ("an entry less than there is", with(end + 10, &[1])),
        ("a directory that is longer", with(end + 12, &[0xff])),
        ("a directory elsewhere", with(end + 16, &[0xff, 0xff])),
        ("content elsewhere", with(directory + 42, &[1])),
        ("content beyond the end", with(directory + 20, &[0xff, 0xff, 0xff, 0x7f])),
        ("another size", with(directory + 24, &[1])),
        ("another checksum", with(directory + 16, &[1, 2, 3, 4])),
        ("a name twice", whole.iter().map(|b| if *b == b'b' { b'a' } else { *b }).collect()),
    ] {
        let error = scratch.refuses(what, &archive);
        assert!(matches!(error, FileError::ArchiveCorrupt { .. }), "{what}: {error:?}");
    }
    for (what, archive) in [
        ("several parts", with(end + 4, &[1])),
        ("a password", with(directory + 8, &[1])),
        ("another compression", with(directory + 10, &[99])),
    ] {
        let error = scratch.refuses(what, &archive);
        assert!(matches!(error, FileError::UnsupportedArchive { .. }), "{what}: {error:?}");
    }
}

#[test]
fn a_million_folder_names_are_not_kept_in_memory() {
    let scratch = Scratch::new();
    let long = "n".repeat(250);
    let path = format!("{}{long}", format!("{long}/").repeat(12));
    // One folder, again and again: the names cost an archive almost nothing.
    let name = raw_tar(&[("././@LongLink", b'L', "", path.as_bytes()), ("x", b'5', "", b"")]);
    let archive = name[..name.len() - 1024].repeat(11_000);
    let error = scratch.refuses("a million names", &archive);
    assert!(matches!(error, FileError::ArchiveLimit { .. }), "{error:?}");
}

#[test]
fn a_cancel_leaves_nothing_half_made() {
    let scratch = Scratch::new();
    plant(&scratch, "source");
    scratch.pack(&request(ArchiveFormat::Tar, "a.tar")).expect("pack");
    let before = scratch.snapshot("");
    let progress = Progress::default();
    progress.cancel();
    let packing = scratch.volume.pack(&request(ArchiveFormat::Zip, "b.zip"), &progress);
    assert!(matches!(packing, Err(FileError::Cancelled)), "{packing:?}");
    let unpacking = scratch.volume.unpack(&unpacking("a.tar", "new"), &progress);
    assert!(matches!(unpacking, Err(FileError::Cancelled)), "{unpacking:?}");
    assert_eq!(scratch.snapshot(""), before);
}

/// One thing in a random tree.
#[derive(Clone, Debug)]
enum Planted {
    Folder,
    File(Vec<u8>, bool),
    Link(String),
}

fn trees() -> impl Strategy<Value = Vec<(Vec<String>, Planted)>> {
    let name = prop_oneof!["[a-c]", "[ a-z0-9'*ü名#~-]{1,12}", "[x-z]{90,130}"]
        .prop_map(|name| name.trim().to_owned() + "_");
    let thing = prop_oneof![
        Just(Planted::Folder),
        (proptest::collection::vec(any::<u8>(), 0..3000), any::<bool>())
            .prop_map(|(data, is_program)| Planted::File(data, is_program)),
        "[a-z]{1,8}(/[a-z]{1,8}){0,40}".prop_map(Planted::Link),
    ];
    let path = proptest::collection::vec(name, 1..4);
    proptest::collection::vec((path, thing), 0..12)
}

fn plant_random(root: &Path, things: &[(Vec<String>, Planted)]) {
    fs::create_dir_all(root).expect("mkdir");
    for (names, thing) in things {
        let path = root.join(names.join("/"));
        // Where two of the random paths clash, the first stays.
        if path.symlink_metadata().is_ok()
            || path.parent().is_some_and(|parent| fs::create_dir_all(parent).is_err())
        {
            continue;
        }
        match thing {
            Planted::Folder => fs::create_dir(&path).expect("mkdir"),
            Planted::File(data, is_program) => {
                put(&path, data);
                set_mode(&path, if *is_program { 0o755 } else { 0o640 });
            }
            Planted::Link(target) => {
                std::os::unix::fs::symlink(target, &path).expect("symlink");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn random_trees_come_back_as_they_were(things in trees(), pick in 0_usize..6) {
        let scratch = Scratch::new();
        plant_random(&scratch.path("source"), &things);
        let mut packing = request(FORMATS[pick], "archive");
        packing.base = rel("source");
        scratch.pack(&packing).expect("pack");
        scratch.unpack("archive", "back").expect("unpack");
        prop_assert_eq!(scratch.snapshot("back"), scratch.snapshot("source"));
    }

    #[test]
    fn random_bytes_never_panic_nor_leave_anything(
        start in prop_oneof![Just(&b"PK\x03\x04"[..]), Just(&b"PK\x05\x06"[..]),
            Just(&b"\x28\xb5\x2f\xfd"[..]), Just(&b"\xfd7zXZ\0"[..]),
            Just(&b"\x1f\x8b\x08"[..]), Just(&b"BZh9"[..]), Just(&b""[..])],
        rest in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let scratch = Scratch::new();
        scratch.refuses("noise", &[start, &rest, b"!"].concat());
    }
}

#[test]
fn names_that_are_no_utf_8_stay_apart_in_every_format() {
    use std::os::unix::ffi::OsStrExt as _;
    for format in FORMATS {
        let scratch = Scratch::new();
        for (name, content) in [(b"gr\xfcn", b"1"), (b"gr\xf6n", b"2")] {
            let path = scratch.path("w").join(std::ffi::OsStr::from_bytes(name));
            put(&path, content);
        }
        let packing = PackRequest { paths: vec![rel("w")], ..request(format, "all") };
        scratch.pack(&packing).expect("pack");
        let archive = packing.output.as_str();
        let unpacked = scratch.unpack(archive, "back").expect("unpack");
        let names = fs::read_dir(scratch.path("back/w")).expect("list").count();
        assert_eq!((names, unpacked.skipped), (2, 0), "{format:?}");
    }
}

#[test]
fn a_file_of_holes_beyond_the_limit_is_not_packed() {
    let limits = ArchiveLimits { max_total_bytes: 1 << 30, ..ArchiveLimits::default() };
    let scratch = Scratch::with(Resolver::detect(), limits);
    let holes = fs::File::create(scratch.path("holes")).expect("a file");
    holes.set_len(8 << 40).expect("holes");
    for format in FORMATS {
        let refused = scratch.pack(&request(format, "new/folder/all"));
        assert!(matches!(refused, Err(FileError::ArchiveLimit { .. })), "{format:?}: {refused:?}");
    }
    assert_eq!(fs::read_dir(scratch.path("")).expect("list").count(), 1, "nothing else is there");
}
