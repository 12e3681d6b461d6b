//! The firewalls of containers: what was asked for, whether or not the kernel has it.
//!
//! A container has at most one, and it goes with the container. A change that the kernel would not take
//! is undone by putting the whole of it back as it was ([`Tx::restore_firewall`]).

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row};

use super::error::StoreError;
use super::ports::host_port_of;
use super::volumes::container_id;
use super::{Read, Tx, from_sql};
use crate::domain::firewall::{Ddos, Rule, RuleId};
use crate::domain::ids::ContainerId;
use crate::domain::spec::HostPort;
use crate::domain::units::UnixSeconds;

/// A rule as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuleRow {
    /// Its place: rules are matched by it.
    pub(crate) number: i64,
    pub(crate) id: RuleId,
    pub(crate) container: ContainerId,
    pub(crate) enabled: bool,
    pub(crate) rule: Rule,
    pub(crate) created_at: UnixSeconds,
    pub(crate) updated_at: UnixSeconds,
}

/// All of a container's firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FirewallRow {
    pub(crate) number: i64,
    pub(crate) container: ContainerId,
    pub(crate) attached: bool,
    pub(crate) ddos: Option<Ddos>,
    /// In their order.
    pub(crate) rules: Vec<RuleRow>,
    /// All that the container holds, those that a rebind may give back to it among them.
    pub(crate) ports: Vec<HostPort>,
}

/// How many rules there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuleBounds {
    pub(crate) per_container: usize,
    pub(crate) per_node: usize,
}

const FIREWALL: &str = "SELECT number, container, attached, ddos_json FROM firewalls";
const RULE: &str = "SELECT r.number, r.id, f.container, r.enabled, r.rule_json, r.created_at, \
     r.updated_at FROM firewall_rules r JOIN firewalls f ON f.number = r.firewall";

