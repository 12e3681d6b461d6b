//! A container's counters, read from the kernel: control groups of version 1 and 2, and the network
//! devices of its first process.
//!
//! The supervisor finds a [`Cgroup`] once per run and reads it as often as it likes; a reading is a
//! handful of small files without a disk behind them. Nothing is kept open, because a few hundred
//! containers would use up this process's files. Failure: a group that is no more is
//! [`CgroupError::Gone`], the normal end of a run; anything else says that this kernel shows its
//! counters elsewhere, and the engine has to be asked.
//!
//! Only the control group is the container's for sure. The process id may have been given to another
//! process after the exit, so it is read after the group was seen to exist.

mod kernel_log;
mod oom;
mod text;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::kernel_log::KernelLog;
use self::text::{block_v1, block_v2, field, inactive_file, network_totals, pressure};
use crate::domain::stats::Counters;
use crate::util::mountinfo::unescaped;

/// When the clock of all readings was first looked at, and what it showed: the time since the host's start,
/// so that an earlier process's readings can be compared with ours.
static EPOCH: LazyLock<(Instant, Duration)> = LazyLock::new(|| (Instant::now(), since_boot()));

#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The run is over.
    #[error("the control group is gone")]
    Gone,
    #[error("process {pid} is in no control group with the counters that are needed")]
    NotFound { pid: u32 },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} does not hold what it should", path.display())]
    Format { path: PathBuf },
}

/// Where the counters of one run are.
#[derive(Debug)]
pub(crate) struct Cgroup {
    files: Files,
    network: PathBuf,
    machine_memory_bytes: u64,
}

#[derive(Debug)]
enum Files {
    V1 {
        cpu: PathBuf,
        throttling: Option<PathBuf>,
        memory: Memory,
        block: Option<PathBuf>,
        pids: Option<PathBuf>,
    },
    V2 {
        cpu: PathBuf,
        memory: Memory,
        pressure: PathBuf,
        block: PathBuf,
        pids: PathBuf,
    },
}

#[derive(Debug)]
struct Memory {
    usage: PathBuf,
    stat: PathBuf,
    limit: PathBuf,
    oom: PathBuf,
}

/// The present moment on the clock of all readings.
pub(crate) fn now() -> Duration {
    let (epoch, showed) = *EPOCH;
    showed + epoch.elapsed()
}

fn since_boot() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|seconds| seconds.parse().ok());
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default()
}

impl Cgroup {
    /// Finds the control groups of a container by its first process. Reads a few files.
    pub(crate) fn find(pid: u32) -> Result<Self, CgroupError> {
        let mut text = Vec::new();
        let groups = read(Path::new(&format!("/proc/{pid}/cgroup")), &mut text)?.to_owned();
        let mounts = read(Path::new("/proc/self/mountinfo"), &mut text)?.to_owned();
        let meminfo = Path::new("/proc/meminfo");
        let kib = field(read(meminfo, &mut text)?, "MemTotal:").ok_or_else(|| bad(meminfo))?;
        Ok(Self {
            files: Files::locate(&groups, &mounts).ok_or(CgroupError::NotFound { pid })?,
            network: PathBuf::from(format!("/proc/{pid}/net/dev")),
            machine_memory_bytes: kib.saturating_mul(1024),
        })
    }

    /// Reads the counters. `text` is a buffer to use again.
    pub(crate) fn read(&self, text: &mut Vec<u8>) -> Result<Counters, CgroupError> {
        let mut counters = Counters { taken_at: now(), ..Counters::default() };
        let memory = match &self.files {
            Files::V1 { cpu, throttling, memory, block, pids } => {
                counters.cpu_ns = number(cpu, text)?;
                if let Some(throttling) = throttling {
                    let stat = optional(read(throttling, text))?;
                    counters.throttled_ns =
                        stat.and_then(|stat| field(stat, "throttled_time")).unwrap_or(0);
                }
                if let Some(pids) = pids {
                    counters.pids = optional(number(pids, text))?.unwrap_or(0);
                }
                if let Some(block) = block {
                    let block = optional(read(block, text))?.map(block_v1);
                    (counters.block_read, counters.block_write) = block.unwrap_or_default();
                }
                memory
            }
            Files::V2 { cpu, memory, pressure: file, block, pids } => {
                let stat = read(cpu, text)?;
                let micros = field(stat, "usage_usec").ok_or_else(|| bad(cpu))?;
                counters.cpu_ns = micros.saturating_mul(1000);
                // Absent where there is no limit.
                let throttled = field(stat, "throttled_usec").unwrap_or(0);
                counters.throttled_ns = throttled.saturating_mul(1000);
                // Kernels may be built, or booted, without it; then the file is not there or cannot be read.
                counters.memory_pressure = read(file, text).ok().and_then(pressure);
                counters.pids = optional(number(pids, text))?.unwrap_or(0);
                let block = optional(read(block, text))?.map(block_v2);
                (counters.block_read, counters.block_write) = block.unwrap_or_default();
                memory
            }
        };
        self.read_memory(memory, text, &mut counters)?;
        let network = read(&self.network, text)?;
        (counters.network_rx, counters.network_tx) = network_totals(network);
        Ok(counters)
    }

