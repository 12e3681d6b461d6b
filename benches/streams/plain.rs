//! The engine without lightd: the image, containers made like lightd's own, what they cost.

use std::process::{Command, Stdio};

use crate::client::{Result, cpu_seconds, quietly};

pub(crate) const IMAGE: &str = "lightd-bench-streams:1";
pub(crate) const NODE: &str = "bench-streams";
/// Of containers that are not lightd's.
const LABEL: &str = "lightd-bench=streams";
pub(crate) const BRIDGE: &str = "ldbench1";

pub(crate) fn import_image() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("lightd-bench-root-{}", std::process::id()));
    for name in ["bin", "tmp", "home/container", "app/data", "mnt/server", "etc"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    std::fs::copy("/bin/busybox", folder.join("bin/busybox"))
        .map_err(|why| format!("/bin/busybox: {why}; apt-get install busybox-static"))?;
    for name in ["sh", "sleep"] {
        std::os::unix::fs::symlink("busybox", folder.join("bin").join(name))?;
    }
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/streams/printer.rs");
    let compiled = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "-O", "-C", "panic=abort", "-C", "target-feature=+crt-static"])
        .arg("-o")
        .arg(folder.join("bin/printer"))
        .arg(source)
        .status()?;
    if !compiled.success() {
        return Err("cannot compile the printer".into());
    }
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(&folder)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()?;
    let input = tar.stdout.take().ok_or("tar has no output")?;
    let done = Command::new("docker")
        .args(["import", "-", IMAGE])
        .stdin(input)
        .stdout(Stdio::null())
        .status()?;
    tar.wait()?;
    std::fs::remove_dir_all(&folder)?;
    if done.success() { Ok(()) } else { Err("docker import failed; does the engine run?".into()) }
}

/// A running container with the settings that lightd gives its own.
pub(crate) fn start(name: &str, tty: bool) -> Result<()> {
    quietly(Command::new("docker").args(["rm", "-f", name]));
    let done = Command::new("docker")
        .args(["run", "-d", if tty { "-it" } else { "-i" }, "--name", name, "--label", LABEL])
        .args(["--network", "none", "--init", "--user", "988:988", "--read-only"])
        .args(["--log-driver", "json-file", "--log-opt", "max-size=16777216"])
        .args(["--log-opt", "max-file=1", "--cap-drop", "ALL"])
        .args(["--security-opt", "no-new-privileges", IMAGE, "/bin/printer"])
        .stdout(Stdio::null())
        .status()?;
    if done.success() { Ok(()) } else { Err(format!("docker run of {name} failed").into()) }
}

pub(crate) fn cpu() -> Result<f64> {
    let pid = std::fs::read_to_string("/var/run/docker.pid")?;
    cpu_seconds(pid.trim().parse()?)
}

/// All of this bench's, lightd's too.
pub(crate) fn remove_containers() {
    for label in [LABEL, &format!("lightd.node={NODE}")] {
        let filter = format!("label={label}");
        let listed = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
        let ids = listed.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
        let ids = ids.unwrap_or_default();
        if !ids.is_empty() {
            quietly(Command::new("docker").args(["rm", "-f"]).args(ids.lines()));
        }
    }
}

pub(crate) fn remove_all() {
    remove_containers();
    quietly(Command::new("docker").args(["network", "rm", BRIDGE]));
    quietly(Command::new("docker").args(["rmi", IMAGE]));
}
