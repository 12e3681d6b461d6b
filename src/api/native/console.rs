//! A container's console over REST: what it printed, a line for it, a process beside it.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::ContainerPath;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::console;
use crate::domain::access::Permission;
use crate::domain::ids::{ContainerId, RunId};
use crate::domain::spec::compile_pattern;
use crate::engine::{ExecEnd, ExecResult};

const LINES_DEFAULT: usize = 100;
const LINES_MAX: usize = 10_000;
const COMMAND_MAX_BYTES: usize = 64 * 1024;
const EXEC_SECONDS_DEFAULT: u64 = 30;
const EXEC_SECONDS_MAX: u64 = 600;
const EXEC_ARGUMENTS_MAX_BYTES: usize = 64 * 1024;

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(logs)).routes(routes!(command)).routes(routes!(install_log))
}

pub(super) fn long_routes() -> Routes {
    Routes::default().routes(routes!(exec))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct LogsQuery {
    /// So many at most; 100 if it is left out.
    #[param(minimum = 0, maximum = 10_000)]
    lines: Option<usize>,
    /// The number of the last line that the caller has.
    since: Option<u64>,
    /// Only of this run.
    run: Option<u64>,
    /// Only lines that match this regular expression.
    #[param(max_length = 4096)]
    grep: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Logs)]
struct LogsView {
    /// Lines with their line ends.
    #[schema(example = "Ready\n")]
    data: String,
    /// What to give as `since` for what follows.
    seq: u64,
    /// False where there is more behind `seq`.
    complete: bool,
    /// Lines that were asked for and are not there any more.
    lines_lost: u64,
    /// Lines that the disk did not take.
    journal_lost_lines: u64,
}

refusals!(ReadRefusals: CONTAINER);

/// Reads a container's console, also of the past.
///
/// The last lines; or the first ones behind `since`. Where `complete` is false there is more behind `seq`: ask on with it.
#[utoipa::path(
    get, path = "/containers/{id}/logs", tag = "console",
    params(ContainerPath, LogsQuery),
    responses((status = 200, description = "Lines, at most 1 MiB of them", body = LogsView), ReadRefusals),
)]
async fn logs(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<LogsQuery>,
) -> Result<axum::Json<LogsView>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ConsoleRead)?;
    let lines = query.lines.unwrap_or(LINES_DEFAULT);
    if lines > LINES_MAX {
        return Err(ApiError::field("?lines", format!("must not be more than {LINES_MAX}")));
    }
    let grep = query.grep.as_deref().map(compile_pattern).transpose();
    let grep = grep.map_err(|why| ApiError::field("?grep", why))?;
    let (since, run) = (query.since, query.run.map(RunId));
    let query = console::Query { lines, since, run, grep: grep.as_ref() };
    let found = handle.console().history(query).await;
    let journal_lost_lines = handle.console().health().journal_lost_lines;
    Ok(axum::Json(LogsView {
        data: found.text,
        seq: found.last_seq,
        complete: found.complete,
        lines_lost: found.lines_lost,
        journal_lost_lines,
    }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Command)]
#[serde(deny_unknown_fields)]
struct CommandBody {
    /// A line for its standard input; a missing line end is added.
    #[schema(max_length = 65_536, example = "say hello")]
    command: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CommandWritten)]
struct CommandView {
    #[schema(example = "Command written")]
    message: &'static str,
    internal_id: ContainerId,
}

refusals!(CommandRefusals: CONTAINER; 409: "not_running", "input_stalled", "input_cut_short"; 503: "engine_unavailable", "queue_full");

/// Writes a line to a container's standard input, at most once.
#[utoipa::path(
    post, path = "/containers/{id}/command", tag = "console",
    params(ContainerPath), request_body = CommandBody,
    responses((status = 202, description = "It is written", body = CommandView), CommandRefusals),
)]
async fn command(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Json(body): Json<CommandBody>,
) -> Result<(StatusCode, axum::Json<CommandView>), ApiError> {
    let handle = auth.container(&state, &id, Permission::ConsoleWrite)?;
    if body.command.len() > COMMAND_MAX_BYTES {
        let message = format!("must not be longer than {COMMAND_MAX_BYTES} bytes");
        return Err(ApiError::field("command", message));
    }
    handle.write_input(body.command).await?;
    let view = CommandView { message: "Command written", internal_id: id };
    Ok((StatusCode::ACCEPTED, axum::Json(view)))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Exec)]
#[serde(deny_unknown_fields)]
struct ExecBody {
    /// The program and its arguments, at most 64 KiB in all.
    #[schema(min_items = 1, example = json!(["ls", "-l"]))]
    cmd: Vec<String>,
    /// Seconds until it is ended; 30 if it is left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 600)]
    timeout: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExecEnd)]
struct ExecView {
    /// `null` where it was ended for taking too long.
    #[schema(required)]
    exit_code: Option<i64>,
    timed_out: bool,
    stdout: String,
    stderr: String,
    /// There was more output than is kept.
    truncated: bool,
}

impl From<ExecResult> for ExecView {
    fn from(result: ExecResult) -> Self {
        let exit_code = match result.end {
            ExecEnd::Exited(code) => Some(code),
            ExecEnd::TimedOut => None,
        };
        Self {
            exit_code,
            timed_out: exit_code.is_none(),
            stdout: String::from_utf8_lossy(&result.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&result.stderr).into_owned(),
            truncated: result.is_truncated,
        }
    }
}

refusals!(ExecRefusals: CONTAINER, STATE, ENGINE);

/// Runs a process beside the workload and waits for its end.
#[utoipa::path(
    post, path = "/containers/{id}/exec", tag = "console",
    params(ContainerPath), request_body = ExecBody,
    responses((status = 200, description = "It has ended, or was ended", body = ExecView), ExecRefusals),
)]
async fn exec(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Json(body): Json<ExecBody>,
) -> Result<axum::Json<ExecView>, ApiError> {
    let handle = auth.container(&state, &id, Permission::Exec)?;
    let bytes: usize = body.cmd.iter().map(String::len).sum();
    if body.cmd.first().is_none_or(String::is_empty) || bytes > EXEC_ARGUMENTS_MAX_BYTES {
        let message = format!("must name a program, in {EXEC_ARGUMENTS_MAX_BYTES} bytes in all");
        return Err(ApiError::field("cmd", message));
    }
    if body.cmd.iter().any(|argument| argument.contains('\0')) {
        return Err(ApiError::field("cmd", "must not contain a NUL character"));
    }
    let seconds = body.timeout.unwrap_or(EXEC_SECONDS_DEFAULT);
    if !(1..=EXEC_SECONDS_MAX).contains(&seconds) {
        let message = format!("must be between 1 and {EXEC_SECONDS_MAX} seconds");
        return Err(ApiError::field("timeout", message));
    }
    let result = handle.exec(body.cmd, Duration::from_secs(seconds)).await?;
    Ok(axum::Json(result.into()))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InstallLog)]
struct InstallLogView {
    #[schema(example = "installed\n")]
    data: String,
}

/// Reads what the install script has printed.
#[utoipa::path(
    get, path = "/containers/{id}/install-log", tag = "console",
    params(ContainerPath),
    responses((status = 200, description = "Of the latest install", body = InstallLogView), ReadRefusals),
)]
async fn install_log(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<axum::Json<InstallLogView>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ConsoleRead)?;
    let log = handle.install_log().await.map_err(ApiError::internal)?;
    Ok(axum::Json(InstallLogView { data: String::from_utf8_lossy(&log).into_owned() }))
}
