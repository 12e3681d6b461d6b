//! The section `network` of the configuration, checked: the pool, the subnets, what is open to containers.
//!
//! Called by `validate`, which says how what is wrong is told.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::raw;
use super::validate::Check;
use super::{HostService, Network, PortSeed};
use crate::domain::spec::Protocol;

/// The most ports that one entry may put into the pool.
const SEED_MAX: usize = 10_000;
const INTERFACE_NAME_MAX: usize = 15;

pub(super) fn network(raw: &raw::Network, check: &mut Check<'_>) -> Network {
    let subnets = raw
        .subnets
        .parse::<Ipv4Net>()
        .ok()
        .filter(|net| (8..=24).contains(&net.prefix_len()) && net.trunc() == *net)
        .ok_or_else(|| "must be an IPv4 network of /8 to /24, such as 10.86.0.0/16".to_owned());
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let bridge = &raw.bridge;
    let has_a_letter_first = bridge.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !has_a_letter_first || bridge.len() > INTERFACE_NAME_MAX || !bridge.bytes().all(plain) {
        check.say(
            "network.bridge",
            "must be the name of a network interface: 1 to 15 characters of A-Z a-z 0-9 _ . -",
        );
    }
    let mut ports = Vec::new();
    for (index, entry) in raw.ports.iter().enumerate() {
        match seed(entry) {
            Ok(seed) => ports.push(seed),
            Err(message) => check.say(&format!("network.ports[{index}]"), message),
        }
    }
    Network {
        ports,
        subnets: check.or("network.subnets", subnets, Ipv4Net::default()),
        bridge: bridge.clone(),
        firewall: raw.firewall,
        allow_host: check.each("network.allow_host", &raw.allow_host, host_service),
        allow_private: check.each("network.allow_private", &raw.allow_private, private_net),
        quarantine: check.span("network.quarantine", raw.quarantine.0, "0s", "30d"),
    }
}

fn seed(raw: &raw::PortSeed) -> Result<PortSeed, String> {
    let ports = match (raw.port, raw.from, raw.to) {
        (Some(port), None, None) => port..=port,
        (None, Some(from), Some(to)) => from..=to,
        _ => return Err("must have either port, or from and to".to_owned()),
    };
    if *ports.start() == 0 || ports.is_empty() || ports.len() > SEED_MAX {
        return Err(format!("must be 1 to {SEED_MAX} ports between 1 and 65535"));
    }
    Ok(PortSeed { ip: raw.ip, ports, protocol: raw.protocol })
}

fn host_service(text: &str) -> Result<HostService, String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let port = port.parse().ok().filter(|port| *port != 0);
    port.zip(Protocol::parse(protocol))
        .map(|(port, protocol)| HostService { port, protocol })
        .ok_or_else(|| "must be a port of this host, such as 5432, 5432/tcp or 53/udp".to_owned())
}

fn private_net(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "must be a network or an address, such as 192.168.1.0/24".to_owned())
}
