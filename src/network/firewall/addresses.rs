//! The addresses that containers have in their own network, which rules on ICMP are about.
//!
//! The engine gives a container one when it starts and may give it to another when it has ended. Asked for
//! only where a rule needs it; where the engine does not answer, what was known stays.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use super::{Inner, Kernel};
use crate::domain::ids::ContainerId;
use crate::store::firewall::FirewallRow;
use crate::util::chain::Chain;

#[derive(Debug, Default)]
pub(super) struct Addresses {
    known: HashMap<ContainerId, Ipv4Addr>,
}

impl Addresses {
    pub(super) fn of(&self, container: &ContainerId) -> Option<Ipv4Addr> {
        self.known.get(container).copied()
    }

    /// Whoever had it before has it no longer.
    fn note(&mut self, container: ContainerId, address: Option<Ipv4Addr>) {
        self.known.retain(|other, held| *other != container && Some(*held) != address);
        if let Some(address) = address {
            self.known.insert(container, address);
        }
    }
}

impl Inner {
    /// Asks for the addresses of all containers with rules on ICMP.
    pub(super) async fn find_addresses(&self, kernel: &mut Kernel) {
        let rows = match self.store.read("read the firewalls", |rx| rx.firewalls()).await {
            Ok(rows) => rows,
            Err(error) => {
                return tracing::warn!(error = %Chain(&error), "the firewalls cannot be read");
            }
        };
        for row in rows.iter().filter(|row| needs_address(row)) {
            self.ask(kernel, &row.container).await;
        }
    }

    /// The same for one.
    pub(super) async fn find_address(&self, kernel: &mut Kernel, container: &ContainerId) {
        let of = container.clone();
        let row = self.store.read("read a firewall", move |rx| rx.firewall(&of)).await;
        if matches!(row, Ok(Some(row)) if needs_address(&row)) {
            self.ask(kernel, container).await;
        }
    }

    async fn ask(&self, kernel: &mut Kernel, container: &ContainerId) {
        if !self.engine.health().borrow().is_reachable() {
            return;
        }
        match self.engine.address_of(&container.docker_name()).await {
            Ok(Some(IpAddr::V4(address))) => {
                kernel.addresses.note(container.clone(), Some(address))
            }
            Ok(_) => kernel.addresses.note(container.clone(), None),
            Err(error) => {
                tracing::warn!(container.id = %container, error = %Chain(&error), "its address is not known; its rules on ICMP may not be applied");
            }
        }
    }
}

fn needs_address(row: &FirewallRow) -> bool {
    row.attached && row.rules.iter().any(|row| row.enabled && row.rule.is_for_icmp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_holder() {
        let id = |text: &str| ContainerId::parse(text).unwrap();
        let (one, two) = (Ipv4Addr::new(10, 86, 0, 2), Ipv4Addr::new(10, 86, 0, 3));
        let mut addresses = Addresses::default();
        addresses.note(id("a"), Some(one));
        addresses.note(id("b"), Some(one));
        assert_eq!((addresses.of(&id("a")), addresses.of(&id("b"))), (None, Some(one)));
        addresses.note(id("b"), Some(two));
        addresses.note(id("a"), Some(one));
        addresses.note(id("b"), None);
        assert_eq!((addresses.of(&id("a")), addresses.of(&id("b"))), (Some(one), None));
    }
}
