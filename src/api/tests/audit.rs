//! What each call that changes something is called in the audit log: a call without a name in there does
//! not get by.

use std::collections::BTreeSet;

use super::node::{Node, TOKEN};
use super::permissions::send;
use crate::api::permissions::ROUTES;
use crate::domain::audit::Action::{self, *};
use crate::store::audit::{AuditFilter, By};

const RECORDED: &[(&str, &str, Action)] = &[
    ("POST", "/auth/tokens", TokenIssue),
    ("DELETE", "/auth/tokens", TokenRevoke),
    ("DELETE", "/auth/tokens/{id}", TokenRevoke),
    ("POST", "/containers", ContainerCreate),
    ("PATCH", "/containers/{id}", ContainerUpdate),
    ("DELETE", "/containers/{id}", ContainerDelete),
    ("POST", "/containers/{id}/start", ContainerStart),
    ("POST", "/containers/{id}/stop", ContainerStop),
    ("POST", "/containers/{id}/kill", ContainerKill),
    ("POST", "/containers/{id}/restart", ContainerRestart),
    ("POST", "/containers/{id}/pause", ContainerPause),
    ("POST", "/containers/{id}/resume", ContainerResume),
    ("POST", "/containers/{id}/suspend", ContainerSuspend),
    ("POST", "/containers/{id}/unsuspend", ContainerUnsuspend),
    ("POST", "/containers/{id}/reinstall", ContainerReinstall),
    ("POST", "/containers/{id}/rebind-network", ContainerRebind),
    ("POST", "/containers/{id}/resources", ContainerUpdate),
    ("POST", "/containers/{id}/command", ConsoleCommand),
    ("POST", "/containers/{id}/exec", Exec),
    ("POST", "/volumes", VolumeCreate),
    ("DELETE", "/volumes/{id}", VolumeDelete),
    ("POST", "/volumes/{id}/resize", VolumeResize),
    ("POST", "/volumes/{id}/snapshots", SnapshotTake),
    ("DELETE", "/volumes/{id}/snapshots/{name}", SnapshotDelete),
    ("POST", "/volumes/{id}/snapshots/{name}/restore", SnapshotRestore),
    ("POST", "/volumes/{id}/files", FilesWrite),
    ("DELETE", "/volumes/{id}/files", FilesDelete),
    ("PUT", "/volumes/{id}/files/contents", FilesWrite),
    ("POST", "/volumes/{id}/folders", FilesMakeFolder),
    ("POST", "/volumes/{id}/rename", FilesRename),
    ("POST", "/volumes/{id}/copy", FilesCopy),
    ("POST", "/volumes/{id}/chmod", FilesChmod),
    ("POST", "/volumes/{id}/compress", ArchiveCompress),
    ("POST", "/volumes/{id}/decompress", ArchiveDecompress),
    ("POST", "/volumes/{id}/upload", FilesWrite),
    ("POST", "/volumes/{id}/tus", FilesWrite),
    ("PATCH", "/volumes/{id}/tus/{upload}", FilesWrite),
    ("POST", "/volumes/{id}/tus/{upload}", FilesWrite),
    ("POST", "/volumes/{id}/pull", FilesPull),
    ("DELETE", "/operations/{id}", OperationCancel),
    ("POST", "/network/ports", PortAdd),
    ("POST", "/network/ports/bulk-delete", PortDelete),
    ("POST", "/network/ports/allocate", PortAllocate),
    ("DELETE", "/network/ports/{ip}/{port}", PortDelete),
    ("PUT", "/network/ports/{ip}/{port}/use", PortMark),
    ("POST", "/network/ports/import", PortImport),
    ("DELETE", "/network/leases/{id}", PortRelease),
    ("POST", "/network/leases/{id}/renew", PortRenew),
    ("POST", "/firewall/rules", FirewallAddRule),
    ("PUT", "/firewall/rules/{id}/toggle", FirewallToggleRule),
    ("DELETE", "/firewall/rules/{id}", FirewallDeleteRule),
    ("POST", "/firewall/ddos/{id}", FirewallProtect),
    ("POST", "/firewall/networks/{id}", FirewallAttach),
    ("DELETE", "/firewall/networks/{id}", FirewallDetach),
    ("DELETE", "/firewall/cleanup/{id}", FirewallCleanup),
    ("POST", "/remote/config/reload", ConfigReload),
    ("DELETE", "/remote/outbox", OutboxDrop),
    ("POST", "/remote/outbox/retry", OutboxRetry),
    ("DELETE", "/remote/outbox/{sequence}", OutboxDrop),
    ("POST", "/remote/outbox/{sequence}/retry", OutboxRetry),
];

