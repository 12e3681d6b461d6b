//! The real engine for unit tests: a node of its own, the test image, and nothing left behind.

use bollard::Docker;
use bollard::query_parameters::RemoveImageOptionsBuilder;

use super::{CreateRequest, Engine, EngineOptions, Hardening, LogCap, OutputStream};
use crate::domain::spec::Limits;

#[path = "../../tests/it/support/guest.rs"]
mod guest;

pub(crate) const SOCKET: &str = "/var/run/docker.sock";

/// A node on the real engine. Dropped, all its containers, networks and images are removed, also when
/// the test fails.
#[derive(Debug)]
pub(crate) struct TestNode {
    pub(crate) engine: Engine,
    pub(crate) image: String,
    name: String,
}

impl TestNode {
    pub(crate) async fn new() -> Self {
        let docker = Docker::connect_with_unix_defaults().expect("a Docker engine");
        let image = guest::ensure_image(&docker).await.expect("the test image");
        let name = format!("test-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let options = EngineOptions { socket_path: SOCKET.into(), node: name.clone() };
        Self { engine: Engine::new(options), image, name }
    }

    /// A container that would run the command, in no network.
    pub(crate) fn request(&self, name: &str, cmd: &[&str]) -> CreateRequest {
        CreateRequest {
            name: format!("{}-{name}", self.name),
            image: self.image.clone(),
            cmd: cmd.iter().map(|&part| part.to_owned()).collect(),
            entrypoint: None,
            env: Vec::new(),
            user: None,
            working_dir: None,
            tty: false,
            labels: std::collections::BTreeMap::new(),
            network: None,
            binds: Vec::new(),
            ports: Vec::new(),
            limits: Limits { pids: Some(128), ..Limits::default() },
            hardening: Hardening::default(),
            stop_signal: None,
            log: LogCap { max_size_bytes: 8 << 20, max_files: 1 },
        }
    }

    /// Creates it and starts it; returns its id.
    pub(crate) async fn run(&self, request: &CreateRequest) -> String {
        let made = self.engine.create(request).await.expect("a container");
        self.engine.start(&made.docker_id).await.expect("a start");
        made.docker_id
    }

    async fn remove_all(engine: &Engine) -> anyhow::Result<()> {
        for ours in engine.list_ours().await? {
            engine.remove(&ours.docker_id).await?;
        }
        let docker = Docker::connect_with_unix_defaults()?;
        for image in engine.list_our_images().await? {
            let options = RemoveImageOptionsBuilder::new().force(true).build();
            docker.remove_image(&image.id, Some(options), None).await?;
        }
        engine.remove_our_networks().await?;
        Ok(())
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let engine = self.engine.clone();
        // A runtime cannot be entered from within another one, so the clean-up has its own thread.
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(Self::remove_all(&engine))
        });
        match cleaned.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("{}: not all was removed: {error:#}", self.name),
            Err(_) => eprintln!("{}: the clean-up panicked", self.name),
        }
    }
}

/// Reads the output until it contains the text, and returns all that was read.
pub(crate) async fn read_until(output: &mut OutputStream, text: &str) -> String {
    let mut seen = String::new();
    let reading = async {
        while !seen.contains(text) {
            let chunk = output.next().await.expect("no error").expect("more output");
            seen.push_str(&String::from_utf8_lossy(&chunk.bytes));
        }
    };
    let done = tokio::time::timeout(std::time::Duration::from_secs(20), reading).await;
    assert!(done.is_ok(), "no {text:?} in {seen:?}");
    seen
}
