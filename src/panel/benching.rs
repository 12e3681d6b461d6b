//! The door for `benches/outbox`: the outboxes of many nodes in one process, each as a lightd has it.
//!
//! A node is its store, and what [`Panel::run`] does with one set of settings: its drain with its lanes, and
//! its looks at the panel's health. Two things are other than in a lightd, for want of files: the stores are in
//! memory, and all nodes share one HTTP client, so that idle connections are anybody's.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::{Panel, PanelSettings, PanelState};
use crate::domain::ids::ContainerId;
use crate::domain::panel_update::PanelUpdate;
use crate::domain::units::UnixSeconds;
use crate::store::{Store, Tx};
use crate::util::secret::Secret;

/// Nodes with updates that wait for the panel.
#[derive(Debug)]
pub struct Outboxes {
    panels: Vec<(Panel, Client)>,
    health_interval: Duration,
}

impl Outboxes {
    /// So many nodes, each with one server that has so many updates. Panics where that cannot be.
    pub async fn new(
        nodes: usize,
        updates_each: usize,
        panel: &str,
        health_interval: Duration,
        has_jitter: bool,
    ) -> Self {
        let settings = PanelSettings {
            url: panel.parse().expect("an address"),
            token: Secret::new("bench"),
            signing_secret: Secret::new("0123456789abcdef"),
            health_interval,
        };
        let first = Client::new(&settings, uuid::Uuid::nil()).expect("an HTTP client");
        let run = uuid::Uuid::new_v4();
        let one = async |node: usize| {
            let store = Store::in_memory(&format!("{run}-{node}")).expect("a store");
            let server = ContainerId::parse("server").expect("a name");
            let fill = move |tx: &Tx<'_>| {
                let now = UnixSeconds::now();
                (0..updates_each)
                    .try_for_each(|_| tx.enqueue_update(&server, &PanelUpdate::Ready, now))
            };
            store.write("fill an outbox", fill).await.expect("updates");
            let client = first.of_node(store.node_id());
            let mut panel = Panel::new(store, watch::channel(None).1);
            if !has_jitter {
                panel.chance = || 0.0;
            }
            (panel, client)
        };
        Self { panels: join_all((0..nodes).map(one)).await, health_interval }
    }

    /// Begins with all of them in one moment, and goes on until `stop` is ready.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let until = CancellationToken::new();
        let mut nodes = JoinSet::new();
        for (panel, client) in self.panels {
            let (until, interval) = (until.clone(), self.health_interval);
            nodes.spawn(async move {
                panel.publish(PanelState::Unknown, None);
                panel.speak(&client, interval, &until).await;
            });
        }
        stop.await;
        until.cancel();
        nodes.join_all().await;
    }
}
