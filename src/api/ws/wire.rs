//! The writing side of a socket: one frame at a time, each within a deadline, and the reasons to end.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};

use crate::access::Ended;

/// A reader that takes nothing for so long is not there any more.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Saying goodbye is a courtesy.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Why a socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The other side's connection broke.
    Gone,
    /// The other side said goodbye.
    Left,
    /// The reader takes nothing, or gives no sign of life.
    Silent,
    Unauthorized,
    /// The allow-list no longer has the client's address.
    NotAdmitted,
    Deleted,
    Suspended,
    Stopping,
    FrameTooLarge,
    /// What came is no WebSocket's frame.
    BadProtocol,
    /// What came as text is none.
    BadText,
    Flood,
}

impl End {
    pub(super) fn of(grant: Ended) -> Self {
        match grant {
            Ended::Expired | Ended::Revoked => Self::Unauthorized,
            Ended::NotAdmitted => Self::NotAdmitted,
        }
    }

    /// The same as an event's code and words, where there are no close frames.
    pub(super) fn event(self) -> (&'static str, &'static str) {
        let code = match self {
            Self::Unauthorized => "unauthorized",
            Self::NotAdmitted => "address",
            Self::Deleted => "deleted",
            Self::Suspended => "suspended",
            Self::Stopping => "stopping",
            Self::Gone
            | Self::Left
            | Self::Silent
            | Self::FrameTooLarge
            | Self::BadProtocol
            | Self::BadText
            | Self::Flood => "closed",
        };
        (code, self.frame().map_or("the stream has ended", |(_, reason)| reason))
    }

    /// The close frame to send, if it is ours to send one.
    fn frame(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Gone | Self::Left => None,
            Self::Silent => Some((1008, "no sign of life")),
            Self::Unauthorized => Some((4401, "the token has expired or was revoked")),
            Self::NotAdmitted => Some((4401, "this address is not allowed any more")),
            Self::Deleted => Some((4404, "the container was deleted")),
            Self::Suspended => Some((4409, "the container is suspended")),
            Self::Stopping => Some((1001, "lightd is stopping")),
            Self::FrameTooLarge => Some((1009, "the frame is larger than this node takes")),
            Self::BadProtocol => Some((1002, "that is no frame of a client")),
            Self::BadText => Some((1007, "a text is not UTF-8")),
            Self::Flood => Some((1008, "too many frames")),
        }
    }
}

/// Sends one frame, or finds that nobody takes it.
pub(super) async fn send(socket: &mut WebSocket, message: Message) -> Result<(), End> {
    match tokio::time::timeout(WRITE_DEADLINE, socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => Err(End::Silent),
    }
}

/// Ends the connection with its reason.
pub(super) async fn close(mut socket: WebSocket, end: End) {
    if end == End::Gone {
        return;
    }
    let goodbye = async {
        let is_sent = match end.frame() {
            Some((code, reason)) => {
                let reason = Utf8Bytes::from_static(reason);
                socket.send(Message::Close(Some(CloseFrame { code, reason }))).await.is_ok()
            }
            None => true,
        };
        // Reading on sends our answer to their goodbye, or waits for theirs to ours, so that the frame is
        // not lost to a reset.
        while is_sent && matches!(socket.recv().await, Some(Ok(_))) {}
    };
    if tokio::time::timeout(CLOSE_DEADLINE, goodbye).await.is_err() {
        tracing::debug!("a socket did not say goodbye");
    }
}
