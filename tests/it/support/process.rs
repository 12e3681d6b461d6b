//! `Daemon`: the real program as a child, on a node of its own: configuration, data folder, bridge,
//! subnet, ports and label are its alone, so that tests run beside each other.
//!
//! [`Daemon::close`] is the normal end of a test and asserts that nothing is left behind. Dropping one is
//! the safety net of a test that fails: the child is killed, all that bears the label is removed, and the
//! log stays in `CARGO_TARGET_TMPDIR/<test>/`.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use bollard::Docker;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::client::Client;
use super::wait::eventually;
use super::ws::Socket;
use super::{SOON, engine, guest, numbers};

/// Daemons at once in this process: more only make each other slow. One test takes one: tests that hold
/// one and wait for a second could wait for each other.
static SLOTS: Semaphore = Semaphore::const_new(8);
static SWEPT: OnceCell<()> = OnceCell::const_new();
const STOPS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Daemon {
    /// Names the test that this belongs to, and its log.
    name: String,
    /// The label of all it makes.
    pub(crate) node: String,
    /// The network's and the firewall tables' name.
    pub(crate) bridge: String,
    /// A name that no other test has, to make container names of.
    unique: String,
    pub(crate) port: u16,
    pub(crate) token: String,
    /// The test image, with a shell and the guest program.
    pub(crate) image: String,
    pub(crate) docker: Docker,
    folder: TempDir,
    child: Option<Child>,
    scheme: &'static str,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    /// A program, with arguments, that starts it.
    wrapper: Vec<String>,
    is_closed: bool,
    _slot: Option<SemaphorePermit<'static>>,
}

