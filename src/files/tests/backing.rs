//! Volumes in images, on the kernel's own loop devices. They need root, as lightd does.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::backing::BackingError;
use super::super::backing::image::Images;
use super::super::{Files, FilesOptions, Lane};
use super::*;
use crate::domain::quota::{Backing, QuotaBackend};
use crate::files::Progress;

const MIB: u64 = 1 << 20;

struct Node {
    dir: tempfile::TempDir,
    images: Images,
    volume: VolumeId,
}

impl Node {
    fn new(size_bytes: u64) -> Self {
        // A blank in the path, which the kernel's tables write otherwise.
        let dir = tempfile::Builder::new().prefix("lightd test ").tempdir().expect("a folder");
        let images = Images::new(dir.path().to_owned(), Some(Owner { uid: 4321, gid: 4321 }));
        let volume = VolumeId::random();
        images.make(volume, size_bytes).expect("make");
        Self { dir, images, volume }
    }

    fn at(&self, below: &str) -> PathBuf {
        self.dir.path().join(self.volume.to_string()).join(below)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join(format!(".images/{}.img", self.volume))
    }

    fn undo(&self) -> PathBuf {
        self.image().with_extension("undo")
    }

    fn unmount(&self) {
        unmount(&self.at(""));
    }

    /// Files at the near and the far end of the image, so that a shrink has to move some.
    fn populate(&self) -> Tree {
        let noise = |count: u64| (0..count).map(|_| rand::random()).collect::<Vec<u8>>();
        let filler = noise(MIB);
        for index in 0..24 {
            put(&self.at(&format!("filler/{index}")), &filler);
        }
        for index in 0..300 {
            put(&self.at(&format!("far/{index}/file")), &noise(3000));
        }
        put(&self.at("far/large"), &noise(6 * MIB));
        fs::remove_dir_all(self.at("filler")).expect("remove");
        snapshot(&self.at(""))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let removed = self.images.remove(self.volume);
        if !std::thread::panicking() {
            removed.expect("remove");
            let left: Vec<_> =
                fs::read_dir(self.dir.path().join(".images")).expect("list").collect();
            assert!(left.is_empty() && !self.at("").exists(), "{left:?}");
        }
    }
}

fn run(program: &str, arguments: &[&Path]) -> bool {
    let status = Command::new(program).args(arguments).stderr(Stdio::null()).status();
    status.expect("a program").success()
}

/// Other tests start programs at the same time, which hold what we have open for a moment.
fn unmount(at: &Path) {
    let tries = (0..250).find(|_| {
        run("umount", &[at]) || {
            std::thread::sleep(Duration::from_millis(20));
            false
        }
    });
    assert!(tries.is_some(), "it stays mounted");
}

/// A small disk that volumes lie on.
struct Host {
    dir: tempfile::TempDir,
    disk: VolumeId,
    volume: VolumeId,
}

impl Host {
    fn new(size_bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let host = Self { dir, disk: VolumeId::random(), volume: VolumeId::random() };
        Images::new(host.dir.path().to_owned(), None).make(host.disk, size_bytes).expect("make");
        host
    }

    fn volumes(&self) -> PathBuf {
        self.dir.path().join(self.disk.to_string())
    }

    fn images(&self) -> Images {
        Images::new(self.volumes(), None)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let removed = self.images().remove(self.volume);
        let disk = Images::new(self.dir.path().to_owned(), None).remove(self.disk);
        if !std::thread::panicking() {
            removed.and(disk).expect("remove");
        }
    }
}

#[test]
fn a_volume_in_an_image_ends_at_its_size_and_is_allocated_in_whole() {
    let node = Node::new(16 * MIB);
    let meta = fs::metadata(node.at("")).expect("stat");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (4321, 4321, 0o755));
    assert_eq!(fs::read_dir(node.at("")).expect("list").count(), 0, "it begins empty");
    let image = fs::metadata(node.image()).expect("stat");
    assert_eq!((image.len(), image.mode() & 0o777), (16 * MIB, 0o600));
    assert!(image.blocks() * 512 >= 16 * MIB, "{} blocks", image.blocks());
    let mut file = fs::File::create(node.at("file")).expect("create");
    let full = std::io::copy(&mut std::io::repeat(7), &mut file).expect_err("it ends");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let held = file.metadata().expect("stat").len();
    assert!((9 * MIB..16 * MIB).contains(&held), "{held} bytes of 16 MB were usable");
    let options = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let options = options.lines().find(|line| line.contains(&node.volume.to_string()));
    assert!(options.is_some_and(|line| line.contains("nosuid,nodev")), "{options:?}");
}

