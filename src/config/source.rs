//! Where a configuration comes from: a file, the environment over it, the command line over both.
//!
//! Read whole at the start, by the verbs of the command line, and again with each reload. Everything
//! that is wrong is found at once, each by its key; nothing of a wrong configuration is used. Only a
//! first start writes: a file where there is none, and a token where that has none.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::edit;
use super::error::{ConfigError, ConfigProblem};
use super::raw::Raw;
use super::reload::is_at_or_below;
use super::{Config, validate};
use crate::util::atomic_file;
use crate::util::secret::random_text;
use crate::util::serde_words::without_text;

const ENV_PREFIX: &str = "LIGHTD_";
const SYSTEM_PATH: &str = "/etc/lightd/config.json";
const LOCAL_PATH: &str = "config.json";
/// No real configuration comes near; a wrong path that names a disk image should not be read whole.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// What the command line sets over file and environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) port: Option<u16>,
    pub(crate) host: Option<IpAddr>,
    pub(crate) enable_tls: Option<bool>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) disable_auth: Option<bool>,
}

/// Everything that a configuration is read from; read again on each reload.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    path: PathBuf,
    env: Vec<(String, String)>,
    overrides: Overrides,
}

impl Source {
    /// `env` is the whole environment; only `LIGHTD_…` is kept.
    pub(crate) fn new(
        path: PathBuf,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        overrides: Overrides,
    ) -> Self {
        let ours = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok()?;
            let rest = name.strip_prefix(ENV_PREFIX)?.to_owned();
            Some((rest, value.to_string_lossy().into_owned()))
        };
        Self { path, env: env.into_iter().filter_map(ours).collect(), overrides }
    }

    /// The file named on the command line, else the one in the working folder, else the system's. If
    /// none exists, the first start makes the one in the working folder.
    pub(crate) fn find(named: Option<PathBuf>) -> PathBuf {
        let (local, system) = (Path::new(LOCAL_PATH), Path::new(SYSTEM_PATH));
        // One in a folder that only its owner may enter is there too; reading it then says what to do.
        let may_exist = |path: &Path| path.try_exists().unwrap_or(true);
        named.unwrap_or_else(|| {
            if !local.exists() && may_exist(system) { system.into() } else { local.into() }
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The environment variable that sets this key, if one does.
    pub(crate) fn env_override(&self, key: &str) -> Option<String> {
        self.env_value(key).map(|_| format!("{ENV_PREFIX}{}", variable_of(key)))
    }

    /// What the environment sets this key to.
    pub(crate) fn env_value(&self, key: &str) -> Option<&str> {
        let wanted = variable_of(key);
        self.env.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str())
    }

    /// The file's content, without a look at what it means.
    pub(crate) fn read_json(&self) -> Result<Value, ConfigError> {
        self.parse_json(&self.read()?)
    }

    /// Makes the file if there is none.
    pub(crate) fn ensure_exists(&self) -> Result<(), ConfigError> {
        match self.read() {
            Err(ConfigError::Missing { .. }) => self.create().map(drop),
            other => other.map(drop),
        }
    }

    /// Reads and validates. Never writes.
    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        self.resolve(self.read_json()?, &[])
    }

    /// Reads and validates for a running daemon: what a start would work with, and what counts until then,
    /// with these keys as they are `kept`. Both must be valid: what is live may not go with what is kept.
    pub(super) fn load_beside(
        &self,
        kept: &[(&str, Value)],
    ) -> Result<(Config, Config), ConfigError> {
        let file = self.read_json()?;
        let at_start = self.resolve(file.clone(), &[])?;
        let mut until_then = self.resolve(file, kept);
        if let Err(ConfigError::Invalid { problems, .. }) = &mut until_then {
            for problem in problems {
                problem.message.push_str(" (as long as what waits for a restart is as it was)");
            }
        }
        Ok((at_start, until_then?))
    }

    /// Reads and validates for a start: makes the file if there is none, and the node's token if it has
    /// none yet (as in a copy of the example).
    pub(crate) fn load_or_create(&self) -> Result<Config, ConfigError> {
        self.ensure_exists()?;
        let mut file = self.read_json()?;
        if self.lacks_token(&file) {
            let _turn = edit::Turn::wait(&self.path)?;
            // A command may have set one meanwhile.
            if self.lacks_token(&self.read_json()?) {
                edit::set(&self.path, "authorization", &[("token", new_token().into())])?;
            }
            file = self.read_json()?;
        }
        self.resolve(file, &[])
    }

    /// What a start would work with: as [`Source::load_or_create`], with nothing written.
    pub(crate) fn preview(&self) -> Result<Config, ConfigError> {
        let mut file = self.read_json()?;
        if self.lacks_token(&file) {
            set(&mut file, "authorization.token", new_token().into());
        }
        self.resolve(file, &[])
    }

    fn lacks_token(&self, file: &Value) -> bool {
        // One of the wrong type is a problem to report, not one to overwrite.
        file.pointer("/authorization/token").is_none_or(|token| token == "")
            && file.get("authorization").is_none_or(Value::is_object)
            && self.env_override("authorization.token").is_none()
    }

    fn create(&self) -> Result<String, ConfigError> {
        let failed = |source| ConfigError::Write { path: self.path.clone(), source };
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let content = first_content();
        match atomic_file::create(&self.path, content.as_bytes(), 0o600) {
            Ok(()) => Ok(content),
            // Another process was faster; its file is as good.
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => self.read(),
            Err(why) => Err(failed(why)),
        }
    }

    fn read(&self) -> Result<String, ConfigError> {
        read_text(&self.path)
    }

    fn parse_json(&self, text: &str) -> Result<Value, ConfigError> {
        serde_json::from_str(text)
            .map_err(|source| ConfigError::NotJson { path: self.path.clone(), source })
    }

    /// `kept` are keys, or sections, that are not as they are written.
    fn resolve(&self, mut value: Value, kept: &[(&str, Value)]) -> Result<Config, ConfigError> {
        let mut problems = Vec::new();
        let mut origins = HashMap::new();
        self.apply_env(&mut value, &mut origins, &mut problems);
        self.apply_overrides(&mut value, &mut origins);
        for (key, kept) in kept {
            set(&mut value, key, kept.clone());
        }
        let raw = typed(value, &mut problems);
        let mut meanings = Vec::new();
        let config = validate::validate(raw, &mut meanings);
        // A default that stands in for what was not readable is nobody's mistake.
        let unreadable =
            |key: &str| problems.iter().any(|p| p.key == "." || is_at_or_below(key, &p.key));
        meanings.retain(|problem| !unreadable(&problem.key));
        problems.extend(meanings);
        if problems.is_empty() {
            return Ok(config);
        }
        for problem in &mut problems {
            problem.origin = origins.get(&problem.key).cloned();
        }
        Err(ConfigError::Invalid { path: self.path.clone(), problems })
    }

    fn apply_env(
        &self,
        value: &mut Value,
        origins: &mut HashMap<String, String>,
        problems: &mut Vec<ConfigProblem>,
    ) {
        let defaults = defaults();
        for (name, text) in &self.env {
            let variable = format!("{ENV_PREFIX}{name}");
            let key = name.to_ascii_lowercase().replace("__", ".");
            match defaults.pointer(&pointer(&key)) {
                Some(default) if key.contains('.') && !default.is_object() => {
                    set(value, &key, from_env(default, text));
                    origins.insert(key, variable);
                }
                _ if looks_like_a_key(&defaults, name) => problems.push(ConfigProblem {
                    key: variable,
                    origin: None,
                    message:
                        "sets no key of the configuration; the names of sections and keys are \
                              joined by two underscores, as in LIGHTD_SERVER__PORT"
                            .to_owned(),
                }),
                // LIGHTD_CONFIG and whatever else is not about the file's content.
                _ => {}
            }
        }
    }

    fn apply_overrides(&self, value: &mut Value, origins: &mut HashMap<String, String>) {
        let mut put = |key: &str, flag: &str, new: Option<Value>| {
            if let Some(new) = new {
                set(value, key, new);
                origins.insert(key.to_owned(), flag.to_owned());
            }
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into());
        let flags = &self.overrides;
        let auth_off = flags.disable_auth == Some(true);
        let loopback = auth_off.then(|| "127.0.0.1".into());
        put("server.host", "--disable-auth", loopback);
        put("server.host", "--host", flags.host.map(|host| host.to_string().into()));
        put("server.port", "--port", flags.port.map(Into::into));
        put("server.tls.enabled", "--enable-tls", flags.enable_tls.map(Into::into));
        put("server.tls.cert", "--tls-cert", path(&flags.tls_cert));
        put("server.tls.key", "--tls-key", path(&flags.tls_key));
        let enabled = flags.disable_auth.map(|disabled| (!disabled).into());
        put("authorization.enabled", "--disable-auth", enabled);
    }
}

