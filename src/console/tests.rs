//! The console as its users see it: through `push`, cursors, looks back and reopening.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use regex::bytes::Regex;
use tempfile::TempDir;

use super::*;

const RUN: RunId = RunId(1);
const DEADLINE: Duration = Duration::from_secs(20);

fn small() -> ConsoleOptions {
    ConsoleOptions { ring_bytes: 16 * 1024, journal_bytes: 1024 * 1024, max_line_bytes: 4096 }
}

fn open(dir: &TempDir, options: ConsoleOptions) -> Console {
    Console::open(dir.path().join("console"), options).unwrap()
}

fn push(console: &Console, text: &str) {
    console.push(RUN, Stream::Out, 1000, text.as_bytes());
}

/// What a reader has got so far.
#[derive(Debug, Default)]
struct Got {
    text: String,
    last_seq: u64,
    lines_lost: u64,
}

impl Got {
    fn take(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Gap { lines_lost } => self.lines_lost += lines_lost,
            Delivery::Lines(block) => {
                self.text.push_str(&block.text());
                self.last_seq = block.last_seq();
            }
        }
    }

    async fn until(cursor: &mut Cursor, done: impl Fn(&Self) -> bool) -> Self {
        let mut got = Self::default();
        let read = async {
            while !done(&got) {
                let delivery = cursor.next().await.expect("the console was not closed");
                got.take(delivery);
            }
        };
        let outcome = tokio::time::timeout(DEADLINE, read).await;
        assert!(outcome.is_ok(), "got no further than {got:?}");
        got
    }
}

fn numbered(lines: std::ops::RangeInclusive<u64>) -> String {
    lines.map(|n| format!("line {n}\r\n")).collect()
}

#[tokio::test]
async fn a_waiting_reader_gets_lines_and_prompts() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    let mut cursor = console.cursor(Start::Now);
    let reader = Got::until(&mut cursor, |got| got.text == "hello\r\n> ");
    let writer = async {
        tokio::task::yield_now().await;
        push(&console, "hel");
        push(&console, "lo\r\n> ");
    };
    let (got, ()) = tokio::join!(reader, writer);
    assert_eq!(got.last_seq, 2);
    assert_eq!(console.last_line(), 1);
    let mut newcomer = console.cursor(Start::Now);
    assert_eq!(Got::until(&mut newcomer, |got| got.last_seq == 2).await.text, "> ");
}

#[tokio::test]
async fn what_a_reader_has_seen_is_in_the_journal() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    let mut cursor = console.cursor(Start::Now);
    push(&console, "one\ntwo\n> ");
    assert_eq!(Got::until(&mut cursor, |got| got.text == "one\ntwo\n> ").await.last_seq, 3);
    // As after a kill: nothing of the first one is closed or flushed.
    let after = open(&dir, small());
    let mut cursor = after.cursor(Start::After(Mark::line(0)));
    let got = Got::until(&mut cursor, |got| got.last_seq == 3).await;
    assert_eq!((got.text.as_str(), got.lines_lost), ("one\ntwo\n> ", 0));
}

#[tokio::test]
async fn a_late_reader_gets_everything_from_memory_and_disk() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    for n in 1..=10_000 {
        push(&console, &numbered(n..=n));
    }
    for (start, first) in [
        (Start::After(Mark::line(0)), 1),
        (Start::After(Mark::line(4321)), 4322),
        (Start::Tail(10), 9991),
    ] {
        let mut cursor = console.cursor(start);
        let got = Got::until(&mut cursor, |got| got.last_seq == 10_000).await;
        assert_eq!(got.lines_lost, 0);
        assert_eq!(got.text, numbered(first..=10_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_of_a_flood_lose_nothing() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    let cancel = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    let (keeper, cancelled) = (console.clone(), cancel.clone());
    tasks.spawn(async move { keeper.run(cancelled).await });
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let mut cursor = console.cursor(Start::Now);
        readers.spawn(async move { Got::until(&mut cursor, |got| got.last_seq == 50_001).await });
    }
    tasks.spawn(async move {
        for n in 0..500 {
            push(&console, &numbered(n * 100 + 1..=n * 100 + 50));
            push(&console, &numbered(n * 100 + 51..=n * 100 + 100));
            tokio::task::yield_now().await;
        }
        push(&console, "> ");
    });
    let expected = format!("{}> ", numbered(1..=50_000));
    for got in readers.join_all().await {
        assert_eq!(got.lines_lost, 0);
        assert!(got.text == expected, "text differs");
    }
    cancel.cancel();
    tasks.join_all().await;
}

#[tokio::test]
async fn what_was_dropped_from_the_journal_is_announced() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    for n in 1..=30_000 {
        push(&console, &format!("{n:060}\n"));
        if n % 1000 == 0 {
            console.flush().await;
        }
    }
    assert!(size_of_dir(&dir.path().join("console")) <= 1024 * 1024);
    let mut cursor = console.cursor(Start::After(Mark::line(5)));
    let got = Got::until(&mut cursor, |got| got.last_seq == 30_000).await;
    let first: u64 = got.text.lines().next().unwrap().parse().unwrap();
    assert!(first > 1000, "{first}");
    assert_eq!(got.lines_lost, first - 6);
    assert_eq!(got.text, (first..=30_000).map(|n| format!("{n:060}\n")).collect::<String>());
}

