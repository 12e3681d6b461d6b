//! Who may import whom: the table of the house, held against every file of `src/`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A module, and what of ours it may name. Itself and what lies in it are always allowed.
const TABLE: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("util", &[]),
    ("engine", &["domain", "util"]),
    ("cgroup", &["domain", "util"]),
    ("store", &["domain", "util"]),
    ("files", &["domain", "util"]),
    ("fetch", &["domain", "util"]),
    ("console", &["domain", "util"]),
    ("config", &["domain", "util"]),
    ("access", &["store", "domain", "util"]),
    ("network", &["engine", "store", "domain", "util"]),
    ("supervisor", &["engine", "cgroup", "store", "console", "files", "network", "domain", "util"]),
    ("volumes", &["supervisor", "store", "files", "domain", "util"]),
    ("panel", &["access", "supervisor", "files", "network", "store", "console", "domain", "util"]),
    (
        "api",
        &[
            "panel",
            "config",
            "access",
            "volumes",
            "supervisor",
            "engine",
            "store",
            "files",
            "fetch",
            "console",
            "network",
            "domain",
            "util",
        ],
    ),
    // Wiring: everything.
    ("app", &["*"]),
    ("cli", &["*"]),
    ("main", &["*"]),
    ("lib", &["*"]),
    ("telemetry", &["config", "util"]),
    ("shutdown", &["util"]),
];

/// A crate, and the only modules that name it.
const VENDORS: &[(&str, &[&str])] = &[
    ("bollard", &["engine"]),
    ("rusqlite", &["store"]),
    ("axum", &["api"]),
    ("hyper", &["api", "app", "cli", "engine"]),
    ("hyper_util", &["app", "cli", "engine"]),
    ("tokio_rustls", &["app", "cli"]),
    ("utoipa", &["api"]),
    ("utoipa_axum", &["api"]),
    ("utoipa_swagger_ui", &["api"]),
];

/// What a module may not name although it may name where that is: module, path in the crate, reason.
const NEVER: &[(&str, &[&str], &str)] = &[
    ("api", &["engine", "Engine"], "an engine call belongs into a command of the supervisor's"),
    ("panel", &["engine", "Engine"], "an engine call belongs into a command of the supervisor's"),
];

/// What is wrong, one line each: file, line, and what stands there.
#[derive(Default)]
struct Findings(String);

impl Findings {
    fn say(&mut self, file: &Path, line: usize, what: &str) {
        writeln!(self.0, "{}:{line}: {what}", file.display()).expect("memory");
    }
}

/// Every code that an answer may have, as the sources write it.
#[test]
fn the_table_of_codes_and_the_document_have_every_code_of_the_source() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).expect("a readable file");
    let (_, table) = readme.split_once("\n## Codes\n").expect("a table of codes");
    let (table, _) = table.split_once("\n## ").expect("an end of it");
    let made = "(?:malformed|conflict|unavailable|forbidden|too_many|coded)\\(\\s*\"([a-z_]+)\"";
    let made = regex::Regex::new(&format!("{made}|StatusCode::[A-Z_]+,\\s*\"([a-z_]+)\""))
        .expect("a regex");
    let mapped = regex::Regex::new("=> \"([a-z_]+)\",").expect("a regex");
    let mut files = rust_files(&root.join("src/api"));
    files.retain(|file| !file.starts_with(root.join("src/api/tests")));
    files.push(root.join("src/files/error.rs"));
    let mut codes = BTreeSet::new();
    for file in &files {
        let text = std::fs::read_to_string(file).expect("a readable file");
        let patterns = if file.ends_with("error.rs") { vec![&made, &mapped] } else { vec![&made] };
        for found in patterns.into_iter().flat_map(|pattern| pattern.captures_iter(&text)) {
            codes.extend(found.iter().skip(1).flatten().map(|code| code.as_str().to_owned()));
        }
    }
    // Fields of a request, in a match as codes are.
    codes.retain(|code| !["ip", "port", "count", "reserve"].contains(&code.as_str()));
    assert!(codes.len() > 60, "{codes:?}");
    let document =
        std::fs::read_to_string(root.join("docs/openapi.json")).expect("a readable file");
    let is_told = |code: &String| {
        // As one of an answer's codes, or in words where it is no answer's.
        document.contains(&format!("\"{code}\"")) || document.contains(&format!("`{code}`"))
    };
    let untold: Vec<&String> = codes.iter().filter(|code| !is_told(code)).collect();
    assert!(untold.is_empty(), "not in docs/openapi.json: {untold:?}");
    codes.retain(|code| !table.contains(&format!("`{code}`")));
    assert!(codes.is_empty(), "not in the README's table: {codes:?}");
}

