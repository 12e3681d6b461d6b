//! The isolation, with packets: real containers on a real bridge, a host with services, and a network
//! namespace that plays the rest of the world.
//!
//! Each closed door is first shown to be open without the rules; otherwise its being closed would prove
//! nothing.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ipnet::Ipv4Net;

use super::isolation::{Exceptions, Firewall, Isolation, IsolationOptions, IsolationStatus};
use super::isolation_rules::{HostService, Rules, WithinBridge, render};
use crate::domain::spec::{HostPort, PortBinding, Protocol};
use crate::engine::testing::{TestNode, read_until};
use crate::engine::{ExecEnd, ExecRequest};

/// Plays an address on the internet. From the block for documentation, so nobody else's.
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The host's address towards it.
const HOST_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Play a metadata service and a machine of a private network; routed to the namespace.
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 77);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 231, 77);
const WORLD_PORT: u16 = 7777;
const SERVER_PORT: u16 = 7000;

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}");
}

fn random_name(prefix: &str) -> String {
    format!("{prefix}{}", &uuid::Uuid::new_v4().simple().to_string()[..8])
}

/// Addresses are shared with other test processes, so one at a time.
fn lock() -> File {
    let file = File::create(std::env::temp_dir().join("lightd-test-isolation.lock"));
    let file = file.expect("a lock file");
    file.lock().expect("the lock");
    file
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A network namespace behind a pair of interfaces, with a server on all its addresses.
struct World {
    _server: Process,
    _link: Link,
    namespace: Namespace,
    _lock: File,
}

impl World {
    fn new() -> Self {
        let lock = lock();
        let namespace = Namespace::new();
        let (outer, inner) = (random_name("lto"), random_name("lti"));
        run("ip", &format!("link add {outer} type veth peer name {inner} netns {}", namespace.0));
        let link = Link(outer.clone());
        run("ip", &format!("addr add {HOST_OUTSIDE}/30 dev {outer}"));
        run("ip", &format!("link set {outer} up"));
        let within = |arguments: &str| run("ip", &format!("-n {} {arguments}", namespace.0));
        within("link set lo up");
        within(&format!("addr add {WORLD}/30 dev {inner}"));
        within(&format!("link set {inner} up"));
        within(&format!("route add default via {HOST_OUTSIDE}"));
        for address in [LINK_LOCAL, PRIVATE] {
            within(&format!("addr add {address}/32 dev lo"));
            run("ip", &format!("route add {address}/32 via {WORLD} dev {outer}"));
        }
        let server = Command::new("ip")
            .args(["netns", "exec", &namespace.0, "busybox", "nc", "-ll", "-p"])
            .args([&WORLD_PORT.to_string(), "-e", "cat"])
            .stdin(Stdio::null())
            .spawn()
            .expect("a server");
        Self { _server: Process(server), _link: link, namespace, _lock: lock }
    }

    /// Whether a connection from the world to the address gets an echo.
    fn reaches(&self, address: Ipv4Addr, port: u16) -> bool {
        let mut client = Command::new("ip")
            .args(["netns", "exec", &self.namespace.0, "busybox", "timeout", "3"])
            .args(["busybox", "nc", "-w", "2", &address.to_string(), &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a client");
        client.stdin.take().expect("a pipe").write_all(b"echo\n").expect("a write");
        client.wait_with_output().expect("an end").stdout == b"echo\n"
    }
}

/// A network namespace, deleted when dropped.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = random_name("ltn");
        run("ip", &format!("netns add {name}"));
        Self(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "delete", &self.0]).status();
        assert!(deleted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// The host's end of the pair. Deleted by itself: the kernel takes a namespace apart in its own time, and
/// until then the routes would stay.
struct Link(String);

impl Drop for Link {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["link", "delete", &self.0]).status();
        assert!(deleted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// lightd's bridge, and on it `subject`, whose reach is tested, and `server`, which listens and has a
/// published port.
struct Site {
    node: TestNode,
    bridge: String,
    pool: Ipv4Net,
    subject: String,
    server: String,
    server_address: Ipv4Addr,
    server_published: u16,
}

impl Site {
    async fn new() -> Self {
        let node = TestNode::new().await;
        let bridge = format!("lt0{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let pool = Ipv4Net::new(Ipv4Addr::new(10, 92, rand::random(), 0), 24).expect("a pool");
        let mut site = Self {
            node,
            bridge,
            pool,
            subject: String::new(),
            server: String::new(),
            server_address: Ipv4Addr::UNSPECIFIED,
            server_published: free_port(),
        };
        site.isolation(Firewall::Off).ensure().await.expect("a bridge");
        site.subject = site.start("subject", &["guest", "forever"], &site.bridge, None).await;
        let port = site.server_published;
        let cmd = ["guest", "serve", &SERVER_PORT.to_string()];
        site.server = site.start("server", &cmd, &site.bridge, Some(port)).await;
        site.server_address = site.address(&site.server).await;
        site
    }

    fn isolation(&self, firewall: Firewall) -> Isolation {
        Isolation::new(self.node.engine.clone(), self.options(firewall))
    }

    fn options(&self, firewall: Firewall) -> IsolationOptions {
        IsolationOptions {
            bridge: self.bridge.clone(),
            subnets: self.pool,
            exceptions: Exceptions::default(),
            firewall,
        }
    }

    async fn start(
        &self,
        name: &str,
        cmd: &[&str],
        network: &str,
        published: Option<u16>,
    ) -> String {
        let mut request = self.node.request(name, cmd);
        request.network = Some(network.to_owned());
        request.ports.extend(published.map(|port| PortBinding {
            host: HostPort { ip: Ipv4Addr::UNSPECIFIED.into(), port, protocol: Protocol::Tcp },
            container_port: SERVER_PORT,
        }));
        let id = self.node.engine.create(&request).await.expect("a container").docker_id;
        let mut attached = self.node.engine.attach(&id, false).await.expect("an attach");
        self.node.engine.start(&id).await.expect("a start");
        if cmd.contains(&"serve") {
            read_until(&mut attached.output, "listening").await;
        }
        id
    }

    async fn address(&self, id: &str) -> Ipv4Addr {
        let seen = self.node.engine.inspect_details(id).await.expect("a look").expect("one");
        match seen.address {
            Some(std::net::IpAddr::V4(address)) => address,
            other => panic!("no address but {other:?}"),
        }
    }

    async fn exec(&self, cmd: &[&str]) -> ExecEnd {
        let request = ExecRequest {
            cmd: cmd.iter().map(|&part| part.to_owned()).collect(),
            user: None,
            deadline: Duration::from_secs(20),
            output_max_bytes: 4096,
        };
        self.node.engine.exec(&self.subject, &request).await.expect("a command").end
    }

    async fn reaches(&self, address: Ipv4Addr, port: u16) -> bool {
        self.connects(address, port, "5000").await
    }

    /// Silence for a shorter while will do: without the rules the answer takes a millisecond.
    async fn is_kept_from(&self, address: Ipv4Addr, port: u16) -> bool {
        !self.connects(address, port, "500").await
    }

    async fn connects(&self, address: Ipv4Addr, port: u16, within_ms: &str) -> bool {
        match self.exec(&["guest", "connect", &format!("{address}:{port}"), within_ms]).await {
            ExecEnd::Exited(0) => true,
            // Refused, which comes from the address too, is no wall.
            ExecEnd::Exited(2) => false,
            other => panic!("{address}:{port}: {other:?}"),
        }
    }

    fn gateway(&self) -> Ipv4Addr {
        self.pool.hosts().next().expect("a first address")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for family in ["inet", "bridge"] {
            let mut nft = Command::new("nft");
            nft.args(["delete", "table", family, &self.bridge]).stderr(Stdio::null());
            // The test may have ended before there were any.
            drop(nft.status());
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// The host's address on its default route, without sending anything.
fn host_address() -> Option<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect((WORLD, 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) => Some(address),
        std::net::IpAddr::V6(_) => None,
    }
}

#[tokio::test]
async fn a_container_reaches_the_internet_and_nothing_else() {
    let world = World::new();
    let site = Site::new().await;
    let host_service = TcpListener::bind("0.0.0.0:0").expect("a service");
    let host_port = host_service.local_addr().expect("an address").port();
    let neighbour = site.start("neighbour", &["guest", "serve", "7000"], "bridge", None).await;
    let neighbour = site.address(&neighbour).await;

    let mut closed = vec![
        ("the host by its gateway address", site.gateway(), host_port),
        ("the host by its outer address", HOST_OUTSIDE, host_port),
        ("a published port by the gateway", site.gateway(), site.server_published),
        ("a published port by the outer address", HOST_OUTSIDE, site.server_published),
        ("a link-local address", LINK_LOCAL, WORLD_PORT),
        ("a private address", PRIVATE, WORLD_PORT),
    ];
    closed.extend(host_address().map(|address| ("the host by its own", address, host_port)));
    for &(what, address, port) in &closed {
        assert!(site.reaches(address, port).await, "{what} is reached while there are no rules");
    }

    let isolation = site.isolation(Firewall::Nftables);
    isolation.ensure().await.expect("rules");
    isolation.ensure().await.expect("rules, replaced");
    assert_eq!(*isolation.status().borrow(), IsolationStatus::Ready);
    // The engine closes these by itself.
    closed.push(("another container", site.server_address, SERVER_PORT));
    closed.push(("a container of another network", neighbour, SERVER_PORT));
    for (what, address, port) in closed {
        assert!(site.is_kept_from(address, port).await, "{what} is out of reach");
    }
    assert!(site.reaches(WORLD, WORLD_PORT).await, "the internet is reached");
    let own_name = format!("{}-subject", site.node.engine.node());
    let resolved = site.exec(&["nslookup", &own_name, "127.0.0.11"]).await;
    assert_eq!(resolved, ExecEnd::Exited(0), "the engine's name service answers");

    assert!(world.reaches(HOST_OUTSIDE, site.server_published), "a published port from outside");
    let published = (Ipv4Addr::LOCALHOST, site.server_published);
    assert!(std::net::TcpStream::connect(published).is_ok(), "a published port from the host");
    let direct = (site.server_address, SERVER_PORT);
    assert!(std::net::TcpStream::connect(direct).is_ok(), "the host reaches its containers");
    assert!(!world.reaches(site.server_address, SERVER_PORT), "a neighbour routing past the port");
}

#[tokio::test]
async fn other_networks_of_the_engine_stay_closed_also_when_private_ones_are_opened() {
    let _world = World::new();
    let site = Site::new().await;
    let host_service = TcpListener::bind("0.0.0.0:0").expect("a service");
    let open_port = host_service.local_addr().expect("an address").port();
    let closed_service = TcpListener::bind("0.0.0.0:0").expect("a service");
    let closed_port = closed_service.local_addr().expect("an address").port();
    let mut options = site.options(Firewall::Nftables);
    options.exceptions.host = vec![HostService { protocol: Protocol::Tcp, port: open_port }];
    options.exceptions.private =
        ["192.168.0.0/16", "10.0.0.0/8"].map(|net| net.parse().expect("a subnet")).to_vec();
    Isolation::new(site.node.engine.clone(), options).ensure().await.expect("rules");
    assert!(site.reaches(site.gateway(), open_port).await, "the allowed port of the host");
    assert!(site.is_kept_from(site.gateway(), closed_port).await, "another port of the host");
    assert!(site.reaches(PRIVATE, WORLD_PORT).await, "the allowed private network");
    assert!(site.is_kept_from(LINK_LOCAL, WORLD_PORT).await, "what was not allowed");
    assert!(site.is_kept_from(site.server_address, SERVER_PORT).await, "a container all the same");

    site.isolation(Firewall::Off).ensure().await.expect("no rules");
    assert!(site.reaches(site.gateway(), closed_port).await, "rules switched off are gone");
}

#[tokio::test]
async fn without_an_engine_nothing_is_known_of_the_isolation() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = crate::engine::Engine::new(crate::engine::EngineOptions {
        socket_path: folder.path().join("absent.sock"),
        node: "test-nobody".to_owned(),
    });
    let options = IsolationOptions {
        bridge: "lt0absent".to_owned(),
        subnets: "10.92.0.0/16".parse().expect("a pool"),
        exceptions: Exceptions::default(),
        firewall: Firewall::Nftables,
    };
    let isolation = Isolation::new(engine, options);
    assert_eq!(*isolation.status().borrow(), IsolationStatus::NotYet);
    let error = isolation.ensure().await.expect_err("no engine");
    assert_eq!(error.to_string(), "cannot set up the containers' bridge");
    assert_eq!(*isolation.status().borrow(), IsolationStatus::NotYet);
}

/// Two namespaces on a bridge in a third one, where packets of bridges are not shown to the forward
/// chain: only the bridge's own table can part them.
#[test]
fn frames_within_the_bridge_are_stopped_also_without_br_netfilter() {
    let bridge = format!("lt0{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let outer = Namespace::new();
    let ends = [Namespace::new(), Namespace::new()];
    let outer = outer.0.as_str();
    run("ip", &format!("-n {outer} link add {bridge} type bridge"));
    run("ip", &format!("-n {outer} addr add 10.92.0.1/24 dev {bridge}"));
    run("ip", &format!("-n {outer} link set {bridge} up"));
    for (n, Namespace(end)) in ends.iter().enumerate() {
        let port = format!("p{n}");
        run("ip", &format!("-n {outer} link add {port} type veth peer name e0 netns {end}"));
        run("ip", &format!("-n {outer} link set {port} master {bridge} up"));
        run("ip", &format!("-n {end} addr add 10.92.0.{}/24 dev e0", n + 2));
        run("ip", &format!("-n {end} link set e0 up"));
    }
    // Where br_netfilter is not there, it is off already.
    let mut off = Command::new("ip");
    off.args(["netns", "exec", outer, "busybox", "sysctl", "-w"]);
    off.arg("net.bridge.bridge-nf-call-iptables=0").stdout(Stdio::null()).stderr(Stdio::null());
    drop(off.status());
    let pings = |from: &str, to: &str| {
        let mut ping = Command::new("ip");
        ping.args(["netns", "exec", from, "busybox", "ping", "-c", "1", "-W", "1", to]);
        ping.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success()
    };
    let eventually = |what: &str| {
        let reached = (0..10).any(|_| pings(&ends[0].0, what));
        assert!(reached, "{what} is reached while there are no rules");
    };
    eventually("10.92.0.3");
    eventually("10.92.0.1");
    let mut rules = Rules {
        bridge,
        subnet: "10.92.0.0/24".parse().expect("a subnet"),
        container_subnets: Vec::new(),
        allow_host: Vec::new(),
        allow_private: Vec::new(),
        name_servers: Vec::new(),
        within_bridge: WithinBridge::ByAddress,
    };
    assert!(load(outer, &render(&rules)), "the kernel takes the rules");
    assert!(!pings(&ends[0].0, "10.92.0.3"), "another port of the bridge is out of reach");
    // Not every kernel can match the bridge by its name.
    rules.within_bridge = WithinBridge::ByBridge;
    if load(outer, &render(&rules)) {
        assert!(!pings(&ends[0].0, "10.92.0.3"), "another port of the bridge is out of reach");
    }
}

fn load(namespace: &str, transaction: &str) -> bool {
    let mut nft = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("nft");
    nft.stdin.take().expect("a pipe").write_all(transaction.as_bytes()).expect("a write");
    nft.wait().expect("an end").success()
}
