//! What one container's firewall is in the kernel, as text for `nft`. Pure.
//!
//! ```text
//!   prerouting (-150)   protocol and host port ──> c12        floods first, then rules in their order
//!   forward (-11)       ICMP to its address ─────> c12_icmp   rules on ICMP
//! ```
//! Every packet is held to the rules, those of established connections too: a rule that drops counts at
//! once. What is limited is counted in objects with names of their own, so that a chain can be written
//! anew without any count beginning anew; the name holds what it was made of, so that another limit
//! is another object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::domain::firewall::{Ddos, RateLimit, Rule, RuleAction, RuleProtocol};
use crate::domain::spec::{HostPort, Protocol};
use crate::store::firewall::{FirewallRow, RuleRow};

/// How many sources are counted for each container and limit; further ones are not held to it. An entry
/// takes some 200 bytes of the kernel's memory.
const SOURCES_MAX: u32 = 8192;
/// A source that is silent for so long is forgotten, if its limit is refilled by then.
const FORGOTTEN_AFTER_S: u32 = 60;
/// New connections of one source that are let through with the protection from SYN floods.
const SYN_PER_SECOND: RateLimit = RateLimit { requests: 25, per_seconds: 1 };
const SYN_AT_ONCE: u32 = 50;

/// What leads from a packet to a container's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Way {
    /// A port published on all addresses.
    Any4,
    Any6,
    /// A port published on one of them.
    On4,
    On6,
    /// The container's own address.
    Address,
}

/// All that the kernel has for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// `set` or `limit` with its name, and what it is made of.
    pub(super) objects: BTreeMap<String, String>,
    /// Chains by their names, each with its rules.
    pub(super) chains: BTreeMap<String, Vec<String>>,
    pub(super) elements: BTreeSet<Element>,
}

/// A packet with this key goes to this chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    pub(super) way: Way,
    pub(super) key: String,
    pub(super) chain: String,
}

/// `address`: the container's own, while it runs.
pub(super) fn block(row: &FirewallRow, address: Option<Ipv4Addr>) -> Block {
    let chain = format!("c{}", row.number);
    let mut block = Block::default();
    // Of what passes through to other machines none is meant.
    let mut rules = vec!["fib daddr type != local return".to_owned()];
    if let Some(ddos) = row.ddos.filter(|ddos| ddos.enabled) {
        floods(&mut block, &mut rules, &chain, ddos);
    }
    let mut icmp = Vec::new();
    for RuleRow { number, rule, .. } in row.rules.iter().filter(|row| row.enabled) {
        if let Some(limit) = rule.rate_limit {
            block.objects.insert(format!("limit r{number}"), rate(limit, limit.requests));
        }
        let limit = rule.rate_limit.map(|_| format!("limit name \"r{number}\" "));
        rules.extend(on_ports(rule, limit.as_deref()));
        icmp.extend(on_icmp(rule, limit.as_deref()));
    }
    block.elements.extend(row.ports.iter().flat_map(|port| elements(*port, &chain)));
    block.chains.insert(chain.clone(), rules);
    if !icmp.is_empty() {
        let chain = format!("{chain}_icmp");
        let key = address.map(|address| address.to_string());
        let element = key.map(|key| Element { way: Way::Address, key, chain: chain.clone() });
        block.elements.extend(element);
        block.chains.insert(chain, icmp);
    }
    block
}

fn elements(port: HostPort, chain: &str) -> Vec<Element> {
    let key = format!("{} . {}", port.protocol.as_str(), port.port);
    let ways: &[Way] = match port.ip {
        IpAddr::V4(ip) if ip.is_unspecified() => &[Way::Any4],
        // A socket on it takes IPv4 too.
        IpAddr::V6(ip) if ip.is_unspecified() => &[Way::Any4, Way::Any6],
        IpAddr::V4(_) => &[Way::On4],
        IpAddr::V6(_) => &[Way::On6],
    };
    let key = if port.ip.is_unspecified() { key } else { format!("{} . {key}", port.ip) };
    let element = |&way| Element { way, key: key.clone(), chain: chain.to_owned() };
    ways.iter().map(element).collect()
}

/// How a family's sources are told apart. Whoever has one IPv6 address has all of its /64.
const SOURCES: [(&str, &str, &str); 2] =
    [("4", "ipv4_addr", "ip saddr"), ("6", "ipv6_addr", "ip6 saddr & ffff:ffff:ffff:ffff::")];
const SYN: &str = "tcp flags & (fin|syn|rst|ack) == syn";
const NEW_TCP: &str = "meta l4proto tcp ct state new";

