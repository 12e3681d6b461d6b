//! What can go wrong between lightd and the engine, in six kinds.
//!
//! Callers match on [`EngineErrorKind`]; neither the engine's status numbers nor its sentences are
//! known above this module. [`EngineError::is_away`] tells "the engine cannot be asked" from "the
//! engine was asked and refused": only the second says anything about a container.

use std::io;
use std::time::Duration;

use bollard::errors::Error as VendorError;

use super::op::Op;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineErrorKind {
    /// The engine answered that the thing is not there.
    NotFound,
    /// The thing's present state forbids it, or the name or port is taken.
    Conflict,
    /// The request itself is wrong and will stay wrong.
    Invalid,
    /// Nobody answers at the socket, or the connection broke.
    Unreachable,
    /// Somebody is there and did not answer in time; what was asked may still happen.
    Timeout,
    /// The engine tried and failed.
    Internal,
}

/// An operation on the engine that failed. `Display` leaves the cause to the error chain.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {target}")]
pub(crate) struct EngineError {
    verb: &'static str,
    target: String,
    kind: EngineErrorKind,
    source: Box<Fault>,
}

/// The cause, kept for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Vendor(VendorError),
    #[error("no answer within {} s", .0.as_secs_f32())]
    Late(Duration),
    #[error("the engine answered {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("{0}")]
    Said(String),
    #[error(transparent)]
    Io(io::Error),
    #[error(transparent)]
    Http(hyper::Error),
}

impl EngineError {
    pub(super) fn new(op: Op, target: impl Into<String>, fault: Fault) -> Self {
        let kind = fault.kind();
        Self::of_kind(op, target, kind, fault)
    }

    pub(super) fn of_kind(
        op: Op,
        target: impl Into<String>,
        kind: EngineErrorKind,
        fault: Fault,
    ) -> Self {
        Self { verb: op.verb, target: target.into(), kind, source: Box::new(fault) }
    }

    pub(super) fn said(
        op: Op,
        target: impl Into<String>,
        kind: EngineErrorKind,
        why: impl Into<String>,
    ) -> Self {
        Self::of_kind(op, target, kind, Fault::Said(why.into()))
    }

    pub(crate) fn kind(&self) -> EngineErrorKind {
        self.kind
    }

    /// Whether the engine could not be asked at all; then nothing is known about the container.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self.kind, EngineErrorKind::Unreachable | EngineErrorKind::Timeout)
    }

    /// The engine's own words where it gave any, fit for the person who asked.
    pub(crate) fn reason(&self) -> String {
        match &*self.source {
            Fault::Vendor(
                VendorError::DockerResponseServerError { message, .. }
                | VendorError::DockerStreamError { error: message },
            )
            | Fault::Refused { message, .. }
            | Fault::Said(message) => message.trim().to_owned(),
            fault @ (Fault::Vendor(_) | Fault::Late(_) | Fault::Io(_) | Fault::Http(_)) => {
                if self.is_away() {
                    "the container engine does not answer".to_owned()
                } else {
                    fault.to_string()
                }
            }
        }
    }
}

impl Fault {
    fn kind(&self) -> EngineErrorKind {
        match self {
            Self::Vendor(error) => kind_of_vendor(error),
            Self::Late(_) => EngineErrorKind::Timeout,
            Self::Refused { status, message } => kind_of_answer(*status, message),
            Self::Said(message) => kind_of_answer(500, message),
            Self::Io(_) | Self::Http(_) => EngineErrorKind::Unreachable,
        }
    }
}

fn kind_of_vendor(error: &VendorError) -> EngineErrorKind {
    match error {
        VendorError::DockerResponseServerError { status_code, message } => {
            kind_of_answer(*status_code, message)
        }
        // A failure in the midst of a pull comes without a status.
        VendorError::DockerStreamError { error } => kind_of_answer(500, error),
        VendorError::RequestTimeoutError => EngineErrorKind::Timeout,
        VendorError::SocketNotFoundError(_)
        | VendorError::HyperLegacyError { .. }
        | VendorError::HyperResponseError { .. }
        | VendorError::IOError { .. } => EngineErrorKind::Unreachable,
        // The answer ended before its JSON did: the connection broke.
        VendorError::JsonSerdeError { err } if err.is_eof() => EngineErrorKind::Unreachable,
        _ => EngineErrorKind::Internal,
    }
}

/// The engine reports some refusals as its own failures (500), so its words are looked at as well.
fn kind_of_answer(status: u16, message: &str) -> EngineErrorKind {
    let says = |part: &str| message.contains(part);
    match status {
        404 => EngineErrorKind::NotFound,
        409 => EngineErrorKind::Conflict,
        400..=499 => EngineErrorKind::Invalid,
        // A proxy in front of the engine that does not reach it.
        502..=504 => EngineErrorKind::Unreachable,
        _ if says("port is already allocated") || says("address already in use") => {
            EngineErrorKind::Conflict
        }
        _ if says("manifest unknown") || says("pull access denied") => EngineErrorKind::NotFound,
        _ => EngineErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::op;

    fn answered(status_code: u16, message: &str) -> EngineError {
        let vendor =
            VendorError::DockerResponseServerError { status_code, message: message.to_owned() };
        EngineError::new(op::START, "container a", Fault::Vendor(vendor))
    }

    #[test]
    fn answers_of_the_engine_fall_into_kinds() {
        use EngineErrorKind::{Conflict, Internal, Invalid, NotFound, Unreachable};
        for (status, message, kind) in [
            (404, "No such container: a", NotFound),
            (409, "Conflict. The container name is already in use", Conflict),
            (400, "invalid reference format", Invalid),
            (500, "driver failed: Bind for 0.0.0.0:80 failed: port is already allocated", Conflict),
            (500, "OCI runtime create failed", Internal),
            (503, "no backend", Unreachable),
        ] {
            assert_eq!(answered(status, message).kind(), kind, "{status} {message}");
        }
    }

    #[test]
    fn only_an_engine_that_could_not_be_asked_is_away() {
        assert!(!answered(500, "broken").is_away());
        let late = EngineError::new(op::START, "x", Fault::Late(Duration::from_secs(1)));
        assert!(late.is_away());
        let gone = VendorError::SocketNotFoundError("/nowhere".to_owned());
        assert!(EngineError::new(op::START, "x", Fault::Vendor(gone)).is_away());
    }

    #[test]
    fn an_error_names_operation_and_thing_and_leaves_the_cause_to_the_chain() {
        let error = answered(404, "No such container: a");
        assert_eq!(error.to_string(), "cannot start container a");
        assert_eq!(error.reason(), "No such container: a");
        let chain = crate::util::chain::Chain(&error).to_string();
        assert!(chain.starts_with("cannot start container a: "), "{chain}");
    }
}
