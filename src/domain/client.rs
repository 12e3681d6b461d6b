//! Where a request comes from, as the edge has found out.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The IP address of who made a request: behind proxies that are trusted, the one they name. An IPv4
/// address in IPv6's clothes is the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientAddress(IpAddr);

/// How much of an IPv6 address says whose it is: one household or one machine has all that follows.
const V6_NETWORK_BITS: u32 = 64;

impl ClientAddress {
    pub(crate) fn new(ip: IpAddr) -> Self {
        Self(ip.to_canonical())
    }

    /// As [`fmt::Display`] writes it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self::new)
    }

    pub(crate) fn ip(self) -> IpAddr {
        self.0
    }

    /// What counts as one client: an IPv4 address, or a /64 of IPv6.
    pub(crate) fn network(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(ip) => {
                let host_bits = u128::BITS - V6_NETWORK_BITS;
                Ipv6Addr::from_bits(ip.to_bits() >> host_bits << host_bits).into()
            }
        }
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> ClientAddress {
        ClientAddress::parse(text).unwrap()
    }

    #[test]
    fn one_address_is_written_one_way() {
        assert_eq!(address("::ffff:203.0.113.9"), address("203.0.113.9"));
        assert_eq!(address("2001:DB8::1").to_string(), "2001:db8::1");
        assert_eq!(ClientAddress::parse("203.0.113.9:80"), None);
    }

    #[test]
    fn all_of_a_64_is_one_client() {
        let network = |text| address(text).network().to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("2001:db8:1:2::9"), "2001:db8:1:2::");
        assert_ne!(network("2001:db8:1:3::9"), "2001:db8:1:2::");
        assert_eq!(network("203.0.113.9"), "203.0.113.9");
    }
}
