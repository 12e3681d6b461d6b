//! What would become of a container's ports, its name and its volume, found out by doing it and taking it back.
//!
//! So that a trial and the real thing cannot differ: the same code decides. Nothing of it is seen by anybody
//! else, or stays.

use super::Tx;
use super::bindings::PortsWanted;
use super::containers::NewContainer;
use super::error::StoreError;
use super::port_terms::PortTerms;
use super::volumes::VolumeRow;
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::spec::PortBinding;
use crate::domain::units::UnixSeconds;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    /// By the field of the request that it is about.
    pub(crate) refused: Vec<(String, StoreError)>,
    /// What each port that was asked for would be, where it can be had. One that is any of the pool may be
    /// another one the next time.
    pub(crate) ports: Vec<Option<PortBinding>>,
    /// Other containers that use the volume.
    pub(crate) volume_used_by: Vec<ContainerId>,
}

/// A container that would be made, as far as it is known which.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) id: Option<ContainerId>,
    pub(crate) volume: Option<VolumeId>,
    /// Everything else; its id and volume are not looked at.
    pub(crate) rest: NewContainer,
}

impl Tx<'_> {
    /// Says what keeps a container from being made, all of it.
    pub(crate) fn try_creation(
        &self,
        draft: &Draft,
        terms: &PortTerms,
    ) -> Result<Tried, StoreError> {
        self.undone(|tx| {
            let mut tried = Tried::default();
            let mut new = NewContainer { ports: PortsWanted::default(), ..draft.rest.clone() };
            new.id = tx.free_id(draft.id.as_ref(), &mut tried)?;
            new.spec.volume_id = tx.usable_volume(draft.volume, terms.now, &mut tried)?;
            tx.insert_container(&new, terms)?;
            tx.try_ports(&new.id, &draft.rest.ports, terms, &mut tried)?;
            Ok(tried)
        })
    }

    /// Says what keeps a container from having these ports. One that is gone has none.
    pub(crate) fn try_rebind(
        &self,
        container: &ContainerId,
        wanted: &PortsWanted,
        terms: &PortTerms,
    ) -> Result<Tried, StoreError> {
        if !self.container_exists(container)? {
            return Err(StoreError::NoSuchContainer(container.clone()));
        }
        self.undone(|tx| {
            let mut tried = Tried::default();
            tx.try_ports(container, wanted, terms, &mut tried)?;
            Ok(tried)
        })
    }

    fn undone<T>(
        &self,
        trial: impl FnOnce(&Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.connection.execute_batch("SAVEPOINT trial")?;
        let found = trial(self);
        self.connection.execute_batch("ROLLBACK TO trial; RELEASE trial")?;
        found
    }

    /// The id, or one that stands in for it.
    fn free_id(
        &self,
        asked: Option<&ContainerId>,
        tried: &mut Tried,
    ) -> Result<ContainerId, StoreError> {
        if let Some(id) = asked {
            if !self.container_exists(id)? {
                return Ok(id.clone());
            }
            tried.refused.push(("internal_id".to_owned(), StoreError::ContainerExists(id.clone())));
        }
        let stand_in = format!("trial-{}", VolumeId::random());
        Ok(ContainerId::parse(&stand_in).expect("invariant: letters, digits and dashes"))
    }

    /// The volume, or one that stands in for it.
    fn usable_volume(
        &self,
        asked: Option<VolumeId>,
        now: UnixSeconds,
        tried: &mut Tried,
    ) -> Result<VolumeId, StoreError> {
        if let Some(id) = asked {
            match self.volume(id) {
                Ok(_) => {
                    tried.volume_used_by = self.containers_of_volume(id)?;
                    return Ok(id);
                }
                Err(missing @ StoreError::NoSuchVolume(_)) => {
                    tried.refused.push(("volume_id".to_owned(), missing));
                }
                Err(error) => return Err(error),
            }
        }
        let id = VolumeId::random();
        let row = VolumeRow { id, name: None, size_bytes: None, backing: None, created_at: now };
        self.insert_volume(&row)?;
        Ok(id)
    }

    /// Binds each port that can be had, as if the others were not there that can't.
    fn try_ports(
        &self,
        container: &ContainerId,
        wanted: &PortsWanted,
        terms: &PortTerms,
        tried: &mut Tried,
    ) -> Result<(), StoreError> {
        self.end_holds(terms.now)?;
        self.keep_ports_aside(container)?;
        let mut wanted = wanted.clone();
        if let Some(lease) = wanted.claim.lease
            && let Err(ended) = self.lease(lease, terms.now)
        {
            tried.refused.push(("lease_id".to_owned(), ended));
            wanted.claim.lease = None;
        }
        tried.ports = vec![None; wanted.ports.len()];
        for position in wanted.in_turn() {
            match self.bind_port(container, position, &wanted, terms) {
                Ok(bound) => tried.ports[position] = Some(bound),
                Err(error) => tried.refused.push((format!("ports[{position}]"), error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::spec::Protocol;
    use crate::store::Store;
    use crate::store::bindings::PortRequest;
    use crate::store::leases::{Claim, LeaseRequest};
    use crate::store::testing::{
        NOW, add_ports, add_volume, any, id, later, named, new_container, open, terms,
    };

    async fn tried(store: &Store, draft: Draft) -> Tried {
        let write = move |tx: &Tx<'_>| tx.try_creation(&draft, &terms(NOW));
        store.write("test", write).await.unwrap()
    }

    fn fields(tried: &Tried) -> Vec<&str> {
        let mut fields: Vec<&str> = tried.refused.iter().map(|(field, _)| field.as_str()).collect();
        fields.sort_unstable();
        fields
    }

    #[tokio::test]
    async fn everything_in_the_way_is_found_at_once_and_nothing_stays() {
        let (_folder, store) = open();
        let volume = add_volume(&store).await;
        add_ports(&store, "10.0.0.1", 1000, 1001).await;
        let taken = new_container("taken", volume, &[named("10.0.0.1", 1000)]);
        let insert = taken.clone();
        store
            .write("test", move |tx| tx.insert_container(&insert, &terms(NOW)).map(drop))
            .await
            .unwrap();
        let ports =
            [any(), named("10.0.0.1", 1000), named("10.0.0.1", 1001), named("10.0.0.1", 7), any()];
        let rest = new_container("x", volume, &ports);
        let draft =
            Draft { id: Some(id("taken")), volume: Some(VolumeId::random()), rest: rest.clone() };
        let found = tried(&store, draft).await;
        let expected = ["internal_id", "ports[0]", "ports[1]", "ports[3]", "ports[4]", "volume_id"];
        assert_eq!(fields(&found), expected);
        assert_eq!(found.ports.iter().filter(|port| port.is_some()).count(), 1);

        let rest = NewContainer { ports: vec![any()].into(), ..rest };
        let draft = Draft { id: Some(id("free")), volume: Some(volume), rest };
        let found = tried(&store, draft.clone()).await;
        assert_eq!(fields(&found), Vec::<&str>::new());
        assert_eq!(found.ports[0].unwrap().host.port, 1001);
        assert_eq!(found.volume_used_by, [id("taken")]);
        assert_eq!(fields(&tried(&store, draft).await), Vec::<&str>::new(), "it is still free");
        let counts = store.read("test", |rx| {
            Ok((rx.containers(&Default::default())?.len(), rx.volumes()?.len()))
        });
        assert_eq!(counts.await.unwrap(), (1, 1));
    }

    #[tokio::test]
    async fn a_container_may_keep_its_own_ports_in_a_trial() {
        let (_folder, store) = open();
        let volume = add_volume(&store).await;
        add_ports(&store, "10.0.0.1", 1000, 1001).await;
        for (name, port) in [("a", 1000), ("b", 1001)] {
            let new = new_container(name, volume, &[named("10.0.0.1", port)]);
            let insert = move |tx: &Tx<'_>| tx.insert_container(&new, &terms(NOW)).map(drop);
            store.write("test", insert).await.unwrap();
        }
        let write = |tx: &Tx<'_>| {
            let wanted = [named("10.0.0.1", 1000), named("10.0.0.1", 1001)];
            tx.try_rebind(&id("a"), &wanted.to_vec().into(), &terms(NOW))
        };
        let found = store.write("test", write).await.unwrap();
        assert_eq!(fields(&found), ["ports[1]"]);
        assert!(matches!(found.refused[0].1, StoreError::PortInUse { .. }));
        let ports = store.read("test", |rx| rx.ports_of(&id("a"))).await.unwrap();
        assert_eq!(ports.len(), 1);
        let write = |tx: &Tx<'_>| {
            tx.delete_container(&id("a"), &terms(NOW))?;
            tx.try_rebind(&id("a"), &vec![named("10.0.0.1", 1000)].into(), &terms(NOW))
        };
        let gone = store.write("test", write).await;
        assert!(matches!(gone, Err(StoreError::NoSuchContainer(of)) if of == id("a")));
    }

    #[tokio::test]
    async fn a_trial_takes_the_ports_of_a_lease_that_is_shown_and_names_one_that_has_ended() {
        let (_folder, store) = open();
        let volume = add_volume(&store).await;
        add_ports(&store, "10.0.0.1", 1000, 1002).await;
        let request = LeaseRequest {
            count: 2,
            protocol: Protocol::Tcp,
            ip: None,
            contiguous: false,
            lease: None,
            holder: "a panel".to_owned(),
            until: later(30),
        };
        let lease = store.write("test", move |tx| tx.lease_ports(&request, &terms(NOW))).await;
        let lease = lease.unwrap();
        let draft = |ports: Vec<PortRequest>, shown: Option<uuid::Uuid>| {
            let claim = Claim { holder: None, lease: shown };
            let mut rest = new_container("x", volume, &[]);
            rest.ports = PortsWanted { ports, claim };
            Draft { id: Some(id("x")), volume: Some(volume), rest }
        };
        let leased = [named("10.0.0.1", lease.ports[0].port), any(), named("10.0.0.1", 7), any()];
        let found = tried(&store, draft(leased.to_vec(), Some(lease.id))).await;
        assert_eq!(fields(&found), ["ports[2]"]);
        assert_eq!(found.ports[1].unwrap().host, lease.ports[1], "the lease's before others");
        let found = tried(&store, draft(leased.to_vec(), None)).await;
        assert_eq!(fields(&found), ["ports[0]", "ports[2]", "ports[3]"]);
        let found = tried(&store, draft(vec![any()], Some(uuid::Uuid::new_v4()))).await;
        assert_eq!(fields(&found), ["lease_id"]);
        let kept = store.read("test", move |rx| rx.lease(lease.id, NOW)).await.unwrap();
        assert_eq!(kept.ports.len(), 2, "nothing of it stays");
    }
}
