//! What would become of a container's ports, its name and its volume, found out by doing it and taking it back.
//!
//! So that a trial and the real thing cannot differ: the same code decides. Nothing of it is seen by anybody
//! else, or stays.

use super::Tx;
use super::bindings::PortRequest;
use super::containers::NewContainer;
use super::error::StoreError;
use super::ports::Probe;
use super::volumes::VolumeRow;
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::spec::PortBinding;
use crate::domain::units::UnixSeconds;

/// More ports than these are not tried one by one.
const TRIED_EACH: usize = 256;

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
        now: UnixSeconds,
        probe: Probe,
    ) -> Result<Tried, StoreError> {
        self.undone(|tx| {
            let mut tried = Tried::default();
            let mut new = NewContainer { ports: Vec::new(), ..draft.rest.clone() };
            new.id = tx.free_id(draft.id.as_ref(), &mut tried)?;
            new.spec.volume_id = tx.usable_volume(draft.volume, now, &mut tried)?;
            tx.insert_container(&new, now, probe)?;
            tx.try_each(&new.id, &draft.rest.ports, now, probe, &mut tried)?;
            Ok(tried)
        })
    }

    /// Says what keeps a container from having these ports.
    pub(crate) fn try_rebind(
        &self,
        container: &ContainerId,
        ports: &[PortRequest],
        now: UnixSeconds,
        probe: Probe,
    ) -> Result<Tried, StoreError> {
        self.undone(|tx| {
            let mut tried = Tried::default();
            tx.try_each(container, ports, now, probe, &mut tried)?;
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

    fn try_each(
        &self,
        container: &ContainerId,
        ports: &[PortRequest],
        now: UnixSeconds,
        probe: Probe,
        tried: &mut Tried,
    ) -> Result<(), StoreError> {
        let all = self.rebind_ports(container, ports, now, probe);
        let first = match all {
            Ok(bound) => {
                tried.ports = bound.new.into_iter().map(Some).collect();
                return Ok(());
            }
            Err(error) => error,
        };
        tried.ports = vec![None; ports.len()];
        if ports.len() > TRIED_EACH {
            tried.refused.push(("ports".to_owned(), first));
            return Ok(());
        }
        let mut granted = Vec::new();
        // In the order in which they are bound: a chosen one never takes a number that is asked for.
        for by_number in [true, false] {
            for (index, port) in ports.iter().enumerate() {
                if port.port.is_some() != by_number {
                    continue;
                }
                granted.push(*port);
                match self.rebind_ports(container, &granted, now, probe) {
                    Ok(bound) => tried.ports[index] = bound.new.last().copied(),
                    Err(error) => {
                        granted.pop();
                        tried.refused.push((format!("ports[{index}]"), error));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::testing::{NOW, add_ports, add_volume, any, id, named, new_container, open};

    async fn tried(store: &Store, draft: Draft) -> Tried {
        let write = move |tx: &Tx<'_>| tx.try_creation(&draft, NOW, |_| true);
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
            .write("test", move |tx| tx.insert_container(&insert, NOW, |_| true).map(drop))
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

        let rest = NewContainer { ports: vec![any()], ..rest };
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
            let insert = move |tx: &Tx<'_>| tx.insert_container(&new, NOW, |_| true).map(drop);
            store.write("test", insert).await.unwrap();
        }
        let write = |tx: &Tx<'_>| {
            let wanted = [named("10.0.0.1", 1000), named("10.0.0.1", 1001)];
            tx.try_rebind(&id("a"), &wanted, NOW, |_| true)
        };
        let found = store.write("test", write).await.unwrap();
        assert_eq!(fields(&found), ["ports[1]"]);
        assert!(matches!(found.refused[0].1, StoreError::PortInUse { .. }));
        let ports = store.read("test", |rx| rx.ports_of(&id("a"))).await.unwrap();
        assert_eq!(ports.len(), 1);
    }
}
