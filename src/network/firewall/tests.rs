//! The firewall beside others' rules, in a network namespace of its own, and what becomes of a change that
//! the kernel does not take.

use std::io::Write;
use std::process::{Command, Stdio};

use super::block::tests::{firewall, rule};
use super::block::{block, sample};
use super::transaction::{Blocks, change, whole};
use super::*;
use crate::domain::firewall::{RuleAction, RuleProtocol};
use crate::engine::EngineOptions;
use crate::store::testing::{NOW, add_volume, id, new_container, open, terms};

/// A network namespace, with rules of somebody else's in it.
struct Elsewhere(String);

impl Elsewhere {
    fn new() -> Self {
        let new = Self(format!("lte{}", &uuid::Uuid::new_v4().simple().to_string()[..8]));
        let made = Command::new("ip").args(["netns", "add", &new.0]).status();
        assert!(made.is_ok_and(|status| status.success()));
        new.run(
            "nft -f -",
            "table inet host {\n set s { type ipv4_addr; elements = { 192.0.2.1 } }\n\
             chain input {\n type filter hook input priority 0; policy accept;\n\
             ip saddr @s counter drop\n }\n\
             chain early {\n type filter hook prerouting priority -150;\n udp dport 1 drop\n }\n }\n",
        );
        for iptables in ["iptables-nft", "ip6tables-nft", "iptables-legacy"] {
            new.run(&format!("{iptables} -N DOCKER-USER"), "");
            new.run(&format!("{iptables} -A FORWARD -j DOCKER-USER"), "");
            new.run(&format!("{iptables} -P FORWARD DROP"), "");
        }
        let dnat =
            "-t nat -A PREROUTING -p tcp --dport 20001 -j DNAT --to-destination 10.86.0.2:7000";
        new.run(&format!("iptables-nft {dnat}"), "");
        new.run(&format!("iptables-legacy {dnat}"), "");
        new
    }

    fn run(&self, line: &str, input: &str) -> String {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.0])
            .args(line.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        // It may not read.
        drop(child.stdin.take().expect("a pipe").write_all(input.as_bytes()));
        let output = child.wait_with_output().expect("an end");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}\n{input}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// All rules but those of lightd's table.
    fn others(&self, table: &str) -> Vec<String> {
        let ruleset = self.run("nft list ruleset", "");
        let mut kept = String::new();
        let mut is_ours = false;
        for line in ruleset.lines() {
            is_ours |= line == format!("table inet {table} {{");
            if !is_ours {
                kept.push_str(line);
                kept.push('\n');
            }
            is_ours &= line != "}";
        }
        let saves = ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save"];
        // Their first and last lines tell the time.
        let saved = saves.map(|save| {
            let text = self.run(save, "");
            text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
        });
        saved.into_iter().chain([kept]).collect()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "delete", &self.0]).status();
        assert!(deleted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn rules_of_the_host_and_the_engine_stay_as_they_are() {
    let elsewhere = Elsewhere::new();
    let table = "lightd0_rules";
    let before = elsewhere.others(table);
    assert!(before[0].contains("DNAT") && before[2].contains("DNAT"), "{before:?}");
    let one = Blocks::from([sample()]);
    let row = firewall(2, vec![rule(RuleProtocol::All, RuleAction::Reject)]);
    let two = Blocks::from([sample(), (2, block(&row, None))]);
    let steps = [
        whole(table, &one),
        change(table, &one, &two),
        change(table, &two, &one),
        whole(table, &two),
    ];
    for step in steps {
        elsewhere.run("nft -f -", &step);
        assert_eq!(elsewhere.others(table), before, "{step}");
        assert!(elsewhere.run("nft list tables", "").contains(table));
    }
    elsewhere.run("nft -f -", &nft::drop_table("inet", table));
    assert_eq!(elsewhere.others(table), before);
    assert!(!elsewhere.run("nft list tables", "").contains(table));
}

#[tokio::test]
async fn a_change_that_the_kernel_does_not_take_is_undone_in_the_store() {
    let (folder, store) = open();
    let new = new_container("a", add_volume(&store).await, &[]);
    store.write("test", move |tx| tx.insert_container(&new, &terms(NOW))).await.unwrap();
    let engine = Engine::new(EngineOptions {
        socket_path: folder.path().join("absent.sock"),
        node: "test-nobody".to_owned(),
    });
    // No name for a table.
    let firewall = Firewall::new(store.clone(), engine, "not a name", Backend::Nftables);
    let refused = firewall.add_rule(id("a"), rule(RuleProtocol::Tcp, RuleAction::Drop)).await;
    assert!(matches!(refused, Err(FirewallError::Nft(NftError::Refused { .. }))), "{refused:?}");
    assert_eq!(firewall.of(&id("a")).await.unwrap(), None);
    assert!(matches!(firewall.status(), FirewallStatus::Failed { .. }));
    // Who has no rules is started all the same.
    assert!(firewall.cover(&id("a")).await.is_ok());
}

#[tokio::test]
async fn the_kernel_takes_all_kinds_of_rules() {
    probe("lightd0").await.unwrap();
}
