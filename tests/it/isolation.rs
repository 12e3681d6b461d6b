//! What a container reaches, with packets: the internet, and nothing else. The same for a workload and for
//! an install script, through the real daemon with its real rules.
//!
//! Each closed door is shown to be open for the host: otherwise its being closed would prove nothing.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::numbers::free_ports;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

/// Plays an address on the internet. From a block for documentation, so nobody else's.
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The host's address towards it.
const HOST_OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// A metadata service, and machines of private networks; all of them routed to the world.
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 78, 78);
const PRIVATE: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 255, 231, 78),
    Ipv4Addr::new(172, 31, 231, 78),
    Ipv4Addr::new(192, 168, 232, 78),
    Ipv4Addr::new(100, 64, 231, 78),
];
const WORLD_PORT: u16 = 7788;
const ENOUGH: Duration = Duration::from_secs(2);

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}");
}

/// A network namespace with a server on all its addresses.
struct World {
    namespace: String,
    link: String,
    server: Child,
    /// The addresses are these tests' alone, but there may be several processes of tests.
    _lock: File,
}

impl World {
    async fn new() -> Self {
        let lock = File::create(std::env::temp_dir().join("lightd-test-world.lock"));
        let lock = lock.expect("a lock file");
        let lock = tokio::task::spawn_blocking(|| lock.lock().map(|()| lock));
        let lock = lock.await.expect("a thread").expect("the lock");
        let unique = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let (namespace, link, inner) =
            (format!("ltw{unique}"), format!("lto{unique}"), format!("lti{unique}"));
        run("ip", &format!("netns add {namespace}"));
        run("ip", &format!("link add {link} type veth peer name {inner} netns {namespace}"));
        run("ip", &format!("addr add {HOST_OUTSIDE}/30 dev {link}"));
        run("ip", &format!("link set {link} up"));
        let within = |arguments: &str| run("ip", &format!("-n {namespace} {arguments}"));
        within("link set lo up");
        within(&format!("addr add {WORLD}/30 dev {inner}"));
        within(&format!("link set {inner} up"));
        within(&format!("route add default via {HOST_OUTSIDE}"));
        for address in PRIVATE.into_iter().chain([LINK_LOCAL]) {
            within(&format!("addr add {address}/32 dev lo"));
            run("ip", &format!("route add {address}/32 via {WORLD} dev {link}"));
        }
        let server = Command::new("ip")
            .args(["netns", "exec", &namespace, "busybox", "nc", "-ll", "-p"])
            .args([&WORLD_PORT.to_string(), "-e", "cat"])
            .stdin(Stdio::null())
            .spawn()
            .expect("a server");
        Self { namespace, link, server, _lock: lock }
    }

