//! Ports that a container asks for, read into what the store is asked for.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::auth::Auth;
use crate::api::openapi::schemas::IpAddress;
use crate::domain::spec::{Problem, Protocol};
use crate::store::bindings::{PortRequest, PortsWanted};
use crate::store::leases::Claim;

/// A port to publish; without `port` one is taken from the pool.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[schema(as = PortToPublish)]
#[serde(deny_unknown_fields)]
pub(super) struct PortBody {
    #[schema(value_type = Option<IpAddress>)]
    pub(super) ip: Option<IpAddr>,
    #[schema(minimum = 1, example = 25565)]
    pub(super) port: Option<u16>,
    #[serde(default, deserialize_with = "optional_protocol")]
    pub(super) protocol: Option<Protocol>,
    /// As `port`, if it is left out.
    #[schema(minimum = 1, example = 25565)]
    pub(super) container_port: Option<u16>,
}

/// Finds what is wrong with each port; whether it is in the pool and free is for the store.
pub(super) fn check_ports(ports: &[PortBody], problems: &mut Vec<Problem>) {
    for (index, port) in ports.iter().enumerate() {
        for (name, number) in [("port", port.port), ("container_port", port.container_port)] {
            if number == Some(0) {
                let field = format!("ports[{index}].{name}");
                problems.push(Problem::new(field, "must be between 1 and 65535"));
            }
        }
    }
}

/// What is asked of the pool, by somebody who may use a lease's ports.
pub(super) fn wanted(auth: &Auth, ports: Vec<PortBody>, lease: Option<Uuid>) -> PortsWanted {
    let claim = Claim { holder: Some(auth.principal().name()), lease };
    PortsWanted { ports: ports.into_iter().map(PortBody::into).collect(), claim }
}

impl From<PortBody> for PortRequest {
    fn from(body: PortBody) -> Self {
        Self {
            ip: body.ip,
            port: body.port,
            protocol: body.protocol.unwrap_or(Protocol::Tcp),
            container_port: body.container_port,
        }
    }
}

/// A protocol as people write it, in either case.
pub(super) fn optional_protocol<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Protocol>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    Protocol::parse(&text).map(Some).ok_or_else(|| serde::de::Error::custom("must be tcp or udp"))
}
