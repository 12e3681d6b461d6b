//! `lightd --token …` and `lightd admin-key …`: the secrets in the configuration file, shown and
//! changed.
//!
//! A change is one atomic write; a running daemon sees a new token by itself. What cannot count is
//! refused before anything is written: a token of the wrong format, and any change while the
//! environment overrides what the file says.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::Value;

use super::{AdminKeyAction, TokenAction};
use crate::config::source::{Source, new_token};
use crate::config::{ConfigError, edit};
use crate::domain::access::{TOKEN_FORMAT, is_token};
use crate::util::secret::random_text;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("the token {TOKEN_FORMAT}; nothing was changed")]
    BadFormat,
    #[error("{0} overrides what the file says, so a change would not count; nothing was changed")]
    Overridden(String),
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
            Self::BadFormat | Self::Overridden(_) => 2,
            Self::Missing(_) | Self::Config(_) | Self::Terminal(_) => 1,
        }
    }
}

/// Answers `--token …`; `ask` is called for the new token of `set`.
pub(crate) fn token(
    action: TokenAction,
    source: &Source,
    ask: impl FnOnce() -> io::Result<String>,
    out: &mut dyn Write,
) -> Result<(), SecretError> {
    const KEY: &str = "authorization.token";
    let new = match action {
        TokenAction::What => {
            let token = present(source, KEY, "token")?
                .ok_or(SecretError::Missing("lightd --token reset"))?;
            return Ok(writeln!(out, "Current Token: {token}")?);
        }
        TokenAction::Reset => {
            refuse_if_overridden(source, KEY)?;
            new_token()
        }
        TokenAction::Set => {
            refuse_if_overridden(source, KEY)?;
            let token = ask()?;
            if !is_token(&token) {
                return Err(SecretError::BadFormat);
            }
            token
        }
    };
    store(source, "token", &new)?;
    Ok(writeln!(out, "New Token: {new}")?)
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
            let key = present(source, KEY, "admin_key")?
                .ok_or(SecretError::Missing("lightd admin-key reset"))?;
            Ok(writeln!(out, "Current Admin Key: {key}")?)
        }
        AdminKeyAction::Reset => {
            refuse_if_overridden(source, KEY)?;
            let new = random_text();
            store(source, "admin_key", &new)?;
            Ok(writeln!(out, "New Admin Key: {new}")?)
        }
    }
}

fn refuse_if_overridden(source: &Source, key: &str) -> Result<(), SecretError> {
    source.env_override(key).map_or(Ok(()), |variable| Err(SecretError::Overridden(variable)))
}

/// What counts now: the environment's, else the file's. Reads the file as it is, so that a mistake
/// elsewhere in it does not hide the token.
fn present(source: &Source, key: &str, name: &str) -> Result<Option<String>, SecretError> {
    if let Some(value) = source.env_value(key) {
        return Ok(Some(value.to_owned()));
    }
    let file = source.read_json()?;
    let found = file.pointer(&format!("/authorization/{name}")).and_then(Value::as_str);
    Ok(found.filter(|text| !text.is_empty()).map(str::to_owned))
}

fn store(source: &Source, name: &str, value: &str) -> Result<(), SecretError> {
    source.ensure_exists()?;
    Ok(edit::set_text(source.path(), "authorization", name, value)?)
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
        let mut out = Vec::new();
        token(action, source, || Ok(typed.to_owned()), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
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
    fn a_missing_file_is_made_by_a_reset_and_not_by_a_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let from = source(&path, None);
        assert_eq!(run(TokenAction::What, &from, "").unwrap_err().exit_code(), 1);
        assert!(!path.exists());
        let shown = run(TokenAction::Reset, &from, "").unwrap();
        let new = shown.strip_prefix("New Token: ").unwrap().trim_end();
        assert_eq!(from.load().unwrap().authorization.token.expose(), new);
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