    /// Whether a connection from the world is taken.
    fn connects(&self, address: Ipv4Addr, port: u16) -> bool {
        let mut client = Command::new("ip");
        client
            .args(["netns", "exec", &self.namespace, "busybox", "timeout", "4"])
            .args(["busybox", "nc", "-w", "2", &address.to_string(), &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        client.status().expect("an end").success()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.server.kill().ok();
        self.server.wait().ok();
        // The link by itself: the kernel takes a namespace apart in its own time.
        for arguments in [["link", "delete", &self.link], ["netns", "delete", &self.namespace]] {
            let deleted = Command::new("ip").args(arguments).status();
            assert!(deleted.is_ok_and(|status| status.success()) || std::thread::panicking());
        }
    }
}

/// All that a container might try to reach, and a name for each.
struct Site {
    world: World,
    daemon: Daemon,
    /// Answers on all of the host's addresses.
    _service: TcpListener,
    closed: Vec<(&'static str, SocketAddr)>,
    published: u16,
}

impl Site {
    /// A daemon, and a container of it that serves, directly and on a published port.
    async fn new() -> Self {
        let world = World::new().await;
        let daemon = Daemon::start_with(|config| config["server"]["host"] = json!("0.0.0.0")).await;
        let service = TcpListener::bind("0.0.0.0:0").expect("a listener");
        let service_port = service.local_addr().expect("an address").port();
        let published = free_ports(1)[0];
        let binding = json!({"ip": "0.0.0.0", "port": published, "container_port": 7000});
        let pool = json!({"ip": "0.0.0.0", "port": published});
        daemon.client().post("/network/ports", pool).await.is(201);
        let id = daemon.id("server");
        let spec = json!({
            "startup_command": "guest serve 7000", "start_pattern": null, "ports": [binding],
        });
        daemon.run(&id, spec).await;
        let seen = daemon.inspect(&id).await;
        let network = &seen["NetworkSettings"]["Networks"][&daemon.bridge];
        let address = |name: &str| network[name].as_str().expect("one").parse().expect("IPv4");
        let (server, gateway): (Ipv4Addr, Ipv4Addr) = (address("IPAddress"), address("Gateway"));
        let mut closed = vec![
            ("lightd", SocketAddr::from((gateway, daemon.port))),
            ("lightd-outside", SocketAddr::from((HOST_OUTSIDE, daemon.port))),
            ("host", SocketAddr::from((gateway, service_port))),
            ("host-outside", SocketAddr::from((HOST_OUTSIDE, service_port))),
            ("neighbour", SocketAddr::from((server, 7000))),
            ("neighbour-published", SocketAddr::from((gateway, published))),
            ("neighbour-published-outside", SocketAddr::from((HOST_OUTSIDE, published))),
            ("metadata", SocketAddr::from((LINK_LOCAL, WORLD_PORT))),
        ];
        let private = PRIVATE.map(|address| ("private", SocketAddr::from((address, WORLD_PORT))));
        closed.extend(private);
        let site = Self { world, daemon, _service: service, closed, published };
        site.everything_is_there().await;
        site
    }

    async fn everything_is_there(&self) {
        let world = ("world", SocketAddr::from((WORLD, WORLD_PORT)));
        for (name, address) in self.closed.iter().chain([&world]) {
            eventually(&format!("the host reaches {name}"), SOON, async || {
                TcpStream::connect_timeout(address, ENOUGH).map(drop)
            })
            .await;
        }
    }

    /// A script that tries everything and prints how it went: `name 0` is an open door.
    fn tries(&self) -> String {
        let mut script = format!("guest connect {WORLD}:{WORLD_PORT} 5000; echo world $?\n");
        for (name, address) in &self.closed {
            // At once, for a dropped packet is waited for.
            script.push_str(&format!("(guest connect {address} 1000; echo {name} $?) &\n"));
        }
        script.push_str("wait\necho tried\n");
        script
    }

    fn judge(&self, said: &str) {
        let ways: Vec<(&str, &str)> =
            said.lines().filter_map(|line| line.trim().split_once(' ')).collect();
        assert_eq!(ways.first(), Some(&("world", "0")), "the internet: {said}");
        let open: Vec<&str> =
            ways[1..].iter().filter(|(_, code)| *code == "0").map(|(name, _)| *name).collect();
        assert_eq!(open, Vec::<&str>::new(), "open doors: {said}");
        assert_eq!(ways.len() - 1, self.closed.len(), "all were tried: {said}");
    }

    async fn close(self) {
        self.daemon.close().await;
    }
}

async fn exec(daemon: &Daemon, id: &str, script: &str) -> Value {
    let cmd = json!({"cmd": ["sh", "-c", script]});
    daemon.client().post(&format!("/containers/{id}/exec"), cmd).await.is(200)
}

#[tokio::test]
async fn a_workload_reaches_the_internet_and_nothing_else() {
    let site = Site::new().await;
    let daemon = &site.daemon;
    let id = daemon.id("subject");
    daemon.run(&id, json!({})).await;
    let answer = exec(daemon, &id, &site.tries()).await;
    site.judge(answer["stdout"].as_str().expect("a text").trim_end_matches("tried\n"));
    site.close().await;
}

/// CVE-2023-32080, from the side of the network.
#[tokio::test]
async fn an_install_script_reaches_the_internet_and_nothing_else() {
    let site = Site::new().await;
    let daemon = &site.daemon;
    let id = daemon.id("subject");
    daemon.create(&id, json!({"install_script": site.tries()})).await;
    let said = daemon.expect_log(&id, "tried").await;
    site.judge(said.trim_end().trim_end_matches("tried"));
    site.close().await;
}

#[tokio::test]
async fn a_published_port_answers_to_the_host_and_to_the_world() {
    let site = Site::new().await;
    for address in [Ipv4Addr::LOCALHOST, HOST_OUTSIDE] {
        let address = SocketAddr::from((address, site.published));
        TcpStream::connect_timeout(&address, ENOUGH).expect("the host reaches it");
    }
    assert!(site.world.connects(HOST_OUTSIDE, site.published), "the world reaches it");
    site.close().await;
}
