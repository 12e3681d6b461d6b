use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::error::ConfigProblem;
use super::live::Live;
use super::reload::{LIVE, RESTART, is_at_or_below, keys};
use super::source::{Overrides, Source, defaults};
use super::*;

const TOKEN: &str = "lightd_0123456789abcdef";

fn file(content: &Value) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    write(&path, &serde_json::to_string_pretty(content).unwrap());
    (folder, path)
}

fn write(path: &Path, text: &str) {
    crate::util::atomic_file::write(path, text.as_bytes(), 0o600).unwrap();
}

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn load_with(
    content: Value,
    variables: &[(&str, &str)],
    overrides: Overrides,
) -> Result<Config, ConfigError> {
    let mut content = content;
    if content.pointer("/authorization/token").is_none() && content["authorization"].is_null() {
        content["authorization"] = json!({"token": TOKEN});
    }
    let (_folder, path) = file(&content);
    Source::new(path, env(variables), overrides).load()
}

fn load(content: Value) -> Result<Config, ConfigError> {
    load_with(content, &[], Overrides::default())
}

fn problems(result: Result<Config, ConfigError>) -> Vec<ConfigProblem> {
    match result {
        Err(ConfigError::Invalid { problems, .. }) => problems,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("was taken as valid"),
    }
}

fn problem_keys(result: Result<Config, ConfigError>) -> Vec<String> {
    let mut keys: Vec<String> = problems(result).into_iter().map(|problem| problem.key).collect();
    keys.sort();
    keys
}

#[test]
fn the_example_holds_every_key_with_its_default() {
    let example: Value = serde_json::from_str(include_str!("../../config.example.json")).unwrap();
    assert_eq!(keys(&example), keys(&defaults()));
}

#[test]
fn every_key_either_applies_live_or_needs_a_restart() {
    for key in keys(&defaults()).keys() {
        let is_in = |list: &[&str]| list.iter().any(|section| is_at_or_below(key, section));
        assert!(is_in(LIVE) != is_in(RESTART), "{key}");
    }
}

#[test]
fn an_almost_empty_file_is_the_defaults() {
    let config = load(json!({})).unwrap();
    assert_eq!(config.server.address.to_string(), "0.0.0.0:8070");
    assert_eq!(config.docker.user, RunAs { uid: 988, gid: 988 });
    assert_eq!(config.storage.volumes_path, Path::new("/var/lib/lightd/volumes"));
    assert_eq!(config.install.timeout, Duration::from_secs(1800));
    assert!(config.remote.panel.is_none());
    assert_eq!(config.limits.pids, 512);
}

#[test]
fn all_problems_are_reported_at_once_with_their_keys() {
    let found = load(json!({
        "server": {"host": "everywhere", "port": 70000, "portt": 1},
        "authorization": {"token": "short"},
        "docker": {"user": "root", "allowed_mounts": ["/ok", "not/absolute", "/a/../b"]},
        "network": {"ports": [{"ip": "0.0.0.0"}], "subnets": "10.86.0.1/16", "allow_host": ["x"]},
        "install": {"timeout": "soon"},
        "remote": {"enabled": true, "url": "https://u:p@panel.example"},
        "log": {"level": "loud"},
        "nonsense": true,
    }));
    assert_eq!(
        problem_keys(found),
        [
            "authorization.token",
            "docker.allowed_mounts[1]",
            "docker.allowed_mounts[2]",
            "docker.user",
            "install.timeout",
            "log.level",
            "network.allow_host[0]",
            "network.ports[0]",
            "network.subnets",
            "nonsense",
            "remote.token",
            "remote.url",
            "server.host",
            "server.port",
            "server.portt",
        ]
    );
}