fn size_of_dir(dir: &Path) -> u64 {
    segments(dir).map(|path| path.metadata().unwrap().len()).sum()
}

fn segments(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "journal"))
}

#[tokio::test]
async fn numbers_go_on_after_reopening() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    push(&console, &numbered(1..=3));
    push(&console, "> ");
    let mut cursor = console.cursor(Start::Now);
    Got::until(&mut cursor, |got| got.text == "> ").await;
    console.flush().await;
    drop((console, cursor));

    let console = open(&dir, small());
    assert_eq!(console.last_line(), 3);
    push(&console, "stop\r\n");
    console.push(RUN.next(), Stream::Out, 2000, b"again");
    console.end_run();
    assert_eq!(console.last_line(), 5);
    let mut cursor = console.cursor(Start::After(Mark::line(0)));
    let got = Got::until(&mut cursor, |got| got.last_seq == 5).await;
    assert_eq!(got.text, format!("{}> stop\r\nagain", numbered(1..=3)));
}

/// The newest segment.
fn newest(dir: &TempDir) -> PathBuf {
    segments(&dir.path().join("console")).max().unwrap()
}

/// What happens to a console.
#[derive(Clone, Debug)]
enum Event {
    Push(Stream, Vec<u8>),
    /// Time passes, so that lines that are forming are shown.
    Pause,
    Flush,
    NextRun,
    Reopen,
}

fn event() -> impl Strategy<Value = Event> {
    let text = prop_oneof![
        3 => "([a-z€]{0,9}\r?\n){1,40}".prop_map(String::into_bytes),
        3 => "[a-z€]{1,5}".prop_map(String::into_bytes),
        1 => "[a-z]{60,200}".prop_map(String::into_bytes),
        1 => Just(b"\xe2\x82".to_vec()),
    ];
    let stream = prop_oneof![3 => Just(Stream::Out), 1 => Just(Stream::Err)];
    prop_oneof![
        8 => (stream, text).prop_map(|(stream, text)| Event::Push(stream, text)),
        2 => Just(Event::Pause),
        2 => Just(Event::Flush),
        1 => Just(Event::NextRun),
        1 => Just(Event::Reopen),
    ]
}

/// All lines that a new reader gets, by number.
async fn lines_since(console: &Console, seq: u64) -> BTreeMap<u64, Vec<u8>> {
    let mut lines: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut cursor = console.cursor(Start::After(Mark::line(seq)));
    while let Some(delivery) = cursor.next_at_hand().await {
        match delivery {
            Delivery::Lines(block) => {
                for (seq, line) in block.lines() {
                    lines.entry(seq).or_default().extend_from_slice(line);
                }
            }
            Delivery::Gap { lines_lost } => panic!("{lines_lost} lines lost"),
        }
    }
    lines
}

