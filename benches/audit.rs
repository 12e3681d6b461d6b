//! What the audit log costs: its row in a call, a page of a full log, and forgetting most of it.
//!
//! ```text
//! cargo bench --bench audit            # everything
//! cargo bench --bench audit -- row     # the parts whose name holds the word
//! ```
//! Works in a folder of its own below `BENCH_FOLDER` (the folder for temporary files if it is not set) and
//! removes it. Needs no engine. A call without its row is one of a second lightd, in whose store a trigger
//! throws rows away; both take turns: compare within a run.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]

mod client;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::Connection as Database;
use tempfile::TempDir;

use client::{Connection, Lightd, Result, between, write};

const ROUNDS: usize = 9;
const CALLS: usize = 200;
const MANY_ROWS: u32 = 1_000_000;
const OLD_ROWS: u32 = 300_000;
const PORT: &str = r#"{"ip": "127.0.0.1", "port": 4000}"#;
const MARK: &str = "/network/ports/127.0.0.1/4000/use";

type Part = fn() -> Result<()>;

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let parts: [(&str, Part); 3] =
        [("row", part_row), ("page", part_page), ("forget", part_forget)];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            println!("\n== {name}");
            part()?;
        }
    }
    Ok(())
}

/// The same calls with their rows and without.
fn part_row() -> Result<()> {
    let (with, without) = (Node::start("")?, Node::start("")?);
    without.database()?.execute_batch(
        "CREATE TRIGGER none BEFORE INSERT ON audit BEGIN SELECT RAISE(IGNORE); END;",
    )?;
    for node in [&with, &without] {
        node.lightd.post("/network/ports", PORT)?;
        node.lightd.post(&node.at("files"), r#"{"path": "a0", "content": "x"}"#)?;
    }
    let mark = |_: &Node, n: usize| {
        ("PUT", MARK.to_owned(), format!(r#"{{"in_use": {}}}"#, n.is_multiple_of(2)))
    };
    let rename = |node: &Node, n: usize| {
        let body = format!(r#"{{"source": "a{n}", "destination": "a{}"}}"#, n + 1);
        ("POST", node.at("rename"), body)
    };
    let write = |node: &Node, _: usize| {
        ("POST", node.at("files"), r#"{"path": "b", "content": "x"}"#.to_owned())
    };
    compare("mark a port (in its transaction)", &with, &without, mark)?;
    compare("rename a file (a row of its own)", &with, &without, rename)?;
    compare("write a file (counted on a row)", &with, &without, write)
}

fn compare(
    what: &str,
    with: &Node,
    without: &Node,
    call: impl Fn(&Node, usize) -> (&'static str, String, String),
) -> Result<()> {
    let mut times = [Vec::new(), Vec::new()];
    let mut connections =
        [Connection::open(with.lightd.port)?, Connection::open(without.lightd.port)?];
    for round in 0..ROUNDS {
        for (side, node) in [with, without].into_iter().enumerate() {
            let began = Instant::now();
            for n in 0..CALLS {
                let (method, path, body) = call(node, round * CALLS + n);
                connections[side].send(method, &path, &body)?;
            }
            times[side].push(began.elapsed());
        }
    }
    let [with, without] =
        times.map(|mut times| median(&mut times).as_secs_f64() * 1e6 / CALLS as f64);
    println!(
        "{what}: {with:.0} µs with its row, {without:.0} µs without: {:.0} µs more",
        with - without
    );
    Ok(())
}

/// Pages of a log as full as it gets.
fn part_page() -> Result<()> {
    let node = Node::start("")?;
    node.fill(MANY_ROWS, now())?;
    let mut connection = Connection::open(node.lightd.port)?;
    for (what, query) in [
        ("the newest", String::new()),
        ("the oldest", "cursor=101".to_owned()),
        ("of one container", "container=c7".to_owned()),
        ("of one action of one container", "container=c7&action=container.stop".to_owned()),
        ("of the last minute", format!("since={}", now() - 60)),
        ("of one action", "action=container.stop".to_owned()),
        ("of an actor that did nothing", "actor=anonymous".to_owned()),
        ("of a token that did nothing", "actor=lightd_nobody".to_owned()),
        ("of an action that was not done", "action=port.add".to_owned()),
        ("of actions that were not done, as far as a page looks", "action=port".to_owned()),
        ("of a container and an action that was not done", "container=c7&action=port".to_owned()),
    ] {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let began = Instant::now();
            connection.get(&format!("/audit?limit=100&{query}"))?;
            times.push(began.elapsed());
        }
        let ms = median(&mut times).as_secs_f64() * 1e3;
        println!("100 of {MANY_ROWS} entries, {what}: {ms:.2} ms");
    }
    walk(&mut connection)
}

/// All pages of what is nowhere, to the end of the log.
fn walk(connection: &mut Connection) -> Result<()> {
    let (mut pages, mut cursor, began) = (0, String::new(), Instant::now());
    loop {
        let page = connection.get(&format!("/audit?limit=100&action=port{cursor}"))?;
        pages += 1;
        let Some(next) = between(&page, "\"next_cursor\":\"", "\"") else { break };
        cursor = format!("&cursor={next}");
    }
    let took = began.elapsed().as_secs_f64() * 1e3;
    println!("to the end of them in vain: {pages} pages, {took:.0} ms");
    Ok(())
}

/// How long other calls take while most of the log is forgotten.
fn part_forget() -> Result<()> {
    let node = Node::start(r#""audit": {"keep": "3650d"},"#)?;
    node.lightd.post("/network/ports", PORT)?;
    node.fill(OLD_ROWS, now() - 1000 * 86_400)?;
    let mut connection = Connection::open(node.lightd.port)?;
    let mut call = |n: usize| -> Result<Duration> {
        let began = Instant::now();
        connection.send("PUT", MARK, &format!(r#"{{"in_use": {}}}"#, n.is_multiple_of(2)))?;
        Ok(began.elapsed())
    };
    let mut quiet = (0..CALLS).map(&mut call).collect::<Result<Vec<_>>>()?;
    let path = node.folder.path().join("config.json");
    let config = std::fs::read_to_string(&path)?.replace("3650d", "1d");
    write(&path, &config)?;
    let began = Instant::now();
    node.lightd.post("/remote/config/reload", "")?;
    let (mut busy, database) = (Vec::new(), node.database()?);
    let left = || {
        database.query_row(
            "SELECT 1 FROM audit WHERE last_at < ?1 LIMIT 1",
            [now() - 500 * 86_400],
            |_| Ok(()),
        )
    };
    while left().is_ok() {
        busy.push(call(busy.len())?);
    }
    println!("{OLD_ROWS} entries forgotten in {:.1} s", began.elapsed().as_secs_f64());
    for (when, times) in [("before", &mut quiet), ("meanwhile", &mut busy)] {
        let middle = median(times).as_secs_f64() * 1e3;
        let worst = times.last().map_or(0.0, Duration::as_secs_f64) * 1e3;
        println!("a call {when}: {middle:.2} ms, at worst {worst:.1} ms, of {}", times.len());
    }
    Ok(())
}

/// A lightd with a folder, a volume and nothing else.
struct Node {
    lightd: Lightd,
    volume: String,
    folder: TempDir,
}

impl Node {
    fn start(sections: &str) -> Result<Self> {
        let below = std::env::var_os("BENCH_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = TempDir::with_prefix_in("lightd-bench-", below)?;
        let base = folder.path().display();
        let sections = format!(
            r#"{sections} "docker": {{"socket_path": "{base}/no-engine.sock"}},
            "storage": {{"base_path": "{base}/data"}}, "log": {{"level": "error"}}"#
        );
        let lightd = Lightd::start(folder.path(), &sections)?;
        let volume = lightd.volume()?;
        Ok(Self { lightd, volume, folder })
    }

    fn at(&self, rest: &str) -> String {
        format!("/volumes/{}/{rest}", self.volume)
    }

    fn database(&self) -> Result<Database> {
        let database = Database::open(self.folder.path().join("data/lightd.db"))?;
        database.busy_timeout(Duration::from_secs(60))?;
        Ok(database)
    }

    /// Adds rows as starts and stops of a hundred containers make them, the last one at that time.
    fn fill(&self, rows: u32, until: i64) -> Result<()> {
        self.database()?.execute(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
             INSERT INTO audit (created_at, last_at, count, action, actor, way, address, request_id,
                container, details_json)
             SELECT ?2 - ?1 + n, ?2 - ?1 + n, 1, iif(n % 2, 'container.start', 'container.stop'),
                'node', 'rest', '192.0.2.' || (n % 200), hex(n), 'c' || (n / 2 % 100), '{}' FROM n",
            (rows, until),
        )?;
        Ok(())
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Of the times, which are sorted by that.
fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