    fn read_memory(
        &self,
        files: &Memory,
        text: &mut Vec<u8>,
        counters: &mut Counters,
    ) -> Result<(), CgroupError> {
        let usage = number(&files.usage, text)?;
        let cache = inactive_file(read(&files.stat, text)?).ok_or_else(|| bad(&files.stat))?;
        counters.memory_bytes = usage.saturating_sub(cache);
        // Without a limit, version 2 says "max" and version 1 a number beyond all machines.
        let limit = read(&files.limit, text)?.trim().parse().unwrap_or(u64::MAX);
        counters.memory_limit_bytes = limit.min(self.machine_memory_bytes);
        Ok(())
    }
}

impl Files {
    /// Finds the files by the texts of `/proc/<pid>/cgroup` and `/proc/self/mountinfo`.
    fn locate(groups: &str, mounts: &str) -> Option<Self> {
        let dir = |controller| group_dir(groups, mounts, controller);
        let Some(memory) = dir("memory") else { return Self::locate_v2(&dir("")?) };
        let in_memory = |name| memory.join(name);
        Some(Self::V1 {
            cpu: dir("cpuacct")?.join("cpuacct.usage"),
            throttling: dir("cpu").map(|dir| dir.join("cpu.stat")),
            memory: Memory {
                usage: in_memory("memory.usage_in_bytes"),
                stat: in_memory("memory.stat"),
                limit: in_memory("memory.limit_in_bytes"),
                oom: in_memory("memory.oom_control"),
            },
            block: dir("blkio").map(|dir| dir.join("blkio.throttle.io_service_bytes_recursive")),
            pids: dir("pids").map(|dir| dir.join("pids.current")),
        })
    }

    fn locate_v2(dir: &Path) -> Option<Self> {
        Some(Self::V2 {
            cpu: dir.join("cpu.stat"),
            memory: Memory {
                usage: dir.join("memory.current"),
                stat: dir.join("memory.stat"),
                limit: dir.join("memory.max"),
                oom: dir.join("memory.events"),
            },
            pressure: dir.join("memory.pressure"),
            block: dir.join("io.stat"),
            pids: dir.join("pids.current"),
        })
    }
}

/// The folder of a process's group under a controller of version 1, or, for "", under version 2.
fn group_dir(groups: &str, mounts: &str, controller: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })?;
    mounts.lines().find_map(|line| mounted_group(line, controller, group))
}

/// The folder of `group`, if the line of `mountinfo` is the mount of its hierarchy and holds it.
fn mounted_group(line: &str, controller: &str, group: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let mut path = || Some(unescaped(left.next()?.as_bytes()));
    let (root, point) = (path()?, path()?);
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1)?);
    let is_it = match controller {
        "" => kind == "cgroup2",
        name => kind == "cgroup" && options.split(',').any(|option| option == name),
    };
    let below = Path::new(group).strip_prefix(&root).ok()?;
    let inside = !below.components().any(|part| part == std::path::Component::ParentDir);
    (is_it && inside).then(|| point.join(below))
}

fn read<'a>(path: &Path, text: &'a mut Vec<u8>) -> Result<&'a str, CgroupError> {
    text.clear();
    let result = File::open(path).and_then(|mut file| file.read_to_end(text));
    result.map_err(|source| read_error(path, source))?;
    std::str::from_utf8(text).map_err(|_| bad(path))
}

fn read_error(path: &Path, source: io::Error) -> CgroupError {
    use rustix::io::Errno;
    let gone = [Errno::NOENT, Errno::NODEV, Errno::SRCH, Errno::INVAL];
    match source.raw_os_error() {
        // The last two are what the files of a process that ended answer.
        Some(code) if gone.iter().any(|errno| errno.raw_os_error() == code) => CgroupError::Gone,
        _ => CgroupError::Read { path: path.to_owned(), source },
    }
}

fn bad(path: &Path) -> CgroupError {
    CgroupError::Format { path: path.to_owned() }
}

fn number(path: &Path, text: &mut Vec<u8>) -> Result<u64, CgroupError> {
    read(path, text)?.trim().parse().map_err(|_| bad(path))
}