/// Plays events and compares what there is with what was put in, stream by stream.
async fn play(events: &[Event], looks: &[u64]) {
    let dir = TempDir::new().unwrap();
    let options = ConsoleOptions { max_line_bytes: 64, ..small() };
    let mut console = open(&dir, options);
    let mut run = RUN;
    let mut put: Vec<u8> = Vec::new();
    for event in events {
        match event {
            Event::Push(stream, text) => {
                console.push(run, *stream, 1000, text);
                put.extend_from_slice(text);
            }
            Event::Pause => {
                tokio::time::advance(Duration::from_millis(60)).await;
                console.cursor(Start::Now).next_at_hand().await;
            }
            Event::Flush => console.flush().await,
            Event::NextRun => run = run.next(),
            Event::Reopen => {
                console.end_run();
                console.flush().await;
                console = open(&dir, options);
            }
        }
    }
    console.end_run();
    let all = lines_since(&console, 0).await;
    let mut got = all.values().flatten().copied().collect::<Vec<u8>>();
    // The two streams' lines may change places.
    put.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, put);
    assert_eq!(
        all.keys().copied().collect::<Vec<_>>(),
        (1..=console.last_line()).collect::<Vec<_>>()
    );
    console.flush().await;
    let reopened = open(&dir, options);
    assert_eq!(reopened.last_line(), console.last_line());
    assert_eq!(lines_since(&reopened, 0).await, all);
    for seq in looks {
        let rest: BTreeMap<_, _> = all.range(seq + 1..).map(|(k, v)| (*k, v.clone())).collect();
        assert_eq!(lines_since(&console, *seq).await, rest, "since {seq} from memory");
        assert_eq!(lines_since(&reopened, *seq).await, rest, "since {seq} from disk");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]
    #[test]
    fn what_was_put_in_can_be_read_from_any_line(
        events in proptest::collection::vec(event(), 1..80),
        looks in proptest::collection::vec(0u64..600, 6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(&events, &looks));
    }
}

#[tokio::test]
async fn a_torn_end_is_cut_off() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    for n in 1..=100 {
        push(&console, &numbered(n..=n));
        console.flush().await;
    }
    drop(console);
    let path = newest(&dir);
    let whole = fs::read(&path).unwrap();
    for cut in [1, 30, 59, 70] {
        fs::copy(&path, dir.path().join("kept")).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(whole.len() as u64 - cut).unwrap();
        let console = open(&dir, small());
        assert_eq!(console.last_line(), if cut < 62 { 99 } else { 98 }, "cut {cut}");
        let next = console.last_line() + 1;
        push(&console, &numbered(next..=next));
        let mut cursor = console.cursor(Start::After(Mark::line(0)));
        let got = Got::until(&mut cursor, |got| got.last_seq == next).await;
        assert_eq!((got.text, got.lines_lost), (numbered(1..=next), 0));
        fs::copy(dir.path().join("kept"), &path).unwrap();
    }
    fs::copy(dir.path().join("kept"), &path).unwrap();
    let garbage = [whole, vec![0; 5000]].concat();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::io::Write::write_all(&mut &file, &garbage).unwrap();
    assert_eq!(open(&dir, small()).last_line(), 100);
    assert!(fs::metadata(&path).unwrap().len() < garbage.len() as u64);
}

#[tokio::test]
async fn history_is_by_number_run_and_pattern() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    for n in 1..=2000 {
        console.push(RunId(1 + n / 1000), Stream::Out, 1000, numbered(n..=n).as_bytes());
    }
    push(&console, "forming");
    let last = console.history(Query { lines: 3, ..Query::default() }).await;
    assert_eq!(last.text, numbered(1998..=2000));
    assert_eq!((last.last_seq, last.lines_lost), (2000, 0));

    let since = Query { lines: 2, since: Some(10), ..Query::default() };
    let page = console.history(since).await;
    assert_eq!((page.text, page.last_seq), (numbered(11..=12), 12));
    let since = Query { lines: 50, since: Some(1999), ..Query::default() };
    let page = console.history(since).await;
    assert_eq!((page.text, page.last_seq), (numbered(2000..=2000), 2000));

    let run = Query { lines: 2, run: Some(RunId(1)), ..Query::default() };
    assert_eq!(console.history(run).await.text, numbered(998..=999));

    let grep = Regex::new("99$").unwrap();
    let grep = Query { lines: 2, grep: Some(&grep), ..Query::default() };
    assert_eq!(console.history(grep).await.text, "line 1899\r\nline 1999\r\n");
    let grep = Query { since: Some(0), ..grep };
    let page = console.history(grep).await;
    assert_eq!((page.text.as_str(), page.last_seq), ("line 99\r\nline 199\r\n", 298));
    assert_eq!(console.history(Query { since: Some(1999), ..grep }).await.last_seq, 2000);
}

