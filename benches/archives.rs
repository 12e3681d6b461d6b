//! Archives and copies by lightd, beside the plain programs in the same run and on the same tree.
//!
//! ```text
//! cargo bench --bench archives              # everything, a few minutes
//! cargo bench --bench archives -- tar.gz    # the rows whose name holds the word
//! ```
//! Works on tmpfs (`/dev/shm`), so that no disk is measured, on about 200 MB in 16,000 files that are
//! the same each time. The plain programs run at the priority that lightd gives such work, so that a busy
//! machine takes the same from both. `pigz` is left out where it is not installed. Needs no containers. The machine's
//! noise is in every figure: rounds alternate, the fastest of each side counts, compare within a run.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]

mod client;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use client::{CHILDREN, Connection, Lightd, OWN, Result, cpu_seconds_of};

const FILES: usize = 16_000;
const ROUNDS: usize = 3;

/// One thing that both sides do.
struct Row {
    name: &'static str,
    /// lightd's call and body.
    call: &'static str,
    body: &'static str,
    /// What it makes in the volume.
    makes: &'static str,
    /// The plain programs: what the row is compared with, as a line of shell in the volume.
    lines: &'static [&'static str],
    /// What the first line's time, divided by lightd's, is to be.
    target: f64,
    rounds: usize,
}

const ROWS: &[Row] = &[
    Row {
        name: "pack tar.gz",
        call: "compress",
        body: r#"{"format": "tar.gz", "output_name": "a.tar.gz", "paths": ["tree"]}"#,
        makes: "a.tar.gz",
        lines: &["tar czf out tree", "tar c tree | pigz -p2 >out", "tar c tree | pigz -1 -p2 >out"],
        target: 2.5,
        rounds: ROUNDS,
    },
    Row {
        name: "pack tar.gz, level 1",
        call: "compress",
        body: r#"{"format": "tar.gz", "output_name": "b.tar.gz", "paths": ["tree"], "level": 1}"#,
        makes: "b.tar.gz",
        lines: &["tar c tree | gzip -1 >out", "tar c tree | pigz -1 -p2 >out"],
        target: 1.0,
        rounds: ROUNDS,
    },
    Row {
        name: "pack zip",
        call: "compress",
        body: r#"{"format": "zip", "output_name": "a.zip", "paths": ["tree"]}"#,
        makes: "a.zip",
        lines: &["zip -qr out.zip tree"],
        target: 2.0,
        rounds: ROUNDS,
    },
    Row {
        name: "pack tar.zst",
        call: "compress",
        body: r#"{"format": "tar.zst", "output_name": "a.tar.zst", "paths": ["tree"]}"#,
        makes: "a.tar.zst",
        lines: &["tar -I 'zstd -T0' -cf out tree", "tar c tree | zstd -q -3 -T2 >out"],
        target: 1.0,
        rounds: ROUNDS * 2,
    },
    Row {
        name: "pack tar",
        call: "compress",
        body: r#"{"format": "tar", "output_name": "a.tar", "paths": ["tree"]}"#,
        makes: "a.tar",
        lines: &["tar cf out tree"],
        target: 1.0,
        rounds: ROUNDS,
    },
    Row {
        name: "pack tar.bz2",
        call: "compress",
        body: r#"{"format": "tar.bz2", "output_name": "a.tar.bz2", "paths": ["tree"]}"#,
        makes: "a.tar.bz2",
        lines: &["tar cjf out tree"],
        target: 1.0,
        rounds: 1,
    },
    Row {
        name: "pack tar.xz",
        call: "compress",
        body: r#"{"format": "tar.xz", "output_name": "a.tar.xz", "paths": ["tree"]}"#,
        makes: "a.tar.xz",
        lines: &["tar -I 'xz -3' -cf out tree", "tar -I 'xz -3 -T2' -cf out tree"],
        target: 1.0,
        rounds: 1,
    },
    Row {
        name: "unpack tar.gz",
        call: "decompress",
        body: r#"{"archive_path": "a.tar.gz", "destination": "back"}"#,
        makes: "back",
        lines: &["mkdir out && tar xzf a.tar.gz -C out"],
        target: 1.3,
        rounds: ROUNDS,
    },
    Row {
        name: "unpack zip",
        call: "decompress",
        body: r#"{"archive_path": "a.zip", "destination": "back"}"#,
        makes: "back",
        lines: &["unzip -q a.zip -d out"],
        target: 1.5,
        rounds: ROUNDS,
    },
    Row {
        name: "unpack tar.zst",
        call: "decompress",
        body: r#"{"archive_path": "a.tar.zst", "destination": "back"}"#,
        makes: "back",
        lines: &["mkdir out && tar -I zstd -xf a.tar.zst -C out"],
        target: 1.0,
        rounds: ROUNDS,
    },
    Row {
        name: "copy the tree",
        call: "copy",
        body: r#"{"source": "tree", "destination": "copy"}"#,
        makes: "copy",
        lines: &["cp -r tree out"],
        target: 1.0,
        rounds: ROUNDS * 2,
    },
];

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word));
    let node = Node::start()?;
    let made = tree::plant(&node.volume.join("tree"))?;
    println!("{FILES} files of {:.1} MB in all, on tmpfs, {} cores", mb(made), cores());
    println!(
        "{:<20} {:<34} {:>6} {:>6} {:>6} {:>7} {:>6} {:>6}",
        "", "", "s", "CPU s", "MB", "ratio", "target", "CPU"
    );
    // What is unpacked is packed first, also if that row was not asked for.
    for (name, _) in
        [("a.tar.gz", "pack tar.gz"), ("a.zip", "pack zip"), ("a.tar.zst", "pack tar.zst")]
    {
        if let Some(row) = ROWS.iter().find(|row| row.makes == name) {
            node.post(row.call, row.body)?;
            std::fs::rename(node.volume.join(name), node.keep(name))?;
        }
    }
    for row in ROWS.iter().filter(|row| is_wanted(row.name)) {
        measure(&node, row)?;
    }
    Ok(())
}