fn floods(block: &mut Block, rules: &mut Vec<String>, chain: &str, ddos: Ddos) {
    let mut counted = |name: &str, timeout: Option<u32>, over: &str, what: &[&str]| {
        for (family, kind, source) in SOURCES {
            let set = format!("{chain}_{name}_{family}");
            let forget = timeout.map_or_else(
                || "flags dynamic;".to_owned(),
                |seconds| format!("flags dynamic,timeout; timeout {seconds}s;"),
            );
            let body = format!("type {kind}; size {SOURCES_MAX}; {forget}");
            block.objects.insert(format!("set {set}"), body);
            let verb = if timeout.is_some() { "update" } else { "add" };
            for what in what {
                rules.push(format!("{what} {verb} @{set} {{ {source} {over} }} drop"));
            }
        }
    };
    if ddos.syn_flood_protection {
        let over = format!("limit {}", rate(SYN_PER_SECOND, SYN_AT_ONCE));
        counted("syn", Some(FORGOTTEN_AFTER_S), &over, &[SYN]);
    }
    if let Some(most) = ddos.connection_limit {
        // Entries go with their connections.
        counted(&format!("conn_{most}"), None, &format!("ct count over {most}"), &["ct state new"]);
    }
    if let Some(limit) = ddos.rate_limit {
        let RateLimit { requests, per_seconds } = limit;
        let name = format!("rate_{requests}_{per_seconds}");
        let timeout = per_seconds.max(FORGOTTEN_AFTER_S);
        let over = format!("limit {}", rate(limit, requests));
        counted(&name, Some(timeout), &over, &[NEW_TCP, "meta l4proto udp"]);
    }
}

/// A rule on what comes to published ports; none where it is about something else.
fn on_ports(rule: &Rule, limit: Option<&str>) -> Vec<String> {
    let protocols: &[Protocol] = match rule.protocol {
        RuleProtocol::Tcp => &[Protocol::Tcp],
        RuleProtocol::Udp => &[Protocol::Udp],
        RuleProtocol::All => &[Protocol::Tcp, Protocol::Udp],
        RuleProtocol::Icmp => &[],
    };
    let mut rules = Vec::new();
    for protocol in protocols {
        let is_tcp = *protocol == Protocol::Tcp;
        let mut matched = format!("{}meta l4proto {} ", source(rule), protocol.as_str());
        for (field, port) in [("sport", rule.source_port), ("dport", rule.dest_port)] {
            matched.extend(port.map(|port| format!("th {field} {port} ")));
        }
        let refuse = if is_tcp {
            "reject with tcp reset"
        } else {
            "reject with icmpx type port-unreachable"
        };
        // Of TCP connections are counted, and not what passes in them.
        let counted = limit
            .map(|limit| if is_tcp { format!("ct state new {limit}") } else { limit.to_owned() });
        rules.extend(verdicts(rule.action, &matched, counted.as_deref(), refuse));
    }
    rules
}

/// A rule on ICMP to the container's address. Its network has IPv4 only.
fn on_icmp(rule: &Rule, limit: Option<&str>) -> Vec<String> {
    if !rule.is_for_icmp() || matches!(rule.source, Some(IpNet::V6(_))) {
        return Vec::new();
    }
    let refuse = "reject with icmpx type admin-prohibited";
    verdicts(rule.action, &source(rule), limit, refuse)
}

fn source(rule: &Rule) -> String {
    match rule.source {
        None => String::new(),
        Some(IpNet::V4(net)) if net.prefix_len() == 0 => "meta nfproto ipv4 ".to_owned(),
        Some(IpNet::V6(net)) if net.prefix_len() == 0 => "meta nfproto ipv6 ".to_owned(),
        Some(IpNet::V4(net)) => format!("ip saddr {net} "),
        Some(IpNet::V6(net)) => format!("ip6 saddr {net} "),
    }
}

/// `limit` matches what is above it.
fn verdicts(action: RuleAction, matched: &str, limit: Option<&str>, refuse: &str) -> Vec<String> {
    let limit_or_all = limit.unwrap_or_default();
    match action {
        RuleAction::Accept => {
            let above = limit.map(|limit| format!("{matched}{limit}drop"));
            above.into_iter().chain([format!("{matched}accept")]).collect()
        }
        RuleAction::Drop => vec![format!("{matched}{limit_or_all}drop")],
        RuleAction::Reject => vec![format!("{matched}{limit_or_all}{refuse}")],
    }
}

const UNITS: [(&str, u64); 5] =
    [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400), ("week", 604_800)];

