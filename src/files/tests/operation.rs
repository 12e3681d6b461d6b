use std::time::Duration;

use super::super::operation::{OperationId, OperationKind, OperationState, Operations};
use super::*;
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::ids::VolumeId;
use crate::domain::operation::ENDED_KEPT_SECONDS;
use crate::domain::units::UnixSeconds;

fn act() -> Act {
    Act::new(Actor::lightd(), Action::FilesCopy)
}

fn subject() -> VolumeId {
    VolumeId::random()
}

async fn ended(operations: &Operations, id: OperationId) -> OperationState {
    let mut changes = operations.subscribe();
    let wait = async {
        loop {
            match operations.get(id).expect("known").state {
                OperationState::Running => drop(changes.recv().await),
                state => return state,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("ends within 20 s")
}

#[tokio::test]
async fn an_operation_reports_its_end_and_how_far_it_came() {
    let operations = Operations::in_memory();
    let mut changes = operations.subscribe();
    let id = operations
        .start(act(), OperationKind::Copy, subject(), |progress| async move {
            progress.set_total_bytes(10);
            progress.add_bytes(10);
            progress.add_entry();
            Ok(())
        })
        .await
        .expect("start");
    assert_eq!(changes.recv().await.expect("event").state, OperationState::Running);
    assert_eq!(ended(&operations, id).await, OperationState::Done);
    let view = operations.get(id).expect("known");
    assert_eq!((view.done_bytes, view.total_bytes, view.entries), (10, 10, 1));
    assert!(view.finished_at.is_some());
    let json = serde_json::to_value(&view).expect("json");
    assert_eq!((&json["state"], &json["kind"]), (&"done".into(), &"copy".into()));
    assert_eq!(json["operation_id"], id.to_string());
}

/// GHSA-ghrq-5wpp-hxx5, for work in the background.
#[tokio::test]
async fn failures_and_panics_end_one_operation_only() {
    let operations = Operations::in_memory();
    let failing = operations
        .start(act(), OperationKind::Compress, subject(), |_| async {
            Err(FileError::NotFound { path: "x".to_owned() })
        })
        .await
        .expect("start");
    let panicking = operations
        .start(act(), OperationKind::Compress, subject(), |_| async { panic!("of this test") })
        .await
        .expect("start");
    assert_eq!(ended(&operations, failing).await, OperationState::Failed);
    assert_eq!(ended(&operations, panicking).await, OperationState::Failed);
    let error = operations.get(failing).and_then(|view| view.error);
    assert_eq!(error.as_deref(), Some("x does not exist"));
    assert_eq!(operations.list().len(), 2);
}

#[tokio::test]
async fn cancel_and_shutdown_wait_for_the_work_to_clean_up() {
    let operations = Operations::in_memory();
    let start = || {
        operations.start(act(), OperationKind::Delete, subject(), |progress| async move {
            progress.cancelled().await;
            progress.check()
        })
    };
    let one = start().await.expect("start");
    operations.cancel(one).expect("known");
    assert_eq!(ended(&operations, one).await, OperationState::Cancelled);
    let two = start().await.expect("start");
    tokio::time::timeout(Duration::from_secs(20), operations.shutdown()).await.expect("shutdown");
    assert_eq!(operations.get(two).expect("known").state, OperationState::Interrupted);
    assert!(matches!(start().await, Err(FileError::TooManyOperations)));
    let unknown = OperationId::parse("00000000-0000-4000-8000-000000000000").expect("id");
    assert!(operations.cancel(unknown).is_none());
}

#[tokio::test]
async fn what_has_ended_is_kept_in_bounds_also_across_restarts() {
    let operations = Operations::in_memory();
    for _ in 0..230 {
        let id = operations
            .start(act(), OperationKind::Copy, subject(), |_| async { Ok(()) })
            .await
            .expect("start");
        ended(&operations, id).await;
    }
    let mut past = operations.list();
    assert_eq!(past.len(), 200);
    for (view, age_seconds) in
        past.iter_mut().zip([ENDED_KEPT_SECONDS + 60, ENDED_KEPT_SECONDS - 60])
    {
        view.finished_at = view.finished_at.map(|at| UnixSeconds(at.0 - age_seconds));
    }
    let (gone, kept) = (past[0].id, past[1].id);
    let restarted = Operations::new(past, std::sync::Arc::new(|_, _| Box::pin(async { Ok(()) })));
    assert_eq!(restarted.list().len(), 199);
    assert!(restarted.get(gone).is_none() && restarted.get(kept).is_some());
}

#[tokio::test(start_paused = true)]
async fn progress_is_announced_at_most_twice_a_second() {
    let operations = Operations::in_memory();
    let mut changes = operations.subscribe();
    let id = operations
        .start(act(), OperationKind::Copy, subject(), |progress| async move {
            for _ in 0..1000 {
                progress.add_bytes(1);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        })
        .await
        .expect("start");
    assert_eq!(ended(&operations, id).await, OperationState::Done);
    let mut count = 0;
    while changes.try_recv().is_ok() {
        count += 1;
    }
    assert!((4..=7).contains(&count), "{count} events in two seconds");
}
