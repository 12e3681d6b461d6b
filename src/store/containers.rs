//! Containers: what was asked for, and how far the supervisor has come with it.
//!
//! A container, the check of its volume and the binding of its ports are one transaction
//! ([`Tx::insert_container`]), and so is its end with the release of its ports. There is no moment at
//! which two containers hold one port.

use rusqlite::{OptionalExtension, Row};

use super::bindings::PortsWanted;
use super::error::StoreError;
use super::port_terms::PortTerms;
use super::volumes::container_id;
use super::{Read, Tx, from_sql, to_sql};
use crate::domain::ids::{ContainerId, RunId};
use crate::domain::spec::{ContainerSpec, PortBinding};
use crate::domain::units::UnixSeconds;

/// A container that is to be stored.
#[derive(Clone, Debug)]
pub(crate) struct NewContainer {
    pub(crate) id: ContainerId,
    pub(crate) spec: ContainerSpec,
    /// Sealed by the caller; the store never sees what is in it.
    pub(crate) registry_auth_sealed: Option<Vec<u8>>,
    pub(crate) ports: PortsWanted,
    pub(crate) state: ContainerState,
}

/// What the supervisor remembers of a container between two lives of lightd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerState {
    /// The supervisor's own record; the store does not look inside.
    pub(crate) state_json: String,
    /// The phase's name, which lists filter by.
    pub(crate) phase: String,
    pub(crate) run: RunId,
    pub(crate) docker_id: Option<String>,
    /// The image that an install made, where the workload runs from it.
    pub(crate) own_image: Option<String>,
    pub(crate) install_state: String,
    pub(crate) install_error: Option<String>,
    pub(crate) exit_code: Option<i64>,
    pub(crate) oom_killed: bool,
    pub(crate) started_at: Option<UnixSeconds>,
}

#[derive(Clone, Debug)]
pub(crate) struct ContainerRow {
    pub(crate) id: ContainerId,
    pub(crate) spec: ContainerSpec,
    pub(crate) registry_auth_sealed: Option<Vec<u8>>,
    /// In the order in which they were asked for; the first is the server's own.
    pub(crate) ports: Vec<PortBinding>,
    pub(crate) state: ContainerState,
    pub(crate) created_at: UnixSeconds,
    pub(crate) updated_at: UnixSeconds,
}

/// Which containers a list holds; `None` does not filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerFilter {
    pub(crate) phase: Option<String>,
    /// Ids after this one, in their order.
    pub(crate) after: Option<ContainerId>,
    pub(crate) limit: Option<u32>,
}

const COLUMNS: &str = "SELECT id, spec_json, registry_auth_sealed, state_json, phase, run, \
     docker_id, own_image, install_state, install_error, exit_code, oom_killed, started_at, \
     created_at, updated_at FROM containers";

impl Tx<'_> {
    /// Stores a container with its volume checked and its ports bound, or changes nothing.
    pub(crate) fn insert_container(
        &self,
        new: &NewContainer,
        terms: &PortTerms,
    ) -> Result<Vec<PortBinding>, StoreError> {
        if self.container_exists(&new.id)? {
            return Err(StoreError::ContainerExists(new.id.clone()));
        }
        self.volume(new.spec.volume_id)?;
        let state = &new.state;
        self.connection
            .prepare_cached(
                "INSERT INTO containers (id, spec_json, registry_auth_sealed, volume_id, state_json,
                    phase, run, docker_id, own_image, install_state, install_error, exit_code,
                    oom_killed, started_at, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?15)",
            )?
            .execute((
                new.id.as_str(),
                encode_spec(&new.spec)?,
                &new.registry_auth_sealed,
                new.spec.volume_id.to_string(),
                &state.state_json,
                &state.phase,
                to_sql(state.run.0),
                &state.docker_id,
                &state.own_image,
                &state.install_state,
                &state.install_error,
                state.exit_code,
                state.oom_killed,
                state.started_at.map(|at| at.0),
                terms.now.0,
            ))?;
        self.bind_ports(&new.id, &new.ports, terms)
    }

    /// Replaces what the supervisor remembers. An update for the panel that tells of the change
    /// belongs into the same closure: [`Tx::enqueue_update`].
    pub(crate) fn save_state(
        &self,
        id: &ContainerId,
        state: &ContainerState,
        now: UnixSeconds,
    ) -> Result<(), StoreError> {
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE containers SET state_json = ?2, phase = ?3, run = ?4, docker_id = ?5,
                    own_image = ?6, install_state = ?7, install_error = ?8, exit_code = ?9,
                    oom_killed = ?10, started_at = ?11, updated_at = ?12
                 WHERE id = ?1",
            )?
            .execute((
                id.as_str(),
                &state.state_json,
                &state.phase,
                to_sql(state.run.0),
                &state.docker_id,
                &state.own_image,
                &state.install_state,
                &state.install_error,
                state.exit_code,
                state.oom_killed,
                state.started_at.map(|at| at.0),
                now.0,
            ))?;
        found(changed, id)
    }

    /// Replaces the specification. The volume stays the one it was made with.
    pub(crate) fn update_spec(
        &self,
        id: &ContainerId,
        spec: &ContainerSpec,
        now: UnixSeconds,
    ) -> Result<(), StoreError> {
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE containers SET spec_json = ?2, updated_at = ?3
                 WHERE id = ?1 AND volume_id = ?4",
            )?
            .execute((id.as_str(), encode_spec(spec)?, now.0, spec.volume_id.to_string()))?;
        found(changed, id)
    }

    /// Deletes a container and frees its ports, kept ones included, which rest first, and ends what was
    /// issued for it. The volume stays.
    pub(crate) fn delete_container(
        &self,
        id: &ContainerId,
        terms: &PortTerms,
    ) -> Result<(), StoreError> {
        self.release_all_ports(id, terms.rests_until())?;
        self.forget_container_in_tokens(id)?;
        let changed = self
            .connection
            .prepare_cached("DELETE FROM containers WHERE id = ?1")?
            .execute([id.as_str()])?;
        found(changed, id)
    }
}

