use std::os::unix::fs::symlink;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::files::progress::Progress;
use crate::files::search::{Bound, Found, Match, Search};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn try_search(
    scratch: &Scratch,
    folder: &str,
    name: Option<&str>,
    content: Option<&str>,
) -> Result<Found, FileError> {
    let search = Search::new(rel(folder), name, content, 100, soon())?;
    scratch.volume.search(&search, &Progress::default())
}

fn paths(found: &Found) -> Vec<&str> {
    let mut paths: Vec<&str> = found.hits.iter().map(|hit| hit.path.as_str()).collect();
    paths.sort_unstable();
    paths
}

fn tree() -> Scratch {
    let scratch = Scratch::new();
    for (path, content) in [
        ("server.properties", "port=25565\nmotd=Hällo wörld\r\n\nPORT=1".as_bytes()),
        ("plugins/Port.yml", b"name: x"),
        ("plugins/deep/er/Report.YML", b"port: 3"),
        ("plugins/jar.jar", b"port\0binary"),
        (".lightd-x/port.yml", b"port"),
    ] {
        put(&scratch.path(path), content);
    }
    symlink("../outside", scratch.path("port-link")).expect("symlink");
    let mode = Mode::from_raw_mode(0o666);
    let fifo = scratch.path("port-fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
        .expect("mkfifo");
    scratch
}

#[test]
fn names_are_found_by_substring_and_by_pattern() {
    let scratch = tree();
    for (folder, name, want) in [
        (
            "",
            "port",
            &["plugins/Port.yml", "plugins/deep/er/Report.YML", "port-fifo", "port-link"][..],
        ),
        ("", "*.yml", &["plugins/Port.yml", "plugins/deep/er/Report.YML"]),
        ("", "p*", &["plugins", "plugins/Port.yml", "port-fifo", "port-link"]),
        ("", "plugins/*.yml", &["plugins/Port.yml"]),
        ("", "plugins/**/*.yml", &["plugins/Port.yml", "plugins/deep/er/Report.YML"]),
        ("plugins", "port", &["plugins/Port.yml", "plugins/deep/er/Report.YML"]),
        ("plugins", "/*.yml", &["plugins/Port.yml"]),
        ("", "secret", &[]),
    ] {
        let found = try_search(&scratch, folder, Some(name), None).expect("search");
        assert_eq!((paths(&found), found.ended_by), (want.to_vec(), None), "{folder} {name}");
    }
}

#[test]
fn contents_are_found_with_their_place_and_only_in_text() {
    let scratch = tree();
    let found = try_search(&scratch, "", None, Some("(?i)port")).expect("search");
    assert_eq!(paths(&found), ["plugins/deep/er/Report.YML", "server.properties"]);
    let hit = found.hits.iter().find(|hit| hit.path.starts_with('s')).expect("found");
    let place = |line, excerpt: &str| Match { line, column: 1, excerpt: excerpt.to_owned() };
    assert_eq!(hit.matches, [place(1, "port=25565"), place(4, "PORT=1")]);
    let found = try_search(&scratch, "", Some("*.properties"), Some("w.rld$")).expect("search");
    let want = Match { line: 2, column: 12, excerpt: "motd=Hällo wörld".to_owned() };
    assert_eq!(found.hits[0].matches, [want]);
    for (name, content) in [(None, "("), (None, "a{1000}{1000}"), (Some("[a"), "x")] {
        let refused = try_search(&scratch, "", name, Some(content));
        assert!(matches!(refused, Err(FileError::InvalidPattern { .. })), "{content}");
    }
    let link = try_search(&scratch, "port-link", Some("secret"), None);
    assert!(matches!(link, Err(FileError::Escape { .. })));
}

#[test]
fn long_lines_and_long_files_cost_no_more_than_their_bounds() {
    let scratch = Scratch::new();
    let mut long = vec![b'x'; 3 << 20];
    long.extend_from_slice(b"needle");
    put(&scratch.path("long"), &long);
    let mut large = b"line\n".repeat(5 << 20);
    large.extend_from_slice(b"needle\n");
    put(&scratch.path("large"), &large);
    put(&scratch.path("many"), &b"needle\n".repeat(1000));
    let found = try_search(&scratch, "", None, Some("needle")).expect("search");
    assert_eq!((paths(&found), found.cut_files), (vec!["long", "many"], 1));
    let matches =
        |path: &str| &found.hits.iter().find(|hit| hit.path == path).expect("found").matches;
    assert_eq!((matches("many").len(), matches("long")[0].line), (50, 1));
    assert!(matches("long")[0].excerpt.chars().count() <= 200);
}

#[test]
fn a_search_ends_at_its_bounds_and_when_nobody_waits() {
    let scratch = Scratch::new();
    for index in 0..20 {
        put(&scratch.path(&format!("file-{index}")), b"x");
    }
    let search = |limit, until| {
        let search = Search::new(rel(""), Some("file"), None, limit, until).expect("a search");
        scratch.volume.search(&search, &Progress::default()).expect("search")
    };
    let few = search(5, soon());
    assert_eq!((few.hits.len(), few.ended_by), (5, Some(Bound::Limit)));
    assert_eq!(search(20, soon()).ended_by, None, "all of them is no bound");
    assert_eq!(search(5, Instant::now()).ended_by, Some(Bound::Time));
    let gone = Progress::default();
    gone.cancel();
    let search = Search::new(rel(""), Some("file"), None, 5, soon()).expect("a search");
    assert!(matches!(scratch.volume.search(&search, &gone), Err(FileError::Cancelled)));
}
