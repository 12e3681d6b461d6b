//! A stub of the remote panel: records what it is told, answers as the test says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::SOON;
use super::wait::eventually;

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    /// What it was answered.
    pub(crate) status: u16,
}

#[derive(Debug, Default)]
struct Script {
    calls: Vec<Call>,
    /// Answers to the next updates; once they are used up, 200.
    answers: VecDeque<u16>,
}

/// Lives in the test's own runtime and ends with it.
#[derive(Debug)]
pub(crate) struct Panel {
    script: Arc<Mutex<Script>>,
    port: u16,
    _server: JoinSet<()>,
}

impl Panel {
    pub(crate) async fn start() -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let router = Router::new().fallback(take).with_state(Arc::clone(&script));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.expect("no end") });
        Self { script, port, _server: server }
    }

    /// For `remote.url`.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api", self.port)
    }

    /// The `remote` part of a configuration that has this panel.
    pub(crate) fn config(&self) -> Value {
        json!({
            "enabled": true, "url": self.url(), "token": "lightd_panel_token_0000",
            "health_interval": "1s",
        })
    }

    /// The statuses of the answers to the next updates.
    pub(crate) fn answer_with(&self, statuses: impl IntoIterator<Item = u16>) {
        self.script().answers.extend(statuses);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.script().calls.clone()
    }

    /// The updates about a server that were accepted, in order.
    pub(crate) fn updates_of(&self, server: &str) -> Vec<Value> {
        let calls = self.calls().into_iter();
        let accepted = calls.filter(|call| {
            call.path == "/api/update" && call.status == 200 && call.body["server"] == server
        });
        accepted.map(|call| call.body).collect()
    }

    /// Waits until the panel has been told exactly this about a server.
    pub(crate) async fn expect_updates(&self, server: &str, updates: &[Value]) {
        eventually("the panel's updates", SOON, async || {
            let seen = self.updates_of(server);
            if seen == updates { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no test panics while it holds this")
    }
}

async fn take(
    State(script): State<Arc<Mutex<Script>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, axum::Json<Value>) {
    let mut script = script.lock().expect("no test panics while it holds this");
    let (status, answer) = match uri.path() {
        "/api/health" => (200, json!({"status": 200, "endpoint": "active"})),
        "/api/update" => (script.answers.pop_front().unwrap_or(200), json!({})),
        _ => (404, json!({})),
    };
    script.calls.push(Call {
        method: method.to_string(),
        path: uri.path().to_owned(),
        headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        status,
    });
    (StatusCode::from_u16(status).expect("a status"), axum::Json(answer))
}
