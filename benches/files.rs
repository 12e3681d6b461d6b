//! What writing, listing and copying files through lightd costs, beside the plain system calls.
//!
//! ```text
//! cargo bench --bench files            # everything
//! cargo bench --bench files -- write   # the parts whose name holds the word
//! BENCH_FOLDER=/dev/shm cargo bench --bench files -- list copy
//! ```
//! Works in a folder of its own below `BENCH_FOLDER` (the folder for temporary files if it is not set) and
//! removes it. Needs no engine. The disk's noise is in every figure, so both sides take turns: compare
//! within a run.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]

mod client;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use client::{Connection, Lightd, Result, exchange, write};

const ROUNDS: usize = 7;
const WRITES: usize = 300;
const WRITE_BYTES: usize = 4096;
const LISTED: usize = 10_000;
const COPIED_FOLDERS: usize = 400;
const COPIED_FILES: usize = 40;

type Part = fn(&Place) -> Result<()>;

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let parts: [(&str, Part); 3] =
        [("write", part_write), ("list", part_list), ("copy", part_copy)];
    let place = Place::new()?;
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            println!("\n== {name}");
            part(&place)?;
        }
    }
    Ok(())
}

/// Small files written over and over by one client, each safe on disk before it is answered.
fn part_write(place: &Place) -> Result<()> {
    for fsync in [true, false] {
        let daemon = place.start(fsync)?;
        let volume = daemon.volume()?;
        let path = format!("/volumes/{volume}/files/contents?path=file");
        let content = "x".repeat(WRITE_BYTES);
        let plain = place.folder.path().join("plain");
        std::fs::create_dir_all(&plain)?;
        let mut connection = Connection::open(daemon.port)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let began = Instant::now();
            for _ in 0..WRITES {
                connection.send("PUT", &path, &content)?;
            }
            ours.push(began.elapsed());
            let began = Instant::now();
            for _ in 0..WRITES {
                replace(&plain, content.as_bytes(), fsync)?;
            }
            theirs.push(began.elapsed());
        }
        let per_second = |times: &[Duration]| WRITES as f64 / median(times).as_secs_f64();
        println!(
            "{WRITE_BYTES} bytes, fsync {fsync}: lightd {:.0}/s, a loop of write{} and rename {:.0}/s, times as long {}",
            per_second(&ours),
            if fsync { ", fsync" } else { "" },
            per_second(&theirs),
            ratio(&ours, &theirs),
        );
    }
    Ok(())
}

fn replace(folder: &Path, content: &[u8], fsync: bool) -> Result<()> {
    let new = folder.join("new");
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    if fsync {
        file.sync_all()?;
    }
    drop(file);
    std::fs::rename(&new, folder.join("file"))?;
    Ok(())
}

/// A folder of many files with what is known of each.
fn part_list(place: &Place) -> Result<()> {
    let daemon = place.start(true)?;
    let volume = daemon.volume()?;
    let folder = place.volume_folder(&volume);
    for n in 0..LISTED {
        File::create(folder.join(format!("file-{n:05}.txt")))?;
    }
    let path = format!("/volumes/{volume}/files?limit={LISTED}");
    let mut connection = Connection::open(daemon.port)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let answer = connection.get(&path)?;
        ours.push(began.elapsed());
        assert_eq!(answer.matches("\"name\":").count(), LISTED, "all are listed");
        let began = Instant::now();
        let mut bytes = 0;
        for entry in std::fs::read_dir(&folder)? {
            bytes += entry?.metadata()?.len();
        }
        theirs.push(began.elapsed());
        assert_eq!(bytes, 0, "the files are empty");
    }
    println!(
        "{LISTED} files: lightd {:.1} ms, scandir and stat {:.1} ms, times as long {}",
        median(&ours).as_secs_f64() * 1000.0,
        median(&theirs).as_secs_f64() * 1000.0,
        ratio(&ours, &theirs)
    );
    Ok(())
}

/// A tree of many files copied within a volume, beside `cp -r`.
fn part_copy(place: &Place) -> Result<()> {
    let daemon = place.start(true)?;
    let volume = daemon.volume()?;
    let folder = place.volume_folder(&volume);
    let content = "0123456789abcdef".repeat(800);
    for n in 0..COPIED_FOLDERS {
        let below = folder.join(format!("tree/{n:03}"));
        std::fs::create_dir_all(&below)?;
        for m in 0..COPIED_FILES {
            write(&below.join(format!("{m:02}")), &content)?;
        }
    }
    let body = r#"{"source": "tree", "destination": "copy"}"#;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        exchange(daemon.port, "POST", &format!("/volumes/{volume}/copy"), body)?;
        ours.push(began.elapsed());
        let (tree, copy) = (folder.join("tree"), folder.join("copy"));
        std::fs::remove_dir_all(&copy)?;
        let began = Instant::now();
        let status = Command::new("cp").arg("-r").arg(&tree).arg(&copy).status()?;
        theirs.push(began.elapsed());
        assert!(status.success(), "cp -r: {status}");
        std::fs::remove_dir_all(&copy)?;
    }
    println!(
        "{} files, {} MB: lightd {:.2} s, cp -r {:.2} s, times as long {}",
        COPIED_FOLDERS * COPIED_FILES,
        COPIED_FOLDERS * COPIED_FILES * content.len() / 1_000_000,
        median(&ours).as_secs_f64(),
        median(&theirs).as_secs_f64(),
        ratio(&ours, &theirs)
    );
    Ok(())
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Round by round, so that a noisy moment is in both.
fn ratio(ours: &[Duration], theirs: &[Duration]) -> String {
    let pairs = ours.iter().zip(theirs);
    let mut ratios: Vec<f64> = pairs.map(|(a, b)| a.as_secs_f64() / b.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2} to {:.2})", ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1])
}

/// The folder that the daemons of this bench work in.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let below = std::env::var_os("BENCH_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
        Ok(Self { folder: TempDir::with_prefix_in("lightd-bench-", below)? })
    }

    /// Without an engine: files need none.
    fn start(&self, fsync: bool) -> Result<Lightd> {
        let base = self.folder.path().display();
        Lightd::start(
            self.folder.path(),
            &format!(
                r#""docker": {{"socket_path": "{base}/no-engine.sock"}},
                "storage": {{"base_path": "{base}/data", "fsync": {fsync}}},
                "log": {{"level": "error"}}"#
            ),
        )
    }

    fn volume_folder(&self, volume: &str) -> PathBuf {
        self.folder.path().join("data/volumes").join(volume)
    }
}
