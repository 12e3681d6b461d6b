//! The world outside the host: a network namespace behind a pair of interfaces, with two addresses of
//! each family, and clients that run in it.
//!
//! Addresses are random, from networks for tests and for local use, so that tests run beside each other.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Silence for so long is no answer. Without rules one takes a millisecond.
const SILENCE: Duration = Duration::from_millis(700);

/// What comes of sending something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Answered,
    Refused,
    Nothing,
}

pub(crate) struct Outside {
    namespace: String,
    link: String,
    pub(crate) host: Ipv4Addr,
    pub(crate) host6: Ipv6Addr,
    /// Clients' own addresses. Those of IPv6 are of different /64.
    pub(crate) v4: [IpAddr; 2],
    pub(crate) v6: [IpAddr; 2],
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
}

impl Outside {
    pub(crate) fn new() -> Self {
        let unique = uuid::Uuid::new_v4();
        let name = unique.simple().to_string()[..8].to_owned();
        let n = u16::from_be_bytes([unique.as_bytes()[8], unique.as_bytes()[9]]);
        let (namespace, link, inner) =
            (format!("ltf{name}"), format!("ltp{name}"), format!("ltq{name}"));
        let [high, low] = (n & 0x1fff << 3).to_be_bytes();
        let four = |last: u8| Ipv4Addr::new(198, 19, high, low | last);
        let six = |net: u16, last: u16| Ipv6Addr::new(0xfd6c, 0x7467, n, net, 0, 0, 0, last);
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {link} type veth peer name {inner} netns {namespace}"));
        ip(&format!("addr add {}/29 dev {link}", four(1)));
        ip(&format!("-6 addr add {}/64 dev {link} nodad", six(0, 1)));
        ip(&format!("link set {link} up"));
        let within = |arguments: &str| ip(&format!("-n {namespace} {arguments}"));
        within("link set lo up");
        for last in [2, 3] {
            within(&format!("addr add {}/29 dev {inner}", four(last)));
        }
        for net in [0, 1] {
            within(&format!("-6 addr add {}/64 dev {inner} nodad", six(net, 2)));
        }
        within(&format!("link set {inner} up"));
        within(&format!("route add default via {}", four(1)));
        within(&format!("-6 route add default via {}", six(0, 1)));
        ip(&format!("-6 route add {}/64 dev {link}", six(1, 0)));
        Self {
            namespace,
            link,
            host: four(1),
            host6: six(0, 1),
            v4: [2, 3].map(|last| four(last).into()),
            v6: [0, 1].map(|net| six(net, 2).into()),
        }
    }

    /// Runs something in the namespace.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let place = File::open(format!("/run/netns/{}", self.namespace)).expect("the namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(place.as_fd(), network).expect("a way in");
                work()
            });
            thread.join().expect("a thread that ends well")
        })
    }

    fn at(&self, from: IpAddr, port: u16) -> SocketAddr {
        let host = if from.is_ipv4() { self.host.into() } else { self.host6.into() };
        SocketAddr::new(host, port)
    }

    /// A connection to a port of the host, on which something was answered.
    pub(crate) fn connect(&self, from: IpAddr, port: u16) -> Result<TcpStream, Reply> {
        self.connect_from(SocketAddr::new(from, 0), port)
    }

    pub(crate) fn connect_from(&self, from: SocketAddr, port: u16) -> Result<TcpStream, Reply> {
        let to = self.at(from.ip(), port);
        let mut stream = self.within(|| open(from, to))?;
        match echo(&mut stream) {
            Reply::Answered => Ok(stream),
            other => Err(other),
        }
    }

    pub(crate) fn tcp(&self, from: IpAddr, port: u16) -> Reply {
        self.connect(from, port).map_or_else(|reply| reply, |_| Reply::Answered)
    }

    pub(crate) fn udp(&self, from: IpAddr, port: u16) -> Reply {
        let to = self.at(from, port);
        let socket = self.within(|| {
            let socket = UdpSocket::bind((from, 0)).expect("a socket");
            socket.connect(to).expect("an address");
            socket
        });
        datagram(&socket)
    }

    /// How many of so many connections that are begun at once come to be.
    pub(crate) fn connections_at_once(&self, from: IpAddr, port: u16, count: usize) -> usize {
        let to = self.at(from, port);
        let begun: Vec<_> = self.within(|| {
            let begin = |_| {
                let socket = socket(from, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
                // An error: it is in progress.
                let _in_progress = rustix::net::connect(&socket, &to);
                TcpStream::from(socket)
            };
            (0..count).map(begin).collect()
        });
        std::thread::sleep(SILENCE);
        begun.iter().filter(|stream| stream.peer_addr().is_ok()).count()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The link by itself: the kernel takes a namespace apart in its own time.
        for arguments in [["link", "delete", &self.link], ["netns", "delete", &self.namespace]] {
            let deleted = Command::new("ip").args(arguments).status();
            assert!(deleted.is_ok_and(|status| status.success()) || std::thread::panicking());
        }
    }
}

fn socket(from: IpAddr, flags: SocketFlags) -> std::os::fd::OwnedFd {
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None);
    let socket = socket.expect("a socket");
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).expect("an option");
    socket
}

fn open(from: SocketAddr, to: SocketAddr) -> Result<TcpStream, Reply> {
    let socket = socket(from.ip(), SocketFlags::CLOEXEC);
    rustix::net::bind(&socket, &from).expect("an own address");
    // It bounds a connect as well.
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Send,
        Some(SILENCE),
    )
    .expect("an option");
    match rustix::net::connect(&socket, &to) {
        Ok(()) => Ok(TcpStream::from(socket)),
        Err(rustix::io::Errno::CONNREFUSED) => Err(Reply::Refused),
        Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::TIMEDOUT) => Err(Reply::Nothing),
        Err(other) => panic!("{from} to {to}: {other}"),
    }
}

/// Whether the other side still answers on a connection.
pub(crate) fn echo(stream: &mut TcpStream) -> Reply {
    stream.set_read_timeout(Some(SILENCE)).expect("an option");
    if stream.write_all(b"ping").is_err() {
        return Reply::Refused;
    }
    judge(stream.read(&mut [0; 16]))
}

pub(crate) fn datagram(socket: &UdpSocket) -> Reply {
    socket.set_read_timeout(Some(SILENCE)).expect("an option");
    // An error that came to the last one is told with this.
    match socket.send(b"ping") {
        Ok(_) => judge(socket.recv(&mut [0; 16])),
        refused => judge(refused),
    }
}

fn judge(read: std::io::Result<usize>) -> Reply {
    match read {
        Ok(1..) => Reply::Answered,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Reply::Nothing
        }
        Ok(0) => Reply::Refused,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                Reply::Refused
            }
            // Of the network itself, not of what a rule does: no address was resolved, for one.
            other => panic!("neither an answer nor a refusal: {other}: {error}"),
        },
    }
}
