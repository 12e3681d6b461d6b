use super::super::listing::{Link, Page};
use super::super::volume::Kind;
use super::*;

fn names(scratch: &Scratch, path: &str, page: &Page) -> (Vec<String>, Option<String>) {
    let listing = scratch.volume.list(&rel(path), page).expect("list");
    (listing.entries.into_iter().map(|entry| entry.name).collect(), listing.next)
}

#[test]
fn listing_has_folders_first_and_hides_temporary_names() {
    let scratch = Scratch::new();
    for folder in ["b-dir", "a-dir", ".lightd-staging-1"] {
        fs::create_dir(scratch.path(folder)).expect("mkdir");
    }
    put(&scratch.path("A"), b"12345");
    put(&scratch.path("z"), b"");
    std::os::unix::fs::symlink("a-dir", scratch.path("link")).expect("symlink");
    rustix::fs::mkfifoat(&scratch.volume.root, "pipe", Mode::from_raw_mode(0o600)).expect("fifo");
    let all = Page { limit: 100, cursor: None };
    let listing = scratch.volume.list(&rel(""), &all).expect("list");
    let seen: Vec<_> =
        listing.entries.iter().map(|entry| (entry.name.as_str(), entry.stat.kind)).collect();
    assert_eq!(
        seen,
        [
            ("a-dir", Kind::Directory),
            ("b-dir", Kind::Directory),
            ("A", Kind::File),
            ("link", Kind::Symlink),
            ("pipe", Kind::Other),
            ("z", Kind::File),
        ]
    );
    assert_eq!(listing.entries[2].stat.size, 5);
    assert!(listing.next.is_none());
}

#[test]
fn pages_join_to_the_whole_listing() {
    let scratch = Scratch::new();
    for number in 0..23 {
        put(&scratch.path(&format!("file-{number:02}")), b"");
        fs::create_dir(scratch.path(&format!("dir-{number:02}"))).expect("mkdir");
    }
    let (whole, _) = names(&scratch, "", &Page { limit: 1000, cursor: None });
    let mut joined = Vec::new();
    let mut cursor = None;
    loop {
        let (page, next) = names(&scratch, "", &Page { limit: 7, cursor });
        assert!(page.len() <= 7);
        joined.extend(page);
        if next.is_none() {
            break;
        }
        cursor = next;
    }
    assert_eq!(joined, whole);
    let nonsense = Page { limit: 7, cursor: Some("!!".to_owned()) };
    let refused = scratch.volume.list(&rel(""), &nonsense);
    assert!(matches!(refused, Err(FileError::InvalidCursor)), "{refused:?}");
}

#[test]
fn a_listing_says_where_links_lead_and_what_files_are_if_asked() {
    let scratch = Scratch::new();
    put(&scratch.path("d/file.json"), b"{}");
    for (target, name) in [
        ("file.json", "inside"),
        ("../d", "folder"),
        ("none", "dangling"),
        ("../../outside/secret", "outside"),
        ("/etc/passwd", "absolute"),
        ("loop", "loop"),
    ] {
        std::os::unix::fs::symlink(target, scratch.path("d").join(name)).expect("symlink");
    }
    let list = |mime| {
        let page = Page { limit: 100, cursor: None };
        let list = if mime { Volume::list_with_mime } else { Volume::list };
        list(&scratch.volume, &rel("d"), &page).expect("list").entries
    };
    let links: Vec<_> = list(false)
        .into_iter()
        .filter_map(|entry| {
            entry.link.map(|Link { is_inside, kind, .. }| (entry.name, is_inside, kind))
        })
        .collect();
    let link = |name: &str, is_inside, kind| (name.to_owned(), is_inside, kind);
    assert_eq!(
        links,
        [
            link("absolute", false, None),
            link("dangling", true, None),
            link("folder", true, Some(Kind::Directory)),
            link("inside", true, Some(Kind::File)),
            link("loop", false, None),
            link("outside", false, None),
        ]
    );
    let file = |mime| list(mime).into_iter().find(|entry| entry.name == "file.json");
    assert_eq!(file(true).and_then(|file| file.mime).as_deref(), Some("application/json"));
    assert_eq!(file(false).and_then(|file| file.mime), None);
}

#[test]
fn reserved_names_are_refused_everywhere() {
    let scratch = Scratch::new();
    put(&scratch.path("a"), b"");
    let bad = rel("x/.lightd-staging-1/y");
    let volume = &scratch.volume;
    let progress = crate::files::Progress::default();
    let page = Page { limit: 1, cursor: None };
    let outcomes = [
        ("list", volume.list(&bad, &page).err()),
        ("stat", volume.stat(&bad).err()),
        ("read", volume.open_read(&bad).err()),
        ("write", volume.write_atomic(&bad, &mut &b""[..], &WriteMode::default()).err()),
        ("mkdir", volume.mkdir_all(&bad).err()),
        ("rename to", volume.rename(&rel("a"), &bad, true).err()),
        ("rename from", volume.rename(&bad, &rel("b"), true).err()),
        ("copy to", volume.copy(&rel("a"), &bad, true, &progress).err()),
        ("copy from", volume.copy(&bad, &rel("b"), true, &progress).err()),
        ("delete", volume.delete(std::slice::from_ref(&bad), &progress).err()),
        ("chmod", volume.chmod(&bad, 0o600).err()),
        ("unpack to", volume.unpack(&unpacking("a", bad.as_str()), &progress).err()),
    ];
    for (what, outcome) in outcomes {
        assert!(matches!(outcome, Some(FileError::Reserved { .. })), "{what}: {outcome:?}");
    }
    assert_eq!(scratch.snapshot("").len(), 1);
}

