//! The fixture itself: the guest does in a container what its verbs promise.

use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptions, KillContainerOptionsBuilder, LogsOptionsBuilder, StartContainerOptions,
    WaitContainerOptions,
};
use futures_util::StreamExt;

use crate::support::{engine, guest};

const SOON: Duration = Duration::from_secs(20);

async fn start(docker: &Docker, node: &str, verbs: &[&str]) -> String {
    let image = guest::ensure_image(docker).await.expect("the test image");
    let body = ContainerCreateBody {
        image: Some(image),
        cmd: Some(verbs.iter().map(|&verb| verb.to_owned()).collect()),
        labels: Some([("lightd.node".to_owned(), node.to_owned())].into()),
        // The engine's own bridge is not what is tested here, and may not be there.
        host_config: Some(HostConfig {
            init: Some(true),
            network_mode: Some("none".to_owned()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let made = docker.create_container(None::<CreateContainerOptions>, body).await;
    let id = made.expect("a container").id;
    docker.start_container(&id, None::<StartContainerOptions>).await.expect("a start");
    id
}

/// Follows the log until the text is in it.
async fn expect(docker: &Docker, id: &str, text: &str) {
    let options = LogsOptionsBuilder::new().follow(true).stdout(true).stderr(true).build();
    let mut log = docker.logs(id, Some(options));
    let mut seen = String::new();
    let reading = async {
        while !seen.contains(text) {
            let piece: LogOutput = log.next().await.expect("more").expect("no error");
            seen.push_str(&String::from_utf8_lossy(&piece.into_bytes()));
        }
    };
    let found = tokio::time::timeout(SOON, reading).await;
    assert!(found.is_ok(), "no {text:?} in {seen:?}");
}

async fn terminate(docker: &Docker, id: &str) {
    let options = KillContainerOptionsBuilder::new().signal("SIGTERM").build();
    docker.kill_container(id, Some(options)).await.expect("a signal");
}

async fn ends(docker: &Docker, id: &str) -> i64 {
    let mut waiting = std::pin::pin!(docker.wait_container(id, None::<WaitContainerOptions>));
    let answer = tokio::time::timeout(SOON, waiting.next()).await.expect("an end");
    match answer.expect("an answer") {
        Ok(answer) => answer.status_code,
        Err(bollard::errors::Error::DockerContainerWaitError { code, .. }) => code,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn the_guest_does_what_its_verbs_promise() {
    let docker = engine::connect().await;
    engine::sweep(&docker).await;
    let node = engine::node_name();

    let verbs = ["guest", "lines", "3", "--", "write", "/tmp/x", "--", "exit", "5"];
    let id = start(&docker, &node, &verbs).await;
    expect(&docker, &id, "line 3 \nwrote /tmp/x\n").await;
    assert_eq!(ends(&docker, &id).await, 5);

    let id = start(&docker, &node, &["guest", "trap-term", "exit"]).await;
    expect(&docker, &id, "waiting for SIGTERM").await;
    terminate(&docker, &id).await;
    expect(&docker, &id, "got SIGTERM, ending").await;
    assert_eq!(ends(&docker, &id).await, 0);

    let id = start(&docker, &node, &["guest", "trap-term", "ignore"]).await;
    expect(&docker, &id, "waiting for SIGTERM").await;
    terminate(&docker, &id).await;
    expect(&docker, &id, "got SIGTERM, going on").await;
    terminate(&docker, &id).await;

    let id =
        start(&docker, &node, &["guest", "ready-after", "10", "Done", "--", "fork", "3"]).await;
    expect(&docker, &id, "Done\nforked 3\n").await;

    assert_eq!(engine::leftovers(&docker, &node).await.len(), 4);
    engine::remove_node(&docker, &node).await;
    assert_eq!(engine::leftovers(&docker, &node).await, Vec::<String>::new());
}
