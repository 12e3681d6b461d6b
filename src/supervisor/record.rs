//! A container's row and the machine in it: read, written, shown.
//!
//! The record is changed only by its owner task and stored whole with the panel updates that report the
//! change and the acts that explain it, in one transaction.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Restarts, Settings, Snapshot};
use crate::domain::audit::Act;
use crate::domain::event::{StateEvent, StateName};
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::{Effect, Machine, Phase};
use crate::domain::observed::Observed;
use crate::domain::panel_update::{PanelUpdate, PowerState};
use crate::domain::spec::{ContainerSpec, PortBinding};
use crate::domain::units::UnixSeconds;
use crate::store::bindings::{PortRequest, PortsWanted};
use crate::store::containers::{ContainerRow, ContainerState};
use crate::store::port_terms::PortTerms;
use crate::store::{Store, StoreError, Tx};

/// What the owner task knows of its container and keeps in the store.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) id: ContainerId,
    pub(super) machine: Machine,
    pub(super) spec: Arc<ContainerSpec>,
    pub(super) ports: Arc<[PortBinding]>,
    /// While a rebind may still be undone: the ports from before.
    pub(super) previous_ports: Option<Vec<PortBinding>>,
    /// Whether the Docker container from before the latest rebind was of an older specification.
    pub(super) previous_restart_needed: bool,
    pub(super) restart_needed: bool,
    /// The engine was asked for other limits and has not answered: should lightd end before, the store says
    /// that the Docker container is of another specification.
    pub(super) limits_in_doubt: bool,
    /// When the latest start was decided, in Unix milliseconds: what the engine began before is of an
    /// earlier run.
    pub(super) begun_at_ms: Option<i64>,
    pub(super) docker_id: Option<String>,
    pub(super) own_image: Option<String>,
    pub(super) sealed_auth: Option<Vec<u8>>,
    pub(super) created_at: UnixSeconds,
    pub(super) updated_at: UnixSeconds,
}

/// The part of a record that only this module reads again.
#[derive(Serialize, Deserialize)]
struct Stored<M> {
    machine: M,
    previous_ports: Option<Vec<PortBinding>>,
    #[serde(default)]
    previous_restart_needed: bool,
    restart_needed: bool,
    #[serde(default)]
    begun_at_ms: Option<i64>,
}

/// A change beside the state that belongs into the same transaction.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Spec(Box<ContainerSpec>),
    /// New ports; the old ones are kept until it is clear that they are not needed again.
    Ports(PortsWanted),
    UndoPorts,
    FinishPorts,
}

/// What is stored together with a record, all or nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct With {
    pub(super) changes: Vec<Change>,
    pub(super) updates: Vec<PanelUpdate>,
    pub(super) acts: Vec<Act>,
}

impl With {
    pub(super) fn extend(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.updates.extend(other.updates);
        self.acts.extend(other.acts);
    }
}

impl Change {
    /// The change of ports that comes with an effect.
    pub(super) fn that_follows(effects: &[Effect]) -> Option<Self> {
        effects.iter().find_map(|effect| match effect {
            Effect::UndoRebind => Some(Self::UndoPorts),
            Effect::FinishRebind => Some(Self::FinishPorts),
            _ => None,
        })
    }
}

