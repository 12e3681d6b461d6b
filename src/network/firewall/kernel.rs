//! Bringing the kernel to what the store has: what differs, in one transaction of nft.
//!
//! Called by a change of a firewall and by its keeper, who hold [`Kernel`] meanwhile. After a failure
//! nothing is taken as known of the kernel, so that what follows sets all of it.

use std::collections::HashSet;

use tokio::time::Instant;

use super::addresses::Addresses;
use super::transaction::{self, Blocks};
use super::{FirewallError, FirewallStatus, Inner, block};
use crate::network::nft::{self, NftError, Standing};
use crate::store::firewall::FirewallRow;
use crate::util::chain::Chain;

/// What is known of the kernel.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    /// What it was last given; `None`: not known.
    pub(super) given: Option<Blocks>,
    pub(super) standing: Option<Standing>,
    pub(super) addresses: Addresses,
}

impl Inner {
    /// Brings the kernel to what the store has, and tells how it went.
    pub(super) async fn set(&self, kernel: &mut Kernel) -> Result<(), FirewallError> {
        let set = self.try_to_set(kernel).await;
        let status = match &set {
            Ok(()) => FirewallStatus::Standing,
            Err(error) => FirewallStatus::Failed { why: Chain(error).to_string() },
        };
        self.status.send_if_modified(|present| {
            let is_news = *present != status;
            *present = status;
            is_news
        });
        set
    }

    async fn try_to_set(&self, kernel: &mut Kernel) -> Result<(), FirewallError> {
        let rows = self.store.read("read the firewalls", |rx| rx.firewalls()).await?;
        let wanted = blocks(&rows, &kernel.addresses);
        if kernel.given.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let began = Instant::now();
        let result = self.give(kernel.given.take(), &wanted).await;
        if let Err(error) = result {
            kernel.standing = None;
            return Err(FirewallError::Nft(error));
        }
        kernel.standing = self.note(&wanted).await;
        let rules: usize = rows.iter().map(|row| row.rules.len()).sum();
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(
            containers = wanted.len(),
            rules,
            took_ms,
            "the containers' firewall is set"
        );
        kernel.given = Some(wanted);
        Ok(())
    }

    /// By a change where it is known what the kernel has; where it has something else after all, whole.
    async fn give(&self, known: Option<Blocks>, wanted: &Blocks) -> Result<(), NftError> {
        let table = &self.table;
        let some = known.filter(|known| !known.is_empty() && !wanted.is_empty());
        if let Some(known) = some {
            match nft::apply(&transaction::change(table, &known, wanted)).await {
                Err(NftError::Refused { said }) => {
                    tracing::warn!(
                        said,
                        "the containers' firewall is not as it was set; it is set anew"
                    );
                }
                result => return result,
            }
        }
        if !wanted.is_empty() {
            return nft::apply(&transaction::whole(table, wanted)).await;
        }
        match nft::apply(&nft::drop_table("inet", table)).await {
            // Then nothing stands there either.
            Err(NftError::Missing) => Ok(()),
            result => result,
        }
    }

    /// What can't be noted is not compared later; it is set all the same.
    async fn note(&self, wanted: &Blocks) -> Option<Standing> {
        if wanted.is_empty() {
            return None;
        }
        match Standing::note(vec![format!("inet {}", self.table)]).await {
            Ok(standing) => Some(standing),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the containers' firewall cannot be read back");
                None
            }
        }
    }
}

/// A key leads to one chain only: what the store keeps apart is not to be told twice, whatever comes.
fn blocks(rows: &[FirewallRow], addresses: &Addresses) -> Blocks {
    let mut taken = HashSet::new();
    let attached = rows.iter().filter(|row| row.attached);
    attached
        .map(|row| {
            let mut block = block::block(row, addresses.of(&row.container));
            block.elements.retain(|element| taken.insert((element.way, element.key.clone())));
            (row.number, block)
        })
        .collect()
}