#[test]
fn folders_are_made_with_parents_and_belong_to_the_owner() {
    let scratch = Scratch::new();
    scratch.volume.mkdir_all(&rel("a/b/c")).expect("mkdir");
    scratch.volume.mkdir_all(&rel("a/b/c")).expect("again");
    let meta = fs::metadata(scratch.path("a/b")).expect("stat");
    assert_eq!(meta.mode() & 0o7777, 0o755);
    if is_root() {
        assert_eq!((meta.uid(), meta.gid()), (4321, 4321));
    }
    put(&scratch.path("file"), b"");
    let refused = scratch.volume.mkdir_all(&rel("file/x"));
    assert!(matches!(refused, Err(FileError::NotADirectory { .. })), "{refused:?}");
    std::os::unix::fs::symlink("nowhere", scratch.path("dangling")).expect("symlink");
    let refused = scratch.volume.mkdir_all(&rel("dangling/x"));
    assert!(matches!(refused, Err(FileError::NotADirectory { .. })), "{refused:?}");
}

#[test]
fn rename_moves_and_replaces_only_when_told() {
    let scratch = Scratch::new();
    put(&scratch.path("a"), b"a");
    put(&scratch.path("b"), b"b");
    let volume = &scratch.volume;
    let refused = volume.rename(&rel("a"), &rel("b"), false);
    assert!(matches!(refused, Err(FileError::AlreadyExists { .. })), "{refused:?}");
    assert!(volume.rename(&rel("a"), &rel("b"), true).expect("replace"));
    assert_eq!(scratch.read("b"), b"a");
    volume.rename(&rel("b"), &rel("new/place"), false).expect("into a new folder");
    assert_eq!(scratch.read("new/place"), b"a");
    assert!(!volume.rename(&rel("new"), &rel("new"), false).expect("onto itself"));
    let refused = volume.rename(&rel("new"), &rel("new/below"), false);
    assert!(matches!(refused, Err(FileError::IntoItself { .. })), "{refused:?}");
    let refused = volume.rename(&rel("gone"), &rel("x"), false);
    assert!(matches!(refused, Err(FileError::NotFound { .. })), "{refused:?}");
}

#[test]
fn rename_replaces_folders_in_whole_and_never_across_kinds() {
    let scratch = Scratch::new();
    put(&scratch.path("new/x"), b"new");
    put(&scratch.path("old/y"), b"old");
    put(&scratch.path("file"), b"file");
    let volume = &scratch.volume;
    let refused = volume.rename(&rel("new"), &rel("file"), true);
    assert!(matches!(refused, Err(FileError::NotADirectory { .. })), "{refused:?}");
    let refused = volume.rename(&rel("file"), &rel("new"), true);
    assert!(matches!(refused, Err(FileError::NotAFile { .. })), "{refused:?}");
    volume.rename(&rel("new"), &rel("old"), true).expect("replace");
    let tree = scratch.snapshot("");
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["file", "old", "old/x"]);
}

#[test]
fn chmod_masks_special_bits_and_refuses_links_and_pipes() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = Scratch::new();
    put(&scratch.path("a"), b"");
    for is_news in [true, false] {
        assert_eq!(scratch.volume.chmod(&rel("a"), 0o6751).expect("chmod"), is_news);
        assert_eq!(fs::metadata(scratch.path("a")).expect("stat").mode() & 0o7777, 0o751);
    }
    fs::set_permissions(scratch.path("a"), fs::Permissions::from_mode(0o4751)).expect("a mode");
    assert!(scratch.volume.chmod(&rel("a"), 0o751).expect("chmod"), "a bit more than these");
    let secret = scratch.outside().join("secret");
    let before = fs::metadata(&secret).expect("stat").mode();
    std::os::unix::fs::symlink(&secret, scratch.path("link")).expect("symlink");
    rustix::fs::mkfifoat(&scratch.volume.root, "pipe", Mode::from_raw_mode(0o600)).expect("fifo");
    for name in ["link", "pipe"] {
        let refused = scratch.volume.chmod(&rel(name), 0o777);
        assert!(matches!(refused, Err(FileError::Special { .. })), "{name}: {refused:?}");
    }
    assert_eq!(fs::metadata(&secret).expect("stat").mode(), before);
}