#[tokio::test]
async fn the_tail_of_a_run_is_what_the_engine_is_joined_to() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, ConsoleOptions { max_line_bytes: 64, ..small() });
    let long = "x".repeat(200);
    console.push(RunId(1), Stream::Out, 1, b"of another run\n");
    for n in 0..100 {
        console.push(RunId(2), Stream::Out, n, format!("out {n}\r\n").as_bytes());
        console.push(RunId(2), Stream::Err, n, format!("err {n}\n").as_bytes());
    }
    console.push(RunId(2), Stream::Out, 100, format!("{long}\r\n> ").as_bytes());
    let mut cursor = console.cursor(Start::Now);
    Got::until(&mut cursor, |got| got.text == "> ").await;

    let tail = console.tail(RunId(2), Stream::Out).await;
    assert_eq!(tail.lines_in_run, Some(101));
    assert_eq!(tail.lines.len(), 32);
    assert_eq!(tail.lines[31].text, long.as_bytes());
    assert_eq!(tail.lines[0].text, b"out 69");
    assert_eq!(tail.last_time_ms(), Some(100));
    assert_eq!(tail.forming, b"> ");
    let tail = console.tail(RunId(2), Stream::Err).await;
    assert_eq!((tail.lines_in_run, tail.lines[31].text.as_slice()), (Some(100), &b"err 99"[..]));
    let first = console.tail(RunId(1), Stream::Out).await;
    assert_eq!((first.lines_in_run, first.lines.len()), (Some(1), 1));
    assert_eq!(console.tail(RunId(3), Stream::Out).await, super::resume::Tail::default());
}

#[tokio::test]
async fn a_disk_that_takes_nothing_does_not_stop_the_console() {
    let dir = TempDir::new().unwrap();
    fs::File::create(dir.path().join("console")).unwrap();
    let blocked = dir.path().join("console").join("inside-a-file");
    assert!(Console::open(blocked, small()).is_err());
    fs::remove_file(dir.path().join("console")).unwrap();

    let console = open(&dir, small());
    fs::File::create(dir.path().join("console")).unwrap();
    push(&console, &numbered(1..=5));
    console.flush().await;
    assert_eq!(console.health(), Health { journal_lost_lines: 5, journal_failing: true });
    let mut cursor = console.cursor(Start::After(Mark::line(0)));
    assert_eq!(Got::until(&mut cursor, |got| got.last_seq == 5).await.text, numbered(1..=5));

    fs::remove_file(dir.path().join("console")).unwrap();
    push(&console, &numbered(6..=6));
    console.flush().await;
    assert_eq!(console.health(), Health { journal_lost_lines: 5, journal_failing: false });
    drop((console, cursor));
    let console = open(&dir, small());
    let mut cursor = console.cursor(Start::After(Mark::line(2)));
    let got = Got::until(&mut cursor, |got| got.last_seq == 6).await;
    assert_eq!((got.text, got.lines_lost), (numbered(6..=6), 3));
}

#[tokio::test]
async fn numbers_that_a_full_disk_did_not_take_are_not_given_out_again() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    push(&console, &numbered(1..=5));
    console.flush().await;
    lock(&console.shared.journal).fill_disk();
    push(&console, &numbered(6..=9));
    console.flush().await;
    assert_eq!(console.health(), Health { journal_lost_lines: 4, journal_failing: true });
    let console = open(&dir, small());
    assert_eq!(console.last_line(), 9);
    push(&console, &numbered(10..=10));
    let mut cursor = console.cursor(Start::After(Mark::line(5)));
    let got = Got::until(&mut cursor, |got| got.last_seq == 10).await;
    assert_eq!((got.text, got.lines_lost), (numbered(10..=10), 4));
}

#[tokio::test(start_paused = true)]
async fn a_silent_console_gives_its_memory_back() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    let cancel = CancellationToken::new();
    let use_it = async {
        push(&console, &numbered(1..=100));
        push(&console, "> ");
        while !lock(&console.shared.state).ring.is_released() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        cancel.cancel();
    };
    let (released, ()) =
        tokio::join!(tokio::time::timeout(DEADLINE, use_it), console.run(cancel.clone()));
    released.expect("memory was not given back");
    let mut cursor = console.cursor(Start::Tail(1));
    let got = Got::until(&mut cursor, |got| got.last_seq == 101).await;
    assert_eq!(got.text, format!("{}> ", numbered(100..=100)));
}

#[tokio::test]
async fn closing_ends_readers_after_what_is_there() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    let mut cursor = console.cursor(Start::Now);
    push(&console, "last\n");
    console.close().await;
    assert!(matches!(cursor.next().await, Some(Delivery::Lines(_))));
    assert!(cursor.next().await.is_none());
    console.flush().await;
    assert!(!dir.path().join("console").exists());
}