/// With why there is nothing to tell of them.
const UNRECORDED: &[(&str, &str, &str)] = &[
    (
        "DELETE",
        "/volumes/{id}/tus/{upload}",
        "what has not arrived whole is no file of the volume yet",
    ),
    ("POST", "/billing/estimate", "nothing is changed"),
    ("POST", "/billing/estimate/volume", "nothing is changed"),
];

/// What no call asks for: lightd tells it of its own accord.
const OWN: &[Action] = &[
    ContainerInstalled,
    ContainerInstallFailed,
    ContainerStartFailed,
    ContainerExited,
    ContainerCrashed,
    ContainerGaveUp,
    ContainerSuspended,
    ContainerRebindFailed,
    ContainerDeleted,
    OperationFailed,
    FirewallUndone,
    TokenReset,
];

#[test]
fn every_call_that_changes_something_has_its_action_or_a_reason_to_have_none() {
    let changing = ROUTES.iter().filter(|(method, ..)| {
        // A socket's requests are the same acts as those of the calls.
        !["GET", "HEAD", "OPTIONS"].contains(method)
    });
    let changing: BTreeSet<_> = changing.map(|&(method, path, _)| (method, path)).collect();
    let recorded = RECORDED.iter().map(|&(method, path, _)| (method, path));
    let named = recorded.chain(UNRECORDED.iter().map(|&(method, path, _)| (method, path)));
    let known: BTreeSet<_> = named.clone().collect();
    assert_eq!(known.len(), named.count(), "a call stands here twice");
    let missing: Vec<_> = changing.difference(&known).collect();
    assert!(missing.is_empty(), "nobody says what the audit log has of {missing:?}");
    let gone: Vec<_> = known.difference(&changing).collect();
    assert!(gone.is_empty(), "no calls, or none that change anything: {gone:?}");
    let asked = RECORDED.iter().map(|(_, _, action)| action);
    for action in Action::ALL {
        let is_asked_for = asked.clone().any(|one| one == action);
        assert_ne!(is_asked_for, OWN.contains(action), "{}", action.as_str());
    }
}

/// What the log has of the node's token.
async fn recorded(node: &Node) -> Vec<String> {
    let filter = AuditFilter { by: Some(By::Kind("node")), ..AuditFilter::default() };
    let rows = node.state.store.read("test", move |rx| rx.audit(&filter, 100)).await.unwrap().rows;
    rows.into_iter().map(|row| row.action).collect()
}

#[tokio::test]
async fn what_a_call_leaves_in_the_log_is_its_action_and_a_refusal_leaves_nothing() {
    let mut silent = Vec::new();
    for &(method, path, action) in RECORDED {
        let node = Node::new().await;
        node.container("a").await;
        let before = recorded(&node).await.len();
        let (status, _) = send(&node, Some(TOKEN), method, path).await;
        let mut made = recorded(&node).await;
        made.truncate(made.len() - before);
        if made.is_empty() && status.is_success() {
            silent.push((method, path));
        } else if made.is_empty() {
            assert!(!status.is_success(), "{method} {path}: {status}");
        } else {
            assert!(status.is_success(), "{method} {path}: {status} {made:?}");
            assert_eq!(made, [action.as_str()], "{method} {path}");
        }
    }
    assert_eq!(silent, CHANGE_NOTHING, "done, and not in the log");
}

/// As the test asks for them: an update without a field, the same configuration, ports and updates that
/// are not there. The test's node keeps its operations in memory, and their entries with them.
const CHANGE_NOTHING: &[(&str, &str)] = &[
    ("PATCH", "/containers/{id}"),
    ("POST", "/containers/{id}/resources"),
    ("POST", "/volumes/{id}/snapshots"),
    ("POST", "/network/ports/bulk-delete"),
    ("POST", "/remote/config/reload"),
    ("POST", "/remote/outbox/retry"),
];