impl Record {
    pub(super) fn from_row(row: ContainerRow) -> Result<Self, serde_json::Error> {
        let stored: Stored<Machine> = serde_json::from_str(&row.state.state_json)?;
        Ok(Self {
            id: row.id,
            machine: stored.machine,
            spec: Arc::new(row.spec),
            ports: row.ports.into(),
            previous_ports: stored.previous_ports,
            previous_restart_needed: stored.previous_restart_needed,
            restart_needed: stored.restart_needed,
            limits_in_doubt: false,
            begun_at_ms: stored.begun_at_ms,
            docker_id: row.state.docker_id,
            own_image: row.state.own_image,
            sealed_auth: row.registry_auth_sealed,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }

    /// A container as its row says, with what `live` knew beside it a moment before.
    pub(super) fn shown(
        row: ContainerRow,
        live: Option<&Snapshot>,
    ) -> Result<Snapshot, serde_json::Error> {
        let unknown_since = live.and_then(|live| live.unknown_since);
        // The first that an owner publishes; it may not have come to it.
        let generation = live.map_or(1, |live| live.generation);
        let mut shown = Self::from_row(row)?.snapshot(generation, unknown_since, false);
        shown.restarts.next_at = live.and_then(|live| live.restarts.next_at);
        Ok(shown)
    }

    fn state(&self) -> ContainerState {
        let stored = Stored {
            machine: &self.machine,
            previous_ports: self.previous_ports.clone(),
            previous_restart_needed: self.previous_restart_needed,
            restart_needed: self.restart_needed || self.limits_in_doubt,
            begun_at_ms: self.begun_at_ms,
        };
        columns(&stored, self.docker_id.clone(), self.own_image.clone())
    }

    pub(super) fn snapshot(
        &self,
        generation: u64,
        unknown_since: Option<UnixSeconds>,
        deleted: bool,
    ) -> Snapshot {
        Snapshot {
            generation,
            id: self.id.clone(),
            spec: Arc::clone(&self.spec),
            ports: Arc::clone(&self.ports),
            phase: self.machine.phase().clone(),
            run: self.machine.last_run(),
            wanted_up: self.machine.wanted_up(),
            frozen: self.machine.is_frozen(),
            freezing: self.machine.is_freezing(),
            unknown_since,
            docker_id: self.docker_id.clone(),
            own_image: self.own_image.clone(),
            last_exit: self.machine.last_exit().cloned(),
            restarts: Restarts {
                count: self.machine.restarts().count(),
                next_at: None,
                gave_up: self.machine.restarts().gave_up(),
            },
            start_error: self.machine.start_error().map(str::to_owned),
            pause_error: self.machine.pause_error().map(str::to_owned),
            times: self.machine.times(),
            started_at: self.machine.times().started_at(),
            created_at: self.created_at,
            updated_at: self.updated_at,
            restart_needed: self.restart_needed,
            deleted,
        }
    }

    /// Stores the record with changes, the panel updates that report them and who made them. On an error
    /// the changes are not taken over.
    pub(super) async fn save(
        &mut self,
        store: &Store,
        with: With,
        terms: PortTerms,
    ) -> Result<(), StoreError> {
        let mut next = self.clone();
        let changed = store
            .write("save a container", move |tx| {
                for change in &with.changes {
                    next.apply(tx, change, &terms)?;
                }
                tx.save_state(&next.id, &next.state(), terms.now)?;
                for update in &with.updates {
                    tx.enqueue_update(&next.id, update, terms.now)?;
                }
                for act in &with.acts {
                    tx.record(act, terms.now)?;
                }
                Ok(next)
            })
            .await?;
        *self = changed;
        Ok(())
    }

    /// Makes a change in the store and in the record alike.
    fn apply(&mut self, tx: &Tx<'_>, change: &Change, terms: &PortTerms) -> Result<(), StoreError> {
        match change {
            Change::Spec(spec) => {
                tx.update_spec(&self.id, spec, terms.now)?;
                self.spec = Arc::new((**spec).clone());
            }
            Change::Ports(wanted) => {
                let rebound = tx.rebind_ports(&self.id, wanted, terms)?;
                self.previous_ports.get_or_insert(rebound.old);
                self.previous_restart_needed = self.restart_needed;
                self.ports = rebound.new.into();
            }
            Change::UndoPorts => {
                if let Some(previous) = self.previous_ports.take() {
                    let wanted: Vec<_> = previous.iter().copied().map(PortRequest::from).collect();
                    tx.rebind_ports(&self.id, &wanted.into(), terms)?;
                    // Nobody has used those that did not come to stand.
                    tx.release_kept_ports(&self.id, None)?;
                    self.ports = previous.into();
                }
            }
            Change::FinishPorts => {
                tx.release_kept_ports(&self.id, terms.rests_until())?;
                self.previous_ports = None;
            }
        }
        Ok(())
    }

    /// What of these state changes the panel is told.
    pub(super) fn panel_updates(
        &self,
        events: &[StateEvent],
        settings: &Settings,
    ) -> Vec<PanelUpdate> {
        if !settings.panel {
            return Vec::new();
        }
        let power = |state| settings.panel_power_events.then_some(PanelUpdate::Power(state));
        let update = |event: &StateEvent| match event.name {
            StateName::Installing => Some(PanelUpdate::Installing),
            StateName::Ready => Some(PanelUpdate::Ready),
            StateName::Failed => {
                let details = self.machine.phase().install_error().unwrap_or_default().to_owned();
                Some(PanelUpdate::Failed { details })
            }
            StateName::Starting => power(PowerState::Starting),
            StateName::Running => power(PowerState::Running),
            StateName::Stopping => power(PowerState::Stopping),
            StateName::Stopped => power(PowerState::Stopped),
            StateName::Exit
            | StateName::Paused
            | StateName::Suspended
            | StateName::Deleting
            | StateName::Unknown => None,
        };
        events.iter().filter_map(update).collect()
    }

    /// Whether the Docker container that a rebind has set aside is still needed. On the way back its ports
    /// are the container's again already.
    pub(super) fn needs_what_is_aside(&self) -> bool {
        matches!(self.machine.phase(), Phase::Rebinding { .. })
            || (self.previous_ports.is_some() && self.rebind_is_open())
    }

    /// Whether a rebind may still have to be undone.
    pub(super) fn rebind_is_open(&self) -> bool {
        matches!(
            self.machine.phase(),
            Phase::Rebinding { .. } | Phase::Starting { trial: true, .. } | Phase::Stopping { .. }
        )
    }
}

/// Whether what the engine shows is of the latest run, which was decided then, and not of one before.
pub(super) fn is_of_run(seen: &Observed, begun_at_ms: Option<i64>) -> bool {
    match (seen.started_at_ms, begun_at_ms) {
        (Some(started), Some(begun)) => started >= begun,
        (None, _) => false,
        (Some(_), None) => true,
    }
}

/// What the store keeps of a new container's life.
pub(super) fn first_state(machine: &Machine) -> ContainerState {
    let stored = Stored {
        machine,
        previous_ports: None,
        previous_restart_needed: false,
        restart_needed: false,
        begun_at_ms: None,
    };
    columns(&stored, None, None)
}

/// The row's columns: those that only this module reads again, and those that others look for.
fn columns(
    stored: &Stored<&Machine>,
    docker_id: Option<String>,
    own_image: Option<String>,
) -> ContainerState {
    let (phase, exit) = (stored.machine.phase(), stored.machine.exit());
    ContainerState {
        state_json: stored_json(stored),
        phase: phase.state_name().to_owned(),
        run: stored.machine.last_run(),
        docker_id,
        own_image,
        install_state: phase.install_state().to_owned(),
        install_error: phase.install_error().map(str::to_owned),
        exit_code: exit.map(|exit| exit.code),
        oom_killed: exit.is_some_and(|exit| exit.oom_killed()),
        started_at: stored.machine.times().started_at(),
    }
}

fn stored_json(stored: &Stored<&Machine>) -> String {
    serde_json::to_string(stored).expect("invariant: plain values are always JSON")
}