/// What one round took.
#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    /// Processor time, of which there is as much on a busy machine.
    cpu_seconds: f64,
    bytes: u64,
}

impl Cost {
    fn keep_best(&mut self, other: Self) {
        self.seconds = self.seconds.min(other.seconds);
        self.cpu_seconds = self.cpu_seconds.min(other.cpu_seconds);
        self.bytes = other.bytes;
    }

    const NONE: Self = Self { seconds: f64::MAX, cpu_seconds: f64::MAX, bytes: 0 };
}

fn measure(node: &Node, row: &Row) -> Result<()> {
    let (mut ours, mut pings, mut peak_kib) = (Cost::NONE, Vec::new(), 0);
    let mut theirs = vec![Cost::NONE; row.lines.len()];
    let is_there = |line: &str| !line.contains("pigz") || Path::new("/usr/bin/pigz").exists();
    for _ in 0..row.rounds {
        node.bring(row)?;
        let (cost, mut times) = node.timed(row)?;
        ours.keep_best(cost);
        pings.append(&mut times);
        peak_kib = node.peak_kib()?.max(peak_kib);
        for (line, best) in row.lines.iter().zip(&mut theirs).filter(|(line, _)| is_there(line)) {
            let (began, cpu) = (Instant::now(), cpu_seconds_of("self", CHILDREN)?);
            shell(&node.volume, line)?;
            let seconds = began.elapsed().as_secs_f64();
            let cpu_seconds = cpu_seconds_of("self", CHILDREN)? - cpu;
            let out = ["out", "out.zip"].map(|name| size_of(&node.volume.join(name)));
            let bytes = out.into_iter().flatten().sum();
            best.keep_best(Cost { seconds, cpu_seconds, bytes });
            shell(&node.volume, "rm -rf out out.zip")?;
        }
    }
    pings.sort();
    let p99 = pings.get(pings.len() * 99 / 100).copied().unwrap_or_default();
    println!(
        "{:<20} {:<34.34} {:>6.2} {:>6.2} {:>6.1} {:>21}  {:>4.0} MB  ping p99 {:.1} ms",
        row.name,
        "lightd",
        ours.seconds,
        ours.cpu_seconds,
        mb(ours.bytes),
        "",
        peak_kib as f64 / 1024.0,
        p99.as_secs_f64() * 1000.0,
    );
    for (number, (line, cost)) in row.lines.iter().zip(theirs).enumerate() {
        if cost.bytes == 0 && cost.seconds == f64::MAX {
            continue;
        }
        println!(
            "{:<20} {:<34.34} {:>6.2} {:>6.2} {:>6.1} {:>7.2} {:>6} {:>6.2}",
            "",
            line.replace("mkdir out && ", ""),
            cost.seconds,
            cost.cpu_seconds,
            mb(cost.bytes),
            cost.seconds / ours.seconds,
            if number == 0 { format!("{:.1}", row.target) } else { String::new() },
            cost.cpu_seconds / ours.cpu_seconds,
        );
    }
    Ok(())
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The size of a file; a folder has none here.
fn size_of(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len())
}

