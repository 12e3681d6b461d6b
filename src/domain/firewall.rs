//! The firewall of a container: rules on who reaches its published ports, and what holds back floods.
//!
//! Rules are matched in the order in which they were made, the first that matches decides, and what none
//! matches passes. This says what a rule may be; how the kernel is told is `network::firewall`'s.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::spec::{Problem, Protocol};

const REQUESTS_MAX: u32 = 1_000_000;
const PER_SECONDS_MAX: u32 = 86_400;
const CONNECTIONS_MAX: u32 = 65_535;
const DESCRIPTION_MAX_CHARS: usize = 255;

/// A rule, by the name that the API knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct RuleId(Uuid);

impl RuleId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl TryFrom<String> for RuleId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("must be the id that a rule was given, a UUID")
    }
}

impl std::fmt::Display for RuleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// What a rule is about. `all` is TCP and UDP, and ICMP where the rule names no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RuleProtocol {
    Tcp,
    Udp,
    Icmp,
    All,
}

impl RuleProtocol {
    pub(crate) fn covers(self, protocol: Protocol) -> bool {
        match self {
            Self::Tcp => protocol == Protocol::Tcp,
            Self::Udp => protocol == Protocol::Udp,
            Self::All => true,
            Self::Icmp => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RuleAction {
    /// With a rate limit: what is above it is dropped.
    Accept,
    /// In silence. With a rate limit: only what is above it, and the rest is up to the rules that follow.
    Drop,
    /// With an answer that says so: a reset for TCP, "unreachable" otherwise. With a rate limit as for
    /// `drop`.
    Reject,
}

/// So many at once, and refilled evenly within so many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimit {
    /// New connections; packets of UDP and ICMP.
    pub(crate) requests: u32,
    pub(crate) per_seconds: u32,
}

impl RateLimit {
    fn problems(self, field: &str, found: &mut Vec<Problem>) {
        for (name, value, most) in [
            ("requests", self.requests, REQUESTS_MAX),
            ("per_seconds", self.per_seconds, PER_SECONDS_MAX),
        ] {
            if !(1..=most).contains(&value) {
                let message = format!("must be between 1 and {most}");
                found.push(Problem::new(format!("{field}.{name}"), message));
            }
        }
    }
}

/// What a rule says. A field that is `None` matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rule {
    pub(crate) source: Option<IpNet>,
    pub(crate) source_port: Option<u16>,
    /// As published on the host.
    pub(crate) dest_port: Option<u16>,
    pub(crate) protocol: RuleProtocol,
    pub(crate) action: RuleAction,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) description: Option<String>,
}

impl Rule {
    /// All that is wrong with it, by the names of the API.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        for (field, port) in [("source_port", self.source_port), ("dest_port", self.dest_port)] {
            match port {
                Some(0) => found.push(Problem::new(field, "must be between 1 and 65535")),
                Some(_) if self.protocol == RuleProtocol::Icmp => {
                    found.push(Problem::new(field, "icmp has no ports"));
                }
                _ => {}
            }
        }
        if let Some(limit) = self.rate_limit {
            limit.problems("rate_limit", &mut found);
        }
        let description = self.description.as_deref().unwrap_or_default();
        if description.chars().count() > DESCRIPTION_MAX_CHARS
            || description.chars().any(char::is_control)
        {
            let message =
                format!("must be at most {DESCRIPTION_MAX_CHARS} characters, none of control");
            found.push(Problem::new("description", message));
        }
        found
    }

    /// Whether it does the same; a second such rule would never be come to.
    pub(crate) fn does_the_same_as(&self, other: &Self) -> bool {
        let without_words = |rule: &Self| Self { description: None, ..rule.clone() };
        without_words(self) == without_words(other)
    }

    /// Whether it is about ICMP, alone or among others.
    pub(crate) fn is_for_icmp(&self) -> bool {
        match self.protocol {
            RuleProtocol::Icmp => true,
            RuleProtocol::All => self.source_port.is_none() && self.dest_port.is_none(),
            RuleProtocol::Tcp | RuleProtocol::Udp => false,
        }
    }
}

