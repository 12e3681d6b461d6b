//! Who may do what: tokens, their limits and their end, addresses, origins, and the certificate in front.

mod addresses;
mod container_tokens;
mod ends;
mod gate;
mod issued;
mod node_token;
mod secrets;
mod tls;

use serde_json::Value;

use crate::support::process::Daemon;

pub(crate) async fn issue(daemon: &Daemon, body: Value) -> Value {
    daemon.client().post("/auth/tokens", body).await.is(201)
}

pub(crate) fn token_of(issued: &Value) -> &str {
    issued["token"].as_str().expect("a token")
}
