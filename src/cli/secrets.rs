//! `lightd --token …` and `lightd admin-key …`: the secrets in the configuration file, shown and
//! changed.
//!
//! A change is one atomic write, and of several commands at once each goes on from what the one before it
//! has written; a running daemon sees a new token by itself. With `--grace` the token
//! before it stays good for a while, which the file says too, so that it counts across a restart. What
//! cannot count is refused before anything is written: a token of the wrong format, any change while
//! the environment overrides what the file says, a grace for nothing.

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::{AdminKeyAction, TokenAction};
use crate::config::edit::Turn;
use crate::config::source::{Source, new_token};
use crate::config::{ConfigError, edit};
use crate::domain::access::{TOKEN_FORMAT, is_token};
use crate::domain::units::{Span, UnixSeconds};
use crate::util::secret::random_text;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("the token {TOKEN_FORMAT}; nothing was changed")]
    BadFormat,
    #[error("{0} overrides what the file says, so a change would not count; nothing was changed")]
    Overridden(String),
    #[error(
        "--grace is for --token reset and --token set: nothing changes here that could be kept"
    )]
    NoChange,
    #[error("there is no token yet that could stay good; nothing was changed")]
    NothingToKeep,
    #[error("there is none yet; make one with: {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the token or write the answer")]
    Terminal(#[from] io::Error),
}

impl SecretError {
    /// 2 for what was refused, 1 for what failed.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::BadFormat | Self::Overridden(_) | Self::NoChange | Self::NothingToKeep => 2,
            Self::Missing(_) | Self::Config(_) | Self::Terminal(_) => 1,
        }
    }
}

const TOKEN: &str = "authorization.token";
const PREVIOUS: &str = "authorization.previous_token";
const UNTIL: &str = "authorization.previous_token_until";

/// A grace on the command line.
pub(super) fn grace(text: &str) -> Result<Duration, String> {
    let span = Span::parse(text).map_err(|why| why.to_string())?.0;
    if (GRACE_MIN..=GRACE_MAX).contains(&span) {
        Ok(span)
    } else {
        Err("must be between 1s and 7d".to_owned())
    }
}

const GRACE_MIN: Duration = Duration::from_secs(1);
const GRACE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Answers `--token …`; `ask` is called for the new token of `set`. Returns until when the token before
/// it is good, if it is.
pub(crate) fn token(
    action: TokenAction,
    grace: Option<Duration>,
    source: &Source,
    ask: impl FnOnce() -> io::Result<String>,
    out: &mut dyn Write,
) -> Result<Option<Timestamp>, SecretError> {
    if action == TokenAction::What {
        return show(grace, source, out);
    }
    refuse_if_overridden(source, TOKEN)?;
    let keep = || grace.map(|grace| kept_token(source, grace)).transpose();
    // Nobody is asked for what will be refused.
    keep()?;
    let new = match action {
        TokenAction::Set => ask()?,
        TokenAction::Reset | TokenAction::What => new_token(),
    };
    if !is_token(&new) {
        return Err(SecretError::BadFormat);
    }
    // The folder of what is not there yet can't be held either.
    source.ensure_exists()?;
    let _turn = Turn::wait(source.path())?;
    // The same again needs no grace.
    let kept = keep()?.filter(|(old, _)| *old != new);
    let until = kept.as_ref().map(|(_, until)| *until);
    store_token(source, &new, kept)?;
    writeln!(out, "New Token: {new}")?;
    Ok(until)
}

fn show(
    grace: Option<Duration>,
    source: &Source,
    out: &mut dyn Write,
) -> Result<Option<Timestamp>, SecretError> {
    if grace.is_some() {
        return Err(SecretError::NoChange);
    }
    let token = present(source, TOKEN)?.ok_or(SecretError::Missing("lightd --token reset"))?;
    writeln!(out, "Current Token: {token}")?;
    let until = present(source, UNTIL)?.and_then(|until| until.parse().ok());
    let has_previous = present(source, PREVIOUS)?.is_some();
    Ok(until.filter(|until| has_previous && *until > Timestamp::now()))
}