#[test]
fn two_hundred_consoles_open_at_once() {
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for n in 0..200 {
            let console = Console::open(dir.path().join(n.to_string()), small()).unwrap();
            push(&console, &"a line of some length\n".repeat(3000));
            console.flush().await;
        }
    });
    let begin = Instant::now();
    for n in 0..200 {
        let console = Console::open(dir.path().join(n.to_string()), small()).unwrap();
        assert_eq!(console.last_line(), 3000);
    }
    let elapsed = begin.elapsed();
    assert!(elapsed < Duration::from_millis(250), "{elapsed:?}");
}

/// As if nothing had been written for a day.
fn age_of_a_day(dir: &TempDir) {
    for entry in fs::read_dir(dir.path().join("console")).unwrap() {
        let file = fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
        let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
        file.set_modified(yesterday).unwrap();
    }
}

#[tokio::test]
async fn what_is_too_old_goes_and_its_numbers_are_not_given_out_again() {
    const HOUR: Duration = Duration::from_secs(3600);
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    push(&console, &numbered(1..=40_000));
    console.flush().await;
    console.expire(HOUR, false).await;
    assert!(size_of_dir(&dir.path().join("console")) > 400_000, "nothing of it is old");
    age_of_a_day(&dir);
    console.expire(HOUR, true).await;
    let newest = size_of_dir(&dir.path().join("console"));
    assert!((1..=128 << 10).contains(&newest), "of a live run the newest segment stays: {newest}");
    console.expire(HOUR, false).await;
    assert_eq!(size_of_dir(&dir.path().join("console")), 0);
    console.close().await;

    // Twice: an empty journal opened is still one that knows its numbers.
    drop(open(&dir, small()));
    let console = open(&dir, small());
    assert_eq!(console.last_line(), 40_000);
    push(&console, "next\n");
    console.flush().await;
    let mut cursor = console.cursor(Start::After(Mark::line(0)));
    assert!(matches!(cursor.next().await, Some(Delivery::Gap { lines_lost: 40_000 })));
    let Some(Delivery::Lines(block)) = cursor.next().await else { panic!("no line") };
    assert_eq!((block.first_seq(), block.text().as_ref()), (40_001, "next\n"));
}

#[tokio::test]
async fn a_note_is_a_line_to_readers_and_none_of_the_runs() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    let of_run = RunId(3);
    console.push(of_run, Stream::Out, 1, b"one\n> ");
    console.note(of_run, 2, "[lightd] something is missing");
    console.push(of_run, Stream::Out, 3, b"two\nthr");
    let history = console.history(Query { lines: 10, ..Query::default() }).await;
    assert_eq!(history.last_seq, 3);
    // The beginning that was not shown yet goes on behind the note.
    assert_eq!(history.text, "one\n[lightd] something is missing\n> two\n");
    let tail = console.tail(of_run, Stream::Out).await;
    let texts: Vec<&[u8]> = tail.lines.iter().map(|line| line.text.as_slice()).collect();
    assert_eq!((texts, tail.lines_in_run), (vec![&b"one"[..], b"> two"], Some(2)));
}

#[tokio::test]
async fn a_line_that_was_shown_in_pieces_is_one_line_of_the_past() {
    let dir = TempDir::new().unwrap();
    let console = open(&dir, small());
    let mut cursor = console.cursor(Start::Now);
    push(&console, "one\nName");
    Got::until(&mut cursor, |got| got.text.ends_with("Name")).await;
    push(&console, "? y");
    Got::until(&mut cursor, |got| got.text.ends_with("? y")).await;
    push(&console, "ou\nthree\nfo");
    Got::until(&mut cursor, |got| got.text.ends_with("fo")).await;
    console.end_run();
    push(&console, "five\nsi");
    Got::until(&mut cursor, |got| got.text.ends_with("si")).await;
    let grep = Regex::new("^Name\\? you$").unwrap();
    for _ in 0..2 {
        let all = console.history(Query { lines: 10, ..Query::default() }).await;
        assert_eq!((all.text.as_str(), all.last_seq), ("one\nName? you\nthree\nfofive\n", 5));
        let found = Query { lines: 10, grep: Some(&grep), ..Query::default() };
        assert_eq!(console.history(found).await.text, "Name? you\n");
        let pages = |since| Query { lines: 2, since: Some(since), ..Query::default() };
        let page = console.history(pages(1)).await;
        assert_eq!(
            (page.text.as_str(), page.last_seq, page.complete),
            ("Name? you\nthree\n", 3, false)
        );
        let page = console.history(pages(3)).await;
        assert_eq!((page.text.as_str(), page.last_seq, page.complete), ("fofive\n", 5, true));
        // And once more from the disk.
        console.flush().await;
        lock(&console.shared.state).release();
    }
}
