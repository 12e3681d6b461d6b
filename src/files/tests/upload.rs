use super::*;
use crate::files::progress::Progress;

#[test]
fn an_upload_that_is_dropped_leaves_nothing_and_one_that_ends_leaves_all() {
    let scratch = Scratch::new();
    put(&scratch.path("old"), b"old");
    let before = scratch.snapshot("");
    let begin = || {
        let upload =
            scratch.volume.begin_upload(rel("in"), WriteMode::default(), Progress::default());
        let mut upload = upload.expect("begin");
        for (name, content) in [("a", "alpha"), ("d/b", ""), ("../x", "never")] {
            upload.begin_file(name.to_owned()).expect("begin");
            upload.write(content.as_bytes()).expect("write");
            upload.end_file().expect("end");
        }
        upload
    };
    drop(begin());
    assert_eq!(scratch.snapshot(""), before);
    let done = begin().commit();
    let outcome = |at: usize| done[at].outcome.as_ref();
    assert_eq!(outcome(0).map(|stored| (stored.size, stored.is_new)).ok(), Some((5, true)));
    assert!(matches!(outcome(2), Err(FileError::InvalidPath(_))));
    assert_eq!((scratch.read("in/a"), scratch.read("in/d/b")), (b"alpha".to_vec(), Vec::new()));
    assert_eq!(scratch.snapshot("").len(), before.len() + 4, "and nothing else");
}

#[test]
fn an_upload_through_a_link_replaces_what_it_leads_to_and_nothing_outside() {
    let scratch = Scratch::new();
    put(&scratch.path("real"), b"old");
    set_mode(&scratch.path("real"), 0o640);
    std::os::unix::fs::symlink("real", scratch.path("link")).expect("symlink");
    std::os::unix::fs::symlink("../outside/secret", scratch.path("out")).expect("symlink");
    let mut upload = scratch
        .volume
        .begin_upload(rel(""), WriteMode::default(), Progress::default())
        .expect("begin");
    for name in ["link", "out"] {
        upload.begin_file(name.to_owned()).expect("begin");
        upload.write(b"new").expect("write");
        upload.end_file().expect("end");
    }
    let done = upload.commit();
    assert!(done[0].outcome.is_ok() && done[1].outcome.is_err(), "{done:?}");
    assert_eq!(scratch.snapshot("")["real"].1, 0o640);
    assert_eq!(
        (scratch.read("real"), fs::read(scratch.outside().join("secret")).expect("read")),
        (b"new".to_vec(), b"secret".to_vec())
    );
}