impl Daemon {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With changes to the configuration.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Value)) -> Self {
        let mut daemon = Self::prepare(change).await;
        daemon.launch().await;
        daemon
    }

    /// Everything but the process.
    pub(crate) async fn prepare(change: impl FnOnce(&mut Value)) -> Self {
        let daemon = Self::assemble(Some(SLOTS.acquire().await.expect("never closed"))).await;
        daemon.edit_config(change);
        daemon
    }

    async fn assemble(slot: Option<SemaphorePermit<'static>>) -> Self {
        let docker = engine::connect().await;
        SWEPT.get_or_init(|| engine::sweep(&docker)).await;
        let image = guest::ensure_image(&docker).await.expect("the test image");
        let node = engine::node_name();
        let unique = node[node.len() - 8..].to_owned();
        let thread = std::thread::current();
        let daemon = Self {
            name: thread.name().unwrap_or("unnamed").replace("::", "."),
            // The firewall wants a digit in it.
            bridge: format!("lt{}0", &unique[..5]),
            node,
            port: numbers::free_port(),
            token: format!("lightd_test_{unique}_token"),
            image,
            folder: TempDir::with_prefix("lightd-test-").expect("a folder"),
            child: None,
            scheme: "http",
            environment: Vec::new(),
            arguments: Vec::new(),
            wrapper: Vec::new(),
            is_closed: false,
            docker,
            unique,
            _slot: slot,
        };
        // Of an earlier run that failed.
        std::fs::remove_dir_all(log_folder(&daemon.name)).ok();
        let subnet = numbers::free_subnet(&engine::subnets(&daemon.docker).await);
        daemon.write_config(&daemon.first_config(&subnet));
        daemon
    }

    fn first_config(&self, subnet: &str) -> Value {
        json!({
            "server": {"host": "127.0.0.1", "port": self.port},
            // Tests are wrong on purpose, many of them from one address.
            "authorization": {
                "token": self.token,
                "failed_attempts": {"burst": 100_000, "per_minute": 100_000},
            },
            "docker": {"user": "988:988", "node": self.node},
            "storage": {"base_path": self.folder.path().join("data")},
            "network": {"bridge": self.bridge, "subnets": subnet},
            "log": {"level": "debug"},
        })
    }

    /// A container id that no other test uses: container names are the engine's, not the daemon's.
    pub(crate) fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.unique)
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.folder.path().join("config.json")
    }

    /// `storage.base_path`.
    pub(crate) fn data_path(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for what else the test needs; it goes with the daemon.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        log_folder(&self.name).join("lightd.log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(crate) fn config(&self) -> Value {
        let text = std::fs::read_to_string(self.config_path()).expect("the configuration");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Changes the file; a daemon that runs is not told.
    pub(crate) fn edit_config(&self, change: impl FnOnce(&mut Value)) {
        let mut config = self.config_or_empty();
        change(&mut config);
        self.write_config(&config);
    }

    fn config_or_empty(&self) -> Value {
        if self.config_path().exists() { self.config() } else { json!({}) }
    }

    pub(crate) fn write_config(&self, config: &Value) {
        // Beside it and then moved: the daemon watches the file.
        let beside = self.folder.path().join("config.json.new");
        let mut file = File::create(&beside).expect("a file");
        file.write_all(config.to_string().as_bytes()).expect("a write");
        std::fs::rename(beside, self.config_path()).expect("a rename");
    }

    /// For the next launch.
    pub(crate) fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Arguments for the next launch.
    pub(crate) fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    }

    /// Has another program start it, which ends by becoming it.
    pub(crate) fn set_wrapper(&mut self, words: &[&str]) {
        self.wrapper = words.iter().map(|&word| word.to_owned()).collect();
    }

    /// The address is `https` from here on.
    pub(crate) fn use_tls(&mut self) {
        self.scheme = "https";
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// A client with the node's token.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.url(), &self.token)
    }

    /// The address of a container's socket.
    pub(crate) fn ws_url(&self, id: &str, token: &str, query: &str) -> String {
        format!("ws://127.0.0.1:{}/ws/{id}?token={token}{query}", self.port)
    }

    /// A container's socket, opened with the node's token.
    pub(crate) async fn ws(&self, id: &str) -> Socket {
        Socket::open(&self.ws_url(id, &self.token, "")).await
    }

    /// The program with this configuration and these arguments, not started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut words =
            self.wrapper.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_lightd")]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words);
        let ours =
            |(name, _): &(std::ffi::OsString, _)| name.to_string_lossy().starts_with("LIGHTD_");
        for (name, _) in std::env::vars_os().filter(ours) {
            command.env_remove(name);
        }
        command.arg("--config").arg(self.config_path()).args(arguments);
        command.envs(self.environment.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Runs a verb of the command line to its end.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }

    /// Starts the process and waits until it answers.
    pub(crate) async fn launch(&mut self) {
        self.spawn();
        let client = self.client().anonymous();
        eventually("the daemon answers", SOON, async || {
            if let Some(status) =
                self.child.as_mut().expect("just started").try_wait().expect("a look")
            {
                self.child = None;
                panic!("the daemon ended with {status}:\n{}", tail(&self.log()));
            }
            let ping = client.request(reqwest::Method::GET, "/api/v1/public/ping").send().await;
            match ping {
                Ok(response) if response.status() == 200 => Ok(()),
                Ok(response) => Err(response.status().to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// Starts the process, and waits for nothing.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let folder = log_folder(&self.name);
        std::fs::create_dir_all(&folder).expect("a folder for the log");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let errors = log.try_clone().expect("a second handle");
        let mut command = self.command(&[]);
        command.args(&self.arguments);
        let child = command.stdout(log).stderr(errors).spawn();
        self.child = Some(child.expect("the program starts"));
    }

    /// The most memory that it has had at once.
    pub(crate) fn peak_memory_kib(&self) -> u64 {
        let pid = self.child.as_ref().expect("a daemon that runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        number.expect("a number")
    }

    /// What it holds open; nothing while it does not run.
    pub(crate) fn open_files(&self) -> Vec<PathBuf> {
        let Some(child) = &self.child else { return Vec::new() };
        let handles = std::fs::read_dir(format!("/proc/{}/fd", child.id())).expect("its handles");
        // A handle may be closed between the listing and the look.
        handles.flatten().filter_map(|handle| std::fs::read_link(handle.path()).ok()).collect()
    }

    /// Nothing is told to it, and it can do nothing about it.
    pub(crate) async fn kill9(&mut self) {
        let mut child = self.child.take().expect("a daemon that runs");
        child.kill().expect("a kill");
        let status = child.wait().expect("an end");
        assert_eq!(status.signal(), Some(9), "it had ended before: {status}");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a daemon that runs");
        kill_process(Pid::from_child(child), signal).expect("a signal");
    }

    /// SIGTERM; it must end well within ten seconds.
    pub(crate) async fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended(STOPS_WITHIN).await;
        assert!(status.success(), "it ended with {status}:\n{}", tail(&self.log()));
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("a daemon that runs");
        let status = eventually("the daemon ends", deadline, async || {
            child.try_wait().expect("a look").ok_or("it runs")
        })
        .await;
        self.child = None;
        status
    }

    pub(crate) async fn restart(&mut self) {
        self.terminate().await;
        self.launch().await;
    }

    /// A volume, by its id.
    pub(crate) async fn volume(&self) -> String {
        let made = self.client().post_empty("/volumes").await.is(201);
        made["volume_id"].as_str().expect("an id").to_owned()
    }

    /// A file in the volume of a container, as it lies on the disk.
    pub(crate) fn volume_file(&self, container: &Value, path: &str) -> Option<String> {
        let volume = container["volume_id"].as_str().expect("an id");
        let path = self.data_path().join("volumes").join(volume).join(path);
        std::fs::read_to_string(path).ok()
    }

    /// What a request for a container says if the test does not care: the guest program that does
    /// nothing, in a new volume. `changes` are put over it.
    pub(crate) async fn spec(&self, id: &str, changes: Value) -> Value {
        let mut spec = json!({
            "internal_id": id,
            "image": self.image,
            "startup_command": "guest say Ready -- forever",
            "start_pattern": "Ready",
            "limits": {"memory": 64 << 20, "cpu": 0.5},
        });
        if changes.get("volume_id").is_none() {
            spec["volume_id"] = self.volume().await.into();
        }
        let spec_fields = spec.as_object_mut().expect("an object");
        for (name, value) in changes.as_object().expect("an object") {
            if value.is_null() {
                spec_fields.remove(name);
            } else {
                spec_fields.insert(name.clone(), value.clone());
            }
        }
        spec
    }

    /// Makes a container and waits until it is installed.
    pub(crate) async fn create(&self, id: &str, changes: Value) -> Value {
        let spec = self.spec(id, changes).await;
        self.client().post("/containers", spec).await.is(201);
        self.install_state(id, "ready").await
    }

    /// [`Daemon::create`], started and running.
    pub(crate) async fn run(&self, id: &str, changes: Value) -> Value {
        self.create(id, changes).await;
        self.power(id, "start").await;
        self.state(id, "running").await
    }

    pub(crate) async fn power(&self, id: &str, action: &str) {
        self.client().post_empty(&format!("/containers/{id}/{action}")).await.is(202);
    }

    /// Waits for a state and returns the container as shown then.
    pub(crate) async fn state(&self, id: &str, state: &str) -> Value {
        self.shown(id, &format!("{id} is {state}"), |shown| shown["state"] == state).await
    }

    pub(crate) async fn install_state(&self, id: &str, state: &str) -> Value {
        let what = format!("{id} is installed as {state}");
        self.shown(id, &what, |shown| {
            let seen = &shown["install_state"];
            assert!(seen != "failed" || state == "failed", "{what}: {}", shown["install_error"]);
            seen == state
        })
        .await
    }

    /// Waits until the container is shown as wanted.
    pub(crate) async fn shown(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let (client, path) = (self.client(), format!("/containers/{id}"));
        eventually(what, SOON * 2, async || {
            let answer = client.get(&path).await;
            if answer.status == 200 && wanted(&answer.body) {
                Ok(answer.body)
            } else {
                Err(answer.text)
            }
        })
        .await
    }

    /// What the engine says of a container, null where it knows none.
    pub(crate) async fn inspect(&self, id: &str) -> Value {
        let found = self.docker.inspect_container(&format!("lightd-{id}"), None).await;
        found.map_or(Value::Null, |found| serde_json::to_value(found).expect("JSON"))
    }

    /// Waits until the console's history holds this text, and returns all of it.
    pub(crate) async fn expect_log(&self, id: &str, text: &str) -> String {
        let what = format!("{text:?} on the console of {id}");
        eventually(&what, SOON, async || {
            let log = self.logs(id).await;
            if log.contains(text) { Ok(log) } else { Err(log) }
        })
        .await
    }

    /// What the console says, all of it.
    pub(crate) async fn logs(&self, id: &str) -> String {
        let answer = self.client().get(&format!("/containers/{id}/logs?lines=1000")).await.is(200);
        answer["data"].as_str().unwrap_or_else(|| panic!("no text in {answer}")).to_owned()
    }

    /// Deletes all containers, and asserts that the engine has nothing of this node any more but the
    /// bridge; then ends the daemon and removes that.
    pub(crate) async fn close(mut self) {
        if self.child.is_some() {
            self.delete_all().await;
            eventually("nothing is left in the engine", SOON, async || {
                let mut left = engine::leftovers(&self.docker, &self.node).await;
                left.retain(|thing| !thing.contains(&self.bridge));
                if left.is_empty() { Ok(()) } else { Err(left) }
            })
            .await;
            self.bridge_is_there().await;
            self.terminate().await;
        }
        engine::remove_node(&self.docker, &self.node).await;
        engine::remove_firewall(&self.bridge);
        self.unmount_all();
        let log = self.log();
        assert!(!log.contains("panicked"), "something panicked:\n{}", tail(&log));
        std::fs::remove_dir_all(log_folder(&self.name)).ok();
        self.is_closed = true;
    }

    /// Gives a daemon that has only just started the time to make its bridge: the engine finishes what it
    /// was asked for also when the daemon has ended, and then nobody would remove it. Some make none.
    async fn bridge_is_there(&self) {
        let looking = async {
            let options = None::<bollard::query_parameters::InspectNetworkOptions>;
            while self.docker.inspect_network(&self.bridge, options.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), looking).await.ok();
    }

    /// Unmounts all volumes, as a restart of the host would.
    pub(crate) fn unmount_all(&self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
        let folder = self.data_path().join("volumes").display().to_string();
        let at = |line: &str| line.split(' ').nth(4).map(str::to_owned);
        let mounted = table.lines().rev().filter_map(at);
        for at in mounted.filter(|at| at.starts_with(&format!("{folder}/"))) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            if let Err(error) = rustix::mount::unmount(&at, flags) {
                eprintln!("{at} stays mounted: {error}");
            }
        }
    }

    async fn delete_all(&self) {
        let client = self.client();
        let listed = client.get("/containers").await.is(200);
        for container in listed["containers"].as_array().expect("a list") {
            let id = container["internal_id"].as_str().expect("an id");
            let answer = client.delete(&format!("/containers/{id}")).await;
            assert!(matches!(answer.status, 200 | 202 | 404), "{answer:?}");
        }
        eventually("all containers are deleted", SOON * 2, async || {
            let listed = client.get("/containers").await.is(200);
            if listed["containers"] == json!([]) { Ok(()) } else { Err(listed) }
        })
        .await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
        if self.is_closed {
            return;
        }
        self.unmount_all();
        eprintln!("the daemon's log: {}", self.log_path().display());
        // A runtime of its own: this one may be going down, and can't be waited in.
        let (node, bridge) = (self.node.clone(), self.bridge.clone());
        let removing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                engine::remove_node(&engine::connect().await, &node).await;
            });
            engine::remove_firewall(&bridge);
        });
        if removing.join().is_err() {
            eprintln!("things of {} may be left in the engine", self.node);
        }
    }
}

fn log_folder(test: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(test)
}

/// The end of a long text.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