#[test]
fn modules_import_only_what_stands_below_them() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut findings = Findings::default();
    let mut seen = BTreeSet::new();
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).expect("a readable file");
        (file, text)
    };
    let texts: Vec<_> = rust_files(&root).into_iter().map(read).collect();
    let tests = test_files(&root, &texts);
    for (file, text) in &texts {
        let relative = file.strip_prefix(&root).expect("beneath src").to_owned();
        let module = module_of(&relative);
        seen.insert(module.clone());
        if tests.iter().any(|test| file.starts_with(test)) {
            continue;
        }
        let shown = Path::new("src").join(&relative);
        let code = without_tests(text);
        assert!(!code.contains("crate as "), "{}: another name for the crate", shown.display());
        for (line, path) in paths_in(&code) {
            check(&mut findings, &shown, line, &module, depth_of(&relative), &path);
        }
    }
    let known: BTreeSet<String> = TABLE.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(seen, known, "the table of modules and the modules of src/ differ");
    assert!(findings.0.is_empty(), "imports that the table forbids:\n{}", findings.0);
}

fn check(
    findings: &mut Findings,
    file: &Path,
    line: usize,
    module: &str,
    depth: usize,
    path: &[String],
) {
    let allowed = TABLE.iter().find(|(name, _)| *name == module).map_or(&[][..], |(_, to)| to);
    let path = if path[0] == "self" { &path[1..] } else { path };
    let Some(first) = path.first().map(String::as_str) else { return };
    let supers = path.iter().take_while(|part| *part == "super").count();
    let target = match first {
        "crate" => path.get(1),
        // To the crate's root, and from there into another module. More than there are, in a module
        // inside the file, lead there as well.
        "super" if supers >= depth => path.get(supers),
        _ => None,
    };
    let names_root = first == "crate" || (first == "super" && supers >= depth);
    let target = target.map(String::as_str);
    if names_root && !allowed.contains(&"*") && matches!(target, None | Some("*" | "self")) {
        findings.say(file, line, &format!("{module} takes in the whole crate"));
    }
    if let Some(target) = target
        && target != module
        && !allowed.contains(&"*")
        && TABLE.iter().any(|(name, _)| *name == target)
        && !allowed.contains(&target)
    {
        findings.say(file, line, &format!("{module} names {target}"));
    }
    if let Some((_, _, why)) = NEVER.iter().find(|(from, to, _)| {
        *from == module && path.iter().skip(1).map(String::as_str).eq(to.iter().copied())
    }) {
        findings.say(file, line, &format!("{module} names {}: {why}", path[1..].join("::")));
    }
    if let Some((_, by)) = VENDORS.iter().find(|(vendor, _)| *vendor == first)
        && !by.contains(&module)
    {
        findings.say(file, line, &format!("{module} names {first}"));
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The top-level module that a file belongs to.
fn module_of(relative: &Path) -> String {
    let first = relative.components().next().expect("a name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// How many `super` lead from a file's module to the crate's root.
fn depth_of(relative: &Path) -> usize {
    let is_root_of_folder = relative.file_name().is_some_and(|name| name == "mod.rs");
    relative.components().count() - usize::from(is_root_of_folder)
}

/// The files that are only compiled for tests: a declaration in another file says so, not their name.
fn test_files(root: &Path, texts: &[(PathBuf, String)]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (file, text) in texts {
        let folder = match file.file_stem().and_then(|stem| stem.to_str()) {
            Some("mod" | "lib" | "main") => file.parent().expect("a folder").to_owned(),
            _ => file.with_extension(""),
        };
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if line != "#[cfg(test)]" {
                continue;
            }
            let declared = lines.next().unwrap_or_default();
            let name = declared.strip_suffix(';').and_then(|text| text.rsplit_once("mod "));
            if let Some((_, name)) = name {
                found.extend([folder.join(format!("{name}.rs")), folder.join(name)]);
            }
        }
    }
    assert!(found.iter().all(|path| path.starts_with(root)));
    found
}

/// The code alone: comments, strings and characters are blanked out; lines stay where they were.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = not_code(rest);
        if length > 0 {
            code.extend(rest[..length].chars().filter(|&c| c == '\n'));
            // What stood around it stays apart.
            code.push(' ');
            rest = &rest[length..];
            continue;
        }
        // A whole word, so that the `r` at the end of one begins no string.
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (taken, left) = rest.split_at(word.max(next.len_utf8()));
        code.push_str(taken);
        rest = left;
    }
    code
}

/// The length of the comment, string or character that begins here, or 0.
fn not_code(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    let quoted = text.trim_start_matches(['b', 'c']);
    let prefix = text.len() - quoted.len();
    let hashes = quoted.strip_prefix('r').map(|raw| raw.len() - raw.trim_start_matches('#').len());
    if let Some(hashes) = hashes
        && prefix <= 1
        && quoted[1 + hashes..].starts_with('"')
    {
        let end = format!("\"{}", "#".repeat(hashes));
        let begin = prefix + 1 + hashes + 1;
        return text[begin..].find(&end).map_or(text.len(), |at| begin + at + end.len());
    }
    if prefix <= 1 && quoted.starts_with('"') {
        return prefix + escaped(quoted, '"');
    }
    // A lifetime has no second quote.
    let is_character = quoted.starts_with("'\\") || quoted.chars().nth(2) == Some('\'');
    if prefix <= 1 && quoted.starts_with('\'') && is_character {
        return prefix + escaped(quoted, '\'');
    }
    0
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let here = &text[at..];
        let step = if here.starts_with("/*") {
            depth += 1;
            2
        } else if here.starts_with("*/") {
            depth -= 1;
            2
        } else {
            here.chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of what stands between two quotes, with both.
fn escaped(text: &str, quote: char) -> usize {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Code with what is only compiled for tests blanked out; lines stay where they were.
fn without_tests(text: &str) -> String {
    let code = code_of(text);
    let mut kept = String::with_capacity(code.len());
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        kept.push_str(line);
        kept.push('\n');
        if line.trim() == "#[cfg(test)]" {
            skip_item(&mut lines, &mut kept);
        }
    }
    kept
}

/// Skips one item: to the semicolon that ends it, or to the end of its braces.
fn skip_item<'a>(lines: &mut impl Iterator<Item = &'a str>, kept: &mut String) {
    let (mut depth, mut entered) = (0_i32, false);
    for line in lines.by_ref() {
        kept.push('\n');
        for byte in line.bytes() {
            match byte {
                b'{' => (depth, entered) = (depth + 1, true),
                b'}' => depth -= 1,
                _ => {}
            }
        }
        let is_attribute = line.trim_start().starts_with("#[");
        let ends = line.trim_end().ends_with(';');
        if (entered && depth <= 0) || (!entered && !is_attribute && ends) {
            return;
        }
    }
}

/// Every path in the text that has at least two parts, with its line; those in braces are written out.
fn paths_in(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut prefixes: Vec<Vec<String>> = Vec::new();
    let mut current: Vec<String> = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if next.is_ascii_alphabetic() || next == '_' {
            let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let (word, after) = rest.split_at(length.unwrap_or(rest.len()));
            current.push(word.to_owned());
            rest = after;
            if !rest.starts_with("::") {
                flush(&mut found, &prefixes, &mut current, line);
            }
            continue;
        }
        if rest.starts_with("::") {
            rest = &rest[2..];
            if rest.starts_with('{') {
                prefixes.push(std::mem::take(&mut current));
                rest = &rest[1..];
            } else if let Some(after) = rest.strip_prefix('*') {
                current.push("*".to_owned());
                rest = after;
                flush(&mut found, &prefixes, &mut current, line);
            } else if !rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                flush(&mut found, &prefixes, &mut current, line);
            }
            continue;
        }
        match next {
            '{' => prefixes.push(Vec::new()),
            '}' => drop(prefixes.pop()),
            '\n' => line += 1,
            _ => {}
        }
        rest = &rest[next.len_utf8()..];
    }
    found
}

