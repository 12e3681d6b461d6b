//! `lightd ps`: the containers of the running daemon, one line each.

use std::io::{self, Write};

use serde_json::Value;

use super::client::{ClientError, Daemon, block_on};
use crate::config::source::Source;

#[derive(Debug, thiserror::Error)]
pub(super) enum PsError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

pub(super) fn run(source: &Source, out: &mut dyn Write) -> Result<(), PsError> {
    let daemon = Daemon::of(source)?;
    let rows = block_on(read_all(&daemon))?;
    let widths =
        [0, 1, 2].map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    for row in &rows {
        let [id, state, image, ports] = row;
        writeln!(
            out,
            "{id:<0$}  {state:<1$}  {image:<2$}  {ports}",
            widths[0], widths[1], widths[2]
        )?;
    }
    Ok(())
}

async fn read_all(daemon: &Daemon) -> Result<Vec<[String; 4]>, PsError> {
    let mut rows = vec![["ID", "STATE", "IMAGE", "PORTS"].map(str::to_owned)];
    let mut path = "/containers".to_owned();
    loop {
        let page = daemon.get(&path).await?;
        let containers = page["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows.extend(containers.iter().map(row));
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/containers?cursor={cursor}"),
            None => return Ok(rows),
        }
    }
}

fn row(container: &Value) -> [String; 4] {
    let text = |key: &str| container[key].as_str().unwrap_or("-").to_owned();
    let port = |port: &Value| {
        let ip = port["ip"].as_str().unwrap_or("-");
        let protocol = port["protocol"].as_str().unwrap_or("-");
        format!("{ip}:{}->{}/{protocol}", port["port"], port["container_port"])
    };
    let ports = container["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    [
        text("internal_id"),
        text("state"),
        text("image"),
        ports.iter().map(port).collect::<Vec<_>>().join(", "),
    ]
}