#[test]
fn a_problem_says_what_was_expected_and_from_where() {
    let found = load_with(json!({}), &[("LIGHTD_SERVER__PORT", "many")], Overrides::default());
    let text = problems(found)[0].to_string();
    assert!(text.starts_with("server.port (from LIGHTD_SERVER__PORT): "), "{text}");
    assert!(text.contains("a whole number from 0 to 65535"), "{text}");
    let text = problems(load(json!({"servr": {}})))[0].to_string();
    assert!(text.starts_with("servr: unknown key") && text.contains("`server`"), "{text}");
    let section = problems(load(json!({"server": ["0.0.0.0", 1]})));
    assert_eq!(section[0].to_string(), "server: must be an object, { … }");
    let (_folder, path) = file(&json!([]));
    let whole = Source::new(path.clone(), [], Overrides::default()).load().unwrap_err().to_string();
    assert!(whole.ends_with(".: must be an object, { … }"), "{whole}");
    write(&path, "{ \"server\": ");
    let error = Source::new(path, [], Overrides::default()).load().unwrap_err();
    assert!(matches!(error, ConfigError::NotJson { .. }), "{error}");
}

#[test]
fn the_environment_overrides_the_file_and_the_command_line_both() {
    let variables = [
        ("LIGHTD_SERVER__PORT", "8071"),
        ("LIGHTD_SERVER__HOST", "127.0.0.2"),
        ("LIGHTD_AUTHORIZATION__ALLOWED_ORIGINS", "https://a.example/, http://b:81"),
        ("LIGHTD_STORAGE__VOLUMES_PATH", "/srv/v"),
        ("LIGHTD_REMOTE__POWER_EVENTS", "true"),
        ("LIGHTD_NETWORK__PORTS", r#"[{"ip":"::1","from":1,"to":9,"protocol":"udp"}]"#),
        ("LIGHTD_CONFIG", "/elsewhere"),
        ("OTHER", "1"),
    ];
    let overrides = Overrides { host: Some("::1".parse().unwrap()), ..Overrides::default() };
    let config = load_with(json!({"server": {"port": 1}}), &variables, overrides).unwrap();
    assert_eq!(config.server.address.to_string(), "[::1]:8071");
    assert_eq!(config.authorization.allowed_origins, ["https://a.example", "http://b:81"]);
    assert_eq!(config.storage.volumes_path, Path::new("/srv/v"));
    assert!(config.remote.power_events);
    assert_eq!(config.network.ports[0].ports, 1..=9);
    assert_eq!(config.network.ports[0].protocol, crate::domain::spec::Protocol::Udp);
}

#[test]
fn a_variable_that_sets_nothing_is_a_problem() {
    let variables =
        [("LIGHTD_SERVER_PORT", "1"), ("LIGHTD_SERVER__PRT", "1"), ("LIGHTD_SERVER__TLS", "{}")];
    assert_eq!(
        problem_keys(load_with(json!({}), &variables, Overrides::default())),
        ["LIGHTD_SERVER_PORT", "LIGHTD_SERVER__PRT", "LIGHTD_SERVER__TLS"]
    );
}

#[test]
fn no_authorization_only_on_loopback() {
    let off = |host: Option<&str>| Overrides {
        disable_auth: Some(true),
        host: host.map(|host| host.parse().unwrap()),
        ..Overrides::default()
    };
    let config = load_with(json!({}), &[], off(None)).unwrap();
    assert!(!config.authorization.enabled);
    assert_eq!(config.server.address.ip().to_string(), "127.0.0.1");
    assert!(load_with(json!({}), &[], off(Some("127.0.0.1"))).is_ok());
    let refused = load_with(json!({}), &[], off(Some("0.0.0.0")));
    assert_eq!(problem_keys(refused), ["authorization.enabled"]);
    let refused = load(json!({"authorization": {"enabled": false}}));
    assert_eq!(problem_keys(refused), ["authorization.enabled"]);
    let again = Overrides { disable_auth: Some(false), ..Overrides::default() };
    let file = json!({"authorization": {"enabled": false, "token": TOKEN}});
    assert!(load_with(file, &[], again).unwrap().authorization.enabled);
}

#[test]
fn the_first_start_makes_a_private_file_with_random_secrets() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/config.json");
    let source = Source::new(path.clone(), [], Overrides::default());
    assert!(matches!(source.load(), Err(ConfigError::Missing { .. })));
    let first = source.load_or_create().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert!(first.authorization.token.expose().len() > 40);
    assert!(first.remote.panel.is_none());
    let again = source.load_or_create().unwrap();
    assert_eq!(first.authorization.token, again.authorization.token);
    let raw: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert!(raw["authorization"]["admin_key"].as_str().unwrap().len() > 40);
    assert_eq!(raw.pointer("/remote/token"), Some(&json!("")));
}

