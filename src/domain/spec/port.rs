//! Ports: one of the pool by its address, and one published into a container.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }
}

/// One port of the pool: an address of this node, a number and a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

impl HostPort {
    /// Whether sockets on both would meet: `0.0.0.0` covers every IPv4 address, and `::` every address of
    /// both families, because a socket on it takes IPv4 too unless told otherwise.
    pub(crate) fn meets(self, other: Self) -> bool {
        let covers = |wide: IpAddr, other: IpAddr| match wide {
            IpAddr::V4(wide) => wide.is_unspecified() && other.is_ipv4(),
            IpAddr::V6(wide) => wide.is_unspecified(),
        };
        (self.port, self.protocol) == (other.port, other.protocol)
            && (self.ip == other.ip || covers(self.ip, other.ip) || covers(other.ip, self.ip))
    }
}

/// A pool port published into a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct PortBinding {
    #[serde(flatten)]
    pub(crate) host: HostPort,
    pub(crate) container_port: u16,
}
