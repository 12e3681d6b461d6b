//! The API's description, used: it is valid, nothing is answered that it does not have, and a typed client
//! that is made of it drives a container.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::support::contract;
use crate::support::process::Daemon;

/// How long schemathesis makes up requests. Each call gets its examples and its edge cases whatever that takes.
const FUZZING_S: u64 = 90;
const TOOL_DEADLINE: Duration = Duration::from_secs(420);

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi")
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")
}

/// Runs a tool to its end and returns what it printed.
async fn run(command: &mut Command) -> String {
    let what = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(TOOL_DEADLINE, command.output()).await;
    let done = done.unwrap_or_else(|_| panic!("{what} does not end"));
    let done = done.unwrap_or_else(|error| {
        panic!("{what}: {error}; install-scripts/test.sh installs what is missing")
    });
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let complained = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{what}: {}\n{said}\n{complained}", done.status);
    said
}

/// A folder under `target/` that is set up once for these files, and kept for further runs.
async fn installed(name: &str, files: &[&str], install: impl AsyncFnOnce(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let wanted: Vec<String> = files
        .iter()
        .map(|file| std::fs::read_to_string(sources().join(file)).expect("a file"))
        .collect();
    let wanted = wanted.concat();
    let mark = folder.join("installed");
    if std::fs::read_to_string(&mark).is_ok_and(|kept| kept == wanted) {
        return folder;
    }
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(&folder).expect("a folder");
    install(&folder).await;
    std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&mark)
        .and_then(|mut file| std::io::Write::write_all(&mut file, wanted.as_bytes()))
        .expect("a mark");
    folder
}

/// Where schemathesis and the validator of documents are.
async fn python_tools() -> &'static Path {
    static BIN: OnceCell<PathBuf> = OnceCell::const_new();
    let install = async |folder: &Path| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder)).await;
        let mut pip = Command::new(folder.join("bin/pip"));
        pip.args(["install", "-q", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
        run(pip.arg("-r").arg(sources().join("requirements.txt"))).await;
    };
    let tools =
        async || installed("schemathesis", &["requirements.txt"], install).await.join("bin");
    BIN.get_or_init(tools).await
}

#[tokio::test]
async fn the_document_is_valid_and_the_same_wherever_it_comes_from() {
    let daemon = Daemon::start().await;
    let kept = std::fs::read_to_string(document()).expect("docs/openapi.json");
    let served = daemon.client().anonymous().without_accept().get("/openapi.json").await;
    assert_eq!((served.status, served.text == kept), (200, true), "GET /openapi.json");
    let printed = daemon.command(&["openapi"]).output().expect("it runs");
    assert!(printed.status.success() && printed.stdout == kept.as_bytes(), "lightd openapi");
    let page = daemon.client().anonymous().without_accept().get("/docs/").await;
    assert!(page.status == 200 && page.text.contains("swagger-ui"), "{page:?}");
    daemon.close().await;

    let validator = python_tools().await.join("openapi-spec-validator");
    run(Command::new(validator).args(["--schema", "3.1"]).arg(document())).await;
}

#[test]
fn every_example_of_the_document_is_as_its_schema_says() {
    let checked = contract::check_examples();
    assert!(checked > 200, "{checked}");
}

/// Something for the made up requests to meet.
async fn furnish(daemon: &Daemon) -> (String, String) {
    let id = daemon.id("fuzz");
    let spec = json!({"startup_command": "echo Ready; while read line; do echo \"$line\"; done"});
    let made = daemon.create(&id, spec).await;
    let volume = made["volume_id"].as_str().expect("an id").to_owned();
    let client = daemon.client();
    let file = json!({"path": "world/level.dat", "content": "level"});
    client.post(&format!("/volumes/{volume}/files"), file).await.is(201);
    let pack = json!({"format": "zip", "output_name": "backup.zip", "paths": ["world"]});
    client.post(&format!("/volumes/{volume}/compress"), pack).await.is(201);
    client
        .post("/network/ports", json!({"ip": "127.0.0.1", "from": 41000, "to": 41009}))
        .await
        .is(201);
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    (id, volume)
}

#[tokio::test]
async fn schemathesis_finds_no_500_and_no_answer_that_the_document_does_not_have() {
    let tools = python_tools().await;
    let daemon = Daemon::start_with(|config| config["quota"] = json!({"backend": "soft"})).await;
    let (container, volume) = furnish(&daemon).await;
    let mut schemathesis = Command::new(tools.join("schemathesis"));
    schemathesis
        .arg("--config-file")
        .arg(sources().join("schemathesis.toml"))
        .arg("run")
        .arg(document())
        .args(["--url", &daemon.url(), "--no-color", "--generation-deterministic"])
        .args(["-H", &format!("Authorization: Bearer {}", daemon.token)])
        .args(["-H", "Accept: Application/vnd.pkglatv1+json"])
        // The one stream has no end; the requests of a socket are told apart elsewhere.
        .args(["--exclude-path", "/containers/{id}/events"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "12"])
        .args(["--max-time", &FUZZING_S.to_string(), "--request-timeout", "60"])
        .args(["--checks", CHECKS, "--continue-on-failure", "--warnings", "off"])
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", sources())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LIGHTD_TEST_CONTAINER", &container)
        .env("LIGHTD_TEST_VOLUME", &volume)
        .env("LIGHTD_TEST_IMAGE", &daemon.image)
        .current_dir(daemon.folder());
    let said = run(&mut schemathesis).await;
    assert!(said.contains("generated") && !said.contains("Errors:"), "{said}");
    daemon.client().get(&format!("/containers/{container}")).await.is(200);
    daemon.close().await;
}

/// No 500, nothing that the document does not have, nothing taken that it does not allow.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,ignored_auth,\
                      unsupported_method,negative_data_rejection,missing_required_header";

#[tokio::test]
async fn a_typed_client_made_of_the_document_drives_a_container() {
    let files = ["package.json", "package-lock.json"];
    let install = async |folder: &Path| {
        for file in files {
            std::fs::copy(sources().join(file), folder.join(file)).expect("a copy");
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
        run(npm.current_dir(folder)).await;
    };
    let folder = installed("openapi-client", &files, install).await;
    for file in ["tsconfig.json", "drive.ts"] {
        std::fs::copy(sources().join(file), folder.join(file)).expect("a copy");
    }
    let tool = |name: &str| Command::new(folder.join("node_modules/.bin").join(name));
    run(tool("openapi-typescript")
        .arg(document())
        .args(["-o", "lightd.d.ts"])
        .current_dir(&folder))
    .await;
    run(tool("tsc").args(["-p", "."]).current_dir(&folder)).await;

    let daemon = Daemon::start().await;
    let mut drive = Command::new("node");
    drive.args(["out/drive.js", &daemon.url(), &daemon.token, &daemon.image, &daemon.id("typed")]);
    let said = run(drive.current_dir(&folder)).await;
    let steps: Vec<&str> = said.lines().collect();
    assert_eq!(
        steps,
        ["created installing", "running true", "console got hello", "gone 404 not_found", "done"]
    );
    let left: Value = daemon.client().get("/containers").await.is(200);
    assert_eq!(left["containers"], json!([]));
    daemon.close().await;
}
