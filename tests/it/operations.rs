//! What an operator does: starts, stops, configures, asks.

use serde_json::json;

use crate::support::process::Daemon;

#[tokio::test]
async fn a_daemon_answers_ends_on_sigterm_and_starts_again_on_the_same_data() {
    let mut daemon = Daemon::start().await;
    let ping = daemon.client().anonymous().get("/api/v1/public/ping").await.is(200);
    assert_eq!(ping, json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}));
    assert_eq!(daemon.client().get("/containers").await.is(200)["containers"], json!([]));
    daemon.restart().await;
    daemon.kill9().await;
    daemon.launch().await;
    daemon.close().await;
}
