//! The rules that keep containers away from everything but the internet, as text for `nft`. Pure.
//!
//! ```text
//!  container ──> bridge ─┬─ to the host itself ──> input:   answers, allowed ports, name servers
//!                        └─ to anywhere else ────> forward: answers, the internet
//!  elsewhere ──> bridge ───────────────────────────> forward: only what the host published
//!  container ──> container, within the bridge ─────> table bridge, and forward where br_netfilter is on
//! ```
//!
//! All rules stand in tables of our own, named like the bridge. A verdict to accept in them ends
//! nothing: the packet still passes Docker's and the host's own chains, which may drop it. A verdict to
//! drop is final. So nothing of the host's is touched, opened or depended on. The tables are replaced
//! in one transaction: at no moment are there half of the rules, or none.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::nft::drop_table;
use crate::domain::spec::Protocol;

/// What the rules are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) bridge: String,
    /// The bridge's own subnet.
    pub(super) subnet: Ipv4Net,
    /// Subnets of containers, ours and others'; never reachable, whatever else is allowed.
    pub(super) container_subnets: Vec<IpNet>,
    pub(super) allow_host: Vec<HostService>,
    pub(super) allow_private: Vec<IpNet>,
    /// The host's name servers: containers' names are resolved through them.
    pub(super) name_servers: Vec<IpAddr>,
    pub(super) within_bridge: WithinBridge,
}

/// A port of the host that containers may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostService {
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// How frames from one container to another are recognised; kernels differ in what they know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WithinBridge {
    /// By the name of the bridge that forwards them.
    ByBridge,
    /// By their source: from the bridge's subnet, yet forwarded by a bridge and not by the host.
    ByAddress,
    /// Only as IP packets in the forward chain; needs br_netfilter.
    AsPackets,
}

/// What the internet is not.
const NOT_THE_INTERNET: [&str; 11] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// The whole ruleset as one transaction.
pub(super) fn render(rules: &Rules) -> String {
    let bridge = &rules.bridge;
    let mut text = format!("{}{}", drop_table("inet", bridge), drop_bridge_table(rules));
    text.push_str(&format!(
        "table inet {bridge} {{\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter - 10; policy accept;\n\
         \t\tiifname \"{bridge}\" jump to_host\n\
         \t}}\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter - 10; policy accept;\n\
         \t\tiifname \"{bridge}\" jump from_container\n\
         \t\toifname \"{bridge}\" jump to_container\n\
         \t}}\n\
         \tchain to_host {{\n{}\t}}\n\
         \tchain from_container {{\n{}\t}}\n\
         \tchain to_container {{\n{}\t}}\n\
         }}\n",
        lines(&to_host(rules)),
        lines(&from_container(rules)),
        lines(&to_container()),
    ));
    text.push_str(&within_bridge(rules));
    text
}

/// Takes our tables away, whether they are there or not. One transaction each: the kernel may not have
/// the second family, and then there is nothing to take away.
pub(super) fn render_removals(bridge: &str) -> [String; 2] {
    ["inet", "bridge"].map(|family| drop_table(family, bridge))
}

fn drop_bridge_table(rules: &Rules) -> String {
    match rules.within_bridge {
        WithinBridge::ByBridge | WithinBridge::ByAddress => drop_table("bridge", &rules.bridge),
        // Its family may be what the kernel lacks.
        WithinBridge::AsPackets => String::new(),
    }
}

const ANSWERS: &str = "ct state established,related accept";

fn to_host(rules: &Rules) -> Vec<String> {
    let mut list = vec![ANSWERS.to_owned()];
    list.extend(name_server_rules(rules));
    for service in &rules.allow_host {
        list.push(format!("{} dport {} accept", service.protocol.as_str(), service.port));
    }
    list.push("drop".to_owned());
    list
}

fn from_container(rules: &Rules) -> Vec<String> {
    let subnet = rules.subnet.trunc();
    let mut list = vec![
        ANSWERS.to_owned(),
        // The network has IPv4 only.
        "meta nfproto ipv6 drop".to_owned(),
        format!("ip saddr != {subnet} drop"),
        // Towards another container, or turned around by the host at a published port.
        format!("oifname \"{}\" drop", rules.bridge),
        "ct status dnat drop".to_owned(),
    ];
    list.extend(drop_set(&rules.container_subnets));
    list.extend(name_server_rules(rules));
    list.extend(accept_set(&rules.allow_private));
    list.push(format!("ip daddr {{ {} }} drop", NOT_THE_INTERNET.join(", ")));
    list.push("fib daddr type != unicast drop".to_owned());
    list
}

/// Who is not published is not reached, also not by a neighbour who routes to the subnet through us.
fn to_container() -> Vec<String> {
    [ANSWERS, "ct status dnat accept", "drop"].map(str::to_owned).to_vec()
}