fn shell(folder: &Path, line: &str) -> Result<()> {
    let status =
        Command::new("nice").args(["-n", "10", "sh", "-euc", line]).current_dir(folder).status()?;
    if status.success() { Ok(()) } else { Err(format!("{line}: {status}").into()) }
}

/// A daemon of its own, with one volume.
struct Node {
    lightd: Lightd,
    folder: TempDir,
    volume: PathBuf,
    uri: String,
}

impl Node {
    /// Without an engine: files need none.
    fn start() -> Result<Self> {
        let folder = TempDir::with_prefix_in("lightd-bench-", "/dev/shm")?;
        let base = folder.path().display();
        let sections = format!(
            r#""docker": {{"socket_path": "{base}/no-engine.sock"}},
                "storage": {{"base_path": "{base}/data"}}, "log": {{"level": "error"}}"#
        );
        let lightd = Lightd::start(folder.path(), &sections)?;
        let id = lightd.volume()?;
        let volume = folder.path().join("data/volumes").join(&id);
        Ok(Self { lightd, folder, volume, uri: format!("/volumes/{id}") })
    }

    fn keep(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts what a row needs into the volume, and nothing else beside the tree.
    fn bring(&self, row: &Row) -> Result<()> {
        shell(&self.volume, "find . -mindepth 1 -maxdepth 1 ! -name tree -exec rm -rf {} +")?;
        let name = row.body.split('"').nth(3).unwrap_or_default();
        if row.call == "decompress" {
            std::fs::copy(self.keep(name), self.volume.join(name))?;
        }
        Ok(())
    }

    fn post(&self, call: &str, body: &str) -> Result<String> {
        self.lightd.post(&format!("{}/{call}", self.uri), body)
    }

    fn timed(&self, row: &Row) -> Result<(Cost, Vec<Duration>)> {
        let pid = self.lightd.pid().to_string();
        // Sets the high-water mark back.
        let clear = std::fs::File::options().write(true).open(format!("/proc/{pid}/clear_refs"));
        clear?.write_all(b"5")?;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let pinging = scope.spawn(|| ping_until(self.lightd.port, &over));
            let (began, cpu) = (Instant::now(), cpu_seconds_of(&pid, OWN)?);
            let answer = self.post(row.call, row.body);
            let seconds = began.elapsed().as_secs_f64();
            over.store(true, Ordering::Relaxed);
            let pings = pinging.join().map_err(|_| "the pinging panicked")??;
            let cpu_seconds = cpu_seconds_of(&pid, OWN)? - cpu;
            answer?;
            let bytes = size_of(&self.volume.join(row.makes)).unwrap_or(0);
            Ok((Cost { seconds, cpu_seconds, bytes }, pings))
        })
    }

    fn peak_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.lightd.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        Ok(line.ok_or("no VmHWM")?.trim().trim_end_matches(" kB").parse()?)
    }
}

fn ping_until(port: u16, over: &AtomicBool) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(port)?;
    let mut times = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        connection.send("GET", "/api/v1/public/ping", "")?;
        times.push(began.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(times)
}