/// The token that is good now, and the whole second until which it shall stay so.
fn kept_token(source: &Source, grace: Duration) -> Result<(String, Timestamp), SecretError> {
    refuse_if_overridden(source, PREVIOUS)?;
    refuse_if_overridden(source, UNTIL)?;
    let present = match present(source, TOKEN) {
        Err(SecretError::Config(ConfigError::Missing { .. })) => None,
        present => present?,
    };
    let token = present.filter(|token| is_token(token)).ok_or(SecretError::NothingToKeep)?;
    let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    let until = UnixSeconds::now().0.saturating_add(seconds).saturating_add(1);
    Ok((token, Timestamp::from_second(until).unwrap_or(Timestamp::MAX)))
}

/// Writes the token, and what is kept of the one before it: nothing of an earlier one.
fn store_token(
    source: &Source,
    new: &str,
    kept: Option<(String, Timestamp)>,
) -> Result<(), SecretError> {
    let mut values = vec![("token", Value::from(new))];
    match kept {
        Some((old, until)) => {
            values.push(("previous_token", old.into()));
            values.push(("previous_token_until", until.to_string().into()));
        }
        // Keys that nobody has set are not added to the file.
        None if present(source, PREVIOUS)?.is_some() => {
            values.push(("previous_token", "".into()));
            values.push(("previous_token_until", Value::Null));
        }
        None => {}
    }
    store(source, &values)
}

/// Answers `admin-key …`.
pub(crate) fn admin_key(
    action: AdminKeyAction,
    source: &Source,
    out: &mut dyn Write,
) -> Result<(), SecretError> {
    const KEY: &str = "authorization.admin_key";
    match action {
        AdminKeyAction::What => {
            let key =
                present(source, KEY)?.ok_or(SecretError::Missing("lightd admin-key reset"))?;
            Ok(writeln!(out, "Current Admin Key: {key}")?)
        }
        AdminKeyAction::Reset => {
            refuse_if_overridden(source, KEY)?;
            let new = random_text();
            source.ensure_exists()?;
            let _turn = Turn::wait(source.path())?;
            store(source, &[("admin_key", new.as_str().into())])?;
            Ok(writeln!(out, "New Admin Key: {new}")?)
        }
    }
}

fn refuse_if_overridden(source: &Source, key: &str) -> Result<(), SecretError> {
    source.env_override(key).map_or(Ok(()), |variable| Err(SecretError::Overridden(variable)))
}

/// What counts now: the environment's, else the file's. Reads the file as it is, so that a mistake
/// elsewhere in it does not hide the token.
fn present(source: &Source, key: &str) -> Result<Option<String>, SecretError> {
    if let Some(value) = source.env_value(key) {
        return Ok(Some(value.to_owned()));
    }
    let file = source.read_json()?;
    let found = file.pointer(&format!("/{}", key.replace('.', "/"))).and_then(Value::as_str);
    Ok(found.filter(|text| !text.is_empty()).map(str::to_owned))
}

fn store(source: &Source, values: &[(&str, Value)]) -> Result<(), SecretError> {
    Ok(edit::set(source.path(), "authorization", values)?)
}

