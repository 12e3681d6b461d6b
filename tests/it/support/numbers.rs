//! Numbers that no other test has at the same time: ports and subnets. Tests run in threads and in
//! several processes at once, so what was handed out last stands in a file, under its lock.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, UdpSocket};

use ipnet::Ipv4Net;

/// Below the range that the kernel takes ports for outgoing connections from.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
const SUBNETS: u16 = 16 * 256;

/// `count` ports in a row on which nothing of this host listens.
pub(crate) fn free_ports(count: u16) -> Vec<u16> {
    let mut counter = Counter::open("ports");
    let span = PORTS.end - PORTS.start;
    for _ in 0..span {
        let mut first = PORTS.start + counter.take(count) % span;
        if first + count > PORTS.end {
            first = PORTS.start;
        }
        if (first..first + count).all(is_free) {
            return (first..first + count).collect();
        }
    }
    panic!("no {count} free ports in a row in {PORTS:?}")
}

pub(crate) fn free_port() -> u16 {
    free_ports(1)[0]
}

/// A /24 of 10.96.0.0/12 that overlaps with none of those `in_use`.
pub(crate) fn free_subnet(in_use: &[Ipv4Net]) -> String {
    let mut counter = Counter::open("subnets");
    for _ in 0..SUBNETS {
        let n = counter.take(1) % SUBNETS;
        let subnet: Ipv4Net =
            format!("10.{}.{}.0/24", 96 + n / 256, n % 256).parse().expect("a subnet");
        if !in_use.iter().any(|used| used.contains(&subnet) || subnet.contains(used)) {
            return subnet.to_string();
        }
    }
    panic!("no free subnet in 10.96.0.0/12")
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("0.0.0.0", port)).is_ok() && UdpSocket::bind(("0.0.0.0", port)).is_ok()
}

/// A number in a file; the file is locked while this lives.
struct Counter {
    file: File,
}

impl Counter {
    fn open(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lightd-test-{name}.counter"));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.expect("a file in the temporary folder");
        file.lock().expect("a lock");
        Self { file }
    }

    /// The number as it was; `count` are taken.
    fn take(&mut self, count: u16) -> u16 {
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0)).expect("a seek");
        self.file.read_to_string(&mut text).expect("a read");
        let number: u16 = text.trim().parse().unwrap_or(0);
        self.file.set_len(0).expect("a truncation");
        self.file.seek(SeekFrom::Start(0)).expect("a seek");
        // It goes round; whoever uses it takes it modulo something.
        write!(self.file, "{}", number.wrapping_add(count)).expect("a write");
        number
    }
}
