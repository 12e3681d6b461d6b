use super::*;

#[tokio::test]
async fn a_panel_that_is_unavailable_for_a_time_is_left_alone_by_all_servers() {
    let mut it = Fixture::new().await;
    it.wait_for_state(PanelState::Reachable).await;
    it.settings.send_replace(None);
    it.wait_for_state(PanelState::Disabled).await;
    for server in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        it.enqueue(server, &[PanelUpdate::Installing, PanelUpdate::Ready]).await;
    }
    for _ in 0..20 {
        it.stub.script(|_| {
            Some((StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "600")]).into_response())
        });
    }
    let mut restarted = it.present.clone();
    // Its first look at the health lies behind it when updates are sent.
    restarted.health_interval = Duration::from_millis(50);
    it.settings.send_replace(Some(restarted));
    it.wait_for_state(PanelState::Reachable).await;
    it.stub.wait_for(1).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    let next_in = loop {
        let next = it.panel.report().await.unwrap().outbox.next_attempt_at.unwrap();
        let next_in = next.0 - UnixSeconds::now().0;
        if next_in > 500 {
            break next_in;
        }
        assert!(tokio::time::Instant::now() < deadline, "{next_in}");
        tokio::task::yield_now().await;
    };
    assert!(next_in <= 661, "{next_in}");
    // What comes now waits as well, and a restart changes nothing.
    it.enqueue("new", &[PanelUpdate::Ready]).await;
    it.restart().await;
    it.wait_for_state(PanelState::Reachable).await;
    let asked = it.stub.seen().len();
    // Lanes that were at work when it was said have sent theirs.
    assert!(asked <= 8, "{asked}");
    it.wait_for_depth(17, 0).await;
    assert_eq!(it.stub.seen().len(), asked);
    it.stub.answers.lock().unwrap().clear();
    it.store.write("retry", |tx| tx.retry_updates(None)).await.unwrap();
    it.wait_for_depth(0, 0).await;
}

#[tokio::test]
async fn a_pause_ends_with_the_panel_that_asked_for_it() {
    let mut it = Fixture::new().await;
    it.wait_for_state(PanelState::Reachable).await;
    let wait = [("retry-after", "600")];
    it.stub.script(move |_| Some((StatusCode::SERVICE_UNAVAILABLE, wait).into_response()));
    it.enqueue("a", &[PanelUpdate::Ready]).await;
    it.stub.wait_for(1).await;
    while it.entry(1).await.row.attempts == 0 {
        tokio::task::yield_now().await;
    }
    // Its update has a time of its own; others waited for the pause alone.
    it.enqueue("b", &[PanelUpdate::Ready]).await;
    it.present.token = Secret::new("another");
    it.settings.send_replace(Some(it.present.clone()));
    it.wait_for_state(PanelState::Unknown).await;
    it.wait_for_state(PanelState::Reachable).await;
    assert_eq!(it.stub.seen().len(), 1, "it is the same panel");
    it.present.url.set_host(Some("localhost")).unwrap();
    it.settings.send_replace(Some(it.present.clone()));
    assert_eq!(numbers(&it.stub.wait_for(2).await, "b"), ["1"]);
}