fn name_server_rules(rules: &Rules) -> Vec<String> {
    let mut list = Vec::new();
    for server in rules.name_servers.iter().filter(|server| server.is_ipv4()) {
        list.push(format!("ip daddr {server} udp dport 53 accept"));
        list.push(format!("ip daddr {server} tcp dport 53 accept"));
    }
    list
}

fn drop_set(nets: &[IpNet]) -> Option<String> {
    address_set(nets, "drop")
}

fn accept_set(nets: &[IpNet]) -> Option<String> {
    address_set(nets, "accept")
}

/// Aggregated: `nft` refuses sets whose ranges overlap.
fn address_set(nets: &[IpNet], verdict: &str) -> Option<String> {
    let v4: Vec<Ipv4Net> = nets
        .iter()
        .filter_map(|net| match net {
            IpNet::V4(net) => Some(*net),
            // The network has IPv4 only.
            IpNet::V6(_) => None,
        })
        .collect();
    let list: Vec<String> = Ipv4Net::aggregate(&v4).iter().map(ToString::to_string).collect();
    (!list.is_empty()).then(|| format!("ip daddr {{ {} }} {verdict}", list.join(", ")))
}

/// The frames that a bridge passes from port to port never reach the host's forward chain unless
/// br_netfilter takes them there; frames to and from the host itself are not among them.
fn within_bridge(rules: &Rules) -> String {
    let subnet = rules.subnet.trunc();
    let list = match rules.within_bridge {
        WithinBridge::ByBridge => vec![format!("meta ibrname \"{}\" drop", rules.bridge)],
        WithinBridge::ByAddress => vec![
            format!("ether type ip ip saddr {subnet} drop"),
            format!("ether type arp arp saddr ip {subnet} drop"),
        ],
        WithinBridge::AsPackets => return String::new(),
    };
    format!(
        "table bridge {} {{\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         {}\t}}\n\
         }}\n",
        rules.bridge,
        lines(&list)
    )
}

fn lines(rules: &[String]) -> String {
    rules.iter().map(|rule| format!("\t\t{rule}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            bridge: "lightd0".to_owned(),
            subnet: "10.86.0.0/20".parse().expect("a subnet"),
            container_subnets: ["10.86.0.0/16", "172.17.0.0/16", "10.86.0.0/20"]
                .map(|net| net.parse().expect("a subnet"))
                .to_vec(),
            allow_host: vec![HostService { protocol: Protocol::Udp, port: 123 }],
            allow_private: vec!["192.168.7.0/24".parse().expect("a subnet")],
            name_servers: vec!["10.0.0.2".parse().expect("an address")],
            within_bridge: WithinBridge::ByBridge,
        }
    }

    fn chain(text: &str, name: &str) -> String {
        let begin = text.find(&format!("chain {name} {{")).expect("the chain");
        let end = begin + text[begin..].find("\n\t}").expect("its end");
        text[begin..end].to_owned()
    }

    #[test]
    fn tables_are_replaced_in_one_transaction() {
        let text = render(&rules());
        assert!(text.starts_with("add table inet lightd0\ndelete table inet lightd0\n"), "{text}");
        assert_eq!(text.matches("table inet lightd0 {").count(), 1);
        assert_eq!(text.matches("table bridge lightd0 {").count(), 1);
    }

    #[test]
    fn the_host_is_closed_but_for_answers_name_servers_and_what_is_allowed() {
        let chain = chain(&render(&rules()), "to_host");
        let lines: Vec<&str> = chain.lines().skip(1).map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "ct state established,related accept",
                "ip daddr 10.0.0.2 udp dport 53 accept",
                "ip daddr 10.0.0.2 tcp dport 53 accept",
                "udp dport 123 accept",
                "drop",
            ]
        );
    }

    #[test]
    fn containers_are_closed_before_anything_private_is_opened() {
        let chain = chain(&render(&rules()), "from_container");
        let at = |part: &str| chain.find(part).unwrap_or_else(|| panic!("{part} in {chain}"));
        let containers = at("ip daddr { 10.86.0.0/16, 172.17.0.0/16 } drop");
        let opened = at("ip daddr { 192.168.7.0/24 } accept");
        let private = at("192.168.0.0/16");
        assert!(at("ct status dnat drop") < opened && containers < opened && opened < private);
        assert!(at("oifname \"lightd0\" drop") < opened);
    }

    #[test]
    fn what_is_not_allowed_leaves_no_empty_set() {
        let none = Rules {
            allow_host: Vec::new(),
            allow_private: Vec::new(),
            container_subnets: Vec::new(),
            name_servers: Vec::new(),
            within_bridge: WithinBridge::AsPackets,
            ..rules()
        };
        let text = render(&none);
        assert!(!text.contains("{  }") && !text.contains("table bridge"), "{text}");
    }
}
