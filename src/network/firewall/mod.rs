//! Rules on who reaches a container's published ports: asked for, stored, and kept in the kernel.
//!
//! ```text
//!   API ──change──> store ──┐ read whole
//!   launch ──cover─────────>├──> blocks ──difference──> one nft transaction
//!   keeper: ports, exits, ──┘      ^ what the kernel was last given
//!           somebody's flush ──> compare ──> forget it, so that all is set anew
//! ```
//! The store is the truth. Whatever happens, the same is done: all firewalls are read, and what differs
//! from what the kernel has is changed in one transaction. So nothing depends on having heard of a change,
//! only its being soon. A change that the kernel does not take is undone in the store and refused; what
//! was not heard of, or could not be done, is tried again by [`Firewall::run`].
//!
//! The table is lightd's own, `inet {bridge}_rules`, and gone while there is no firewall. Nothing of the
//! host's or the engine's is read or touched.

mod addresses;
mod block;
mod keeper;
mod transaction;

use std::collections::HashSet;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex, Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::addresses::Addresses;
pub(crate) use self::keeper::Cues;
use self::transaction::Blocks;
use super::isolation::Firewall as Backend;
use super::nft::{self, NftError, Standing};
use crate::domain::firewall::{Ddos, Rule, RuleId};
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::engine::Engine;
use crate::store::firewall::{FirewallRow, RuleBounds, RuleRow};
use crate::store::{Store, StoreError, Tx};
use crate::util::chain::Chain;

pub(crate) const BOUNDS: RuleBounds = RuleBounds { per_container: 100, per_node: 5_000 };
/// Changes that wait for each other; each takes some milliseconds.
const CHANGES_AT_ONCE: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FirewallError {
    #[error("network.firewall is off on this node, so no rule is applied")]
    Off,
    #[error("too many changes of the firewall wait")]
    Busy,
    #[error("lightd is stopping")]
    Stopping,
    #[error("cannot set the firewall rules of containers")]
    Nft(#[source] NftError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether the kernel has what the store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FirewallStatus {
    /// Not set yet since lightd began.
    NotYet,
    Standing,
    Failed {
        why: String,
    },
    Off,
}

/// The keeper of all containers' firewalls. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Firewall {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    engine: Engine,
    /// The table's name.
    table: String,
    backend: Backend,
    /// Held from the change in the store until the kernel has it, so that an undo undoes nothing else.
    kernel: Mutex<Kernel>,
    status: watch::Sender<FirewallStatus>,
    /// Something that rules depend on has changed.
    touched: Notify,
    /// Containers that may have another address than is known.
    moved: StdMutex<HashSet<ContainerId>>,
    permits: Semaphore,
    /// Changes go on to their end when whoever asked is gone.
    tasks: TaskTracker,
}

/// What is known of the kernel.
#[derive(Debug, Default)]
struct Kernel {
    /// What it was last given; `None`: not known.
    given: Option<Blocks>,
    standing: Option<Standing>,
    addresses: Addresses,
}

impl Firewall {
    /// The table is named after `bridge`; one that is no name for a table is refused by nft.
    pub(crate) fn new(store: Store, engine: Engine, bridge: &str, backend: Backend) -> Self {
        let status = match backend {
            Backend::Nftables => FirewallStatus::NotYet,
            Backend::Off => FirewallStatus::Off,
        };
        Self {
            inner: Arc::new(Inner {
                store,
                engine,
                table: format!("{bridge}_rules"),
                backend,
                kernel: Mutex::default(),
                status: watch::Sender::new(status),
                touched: Notify::new(),
                moved: StdMutex::default(),
                permits: Semaphore::new(CHANGES_AT_ONCE),
                tasks: TaskTracker::new(),
            }),
        }
    }

    pub(crate) fn status(&self) -> FirewallStatus {
        self.inner.status.borrow().clone()
    }

    /// Asks for a look at what has changed: a container was deleted with its rules. Never waits.
    pub(crate) fn touch(&self) {
        self.inner.touched.notify_one();
    }

    /// Asks for a look at the address of a container that was started or has ended. Never waits.
    pub(crate) fn moved(&self, container: &ContainerId) {
        self.inner.lock_moved().insert(container.clone());
        self.inner.touched.notify_one();
    }

