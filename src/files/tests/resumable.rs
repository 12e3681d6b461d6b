use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;
use crate::files::digest::Algorithm;
use crate::files::progress::Progress;
use crate::files::resumable::{Info, Lock, Locks, Piece, Resumable, ResumableId, ResumableLimits};

const LIMITS: ResumableLimits =
    ResumableLimits { max_bytes: 1000, max_per_volume: 3, limit_bytes: None };

fn info(length: Option<u64>, path: Option<&str>) -> Info {
    let path = path.map(str::to_owned);
    Info { length, path, create_only: false, metadata: None, is_joined: false }
}

/// A volume and who works on its uploads.
struct Subject {
    scratch: Scratch,
    locks: Locks,
}

impl Subject {
    fn new() -> Self {
        Self { scratch: Scratch::new(), locks: Locks::default() }
    }

    fn create(&self, info: Info) -> Result<ResumableId, FileError> {
        let lock = |id| self.locks.try_lock(id);
        self.scratch.volume.create_resumable(info, &LIMITS, lock).map(|(made, _)| made.id)
    }

    fn locked<T>(&self, id: ResumableId, work: impl FnOnce(&Volume, &Lock) -> T) -> T {
        work(&self.scratch.volume, &self.locks.try_lock(id).expect("free"))
    }

    fn append(&self, id: ResumableId, offset: u64, content: &[u8]) -> Result<Resumable, FileError> {
        self.append_checked(id, offset, content, None)
    }

    fn append_checked(
        &self,
        id: ResumableId,
        offset: u64,
        mut content: &[u8],
        checksum: Option<(Algorithm, Vec<u8>)>,
    ) -> Result<Resumable, FileError> {
        let piece = Piece { offset, length: None, checksum };
        self.locked(id, |volume, lock| {
            volume.append(lock, &piece, &mut content, &Progress::default(), &LIMITS)
        })
    }

    fn offset(&self, id: ResumableId) -> Result<u64, FileError> {
        self.locked(id, |volume, lock| volume.resumable(lock)).map(|seen| seen.offset)
    }

    fn folder(&self, id: ResumableId) -> PathBuf {
        self.scratch.path(&format!(".lightd-uploads/{id}"))
    }
}

/// Ends in the middle.
struct Breaks<'a>(&'a [u8]);

impl std::io::Read for Breaks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

#[test]
fn an_upload_grows_by_pieces_and_appears_with_its_last() {
    let subject = Subject::new();
    put(&subject.scratch.path("d/file"), b"old");
    set_mode(&subject.scratch.path("d/file"), 0o600);
    let id = subject.create(info(Some(10), Some("d/file"))).expect("create");
    assert_eq!(subject.append(id, 0, b"01234").expect("append").offset, 5);
    assert!(matches!(subject.append(id, 0, b"x"), Err(FileError::OffsetMismatch { offset: 5 })));
    assert!(matches!(subject.append(id, 7, b"x"), Err(FileError::OffsetMismatch { offset: 5 })));
    let piece = Piece { offset: 5, length: None, checksum: None };
    let broken = subject.locked(id, |volume, lock| {
        volume.append(lock, &piece, &mut Breaks(b"56"), &Progress::default(), &LIMITS)
    });
    assert!(matches!(broken, Err(FileError::Input { .. })));
    assert_eq!(subject.offset(id).expect("seen"), 7, "what arrived is kept");
    assert!(matches!(subject.append(id, 7, b"7890"), Err(FileError::UploadTooLarge { .. })));
    assert_eq!(subject.scratch.read("d/file"), b"old");
    let done = subject.append(id, 7, b"789").expect("append");
    assert_eq!((done.offset, subject.scratch.read("d/file")), (10, b"0123456789".to_vec()));
    assert_eq!(subject.scratch.snapshot("d")["file"].1, 0o600);
    // A sender that did not hear of it asks again.
    assert_eq!(subject.offset(id).expect("known"), 10);
    assert_eq!(subject.append(id, 10, b"").expect("nothing to do").offset, 10);
    assert!(matches!(subject.append(id, 10, b"x"), Err(FileError::UploadTooLarge { .. })));
    subject.locked(id, |volume, lock| volume.remove_resumable(lock)).expect("remove");
    assert!(matches!(subject.offset(id), Err(FileError::NoUpload)));
}