fn variable_of(key: &str) -> String {
    key.to_ascii_uppercase().replace('.', "__")
}

/// A random token of the node.
pub(crate) fn new_token() -> String {
    format!("{}{}", crate::domain::access::TOKEN_PREFIX, random_text())
}

pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read as _;
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            return Err(ConfigError::Missing { path });
        }
        Err(why) => return Err(failed(why)),
    };
    let mut text = String::new();
    file.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// The keys that a person is likely to look for first; all others have their defaults.
fn first_content() -> String {
    let (token, admin_key) = (new_token(), random_text());
    let content = include_str!("../../config.example.json");
    let with = |text: String, key: &str, value: &str| {
        text.replacen(&format!("\"{key}\": \"\""), &format!("\"{key}\": \"{value}\""), 1)
    };
    // The first "token" of the example is the node's.
    with(with(content.to_owned(), "token", &token), "admin_key", &admin_key)
}

pub(super) fn defaults() -> Value {
    serde_json::to_value(Raw::default()).expect("invariant: the defaults are JSON")
}

pub(super) fn pointer(key: &str) -> String {
    format!("/{}", key.replace('.', "/"))
}

/// Whether a variable was meant to set a key: it begins with a section's name.
fn looks_like_a_key(defaults: &Value, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("__")
        || defaults.as_object().is_some_and(|sections| {
            sections.keys().any(|section| {
                name.strip_prefix(section.as_str()).is_some_and(|rest| rest.starts_with('_'))
            })
        })
}