fn flush(
    found: &mut Vec<(usize, Vec<String>)>,
    prefixes: &[Vec<String>],
    current: &mut Vec<String>,
    line: usize,
) {
    let tail = std::mem::take(current);
    // The innermost run of `a::{b::{…` that this stands in.
    let from = prefixes.iter().rposition(Vec::is_empty).map_or(0, |at| at + 1);
    let path: Vec<String> = prefixes[from..].iter().flatten().cloned().chain(tail).collect();
    if path.len() > 1 {
        found.push((line, path));
    }
}

#[test]
fn the_reader_finds_paths_where_they_stand() {
    let text = "use crate::{\n    store::{Store, StoreError},\n    util,\n};\n\
        fn f() { \"// {\"; '{'; r#\"\"}\"#; /* } */ crate::api::g(); super::super::x::y() }\n\
        use super::*;\n#[cfg(test)]\nmod tests {\n    use crate::cli::Z;\n}\nuse bollard::Docker; // crate::no\n";
    let found = paths_in(&without_tests(text));
    let shown: Vec<String> =
        found.iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect();
    assert_eq!(
        shown,
        [
            "2 crate::store::Store",
            "2 crate::store::StoreError",
            "3 crate::util",
            "5 crate::api::g",
            "5 super::super::x::y",
            "6 super::*",
            "11 bollard::Docker",
        ]
    );
}

