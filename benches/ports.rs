//! What a port costs that is taken from a pool of 50,000, of one address or of ten, beside the plain statements
//! on SQLite.
//!
//! ```text
//! cargo bench --bench ports            # everything, about a minute
//! cargo bench --bench ports -- random  # the parts whose name holds the word
//! BENCH_FOLDER=/dev/shm cargo bench --bench ports
//! ```
//! Works in a folder of its own below `BENCH_FOLDER` (the folder for temporary files if it is not set) and
//! removes it. Needs no engine. lightd's figures are of whole calls over HTTP, and so is the ping's beside
//! them; what is written is on the disk before it is answered, for both sides. Both take turns: compare
//! within a run.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]

mod client;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::{Connection as Sqlite, OptionalExtension as _};
use tempfile::TempDir;

use client::{Connection, Lightd, Result, between};

/// Not where lightd listens.
const IP: &str = "127.0.0.2";
const ADDRESSES: usize = 10;
/// What a port may cost.
const TARGET: Duration = Duration::from_millis(1);
const FIRST: u16 = 10_001;
const LAST: u16 = 60_000;
const RANGE: u16 = 10_000;
const CALLS: usize = 1000;
const ROW: usize = 10;

type Part = fn(&mut Pool) -> Result<()>;

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let parts: [(&str, Part); 6] = [
        ("random", part_random),
        ("allocate", part_allocate),
        ("spread", part_spread),
        ("contiguous", part_contiguous),
        ("crowded", part_crowded),
        ("list", part_list),
    ];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            println!("\n== {name}");
            part(&mut Pool::new()?)?;
        }
    }
    Ok(())
}

/// Looking for a free port, without taking it.
fn part_random(pool: &mut Pool) -> Result<()> {
    pool.compare("GET random", "GET", "/network/ports/random", "", |plain| plain.pick().map(drop))
}

/// Taking one.
fn part_allocate(pool: &mut Pool) -> Result<()> {
    let body = r#"{"reserve": "1h"}"#;
    pool.compare("POST allocate", "POST", "/network/ports/allocate", body, Plain::take)
}