#[test]
fn an_upload_that_was_whole_when_lightd_died_is_put_in_its_place_by_whoever_asks() {
    let subject = Subject::new();
    let id = subject.create(info(Some(5), Some("file"))).expect("create");
    fs::File::options()
        .write(true)
        .open(subject.folder(id).join("new"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"whole"))
        .expect("write");
    assert_eq!(subject.offset(id).expect("seen"), 5);
    assert_eq!(subject.scratch.read("file"), b"whole");
    let empty = subject.create(info(Some(0), Some("empty"))).expect("create");
    assert_eq!(
        (subject.offset(empty).expect("seen"), subject.scratch.read("empty")),
        (0, Vec::new())
    );
}

#[test]
fn bytes_with_a_checksum_count_only_once_it_is_right() {
    let subject = Subject::new();
    let id = subject.create(info(Some(6), Some("file"))).expect("create");
    let sum = |content: &[u8]| {
        let mut hasher = Algorithm::Sha1.hasher();
        hasher.update(content);
        Some((Algorithm::Sha1, hasher.finish()))
    };
    subject.append_checked(id, 0, b"abc", sum(b"abc")).expect("right");
    let wrong = subject.append_checked(id, 3, b"dxf", sum(b"def"));
    assert!(matches!(wrong, Err(FileError::ChecksumMismatch)), "{wrong:?}");
    assert_eq!(subject.offset(id).expect("seen"), 3);
    let piece = Piece { offset: 3, length: None, checksum: sum(b"def") };
    let broken = subject.locked(id, |volume, lock| {
        volume.append(lock, &piece, &mut Breaks(b"de"), &Progress::default(), &LIMITS)
    });
    assert!(broken.is_err());
    assert_eq!(subject.offset(id).expect("seen"), 3);
    // As a crash leaves it, in the middle of such a piece.
    put(&subject.folder(id).join("new"), b"abcdx");
    put(&subject.folder(id).join("checking"), b"3");
    assert_eq!(subject.offset(id).expect("seen"), 3);
    assert!(!subject.folder(id).join("checking").exists());
    subject.append_checked(id, 3, b"def", sum(b"def")).expect("right");
    assert_eq!(subject.scratch.read("file"), b"abcdef");
}

#[test]
fn parts_are_joined_once_all_have_arrived() {
    let subject = Subject::new();
    let parts: Vec<_> =
        (0..2).map(|_| subject.create(info(Some(3), None)).expect("create")).collect();
    let join = || {
        let held: Vec<_> =
            parts.iter().map(|part| subject.locks.try_lock(*part).expect("free")).collect();
        let lock = |id| subject.locks.try_lock(id);
        let (info, progress) = (info(None, Some("joined")), Progress::default());
        subject.scratch.volume.join_resumables(info, &held, &LIMITS, lock, &progress)
    };
    subject.append(parts[0], 0, b"abc").expect("append");
    assert!(matches!(join(), Err(FileError::UploadIncomplete)));
    assert!(!subject.scratch.path("joined").exists());
    subject.append(parts[1], 0, b"def").expect("append");
    let joined = join().expect("join").0;
    assert_eq!((joined.offset, joined.info.length), (6, Some(6)));
    assert_eq!(subject.scratch.read("joined"), b"abcdef");
    assert!(matches!(subject.offset(parts[0]), Err(FileError::NoUpload)), "a part is used up");
}

#[test]
fn uploads_are_bounded_in_number_and_size() {
    let subject = Subject::new();
    let create = |length, path: &str| subject.create(info(length, Some(path)));
    assert!(matches!(create(Some(1001), "x"), Err(FileError::UploadTooLarge { .. })));
    assert!(create(Some(1), "../x").is_err());
    assert!(matches!(create(Some(1), ".lightd-x"), Err(FileError::Reserved { .. })));
    let deferred = create(None, "deferred").expect("create");
    assert!(matches!(
        subject.append(deferred, 0, &[7; 1001]),
        Err(FileError::UploadTooLarge { .. })
    ));
    create(Some(1), "b").expect("create");
    create(Some(1), "c").expect("create");
    assert!(matches!(create(Some(1), "d"), Err(FileError::TooManyUploads)));
}

#[test]
fn uploads_that_have_arrived_make_room_for_others() {
    let subject = Subject::new();
    let mut last = None;
    for index in 0..100 {
        let id = subject.create(info(Some(1), Some(&format!("file-{index}")))).expect("create");
        subject.append(id, 0, b"x").expect("append");
        last = Some(id);
    }
    assert_eq!(subject.offset(last.expect("one")).expect("remembered"), 1);
    let kept = fs::read_dir(subject.scratch.path(".lightd-uploads")).expect("list").count();
    assert!(kept <= 65, "{kept}");
}

