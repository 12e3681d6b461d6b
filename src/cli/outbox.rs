//! `lightd outbox`: the updates that the panel has not taken, through the running daemon.

use std::io::{self, Write};

use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::{Value, json};

use super::client::{ClientError, Daemon, block_on};
use crate::config::source::Source;

#[derive(Clone, Debug, Args)]
pub(crate) struct OutboxArgs {
    #[command(subcommand)]
    action: Option<Action>,

    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// How the panel is, and what it has not taken, in the order in which it will be sent (the default)
    List {
        /// Only those that wait to be sent, or that the panel has refused for good
        #[arg(long)]
        state: Option<StateArg>,
        /// Only those of this server
        #[arg(long, value_name = "ID")]
        server: Option<String>,
        /// So many at most
        #[arg(long, value_name = "N", default_value_t = 100,
              value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// One update, with what is sent and why it was not taken
    Show {
        /// Its number, as list shows it
        sequence: i64,
    },
    /// Send updates now: parked ones again, waiting ones without their pause
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Retry {
        /// Their numbers, as list shows them
        #[arg(group = "which")]
        sequence: Vec<i64>,
        /// All of them
        #[arg(long, group = "which")]
        all: bool,
        /// With --all: only those of this server
        #[arg(long, value_name = "ID", requires = "all")]
        server: Option<String>,
    },
    /// Forget updates: the panel will not hear of them
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Drop {
        /// Their numbers, as list shows them
        #[arg(group = "which")]
        sequence: Vec<i64>,
        /// All that are parked
        #[arg(long, group = "which")]
        parked: bool,
        /// With --parked: only those of this server
        #[arg(long, value_name = "ID", requires = "parked")]
        server: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateArg {
    Waiting,
    Parked,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum OutboxError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

pub(super) fn run(
    source: &Source,
    args: &OutboxArgs,
    out: &mut dyn Write,
) -> Result<(), OutboxError> {
    let daemon = Daemon::of(source)?;
    let all = Action::List { state: None, server: None, limit: 100 };
    match args.action.as_ref().unwrap_or(&all) {
        Action::List { state, server, limit } => {
            let filter = filter(*state, server.as_deref());
            let seen = block_on::<_, ClientError>(list(&daemon, &filter, *limit as usize))?;
            if args.json { print_json(&seen, out) } else { print_list(&seen, out) }
        }
        Action::Show { sequence } => {
            let path = format!("/remote/outbox/{sequence}");
            let update = block_on::<_, ClientError>(daemon.get(&path))?;
            if args.json { print_json(&update, out) } else { print_update(&update, out) }
        }
        Action::Retry { sequence, server, .. } => {
            let paths = each_or_all(sequence, "/retry", || {
                format!("/remote/outbox/retry?{}", of_server(server.as_deref()))
            });
            change(&daemon, &Method::POST, &paths, args.json, out)
        }
        Action::Drop { sequence, server, .. } => {
            let paths = each_or_all(sequence, "", || {
                format!("/remote/outbox?state=parked&{}", of_server(server.as_deref()))
            });
            change(&daemon, &Method::DELETE, &paths, args.json, out)
        }
    }
}

fn filter(state: Option<StateArg>, server: Option<&str>) -> String {
    let state = match state {
        Some(StateArg::Waiting) => "state=waiting&",
        Some(StateArg::Parked) => "state=parked&",
        None => "",
    };
    format!("{state}{}", of_server(server))
}

fn of_server(server: Option<&str>) -> String {
    let quoted = |id| percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
    server.map_or_else(String::new, |id| format!("server={}", quoted(id)))
}

fn each_or_all(sequences: &[i64], what: &str, all: impl FnOnce() -> String) -> Vec<String> {
    if sequences.is_empty() {
        return vec![all()];
    }
    sequences.iter().map(|sequence| format!("/remote/outbox/{sequence}{what}")).collect()
}

/// Status and updates, as many as wanted.
async fn list(daemon: &Daemon, filter: &str, limit: usize) -> Result<Value, ClientError> {
    let status = daemon.get("/remote/status").await?;
    let mut updates: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    while updates.len() < limit {
        let page = (limit - updates.len()).min(1000);
        let path = format!("/remote/outbox?{filter}&limit={page}{cursor}");
        let mut answer = daemon.get(&path).await?;
        if let Some(more) = answer["updates"].as_array_mut() {
            updates.append(more);
        }
        match answer["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    Ok(json!({"status": status, "updates": updates}))
}

/// One request for each path, in order, to the first that is refused.
fn change(
    daemon: &Daemon,
    method: &Method,
    paths: &[String],
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), OutboxError> {
    for path in paths {
        let answer = block_on::<_, ClientError>(daemon.ask(method.clone(), path))?;
        if as_json {
            print_json(&answer, out)?;
            continue;
        }
        let message = text(&answer["message"]);
        let which = ["sequence", "retried", "dropped"];
        let which = which.iter().find_map(|name| answer[name].as_i64());
        writeln!(out, "{message}: {}", which.unwrap_or_default())?;
    }
    Ok(())
}

fn print_json(value: &Value, out: &mut dyn Write) -> Result<(), OutboxError> {
    Ok(writeln!(out, "{value:#}")?)
}

fn print_list(seen: &Value, out: &mut dyn Write) -> Result<(), OutboxError> {
    let (status, updates) = (&seen["status"], seen["updates"].as_array());
    let updates = updates.map(Vec::as_slice).unwrap_or_default();
    write!(out, "The panel is {} since {}", text(&status["state"]), time(&status["since"]))?;
    match status["error"].as_str() {
        Some(error) => writeln!(out, ": {error}")?,
        None => writeln!(out)?,
    }
    let outbox = &status["outbox"];
    let (waiting, parked) = (&outbox["waiting"], &outbox["parked"]);
    writeln!(out, "{waiting} waiting, {parked} parked, {} shown", updates.len())?;
    if updates.is_empty() {
        return Ok(());
    }
    let head = ["SEQUENCE", "SERVER", "STATE", "WRITTEN", "TRIED", "NEXT", "UPDATE", "ERROR"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(updates.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn row(update: &Value) -> [String; 8] {
    let body = &update["body"];
    let said = body["status"].as_str().or_else(|| body["error"].as_str()).unwrap_or("-");
    [
        update["sequence"].to_string(),
        text(&update["server"]).to_owned(),
        text(&update["state"]).to_owned(),
        time(&update["created_at"]),
        update["attempts"].to_string(),
        time(&update["next_attempt_at"]),
        said.to_owned(),
        first_line(text(&update["error"])),
    ]
}

fn print_update(update: &Value, out: &mut dyn Write) -> Result<(), OutboxError> {
    for name in ["sequence", "server", "server_sequence", "delivery", "state", "attempts", "error"]
    {
        let value = &update[name];
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        writeln!(out, "{name:<16} {shown}")?;
    }
    for name in ["created_at", "next_attempt_at", "parked_at"] {
        writeln!(out, "{name:<16} {}", time(&update[name]))?;
    }
    writeln!(out, "{:<16} {}", "body", update["body"])?;
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(120).collect()
}

fn time(value: &Value) -> String {
    let at = value.as_i64().and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map_or_else(|| "-".to_owned(), |at| at.to_string())
}
