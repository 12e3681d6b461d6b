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
mod kernel;
mod trail;
mod transaction;

use std::collections::HashSet;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex, Notify, Semaphore, watch};
use tokio_util::task::TaskTracker;

pub(crate) use self::keeper::Cues;
use self::kernel::Kernel;
use self::transaction::Blocks;
use super::isolation::Firewall as Backend;
use super::nft::{self, NftError};
use crate::domain::audit::{Act, Action, Actor};
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

/// What a change has made, and the container's firewall with it in: both as the transaction wrote them.
/// Another change may follow before they are shown, so neither is read again for that.
#[derive(Debug)]
pub(crate) struct Changed<T> {
    pub(crate) made: T,
    /// `None`: there is none.
    pub(crate) firewall: Option<FirewallRow>,
}

/// The keeper of all containers' firewalls. Clones share it, but for whom they act: lightd itself unless
/// [`Firewall::by`] says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Firewall {
    inner: Arc<Inner>,
    actor: Actor,
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
            actor: Actor::lightd(),
        }
    }

    /// The same, for this actor.
    pub(crate) fn by(&self, actor: Actor) -> Self {
        Self { inner: Arc::clone(&self.inner), actor }
    }

    fn act(&self, action: Action, container: &ContainerId) -> Act {
        Act::new(self.actor.clone(), action).on(container)
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
    ) -> Result<Changed<RuleRow>, FirewallError> {
        self.refuse_if_off()?;
        let now = UnixSeconds::now();
        let (of, act) = (container.clone(), self.act(Action::FirewallAddRule, &container));
        self.change("store a firewall rule", of, move |tx| {
            let row = tx.add_rule(&container, &rule, BOUNDS, now)?;
            let act = trail::of_rule(act, row.id, &row.rule);
            Ok((row, act))
        })
        .await
    }

    pub(crate) async fn enable_rule(
        &self,
        row: RuleRow,
        enabled: bool,
    ) -> Result<Changed<RuleRow>, FirewallError> {
        self.refuse_if_off()?;
        let now = UnixSeconds::now();
        let act = self.act(Action::FirewallToggleRule, &row.container);
        let act = act.with("rule_id", row.id.to_string()).with("enabled", enabled);
        self.change("switch a firewall rule", row.container, move |tx| {
            Ok((tx.enable_rule(row.id, enabled, now)?, act))
        })
        .await
    }

    pub(crate) async fn delete_rule(&self, row: RuleRow) -> Result<(), FirewallError> {
        let act = self.act(Action::FirewallDeleteRule, &row.container);
        let act = trail::of_rule(act, row.id, &row.rule);
        let delete = move |tx: &Tx<'_>| Ok((tx.delete_rule(row.id)?, act));
        self.change("delete a firewall rule", row.container, delete).await.map(|done| done.made)
    }

    pub(crate) async fn set_ddos(
        &self,
        container: ContainerId,
        ddos: Ddos,
    ) -> Result<Changed<()>, FirewallError> {
        self.refuse_if_off()?;
        let act = trail::of_ddos(self.act(Action::FirewallProtect, &container), &ddos);
        let of = container.clone();
        let set = move |tx: &Tx<'_>| Ok((tx.set_ddos(&container, ddos)?, act));
        self.change("store a protection from floods", of, set).await
    }

    /// Brings a container's firewall into the kernel, or takes it out and keeps its rules. Whether that
    /// is news.
    pub(crate) async fn attach(
        &self,
        container: ContainerId,
        attached: bool,
    ) -> Result<Changed<bool>, FirewallError> {
        if attached {
            self.refuse_if_off()?;
        }
        let action = if attached { Action::FirewallAttach } else { Action::FirewallDetach };
        let (of, act) = (container.clone(), self.act(action, &container));
        let attach = move |tx: &Tx<'_>| Ok((tx.attach_firewall(&container, attached)?, act));
        self.change("switch a firewall", of, attach).await
    }

    /// Deletes all of a container's firewall; what there was.
    pub(crate) async fn clean(
        &self,
        container: ContainerId,
    ) -> Result<Option<FirewallRow>, FirewallError> {
        let (of, act) = (container.clone(), self.act(Action::FirewallCleanup, &container));
        let delete = move |tx: &Tx<'_>| {
            let was = tx.delete_firewall(&container)?;
            let rules = was.as_ref().map_or(0, |was| was.rules.len());
            Ok((was, act.with("deleted_rules", rules)))
        };
        self.change("delete a firewall", of, delete).await.map(|done| done.made)
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

    /// Changes store and kernel, or neither. Whatever `change` does is recorded as the act that comes of it.
    async fn change<T: Send + 'static>(
        &self,
        op: &'static str,
        container: ContainerId,
        change: impl FnOnce(&Tx<'_>) -> Result<(T, Act), StoreError> + Send + 'static,
    ) -> Result<Changed<T>, FirewallError> {
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
        change: impl FnOnce(&Tx<'_>) -> Result<(T, Act), StoreError> + Send + 'static,
    ) -> Result<Changed<T>, FirewallError> {
        let mut kernel = self.kernel.lock().await;
        let of = container.clone();
        let write = move |tx: &Tx<'_>| {
            let before = tx.firewall(&of)?;
            let (made, act) = change(tx)?;
            let firewall = tx.firewall(&of)?;
            let is_news = firewall != before;
            if is_news {
                tx.record(&act, UnixSeconds::now())?;
            }
            Ok((before, Changed { made, firewall }, is_news.then_some(act.action)))
        };
        let (before, changed, done) = self.store.write(op, write).await?;
        if self.backend == Backend::Off {
            return Ok(changed);
        }
        self.find_address(&mut kernel, &container).await;
        let Err(error) = self.set(&mut kernel).await else { return Ok(changed) };
        // What the kernel has of it is for the keeper to find out.
        self.touched.notify_one();
        let act = done.map(|done| trail::of_undo(&container, done, &error));
        let undo = move |tx: &Tx<'_>| {
            tx.restore_firewall(&container, before.as_ref())?;
            act.map_or(Ok(()), |act| tx.record(&act, UnixSeconds::now()))
        };
        if let Err(error) = self.store.write("undo a change of the firewall", undo).await {
            tracing::error!(error = %Chain(&error), "a firewall that could not be set stays in the store; it will be tried again");
        }
        Err(error)
    }
}

/// Whether nft and the kernel take rules such as these. Changes nothing.
pub(crate) async fn probe(bridge: &str) -> Result<(), NftError> {
    nft::check(&transaction::whole(&format!("{bridge}_probe"), &Blocks::from([block::sample()])))
        .await
}

#[cfg(test)]
mod tests;
