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
    ("axum_server", &["app"]),
];

/// What is wrong, one line each: file, line, and what stands there.
#[derive(Default)]
struct Findings(String);

impl Findings {
    fn say(&mut self, file: &Path, line: usize, what: &str) {
        writeln!(self.0, "{}:{line}: {what}", file.display()).expect("memory");
    }
}

#[test]
fn modules_import_only_what_stands_below_them() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut findings = Findings::default();
    let mut seen = BTreeSet::new();
    for file in rust_files(&root) {
        let relative = file.strip_prefix(&root).expect("beneath src").to_owned();
        let module = module_of(&relative);
        seen.insert(module.clone());
        let text = std::fs::read_to_string(&file).expect("a readable file");
        if is_test_file(&relative) {
            continue;
        }
        let shown = Path::new("src").join(&relative);
        for (line, path) in paths_in(&without_tests(&text)) {
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
    let first = path[0].as_str();
    let supers = path.iter().take_while(|part| *part == "super").count();
    let target = match first {
        "crate" => path.get(1),
        // Out of the top-level module and into another.
        "super" if supers == depth => path.get(supers),
        _ => None,
    };
    if let Some(target) = target
        && target != module
        && !allowed.contains(&"*")
        && TABLE.iter().any(|(name, _)| name == target)
        && !allowed.contains(&target.as_str())
    {
        findings.say(file, line, &format!("{module} names {target}"));
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

/// Files that hold nothing but tests and what tests need.
fn is_test_file(relative: &Path) -> bool {
    relative.components().any(|part| {
        let name = part.as_os_str().to_string_lossy();
        ["tests", "tests.rs", "testing.rs", "model.rs"].contains(&name.as_ref())
    })
}

/// The text with comments and what is only compiled for tests blanked out; lines stay where they were.
fn without_tests(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let code = line.split("//").next().unwrap_or_default();
        kept.push_str(code);
        kept.push('\n');
        if code.trim() == "#[cfg(test)]" {
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
        let code = line.split("//").next().unwrap_or_default();
        for byte in code.bytes() {
            match byte {
                b'{' => (depth, entered) = (depth + 1, true),
                b'}' => depth -= 1,
                _ => {}
            }
        }
        let is_attribute = code.trim_start().starts_with("#[");
        if (entered && depth <= 0) || (!entered && !is_attribute && code.trim_end().ends_with(';'))
        {
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
        fn f() { crate::api::g(); super::super::x::y() }\n\
        #[cfg(test)]\nmod tests {\n    use crate::cli::Z;\n}\nuse bollard::Docker; // crate::no\n";
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
            "10 bollard::Docker",
        ]
    );
    let mut findings = Findings::default();
    for (line, path) in
        [(1, "crate::engine::Engine"), (2, "super::super::api::x"), (3, "axum::Router")]
    {
        let path: Vec<String> = path.split("::").map(str::to_owned).collect();
        check(&mut findings, Path::new("src/store/a.rs"), line, "store", 2, &path);
    }
    assert_eq!(
        findings.0,
        "src/store/a.rs:1: store names engine\nsrc/store/a.rs:2: store names api\n\
         src/store/a.rs:3: store names axum\n"
    );
    assert_eq!((depth_of(Path::new("app.rs")), depth_of(Path::new("api/mod.rs"))), (1, 1));
    assert_eq!(depth_of(Path::new("api/ws/mod.rs")), 2);
}