/// A controller that is not switched on, or older than a file, lacks it though the group is there.
fn optional<T>(result: Result<T, CgroupError>) -> Result<Option<T>, CgroupError> {
    match result {
        Err(CgroupError::Gone) => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use crate::engine::testing::TestNode;

    use super::*;

    const MOUNTS_V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /outer /mnt/my\\040memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const GROUPS_V1: &str = "\
9:name=systemd:/docker/abc
8:pids:/docker/abc
4:memory:/outer/docker/abc
2:cpu,cpuacct:/docker/abc
0::/docker/abc
";

    #[test]
    fn version_1_groups_are_found_by_controller() {
        let Some(Files::V1 { cpu, throttling, memory, block, pids }) =
            Files::locate(GROUPS_V1, MOUNTS_V1)
        else {
            panic!("not found");
        };
        assert_eq!(cpu, Path::new("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpuacct.usage"));
        assert_eq!(memory.stat, Path::new("/mnt/my memory/docker/abc/memory.stat"));
        assert_eq!(pids.unwrap(), Path::new("/sys/fs/cgroup/pids/docker/abc/pids.current"));
        assert_eq!(throttling.unwrap(), cpu.with_file_name("cpu.stat"));
        assert_eq!(block, None);
    }

    #[test]
    fn version_2_groups_are_found() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let groups = "0::/system.slice/docker-abc.scope\n";
        let Some(Files::V2 { cpu, .. }) = Files::locate(groups, mounts) else {
            panic!("not found");
        };
        assert_eq!(cpu, Path::new("/sys/fs/cgroup/system.slice/docker-abc.scope/cpu.stat"));
        assert!(Files::locate("0::/../outside\n", mounts).is_none());
        assert!(Files::locate(groups, "").is_none());
    }

    async fn pid_of(node: &TestNode, id: &str) -> u32 {
        let seen = node.engine.inspect(id).await.unwrap().unwrap();
        seen.pid.unwrap()
    }

    #[tokio::test]
    async fn a_running_container_is_read_until_it_is_gone() {
        let node = TestNode::new().await;
        let mut request = node.request("a", &["sh", "-c", "cat /dev/zero | cat > /dev/null"]);
        request.limits.memory = Some(64 << 20);
        let id = node.run(&request).await;
        let cgroup = Cgroup::find(pid_of(&node, &id).await).unwrap();
        let mut text = Vec::new();
        let first = cgroup.read(&mut text).unwrap();
        let mut last = first;
        let deadline = first.taken_at + Duration::from_secs(20);
        while last.cpu_ns < first.cpu_ns + 50_000_000 || last.pids < 3 {
            assert!(last.taken_at < deadline, "the container does nothing: {last:?}");
            last = cgroup.read(&mut text).unwrap();
        }
        assert_eq!(last.memory_limit_bytes, 64 << 20);
        assert!((1..64 << 20).contains(&last.memory_bytes), "{last:?}");

        let told = node.engine.counters(&id).await.unwrap().unwrap();
        let after = cgroup.read(&mut text).unwrap();
        assert!((last.cpu_ns..=after.cpu_ns).contains(&told.cpu_ns), "{last:?} {told:?} {after:?}");
        assert_eq!((told.memory_limit_bytes, told.pids), (64 << 20, after.pids));
        assert!((1..64 << 20).contains(&told.memory_bytes), "{told:?}");

        node.engine.kill(&id, "SIGKILL").await.unwrap();
        node.engine.wait(&id).await.unwrap();
        assert!(matches!(cgroup.read(&mut text), Err(CgroupError::Gone)));
        assert_eq!(node.engine.counters(&id).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_kernel_tells_of_memory_that_ran_out_and_of_nothing_else() {
        let node = TestNode::new().await;
        let mut request = node.request("a", &["sh", "-c", "read go; guest alloc 200"]);
        request.limits.memory = Some(32 << 20);
        let id = node.engine.create(&request).await.unwrap().docker_id;
        let mut attached = node.engine.attach(&id, false).await.unwrap();
        node.engine.start(&id).await.unwrap();
        let mut watch = Cgroup::find(pid_of(&node, &id).await).unwrap().watch_oom().unwrap();
        attached.input.write_all(b"go\n").await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(20), watch.killed()).await;
        told.expect("the kernel killed it and said nothing within 20 s");

        let id = node.run(&node.request("b", &["sleep", "1000"])).await;
        let mut watch = Cgroup::find(pid_of(&node, &id).await).unwrap().watch_oom().unwrap();
        node.engine.kill(&id, "SIGKILL").await.unwrap();
        node.engine.wait(&id).await.unwrap();
        let told = tokio::time::timeout(Duration::from_millis(300), watch.killed()).await;
        assert!(told.is_err(), "an ordinary end is no lack of memory");
    }
}
