//! `?dry_run=true`: what would come of a request, and everything that is wrong with it at once.
//!
//! Nothing changes. With something wrong it is 400 if the request itself is, or else 409 for what there is
//! already; `problems` names all of either kind, the latter with a `code` each. Otherwise 200 with the
//! container as it would be, and what is worth a thought.

use std::net::IpAddr;

use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::container_body::{
    CreateBody, Draft, LimitsBody, PatchBody, ReinstallBody, waits_for_start,
};
use super::container_view::ContainerView;
use super::containers::is_up;
use super::port_body::{check_ports, wanted};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Whole;
use crate::api::openapi::schemas::IpAddress;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::Command;
use crate::domain::spec::{PortBinding, Problem, Protocol};
use crate::store::bindings::{PortRequest, PortsWanted};
use crate::store::trial::Tried;
use crate::supervisor::{ContainerHandle, Refusal, Request, Sketch, Snapshot};

/// What would be made or changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Trial)]
pub(super) struct DryRunView<'a> {
    #[schema(example = "This was a trial; nothing was changed")]
    message: &'static str,
    /// Always `true`.
    #[schema(example = true)]
    dry_run: bool,
    internal_id: &'a ContainerId,
    /// As it would be.
    container: ContainerView<'a>,
    /// The ports that were asked for, as they would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    ports: Option<Vec<WouldBePort>>,
    /// What would take effect with the next start only.
    #[schema(example = json!([]))]
    waits_for_restart: Vec<&'static str>,
    /// What is allowed, and may not be meant.
    #[schema(example = json!([]))]
    warnings: Vec<String>,
}

/// A port as it would be published.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TrialPort)]
pub(super) struct WouldBePort {
    /// `null`: any address that the pool has one on.
    #[schema(required, value_type = Option<IpAddress>)]
    ip: Option<IpAddr>,
    /// `null`: one of the pool would be taken.
    #[schema(required)]
    port: Option<u16>,
    protocol: Protocol,
    /// `null`: the same as `port`.
    #[schema(required)]
    container_port: Option<u16>,
    from_pool: bool,
}

impl WouldBePort {
    fn of(asked: &PortRequest, found: Option<PortBinding>) -> Self {
        let named = found.filter(|_| asked.port.is_some());
        Self {
            ip: named.map_or(asked.ip, |found| Some(found.host.ip)),
            port: asked.port,
            protocol: asked.protocol,
            container_port: asked.container_port.or(asked.port),
            from_pool: asked.port.is_none(),
        }
    }

    fn each(asked: &[PortRequest], tried: &Tried) -> Vec<Self> {
        asked.iter().zip(&tried.ports).map(|(asked, found)| Self::of(asked, *found)).collect()
    }
}

/// All that is wrong with a request.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<Problem>,
    /// The first of what is no fault of the request itself.
    conflict: Option<ApiError>,
}

impl Findings {
    /// Adds problems with fields that none was found with so far.
    fn add(&mut self, problems: Vec<Problem>) {
        for problem in problems {
            if !self.is_about(&problem.field) {
                self.problems.push(problem);
            }
        }
    }

