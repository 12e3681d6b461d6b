//! What tests of the store and of its users begin with.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::Store;
use super::bindings::PortRequest;
use super::containers::{ContainerState, NewContainer};
use super::port_terms::PortTerms;
use super::volumes::VolumeRow;
use crate::domain::ids::{ContainerId, RunId, VolumeId};
use crate::domain::spec::{ContainerSpec, HostPort, Protocol};
use crate::domain::units::UnixSeconds;

pub(crate) const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

pub(crate) fn later(seconds: i64) -> UnixSeconds {
    UnixSeconds(NOW.0 + seconds)
}

/// On a host that has everything free.
pub(crate) fn terms(now: UnixSeconds) -> PortTerms {
    PortTerms { now, quarantine: Duration::ZERO, own: Arc::new([]), probe: |_| true }
}

pub(crate) fn open() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("lightd.db")).unwrap();
    (folder, store)
}

pub(crate) fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).unwrap()
}

pub(crate) fn tcp(ip: &str, port: u16) -> HostPort {
    HostPort { ip: ip.parse().unwrap(), port, protocol: Protocol::Tcp }
}

pub(crate) fn named(ip: &str, port: u16) -> PortRequest {
    PortRequest {
        ip: Some(ip.parse().unwrap()),
        port: Some(port),
        protocol: Protocol::Tcp,
        container_port: None,
    }
}

pub(crate) fn any() -> PortRequest {
    PortRequest { ip: None, port: None, protocol: Protocol::Tcp, container_port: None }
}

pub(crate) async fn add_volume(store: &Store) -> VolumeId {
    let id = VolumeId::random();
    let row = VolumeRow { id, name: None, size_bytes: None, backing: None, created_at: NOW };
    store.write("test", move |tx| tx.insert_volume(&row)).await.unwrap();
    id
}

pub(crate) async fn add_ports(store: &Store, ip: &str, from: u16, to: u16) {
    let ip: IpAddr = ip.parse().unwrap();
    let add = move |tx: &super::Tx<'_>| tx.add_ports(ip, from..=to, Protocol::Tcp, &terms(NOW));
    store.write("test", add).await.unwrap();
}

pub(crate) fn state() -> ContainerState {
    ContainerState {
        state_json: "{}".to_owned(),
        phase: "offline".to_owned(),
        run: RunId(1),
        docker_id: None,
        own_image: None,
        install_state: "ready".to_owned(),
        install_error: None,
        exit_code: None,
        oom_killed: false,
        started_at: None,
    }
}

pub(crate) fn new_container(name: &str, volume: VolumeId, ports: &[PortRequest]) -> NewContainer {
    NewContainer {
        id: id(name),
        spec: ContainerSpec {
            env: [("A".to_owned(), "1".to_owned())].into(),
            ..ContainerSpec::plain(volume)
        },
        registry_auth_sealed: Some(vec![1, 2, 3]),
        ports: ports.to_vec().into(),
        state: state(),
    }
}
