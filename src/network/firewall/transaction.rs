//! The transactions that bring the kernel from what it has to what it should have. Pure.
//!
//! A change touches only the containers that it is about: chains that are written anew and objects that
//! come and go are theirs, so no count of another begins anew. The whole is for when it is not known
//! what the kernel has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::block::{Block, Element, Way};
use crate::network::nft::drop_table;

/// All containers' blocks, by the numbers of their firewalls.
pub(super) type Blocks = BTreeMap<i64, Block>;

/// Makes the table with all that should be in it, in place of one that may be there.
pub(super) fn whole(table: &str, blocks: &Blocks) -> String {
    let mut text = drop_table("inet", table);
    push(&mut text, format_args!("table inet {table} {{"));
    for block in blocks.values() {
        for (object, body) in &block.objects {
            push(&mut text, format_args!("\t{object} {{ {body} }}"));
        }
        for (chain, rules) in &block.chains {
            push_chain(&mut text, chain, None, rules);
        }
    }
    for (chain, hook) in HOOKS {
        push_chain(&mut text, chain, Some(hook), &ways_in(chain, blocks));
    }
    text.push_str("}\n");
    text
}

/// Leads from one state to another; empty where they are the same.
pub(super) fn change(table: &str, from: &Blocks, to: &Blocks) -> String {
    let mut text = String::new();
    let other = HOOKS.map(|(chain, _)| chain).into_iter().filter_map(|chain| {
        let ways = ways_in(chain, to);
        (ways != ways_in(chain, from)).then_some((chain, ways))
    });
    let other: Vec<(&str, Vec<String>)> = other.collect();
    // What no way leads to any more can be deleted, and what is new must be there before one does.
    for (chain, _) in &other {
        push(&mut text, format_args!("flush chain inet {table} {chain}"));
    }
    let nothing = Block::default();
    let numbers: BTreeSet<i64> = from.keys().chain(to.keys()).copied().collect();
    for number in numbers {
        let old = from.get(&number).unwrap_or(&nothing);
        let new = to.get(&number).unwrap_or(&nothing);
        if old != new {
            change_block(&mut text, table, old, new);
        }
    }
    for (chain, rules) in &other {
        for rule in rules {
            push(&mut text, format_args!("add rule inet {table} {chain} {rule}"));
        }
    }
    text
}

/// Before the engine's address translation (-100), so that ports are still those of the host; and before
/// the rules that keep containers apart (-10).
const HOOKS: [(&str, &str); 2] = [
    ("prerouting", "type filter hook prerouting priority -150; policy accept;"),
    ("forward", "type filter hook forward priority -11; policy accept;"),
];

/// The rules of a chain that the kernel begins with. What comes from the host itself is not from outside.
/// Answers are let pass: they may come to a port that address translation has chosen, and be nobody's here.
fn ways_in(chain: &str, blocks: &Blocks) -> Vec<String> {
    if chain == "forward" {
        return way(blocks, Way::Address, "meta l4proto icmp ip daddr").into_iter().collect();
    }
    let mut rules =
        vec!["iifname \"lo\" accept".to_owned(), "ct direction reply accept".to_owned()];
    for (of, key) in [
        (Way::Any4, "meta nfproto ipv4 meta l4proto . th dport"),
        (Way::On4, "ip daddr . meta l4proto . th dport"),
        (Way::Any6, "meta nfproto ipv6 meta l4proto . th dport"),
        (Way::On6, "ip6 daddr . meta l4proto . th dport"),
    ] {
        rules.extend(way(blocks, of, key));
    }
    rules
}

fn way(blocks: &Blocks, way: Way, key: &str) -> Option<String> {
    let of_way = blocks.values().flat_map(|block| &block.elements).filter(|found| found.way == way);
    let written: Vec<String> =
        of_way.map(|Element { key, chain, .. }| format!("{key} : jump {chain}")).collect();
    (!written.is_empty()).then(|| format!("{key} vmap {{ {} }}", written.join(", ")))
}

/// What is used is made before and deleted after what uses it.
fn change_block(text: &mut String, table: &str, old: &Block, new: &Block) {
    let is_other = |chain: &&String| old.chains.get(*chain) != new.chains.get(*chain);
    for (object, body) in &new.objects {
        if !old.objects.contains_key(object) {
            push_object(text, "add", table, object, &format!(" {{ {body} }}"));
        }
    }
    let chains: BTreeSet<&String> = old.chains.keys().chain(new.chains.keys()).collect();
    for chain in chains.iter().copied().filter(is_other) {
        if !old.chains.contains_key(chain) {
            push(text, format_args!("add chain inet {table} {chain}"));
        } else {
            push(text, format_args!("flush chain inet {table} {chain}"));
        }
        for rule in new.chains.get(chain).into_iter().flatten() {
            push(text, format_args!("add rule inet {table} {chain} {rule}"));
        }
        if !new.chains.contains_key(chain) {
            push(text, format_args!("delete chain inet {table} {chain}"));
        }
    }
    for object in old.objects.keys().filter(|object| !new.objects.contains_key(*object)) {
        push_object(text, "delete", table, object, "");
    }
}

