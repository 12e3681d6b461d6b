//! What the check of a token costs a request, beside a plain digest with a look into a map.
//!
//! ```text
//! cargo bench --features benching --bench access
//! ```
//! Needs no engine; its store lies in a folder for temporary files and goes with it. The machine's noise is
//! in every figure, so both sides take turns: compare within a run.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Instant;

use lightd::benching::TokenCheck;

const ISSUED: u32 = 200;
const CHECKS: u32 = 20_000;
const ROUNDS: usize = 9;
const ALLOWED_US: f64 = 20.0;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = TokenCheck::new(folder.path(), ISSUED).await;
    let issued: Vec<&str> = node.issued_tokens().collect();
    // The first use of each is noted in the store.
    for token in &issued {
        assert!(node.check(token).await, "an issued token is good");
    }
    assert!(node.check(node.node_token()).await, "the node's token is good");
    let bad = format!("{}x", node.node_token());
    println!("\n== token check: median of {ROUNDS} rounds of {CHECKS}");
    let parts: [(&str, Vec<&str>); 3] = [
        ("issued token", issued.clone()),
        ("node token", vec![node.node_token()]),
        ("bad token", vec![&bad]),
    ];
    for (name, tokens) in parts {
        let (mut checked, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            checked.push(check_us(&node, &tokens).await);
            plain.push(plain_us(&tokens));
        }
        let (checked, plain) = (median(checked), median(plain));
        let verdict = if checked < ALLOWED_US { "within" } else { "OVER" };
        println!(
            "{name:14} {checked:7.2} us   plain SHA-256 and map {plain:6.2} us   {:5.1} times   {verdict} {ALLOWED_US} us",
            checked / plain
        );
    }
}

async fn check_us(node: &TokenCheck, tokens: &[&str]) -> f64 {
    let began = Instant::now();
    for token in tokens.iter().cycle().take(CHECKS as usize) {
        black_box(node.check(black_box(token)).await);
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(CHECKS)
}

fn plain_us(tokens: &[&str]) -> f64 {
    let digest = TokenCheck::plain_digest;
    let known: HashMap<[u8; 32], usize> =
        tokens.iter().enumerate().map(|(number, token)| (digest(token), number)).collect();
    let began = Instant::now();
    for token in tokens.iter().cycle().take(CHECKS as usize) {
        black_box(known.get(&digest(black_box(token))));
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(CHECKS)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
