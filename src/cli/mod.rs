//! The command line: what may be said, and the verbs that need no running daemon.
//!
//! Without a verb lightd serves. Each verb writes its answer to standard output and what went wrong to
//! standard error; 2 is the exit code of a refused request, as it is of a line that cannot be read.

mod audit;
pub(crate) mod check_config;
mod client;
pub(crate) mod completions;
mod console;
mod doctor;
mod openapi;
mod outbox;
mod ps;
pub(crate) mod secrets;
mod serve;

use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::secrets::SecretError;
use crate::config::source::{Overrides, Source};
use crate::util::chain::Chain;

/// Runs other people's servers in Docker containers on this machine. Without a command: serves.
#[derive(Debug, Parser)]
#[command(name = "lightd", version, args_conflicts_with_subcommands = false)]
pub(crate) struct Cli {
    /// The configuration file [default: ./config.json, else /etc/lightd/config.json]
    #[arg(long, value_name = "FILE", global = true, env = "LIGHTD_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// Print the node's token, or give the node a new one: random, or read from standard input
    #[arg(long, value_name = "ACTION")]
    pub(crate) token: Option<TokenAction>,

    /// With --token reset or set: how long the token before it stays good, such as 10m (at most 7d)
    #[arg(long, value_name = "TIME", requires = "token", value_parser = secrets::grace)]
    pub(crate) grace: Option<Duration>,

    #[command(flatten)]
    pub(crate) serve: ServeArgs,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenAction {
    /// Print the present token
    What,
    /// Make a random one
    Reset,
    /// Ask for one
    Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdminKeyAction {
    /// Print the present key
    What,
    /// Make a random one
    Reset,
}

/// What a start takes from the command line, over file and environment.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ServeArgs {
    /// The port to listen on
    #[arg(long)]
    port: Option<u16>,

    /// The IP address to listen on, such as 127.0.0.1 or 0.0.0.0
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,

    /// Serve HTTPS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    enable_tls: Option<bool>,

    /// The certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// Let anyone in who reaches the port; implies --host 127.0.0.1 and is refused with any other
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    disable_auth: Option<bool>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Look at configuration, rights, storage, engine, firewall and daemon, and say how to mend each
    Doctor,
    /// A server's console, in this terminal: type commands, leave with Ctrl-D
    Console {
        /// The server's id, as lightd ps shows it
        id: String,
    },
    /// List this node's servers
    Ps,
    /// Who did what, and when: the newest first
    Audit(audit::AuditArgs),
    /// Look at the updates that the panel has not taken, send them again, drop them
    Outbox(outbox::OutboxArgs),
    /// Print a shell's completion script: lightd completions bash > /etc/bash_completion.d/lightd
    Completions { shell: clap_complete::Shell },
    /// Check the configuration and print what counts, with secrets masked
    CheckConfig,
    /// Print the API's description, in OpenAPI 3.1
    Openapi,
    /// Print the admin key, or make a new one
    AdminKey { action: AdminKeyAction },
}

impl Cli {
    /// Where this process's configuration comes from.
    pub(crate) fn source(&self) -> Source {
        let args = self.serve.clone();
        let overrides = Overrides {
            port: args.port,
            host: args.host,
            enable_tls: args.enable_tls,
            tls_cert: args.tls_cert,
            tls_key: args.tls_key,
            disable_auth: args.disable_auth,
        };
        Source::new(Source::find(self.config.clone()), std::env::vars_os(), overrides)
    }
}

/// Reads the command line and does what it says. Exit codes: 0 done, 1 failed, 2 refused.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let source = cli.source();
    let out = &mut std::io::stdout();
    if let Some(action) = cli.token {
        return printed(
            secrets::token(action, cli.grace, &source, secrets::ask_for_token, out)
                .map(|until| tell_ends(action, until)),
            SecretError::exit_code,
        );
    }
    match cli.command {
        None => ended(serve::run(source), |_| 1),
        Some(Command::CheckConfig) => printed(check_config::run(&source, out), |_| 1),
        Some(Command::Openapi) => printed(openapi::run(out), |_| 1),
        Some(Command::Completions { shell }) => printed(completions::run(shell, out), |_| 1),
        Some(Command::AdminKey { action }) => {
            printed(secrets::admin_key(action, &source, out), SecretError::exit_code)
        }
        Some(Command::Console { id }) => ended(console::run(&source, &id), |_| 1),
        Some(Command::Outbox(args)) => printed(outbox::run(&source, &args, out), |_| 1),
        Some(Command::Ps) => printed(ps::run(&source, out), |_| 1),
        Some(Command::Audit(args)) => printed(audit::run(&source, &args, out), |_| 1),
        Some(Command::Doctor) => doctor::run(&source, out),
    }
}

