use super::super::{Files, FilesOptions, Lane};
use super::*;
use crate::domain::ids::VolumeId;
use crate::files::Progress;

struct Node {
    dir: tempfile::TempDir,
    files: Files,
}

fn node() -> Node {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let files = Files::new(FilesOptions {
        volumes_path: dir.path().join("data/volumes"),
        owner: Some((4321, 4321)),
        fsync: true,
        limits: ArchiveLimits::default(),
    });
    Node { dir, files: files.expect("files") }
}

#[tokio::test]
async fn a_volume_is_made_used_and_removed() {
    let Node { dir: _dir, files } = node();
    let volume = VolumeId::random();
    files.create_volume(volume).await.expect("create");
    let path = files.volume_path(volume);
    let meta = fs::metadata(&path).expect("stat");
    assert_eq!(meta.mode() & 0o7777, 0o755);
    if is_root() {
        assert_eq!((meta.uid(), meta.gid()), (4321, 4321));
    }
    let again = files.create_volume(volume).await;
    assert!(matches!(again, Err(FileError::AlreadyExists { .. })), "{again:?}");
    let size = files
        .run_in(Lane::Transfer, volume, |volume| {
            volume.write_atomic(&rel("a/b"), &mut &b"xyz"[..], &WriteMode::default())
        })
        .await;
    assert_eq!(size.expect("write").size, 3);
    files.remove_volume(volume).await.expect("remove");
    files.remove_volume(volume).await.expect("and once more");
    assert!(!path.exists());
    let gone = files.run(volume, |volume| volume.stat(&rel("a"))).await;
    assert!(matches!(gone, Err(FileError::NoVolume { .. })), "{gone:?}");
}

#[tokio::test]
async fn a_volume_that_is_a_link_is_none() {
    let Node { dir, files } = node();
    let volume = VolumeId::random();
    fs::create_dir(dir.path().join("elsewhere")).expect("mkdir");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), files.volume_path(volume))
        .expect("symlink");
    let outcome = files.run(volume, |volume| volume.mkdir_all(&rel("x"))).await;
    assert!(outcome.is_err(), "{outcome:?}");
    assert!(!dir.path().join("elsewhere/x").exists());
}

#[tokio::test]
async fn a_sweep_removes_what_a_crash_left_and_nothing_else() {
    let Node { dir: _dir, files } = node();
    let volume = VolumeId::random();
    files.create_volume(volume).await.expect("create");
    let path = files.volume_path(volume);
    put(&path.join("keep/.lightd-not-at-the-root"), b"");
    put(&path.join(".lightd-staging-0/new/half"), b"");
    let volumes = path.parent().expect("volumes");
    put(&volumes.join(".deleting-x/file"), b"");
    put(&volumes.join(".probe-x/file"), b"");
    put(&volumes.join("lost+found/.lightd-x"), b"");
    files.sweep().await.expect("sweep");
    let names: Vec<_> = snapshot(volumes).into_keys().collect();
    let id = volume.to_string();
    let mut want = vec![
        id.clone(),
        format!("{id}/keep"),
        format!("{id}/keep/.lightd-not-at-the-root"),
        "lost+found".to_owned(),
        "lost+found/.lightd-x".to_owned(),
    ];
    want.sort();
    assert_eq!(names, want);
}

#[tokio::test]
async fn work_goes_on_when_the_caller_is_gone() {
    let Node { dir: _dir, files } = node();
    let volume = VolumeId::random();
    files.create_volume(volume).await.expect("create");
    let path = files.volume_path(volume);
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (finished, has_finished) = tokio::sync::oneshot::channel();
    let work = files.run(volume, move |volume| {
        started.send(()).expect("tell");
        released.recv().expect("be told");
        let made = volume.mkdir_all(&rel("made"));
        finished.send(()).expect("tell");
        made
    });
    tokio::select! {
        _ = work => panic!("ended before it was released"),
        begun = has_started => begun.expect("started"),
    }
    release.send(()).expect("release");
    has_finished.await.expect("finished");
    assert!(path.join("made").is_dir());
}

#[tokio::test]
async fn a_sweep_leaves_alone_what_is_being_worked_on() {
    let Node { dir: _dir, files } = node();
    let volume = VolumeId::random();
    files.create_volume(volume).await.expect("create");
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (content, chunks) = std::sync::mpsc::channel::<u8>();
    let write = files.run_in(Lane::Transfer, volume, move |volume| {
        let mut started = Some(started);
        let mut arriving = Arriving(|| {
            if let Some(started) = started.take() {
                started.send(()).expect("tell");
            }
            chunks.recv().ok()
        });
        volume.write_atomic(&rel("file"), &mut arriving, &WriteMode::default())
    });
    tokio::pin!(write);
    tokio::select! {
        _ = &mut write => panic!("ended before its content"),
        begun = has_started => begun.expect("started"),
    }
    files.sweep().await.expect("sweep");
    content.send(b'x').expect("send");
    drop(content);
    assert_eq!(write.await.expect("write").size, 1);
}

/// A byte at a time, from wherever it comes.
struct Arriving<F>(F);

impl<F: FnMut() -> Option<u8>> std::io::Read for Arriving<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(byte) = (self.0)() else { return Ok(0) };
        buffer[0] = byte;
        Ok(1)
    }
}

#[tokio::test]
async fn long_work_can_be_cancelled_while_it_waits_and_is_waited_for_once_it_runs() {
    let Node { dir: _dir, files } = node();
    let volume = VolumeId::random();
    files.create_volume(volume).await.expect("create");
    let progress = Progress::default();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (started, has_started) = tokio::sync::oneshot::channel();
    let runs = files.run_long(volume, progress.clone(), move |_, progress| {
        started.send(()).expect("tell");
        released.recv().expect("be told");
        progress.check()
    });
    tokio::pin!(runs);
    tokio::select! {
        _ = &mut runs => panic!("ended before it was released"),
        begun = has_started => begun.expect("started"),
    }
    progress.cancel();
    assert!(futures_util::poll!(&mut runs).is_pending(), "it has not cleaned up yet");
    let waits = Progress::default();
    waits.cancel();
    let never = files.run_long(volume, waits, |_, _| -> Result<(), FileError> {
        panic!("cancelled work began")
    });
    assert!(matches!(never.await, Err(FileError::Cancelled)));
    release.send(()).expect("release");
    assert!(matches!(runs.await, Err(FileError::Cancelled)));
}