/// Taking one where the same number of places is spread over ten addresses, beside one address with all of them.
fn part_spread(one: &mut Pool) -> Result<()> {
    let addresses: Vec<String> = (2..2 + ADDRESSES).map(|n| format!("127.0.0.{n}")).collect();
    let each = (LAST - FIRST + 1) / u16::try_from(ADDRESSES)?;
    let mut ten = Pool::of(&addresses, each)?;
    let last = addresses.last().ok_or("no address")?;
    let any = r#"{"reserve": "1h"}"#.to_owned();
    let named = |ip: &str| format!(r#"{{"ip": "{ip}", "reserve": "1h"}}"#);
    let (of_one, of_ten) = (named(IP), named(last));
    let crowded = format!(r#"{{"ip": "{last}", "count": 1000, "reserve": "1h"}}"#);
    let tell = |what: &str, pool: &mut Pool, body: &str| -> Result<()> {
        let (mut times, mut plain, mut pings) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..CALLS {
            let began = Instant::now();
            pool.http.send("POST", "/network/ports/allocate", body)?;
            times.push(began.elapsed());
            let began = Instant::now();
            pool.plain.take()?;
            plain.push(began.elapsed());
            let began = Instant::now();
            pool.http.get("/api/v1/public/ping")?;
            pings.push(began.elapsed());
        }
        times.sort_unstable();
        let verdict = if times[CALLS / 2] < TARGET { "within" } else { "MISSES" };
        println!("{what}: {}; {verdict} {TARGET:?}", spread(&times));
        println!("  plain SQLite, one address {}, a ping {}", spread(&plain), spread(&pings));
        Ok(())
    };
    tell("one address, any of 50,000         ", one, &any)?;
    tell("ten addresses, any of 50,000       ", &mut ten, &any)?;
    tell("one address, asked for by name     ", one, &of_one)?;
    tell("ten addresses, one asked for       ", &mut ten, &of_ten)?;
    // All but a few of that address are taken: what is left is found among the others' tens of thousands.
    while ten.http.send("POST", "/network/ports/allocate", &crowded).is_ok() {}
    let mut times = Vec::new();
    let (few, mut freed) = (format!(r#"{{"ip": "{last}", "reserve": "1h"}}"#), 0);
    for _ in 0..CALLS {
        let began = Instant::now();
        let taken = ten.http.send("POST", "/network/ports/allocate", &few);
        times.push(began.elapsed());
        if taken.is_err() {
            break;
        }
        freed += 1;
    }
    println!("ten addresses, the last {freed} of one  : {}", spread(&times));
    Ok(())
}

/// Taking several with following numbers, in a pool that has more and more gaps.
fn part_contiguous(pool: &mut Pool) -> Result<()> {
    let body = format!(r#"{{"count": {ROW}, "contiguous": true, "reserve": "1h"}}"#);
    let what = format!("POST allocate, {ROW} in a row");
    pool.compare(&what, "POST", "/network/ports/allocate", &body, |plain| plain.take_row(ROW))
}

/// Taking one of the last hundred, and looking for a row where no two ports are neighbours.
fn part_crowded(pool: &mut Pool) -> Result<()> {
    let body = r#"{"count": 1000, "reserve": "1h"}"#;
    for _ in 0..(usize::from(LAST - FIRST) + 1) / 1000 - 1 {
        pool.http.send("POST", "/network/ports/allocate", body)?;
        pool.plain.take_many(1000)?;
    }
    pool.http.send("POST", "/network/ports/allocate", r#"{"count": 900, "reserve": "1h"}"#)?;
    pool.plain.take_many(900)?;
    pool.compare("GET random, 100 of 50,000 free", "GET", "/network/ports/random", "", |plain| {
        plain.pick().map(drop)
    })?;
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        let refused = pool.http.send(
            "POST",
            "/network/ports/allocate",
            r#"{"count": 90, "contiguous": true}"#,
        );
        times.push(began.elapsed());
        assert!(refused.is_err(), "there is no such row");
    }
    println!("POST allocate, 90 in a row, in vain: {}", spread(&times));
    Ok(())
}

/// Ten thousand entries, and which of them processes of the host have.
fn part_list(pool: &mut Pool) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let page = pool.http.get("/network/ports?limit=10000")?;
        times.push(began.elapsed());
        assert!(between(&page, "\"next_cursor\":\"", "\"").is_some(), "more follow");
    }
    println!("GET ports, 10,000 of 50,000: {}", spread(&times));
    let (mut tried, began) = (0, Instant::now());
    for port in FIRST..FIRST + RANGE {
        tried += usize::from(std::net::TcpListener::bind((IP, port)).is_ok());
    }
    println!("trying {tried} of them by opening a socket on each: {:?}", began.elapsed());
    Ok(())
}

/// A pool of 50,000 in lightd, and the same in a plain table.
struct Pool {
    http: Connection,
    plain: Plain,
    _lightd: Lightd,
    _folder: TempDir,
}

impl Pool {
    fn new() -> Result<Self> {
        Self::of(&[IP.to_owned()], LAST - FIRST + 1)
    }

    /// Of so many ports on each of these addresses.
    fn of(addresses: &[String], each: u16) -> Result<Self> {
        let below = std::env::var_os("BENCH_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = TempDir::with_prefix_in("lightd-bench-", below)?;
        let base = folder.path().display();
        let sections = format!(
            r#""docker": {{"socket_path": "{base}/no-engine.sock"}},
                "storage": {{"base_path": "{base}/data"}}, "log": {{"level": "error"}}"#
        );
        let lightd = Lightd::start(folder.path(), &sections)?;
        let mut http = Connection::open(lightd.port)?;
        for ip in addresses {
            for from in (FIRST..=FIRST + (each - 1)).step_by(usize::from(RANGE)) {
                let to = (from + (RANGE - 1)).min(FIRST + (each - 1));
                let body = format!(r#"{{"ip": "{ip}", "from": {from}, "to": {to}}}"#);
                http.send("POST", "/network/ports", &body)?;
            }
        }
        let plain = Plain::new(&folder.path().join("plain.db"))?;
        Ok(Self { http, plain, _lightd: lightd, _folder: folder })
    }

    fn compare(
        &mut self,
        what: &str,
        method: &str,
        path: &str,
        body: &str,
        mut plainly: impl FnMut(&mut Plain) -> Result<()>,
    ) -> Result<()> {
        let (mut ours, mut theirs, mut pings) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..CALLS {
            let began = Instant::now();
            self.http.send(method, path, body)?;
            ours.push(began.elapsed());
            let began = Instant::now();
            plainly(&mut self.plain)?;
            theirs.push(began.elapsed());
            let began = Instant::now();
            self.http.get("/api/v1/public/ping")?;
            pings.push(began.elapsed());
        }
        println!("{what}: {}", spread(&ours));
        println!("  plain SQLite {}, a ping {}", spread(&theirs), spread(&pings));
        Ok(())
    }
}

/// The same pool as anybody would write it down, with the same promise: what is committed is on the disk.
struct Plain {
    sqlite: Sqlite,
}

impl Plain {
    fn new(path: &std::path::Path) -> Result<Self> {
        let mut sqlite = Sqlite::open(path)?;
        sqlite.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE ports (ip TEXT, port INTEGER, protocol TEXT, taken INTEGER DEFAULT 0,
                PRIMARY KEY (ip, port, protocol)) WITHOUT ROWID;
             CREATE INDEX free ON ports (port) WHERE taken = 0;",
        )?;
        let all = sqlite.transaction()?;
        for port in FIRST..=LAST {
            all.execute(
                "INSERT INTO ports (ip, port, protocol) VALUES (?1, ?2, 'tcp')",
                (IP, port),
            )?;
        }
        all.commit()?;
        Ok(Self { sqlite })
    }

    fn pick(&mut self) -> Result<u16> {
        let start: u16 = rand::random_range(FIRST..=LAST);
        let mut behind = self.sqlite.prepare_cached(
            "SELECT port FROM ports WHERE taken = 0 AND port >= ?1 ORDER BY port LIMIT 1",
        )?;
        for start in [start, FIRST] {
            if let Some(port) = behind.query_row([start], |row| row.get(0)).optional()? {
                return Ok(port);
            }
        }
        Err("no free port".into())
    }

    fn take(&mut self) -> Result<()> {
        self.sqlite.execute_batch("BEGIN IMMEDIATE")?;
        let port = self.pick()?;
        self.mark(port, 1)?;
        Ok(self.sqlite.execute_batch("COMMIT")?)
    }

    fn take_row(&mut self, count: usize) -> Result<()> {
        self.sqlite.execute_batch("BEGIN IMMEDIATE")?;
        let start = self.pick()?;
        let first = {
            let mut behind = self.sqlite.prepare_cached(
                "SELECT port FROM ports WHERE taken = 0 AND port >= ?1 ORDER BY port",
            )?;
            let mut rows = behind.query([start])?;
            let (mut first, mut last, mut length) = (0, 0, 0);
            while length < count {
                let Some(row) = rows.next()? else { break };
                let port: u16 = row.get(0)?;
                (first, length) = if port == last + 1 { (first, length + 1) } else { (port, 1) };
                last = port;
            }
            (length == count).then_some(first)
        };
        if let Some(first) = first {
            self.mark(first, count)?;
        }
        Ok(self.sqlite.execute_batch("COMMIT")?)
    }

    fn mark(&mut self, first: u16, count: usize) -> Result<()> {
        let count = u16::try_from(count)?;
        let mut take = self.sqlite.prepare_cached(
            "UPDATE ports SET taken = 1 WHERE ip = ?1 AND port = ?2 AND protocol = 'tcp'",
        )?;
        for port in first..first + count {
            take.execute((IP, port))?;
        }
        Ok(())
    }

    fn take_many(&mut self, count: u32) -> Result<()> {
        self.sqlite.execute(
            "UPDATE ports SET taken = 1 WHERE (ip, port, protocol) IN
                (SELECT ip, port, protocol FROM ports WHERE taken = 0 ORDER BY random() LIMIT ?1)",
            [count],
        )?;
        Ok(())
    }
}

fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |part: usize| sorted[(sorted.len() - 1) * part / 100].as_secs_f64() * 1000.0;
    format!("{:.3} ms (95 of 100 within {:.3} ms)", at(50), at(95))
}
