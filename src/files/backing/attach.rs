//! An image and its mount point: attached through a loop device, taken apart, and waited for until nothing
//! holds it any more.
//!
//! Called by `image` and `staged`, who have locked the image. An unmount alone says nothing: the loop device
//! goes with its last user, who may be a container.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;

use super::BackingError;
use super::mounts;
use super::tools::{Tool, ToolError};

/// Until those who are about to leave have left.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);
/// A loop device that nobody holds any more goes a moment after its last user.
pub(super) const GOES_WITHIN: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Mounts an image, which the caller has locked, for the whole system.
pub(super) fn mount(path: &Path, image: &File, at: &Path) -> Result<(), BackingError> {
    let tries = 3;
    for attempt in 1..=tries {
        // One that something else still holds must not be opened by a second device beside it.
        let (source, options) = match loop_device(path)? {
            Some(device) => (PathBuf::from(device), "nosuid,nodev"),
            None => (path.to_owned(), "loop,nosuid,nodev"),
        };
        let mount = Tool::new("mount")?.args(["-t", "ext4", "-o", options]).arg(source).arg(at);
        match mount.holding(image)?.run() {
            Ok(_) => break,
            // A device that was about to go may be gone by now.
            Err(ToolError::Failed { .. }) if attempt < tries => std::thread::sleep(GOES_WITHIN),
            Err(error) => return Err(error.into()),
        }
    }
    if mounts::is_seen_by_the_system(at)? {
        // Of no use to anyone but the check, which makes it anew. What it saved there stays.
        std::fs::remove_dir(at.join("lost+found")).ok();
        return Ok(());
    }
    unmount(at)?;
    Err(BackingError::NotSeen)
}

pub(super) fn unmount(at: &Path) -> Result<(), BackingError> {
    let unmounted =
        wait_until(|| match rustix::mount::unmount(at, rustix::mount::UnmountFlags::empty()) {
            // Not a mount point, or not there.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(errno) => Err(BackingError::io("unmount the volume", errno)),
        })?;
    if unmounted { Ok(()) } else { Err(BackingError::Busy) }
}

/// The loop device that an image is attached to.
pub(super) fn loop_device(image: &Path) -> Result<Option<String>, BackingError> {
    let listed = Tool::new("losetup")?.args(["-n", "-O", "NAME", "-j"]).arg(image).run()?;
    Ok(listed.said.split_whitespace().next().map(str::to_owned))
}

/// Looks until it is so, for as long as those who leave may take.
pub(super) fn wait_until(
    is_so: impl Fn() -> Result<bool, BackingError>,
) -> Result<bool, BackingError> {
    wait_for(LEAVES_WITHIN, is_so)
}

pub(super) fn wait_for(
    within: Duration,
    is_so: impl Fn() -> Result<bool, BackingError>,
) -> Result<bool, BackingError> {
    let end = Instant::now() + within;
    loop {
        if is_so()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
