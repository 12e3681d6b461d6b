//! The plain server: one route, one body of the size of a container's.

use std::process::{Child, Command};

use crate::client::{Result, free_port, wait_for_port};

pub(super) struct Server {
    child: Child,
    pub(super) port: u16,
}

pub(super) fn start() -> Result<Server> {
    let port = free_port()?;
    let child = Command::new(std::env::current_exe()?)
        .env("LIGHTD_BENCH_BARE", port.to_string())
        .spawn()?;
    let server = Server { child, port };
    wait_for_port(port, "/bare")?;
    Ok(server)
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("the bare server was not ended: {error}");
        }
    }
}

pub(super) fn serve(port: u16) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let body = serde_json::json!({"text": "x".repeat(1100)});
        let route = axum::routing::get(move || {
            let body = body.clone();
            async move { axum::Json(body) }
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        axum::serve(listener, axum::Router::new().route("/bare", route)).await?;
        Ok(())
    })
}
