//! What the host itself does with its ports.
//!
//! A port that may be handed out is tried: [`is_bindable`] opens a socket on it and closes it again. That
//! is exact, and no harm where nobody of ours has the port. Showing must not try: a bind, however
//! brief, could make the start of the server fail that owns the port. So [`Listeners`] reads the kernel's
//! tables once for a whole list, and only what stands in them is tried, which is in use already.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use crate::domain::spec::{HostPort, Protocol};

/// The kernel's tables, of this network namespace.
const TABLES: [(&str, Protocol); 4] = [
    ("/proc/net/tcp", Protocol::Tcp),
    ("/proc/net/tcp6", Protocol::Tcp),
    ("/proc/net/udp", Protocol::Udp),
    ("/proc/net/udp6", Protocol::Udp),
];
/// Some hundred thousand sockets; what stands behind them is not looked at.
const TABLE_MAX_BYTES: u64 = 16 << 20;
/// `TCP_LISTEN`, as the tables write it.
const LISTENS: &str = "0A";

/// Whether a socket on this port could be opened now.
///
/// The standard library sets `SO_REUSEADDR` for TCP and not for UDP. That is what is wanted: a TCP port
/// whose last connections are dying out is free, one that somebody listens on is not; and for UDP the
/// option would let us share what another process has.
pub(crate) fn is_bindable(port: HostPort) -> bool {
    let address = SocketAddr::new(port.ip, port.port);
    let tried = match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    };
    // For want of a handle, or of the right to open a low port, nothing is known against it.
    let speaks_against_it = [ErrorKind::AddrInUse, ErrorKind::AddrNotAvailable];
    !tried.is_err_and(|error| speaks_against_it.contains(&error.kind()))
}

/// Whether this host has the address, wildcards included. Found out by binding to it; group and
/// broadcast addresses can be bound and are nobody's.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    let is_everyones = ip.is_multicast() || ip == Ipv4Addr::BROADCAST;
    !is_everyones && TcpListener::bind(SocketAddr::new(ip, 0)).is_ok()
}

/// On which ports processes of this host listen, or have bound UDP sockets, at one moment.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    addresses: HashMap<(Protocol, u16), Vec<IpAddr>>,
}

impl Listeners {
    /// Blocking: a few milliseconds on a busy host. A table that cannot be read is an empty one.
    pub(crate) fn read() -> Self {
        let mut all = Self::default();
        for (path, protocol) in TABLES {
            if let Ok(table) = File::open(path) {
                all.take(BufReader::new(table.take(TABLE_MAX_BYTES)), protocol);
            }
        }
        all
    }

    /// A table's sockets. The kernel writes those that listen first, and tens of thousands of connections
    /// may follow: the first of these ends it.
    fn take(&mut self, table: impl std::io::BufRead, protocol: Protocol) {
        for line in table.lines().skip(1).map_while(Result::ok) {
            let mut words = line.split_ascii_whitespace();
            let (local, state) = (words.nth(1), words.nth(1));
            if protocol == Protocol::Tcp && state != Some(LISTENS) {
                return;
            }
            if let Some((ip, port)) = local.and_then(address) {
                self.addresses.entry((protocol, port)).or_default().push(ip);
            }
        }
    }

    /// Whether somebody has this port. Where an address of the other family is in the way or is not, only
    /// trying tells; what is tried is in use already, for all that is known.
    pub(crate) fn have(&self, port: HostPort) -> bool {
        let Some(addresses) = self.addresses.get(&(port.protocol, port.port)) else { return false };
        let meets = |ip: &IpAddr| HostPort { ip: *ip, ..port }.meets(port);
        addresses.iter().any(meets) && !is_bindable(port)
    }
}

/// Reads `0100007F:1F90`: the address word by word in the host's byte order, then the port.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?)).to_canonical()
        }
        _ => return None,
    };
    Some((ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::tcp;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue\n\
           0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 640 1\n\
           1: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 641 1\n\
           2: 0100007F:9999 0100007F:1F90 01 00000000:00000000 00:00000000 00000000 0 0 642 1\n\
           3: 0100007F:AAAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 643 1\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let read =
            |text: &str| address(text).map(|(ip, port)| SocketAddr::new(ip, port).to_string());
        assert_eq!(read("0100007F:0CEA").as_deref(), Some("127.0.0.1:3306"));
        assert_eq!(read("00000000:1F90").as_deref(), Some("0.0.0.0:8080"));
        let loopback = "00000000000000000000000001000000:0016";
        assert_eq!(read(loopback).as_deref(), Some("[::1]:22"));
        let mapped = "0000000000000000FFFF00000100007F:0016";
        assert_eq!(read(mapped).as_deref(), Some("127.0.0.1:22"));
        for bad in ["", "0100007F", "0100007:0CEA", "0100007F:0CEAF0", "zz00007F:0CEA"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_table_of_tcp_ends_with_its_listeners() {
        let mut all = Listeners::default();
        all.take(TABLE.as_bytes(), Protocol::Tcp);
        let mut ports: Vec<u16> = all.addresses.keys().map(|(_, port)| *port).collect();
        ports.sort_unstable();
        assert_eq!(ports, [3306, 8080]);
        let mut all = Listeners::default();
        all.take(TABLE.as_bytes(), Protocol::Udp);
        assert_eq!(all.addresses.len(), 4, "of UDP every socket counts");
    }

    #[test]
    fn what_a_process_listens_on_is_seen_and_what_nobody_does_is_not_touched() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = held.local_addr().unwrap().port();
        let seen = Listeners::read();
        assert!(seen.have(tcp("127.0.0.1", number)) && seen.have(tcp("0.0.0.0", number)));
        assert!(!seen.have(tcp("127.0.0.2", number)));
        let udp = HostPort { protocol: Protocol::Udp, ..tcp("127.0.0.1", number) };
        assert!(!seen.have(udp));
        drop(held);
        assert!(!seen.have(tcp("127.0.0.1", number)), "what has gone since is free");
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        let number = socket.local_addr().unwrap().port();
        let udp = HostPort { protocol: Protocol::Udp, ..tcp("::1", number) };
        assert!(Listeners::read().have(udp));
        assert!(!is_bindable(udp));
    }
}