impl Read<'_> {
    pub(crate) fn container_exists(&self, id: &ContainerId) -> Result<bool, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT 1 FROM containers WHERE id = ?1")?;
        Ok(statement.exists([id.as_str()])?)
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Result<ContainerRow, StoreError> {
        let row = self
            .connection
            .prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?
            .query_row([id.as_str()], |row| Ok(container_of(row)))
            .optional()?;
        let mut row = row.unwrap_or_else(|| Err(StoreError::NoSuchContainer(id.clone())))?;
        row.ports = self.ports_of(id)?;
        Ok(row)
    }

    /// Containers in the order of their ids.
    pub(crate) fn containers(
        &self,
        filter: &ContainerFilter,
    ) -> Result<Vec<ContainerRow>, StoreError> {
        let mut found = Vec::new();
        self.each_container(filter, |container| {
            found.push(container);
            Ok(())
        })?;
        Ok(found)
    }

    /// As [`Read::containers`], handed on one by one.
    pub(crate) fn each_container(
        &self,
        filter: &ContainerFilter,
        mut take: impl FnMut(ContainerRow) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "{COLUMNS} WHERE (?1 IS NULL OR phase = ?1) AND id > ?2 ORDER BY id LIMIT ?3"
        ))?;
        let after = filter.after.as_ref().map_or("", ContainerId::as_str);
        let limit = filter.limit.map_or(-1, i64::from);
        let mut rows = statement.query((&filter.phase, after, limit))?;
        while let Some(row) = rows.next()? {
            let mut container = container_of(row)?;
            container.ports = self.ports_of(&container.id)?;
            take(container)?;
        }
        Ok(())
    }
}

fn found(changed: usize, id: &ContainerId) -> Result<(), StoreError> {
    if changed == 0 { Err(StoreError::NoSuchContainer(id.clone())) } else { Ok(()) }
}

fn encode_spec(spec: &ContainerSpec) -> Result<String, StoreError> {
    serde_json::to_string(spec).map_err(|why| StoreError::decode("specification", why))
}

fn container_of(row: &Row<'_>) -> Result<ContainerRow, StoreError> {
    let spec: String = row.get(1)?;
    Ok(ContainerRow {
        id: container_id(&row.get::<_, String>(0)?)?,
        spec: serde_json::from_str(&spec)
            .map_err(|why| StoreError::decode("specification", why))?,
        registry_auth_sealed: row.get(2)?,
        ports: Vec::new(),
        state: ContainerState {
            state_json: row.get(3)?,
            phase: row.get(4)?,
            run: RunId(from_sql(row.get(5)?)),
            docker_id: row.get(6)?,
            own_image: row.get(7)?,
            install_state: row.get(8)?,
            install_error: row.get(9)?,
            exit_code: row.get(10)?,
            oom_killed: row.get(11)?,
            started_at: row.get::<_, Option<i64>>(12)?.map(UnixSeconds),
        },
        created_at: UnixSeconds(row.get(13)?),
        updated_at: UnixSeconds(row.get(14)?),
    })
}
