//! Archives between lightd and the programs that people have: what they write we read, what we write
//! they read, compared tree by tree.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::super::archive::ArchiveFormat;
use super::archive::{FORMATS, request};
use super::tree::plant;
use super::*;
use crate::files::Progress;

/// Runs a program that must be there and succeed.
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Runs a line of shell in a folder.
fn shell(folder: &Path, line: &str) {
    run(Command::new("sh").arg("-euc").arg(line).current_dir(folder));
}

/// A volume with `source` in it, and how that looks.
fn planted() -> (Scratch, Tree) {
    let scratch = Scratch::new();
    plant(&scratch, "source");
    let want = scratch.snapshot("source");
    (scratch, want)
}

/// Unpacks to a new folder and returns what is there.
fn unpacked(scratch: &Scratch, archive: &str) -> Tree {
    let to = format!("back-{}", archive.replace('/', "-"));
    let outcome = scratch.unpack(archive, &to);
    let outcome = outcome.unwrap_or_else(|error| panic!("{archive}: {error:?}"));
    assert_eq!(outcome.skipped, 0, "{archive}");
    scratch.snapshot(&to)
}

#[track_caller]
fn assert_same(seen: &Tree, want: &Tree, what: &str) {
    let brief = |tree: &Tree| -> Vec<String> {
        let one = |(name, entry): (&String, &(char, u32, i64, Vec<u8>))| {
            format!("{name:.40} {} {:o} {} {}", entry.0, entry.1, entry.2, entry.3.len())
        };
        tree.iter().map(one).collect()
    };
    assert_eq!(brief(seen), brief(want), "{what}");
    assert!(seen == want, "{what}: contents differ");
}

#[test]
fn other_programs_read_what_is_packed() {
    let (scratch, want) = planted();
    for format in FORMATS {
        let name = format!("packed.{}", format.as_str());
        let mut packing = request(format, &name);
        packing.base = rel("source");
        scratch.pack(&packing).expect("pack");
        let readers: &[&str] = match format {
            ArchiveFormat::Zip => {
                &["unzip -q", "7z x -y -x!world/start -x!steam", "python3 -m zipfile -e"]
            }
            _ => &["tar -xpf"],
        };
        for reader in readers {
            let to = scratch.dir.path().join(format!("{name}-{}", &reader[..3]));
            fs::create_dir(&to).expect("mkdir");
            let archive = scratch.path(&name);
            let into = if reader.starts_with("python") { " ." } else { "" };
            shell(&to, &format!("{reader} '{}'{into}", archive.display()));
            if reader.starts_with("python") {
                // It keeps neither modes nor times nor links; what is in the files it does.
                let contents = |tree: &Tree| -> Vec<_> {
                    let files = tree.iter().filter(|(_, entry)| entry.0 == 'f');
                    files.map(|(name, entry)| (name.clone(), entry.3.clone())).collect()
                };
                let mut seen = snapshot(&to);
                seen.retain(|name, _| want[name].0 != 'l');
                assert!(contents(&seen) == contents(&want), "{reader}");
            } else {
                let (mut seen, mut want) = (snapshot(&to), want.clone());
                if reader.starts_with("7z") {
                    // It finds links upwards dangerous and bends absolute ones, wherever they lead.
                    want.retain(|name, _| !["world/start", "steam"].contains(&name.as_str()));
                } else if reader.starts_with("unzip") {
                    // It leaves links' own times as they come.
                    for entry in seen.values_mut().chain(want.values_mut()) {
                        entry.2 *= i64::from(entry.0 != 'l');
                    }
                }
                assert_same(&seen, &want, &format!("{format:?} by {reader}"));
            }
        }
        let checker = match format {
            ArchiveFormat::Zip => "unzip -tq",
            ArchiveFormat::Tar => "tar -tf",
            ArchiveFormat::TarGz => "gzip -t",
            ArchiveFormat::TarBz2 => "bzip2 -t",
            ArchiveFormat::TarZst => "zstd -tq",
            ArchiveFormat::TarXz => "xz -t",
        };
        shell(&scratch.path(""), &format!("{checker} {name}"));
        if !matches!(format, ArchiveFormat::TarZst) {
            shell(&scratch.path(""), &format!("7z t {name}"));
        }
    }
}

