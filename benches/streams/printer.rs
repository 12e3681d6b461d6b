//! What prints in the containers of this bench: told on standard input what and how fast, one job a line.
//! Standard library only, linked statically.
//!
//! ```text
//! lines COUNT LENGTH             as fast as it is taken
//! paced PER-SECOND COUNT LENGTH  a hundredth of a second's lines at a time
//! stamps PER-SECOND COUNT        each line with the Unix time of its writing, in nanoseconds
//! ```

use std::io::{BufRead, Write};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn main() {
    let input = std::io::stdin().lock();
    for job in input.lines().map_while(Result::ok) {
        let words: Vec<&str> = job.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
        match words.first() {
            Some(&"lines") => lines(1, number(1), number(2)),
            Some(&"paced") => paced(number(1), number(2), number(3)),
            Some(&"stamps") => stamps(number(1), number(2)),
            _ => eprintln!("unknown: {job}"),
        }
    }
}

fn lines(first: u64, count: u64, length: u64) {
    let mut out = std::io::BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
    let fill = "x".repeat(length as usize);
    for n in first..first + count {
        let head = format!("line {n} ");
        // The line end counts.
        let rest = fill.get(head.len() + 1..).unwrap_or("");
        writeln!(out, "{head}{rest}").expect("someone reads");
    }
}

fn paced(per_second: u64, count: u64, length: u64) {
    let began = Instant::now();
    let at_once = (per_second / 100).max(1);
    let mut printed = 0;
    while printed < count {
        lines(printed + 1, at_once.min(count - printed), length);
        printed += at_once;
        sleep_until(began, printed, per_second);
    }
}

fn stamps(per_second: u64, count: u64) {
    let began = Instant::now();
    for n in 1..=count {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        println!("stamp={} and some text of a common length", now.as_nanos());
        sleep_until(began, n, per_second);
    }
}

fn sleep_until(began: Instant, printed: u64, per_second: u64) {
    let due = Duration::from_nanos(printed * 1_000_000_000 / per_second.max(1));
    sleep(due.saturating_sub(began.elapsed()));
}