/// The rate in the first unit that gives a whole number. In a week a rounded number is exact enough.
fn rate(limit: RateLimit, at_once: u32) -> String {
    let (requests, per_seconds) = (u64::from(limit.requests), u64::from(limit.per_seconds));
    let exact = UNITS.iter().find(|(_, seconds)| (requests * seconds).is_multiple_of(per_seconds));
    let (unit, seconds) = exact.unwrap_or(&UNITS[UNITS.len() - 1]);
    let count = requests * seconds / per_seconds;
    format!("rate over {count}/{unit} burst {at_once} packets")
}

/// One with all kinds of rules, to ask whether the kernel takes them.
pub(super) fn sample() -> (i64, Block) {
    let limit = RateLimit { requests: 1, per_seconds: 1 };
    let ddos = Ddos {
        enabled: true,
        syn_flood_protection: true,
        connection_limit: Some(1),
        rate_limit: Some(limit),
    };
    let rule = Rule {
        source: None,
        source_port: None,
        dest_port: None,
        protocol: RuleProtocol::All,
        action: RuleAction::Reject,
        rate_limit: Some(limit),
        description: None,
    };
    let mut block = Block::default();
    let mut rules = vec!["fib daddr type != local return".to_owned()];
    floods(&mut block, &mut rules, "c1", ddos);
    block.objects.insert("limit r1".to_owned(), rate(limit, limit.requests));
    rules.extend(on_ports(&rule, Some("limit name \"r1\" ")));
    block.chains.insert("c1".to_owned(), rules);
    block.chains.insert("c1_icmp".to_owned(), on_icmp(&rule, None));
    for (way, key) in [
        (Way::Any4, "tcp . 1"),
        (Way::Any6, "udp . 1"),
        (Way::On4, "192.0.2.1 . tcp . 1"),
        (Way::On6, "2001:db8::1 . udp . 1"),
    ] {
        block.elements.insert(Element { way, key: key.to_owned(), chain: "c1".to_owned() });
    }
    let (key, chain) = ("192.0.2.1".to_owned(), "c1_icmp".to_owned());
    block.elements.insert(Element { way: Way::Address, key, chain });
    (1, block)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::firewall::{RuleId, parse_source};
    use crate::domain::ids::ContainerId;
    use crate::domain::units::UnixSeconds;

    pub(in crate::network::firewall) fn rule(protocol: RuleProtocol, action: RuleAction) -> Rule {
        Rule {
            source: None,
            source_port: None,
            dest_port: None,
            protocol,
            action,
            rate_limit: None,
            description: None,
        }
    }

    pub(in crate::network::firewall) fn firewall(number: i64, rules: Vec<Rule>) -> FirewallRow {
        let container = ContainerId::parse(&format!("server-{number}")).unwrap();
        let now = UnixSeconds(1_800_000_000);
        let rules = (number * 100..).zip(rules).map(|(number, rule)| RuleRow {
            number,
            id: RuleId::random(),
            container: container.clone(),
            enabled: true,
            rule,
            created_at: now,
            updated_at: now,
        });
        FirewallRow {
            number,
            rules: rules.collect(),
            container,
            attached: true,
            ddos: None,
            ports: vec![HostPort {
                ip: Ipv4Addr::UNSPECIFIED.into(),
                port: u16::try_from(20_000 + number).unwrap(),
                protocol: Protocol::Tcp,
            }],
        }
    }

    fn limited(requests: u32, per_seconds: u32) -> Option<RateLimit> {
        Some(RateLimit { requests, per_seconds })
    }

    /// The rules of the container's chain for ports, without the first.
    fn chain_of(rules: Vec<Rule>) -> Vec<String> {
        block(&firewall(1, rules), None).chains["c1"][1..].to_vec()
    }

    #[test]
    fn rules_stand_in_their_order_and_say_what_they_match() {
        let first = Rule {
            source: parse_source("203.0.113.0/24"),
            source_port: Some(7),
            dest_port: Some(25565),
            ..rule(RuleProtocol::Tcp, RuleAction::Accept)
        };
        let second = Rule {
            source: parse_source("2001:db8::/32"),
            ..rule(RuleProtocol::All, RuleAction::Reject)
        };
        assert_eq!(
            chain_of(vec![first, second]),
            [
                "ip saddr 203.0.113.0/24 meta l4proto tcp th sport 7 th dport 25565 accept",
                "ip6 saddr 2001:db8::/32 meta l4proto tcp reject with tcp reset",
                "ip6 saddr 2001:db8::/32 meta l4proto udp reject with icmpx type port-unreachable",
            ]
        );
    }

    #[test]
    fn what_is_above_a_limit_is_dropped_and_connections_are_counted_once() {
        let all =
            Rule { rate_limit: limited(10, 30), ..rule(RuleProtocol::All, RuleAction::Accept) };
        let row = firewall(1, vec![all.clone()]);
        let made = block(&row, None);
        assert_eq!(made.objects["limit r100"], "rate over 20/minute burst 10 packets");
        assert_eq!(
            made.chains["c1"][1..],
            [
                "meta l4proto tcp ct state new limit name \"r100\" drop",
                "meta l4proto tcp accept",
                "meta l4proto udp limit name \"r100\" drop",
                "meta l4proto udp accept",
            ]
        );
        let dropping = Rule { action: RuleAction::Drop, protocol: RuleProtocol::Udp, ..all };
        assert_eq!(chain_of(vec![dropping]), ["meta l4proto udp limit name \"r100\" drop"]);
    }

    #[test]
    fn rates_are_exact_in_some_unit() {
        let text = |requests, per_seconds| rate(RateLimit { requests, per_seconds }, 1);
        assert_eq!(text(5, 1), "rate over 5/second burst 1 packets");
        assert_eq!(text(1, 60), "rate over 1/minute burst 1 packets");
        assert_eq!(text(1, 86_400), "rate over 1/day burst 1 packets");
        // 384872.7 a week.
        assert_eq!(text(7, 11), "rate over 384872/week burst 1 packets");
        assert_eq!(text(1_000_000, 7), "rate over 86400000000/week burst 1 packets");
    }

    #[test]
    fn a_port_is_matched_on_the_addresses_that_it_is_published_on() {
        let keys = |ip: &str| {
            let port = HostPort { ip: ip.parse().unwrap(), port: 80, protocol: Protocol::Udp };
            let found = elements(port, "c1").into_iter();
            found.map(|found| (found.way, found.key)).collect::<Vec<_>>()
        };
        let any = "udp . 80".to_owned();
        assert_eq!(keys("0.0.0.0"), [(Way::Any4, any.clone())]);
        assert_eq!(keys("::"), [(Way::Any4, any.clone()), (Way::Any6, any)]);
        assert_eq!(keys("192.0.2.1"), [(Way::On4, "192.0.2.1 . udp . 80".to_owned())]);
        assert_eq!(keys("2001:db8::1"), [(Way::On6, "2001:db8::1 . udp . 80".to_owned())]);
    }

    #[test]
    fn icmp_has_a_chain_of_its_own_that_the_containers_address_leads_to() {
        let rules = vec![
            rule(RuleProtocol::Icmp, RuleAction::Reject),
            Rule {
                source: parse_source("2001:db8::1"),
                ..rule(RuleProtocol::Icmp, RuleAction::Drop)
            },
            rule(RuleProtocol::All, RuleAction::Drop),
            Rule { dest_port: Some(1), ..rule(RuleProtocol::All, RuleAction::Drop) },
        ];
        let row = firewall(1, rules);
        let made = block(&row, Some(Ipv4Addr::new(10, 86, 0, 2)));
        assert_eq!(made.chains["c1_icmp"], ["reject with icmpx type admin-prohibited", "drop"]);
        let leads = |made: &Block| made.elements.iter().any(|element| element.key == "10.86.0.2");
        assert!(leads(&made));
        assert!(!leads(&block(&row, None)), "no address, no way there");
        let none = block(&firewall(1, vec![rule(RuleProtocol::Tcp, RuleAction::Drop)]), None);
        assert!(!none.chains.contains_key("c1_icmp"));
    }

    #[test]
    fn floods_are_held_back_before_any_rule_and_for_each_source_by_itself() {
        let mut row = firewall(1, vec![rule(RuleProtocol::Tcp, RuleAction::Accept)]);
        row.ddos = Some(Ddos {
            enabled: true,
            syn_flood_protection: true,
            connection_limit: Some(20),
            rate_limit: limited(100, 300),
        });
        let made = block(&row, None);
        let names: Vec<_> = made.objects.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "set c1_conn_20_4",
                "set c1_conn_20_6",
                "set c1_rate_100_300_4",
                "set c1_rate_100_300_6",
                "set c1_syn_4",
                "set c1_syn_6",
            ]
        );
        // Forgotten sooner, a source would have its requests again before its time.
        assert!(made.objects["set c1_rate_100_300_4"].contains("timeout 300s"));
        let rules = &made.chains["c1"];
        assert_eq!(rules.last().unwrap(), "meta l4proto tcp accept");
        assert_eq!(rules.iter().filter(|rule| rule.ends_with("drop")).count(), 8, "{rules:?}");
        row.ddos = row.ddos.map(|ddos| Ddos { enabled: false, ..ddos });
        assert!(block(&row, None).objects.is_empty());
    }
}
