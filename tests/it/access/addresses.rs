//! Where requests come from: proxies, the allow-list, and whoever is wrong too often.

use reqwest::Method;
use serde_json::json;

use super::{issue, token_of};
use crate::support::SOON;
use crate::support::client::{Answer, Client, answer};
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

/// A request as a proxy on this host passes it on.
async fn from(client: &Client, address: &str, path: &str) -> Answer {
    answer(client.request(Method::GET, path).header("X-Forwarded-For", address)).await
}

/// Guesses until it is slowed down, which must be soon.
async fn guess_on(guess: &Client, attacker: &str) {
    for count in 0..=5 {
        // All of a /64 is one.
        let is_v6 = attacker.ends_with(':');
        let address = if is_v6 { format!("{attacker}{count}") } else { attacker.to_owned() };
        let refused = from(guess, &address, "/containers").await;
        if refused.status == 429 {
            let wait = refused.headers["retry-after"].to_str().expect("text").parse::<u64>();
            assert!((1..=60).contains(&wait.expect("seconds")), "{refused:?}");
            refused.refused(429, "too_many_attempts");
            return;
        }
        refused.refused(401, "unauthorized");
    }
    panic!("{attacker} goes on and on");
}

#[tokio::test]
async fn who_is_wrong_too_often_is_slowed_down_and_nobody_else() {
    let daemon = Daemon::start_with(|config| {
        config["server"]["trusted_proxies"] = json!(["127.0.0.1"]);
        config["authorization"]["failed_attempts"] = json!({"burst": 5, "per_minute": 1});
    })
    .await;
    let client = daemon.client();
    let guess = client.with_token("lightd_a_guess_that_is_wrong");
    let issued = client.with_token(token_of(&issue(&daemon, json!({})).await));
    // The panel, and an attacker through a proxy that does not say where he is.
    client.get("/containers").await.is(200);
    for attacker in ["127.0.0.1", "203.0.113.9", "2001:db8::"] {
        guess_on(&guess, attacker).await;
        // What is no token at all is one guess more.
        let nonsense = client.with_token("x");
        from(&nonsense, attacker, "/containers").await.refused(429, "too_many_attempts");
        // No token is no guess, and an issued one cannot be guessed.
        from(&client.anonymous(), attacker, "/containers").await.refused(401, "unauthorized");
        from(&issued, attacker, "/containers").await.is(200);
        from(&client.anonymous(), attacker, "/api/v1/public/ping").await.is(200);
    }
    client.get("/containers").await.is(200);
    // A guess that is right is refused like others.
    from(&client, "203.0.113.9", "/containers").await.refused(429, "too_many_attempts");
    from(&client, "203.0.113.10", "/containers").await.is(200);
    let url = daemon.ws_url("nobody", "lightd_a_guess_that_is_wrong", "");
    let (status, body) = Socket::try_open(&url).await.expect_err("a bad token");
    assert_eq!((status, &body["code"]), (429, &json!("too_many_attempts")));
    daemon.close().await;
}

#[tokio::test]
async fn whoever_shares_an_address_with_a_guesser_gets_in_after_a_restart_too() {
    let mut daemon = Daemon::start_with(|config| {
        config["server"]["trusted_proxies"] = json!(["127.0.0.1"]);
        config["authorization"]["failed_attempts"] = json!({"burst": 5, "per_minute": 1});
    })
    .await;
    let shared = "203.0.113.9";
    from(&daemon.client(), shared, "/containers").await.is(200);
    daemon.restart().await;
    let client = daemon.client();
    guess_on(&client.with_token("lightd_a_guess_that_is_wrong"), shared).await;
    from(&client, shared, "/containers").await.is(200);
    daemon.close().await;
}

#[tokio::test]
async fn only_listed_addresses_come_in_and_nobody_can_claim_to_be_one() {
    let daemon = Daemon::start_with(|config| {
        config["server"]["trusted_proxies"] = json!(["127.0.0.1"]);
        config["authorization"]["allowed_ips"] = json!(["203.0.113.0/24", "2001:db8::1"]);
    })
    .await;
    let client = daemon.client();
    for good in ["203.0.113.9", "198.51.100.1, 203.0.113.9", "2001:db8::1", "::ffff:203.0.113.1"] {
        from(&client, good, "/containers").await.is(200);
    }
    let spoofed =
        ["203.0.113.9, 198.51.100.1", "127.0.0.1, 198.51.100.1", "203.0.113.9, unknown", ""];
    for bad in ["198.51.100.1", "2001:db8::2"].into_iter().chain(spoofed) {
        for path in ["/containers", "/health", "/nothing", "/ws/a"] {
            from(&client, bad, path).await.refused(403, "address");
        }
    }
    // Who is on the node itself always comes in.
    client.get("/containers").await.is(200);
    assert!(daemon.cli(&["ps"]).status.success());
    daemon.edit_config(|config| config["server"]["trusted_proxies"] = json!([]));
    let reloaded = client.post_empty("/remote/config/reload").await.is(200);
    assert_eq!(reloaded["applied"], json!(["server.trusted_proxies"]));
    // Nobody's word counts now.
    eventually("the change counts", SOON, async || {
        let answer = from(&client, "198.51.100.1", "/containers").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn the_log_says_where_a_request_came_from() {
    let daemon = Daemon::start_with(|config| {
        config["server"]["trusted_proxies"] = json!(["127.0.0.0/8"]);
    })
    .await;
    from(&daemon.client(), "10.1.1.1, 203.0.113.77", "/containers/nobody").await.is(404);
    let line = eventually("the line", SOON, async || {
        let log = daemon.log();
        let found = log.lines().find(|line| line.contains("/containers/nobody"));
        found.map(str::to_owned).ok_or("no line")
    })
    .await;
    assert!(line.contains("203.0.113.77") && !line.contains("10.1.1.1"), "{line}");
    daemon.close().await;
}