/// A variable's text as the type that the key's default has. What does not fit stays a text, and is
/// refused as such where types are checked.
fn from_env(default: &Value, text: &str) -> Value {
    match default {
        Value::String(_) | Value::Null => text.into(),
        Value::Array(_) if !text.trim_start().starts_with('[') => text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(Value::from)
            .collect(),
        _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

/// Sets a key, making its sections. A section that is no object is left to the check of types.
fn set(value: &mut Value, key: &str, new: Value) {
    let mut at = value;
    let mut names = key.split('.').peekable();
    while let Some(name) = names.next() {
        let Some(section) = at.as_object_mut() else { return };
        if names.peek().is_none() {
            section.insert(name.to_owned(), new);
            return;
        }
        at = section.entry(name).or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
}

/// Reads the typed form. A value that does not fit is reported and left out, and what remains is read
/// again, so that one start shows every problem.
fn typed(mut value: Value, problems: &mut Vec<ConfigProblem>) -> Raw {
    only_objects("", &mut value, &defaults(), problems);
    loop {
        match serde_path_to_error::deserialize::<_, Raw>(&value) {
            Ok(raw) => return raw,
            Err(error) => {
                let key = error.path().to_string();
                let message = in_words(&error.inner().to_string());
                let removed = remove(&mut value, error.path());
                problems.push(ConfigProblem { key, origin: None, message });
                if !removed {
                    return Raw::default();
                }
            }
        }
    }
}

/// Sections must be objects. Serde would read a list as a section's values in their order.
fn only_objects(key: &str, value: &mut Value, default: &Value, problems: &mut Vec<ConfigProblem>) {
    let Some(sections) = default.as_object() else { return };
    let Some(given) = value.as_object_mut() else {
        let key = if key.is_empty() { "." } else { key }.to_owned();
        let message = "must be an object, { … }".to_owned();
        problems.push(ConfigProblem { key, origin: None, message });
        *value = Value::Object(serde_json::Map::new());
        return;
    };
    for (name, default) in sections {
        if let Some(value) = given.get_mut(name) {
            let dot = if key.is_empty() { "" } else { "." };
            only_objects(&format!("{key}{dot}{name}"), value, default, problems);
        }
    }
}

/// Takes out what a path points at; all of a list when it points into one, so that the places of
/// other entries do not change.
fn remove(value: &mut Value, path: &serde_path_to_error::Path) -> bool {
    use serde_path_to_error::Segment;
    let names = path.iter().map_while(|segment| match segment {
        Segment::Map { key } => Some(key.as_str()),
        Segment::Seq { .. } | Segment::Enum { .. } | Segment::Unknown => None,
    });
    let mut at = value;
    let mut names = names.peekable();
    while let Some(name) = names.next() {
        let Some(section) = at.as_object_mut() else { return false };
        if names.peek().is_none() {
            return section.remove(name).is_some();
        }
        match section.get_mut(name) {
            Some(next) => at = next,
            None => return false,
        }
    }
    false
}

fn in_words(message: &str) -> String {
    without_text(message)
        .replace("unknown field", "unknown key")
        .replace("missing field", "missing key")
        .replace("expected path string", "expected a path")
}