    fn is_about(&self, field: &str) -> bool {
        let about = |problem: &Problem| {
            let rest = problem.field.strip_prefix(field);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.problems.iter().any(about)
    }

    /// Adds why it would be refused. What is nobody's fault is no finding, and ends the search.
    fn refused(&mut self, field: &str, error: ApiError) -> Result<(), ApiError> {
        if error.status().is_server_error() {
            return Err(error);
        }
        if self.is_about(field) {
            return Ok(());
        }
        let said = error.problems().first();
        let message = said.map_or_else(|| error.message().to_owned(), |said| said.message.clone());
        let mut problem = Problem::new(field, message);
        if said.is_none() && error.status() != axum::http::StatusCode::BAD_REQUEST {
            problem.code = Some(error.code());
            self.conflict.get_or_insert(error);
        }
        self.problems.push(problem);
        Ok(())
    }

    fn tried(&mut self, auth: &Auth, tried: &mut Tried) -> Result<(), ApiError> {
        for (field, error) in std::mem::take(&mut tried.refused) {
            self.refused(&field, auth.told(ApiError::binding(error)))?;
        }
        Ok(())
    }

    /// What a container's owner says to it.
    fn owner(&mut self, answer: Result<Snapshot, Refusal>) -> Result<Option<Snapshot>, ApiError> {
        match answer {
            Ok(snapshot) => return Ok(Some(snapshot)),
            Err(Refusal::Invalid(problems)) => self.add(problems),
            Err(other) => self.refused("state", other.into())?,
        }
        Ok(None)
    }

    fn verdict(self) -> Result<(), ApiError> {
        match self.conflict {
            _ if self.problems.is_empty() => Ok(()),
            Some(conflict) if self.problems.iter().all(|problem| problem.code.is_some()) => {
                Err(conflict.with_problems(self.problems))
            }
            _ => Err(ApiError::invalid(self.problems)),
        }
    }
}

const NOTHING_CHANGED: &str = "This was a trial; nothing was changed";

fn answer(
    snapshot: &Snapshot,
    ports: Option<Vec<WouldBePort>>,
    waits_for_restart: Vec<&'static str>,
    mut warnings: Vec<String>,
) -> Response {
    if !waits_for_restart.is_empty() {
        warnings.push(format!("needs a restart: {}", waits_for_restart.join(", ")));
    }
    let view = DryRunView {
        message: NOTHING_CHANGED,
        dry_run: true,
        internal_id: &snapshot.id,
        container: ContainerView::from(snapshot),
        ports,
        waits_for_restart,
        warnings,
    };
    axum::Json(view).into_response()
}

pub(super) async fn create(
    auth: &Auth,
    state: &AppState,
    body: &Whole,
) -> Result<Response, ApiError> {
    let mut findings = Findings::default();
    let body: CreateBody = body.as_far_as_possible(&mut findings.problems).await?;
    let mut problems = Vec::new();
    let Draft { id, volume, spec, ports, lease, .. } = body.draft(&mut problems);
    findings.add(problems);
    let ports = wanted(auth, ports, lease);
    let sketch = Sketch { id, volume, spec, ports: ports.clone() };
    let mut creation = state.supervisor.try_creation(sketch).await?;
    findings.add(creation.problems);
    findings.tried(auth, &mut creation.tried)?;
    findings.verdict()?;
    let ports = WouldBePort::each(&ports.ports, &creation.tried);
    let mut warnings = creation.warnings;
    warnings.extend(shared_volume(auth, &creation.tried.volume_used_by));
    Ok(answer(&creation.snapshot, Some(ports), Vec::new(), warnings))
}

/// Who else uses the volume, as far as this caller may read of them.
fn shared_volume(auth: &Auth, used_by: &[ContainerId]) -> Option<String> {
    let known = used_by.iter().filter(|id| auth.may(Permission::ContainersRead, id));
    let names: Vec<&str> = known.map(ContainerId::as_str).collect();
    let others = match (names.len(), used_by.len()) {
        (_, 0) => return None,
        (known, all) if known == all => names.join(", "),
        _ => "other containers".to_owned(),
    };
    Some(format!("the volume is used as well by {others}"))
}

/// The container as it would be after a request, or why it would be refused.
async fn would_be(handle: &ContainerHandle, request: Request) -> Result<Snapshot, Refusal> {
    let accepted = handle.try_out(request).await?;
    Ok(Snapshot::clone(&accepted.decided))
}

pub(super) async fn patch(handle: &ContainerHandle, body: &Whole) -> Result<Response, ApiError> {
    let mut findings = Findings::default();
    let body: PatchBody = body.as_far_as_possible(&mut findings.problems).await?;
    let before = handle.snapshot();
    let mut problems = Vec::new();
    let patch = body.patch(&mut problems);
    findings.add(problems);
    let after = findings.owner(would_be(handle, Request::Update(Box::new(patch))).await)?;
    findings.verdict()?;
    let after = after.ok_or_else(ApiError::no_such_container)?;
    let waits =
        if is_up(&before) { waits_for_start(&before.spec, &after.spec) } else { Vec::new() };
    Ok(answer(&after, None, waits, Vec::new()))
}

pub(super) async fn resources(
    handle: &ContainerHandle,
    body: &Whole,
) -> Result<Response, ApiError> {
    let mut findings = Findings::default();
    let body: LimitsBody = body.as_far_as_possible(&mut findings.problems).await?;
    let before = handle.snapshot();
    let answered = would_be(handle, Request::Resources(body.read())).await;
    let own_names = answered.map_err(super::resources::with_own_names);
    let after = findings.owner(own_names)?;
    findings.verdict()?;
    let after = after.ok_or_else(ApiError::no_such_container)?;
    let lifted = || after.spec.limits.lifted_since(&before.spec.limits);
    let waits = if is_up(&before) { lifted() } else { Vec::new() };
    Ok(answer(&after, None, waits, Vec::new()))
}

pub(super) async fn reinstall(
    handle: &ContainerHandle,
    body: &Whole,
) -> Result<Response, ApiError> {
    let mut findings = Findings::default();
    let body: ReinstallBody = if body.is_empty() {
        ReinstallBody::default()
    } else {
        body.as_far_as_possible(&mut findings.problems).await?
    };
    let before = handle.snapshot();
    let after = findings.owner(would_be(handle, body.into()).await)?;
    findings.verdict()?;
    let after = after.ok_or_else(ApiError::no_such_container)?;
    let stops = "it is stopped for it, and not started again afterwards";
    let warnings = if is_up(&before) { vec![stops.to_owned()] } else { Vec::new() };
    Ok(answer(&after, None, Vec::new(), warnings))
}

pub(super) async fn rebind(
    auth: &Auth,
    handle: &ContainerHandle,
    body: &Whole,
) -> Result<Response, ApiError> {
    let mut findings = Findings::default();
    let body: super::power::RebindBody = body.as_far_as_possible(&mut findings.problems).await?;
    let mut problems = Vec::new();
    check_ports(&body.ports, &mut problems);
    findings.add(problems);
    let wanted = wanted(auth, body.ports, body.lease_id);
    let ports = wanted.ports.clone();
    let mut tried = handle.try_ports(wanted).await?;
    findings.tried(auth, &mut tried)?;
    let before = handle.snapshot();
    let after = findings
        .owner(would_be(handle, Request::Rebind { ports: PortsWanted::default() }).await)?;
    findings.verdict()?;
    let mut after = after.ok_or_else(ApiError::no_such_container)?;
    let named = tried.ports.iter().zip(&ports).filter(|(_, asked)| asked.port.is_some());
    after.ports = named.filter_map(|(found, _)| *found).collect();
    let restarts = "it is stopped for it, and started again";
    let warnings = if is_up(&before) { vec![restarts.to_owned()] } else { Vec::new() };
    Ok(answer(&after, Some(WouldBePort::each(&ports, &tried)), Vec::new(), warnings))
}

/// A wish without anything beside it.
pub(super) async fn wish(handle: &ContainerHandle, command: Command) -> Result<Response, ApiError> {
    let mut findings = Findings::default();
    let after = findings.owner(would_be(handle, Request::Command(command)).await)?;
    findings.verdict()?;
    let after = after.ok_or_else(ApiError::no_such_container)?;
    Ok(answer(&after, None, Vec::new(), Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::lifecycle::Denied;

    #[test]
    fn conflicts_alone_are_a_conflict_and_with_a_bad_field_the_request_is_bad() {
        let conflict = || ApiError::from(Denied::Installing);
        let mut findings = Findings::default();
        findings.refused("state", conflict()).unwrap();
        findings.refused("ports[0]", ApiError::conflict("port_in_use", "taken")).unwrap();
        let error = findings.verdict().unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (409, "installing"));
        let codes: Vec<_> = error.problems().iter().map(|problem| problem.code).collect();
        assert_eq!(codes, [Some("installing"), Some("port_in_use")]);

        let mut findings = Findings::default();
        findings.add(vec![Problem::new("ports[0].port", "is 0")]);
        findings.refused("state", conflict()).unwrap();
        // What is wrong with it was said.
        findings.refused("ports[0]", ApiError::conflict("port_in_use", "taken")).unwrap();
        let error = findings.verdict().unwrap_err();
        assert_eq!((error.status().as_u16(), error.problems().len()), (400, 2));
        assert!(Findings::default().verdict().is_ok());
        let away = Findings::default().refused("state", ApiError::engine_unavailable());
        assert_eq!(away.unwrap_err().code(), "engine_unavailable");
    }
}