#[test]
fn whichever_way_a_module_is_named_it_is_found() {
    let said = |module: &str, path: &str| {
        let mut findings = Findings::default();
        let path: Vec<String> = path.split("::").map(str::to_owned).collect();
        check(&mut findings, Path::new("x.rs"), 1, module, 2, &path);
        findings.0
    };
    for (module, path, expected) in [
        ("store", "crate::engine::Engine", "store names engine"),
        ("store", "super::super::api::x", "store names api"),
        ("store", "self::super::super::api::x", "store names api"),
        ("store", "super::super::super::api::x", "store names api"),
        ("store", "axum::Router", "store names axum"),
        ("store", "crate::*", "store takes in the whole crate"),
        ("store", "crate::self", "store takes in the whole crate"),
        ("store", "super::super::*", "store takes in the whole crate"),
    ] {
        assert_eq!(said(module, path), format!("x.rs:1: {expected}\n"), "{path}");
    }
    assert!(said("api", "crate::engine::Engine").contains("a command of the supervisor's"));
    for path in ["crate::domain::ids", "super::api::x", "super::*", "crate::store::Tx"] {
        assert_eq!(said("store", path), "", "{path}");
    }
    assert_eq!((depth_of(Path::new("lib.rs")), depth_of(Path::new("api/mod.rs"))), (1, 1));
    assert_eq!(depth_of(Path::new("api/ws/mod.rs")), 2);
}