/// An address or a network, as a rule names its source. Bits beyond the prefix are dropped.
pub(crate) fn parse_source(text: &str) -> Option<IpNet> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    let net = text.parse::<IpNet>().ok()?.trunc();
    let IpAddr::V6(address) = net.addr() else { return Some(net) };
    // No packet of IPv6 comes from ::ffff:0:0/96: an IPv4 network is meant, or all of it.
    match (address.to_ipv4_mapped(), net.prefix_len().checked_sub(96)) {
        (Some(address), Some(prefix)) => Ipv4Net::new(address, prefix).ok().map(IpNet::from),
        _ => Some(net),
    }
}

/// The same, written: an address without its prefix.
pub(crate) fn show_source(source: IpNet) -> String {
    if source.prefix_len() == source.max_prefix_len() {
        source.addr().to_string()
    } else {
        source.to_string()
    }
}

/// What holds back floods, counted for each source address (of IPv6 each /64) by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ddos {
    pub(crate) enabled: bool,
    pub(crate) syn_flood_protection: bool,
    /// Connections at a time.
    pub(crate) connection_limit: Option<u32>,
    pub(crate) rate_limit: Option<RateLimit>,
}

impl Ddos {
    pub(crate) const NONE: Self = Self {
        enabled: false,
        syn_flood_protection: false,
        connection_limit: None,
        rate_limit: None,
    };

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        if self.connection_limit.is_some_and(|most| !(1..=CONNECTIONS_MAX).contains(&most)) {
            let message = format!("must be between 1 and {CONNECTIONS_MAX}");
            found.push(Problem::new("connection_limit", message));
        }
        if let Some(limit) = self.rate_limit {
            limit.problems("rate_limit", &mut found);
        }
        let is_empty = !self.syn_flood_protection
            && self.connection_limit.is_none()
            && self.rate_limit.is_none();
        if self.enabled && is_empty {
            let message =
                "needs syn_flood_protection, a connection_limit or a rate_limit to enable";
            found.push(Problem::new("enabled", message));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: RuleProtocol) -> Rule {
        Rule {
            source: None,
            source_port: None,
            dest_port: None,
            protocol,
            action: RuleAction::Drop,
            rate_limit: None,
            description: None,
        }
    }

    fn fields(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|problem| problem.field.as_str()).collect()
    }

    #[test]
    fn sources_are_addresses_and_networks_of_both_families() {
        let read = |text: &str| parse_source(text).map(show_source);
        for (text, shown) in [
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.7/24", "203.0.113.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8::1", "2001:db8::1"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(read(text).as_deref(), Some(shown), "{text}");
        }
        for bad in
            ["", "any", "203.0.113", "203.0.113.7/33", "2001:db8::/129", "a.example", "1.2.3.4-5"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn all_that_is_wrong_with_a_rule_is_named() {
        assert_eq!(rule(RuleProtocol::All).problems(), []);
        let wrong = Rule {
            source_port: Some(0),
            dest_port: Some(80),
            rate_limit: Some(RateLimit { requests: 0, per_seconds: 86_401 }),
            description: Some("a\nb".to_owned()),
            ..rule(RuleProtocol::Icmp)
        };
        assert_eq!(
            fields(&wrong.problems()),
            [
                "source_port",
                "dest_port",
                "rate_limit.requests",
                "rate_limit.per_seconds",
                "description"
            ]
        );
    }

    #[test]
    fn rules_are_the_same_whatever_they_are_called() {
        let named =
            |name: &str| Rule { description: Some(name.to_owned()), ..rule(RuleProtocol::Tcp) };
        assert!(named("a").does_the_same_as(&named("b")));
        assert!(!named("a").does_the_same_as(&Rule { dest_port: Some(1), ..named("a") }));
    }

    #[test]
    fn icmp_is_meant_where_no_port_is() {
        assert!(rule(RuleProtocol::Icmp).is_for_icmp() && rule(RuleProtocol::All).is_for_icmp());
        assert!(!Rule { dest_port: Some(1), ..rule(RuleProtocol::All) }.is_for_icmp());
        assert!(!rule(RuleProtocol::Tcp).is_for_icmp());
    }

    #[test]
    fn a_protection_that_protects_from_nothing_is_refused() {
        let none = Ddos { enabled: true, ..Ddos::NONE };
        assert_eq!(fields(&none.problems()), ["enabled"]);
        assert_eq!(Ddos { enabled: false, ..none }.problems(), []);
        assert_eq!(Ddos { syn_flood_protection: true, ..none }.problems(), []);
        assert_eq!(
            fields(&Ddos { connection_limit: Some(0), ..none }.problems()),
            ["connection_limit"]
        );
    }
}