impl Tx<'_> {
    /// Adds a rule behind the others. The container's first makes its firewall.
    pub(crate) fn add_rule(
        &self,
        container: &ContainerId,
        rule: &Rule,
        bounds: RuleBounds,
        now: UnixSeconds,
    ) -> Result<RuleRow, StoreError> {
        let firewall = self.make_firewall(container)?;
        if let Some(same) = firewall.rules.iter().find(|row| row.rule.does_the_same_as(rule)) {
            return Err(StoreError::RuleExists(same.id));
        }
        let all = self
            .connection
            .prepare_cached("SELECT count(*) FROM firewall_rules")?
            .query_row([], |row| row.get(0))?;
        let all = usize::try_from(from_sql(all)).unwrap_or(usize::MAX);
        for (of, count, most) in [
            ("container", firewall.rules.len(), bounds.per_container),
            ("node", all, bounds.per_node),
        ] {
            if count >= most {
                return Err(StoreError::TooManyRules { of, most });
            }
        }
        let id = RuleId::random();
        let new = RuleRow {
            number: 0,
            id,
            container: container.clone(),
            enabled: true,
            rule: rule.clone(),
            created_at: now,
            updated_at: now,
        };
        self.insert_rule(firewall.number, None, &new)?;
        self.rule(id)
    }

    /// `number`: a place that it had before.
    fn insert_rule(
        &self,
        firewall: i64,
        number: Option<i64>,
        row: &RuleRow,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO firewall_rules
                    (number, id, firewall, enabled, rule_json, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute((
                number,
                row.id.to_string(),
                firewall,
                row.enabled,
                encode(&row.rule)?,
                row.created_at.0,
                row.updated_at.0,
            ))?;
        Ok(())
    }

    pub(crate) fn enable_rule(
        &self,
        id: RuleId,
        enabled: bool,
        now: UnixSeconds,
    ) -> Result<RuleRow, StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE firewall_rules SET enabled = ?2, updated_at = ?3
                 WHERE id = ?1 AND enabled <> ?2",
            )?
            .execute((id.to_string(), enabled, now.0))?;
        self.rule(id)
    }

    pub(crate) fn delete_rule(&self, id: RuleId) -> Result<(), StoreError> {
        let deleted = self
            .connection
            .prepare_cached("DELETE FROM firewall_rules WHERE id = ?1")?
            .execute([id.to_string()])?;
        if deleted == 0 { Err(StoreError::NoSuchRule(id)) } else { Ok(()) }
    }

    pub(crate) fn set_ddos(&self, container: &ContainerId, ddos: Ddos) -> Result<(), StoreError> {
        let firewall = self.make_firewall(container)?;
        self.connection
            .prepare_cached("UPDATE firewalls SET ddos_json = ?2 WHERE number = ?1")?
            .execute((firewall.number, encode(&ddos)?))?;
        Ok(())
    }

    /// Says whether a container's rules are to be in the kernel; whether that is news. What there is not is
    /// not made to be taken out.
    pub(crate) fn attach_firewall(
        &self,
        container: &ContainerId,
        attached: bool,
    ) -> Result<bool, StoreError> {
        let before = self.firewall(container)?.map(|firewall| firewall.attached);
        if before.is_none() && !attached {
            return Ok(false);
        }
        let firewall = self.make_firewall(container)?;
        self.connection
            .prepare_cached("UPDATE firewalls SET attached = ?2 WHERE number = ?1")?
            .execute((firewall.number, attached))?;
        Ok(before != Some(attached))
    }

    /// Deletes all of a container's firewall; what there was.
    pub(crate) fn delete_firewall(
        &self,
        container: &ContainerId,
    ) -> Result<Option<FirewallRow>, StoreError> {
        let before = self.firewall(container)?;
        self.connection
            .prepare_cached("DELETE FROM firewalls WHERE container = ?1")?
            .execute([container.as_str()])?;
        Ok(before)
    }

    /// Puts a container's firewall back as it was before; nothing where the container is gone.
    pub(crate) fn restore_firewall(
        &self,
        container: &ContainerId,
        before: Option<&FirewallRow>,
    ) -> Result<(), StoreError> {
        self.delete_firewall(container)?;
        let Some(before) = before else { return Ok(()) };
        if !self.container_exists(container)? {
            return Ok(());
        }
        let ddos = before.ddos.as_ref().map(encode).transpose()?;
        self.connection
            .prepare_cached(
                "INSERT INTO firewalls (number, container, attached, ddos_json)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((before.number, container.as_str(), before.attached, ddos))?;
        for row in &before.rules {
            self.insert_rule(before.number, Some(row.number), row)?;
        }
        Ok(())
    }

    /// The container's firewall, made if there is none.
    fn make_firewall(&self, container: &ContainerId) -> Result<FirewallRow, StoreError> {
        if !self.container_exists(container)? {
            return Err(StoreError::NoSuchContainer(container.clone()));
        }
        self.connection
            .prepare_cached(
                "INSERT INTO firewalls (container, attached) VALUES (?1, 1)
                 ON CONFLICT (container) DO NOTHING",
            )?
            .execute([container.as_str()])?;
        let made = self.firewall(container)?;
        made.ok_or_else(|| StoreError::NoSuchContainer(container.clone()))
    }
}

