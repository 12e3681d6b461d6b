//! Which addresses a fetch may connect to. Pure, but for one question to the kernel.
//!
//! What is reachable from this host and from nowhere else is refused: an address in a request must not
//! become a way into the host, its network, or the metadata service of whoever runs it. An address
//! that stands for another (mapped, translated, tunnelled) is judged as the one it stands for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Everything that the registries do not give to anybody on the internet, and the well-known anycast of
/// 6to4 relays.
const REFUSED_V4: &[([u8; 4], u8)] = &[
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// Within 2000::/3, which is all that is given out: special purposes (Teredo among them), examples.
const REFUSED_V6: &[([u16; 8], u8)] = &[
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
];

/// Whether an address may be connected to. `allowed` are networks that are, although they are not public.
pub(super) fn may_reach(address: IpAddr, allowed: &[IpNet]) -> bool {
    let stood_for = stands_for(address);
    if allowed.iter().any(|net| net.contains(&address) || net.contains(&stood_for)) {
        return true;
    }
    is_public(stood_for) && !is_ours(stood_for)
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !REFUSED_V4.iter().any(|(net, length)| {
            Ipv4Net::new(Ipv4Addr::from(*net), *length).is_ok_and(|net| net.contains(&address))
        }),
        IpAddr::V6(address) => {
            let is_given_out = address.segments()[0] & 0xe000 == 0x2000;
            let is_refused = REFUSED_V6.iter().any(|(net, length)| {
                Ipv6Net::new(Ipv6Addr::from(*net), *length).is_ok_and(|net| net.contains(&address))
            });
            is_given_out && !is_refused
        }
    }
}

/// The address that packets end up at: IPv4 inside of IPv6, mapped, translated (NAT64) or by 6to4.
fn stands_for(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return v4.into();
    }
    let parts = v6.segments();
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

/// Whether the address is this host's own: public ones are, from here, as good as the loopback. The
/// kernel leaves for an own address from that same address; nothing is sent.
fn is_ours(address: IpAddr) -> bool {
    let unspecified: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let leaves_from = || {
        let socket = UdpSocket::bind((unspecified, 0))?;
        socket.connect((address, 9))?;
        socket.local_addr().map(|from: SocketAddr| from.ip())
    };
    leaves_from().is_ok_and(|from| from == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(address: &str) -> bool {
        may_reach(address.parse().unwrap(), &[])
    }

    #[test]
    fn only_public_addresses_are_reached() {
        for public in
            ["1.1.1.1", "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.128.0.1", "223.255.255.254"]
        {
            assert!(may(public), "{public}");
            assert!(may(&format!("::ffff:{public}")), "{public}");
            assert!(may(&format!("64:ff9b::{public}")), "{public}");
        }
        assert!(may("2606:4700::1111"));
        for refused in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "240.0.0.1",
        ] {
            assert!(!may(refused), "{refused}");
            assert!(!may(&format!("::ffff:{refused}")), "{refused}");
            assert!(!may(&format!("64:ff9b::{refused}")), "{refused}");
        }
        for refused in [
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "64:ff9b:1::a00:1",
            "::127.0.0.1",
            "::a00:1",
            "3fff::1",
            "4000::1",
            "::ffff:0:127.0.0.1",
        ] {
            assert!(!may(refused), "{refused}");
        }
    }

    #[test]
    fn what_is_allowed_is_reached_in_each_of_its_forms() {
        let allowed = ["10.1.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()];
        for (address, want) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("fd00::7", true),
            ("fd00:1::7", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(may_reach(address.parse().unwrap(), &allowed), want, "{address}");
        }
    }

    #[test]
    fn an_address_of_this_host_is_known_as_such() {
        assert!(is_ours(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_ours("192.0.2.1".parse().unwrap()));
    }
}
