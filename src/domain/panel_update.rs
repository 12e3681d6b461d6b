//! What lightd tells the remote panel about a server, in the panel's own words.
//!
//! An update is written to the outbox in the transaction that stores the change it reports, as the
//! exact body that will be sent; this is where that body is made.

use serde::Serialize;

use super::ids::ContainerId;

/// The most of an error's details that is sent; an install log does not belong in a status update.
const DETAILS_MAX_BYTES: usize = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PanelUpdate {
    Installing,
    Ready,
    Failed {
        details: String,
    },
    /// Only with `remote.power_events`.
    Power(PowerState),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerState {
    Starting,
    Running,
    Stopping,
    Stopped,
}

impl PowerState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    event: &'static str,
    server: &'a str,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Status { status: &'static str },
    Error { error: &'static str, data: &'a str },
}

/// The body of `POST {url}/update` for one server.
pub(crate) fn update_body(server: &ContainerId, update: &PanelUpdate) -> String {
    let outcome = match update {
        PanelUpdate::Installing => Outcome::Status { status: "installing" },
        PanelUpdate::Ready => Outcome::Status { status: "ready" },
        PanelUpdate::Power(state) => Outcome::Status { status: state.as_str() },
        PanelUpdate::Failed { details } => Outcome::Error {
            error: "failed",
            data: &details[..details.floor_char_boundary(DETAILS_MAX_BYTES)],
        },
    };
    serde_json::to_string(&Body { event: "update", server: server.as_str(), outcome })
        .expect("invariant: a struct of texts is always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_those_of_the_panels_document() {
        let server = ContainerId::parse("server-001").unwrap();
        let body = |update| update_body(&server, &update);
        assert_eq!(
            body(PanelUpdate::Installing),
            r#"{"event":"update","server":"server-001","status":"installing"}"#
        );
        assert_eq!(
            body(PanelUpdate::Ready),
            r#"{"event":"update","server":"server-001","status":"ready"}"#
        );
        assert_eq!(
            body(PanelUpdate::Failed { details: "exit \"1\"".to_owned() }),
            r#"{"event":"update","server":"server-001","error":"failed","data":"exit \"1\""}"#
        );
        assert_eq!(
            body(PanelUpdate::Power(PowerState::Stopped)),
            r#"{"event":"update","server":"server-001","status":"stopped"}"#
        );
        let long = body(PanelUpdate::Failed { details: "ä".repeat(20_000) });
        assert!(long.len() < DETAILS_MAX_BYTES + 100, "{}", long.len());
    }
}