impl Read<'_> {
    pub(crate) fn rule(&self, id: RuleId) -> Result<RuleRow, StoreError> {
        self.connection
            .prepare_cached(&format!("{RULE} WHERE r.id = ?1"))?
            .query_row([id.to_string()], |row| Ok(rule_of(row)))
            .optional()?
            .unwrap_or(Err(StoreError::NoSuchRule(id)))
    }

    /// All of one container's firewall; `None` where nothing was ever asked for.
    pub(crate) fn firewall(
        &self,
        container: &ContainerId,
    ) -> Result<Option<FirewallRow>, StoreError> {
        Ok(self.firewalls_of(Some(container))?.pop())
    }

    /// Those of all containers.
    pub(crate) fn firewalls(&self) -> Result<Vec<FirewallRow>, StoreError> {
        self.firewalls_of(None)
    }

    fn firewalls_of(&self, only: Option<&ContainerId>) -> Result<Vec<FirewallRow>, StoreError> {
        let only = only.map(ContainerId::as_str);
        let mut statement = self.connection.prepare_cached(&format!(
            "{FIREWALL} WHERE (?1 IS NULL OR container = ?1) ORDER BY number"
        ))?;
        let mut rows = statement.query([only])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(firewall_of(row)?);
        }
        if found.is_empty() {
            return Ok(found);
        }
        let at: HashMap<ContainerId, usize> =
            found.iter().enumerate().map(|(at, row)| (row.container.clone(), at)).collect();
        self.add_rules(only, &at, &mut found)?;
        self.add_ports(only, &at, &mut found)?;
        Ok(found)
    }

    fn add_rules(
        &self,
        only: Option<&str>,
        at: &HashMap<ContainerId, usize>,
        to: &mut [FirewallRow],
    ) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "{RULE} WHERE (?1 IS NULL OR f.container = ?1) ORDER BY r.number"
        ))?;
        let mut rows = statement.query([only])?;
        while let Some(row) = rows.next()? {
            let rule = rule_of(row)?;
            if let Some(&at) = at.get(&rule.container) {
                to[at].rules.push(rule);
            }
        }
        Ok(())
    }

    fn add_ports(
        &self,
        only: Option<&str>,
        at: &HashMap<ContainerId, usize>,
        to: &mut [FirewallRow],
    ) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT p.ip, p.port, p.protocol, p.container FROM ports p
             JOIN firewalls f ON f.container = p.container
             WHERE (?1 IS NULL OR p.container = ?1) ORDER BY p.position IS NULL, p.position",
        )?;
        let mut rows = statement.query([only])?;
        while let Some(row) = rows.next()? {
            let container = container_id(&row.get::<_, String>(3)?)?;
            if let Some(&at) = at.get(&container) {
                to[at].ports.push(host_port_of(row)?);
            }
        }
        Ok(())
    }
}

fn encode(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|why| StoreError::decode("firewall", why))
}

fn firewall_of(row: &Row<'_>) -> Result<FirewallRow, StoreError> {
    let ddos: Option<String> = row.get(3)?;
    let ddos = ddos.as_deref().map(serde_json::from_str).transpose();
    Ok(FirewallRow {
        number: row.get(0)?,
        container: container_id(&row.get::<_, String>(1)?)?,
        attached: row.get(2)?,
        ddos: ddos.map_err(|why| StoreError::decode("protection from floods", why))?,
        rules: Vec::new(),
        ports: Vec::new(),
    })
}

