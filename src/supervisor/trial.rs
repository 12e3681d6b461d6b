//! What would come of a request, without doing it: all that is wrong with it, or the container as it would be.
//!
//! Everything is decided by the code that decides it in earnest: the specification's own check, the machine on
//! a copy of itself, the store in a transaction that is taken back.

use std::sync::Arc;

use super::admission;
use super::record::{Change, Record, first_state};
use super::registry::Registry;
use super::task::Owner;
use super::{Accepted, ContainerHandle, Refusal, Request, Snapshot};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::lifecycle::{Answer, Command, Denied, Machine, Phase};
use crate::domain::spec::{ContainerSpec, Problem};
use crate::store::bindings::PortsWanted;
use crate::store::containers::{ContainerRow, NewContainer};
use crate::store::trial::{Draft, Tried};
use crate::store::{StoreError, Tx};

/// A container that would be made. What could not be read of the request is not there.
#[derive(Clone, Debug)]
pub(crate) struct Sketch {
    pub(crate) id: Option<ContainerId>,
    pub(crate) volume: Option<VolumeId>,
    /// Its volume is not looked at.
    pub(crate) spec: ContainerSpec,
    pub(crate) ports: PortsWanted,
}

/// What would come of making a container.
#[derive(Debug)]
pub(crate) struct Creation {
    /// With the specification itself.
    pub(crate) problems: Vec<Problem>,
    /// With what there is already.
    pub(crate) tried: Tried,
    pub(crate) warnings: Vec<String>,
    /// As it would be at first, with the ports that were asked for by number.
    pub(crate) snapshot: Snapshot,
}

impl Registry {
    pub(crate) async fn try_creation(&self, sketch: Sketch) -> Result<Creation, StoreError> {
        let services = self.services();
        let mut spec = sketch.spec;
        if let Some(volume) = sketch.volume {
            spec.volume_id = volume;
        }
        let spec = Arc::new(spec);
        let problems = admission::problems(&spec, services).await;
        let (machine, _) = Machine::install();
        let rest = NewContainer {
            // Stands in where there is none.
            id: sketch.id.clone().unwrap_or_else(nobody),
            spec: ContainerSpec::clone(&spec),
            registry_auth_sealed: None,
            ports: sketch.ports.clone(),
            state: first_state(&machine),
        };
        let terms = services.port_terms();
        let now = terms.now;
        let draft = Draft { id: sketch.id, volume: sketch.volume, rest: rest.clone() };
        let write = move |tx: &Tx<'_>| tx.try_creation(&draft, &terms);
        let tried = services.store.write("try a creation", write).await?;
        let named = tried.ports.iter().zip(&sketch.ports.ports);
        let named = named.filter(|(_, asked)| asked.port.is_some()).filter_map(|(port, _)| *port);
        let row = ContainerRow {
            id: rest.id,
            spec: rest.spec,
            registry_auth_sealed: None,
            ports: named.collect(),
            state: rest.state,
            created_at: now,
            updated_at: now,
        };
        let record = Record::from_row(row).map_err(|why| StoreError::Decode {
            what: "container that was just sketched",
            source: why.into(),
        })?;
        let warnings = self.warnings(&spec);
        Ok(Creation { problems, tried, warnings, snapshot: record.snapshot(0, None, false) })
    }

    /// What is allowed, and may not be meant.
    fn warnings(&self, spec: &ContainerSpec) -> Vec<String> {
        let mut warnings = Vec::new();
        let memory = |spec: &ContainerSpec| spec.limits.memory.unwrap_or(0);
        let has = self.services().capacity.memory_bytes;
        let others: u64 = self.list().iter().map(|other| memory(&other.snapshot().spec)).sum();
        let all = others.saturating_add(memory(spec));
        if spec.limits.memory.is_none() {
            warnings
                .push("limits.memory is not set: it may take all memory of this node".to_owned());
        } else if all > has {
            warnings.push(format!(
                "the memory limits of all containers would be {all} bytes in all; this node has {has}"
            ));
        }
        if !self.services().engine.health().borrow().is_reachable() {
            let why = "the container engine does not answer: it is installed when it does";
            warnings.push(why.to_owned());
        }
        warnings
    }
}

fn nobody() -> ContainerId {
    ContainerId::parse("unnamed").expect("invariant: letters are a name")
}

impl ContainerHandle {
    /// Asks what a request would come to. Nothing changes.
    pub(crate) async fn try_out(&self, request: Request) -> Result<Accepted, Refusal> {
        self.send(Request::Trial(Box::new(request))).await
    }

    /// Whether it could have these ports.
    pub(crate) async fn try_ports(&self, ports: PortsWanted) -> Result<Tried, StoreError> {
        let (id, terms) = (self.id().clone(), self.services.port_terms());
        let write = move |tx: &Tx<'_>| tx.try_rebind(&id, &ports, &terms);
        self.services.store.write("try other ports", write).await
    }
}

impl Owner {
    /// What would come of a request; the snapshot is that of now with the changes in it.
    pub(super) fn trial(&self, request: Request) -> Result<Accepted, Refusal> {
        let mut would_be = Snapshot::clone(&self.snapshot.borrow());
        let answer = match request {
            Request::Command(command) => self.would(command, None)?,
            Request::Rebind { .. } => self.would(Command::Rebind, None)?,
            Request::Reinstall { image, install_script } => {
                let spec = self.reinstalled(image, install_script);
                would_be.spec = Arc::new(spec.clone());
                self.would(Command::Reinstall, Some(&Change::Spec(Box::new(spec))))?
            }
            Request::Update(patch) => {
                let spec = patch.apply(&self.record.spec);
                self.may_become(&spec)?;
                would_be.spec = Arc::new(spec);
                Answer::Accepted
            }
            Request::Resources(change) => {
                let limits = change.apply(self.record.spec.limits);
                let spec = ContainerSpec { limits, ..(*self.record.spec).clone() };
                self.may_become(&spec)?;
                self.may_have(limits)?;
                would_be.spec = Arc::new(spec);
                Answer::Accepted
            }
            Request::Trial(inner) => return self.trial(*inner),
        };
        Ok(Accepted { decided: Arc::new(would_be), answer, warnings: Vec::new() })
    }

    fn would(&self, command: Command, change: Option<&Change>) -> Result<Answer, Refusal> {
        let mut machine = self.record.machine.clone();
        self.decide(&mut machine, command, change).map(|(answer, _)| answer)
    }

    fn may_become(&self, spec: &ContainerSpec) -> Result<(), Refusal> {
        if matches!(self.record.machine.phase(), Phase::Deleting) {
            return Err(Refusal::Denied(Denied::Deleting));
        }
        self.check(spec)
    }
}
