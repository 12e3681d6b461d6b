//! What was done to a container's firewall, as the audit log has it.
//!
//! Made by [`super::Firewall`] for each change, and stored in the transaction that stores the change. One
//! that the kernel did not take is undone in another transaction, which says so.

use serde_json::json;

use crate::domain::audit::{Act, Action, Actor};
use crate::domain::firewall::{Ddos, Rule, RuleId, show_source};
use crate::domain::ids::ContainerId;
use crate::util::chain::Chain;

/// What a rule says is told when it comes and when it goes.
pub(super) fn of_rule(act: Act, id: RuleId, rule: &Rule) -> Act {
    act.with("rule_id", id.to_string())
        .with("protocol", json!(rule.protocol))
        .with("action", json!(rule.action))
        .with_some("source_ip", rule.source.map(show_source))
        .with_some("source_port", rule.source_port)
        .with_some("dest_port", rule.dest_port)
        .with_some("rate_limit", rule.rate_limit.map(|limit| json!(limit)))
}

pub(super) fn of_ddos(act: Act, ddos: &Ddos) -> Act {
    act.with("enabled", ddos.enabled)
        .with("syn_flood_protection", ddos.syn_flood_protection)
        .with_some("connection_limit", ddos.connection_limit)
        .with_some("rate_limit", ddos.rate_limit.map(|limit| json!(limit)))
}

/// A change was taken back, because the kernel did not take it.
pub(super) fn of_undo(container: &ContainerId, undone: Action, why: &super::FirewallError) -> Act {
    Act::new(Actor::lightd(), Action::FirewallUndone)
        .on(container)
        .with("undone", undone.as_str())
        .with("error", Chain(why).to_string())
}
