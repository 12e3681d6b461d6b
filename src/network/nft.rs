//! The program `nft`: transactions go in, and what stands in the kernel comes out.
//!
//! Called by everything that keeps rules here. A transaction holds whole or has changed nothing; no run
//! outlives its deadline, and what nft says in a complaint is kept short, for it repeats its input.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Why nft did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    #[error(
        "the program nft is in none of {FOLDERS:?}: install nftables (apt install nftables), or set the \
         firewall to off and keep containers from the host by other means"
    )]
    Missing,
    #[error(
        "nft may not change the firewall: run lightd as root or give it CAP_NET_ADMIN (nft said: {said})"
    )]
    NotPermitted { said: String },
    #[error("the kernel or nft refuses a rule; it may lack nf_tables (nft said: {said})")]
    Refused { said: String },
    #[error("nft did not end within {} s", DEADLINE.as_secs())]
    Late,
    #[error("cannot run {}", program.display())]
    Run { program: PathBuf, source: io::Error },
}

const FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/bin"];
const DEADLINE: Duration = Duration::from_secs(15);
const SAID_MAX_BYTES: usize = 400;

/// Runs one transaction: all of it holds afterwards, or nothing has changed.
pub(super) async fn apply(transaction: &str) -> Result<(), NftError> {
    run(&["-f", "-"], transaction).await.map(drop)
}

/// Asks nft and the kernel whether they would take a transaction; nothing is changed.
pub(super) async fn check(transaction: &str) -> Result<(), NftError> {
    run(&["-c", "-f", "-"], transaction).await.map(drop)
}

/// Takes a table away, whether it is there or not, as the beginning of a transaction that makes it anew.
pub(super) fn drop_table(family: &str, name: &str) -> String {
    // Adding first makes the deletion succeed.
    format!("add table {family} {name}\ndelete table {family} {name}\n")
}

/// What stood in the kernel when it was last set, to tell whether it still does: rules, without counters
/// and without the sets that the kernel itself fills.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    tables: Vec<String>,
    listing: String,
}

impl Standing {
    /// Notes what stands now. `tables` as in `inet name`.
    pub(super) async fn note(tables: Vec<String>) -> Result<Self, NftError> {
        let listing = list(&tables).await?;
        Ok(Self { tables, listing })
    }

    /// Whether it stands as it was noted. A table that is gone does not.
    pub(super) async fn holds(&self) -> Result<bool, NftError> {
        match list(&self.tables).await {
            Ok(listing) => Ok(listing == self.listing),
            Err(NftError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// One by one: of several in one run nft may see only the last.
async fn list(tables: &[String]) -> Result<String, NftError> {
    let mut listing = String::new();
    for table in tables {
        // Terse: without the elements of named sets, which may be many, and change by themselves.
        let listed = run(&["-s", "-t", "-f", "-"], &format!("list table {table}\n")).await?;
        listing.extend(listed.lines().map(in_order));
    }
    Ok(listing)
}

/// The kernel lists the elements of a set in an order of its own.
fn in_order(line: &str) -> String {
    let mut words: Vec<&str> = line.split([' ', ',', '\t']).collect();
    words.sort_unstable();
    words.push("\n");
    words.join(" ")
}

async fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let program = find_nft().ok_or(NftError::Missing)?;
    match tokio::time::timeout(DEADLINE, spawn(&program, arguments, input)).await {
        Err(_) => Err(NftError::Late),
        Ok(Err(source)) => Err(NftError::Run { program, source }),
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => Err(refusal(&output.stderr)),
    }
}

async fn spawn(program: &Path, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut nft = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let sent = match nft.stdin.take() {
        Some(mut stdin) => stdin.write_all(input.as_bytes()).await,
        None => Ok(()),
    };
    let output = nft.wait_with_output().await?;
    // One that fails before it has read everything says itself what is wrong, a broken pipe does not.
    if output.status.success() {
        sent?;
    }
    Ok(output)
}

pub(crate) fn find_nft() -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join("nft")).find(|path| path.is_file())
}

fn refusal(stderr: &[u8]) -> NftError {
    let mut said = String::from_utf8_lossy(&stderr[..stderr.len().min(SAID_MAX_BYTES)])
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    if said.is_empty() {
        said.push_str("nothing");
    }
    if said.contains("Operation not permitted") {
        NftError::NotPermitted { said }
    } else {
        NftError::Refused { said }
    }
}

#[cfg(test)]
pub(super) mod testing {
    /// All that stands in a table, line by line.
    pub(in crate::network) async fn list_table(table: &str) -> Vec<String> {
        let listed = super::run(&["-s", "-f", "-"], &format!("list table inet {table}\n")).await;
        listed.unwrap().lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_nft_become_what_to_do() {
        let not_root =
            refusal(b"netlink: Error: cache initialization failed: Operation not permitted\n");
        assert!(matches!(not_root, NftError::NotPermitted { .. }));
        assert!(not_root.to_string().contains("CAP_NET_ADMIN"));
        assert!(matches!(refusal(b"syntax error"), NftError::Refused { .. }));
    }
}
