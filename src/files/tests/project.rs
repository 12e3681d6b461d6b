//! Project quotas. Few development machines have them, so these are built (with `--cfg project_quotas`) and run by
//! `install-scripts/vm-test.sh` alone, in a virtual machine with a distribution's kernel. `LIGHTD_PROJECT_DISK` is a
//! file system mounted with `prjquota`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::super::backing::project;
use super::super::claims::Work;
use super::super::replica::Tally;
use super::super::snapshots::Restore;
use super::super::{Files, FilesOptions};
use super::*;
use crate::domain::quota::{Backing, QuotaBackend};
use crate::files::Progress;

const MIB: u64 = 1 << 20;
const USER: u32 = 988;

struct Node {
    files: Files,
    volumes: PathBuf,
}

fn node() -> Node {
    let disk = std::env::var_os("LIGHTD_PROJECT_DISK").expect("run by install-scripts/vm-test.sh");
    let volumes = Path::new(&disk).join(format!("volumes-{:x}", rand::random::<u32>()));
    let files = Files::new(FilesOptions {
        volumes_path: volumes.clone(),
        owner: Some((USER, USER)),
        fsync: true,
        limits: ArchiveLimits::default(),
    });
    Node { files: files.expect("files"), volumes }
}

impl Drop for Node {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.volumes).ok();
    }
}

impl Node {
    async fn make(&self, size_bytes: u64) -> (VolumeId, Backing) {
        let volume = VolumeId::random();
        let number = project::numbers_for(volume).next();
        let backing = Backing { backend: QuotaBackend::Project, project: number };
        self.files.create_limited(volume, backing, size_bytes).await.expect("create");
        (volume, backing)
    }

    /// Writes as a workload does: as its user, whom the kernel holds to limits. Whether all was taken.
    fn workload_writes(&self, volume: VolumeId, name: &str, mib: u64) -> bool {
        let written = Command::new("/bin/busybox")
            .args(["dd", "if=/dev/zero", "bs=1048576", "conv=fsync"])
            .arg(format!("of={}", self.volumes.join(volume.to_string()).join(name).display()))
            .arg(format!("count={mib}"))
            .uid(USER)
            .gid(USER)
            .output()
            .expect("dd");
        let said = String::from_utf8_lossy(&written.stderr).into_owned();
        let full = ["quota", "No space"].iter().any(|what| said.contains(what));
        assert!(written.status.success() || full, "{said}");
        written.status.success()
    }

    async fn used(&self, volume: VolumeId) -> u64 {
        self.files.run(volume, |volume| volume.usage(None)).await.expect("usage").used_bytes
    }
}

#[tokio::test]
async fn a_project_is_found_to_work_by_trying() {
    let node = node();
    node.files.probe(QuotaBackend::Project).await.expect("it works here");
    let left: Vec<_> = fs::read_dir(&node.volumes).expect("list").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_project_volume_ends_at_its_size_for_the_workload_and_for_lightd() {
    let node = node();
    let (volume, backing) = node.make(8 * MIB).await;
    let (other, _) = node.make(8 * MIB).await;
    assert!(node.workload_writes(volume, "half", 4));
    assert!(!node.workload_writes(volume, "more", 20), "the kernel let it write on");
    let used = node.used(volume).await;
    assert!((7 * MIB..=8 * MIB).contains(&used), "{used}");
    assert!(node.workload_writes(other, "file", 4), "others go on");
    let write = |volume: &Volume| {
        let progress = Progress::default();
        volume.hold_to(Some(8 * MIB), 0, &progress)?;
        progress.spend(MIB)
    };
    let refused = node.files.run(volume, write).await;
    assert!(matches!(refused, Err(FileError::QuotaExceeded { .. })), "{refused:?}");
    node.files.limit_project(volume, backing, Some(40 * MIB)).await.expect("larger");
    assert!(node.workload_writes(volume, "more", 20));
    node.files.limit_project(volume, backing, None).await.expect("no limit");
    assert!(node.workload_writes(volume, "much", 60));
    for volume in [volume, other] {
        node.files.remove_volume(volume).await.expect("remove");
    }
}

#[tokio::test]
async fn a_folder_that_is_there_becomes_a_project_with_all_that_is_in_it() {
    let node = node();
    let volume = VolumeId::random();
    node.files.create_volume(volume).await.expect("create");
    for index in 0..20 {
        put(&node.volumes.join(format!("{volume}/a/{index}/file")), &vec![1; 200_000]);
    }
    std::os::unix::fs::symlink("/etc/passwd", node.volumes.join(format!("{volume}/a/link")))
        .expect("symlink");
    let number = project::numbers_for(volume).next();
    let backing = Backing { backend: QuotaBackend::Project, project: number };
    node.files.limit_project(volume, backing, Some(6 * MIB)).await.expect("limit");
    let used = node.used(volume).await;
    assert!((3 * MIB..5 * MIB).contains(&used), "{used}");
    assert!(!node.workload_writes(volume, "more", 4));
}

#[tokio::test]
async fn a_restore_of_a_full_project_fits_and_keeps_the_limit() {
    let node = node();
    let (volume, backing) = node.make(16 * MIB).await;
    assert!(node.workload_writes(volume, "old", 12));
    let snapshot = uuid::Uuid::new_v4();
    let copied = node.files.copy_for_snapshot(volume, snapshot, Progress::default()).await;
    let tally = copied.expect("copy");
    assert_eq!(tally, Tally { bytes: 12 * MIB, entries: 1 });
    node.files.keep_snapshot(volume, snapshot).await.expect("keep");
    fs::remove_file(node.volumes.join(format!("{volume}/old"))).expect("remove");
    assert!(node.workload_writes(volume, "new", 12), "snapshots do not count");
    let claim = node.files.claim(volume, Work::Restore).await.expect("claim");
    let number = project::numbers_for(VolumeId::random()).next();
    let restore = Restore {
        snapshot,
        expected: tally,
        backing: Some(backing),
        new_project: number,
        size_bytes: Some(16 * MIB),
    };
    drop(node.files.restore(claim, restore, Progress::default()).await.expect("restore"));
    let borne = project::assigned(&node.volumes.join(volume.to_string())).expect("lsattr");
    assert_eq!(borne, number);
    assert!(!node.volumes.join(format!("{volume}/new")).exists());
    let used = node.used(volume).await;
    assert!((12 * MIB..13 * MIB).contains(&used), "{used}");
    assert!(!node.workload_writes(volume, "more", 8), "the limit still stands");
    // As after a crash before the new number was stored: the old one is given again.
    node.files.limit_project(volume, backing, Some(16 * MIB)).await.expect("limit");
    fs::remove_file(node.volumes.join(format!("{volume}/more"))).expect("remove");
    assert!(!node.workload_writes(volume, "more", 8), "the limit still stands");
    node.files.remove_volume(volume).await.expect("remove");
}