#[test]
fn nobody_writes_beneath_a_volume_that_is_not_mounted() {
    let node = Node::new(8 * MIB);
    put(&node.at("inside"), b"kept");
    node.unmount();
    assert!(fs::File::create(node.at("outside")).is_err(), "root wrote beside the volume");
    assert_eq!(node.images.take_up(node.volume).expect("take up"), 8 * MIB);
    assert_eq!(fs::read(node.at("inside")).expect("read"), b"kept");
    node.images.take_up(node.volume).expect("it stands already");
}

#[test]
fn a_resize_keeps_everything_up_and_down() {
    let node = Node::new(64 * MIB);
    let before = node.populate();
    for (size, holds) in [(96 * MIB, 60 * MIB), (24 * MIB, 3 * MIB), (40 * MIB, 16 * MIB)] {
        node.images.resize(node.volume, size).expect("resize");
        assert!(snapshot(&node.at("")) == before, "something changed at {size}");
        assert_eq!(fs::metadata(node.image()).expect("stat").len(), size);
        assert!(fs::metadata(node.image()).expect("stat").blocks() * 512 >= size, "allocated");
        put(&node.at("more"), &vec![1; usize::try_from(holds).expect("small")]);
        fs::remove_file(node.at("more")).expect("remove");
    }
    let refused = node.images.resize(node.volume, 8 * MIB);
    assert!(matches!(refused, Err(BackingError::BelowUse)), "{refused:?}");
    let refused = node.images.resize(node.volume, 1 << 50);
    assert!(matches!(refused, Err(BackingError::NoSpace)), "{refused:?}");
    assert_eq!(fs::metadata(node.image()).expect("stat").len(), 40 * MIB);
    assert!(snapshot(&node.at("")) == before, "a refused resize changed something");
}

#[test]
fn a_volume_that_someone_is_in_is_not_resized() {
    let node = Node::new(8 * MIB);
    let open = fs::File::create(node.at("open")).expect("create");
    let refused = node.images.resize(node.volume, 16 * MIB);
    assert!(matches!(refused, Err(BackingError::Busy)), "{refused:?}");
    drop(open);
    // As a container does: a mount namespace of its own keeps the file system after our unmount.
    let mut holder = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", "echo; exec sleep 20"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut line = [0];
    std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut line).expect("it runs");
    let refused = node.images.resize(node.volume, 16 * MIB);
    assert!(matches!(refused, Err(BackingError::Busy)), "{refused:?}");
    assert!(node.at("open").exists(), "it is mounted again");
    holder.kill().expect("kill");
    holder.wait().expect("wait");
    node.images.resize(node.volume, 16 * MIB).expect("nobody is in it");
}

#[test]
fn a_resize_that_is_killed_leaves_the_old_size_or_the_new_and_every_file() {
    let node = Node::new(64 * MIB);
    let before = node.populate();
    node.unmount();
    let mut sizes = std::collections::BTreeSet::new();
    for step in 0..24 {
        run("e2fsck", &[Path::new("-fp"), &node.image()]);
        let size = if step % 2 == 0 { "24M" } else { "64M" };
        let mut resize = Command::new("resize2fs")
            .arg("-z")
            .args([node.undo(), node.image()])
            .arg(size)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("resize2fs");
        // The moment of the kill is what is varied.
        std::thread::sleep(Duration::from_millis(step * 2));
        resize.kill().expect("kill");
        resize.wait().expect("wait");
        let bytes = node.images.take_up(node.volume).expect("take up");
        assert!([24 * MIB, 64 * MIB].contains(&bytes), "{bytes}");
        sizes.insert(bytes);
        assert!(snapshot(&node.at("")) == before, "files changed after {step} steps");
        assert!(!node.undo().exists());
        node.unmount();
        let grown = fs::File::options().write(true).open(node.image()).expect("open");
        grown.set_len(64 * MIB).expect("room for the next");
    }
    node.images.take_up(node.volume).expect("take up");
}

