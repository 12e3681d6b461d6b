use super::super::archive::ArchiveFormat;
use super::super::archive::pack::PackRequest;
use super::*;
use crate::files::Progress;

const MIB: u64 = 1 << 20;

impl Scratch {
    /// Work that has just begun on a volume with this much left.
    fn with_left(&self, left: u64) -> Progress {
        let progress = Progress::default();
        let limit = self.volume.disk_usage().expect("usage") + left;
        self.volume.hold_to(Some(limit), 0, &progress).expect("hold");
        progress
    }
}

#[test]
fn what_is_written_at_the_same_time_draws_on_one_rest() {
    let scratch = Scratch::new();
    let limit = scratch.volume.disk_usage().expect("usage") + 10 * MIB;
    let [one, other] = [Progress::default(), Progress::default()];
    scratch.volume.hold_to(Some(limit), 0, &one).expect("hold");
    scratch.volume.hold_to(Some(limit), 0, &other).expect("hold");
    one.spend(6 * MIB).expect("there is room");
    let refused = other.spend(6 * MIB);
    assert!(
        matches!(refused, Err(FileError::QuotaExceeded { limit_bytes }) if limit_bytes == limit)
    );
    other.spend(4 * MIB).expect("what was refused was not taken");
    assert!(one.has_room_for(1).is_err());
    drop((one, other));
    let later = scratch.with_left(10 * MIB);
    later.spend(10 * MIB).expect("nothing was written after all");
}

#[test]
fn what_a_write_replaces_counts_as_free() {
    let scratch = Scratch::new();
    scratch.write("file", &vec![1; 1 << 20]).expect("write");
    let limit = scratch.volume.disk_usage().expect("usage");
    let progress = Progress::default();
    scratch.volume.hold_to(Some(limit), MIB, &progress).expect("hold");
    progress.spend(MIB).expect("as much as before");
    assert!(progress.spend(1).is_err());
}

#[test]
fn work_without_a_limit_may_write_what_the_disk_takes() {
    let scratch = Scratch::new();
    let progress = Progress::default();
    scratch.volume.hold_to(None, 0, &progress).expect("hold");
    progress.spend(u64::MAX).expect("no limit");
    let usage = scratch.volume.usage(None).expect("usage");
    assert!(usage.available_bytes > 0, "{usage:?}");
    let usage = scratch.volume.usage(Some(1)).expect("usage");
    assert_eq!(usage.available_bytes, 0);
}

#[test]
fn copies_and_archives_stop_at_the_limit_and_leave_nothing() {
    let scratch = Scratch::new();
    let noise: Vec<u8> = (0..MIB).map(|_| rand::random()).collect();
    for path in ["tree/a", "tree/b"] {
        put(&scratch.path(path), &noise);
    }
    let pack = |format, output: &str, left| {
        let request = PackRequest {
            format,
            output: rel(output),
            paths: vec![rel("tree")],
            base: rel(""),
            ignore: Vec::new(),
            level: ArchiveFormat::default_level(format),
            overwrite: false,
        };
        scratch.volume.pack(&request, &scratch.with_left(left))
    };
    for format in
        [ArchiveFormat::Zip, ArchiveFormat::Tar, ArchiveFormat::TarGz, ArchiveFormat::TarBz2]
    {
        pack(format, format.as_str(), 3 * MIB).expect("it fits");
        let before = scratch.snapshot("");
        let refused = pack(format, "more", MIB);
        assert!(matches!(refused, Err(FileError::QuotaExceeded { .. })), "{format:?} {refused:?}");
        let progress = scratch.with_left(MIB);
        let refused = scratch.volume.unpack(&unpacking(format.as_str(), "out"), &progress);
        assert!(matches!(refused, Err(FileError::QuotaExceeded { .. })), "{format:?} {refused:?}");
        assert!(scratch.snapshot("") == before, "{format:?} left something");
        let progress = scratch.with_left(3 * MIB);
        let out = format!("out-{}", format.as_str());
        scratch.volume.unpack(&unpacking(format.as_str(), &out), &progress).expect("it fits");
    }
    let before = scratch.snapshot("");
    let refused = scratch.volume.copy(&rel("tree"), &rel("copy"), false, &scratch.with_left(MIB));
    assert!(matches!(refused, Err(FileError::QuotaExceeded { .. })), "{refused:?}");
    assert!(scratch.snapshot("") == before);
    let fits = scratch.with_left(3 * MIB);
    scratch.volume.copy(&rel("tree"), &rel("copy"), false, &fits).expect("it fits");
}

#[test]
fn holes_cost_nothing() {
    let scratch = Scratch::new();
    fs::File::create(scratch.path("holes")).expect("create").set_len(100 * MIB).expect("length");
    scratch
        .volume
        .copy(&rel("holes"), &rel("copy"), false, &scratch.with_left(MIB))
        .expect("there is nothing in it");
    assert_eq!(fs::metadata(scratch.path("copy")).expect("stat").len(), 100 * MIB);
}