/// One line from standard input; asked for, and not shown while it is typed, where that is a terminal.
pub(crate) fn ask_for_token() -> io::Result<String> {
    let stdin = io::stdin();
    let _no_echo = if stdin.is_terminal() {
        write!(io::stderr(), "New token: ")?;
        Some(NoEcho::begin()?)
    } else {
        None
    };
    let mut line = String::new();
    stdin.lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// A terminal that does not show what is typed, until dropped.
struct NoEcho {
    before: rustix::termios::Termios,
}

impl NoEcho {
    fn begin() -> io::Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // The line's end moves the cursor all the same.
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self { before })
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        // The process is about to end; there is nobody to tell.
        tcsetattr(io::stdin(), OptionalActions::Now, &self.before).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::Overrides;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    const OLD: &str = "lightd_old_0123456789";

    fn source(path: &Path, variable: Option<&str>) -> Source {
        let env = variable.map(|token| ("LIGHTD_AUTHORIZATION__TOKEN".into(), token.into()));
        Source::new(path.to_owned(), env, Overrides::default())
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let text = format!(r#"{{"server":{{"port":1}},"authorization":{{"token":"{OLD}"}}}}"#);
        crate::util::atomic_file::write(&path, text.as_bytes(), 0o600).unwrap();
        (folder, path)
    }

    fn run(action: TokenAction, source: &Source, typed: &str) -> Result<String, SecretError> {
        with_grace(action, None, source, typed).map(|(shown, _)| shown)
    }

    fn with_grace(
        action: TokenAction,
        grace: Option<u64>,
        source: &Source,
        typed: &str,
    ) -> Result<(String, Option<Timestamp>), SecretError> {
        let mut out = Vec::new();
        let grace = grace.map(Duration::from_secs);
        let until = token(action, grace, source, || Ok(typed.to_owned()), &mut out)?;
        Ok((String::from_utf8(out).unwrap(), until))
    }

    #[test]
    fn with_a_grace_the_token_before_stays_until_then_or_the_next_change() {
        let (_folder, path) = file();
        let from = source(&path, None);
        let (shown, until) = with_grace(TokenAction::Reset, Some(600), &from, "").unwrap();
        assert!(shown.starts_with("New Token: lightd_") && shown.lines().count() == 1, "{shown}");
        let left = until.unwrap().as_second() - UnixSeconds::now().0;
        assert!((599..=602).contains(&left), "{left}");
        let previous = from.load().unwrap().authorization.previous.unwrap();
        assert_eq!((previous.token.expose(), Some(previous.until)), (OLD, until));
        assert_eq!(with_grace(TokenAction::What, None, &from, "").unwrap().1, until);
        let masked = from.load().unwrap().masked();
        assert_eq!(masked.pointer("/authorization/previous_token"), Some(&"***".into()));
        run(TokenAction::Reset, &from, "").unwrap();
        assert_eq!(from.load().unwrap().authorization.previous, None, "without one it ends");
    }

    #[test]
    fn a_grace_for_nothing_is_refused_and_nothing_is_written() {
        let (folder, path) = file();
        let before = std::fs::read_to_string(&path).unwrap();
        let variable = ("LIGHTD_AUTHORIZATION__PREVIOUS_TOKEN".into(), OLD.into());
        let overridden = Source::new(path.clone(), [variable], Overrides::default());
        let good = "lightd_good_0123456789";
        for (action, from, typed) in [
            (TokenAction::What, &source(&path, None), ""),
            (TokenAction::Set, &source(&path, None), "lightd_short"),
            (TokenAction::Set, &overridden, good),
            (TokenAction::Reset, &source(&folder.path().join("none.json"), None), ""),
        ] {
            let refused = with_grace(action, Some(60), from, typed).unwrap_err();
            assert_eq!(refused.exit_code(), 2, "{refused}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        assert!(!folder.path().join("none.json").exists());
        let (_, until) = with_grace(TokenAction::Set, Some(60), &source(&path, None), OLD).unwrap();
        assert_eq!(until, None, "the same again needs none");
    }

    #[test]
    fn what_shows_the_token_that_counts() {
        let (_folder, path) = file();
        let shown = run(TokenAction::What, &source(&path, None), "").unwrap();
        assert_eq!(shown, format!("Current Token: {OLD}\n"));
        let shown = run(TokenAction::What, &source(&path, Some("lightd_env")), "").unwrap();
        assert_eq!(shown, "Current Token: lightd_env\n");
    }

    #[test]
    fn reset_and_set_change_the_token_and_nothing_else() {
        let (_folder, path) = file();
        let from = source(&path, None);
        let shown = run(TokenAction::Reset, &from, "").unwrap();
        let new = shown.strip_prefix("New Token: ").unwrap().trim_end();
        assert!(is_token(new) && new != OLD);
        assert_eq!(run(TokenAction::What, &from, "").unwrap(), format!("Current Token: {new}\n"));
        let set = "lightd_set_0123456789";
        assert_eq!(run(TokenAction::Set, &from, set).unwrap(), format!("New Token: {set}\n"));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let config = from.load().unwrap();
        assert_eq!((config.authorization.token.expose(), config.server.address.port()), (set, 1));
    }

    #[test]
    fn what_cannot_count_is_refused_and_nothing_is_written() {
        let (_folder, path) = file();
        let before = std::fs::read_to_string(&path).unwrap();
        let overridden = source(&path, Some("lightd_env_0123456789"));
        for (action, from, typed) in [
            (TokenAction::Set, &source(&path, None), "lightd_short"),
            (TokenAction::Set, &source(&path, None), ""),
            (TokenAction::Set, &overridden, "lightd_good_0123456789"),
            (TokenAction::Reset, &overridden, ""),
        ] {
            assert_eq!(run(action, from, typed).unwrap_err().exit_code(), 2);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn of_several_resets_at_once_each_goes_on_from_the_one_before() {
        let (_folder, path) = file();
        // What is shown is shown under the lock: in the order in which it was written.
        let (shown, told) = std::sync::mpsc::channel();
        struct Shown(std::sync::mpsc::Sender<Vec<u8>>);
        impl Write for Shown {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                self.0.send(text.to_vec()).unwrap();
                Ok(text.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let (from, mut out) = (source(&path, None), Shown(shown.clone()));
                let grace = Some(Duration::from_secs(600));
                let ask = || Ok(String::new());
                scope
                    .spawn(move || token(TokenAction::Reset, grace, &from, ask, &mut out).unwrap());
            }
        });
        drop(shown);
        let pieces: Vec<String> =
            told.iter().map(|text| String::from_utf8(text).unwrap().trim().to_owned()).collect();
        let made: Vec<&String> = pieces.iter().filter(|text| is_token(text)).collect();
        assert_eq!(made.len(), 8, "{pieces:?}");
        let authorization = source(&path, None).load().unwrap().authorization;
        assert_eq!(authorization.token.expose(), made[7]);
        assert_eq!(authorization.previous.unwrap().token.expose(), made[6]);
    }

    #[test]
    fn a_missing_file_is_made_by_a_reset_and_not_by_a_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etc/lightd/config.json");
        let from = source(&path, None);
        assert_eq!(run(TokenAction::What, &from, "").unwrap_err().exit_code(), 1);
        assert!(!path.exists());
        let shown = run(TokenAction::Reset, &from, "").unwrap();
        let new = shown.strip_prefix("New Token: ").unwrap().trim_end();
        assert_eq!(from.load().unwrap().authorization.token.expose(), new);
        let from = source(&folder.path().join("other/config.json"), None);
        admin_key(AdminKeyAction::Reset, &from, &mut Vec::new()).unwrap();
    }

    #[test]
    fn the_admin_key_is_shown_and_changed() {
        let (_folder, path) = file();
        let from = source(&path, None);
        let mut out = Vec::new();
        let none = admin_key(AdminKeyAction::What, &from, &mut out);
        assert!(matches!(none, Err(SecretError::Missing(_))));
        admin_key(AdminKeyAction::Reset, &from, &mut out).unwrap();
        admin_key(AdminKeyAction::What, &from, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let file: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let key = file["authorization"]["admin_key"].as_str().unwrap();
        assert_eq!(text, format!("New Admin Key: {key}\nCurrent Admin Key: {key}\n"));
    }
}
