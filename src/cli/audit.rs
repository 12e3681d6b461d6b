//! `lightd audit`: who did what on the running daemon's node, one line each, the newest first.

use std::io::{self, Write};

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::client::{ClientError, Daemon, block_on};
use crate::config::source::Source;
use crate::domain::units::{Span, UnixSeconds};

const PAGE: usize = 1000;

/// Which lines, and how many.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuditArgs {
    /// A server's id, also of one that is gone
    #[arg(long, value_name = "ID")]
    container: Option<String>,

    /// A volume's id
    #[arg(long, value_name = "ID")]
    volume: Option<String>,

    /// node, token, anonymous, lightd, or a token's id or prefix
    #[arg(long)]
    actor: Option<String>,

    /// An action such as container.start, or a family of them such as files
    #[arg(long)]
    action: Option<String>,

    /// What was done since then: a time ago such as 2h or 7d, or Unix seconds
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<UnixSeconds>,

    /// What was done before then, written as --since
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<UnixSeconds>,

    /// How many lines at most
    #[arg(long, default_value_t = 50, value_name = "LINES")]
    limit: usize,

    /// One JSON object a line, as the API has them
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AuditError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

fn moment(text: &str) -> Result<UnixSeconds, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(UnixSeconds(seconds));
    }
    let ago = Span::parse(text).map_err(|why| format!("{why}, or Unix seconds"))?;
    let ago = i64::try_from(ago.0.as_secs()).unwrap_or(i64::MAX);
    Ok(UnixSeconds(UnixSeconds::now().0.saturating_sub(ago)))
}

pub(super) fn run(
    source: &Source,
    args: &AuditArgs,
    out: &mut dyn Write,
) -> Result<(), AuditError> {
    let daemon = Daemon::of(source)?;
    let entries = block_on(read(&daemon, args))?;
    if args.json {
        for entry in &entries {
            writeln!(out, "{entry}")?;
        }
        return Ok(());
    }
    let mut rows = vec![["TIME", "WHO", "FROM", "ACTION", "ON", "DETAILS"].map(str::to_owned)];
    rows.extend(entries.iter().map(line));
    let widths =
        [0, 1, 2, 3, 4].map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    for [time, who, from, action, on, details] in &rows {
        let [a, b, c, d, e] = widths;
        writeln!(out, "{time:<a$}  {who:<b$}  {from:<c$}  {action:<d$}  {on:<e$}  {details}")?;
    }
    Ok(())
}

async fn read(daemon: &Daemon, args: &AuditArgs) -> Result<Vec<Value>, AuditError> {
    let mut entries = Vec::new();
    let mut cursor = None;
    while entries.len() < args.limit {
        let page = daemon.get(&path(args, args.limit - entries.len(), cursor.as_deref())).await?;
        entries.extend(page["entries"].as_array().cloned().unwrap_or_default());
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    Ok(entries)
}

fn path(args: &AuditArgs, left: usize, cursor: Option<&str>) -> String {
    let mut path = format!("/audit?limit={}", left.min(PAGE));
    let time = |time: Option<UnixSeconds>| time.map(|time| time.0.to_string());
    for (name, value) in [
        ("container", args.container.clone()),
        ("volume", args.volume.clone()),
        ("actor", args.actor.clone()),
        ("action", args.action.clone()),
        ("since", time(args.since)),
        ("until", time(args.until)),
        ("cursor", cursor.map(str::to_owned)),
    ] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC)));
        }
    }
    path
}

fn line(entry: &Value) -> [String; 6] {
    let time = entry["created_at"].as_i64().and_then(|at| jiff::Timestamp::from_second(at).ok());
    let actor = &entry["actor"];
    let first = |values: [&Value; 2]| {
        let found = values.into_iter().find_map(Value::as_str);
        found.unwrap_or("-").to_owned()
    };
    let count = entry["count"].as_u64().filter(|count| *count > 1);
    let action = first([&entry["action"], &Value::Null]);
    [
        time.map_or_else(|| "-".to_owned(), |time| time.to_string()),
        first([&actor["token_prefix"], &actor["type"]]),
        first([&entry["address"], &entry["way"]]),
        count.map_or_else(|| action.clone(), |count| format!("{action} x{count}")),
        first([&entry["container"], &entry["volume_id"]]),
        details(&entry["details"]),
    ]
}

/// `name=value` for each, lists with commas.
fn details(details: &Value) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) => printable(text),
        other => other.to_string(),
    };
    let shown = details.as_object().into_iter().flatten().map(|(name, value)| match value {
        Value::Array(items) => {
            format!("{name}={}", items.iter().map(plain).collect::<Vec<_>>().join(","))
        }
        value => format!("{name}={}", plain(value)),
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// File names and the like are other people's: nothing of them moves the terminal's cursor.
fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.escape_debug().to_string()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_says_who_did_what_to_what() {
        let entry = json!({
            "created_at": 0, "action": "files.write", "way": "rest", "address": "192.0.2.7",
            "actor": {"type": "token", "token_prefix": "lightd_abcdef"}, "container": "a",
            "volume_id": "v", "count": 3, "details": {"paths": ["x", "y\u{1b}[2J"], "size": 1},
        });
        let wanted = [
            "1970-01-01T00:00:00Z",
            "lightd_abcdef",
            "192.0.2.7",
            "files.write x3",
            "a",
            "paths=x,y\\u{1b}[2J size=1",
        ];
        assert_eq!(line(&entry), wanted.map(str::to_owned));
        let own =
            json!({"action": "container.crashed", "actor": {"type": "lightd"}, "way": "lightd"});
        assert_eq!(
            line(&own),
            ["-", "lightd", "lightd", "container.crashed", "-", ""].map(str::to_owned)
        );
    }

    #[test]
    fn times_are_ago_or_since_1970() {
        assert_eq!(moment("1700000000"), Ok(UnixSeconds(1_700_000_000)));
        let hour_ago = UnixSeconds::now().0 - 3600;
        assert!((hour_ago - 2..=hour_ago + 2).contains(&moment("1h").unwrap().0));
        assert!(moment("yesterday").is_err());
    }
}