    /// Makes sure that a container's rules are in the kernel before it is started: ports that it
    /// was given meanwhile are covered from the first packet on.
    pub(crate) async fn cover(&self, container: &ContainerId) -> Result<(), FirewallError> {
        if self.inner.backend == Backend::Off {
            return Ok(());
        }
        let set = self.inner.set(&mut *self.inner.kernel.lock().await).await;
        let Err(error) = set else { return Ok(()) };
        // Whoever has no rules needs none to be set.
        match self.of(container).await? {
            Some(firewall) if firewall.attached => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) async fn add_rule(
        &self,
        container: ContainerId,
        rule: Rule,
    ) -> Result<RuleRow, FirewallError> {
        self.refuse_if_off()?;
        let now = UnixSeconds::now();
        let of = container.clone();
        self.change("store a firewall rule", of, move |tx| {
            tx.add_rule(&container, &rule, BOUNDS, now)
        })
        .await
    }

    pub(crate) async fn enable_rule(
        &self,
        row: RuleRow,
        enabled: bool,
    ) -> Result<RuleRow, FirewallError> {
        self.refuse_if_off()?;
        let now = UnixSeconds::now();
        self.change("switch a firewall rule", row.container, move |tx| {
            tx.enable_rule(row.id, enabled, now)
        })
        .await
    }

    pub(crate) async fn delete_rule(&self, row: RuleRow) -> Result<(), FirewallError> {
        let delete = move |tx: &Tx<'_>| tx.delete_rule(row.id);
        self.change("delete a firewall rule", row.container, delete).await
    }

    pub(crate) async fn set_ddos(
        &self,
        container: ContainerId,
        ddos: Ddos,
    ) -> Result<(), FirewallError> {
        self.refuse_if_off()?;
        let of = container.clone();
        self.change("store a protection from floods", of, move |tx| tx.set_ddos(&container, ddos))
            .await
    }

    /// Brings a container's firewall into the kernel, or takes it out and keeps its rules. Whether that
    /// is news.
    pub(crate) async fn attach(
        &self,
        container: ContainerId,
        attached: bool,
    ) -> Result<bool, FirewallError> {
        if attached {
            self.refuse_if_off()?;
        }
        let of = container.clone();
        self.change("switch a firewall", of, move |tx| tx.attach_firewall(&container, attached))
            .await
    }

    /// Deletes all of a container's firewall; what there was.
    pub(crate) async fn clean(
        &self,
        container: ContainerId,
    ) -> Result<Option<FirewallRow>, FirewallError> {
        let of = container.clone();
        self.change("delete a firewall", of, move |tx| tx.delete_firewall(&container)).await
    }

    /// A container's firewall, as stored.
    pub(crate) async fn of(&self, id: &ContainerId) -> Result<Option<FirewallRow>, StoreError> {
        let id = id.clone();
        self.inner.store.read("read a firewall", move |rx| rx.firewall(&id)).await
    }

    pub(crate) async fn rule(&self, id: RuleId) -> Result<RuleRow, StoreError> {
        self.inner.store.read("read a firewall rule", move |rx| rx.rule(id)).await
    }

    fn refuse_if_off(&self) -> Result<(), FirewallError> {
        match self.inner.backend {
            Backend::Nftables => Ok(()),
            Backend::Off => Err(FirewallError::Off),
        }
    }

    /// Changes store and kernel, or neither.
    async fn change<T: Send + 'static>(
        &self,
        op: &'static str,
        container: ContainerId,
        change: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, FirewallError> {
        let inner = Arc::clone(&self.inner);
        let work = async move {
            let _permit = inner.permits.try_acquire().map_err(|_| FirewallError::Busy)?;
            inner.change(op, container, change).await
        };
        // A panic in it was told where it happened.
        self.inner.tasks.spawn(work).await.unwrap_or(Err(FirewallError::Stopping))
    }
}

impl Inner {
    fn lock_moved(&self) -> MutexGuard<'_, HashSet<ContainerId>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn change<T: Send + 'static>(
        &self,
        op: &'static str,
        container: ContainerId,
        change: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, FirewallError> {
        let mut kernel = self.kernel.lock().await;
        let of = container.clone();
        let write = move |tx: &Tx<'_>| Ok((tx.firewall(&of)?, change(tx)?));
        let (before, made) = self.store.write(op, write).await?;
        if self.backend == Backend::Off {
            return Ok(made);
        }
        self.find_address(&mut kernel, &container).await;
        let Err(error) = self.set(&mut kernel).await else { return Ok(made) };
        // What the kernel has of it is for the keeper to find out.
        self.touched.notify_one();
        let undo = move |tx: &Tx<'_>| tx.restore_firewall(&container, before.as_ref());
        if let Err(error) = self.store.write("undo a change of the firewall", undo).await {
            tracing::error!(error = %Chain(&error), "a firewall that could not be set stays in the store; it will be tried again");
        }
        Err(error)
    }

    /// Brings the kernel to what the store has, and tells how it went.
    async fn set(&self, kernel: &mut Kernel) -> Result<(), FirewallError> {
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

/// Whether nft and the kernel take rules such as these. Changes nothing.
pub(crate) async fn probe(bridge: &str) -> Result<(), NftError> {
    nft::check(&transaction::whole(&format!("{bridge}_probe"), &Blocks::from([block::sample()])))
        .await
}

#[cfg(test)]
mod tests;