/// Beside the answer, which programs read.
fn tell_ends(action: TokenAction, until: Option<jiff::Timestamp>) {
    if action != TokenAction::What {
        eprintln!("A running lightd takes it within a second; until then it is refused");
    }
    match until {
        Some(until) => eprintln!("The token before it is good until {until}"),
        None if action != TokenAction::What => eprintln!("Any other token of the node ends then"),
        None => {}
    }
}

/// As [`ended`], of what only prints: a reader who has seen enough, such as `head`, is no failure.
fn printed<E: Error + 'static>(result: Result<(), E>, code: impl FnOnce(&E) -> u8) -> ExitCode {
    match result {
        Err(error) if reader_has_gone(&error) => ExitCode::SUCCESS,
        result => ended(result, code),
    }
}

fn reader_has_gone(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn ended<E: Error + 'static>(result: Result<(), E>, code: impl FnOnce(&E) -> u8) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lightd: {}", Chain(&error));
            ExitCode::from(code(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_read_with_and_without_a_value() {
        let serve = |line| parse(line).unwrap().serve;
        assert_eq!(serve("lightd").disable_auth, None);
        assert_eq!(serve("lightd --disable-auth").disable_auth, Some(true));
        assert_eq!(serve("lightd --disable-auth=false").disable_auth, Some(false));
        let all = serve("lightd --enable-tls=true --tls-cert=c --tls-key k --port=1 --host ::1");
        assert_eq!(all.enable_tls, Some(true));
        assert_eq!((all.port, all.host), (Some(1), Some("::1".parse().unwrap())));
        assert!(parse("lightd --disable-auth=perhaps").is_err());
    }

    #[test]
    fn a_reader_who_has_seen_enough_is_no_failure() {
        let failed = |kind: std::io::ErrorKind| check_config::CheckError::Output(kind.into());
        assert!(reader_has_gone(&failed(std::io::ErrorKind::BrokenPipe)));
        assert!(!reader_has_gone(&failed(std::io::ErrorKind::StorageFull)));
    }

    #[test]
    fn verbs_are_read() {
        assert_eq!(parse("lightd --token what").unwrap().token, Some(TokenAction::What));
        assert_eq!(parse("lightd --token=set").unwrap().token, Some(TokenAction::Set));
        assert!(parse("lightd --token").is_err());
        let grace = |line| parse(line).map(|cli| cli.grace.map(|grace| grace.as_secs()));
        assert_eq!(grace("lightd --token reset --grace 10m").unwrap(), Some(600));
        for bad in ["", "--grace 10m", "--token reset --grace 10", "--token set --grace 8d"] {
            let refused = parse(&format!("lightd {bad}")).is_err();
            assert_eq!(refused, !bad.is_empty(), "{bad}");
        }
        let cli = parse("lightd admin-key reset --config x").unwrap();
        assert!(matches!(cli.command, Some(Command::AdminKey { action: AdminKeyAction::Reset })));
        assert_eq!(cli.config, Some("x".into()));
        assert!(matches!(
            parse("lightd console a").unwrap().command,
            Some(Command::Console { .. })
        ));
        let audit = "lightd audit --container a --since 2h --action files --actor node --limit 5";
        assert!(matches!(parse(audit).unwrap().command, Some(Command::Audit(_))));
        assert!(parse("lightd audit --since yesterday").is_err());
        assert!(parse("lightd nonsense").is_err());
        for line in ["", " list --state parked", " show 3 --json", " retry 1 2", " retry --all"] {
            parse(&format!("lightd outbox{line}")).unwrap();
        }
        for line in [" retry", " drop", " drop 1 --parked", " show", " show x", " list --state x"] {
            assert!(parse(&format!("lightd outbox{line}")).is_err(), "{line}");
        }
    }
}