#[test]
fn delete_checks_all_first_refuses_the_root_and_follows_nothing() {
    let scratch = Scratch::new();
    let progress = crate::files::Progress::default();
    put(&scratch.path("dir/deep/file"), b"x");
    put(&scratch.path("single"), b"x");
    std::os::unix::fs::symlink(scratch.outside(), scratch.path("dir/out")).expect("symlink");
    std::os::unix::fs::symlink(scratch.outside(), scratch.path("top")).expect("symlink");
    let refused = scratch.volume.delete(&[rel("single"), rel("missing")], &progress);
    assert!(matches!(refused, Err(FileError::NotFound { .. })), "{refused:?}");
    let refused = scratch.volume.delete(&[rel("single"), rel("")], &progress);
    assert!(matches!(refused, Err(FileError::InvalidPath(_))), "{refused:?}");
    assert!(scratch.path("single").exists());
    let paths = ["dir", "dir/deep", "single", "top"].map(rel);
    assert_eq!(scratch.volume.delete(&paths, &progress).expect("delete"), 3);
    assert!(scratch.snapshot("").is_empty());
    assert_eq!(fs::read(scratch.outside().join("secret")).expect("secret"), b"secret");
}

#[test]
fn links_are_followed_while_they_stay_inside() {
    let scratch = Scratch::new();
    put(&scratch.path("real/file"), b"inside");
    std::os::unix::fs::symlink("real", scratch.path("link")).expect("symlink");
    std::os::unix::fs::symlink("../outside", scratch.path("out")).expect("symlink");
    std::os::unix::fs::symlink(scratch.outside(), scratch.path("abs")).expect("symlink");
    let page = Page { limit: 10, cursor: None };
    if Resolver::detect() == Resolver::Kernel {
        assert_eq!(names(&scratch, "link", &page).0, ["file"]);
    }
    for bad in ["out", "abs", "out/secret", "abs/secret"] {
        let stat = scratch.volume.stat(&rel(bad));
        assert!(matches!(stat, Err(FileError::Escape { .. })), "{bad}: {stat:?}");
        let read = scratch.volume.open_read(&rel(bad));
        assert!(matches!(read, Err(FileError::Escape { .. })), "{bad}: {read:?}");
    }
    let list = scratch.volume.list(&rel("out"), &page);
    assert!(matches!(list, Err(FileError::Escape { .. })), "{list:?}");
}

#[test]
fn without_openat2_no_link_is_followed_and_the_rest_works() {
    let scratch = Scratch::with(Resolver::Steps, ArchiveLimits::default());
    scratch.write("a/b/file", b"content").expect("write");
    scratch.volume.chmod(&rel("a/b/file"), 0o600).expect("chmod");
    let (mut file, stat) = scratch.volume.open_read(&rel("a/b/file")).expect("read");
    let mut content = String::new();
    std::io::Read::read_to_string(&mut file, &mut content).expect("read");
    assert_eq!((content.as_str(), stat.size, stat.mode), ("content", 7, 0o600));
    std::os::unix::fs::symlink("a", scratch.path("link")).expect("symlink");
    std::os::unix::fs::symlink("a/b/file", scratch.path("file-link")).expect("symlink");
    for bad in ["link/b/file", "file-link"] {
        let read = scratch.volume.open_read(&rel(bad));
        assert!(matches!(read, Err(FileError::Escape { .. })), "{bad}: {read:?}");
        let write = scratch.write(bad, b"x");
        assert!(matches!(write, Err(FileError::Escape { .. })), "{bad}: {write:?}");
    }
    let escape = Resolver::Steps.open(scratch.volume.root(), &rel("link"), OFlags::PATH);
    assert!(escape.is_err(), "{escape:?}");
}

#[test]
fn nothing_moves_into_itself_or_over_what_it_lies_in_also_through_links() {
    let scratch = Scratch::new();
    for path in ["a/b/x/f", "g/h/f"] {
        scratch.write(path, b"kept").expect("write");
    }
    std::os::unix::fs::symlink("a", scratch.path("la")).expect("symlink");
    std::os::unix::fs::symlink(".", scratch.path("dot")).expect("symlink");
    for (from, to) in [("a", "la/b/x"), ("g", "dot/g/h"), ("a/b", "dot/a"), ("a/b/x", "dot/a")] {
        let outcome = scratch.volume.rename(&rel(from), &rel(to), true);
        assert!(matches!(outcome, Err(FileError::IntoItself { .. })), "{from} {to}: {outcome:?}");
    }
    for path in ["a/b/x/f", "g/h/f"] {
        assert_eq!(scratch.read(path), b"kept", "{path}");
    }
}

#[test]
fn one_name_of_a_file_moved_over_another_leaves_the_other() {
    let scratch = Scratch::new();
    scratch.write("one", b"content").expect("write");
    std::fs::hard_link(scratch.path("one"), scratch.path("two")).expect("a link");
    std::os::unix::fs::symlink(".", scratch.path("dot")).expect("symlink");
    assert!(scratch.volume.rename(&rel("one"), &rel("two"), true).expect("move"));
    assert!(!scratch.path("one").exists());
    assert_eq!(scratch.read("two"), b"content");
    assert!(!scratch.volume.rename(&rel("two"), &rel("dot/two"), true).expect("to itself"));
    assert_eq!(scratch.read("two"), b"content");
}