fn push_object(text: &mut String, verb: &str, table: &str, object: &str, body: &str) {
    let (kind, name) = object.split_once(' ').unwrap_or((object, ""));
    push(text, format_args!("{verb} {kind} inet {table} {name}{body}"));
}

fn push_chain(text: &mut String, chain: &str, hook: Option<&str>, rules: &[String]) {
    push(text, format_args!("\tchain {chain} {{"));
    for line in hook.into_iter().chain(rules.iter().map(String::as_str)) {
        push(text, format_args!("\t\t{line}"));
    }
    text.push_str("\t}\n");
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _never = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::block::block;
    use super::super::block::tests::{firewall, rule};
    use super::*;
    use crate::domain::firewall::{Ddos, RateLimit, Rule, RuleAction, RuleProtocol};
    use crate::network::nft;

    fn limited(action: RuleAction) -> Rule {
        let rate_limit = Some(RateLimit { requests: 3, per_seconds: 7 });
        Rule { rate_limit, ..rule(RuleProtocol::All, action) }
    }

    fn with(number: i64, rules: Vec<Rule>) -> (i64, Block) {
        (number, block(&firewall(number, rules), Some(Ipv4Addr::new(10, 86, 0, 2))))
    }

    #[test]
    fn a_change_names_no_container_but_those_that_it_is_about() {
        let other = with(2, vec![limited(RuleAction::Accept)]);
        let from = Blocks::from([with(1, vec![limited(RuleAction::Accept)]), other.clone()]);
        let more = vec![limited(RuleAction::Accept), rule(RuleProtocol::Tcp, RuleAction::Drop)];
        let to = Blocks::from([with(1, more), other.clone()]);
        let text = change("t", &from, &to);
        assert!(!text.contains("c2") && !text.contains("r200"), "{text}");
        assert!(text.contains("flush chain inet t c1\n"), "{text}");
        assert!(!text.contains("limit inet t r100"), "its count goes on: {text}");
        assert_eq!(change("t", &to, &to), "");
    }

    #[test]
    fn what_is_no_longer_wanted_goes_in_the_order_in_which_it_can() {
        let from = Blocks::from([with(1, vec![limited(RuleAction::Accept)])]);
        let text = change("t", &from, &Blocks::new());
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"));
        assert!(at("flush chain inet t prerouting\n") < at("flush chain inet t c1\n"));
        assert!(at("flush chain inet t c1\n") < at("delete chain inet t c1\n"));
        assert!(at("delete chain inet t c1_icmp\n") < at("delete limit inet t r100"));
    }

    /// A way through many states, each reached by a change and compared with the same made whole.
    #[tokio::test]
    async fn the_kernel_ends_with_the_same_by_changes_as_by_the_whole() {
        let table = format!("lt0{}_test", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let floods = |connection_limit| {
            let mut row = firewall(3, vec![]);
            let limit = RateLimit { requests: 100, per_seconds: 11 };
            row.ddos = Some(Ddos {
                enabled: true,
                syn_flood_protection: true,
                connection_limit,
                rate_limit: Some(limit),
            });
            (3, block(&row, None))
        };
        let one = || {
            with(1, vec![limited(RuleAction::Reject), rule(RuleProtocol::Icmp, RuleAction::Drop)])
        };
        let two = || with(2, vec![rule(RuleProtocol::Udp, RuleAction::Reject)]);
        let states = [
            Blocks::new(),
            Blocks::from([one()]),
            Blocks::from([one(), two(), floods(Some(5))]),
            Blocks::from([with(1, vec![]), two(), floods(Some(6))]),
            Blocks::from([two(), floods(None)]),
            Blocks::from([one(), two()]),
            Blocks::new(),
        ];
        let listing = async || {
            let mut listed = nft::testing::list_table(&table).await;
            listed.sort_unstable();
            listed
        };
        nft::apply(&whole(&table, &states[0])).await.unwrap();
        for pair in states.windows(2) {
            let text = change(&table, &pair[0], &pair[1]);
            nft::apply(&text).await.unwrap_or_else(|error| panic!("{error}: {text}"));
            let changed = listing().await;
            nft::apply(&whole(&table, &pair[1])).await.unwrap();
            assert_eq!(changed, listing().await, "{text}");
        }
        nft::apply(&drop_table("inet", &table)).await.unwrap();
    }
}