/// The tree: text like source code, logs and tables, some binary data, some that is compressed already.
mod tree {
    use super::*;

    /// The same numbers in each run.
    struct Dice(u64);

    impl Dice {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, end: usize) -> usize {
            usize::try_from(self.next() % end as u64).unwrap_or(0)
        }

        fn byte(&mut self) -> u8 {
            self.next().to_le_bytes()[3]
        }

        /// Small numbers more often, as words and names are spread.
        fn low(&mut self, end: usize) -> usize {
            let span = 1 << self.below(end.ilog2() as usize + 2);
            self.below(end.min(span))
        }
    }

    pub(super) fn plant(root: &Path) -> Result<u64> {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let letters = b"etaoinsrhldcumfpgwybvkxjqzeeeettaaooiinnssrr";
        let words: Vec<String> = (0..6000)
            .map(|_| {
                let length = 2 + dice.below(9);
                (0..length).map(|_| char::from(letters[dice.below(letters.len())])).collect()
            })
            .collect();
        let shapes: Vec<Vec<u8>> = (0..4000)
            .map(|_| (0..5 + dice.below(16)).map(|_| dice.byte() >> dice.below(8)).collect())
            .collect();
        // Much of what people write they have written before.
        let lines: Vec<String> = (0..8000)
            .map(|_| {
                let length = 20 + dice.below(70);
                String::from_utf8_lossy(&phrase(&mut dice, &words, length)).into_owned() + "\n"
            })
            .collect();
        let mut total = 0;
        for number in 0..FILES {
            let folder = root.join(format!("area-{}/part-{}", number % 23, number / 23 % 60));
            std::fs::create_dir_all(&folder)?;
            let span = 1 << (9 + dice.below(7));
            let size = match number % 100 {
                0 => 150_000 + dice.below(500_000),
                1..=9 => 20_000 + dice.below(60_000),
                _ => 600 + dice.below(span),
            };
            let (ending, content) = match number % 21 {
                0 => ("bin", code(&mut dice, &shapes, size)),
                1 | 2 => ("jar", noise(&mut dice, size)),
                _ => ("txt", text(&mut dice, &words, &lines, size)),
            };
            total += content.len() as u64;
            std::fs::File::create(folder.join(format!("file-{number}.{ending}")))?
                .write_all(&content)?;
        }
        Ok(total)
    }

    fn text(dice: &mut Dice, words: &[String], lines: &[String], size: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(size + 120);
        while text.len() < size {
            if dice.below(3) == 0 {
                text.extend_from_slice(lines[dice.low(lines.len())].as_bytes());
            } else {
                text.extend_from_slice(&phrase(dice, words, 60));
                text.push(b'\n');
            }
        }
        text
    }

    fn phrase(dice: &mut Dice, words: &[String], size: usize) -> Vec<u8> {
        let marks = [
            " ",
            " ",
            " ",
            "(",
            ") ",
            ", ",
            ".",
            " = ",
            ";\n    ",
            ";\n        ",
            " {\n    ",
            "\n}\n\n",
        ];
        let mut text = String::with_capacity(size + 40);
        while text.len() < size {
            text.push_str(&words[dice.low(words.len())]);
            text.push_str(marks[dice.below(marks.len())]);
            if dice.below(24) == 0 {
                text.push_str(&dice.below(100_000).to_string());
            }
        }
        text.into_bytes()
    }

    /// As in programs: the same few sequences, with small differences.
    fn code(dice: &mut Dice, shapes: &[Vec<u8>], size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size + 24);
        while bytes.len() < size {
            let from = bytes.len();
            let shape = &shapes[dice.low(shapes.len())];
            bytes.extend_from_slice(shape);
            if dice.below(2) == 0 {
                bytes[from + dice.below(shape.len())] = dice.byte();
            }
        }
        bytes
    }

    fn noise(dice: &mut Dice, size: usize) -> Vec<u8> {
        (0..size.div_ceil(8)).flat_map(|_| dice.next().to_le_bytes()).collect()
    }
}
