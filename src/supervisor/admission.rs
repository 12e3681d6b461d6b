//! Whether this node takes a specification: everything wrong with it, before anything is stored.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::services::Services;
use crate::domain::spec::{ContainerSpec, Mount, Problem};

/// Container folders that a mount must not cover: lightd's own.
const TAKEN: &[&str] =
    &["/", "/home/container", "/mnt/server", "/app/data", "/tmp", "/proc", "/sys", "/dev"];

/// Compiles patterns and looks at folders, on a thread that may take its time.
pub(super) async fn problems(spec: &Arc<ContainerSpec>, services: &Services) -> Vec<Problem> {
    let (spec, capacity) = (Arc::clone(spec), services.capacity);
    let allowed = services.settings().allowed_mounts.clone();
    let look = move || {
        let mut found = spec.problems(capacity);
        found.extend(mount_problems(&spec, &allowed));
        found
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(found) => found,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being taken down, and who asked with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Blocking: looks at the folders.
pub(super) fn mount_problems(spec: &ContainerSpec, allowed: &[PathBuf]) -> Vec<Problem> {
    let refused = |mount: &Mount| {
        let why = check_mount(mount, allowed).err()?;
        Some(Problem::new(format!("mount.{}", mount.target), why))
    };
    spec.mounts.iter().filter_map(refused).collect()
}

/// A host folder may be mounted if it lies beneath an allowed one, both resolved, compared part by
/// part: `/mnt/a` does not admit `/mnt/ab`, nor a link in it that leads elsewhere.
fn check_mount(mount: &Mount, allowed: &[PathBuf]) -> Result<(), &'static str> {
    const NOT_ALLOWED: &str = "lies beneath no folder of docker.allowed_mounts";
    let target = Path::new(&mount.target);
    let is_plain =
        target.is_absolute() && !mount.target.contains("..") && !mount.target.contains([':', '\0']);
    if !is_plain || TAKEN.iter().any(|taken| target == Path::new(taken)) {
        return Err("must name an absolute path in the container that is not lightd's own");
    }
    let source = mount.source.canonicalize().map_err(|_| NOT_ALLOWED)?;
    let beneath = |root: &PathBuf| root.canonicalize().is_ok_and(|root| source.starts_with(root));
    if allowed.iter().any(beneath) { Ok(()) } else { Err(NOT_ALLOWED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_compared_part_by_part_after_resolving() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a", "ab", "a/in"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::os::unix::fs::symlink(at("ab"), at("a/out")).unwrap();
        let check = |source: &str, target: &str| {
            let mount = Mount { target: target.to_owned(), source: at(source), read_only: false };
            check_mount(&mount, &[at("a")])
        };
        assert_eq!(check("a/in", "/data"), Ok(()));
        assert_eq!(check("a", "/data"), Ok(()));
        for source in ["ab", "a/out", "a/missing", "a/../ab"] {
            assert!(check(source, "/data").is_err(), "{source}");
        }
        for target in ["data", "/home/container", "/x/../y", "/"] {
            assert!(check("a/in", target).is_err(), "{target}");
        }
        let nothing_allowed = check_mount(
            &Mount { target: "/data".to_owned(), source: at("a"), read_only: true },
            &[],
        );
        assert!(nothing_allowed.is_err());
    }
}