#[test]
fn a_full_host_loses_nothing_of_what_was_promised() {
    let host = Host::new(48 * MIB);
    let (images, volumes, volume) = (host.images(), host.volumes(), host.volume);
    images.make(volume, 24 * MIB).expect("it fits");
    let too_much = images.make(VolumeId::random(), 24 * MIB);
    assert!(matches!(too_much, Err(BackingError::NoSpace)), "{too_much:?}");
    let mut filler = fs::File::create(volumes.join("filler")).expect("create");
    std::io::copy(&mut std::io::repeat(1), &mut filler).expect_err("the host is full");
    let at = volumes.join(volume.to_string());
    let noise: Vec<u8> = (0..14 * MIB).map(|_| rand::random()).collect();
    put(&at.join("file"), &noise);
    fs::File::open(at.join("file")).expect("open").sync_all().expect("flush");
    unmount(&at);
    images.take_up(volume).expect("take up");
    assert!(fs::read(at.join("file")).expect("read") == noise, "something was lost");
}

#[test]
fn an_image_that_cannot_be_mounted_in_a_volumes_place_leaves_it_the_old_one() {
    let node = Node::new(16 * MIB);
    put(&node.at("file"), b"old");
    let staged = node.images.stage(32 * MIB).expect("stage");
    let inode = |path: &Path| fs::metadata(path).expect("stat").ino();
    let before = inode(&node.image());
    node.unmount();
    assert!(run("chattr", &[Path::new("-i"), &node.at("")]));
    fs::remove_dir(node.at("")).expect("remove");
    staged.take_place_of(node.volume).expect_err("there is no folder to mount it at");
    assert_eq!(inode(&node.image()), before);
    let images: Vec<_> = fs::read_dir(node.dir.path().join(".images")).expect("list").collect();
    assert_eq!(images.len(), 1, "{images:?}");
    assert_eq!(node.images.take_up(node.volume).expect("take up"), 16 * MIB);
    assert_eq!(fs::read(node.at("file")).expect("read"), b"old");
}

/// What `work` on a volume has failed with.
async fn failed<T: Send + std::fmt::Debug + 'static>(
    files: &Files,
    volume: VolumeId,
    work: impl FnOnce(&Volume) -> Result<T, FileError> + Send + 'static,
) -> FileError {
    files.run_in(Lane::Transfer, volume, work).await.expect_err("there is no room")
}

fn write(volume: &Volume, bytes: u64) -> Result<u64, FileError> {
    let mut content = std::io::Read::take(std::io::repeat(7), bytes);
    volume.write_atomic(&rel("file"), &mut content, &WriteMode::default()).map(|done| done.size)
}

#[tokio::test]
async fn a_full_disk_is_told_apart_from_a_full_volume() {
    let host = Host::new(64 * MIB);
    let files = Files::new(FilesOptions {
        volumes_path: host.volumes(),
        owner: None,
        fsync: false,
        limits: ArchiveLimits::default(),
    });
    let files = files.expect("files");
    let image = Backing::new(QuotaBackend::Image);
    files.create_limited(host.volume, image, 16 * MIB).await.expect("an image");
    let plain = VolumeId::random();
    files.create_volume(plain).await.expect("a folder");

    let error = failed(&files, host.volume, |volume| write(volume, 20 * MIB)).await;
    assert!(matches!(error, FileError::VolumeFull { .. }), "{error:?}");
    let error = failed(&files, plain, |volume| write(volume, 80 * MIB)).await;
    assert!(matches!(error, FileError::NoSpace { .. }), "{error:?}");

    // With a limit that is not reached, and one that is.
    files.run(plain, |volume| write(volume, 24 * MIB)).await.expect("it fits once");
    for (limit, is_its_own) in [(1 << 40, false), (25 * MIB, true)] {
        let error = failed(&files, plain, move |volume| {
            let progress = Progress::default();
            volume.hold_to(Some(limit), 0, &progress)?;
            volume.copy(&rel("file"), &rel("copy"), false, &progress)
        });
        let error = error.await;
        assert_eq!(matches!(error, FileError::QuotaExceeded { .. }), is_its_own, "{error:?}");
        assert_eq!(matches!(error, FileError::NoSpace { .. }), !is_its_own, "{error:?}");
    }

    // A full host changes nothing about whose room it is that a volume in an image runs out of.
    let mut filler = fs::File::create(host.volumes().join("filler")).expect("create");
    std::io::copy(&mut std::io::repeat(1), &mut filler).expect_err("the host is full");
    let error = failed(&files, host.volume, |volume| write(volume, 20 * MIB)).await;
    assert!(matches!(error, FileError::VolumeFull { .. }), "{error:?}");
    files.run(host.volume, |volume| write(volume, MIB)).await.expect("what was promised");
    let error = failed(&files, plain, |volume| write(volume, MIB)).await;
    assert!(matches!(error, FileError::NoSpace { .. }), "{error:?}");
}