#[test]
fn what_other_programs_write_is_read() {
    let (scratch, want) = planted();
    fs::hard_link(scratch.path("source/bin/run"), scratch.path("source/bin/alias")).expect("link");
    let mut linked = want.clone();
    linked.insert("bin/alias".to_owned(), want["bin/run"].clone());
    let bin = scratch.path("source/bin");
    linked.get_mut("bin").expect("bin").2 = fs::metadata(bin).expect("stat").mtime();
    let folder = scratch.path("source");
    for (name, line) in [
        ("gnu.tar", "tar --format=gnu -cf ../gnu.tar ."),
        ("pax.tar", "tar --format=pax -cf ../pax.tar ."),
        ("bare.tar", "tar -cf ../bare.tar *"),
        ("tar.gz", "tar -czf ../tar.gz ."),
        ("tar.bz2", "tar -cjf ../tar.bz2 ."),
        ("tar.xz", "tar -cJf ../tar.xz ."),
        ("tar.zst", "tar --zstd -cf ../tar.zst ."),
        ("zstd-T0", "tar -c . | zstd -q -T0 -19 >../zstd-T0"),
        ("xz-T0", "tar -c . | xz -T0 -0 --block-size=100KiB >../xz-T0"),
        ("members.gz", "tar -c . | split -b 100000 --filter='gzip -1' >../members.gz"),
        ("streams.bz2", "tar -c . | split -b 100000 --filter='bzip2 -1' >../streams.bz2"),
        ("frames.zst", "tar -c . | split -b 100000 --filter='zstd -q' >../frames.zst"),
        ("streams.xz", "tar -c . | split -b 100000 --filter='xz -0' >../streams.xz"),
        ("zip.zip", "zip -qry ../zip.zip ."),
        ("plain.zip", "zip -0qry ../plain.zip ."),
        ("bz2.zip", "zip -Z bzip2 -qry ../bz2.zip ."),
        ("long.zip", "zip -fz -qry ../long.zip ."),
    ] {
        shell(&folder, line);
        assert_same(&unpacked(&scratch, name), &linked, line);
    }
    let alias = |archive: &str| {
        fs::metadata(scratch.path(&format!("back-{archive}/bin/alias"))).expect("stat").nlink()
    };
    assert_eq!((alias("gnu.tar"), alias("zip.zip")), (2, 1));
    shell(&folder, "tar --format=ustar --exclude=long -cf ../ustar.tar .");
    linked.retain(|name, _| !name.starts_with("long"));
    assert_same(&unpacked(&scratch, "ustar.tar"), &linked, "ustar");
}

#[test]
fn what_7z_and_zips_to_pipes_hold_is_read() {
    let (scratch, mut want) = planted();
    let folder = scratch.path("source");
    for link in ["dangling", "steam", "world/start"] {
        fs::remove_file(folder.join(link)).expect("remove");
        want.remove(link);
    }
    want.get_mut("world").expect("world").2 =
        fs::metadata(folder.join("world")).expect("stat").mtime();
    for (name, line) in [
        ("7z.zip", "7z a -tzip ../7z.zip ."),
        ("7z-bzip2.zip", "7z a -tzip -mm=BZip2 ../7z-bzip2.zip ."),
        // As Windows packs what is large.
        ("deflate64.zip", "7z a -tzip -mm=Deflate64 ../deflate64.zip ."),
        ("7z.tar", "7z a -ttar ../7z.tar ."),
        // The sizes stand behind each file.
        ("behind.zip", "zip -fd -qr ../behind.zip ."),
        ("piped.zip", "zip -qr - . | cat >../piped.zip"),
    ] {
        shell(&folder, line);
        assert_same(&unpacked(&scratch, name), &want, line);
    }
    // Parallel streams of its own kind.
    for (kind, ending) in [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz")] {
        shell(&scratch.path(""), &format!("7z a -t{kind} 7z.tar.{ending} 7z.tar"));
        let name = format!("7z.tar.{ending}");
        assert_same(&unpacked(&scratch, &name), &want, &name);
    }
    for (name, line) in [
        ("lzma.zip", "7z a -tzip -mm=LZMA ../lzma.zip ."),
        ("locked.zip", "7z a -tzip -psecret ../locked.zip ."),
        ("locked-aes.zip", "7z a -tzip -psecret -mem=AES256 ../locked-aes.zip ."),
        ("old-locked.zip", "zip -qr -P secret ../old-locked.zip ."),
        ("7z.7z", "7z a ../7z.7z ."),
        ("sparse.tar", "truncate -s 10M hole && tar -Scf ../sparse.tar . && rm hole"),
        ("sparse-pax.tar", "truncate -s 10M hole && tar --format=pax -Scf ../sparse-pax.tar ."),
    ] {
        shell(&folder, line);
        let archive = scratch.read(name);
        let error = Scratch::new().refuses(name, &archive);
        assert!(matches!(error, FileError::UnsupportedArchive { .. }), "{name}: {error:?}");
        let is_locked = error.to_string().contains("encrypted");
        assert_eq!(is_locked, name.contains("locked"), "{name}: {error}");
    }
}

