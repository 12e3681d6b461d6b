use std::time::Duration;

use axum::http::header;
use serde_json::Value;

use super::node::{Node, TOKEN, request};
use crate::domain::audit::{Act, Action, Actor};
use crate::files::FileError;
use crate::files::operation::{OperationKind, OperationState};
use crate::store::audit::AuditFilter;

/// How many cancels the audit log has.
async fn cancels(node: &Node) -> usize {
    let filter =
        AuditFilter { actions: Some(vec![Action::OperationCancel]), ..AuditFilter::default() };
    let read = node.state.store.read("test", move |rx| rx.audit(&filter, 10));
    read.await.unwrap().rows.len()
}

#[tokio::test]
async fn a_cancel_whose_caller_has_left_happens_and_is_recorded() {
    let node = Node::new().await;
    let act = Act::new(Actor::lightd(), Action::FilesCopy);
    let work = async |progress: crate::files::Progress| {
        while progress.check().is_ok() {
            tokio::task::yield_now().await;
        }
        Err(FileError::Cancelled)
    };
    let started = node.state.operations.start(act, OperationKind::Copy, node.volume, work);
    let id = started.await.unwrap();
    let held = node.hold_writer().await;
    let mut cancel = request(TOKEN, "DELETE", &format!("/operations/{id}"), Value::Null);
    cancel.headers_mut().insert(header::USER_AGENT, "test".parse().unwrap());
    let mut changes = node.state.operations.subscribe();
    {
        let sending = node.send(cancel);
        tokio::pin!(sending);
        let ended = async {
            loop {
                let seen = node.state.operations.get(id).unwrap();
                if seen.state != OperationState::Running {
                    return seen.state;
                }
                changes.recv().await.ok();
            }
        };
        // The store takes nothing, so the entry cannot be there; the work has ended all the same.
        let state = tokio::select! {
            answer = &mut sending => panic!("{answer:?}"),
            state = tokio::time::timeout(Duration::from_secs(20), ended) => state.unwrap(),
        };
        assert_eq!(state, OperationState::Cancelled);
    }
    drop(held);
    node.state.operations.shutdown().await;
    assert_eq!(cancels(&node).await, 1);
}
