//! The image that test containers run: a static busybox and the guest program, nothing else. It is built
//! here and imported once; its tag is the hash of all it is made of, so test processes share it and a
//! change of the guest makes a new one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use bollard::Docker;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};

const REPOSITORY: &str = "lightd-test";
const GUEST_SOURCE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/guest.rs"));
const TRAP_SOURCE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/trap-term"));
const FOLDERS: [&str; 9] =
    ["bin", "usr/bin", "tmp", "root", "home/container", "mnt/server", "app/data", "etc", "var"];
const APPLETS: &str = "sh sleep cat echo ls kill ps wget nc id date mkdir true false env touch head tail \
     stty rm mv cp ln chmod chown grep sed awk tr wc sort seq printf test tee dd stat df du sync ping ip \
     hostname uname vi which find xargs pwd rmdir readlink nslookup md5sum sha256sum expr yes";

/// Makes sure that the image is there and returns its name.
pub(crate) async fn ensure_image(docker: &Docker) -> anyhow::Result<String> {
    let busybox = read_busybox()?;
    let name = format!("{REPOSITORY}:{}", tag(&busybox));
    if docker.inspect_image(&name).await.is_ok() {
        return Ok(name);
    }
    // Held until the import is through; waiting for it blocks.
    let lock = lock_file()?;
    let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
        .await?
        .context("cannot lock the import of the test image")?;
    import(docker, &name, &busybox).await?;
    Ok(name)
}

async fn import(docker: &Docker, name: &str, busybox: &[u8]) -> anyhow::Result<()> {
    // Another process may have been first.
    if docker.inspect_image(name).await.is_ok() {
        return Ok(());
    }
    let archive = pack(busybox, &compile_guest()?)?;
    let (repository, tag) = name.split_once(':').context("a name without a tag")?;
    let options = CreateImageOptionsBuilder::new()
        .from_src("-")
        .repo(repository)
        .tag(tag)
        .changes(vec!["CMD [\"/bin/sh\"]".to_owned()])
        .build();
    let body = bollard::body_full(archive.into());
    let lines = docker.create_image(Some(options), Some(body), None);
    lines.try_collect::<Vec<_>>().await.context("cannot import the test image")?;
    Ok(())
}

fn read_busybox() -> anyhow::Result<Vec<u8>> {
    let bytes =
        ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    bytes.context("the tests need a static busybox: apt-get install busybox-static")
}

fn tag(busybox: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [busybox, GUEST_SOURCE.as_bytes(), TRAP_SOURCE.as_bytes(), APPLETS.as_bytes()] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.update(FOLDERS.join(" "));
    hex::encode(&hash.finalize()[..8])
}

fn lock_file() -> anyhow::Result<File> {
    let path = std::env::temp_dir().join("lightd-test-image.lock");
    File::create(&path).with_context(|| format!("cannot make {}", path.display()))
}

fn compile_guest() -> anyhow::Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("guest");
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/guest/guest.rs");
    let compiled = Command::new(compiler)
        .args(["--edition", "2024", "-O", "-C", "panic=abort", "-C", "target-feature=+crt-static"])
        .arg("-o")
        .arg(&program)
        .arg(source)
        .output()
        .context("cannot run rustc")?;
    if !compiled.status.success() {
        bail!("cannot compile the guest: {}", String::from_utf8_lossy(&compiled.stderr));
    }
    Ok(std::fs::read(program)?)
}

fn pack(busybox: &[u8], guest: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for folder in FOLDERS {
        let mut header =
            header(tar::EntryType::Directory, if folder == "tmp" { 0o1777 } else { 0o755 });
        archive.append_data(&mut header, format!("{folder}/"), std::io::empty())?;
    }
    let files: [(&str, &[u8], u32); 4] = [
        ("bin/busybox", busybox, 0o755),
        ("bin/guest", guest, 0o755),
        ("bin/trap-term", TRAP_SOURCE.as_bytes(), 0o755),
        ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644),
    ];
    for (path, bytes, mode) in files {
        let mut header = header(tar::EntryType::Regular, mode);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, path, bytes)?;
    }
    let links = APPLETS.split_whitespace().map(|applet| Path::new("bin").join(applet));
    for link in links.chain([PathBuf::from("usr/bin/env")]) {
        let mut header = header(tar::EntryType::Symlink, 0o777);
        archive.append_link(&mut header, link, "/bin/busybox")?;
    }
    Ok(archive.into_inner()?)
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header
}