#[test]
fn what_nobody_goes_on_with_expires_and_what_is_worked_on_does_not() {
    let subject = Subject::new();
    let idle = subject.create(info(Some(5), Some("idle"))).expect("create");
    let busy = subject.create(info(Some(5), Some("busy"))).expect("create");
    let new = subject.create(info(Some(5), Some("new"))).expect("create");
    let long_ago = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    for id in [idle, busy] {
        for name in ["info", "new"] {
            let file = fs::File::options().write(true).open(subject.folder(id).join(name));
            file.expect("open").set_times(long_ago).expect("set");
        }
    }
    // As a crash leaves one that has only just begun.
    fs::create_dir(subject.scratch.path(".lightd-uploads/half-made")).expect("mkdir");
    let half = fs::File::open(subject.scratch.path(".lightd-uploads/half-made")).expect("open");
    half.set_times(long_ago).expect("set");
    let held = subject.locks.try_lock(busy).expect("free");
    let expire = || {
        let hour = Duration::from_secs(3600);
        subject.scratch.volume.expire_resumables(hour, &subject.locks).expect("expire")
    };
    assert_eq!(expire(), 2);
    drop(held);
    assert!(matches!(subject.offset(idle), Err(FileError::NoUpload)));
    assert_eq!((subject.offset(busy).ok(), subject.offset(new).ok()), (Some(0), Some(0)));
    assert_eq!((expire(), expire()), (1, 0));
}

#[tokio::test]
async fn a_sender_that_asks_takes_the_lock_from_a_dead_one() {
    let (subject, id) = (Subject::new(), ResumableId::parse(&uuid::Uuid::new_v4().to_string()));
    let id = id.expect("an id");
    let dead = subject.locks.try_lock(id).expect("free");
    assert!(matches!(subject.locks.try_lock(id), Err(FileError::UploadLocked)));
    let holder = async {
        dead.wanted().cancelled().await;
        drop(dead);
    };
    let (taken, ()) = tokio::join!(subject.locks.lock(id), holder);
    drop(taken.expect("taken"));
    subject.locks.try_lock(id).expect("free again");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_never_given_back_is_not_waited_for_for_ever() {
    let (locks, id) = (Locks::default(), ResumableId::parse(&uuid::Uuid::new_v4().to_string()));
    let id = id.expect("an id");
    let _held = locks.try_lock(id).expect("free");
    assert!(matches!(locks.lock(id).await, Err(FileError::UploadLocked)));
}

#[test]
fn what_a_container_puts_where_uploads_are_leads_nowhere() {
    if !is_root() {
        return;
    }
    let subject = Subject::new();
    let outside = subject.scratch.outside();
    // In place of the folder: a link to the outside, a file, a folder of its own.
    for attack in 0..3 {
        let uploads = subject.scratch.path(".lightd-uploads");
        match attack {
            0 => symlink(&outside, &uploads).expect("symlink"),
            1 => put(&uploads, b"file"),
            _ => {
                fs::create_dir(&uploads).expect("mkdir");
                std::os::unix::fs::chown(&uploads, Some(4321), Some(4321)).expect("chown");
            }
        }
        let id = subject.create(info(Some(3), Some("file"))).expect("create");
        assert!(subject.folder(id).join("info").is_file(), "{attack}");
        fs::remove_dir_all(&uploads).expect("remove");
    }
    // In place of an upload's own files.
    for attack in 0..3 {
        let id = subject.create(info(Some(3), Some("file"))).expect("create");
        let new = subject.folder(id).join("new");
        fs::remove_file(&new).expect("remove");
        match attack {
            0 => symlink(outside.join("secret"), &new).expect("symlink"),
            1 => {
                let mode = Mode::from_raw_mode(0o666);
                rustix::fs::mknodat(rustix::fs::CWD, &new, rustix::fs::FileType::Fifo, mode, 0)
                    .expect("mkfifo");
            }
            _ => fs::create_dir(&new).expect("mkdir"),
        }
        drop(subject.append(id, 0, b"new"));
        drop(subject.append(id, 3, b""));
        fs::remove_dir_all(subject.folder(id)).expect("remove");
    }
    // A forged destination is a path inside the volume or none.
    let id = subject.create(info(Some(3), Some("file"))).expect("create");
    let forged = r#"{"length":3,"path":"../outside/secret","create_only":false,"metadata":null,"is_joined":false}"#;
    put(&subject.folder(id).join("info"), forged.as_bytes());
    assert!(subject.append(id, 0, b"new").is_err());
    assert_eq!(fs::read(outside.join("secret")).expect("read"), b"secret");
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 1);
}