#[test]
fn single_compressed_files_are_unpacked_under_their_names() {
    let (scratch, want) = planted();
    let folder = scratch.path("");
    shell(&folder, "cp -p source/world/region.bin 'lo g.dat'");
    let (log, content) = ("lo g.dat", want["world/region.bin"].3.clone());
    for (ending, line) in [
        ("gz", "gzip -k 'lo g.dat'"),
        ("bz2", "bzip2 -k 'lo g.dat'"),
        ("zst", "zstd -qk 'lo g.dat'"),
        ("xz", "xz -k 'lo g.dat'"),
    ] {
        shell(&folder, line);
        let archive = format!("{log}.{ending}");
        let tree = unpacked(&scratch, &archive);
        let file = ('f', 0o444, want["world/region.bin"].2, content.clone());
        assert_eq!(tree, Tree::from([(log.to_owned(), file)]), "{ending}");
        let mut request = unpacking(&archive, "named");
        request.name = Some(rel("other"));
        scratch.volume.unpack(&request, &Progress::default()).expect("unpack");
        assert!(scratch.read("named/other") == content, "{ending}");
        // Cut off, damaged, or with more behind it: nothing comes of it.
        let whole = scratch.read(&archive);
        let half = whole.len() / 2;
        let mut bent = whole.clone();
        bent[half] ^= 0x10;
        for (what, bytes) in [
            ("cut", whole[..whole.len() - 1].to_vec()),
            ("half", whole[..half].to_vec()),
            ("bent", bent),
            ("more", [&whole[..], b"more"].concat()),
            ("twice cut", [&whole[..], &whole[..half]].concat()),
        ] {
            let other = Scratch::new();
            let error = other.refuses(&format!("{ending} {what}"), &bytes);
            assert!(
                matches!(error, FileError::ArchiveCorrupt { .. }),
                "{ending} {what}: {error:?}"
            );
            put(&other.path(&archive), &bytes);
            let before = other.snapshot("");
            let outcome = other.unpack(&archive, "new");
            let is_corrupt = matches!(outcome, Err(FileError::ArchiveCorrupt { .. }));
            assert!(is_corrupt, "{ending} {what}: {outcome:?}");
            assert_eq!(other.snapshot(""), before, "{ending} {what}");
        }
    }
    // A disk image begins like an empty tar.
    shell(&folder, "truncate -s 1M image && printf x >>image && gzip image");
    assert_eq!(unpacked(&scratch, "image.gz")["image"].3.len(), (1 << 20) + 1);
    shell(&folder, "gzip -c 'lo g.dat' >log.tar.gz");
    let error = scratch.unpack("log.tar.gz", "none").expect_err("no tar");
    assert!(matches!(error, FileError::UnsupportedArchive { .. }), "{error:?}");
    assert!(!scratch.path("none").exists());
}

#[test]
fn single_files_are_held_to_the_limits() {
    let zeros = Scratch::new();
    shell(&zeros.path(""), "truncate -s 80M z && gzip -k z && bzip2 -k z && zstd -qk z && xz -k z");
    for ending in ["gz", "bz2", "zst", "xz"] {
        let bomb = zeros.read(&format!("z.{ending}"));
        for limits in [
            ArchiveLimits { max_ratio: 5, ..ArchiveLimits::default() },
            ArchiveLimits { max_total_bytes: 1 << 20, ..ArchiveLimits::default() },
        ] {
            let scratch = Scratch::with(Resolver::detect(), limits);
            put(&scratch.path(&format!("z.{ending}")), &bomb);
            let outcome = scratch.unpack(&format!("z.{ending}"), "new");
            assert!(matches!(outcome, Err(FileError::ArchiveLimit { .. })), "{outcome:?}");
            assert!(!scratch.path("new").exists());
        }
    }
}

#[test]
fn memory_hungry_streams_are_refused_in_words() {
    let scratch = Scratch::new();
    shell(
        &scratch.path(""),
        "truncate -s 1M z && zstd -q --ultra --long=28 --zstd=wlog=28 -c --no-content-size <z >z.zst",
    );
    let outcome = scratch.unpack("z.zst", "new");
    assert!(matches!(outcome, Err(FileError::UnsupportedArchive { .. })), "{outcome:?}");
    let mut xz = Command::new("xz");
    xz.args(["-c", "--format=xz", "--lzma2=dict=256MiB"]).stdin(Stdio::piped());
    let mut xz = xz.stdout(Stdio::piped()).spawn().expect("xz");
    xz.stdin.take().expect("stdin").write_all(&[0; 1000]).expect("write");
    put(&scratch.path("z.xz"), &xz.wait_with_output().expect("xz").stdout);
    let outcome = scratch.unpack("z.xz", "new");
    assert!(matches!(outcome, Err(FileError::UnsupportedArchive { .. })), "{outcome:?}");
}