fn rule_of(row: &Row<'_>) -> Result<RuleRow, StoreError> {
    let (id, rule): (String, String) = (row.get(1)?, row.get(4)?);
    Ok(RuleRow {
        number: row.get(0)?,
        id: RuleId::parse(&id).ok_or_else(|| StoreError::decode("rule's id", id))?,
        container: container_id(&row.get::<_, String>(2)?)?,
        enabled: row.get(3)?,
        rule: serde_json::from_str(&rule).map_err(|why| StoreError::decode("rule", why))?,
        created_at: UnixSeconds(row.get(5)?),
        updated_at: UnixSeconds(row.get(6)?),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        NOW, add_ports, add_volume, id, later, named, new_container, open, terms,
    };
    use super::super::{Store, Tx};
    use super::*;
    use crate::domain::firewall::{RuleAction, RuleProtocol};

    const BOUNDS: RuleBounds = RuleBounds { per_container: 3, per_node: 4 };

    fn on_port(dest_port: u16) -> Rule {
        Rule {
            source: None,
            source_port: None,
            dest_port: Some(dest_port),
            protocol: RuleProtocol::Tcp,
            action: RuleAction::Drop,
            rate_limit: None,
            description: None,
        }
    }

    async fn with_containers(names: &[&str]) -> (tempfile::TempDir, Store) {
        let (folder, store) = open();
        add_ports(&store, "0.0.0.0", 7000, 7009).await;
        for (n, name) in (7000..).zip(names) {
            let new = new_container(name, add_volume(&store).await, &[named("0.0.0.0", n)]);
            let insert = move |tx: &Tx<'_>| tx.insert_container(&new, &terms(NOW));
            store.write("test", insert).await.unwrap();
        }
        (folder, store)
    }

    async fn add(store: &Store, container: &str, port: u16) -> Result<RuleRow, StoreError> {
        let container = id(container);
        store.write("test", move |tx| tx.add_rule(&container, &on_port(port), BOUNDS, NOW)).await
    }

    async fn all(store: &Store) -> Vec<FirewallRow> {
        store.read("test", |rx| rx.firewalls()).await.unwrap()
    }

    #[tokio::test]
    async fn rules_stand_in_the_order_in_which_they_were_made() {
        let (_folder, store) = with_containers(&["a", "b"]).await;
        for (container, port) in [("a", 3), ("b", 9), ("a", 1), ("a", 2)] {
            add(&store, container, port).await.unwrap();
        }
        let all = all(&store).await;
        let ports: Vec<_> = all[0].rules.iter().map(|row| row.rule.dest_port).collect();
        assert_eq!(ports, [Some(3), Some(1), Some(2)]);
        assert_eq!((all[0].container.as_str(), all[0].attached), ("a", true));
        assert_eq!(all[1].ports.iter().map(|port| port.port).collect::<Vec<_>>(), [7001]);
    }

    #[tokio::test]
    async fn the_same_rule_twice_and_too_many_are_refused() {
        let (_folder, store) = with_containers(&["a", "b"]).await;
        let first = add(&store, "a", 1).await.unwrap();
        let again = add(&store, "a", 1).await;
        assert!(matches!(again, Err(StoreError::RuleExists(of)) if of == first.id));
        add(&store, "a", 2).await.unwrap();
        add(&store, "a", 3).await.unwrap();
        let over = add(&store, "a", 4).await;
        assert!(matches!(over, Err(StoreError::TooManyRules { of: "container", most: 3 })));
        add(&store, "b", 1).await.unwrap();
        let over = add(&store, "b", 2).await;
        assert!(matches!(over, Err(StoreError::TooManyRules { of: "node", most: 4 })));
        let nobodys = add(&store, "c", 1).await;
        assert!(matches!(nobodys, Err(StoreError::NoSuchContainer(_))));
    }

    #[tokio::test]
    async fn a_firewall_goes_with_its_container() {
        let (_folder, store) = with_containers(&["a", "b"]).await;
        let rule = add(&store, "a", 1).await.unwrap();
        add(&store, "b", 1).await.unwrap();
        store.write("test", |tx| tx.delete_container(&id("a"), &terms(NOW))).await.unwrap();
        assert_eq!(all(&store).await.len(), 1);
        let gone = store.read("test", move |rx| rx.rule(rule.id)).await;
        assert!(matches!(gone, Err(StoreError::NoSuchRule(_))));
    }

    #[tokio::test]
    async fn whatever_was_changed_can_be_put_back() {
        let (_folder, store) = with_containers(&["a"]).await;
        let none = store.write("test", |tx| tx.attach_firewall(&id("a"), false)).await;
        assert!(!none.unwrap() && all(&store).await.is_empty(), "nothing is made to be taken out");
        for port in 1..=2 {
            add(&store, "a", port).await.unwrap();
        }
        let before = all(&store).await.pop().unwrap();
        let (first, kept) = (before.rules[0].id, before.clone());
        let ddos = Ddos {
            enabled: true,
            syn_flood_protection: true,
            connection_limit: Some(5),
            rate_limit: None,
        };
        store
            .write("test", move |tx| {
                tx.delete_rule(first)?;
                tx.set_ddos(&id("a"), ddos)?;
                assert!(tx.attach_firewall(&id("a"), false)?);
                assert!(!tx.attach_firewall(&id("a"), false)?);
                tx.add_rule(&id("a"), &on_port(9), BOUNDS, later(5))?;
                assert_ne!(tx.firewall(&id("a"))?.as_ref(), Some(&kept));
                tx.restore_firewall(&id("a"), Some(&kept))
            })
            .await
            .unwrap();
        assert_eq!(all(&store).await, [before]);
        store.write("test", |tx| tx.restore_firewall(&id("a"), None)).await.unwrap();
        assert_eq!(all(&store).await, []);
    }

    #[tokio::test]
    async fn a_rule_that_is_switched_to_what_it_is_stays_untouched() {
        let (_folder, store) = with_containers(&["a"]).await;
        let rule = add(&store, "a", 1).await.unwrap();
        let of = rule.id;
        let switch = async |enabled, at| {
            store.write("test", move |tx| tx.enable_rule(of, enabled, at)).await.unwrap()
        };
        assert_eq!(switch(true, later(1)).await, rule);
        let off = switch(false, later(2)).await;
        assert_eq!((off.enabled, off.updated_at), (false, later(2)));
    }
}
