//! The engine by its own client: the plain thing to compare with.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::client::{Result, cpu_seconds, quietly};
use crate::{BRIDGE, IMAGE, NODE};

pub(super) fn import_image() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("lightd-bench-root-{}", std::process::id()));
    for name in ["bin", "tmp", "home/container", "app/data", "mnt/server", "etc"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    std::fs::copy("/bin/busybox", folder.join("bin/busybox"))
        .map_err(|why| format!("/bin/busybox: {why}; apt-get install busybox-static"))?;
    for name in ["sh", "sleep", "echo"] {
        std::os::unix::fs::symlink("busybox", folder.join("bin").join(name))?;
    }
    let tar = Command::new("tar")
        .args(["-C"])
        .arg(&folder)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()?;
    let input = tar.stdout.ok_or("tar has no output")?;
    let done = Command::new("docker")
        .args(["import", "-", IMAGE])
        .stdin(input)
        .stdout(Stdio::null())
        .status()?;
    std::fs::remove_dir_all(&folder)?;
    if done.success() { Ok(()) } else { Err("docker import failed; does the engine run?".into()) }
}

pub(super) fn create(name: &str) -> Result<()> {
    quietly(Command::new("docker").args(["rm", "-f", name]));
    let label = format!("lightd.node={NODE}");
    run(&[
        "create",
        "--name",
        name,
        "--network",
        BRIDGE,
        "--label",
        &label,
        "--init",
        "-it",
        "--user",
        "988:988",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        IMAGE,
        "/bin/sh",
        "-c",
        "echo Ready; sleep 1000000",
    ])
}

/// By the engine's socket, as lightd does it: the client program costs tens of milliseconds itself.
pub(super) fn start(name: &str) -> Result<()> {
    ask(&format!("/containers/{name}/start"))
}

pub(super) fn kill(name: &str) -> Result<()> {
    ask(&format!("/containers/{name}/kill"))?;
    ask(&format!("/containers/{name}/wait"))
}

fn ask(path: &str) -> Result<()> {
    let mut socket = std::os::unix::net::UnixStream::connect("/var/run/docker.sock")?;
    write!(
        socket,
        "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 2") { Ok(()) } else { Err(format!("{path}: {answer}").into()) }
}

pub(super) fn cpu() -> Result<f64> {
    let pid = std::fs::read_to_string("/var/run/docker.pid")?;
    cpu_seconds(pid.trim().parse()?)
}

pub(super) fn remove_all() {
    let filter = format!("label=lightd.node={NODE}");
    let listed = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
    for id in listed
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
        .unwrap_or_default()
        .lines()
    {
        quietly(Command::new("docker").args(["rm", "-f", id]));
    }
    quietly(Command::new("docker").args(["network", "rm", BRIDGE]));
    quietly(Command::new("docker").args(["rmi", IMAGE]));
}

fn run(args: &[&str]) -> Result<()> {
    let done = Command::new("docker").args(args).stdout(Stdio::null()).status()?;
    if done.success() { Ok(()) } else { Err(format!("docker {args:?} failed").into()) }
}
