//! Rules on who reaches a container's published ports, with packets: real containers, the real daemon,
//! and clients in a network namespace that plays the world outside.
//!
//! Each port is first shown to be open: otherwise its being closed would prove nothing.

mod calls;
mod limits;
mod standing;
mod wire;

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::numbers::free_ports;
use crate::support::outside::{Outside, Reply};
use crate::support::process::Daemon;

/// A daemon with a container that answers on a port of IPv4, TCP and UDP, and on one of IPv6.
struct Site {
    outside: Outside,
    daemon: Daemon,
    id: String,
    port: u16,
    port6: u16,
    /// In the pool, and nobody's.
    spare: u16,
}

impl Site {
    async fn new() -> Self {
        Self::on(Daemon::start().await).await
    }

    async fn on(daemon: Daemon) -> Self {
        let [port, port6, spare] = free_ports(3)[..] else { unreachable!("three were asked for") };
        for (ip, port, protocol) in [
            ("0.0.0.0", port, "tcp"),
            ("0.0.0.0", port, "udp"),
            ("::", port6, "tcp"),
            ("0.0.0.0", spare, "tcp"),
        ] {
            let port = json!({"ip": ip, "port": port, "protocol": protocol});
            daemon.client().post("/network/ports", port).await.is(201);
        }
        let id = daemon.id("served");
        let site = Self { outside: Outside::new(), daemon, id, port, port6, spare };
        let ports = json!([
            {"ip": "0.0.0.0", "port": port, "protocol": "tcp", "container_port": 7000},
            {"ip": "0.0.0.0", "port": port, "protocol": "udp", "container_port": 7000},
            {"ip": "::", "port": port6, "protocol": "tcp", "container_port": 7000},
        ]);
        site.serve(&site.id, ports).await;
        site
    }

    async fn serve(&self, id: &str, ports: Value) {
        let spec = json!({
            "startup_command": "guest serve 7000", "start_pattern": "listening", "ports": ports,
        });
        self.daemon.run(id, spec).await;
    }

    /// Makes a rule for the container; what is left out here is any.
    async fn rule(&self, body: Value) -> Value {
        let mut rule = json!({"container_id": self.id, "protocol": "all"});
        for (name, value) in body.as_object().expect("an object") {
            rule[name] = value.clone();
        }
        let made = self.daemon.client().post("/firewall/rules", rule).await.is(201);
        assert_eq!(made["rule"]["applied"], true, "{made}");
        made["rule"].clone()
    }

    async fn delete(&self, rule: &Value) {
        self.daemon.client().delete(&path_of(rule)).await.is(200);
    }

    async fn toggle(&self, rule: &Value, enabled: bool) {
        let path = format!("{}/toggle", path_of(rule));
        let rule = self.daemon.client().put(&path, json!({"enabled": enabled})).await.is(200);
        assert_eq!(
            (&rule["rule"]["enabled"], &rule["rule"]["applied"]),
            (&json!(enabled), &json!(enabled))
        );
    }

    async fn clean(&self) {
        self.daemon.client().delete(&format!("/firewall/cleanup/{}", self.id)).await.is(200);
    }

    async fn ddos(&self, body: Value) {
        let path = format!("/firewall/ddos/{}", self.id);
        let set = self.daemon.client().post(&path, body).await.is(200);
        assert_eq!(set["ddos"]["applied"], set["ddos"]["enabled"], "{set}");
    }

    fn tcp(&self, client: usize) -> Reply {
        self.outside.tcp(self.outside.v4[client], self.port)
    }

    fn udp(&self, client: usize) -> Reply {
        self.outside.udp(self.outside.v4[client], self.port)
    }

    fn tcp6(&self, client: usize) -> Reply {
        self.outside.tcp(self.outside.v6[client], self.port6)
    }

    #[track_caller]
    fn all_is_open(&self) {
        for client in [0, 1] {
            let all = [self.tcp(client), self.udp(client), self.tcp6(client)];
            assert_eq!(all, [Reply::Answered; 3], "client {client}");
        }
    }

    /// The table of the daemon's, if there is one.
    fn table(&self) -> Option<String> {
        let table = format!("{}_rules", self.daemon.bridge);
        let listed = Command::new("nft").args(["list", "table", "inet", &table]).output();
        let listed = listed.expect("nft");
        listed.status.success().then(|| String::from_utf8_lossy(&listed.stdout).into_owned())
    }

    fn nft(&self, arguments: &str) {
        let done = Command::new("nft").args(arguments.split(' ')).stdin(Stdio::null()).status();
        assert!(done.is_ok_and(|status| status.success()), "nft {arguments}");
    }
}

fn path_of(rule: &Value) -> String {
    format!("/firewall/rules/{}", rule["id"].as_str().expect("an id"))
}
