//! How a container's firewall is shown: what was asked for, and whether the kernel has it.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::firewall::{Ddos, RateLimit, RuleAction, RuleId, RuleProtocol, show_source};
use crate::domain::ids::ContainerId;
use crate::domain::spec::HostPort;
use crate::domain::units::UnixSeconds;
use crate::network::firewall::FirewallStatus;
use crate::store::firewall::{FirewallRow, RuleRow};

/// Whether something that was asked for is in effect.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = FirewallEffect)]
pub(super) struct Effect {
    /// Whether the kernel has it.
    #[schema(example = true)]
    applied: bool,
    /// Why it has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Effect {
    /// Of what a container has; `wanted` says whether this part of it is switched on.
    fn of(status: &FirewallStatus, attached: bool, wanted: bool) -> Self {
        let reason = match status {
            _ if !wanted => "it is not enabled".to_owned(),
            _ if !attached => {
                "the container's firewall is taken out: POST /firewall/networks/:id".to_owned()
            }
            FirewallStatus::Standing => return Self { applied: true, reason: None },
            FirewallStatus::Off => "network.firewall is off on this node".to_owned(),
            FirewallStatus::NotYet => "lightd has just begun".to_owned(),
            // The reason itself names paths and rules; it stands in the log.
            FirewallStatus::Failed { .. } => {
                "the node's firewall cannot be set; lightd's log has the reason".to_owned()
            }
        };
        Self { applied: false, reason: Some(reason) }
    }
}

/// A firewall rule of a container.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallRule)]
pub(super) struct RuleView {
    id: RuleId,
    container_id: ContainerId,
    /// An address or a network; `null` for any.
    #[schema(required, example = "203.0.113.0/24")]
    source_ip: Option<String>,
    #[schema(required, example = json!(null))]
    source_port: Option<u16>,
    /// As published on the host; `null` for all of the container's.
    #[schema(required, example = 25565)]
    dest_port: Option<u16>,
    protocol: RuleProtocol,
    action: RuleAction,
    #[schema(required)]
    rate_limit: Option<RateLimit>,
    #[schema(required, example = "the office")]
    description: Option<String>,
    #[schema(example = true)]
    enabled: bool,
    #[serde(flatten)]
    effect: Effect,
    /// The container's published ports that it is about at present.
    ports: Vec<HostPort>,
    created_at: UnixSeconds,
    updated_at: UnixSeconds,
}

impl RuleView {
    /// `of`: the firewall that it is part of.
    pub(super) fn new(row: RuleRow, of: &FirewallRow, status: &FirewallStatus) -> Self {
        let RuleRow { id, container, enabled, rule, created_at, updated_at, .. } = row;
        let about = |port: &&HostPort| {
            rule.protocol.covers(port.protocol)
                && rule.dest_port.is_none_or(|number| number == port.port)
        };
        Self {
            id,
            container_id: container,
            source_ip: rule.source.map(show_source),
            source_port: rule.source_port,
            dest_port: rule.dest_port,
            protocol: rule.protocol,
            action: rule.action,
            rate_limit: rule.rate_limit,
            ports: of.ports.iter().filter(about).copied().collect(),
            description: rule.description,
            enabled,
            effect: Effect::of(status, of.attached, enabled),
            created_at,
            updated_at,
        }
    }
}

/// A container's protection from floods.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallDdos)]
pub(super) struct DdosView {
    container_id: ContainerId,
    enabled: bool,
    syn_flood_protection: bool,
    /// Connections of one source at a time.
    #[schema(required, example = 20)]
    connection_limit: Option<u32>,
    /// New connections (packets of UDP) of one source.
    #[schema(required)]
    rate_limit: Option<RateLimit>,
    #[serde(flatten)]
    effect: Effect,
}

impl DdosView {
    pub(super) fn new(
        container: ContainerId,
        of: Option<&FirewallRow>,
        status: &FirewallStatus,
    ) -> Self {
        let ddos = of.and_then(|firewall| firewall.ddos).unwrap_or(Ddos::NONE);
        let attached = of.is_none_or(|firewall| firewall.attached);
        Self {
            container_id: container,
            enabled: ddos.enabled,
            syn_flood_protection: ddos.syn_flood_protection,
            connection_limit: ddos.connection_limit,
            rate_limit: ddos.rate_limit,
            effect: Effect::of(status, attached, ddos.enabled),
        }
    }
}

/// A container's firewall as a whole.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FirewallNetwork)]
pub(super) struct NetworkView {
    container_id: ContainerId,
    /// Whether its rules are to be in the kernel.
    enabled: bool,
    rules: usize,
    ddos: bool,
    /// The published ports that it is about.
    ports: Vec<HostPort>,
    #[serde(flatten)]
    effect: Effect,
}

impl NetworkView {
    pub(super) fn new(
        container: ContainerId,
        of: Option<FirewallRow>,
        status: &FirewallStatus,
    ) -> Self {
        let enabled = of.as_ref().is_some_and(|firewall| firewall.attached);
        let ddos = of.as_ref().and_then(|firewall| firewall.ddos);
        let (rules, ports) =
            of.map_or((0, Vec::new()), |firewall| (firewall.rules.len(), firewall.ports));
        Self {
            container_id: container,
            enabled,
            rules,
            ddos: ddos.is_some_and(|ddos| ddos.enabled),
            ports,
            effect: Effect::of(status, enabled, enabled),
        }
    }
}
