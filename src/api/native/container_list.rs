//! Containers in a list: which of them, and how many at once.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::container_view::ContainerView;
use super::paging;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Query;
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::ContainerState;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::{ContainerId, VolumeId};
use crate::supervisor::{ContainerHandle, Snapshot};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(list))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only those in this state.
    #[param(value_type = Option<ContainerState>)]
    state: Option<String>,
    /// Only those with this label: `name`, or `name=value`.
    label: Option<String>,
    /// Only those made with this image.
    image: Option<String>,
    /// Only those that use this volume.
    volume: Option<VolumeId>,
    /// Only those with this in their id, in any case.
    name: Option<String>,
    /// So many at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<String>,
}

/// Every `state` of a container.
pub(in crate::api) const STATES: &[&str] = &[
    "installing",
    "failed",
    "offline",
    "starting",
    "running",
    "stopping",
    "paused",
    "suspended",
    "unknown",
    "deleting",
];

refusals!(ListRefusals: ; 400: "invalid_cursor");

/// Lists the containers that the token may see, by name.
#[utoipa::path(
    get, path = "/containers", tag = "containers",
    params(ListQuery),
    responses((status = 200, description = "A page of them", body = ListView), ListRefusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<Response, ApiError> {
    auth.require_for_list(Permission::ContainersRead)?;
    let wanted = Wanted::read(query)?;
    let handles = state.supervisor.list();
    let found = handles
        .iter()
        .filter(|handle| wanted.after.as_ref().is_none_or(|after| handle.id() > after))
        .filter(|handle| auth.may(Permission::ContainersRead, handle.id()))
        .map(ContainerHandle::snapshot)
        .filter(|snapshot| !snapshot.deleted && wanted.has(snapshot));
    let (shown, next_cursor) = paging::page(found, wanted.limit, |last| last.id.clone());
    let view = ListView {
        containers: shown.iter().map(|snapshot| ContainerView::from(&**snapshot)).collect(),
        next_cursor,
    };
    Ok(axum::Json(view).into_response())
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContainerList)]
struct ListView<'a> {
    containers: Vec<ContainerView<'a>>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<ContainerId>,
}

/// Which containers a list shows.
#[derive(Debug)]
struct Wanted {
    state: Option<String>,
    label: Option<(String, Option<String>)>,
    image: Option<String>,
    volume: Option<VolumeId>,
    /// In small letters.
    name: Option<String>,
    after: Option<ContainerId>,
    limit: usize,
}

impl Wanted {
    fn read(query: ListQuery) -> Result<Self, ApiError> {
        if query.state.as_deref().is_some_and(|state| !STATES.contains(&state)) {
            let message = format!("must be one of {}", STATES.join(", "));
            return Err(ApiError::field("?state", message));
        }
        let label = query.label.map(|label| match label.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (label, None),
        });
        let read_id = |text: &str| ContainerId::parse(text).ok();
        Ok(Self {
            state: query.state,
            label,
            image: query.image,
            volume: query.volume,
            name: query.name.map(|name| name.to_ascii_lowercase()),
            after: paging::cursor(query.cursor.as_deref(), read_id)?,
            limit: paging::limit(query.limit)?,
        })
    }

    fn has(&self, seen: &Snapshot) -> bool {
        let label_fits = self.label.as_ref().is_none_or(|(name, value)| {
            let found = seen.spec.labels.get(name);
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        });
        let name_fits = |part: &String| seen.id.as_str().to_ascii_lowercase().contains(part);
        label_fits
            && self.state.as_deref().is_none_or(|state| state == seen.state_name())
            && self.image.as_ref().is_none_or(|image| *image == seen.spec.image)
            && self.volume.is_none_or(|volume| volume == seen.spec.volume_id)
            && self.name.as_ref().is_none_or(name_fits)
    }
}
