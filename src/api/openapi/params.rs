//! Parameters that many calls have.

use utoipa::IntoParams;

use super::schemas::IpAddress;
use crate::domain::firewall::RuleId;
use crate::domain::ids::{ContainerId, VolumeId};

// Each is only looked at for its fields.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes what `Path<ContainerId>` reads")]
pub(in crate::api) struct ContainerPath {
    /// The container's `internal_id`.
    id: ContainerId,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes what `Path<VolumeId>` reads")]
pub(in crate::api) struct VolumePath {
    /// The volume's id.
    id: VolumeId,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes what `Path<RuleId>` reads")]
pub(in crate::api) struct RulePath {
    /// The rule's id.
    id: RuleId,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes what `Path<(IpAddr, u16)>` reads")]
pub(in crate::api) struct PortPath {
    /// One of the node's addresses, or `0.0.0.0` or `::` for all of them.
    #[param(value_type = IpAddress)]
    ip: std::net::IpAddr,
    #[param(maximum = 65_535, example = 25565)]
    port: u16,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes what `Path<Uuid>` reads")]
pub(in crate::api) struct LeasePath {
    /// The lease's id.
    id: uuid::Uuid,
}