#[test]
fn a_copy_of_the_example_gets_its_token_at_the_first_start() {
    let (_folder, path) = file(&json!({}));
    write(&path, include_str!("../../config.example.json"));
    let source = Source::new(path.clone(), [], Overrides::default());
    assert_eq!(problem_keys(source.load()), ["authorization.token"]);
    let before = std::fs::read_to_string(&path).unwrap();
    assert!(source.preview().is_ok(), "a start would make the token");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before, "nothing was written");
    let config = source.load_or_create().unwrap();
    assert_eq!(source.load().unwrap().authorization.token, config.authorization.token);
    // A token that is there and wrong is reported, not replaced.
    write(&path, r#"{"authorization": {"token": 5}}"#);
    assert_eq!(problem_keys(source.load_or_create()), ["authorization.token"]);
    assert_eq!(problem_keys(source.preview()), ["authorization.token"]);
    write(&path, r#"{"authorization": {"token": "x"}}"#);
    assert_eq!(problem_keys(source.load_or_create()), ["authorization.token"]);
}

#[test]
fn secrets_are_masked_where_the_configuration_is_shown() {
    let config = load(json!({
        "authorization": {"token": TOKEN, "admin_key": "a".repeat(30)},
        "remote": {"enabled": true, "url": "https://p.example/api", "token": "secret-of-panel",
            "signing_secret": "secret-of-signatures"},
    }))
    .unwrap();
    let shown = config.masked();
    assert_eq!(shown.pointer("/authorization/token"), Some(&json!("***")));
    assert_eq!(shown.pointer("/authorization/admin_key"), Some(&json!("***")));
    assert_eq!(shown.pointer("/remote/token"), Some(&json!("***")));
    assert_eq!(shown.pointer("/remote/signing_secret"), Some(&json!("***")));
    assert_eq!(shown.pointer("/remote/url"), Some(&json!("https://p.example/api")));
    let printed = format!("{config:?}");
    for secret in [TOKEN, "secret-of-panel", "secret-of-signatures"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

#[test]
fn an_edit_keeps_order_and_everything_else() {
    let (folder, path) = file(&json!({}));
    write(
        &path,
        r#"{"z": [1, {"b": 1.5, "a": null}], "authorization": {"y": true, "token": "t"}}"#,
    );
    edit::set(&path, "authorization", &[("token", TOKEN.into()), ("admin_key", "k".into())])
        .unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let compact: String = text.split_whitespace().collect();
    let want = r#"{"z":[1,{"b":1.5,"a":null}],"authorization":{"y":true,"token":"lightd_0123456789abcdef","admin_key":"k"}}"#;
    assert_eq!(compact, want);
    // Through a link, the file it points to is changed.
    let link = folder.path().join("link.json");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    edit::set(&link, "authorization", &[("token", "lightd_other".into())]).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(std::fs::read_to_string(&path).unwrap().contains("lightd_other"));
}

#[test]
fn a_reload_names_what_applies_and_what_waits() {
    let (_folder, path) = file(&json!({"authorization": {"token": TOKEN}}));
    let source = Source::new(path.clone(), [], Overrides::default());
    let live = Live::new(source.clone(), source.load().unwrap());
    let other = "lightd_other_0123456789";
    let changed = json!({
        "authorization": {"token": other},
        "server": {"port": 9},
        "network": {"allow_host": ["5432"], "bridge": "br9"},
    });
    write(&path, &changed.to_string());
    let changes = live.reload().unwrap();
    assert_eq!(changes.applied, ["network.allow_host", "authorization.token"]);
    assert_eq!(changes.needs_restart, ["network.bridge", "server.port"]);
    assert_eq!(live.current().authorization.token.expose(), other);
    let again = live.reload().unwrap();
    assert_eq!(again.applied, [] as [&str; 0]);
    assert_eq!(again.needs_restart, ["network.bridge", "server.port"], "still waiting");
    write(&path, r#"{"server": {"port": "x"}}"#);
    assert!(live.reload().is_err());
    assert_eq!(live.current().authorization.token.expose(), other, "nothing has changed");
}

#[test]
fn what_waits_for_a_restart_does_not_count_before_it() {
    let (_folder, path) = file(&json!({"authorization": {"token": TOKEN}}));
    let source = Source::new(path.clone(), [], Overrides::default());
    let live = Live::new(source.clone(), source.load().unwrap());
    let before = live.current();
    let changed = json!({
        "authorization": {"token": TOKEN, "max_tokens": 7},
        "server": {"host": "127.0.0.1", "port": 9, "max_body_bytes": 100_000},
        "docker": {"user": "5:6", "node": "other", "socket_path": "/other.sock"},
        "storage": {"base_path": "/other", "fsync": false},
        "console": {"ring_bytes": 100_000, "journal_max_age": "1h"},
        "network": {"bridge": "br9", "firewall": "off", "quarantine": "5s"},
        "ssh": {"port": 10},
        "log": {"format": "json"},
    });
    write(&path, &changed.to_string());
    let waits = live.reload().unwrap().needs_restart;
    assert!(waits.len() >= 12, "{waits:?}");
    let now = live.current();
    let kept = |config: &Config| -> Vec<_> {
        let is_kept = |key: &String| RESTART.iter().any(|kept| is_at_or_below(key, kept));
        keys(&config.masked()).into_iter().filter(|(key, _)| is_kept(key)).collect()
    };
    assert_eq!(kept(&now), kept(&before));
    assert_eq!(
        (&now.network.bridge, now.docker.user),
        (&before.network.bridge, before.docker.user)
    );
    assert_eq!(now.server.address, before.server.address);
    assert_eq!(now.own_addresses(), before.own_addresses());
    assert_eq!(now.authorization.token.expose(), TOKEN);
    assert_eq!((now.authorization.max_tokens, now.network.quarantine), (7, Duration::from_secs(5)));

    // Good at a start, and not for a daemon that listens on all addresses.
    let open = json!({
        "authorization": {"token": TOKEN, "enabled": false}, "server": {"host": "127.0.0.1"},
    });
    write(&path, &open.to_string());
    assert!(source.load().is_ok());
    let told = problems(live.reload().map(|_| source.load().unwrap()));
    assert!(told[0].message.contains("waits for a restart"), "{told:?}");
    assert!(live.current().authorization.enabled);
}

#[tokio::test]
async fn a_new_token_counts_without_a_reload_and_nothing_else_does() {
    let (_folder, path) = file(&json!({"authorization": {"token": TOKEN}}));
    let source = Source::new(path.clone(), [], Overrides::default());
    let live = Arc::new(Live::new(source.clone(), source.load().unwrap()));
    let mut changes = live.subscribe();
    let cancel = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    let (watched, until) = (Arc::clone(&live), cancel.clone());
    tasks.spawn(async move { watched.watch_file(until).await });
    let other = "lightd_other_0123456789";
    write(&path, &json!({"authorization": {"token": other}, "server": {"port": 9}}).to_string());
    let wait = changes.wait_for(|config| config.authorization.token.expose() == other);
    let config = tokio::time::timeout(Duration::from_secs(5), wait).await;
    let config = config.expect("the new token was not seen within 5 s").unwrap().clone();
    assert_eq!(config.server.address.port(), 8070);
    cancel.cancel();
    while tasks.join_next().await.is_some() {}
}
