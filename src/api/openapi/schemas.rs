//! How types of other modules look in the document, so that those know nothing of it.
//!
//! Texts and numbers with a meaning of their own, and sets of names. Structs are in [`super::mirrors`].

use std::borrow::Cow;

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AnyOfBuilder, KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type,
};
use utoipa::{PartialSchema, ToSchema};

use crate::console::Mark;
use crate::domain::access::{Permission, TokenId};
use crate::domain::audit::{Action, Way, Who};
use crate::domain::firewall::{RuleAction, RuleId, RuleProtocol};
use crate::domain::ids::{ContainerId, RunId, VolumeId};
use crate::domain::operation::{OperationId, OperationKind, OperationState};
use crate::domain::path::RelPath;
use crate::domain::quota::QuotaBackend;
use crate::domain::spec::Protocol;
use crate::domain::units::{Span, UnixSeconds};
use crate::files::archive::ArchiveFormat;
use crate::files::digest::Algorithm;

/// A type's name in the document and its schema.
macro_rules! schema {
    ($type:ty, $name:literal, $schema:expr) => {
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $schema
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }
        }
    };
}

fn text(description: &str, pattern: &str, example: &str) -> RefOr<Schema> {
    let schema = ObjectBuilder::new().schema_type(Type::String).description(Some(description));
    schema.pattern(Some(pattern)).examples([example]).into()
}

fn uuid(description: &str, example: &str) -> RefOr<Schema> {
    let schema = ObjectBuilder::new().schema_type(Type::String).description(Some(description));
    schema.format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))).examples([example]).into()
}

fn number(description: &str, least: Option<u64>, example: u64) -> RefOr<Schema> {
    let schema = ObjectBuilder::new().schema_type(Type::Integer).description(Some(description));
    let schema = schema.format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)));
    schema.minimum(least).examples([example]).into()
}

fn one_of(description: &str, names: &[&str]) -> RefOr<Schema> {
    let schema = ObjectBuilder::new().schema_type(Type::String).description(Some(description));
    schema.enum_values(Some(names.iter().copied())).into()
}

schema!(
    ContainerId,
    "ContainerId",
    text(
        "A container's name, chosen by the panel.",
        "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        "server-001"
    )
);
schema!(VolumeId, "VolumeId", uuid("A volume.", "0190c6a0-5f1e-4c8e-9d57-8a3f0c2b7e11"));
schema!(
    TokenId,
    "TokenId",
    uuid("An issued token, by the name that revokes it.", "3f8c1b52-7d0e-4a6b-9a55-1c2d3e4f5a6b")
);
schema!(
    OperationId,
    "OperationId",
    uuid("Work in the background.", "0190c6a1-02a4-7c3e-8f11-6b5a4c3d2e1f")
);
schema!(RunId, "RunId", number("A run of a container, counted from 1 for its life.", Some(0), 3));
schema!(
    UnixSeconds,
    "UnixSeconds",
    number("A moment: seconds since 1970-01-01 UTC.", None, 1_767_225_600)
);
schema!(
    Span,
    "Span",
    text(
        "A length of time with units: `30s`, `15m`, `1h30m`, `7d`.",
        "^([0-9]+(d|h|ms|m|s))+$",
        "15m"
    )
);
schema!(
    RelPath,
    "Path",
    text(
        "A path from the volume's root, without a slash in front; empty is the root.",
        "^([^/](.|\\n|\\r)*)?$",
        "world/level.dat"
    )
);
schema!(
    Mark,
    "ConsolePlace",
    text(
        "A place in the console: the number of a line, and bytes of the next.",
        "^[0-9]+(\\.[0-9]+)?$",
        "1042"
    )
);

/// `either!(Name, "Name": One, Other)`: a body that is one of two.
macro_rules! either {
    ($type:ident, $name:literal: $one:ty, $other:ty) => {
        #[derive(Debug)]
        pub(super) enum $type {}

        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                let one =
                    utoipa::openapi::Ref::from_schema_name(<$one as utoipa::ToSchema>::name());
                let other =
                    utoipa::openapi::Ref::from_schema_name(<$other as utoipa::ToSchema>::name());
                utoipa::openapi::schema::AnyOfBuilder::new().item(one).item(other).into()
            }
        }

        impl utoipa::ToSchema for $type {
            fn name() -> std::borrow::Cow<'static, str> {
                std::borrow::Cow::Borrowed($name)
            }

            fn schemas(
                all: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>,
            ) {
                use utoipa::{PartialSchema, ToSchema};
                for (name, schema) in [
                    (<$one as ToSchema>::name(), <$one as PartialSchema>::schema()),
                    (<$other as ToSchema>::name(), <$other as PartialSchema>::schema()),
                ] {
                    all.push((name.into_owned(), schema));
                }
                <$one as ToSchema>::schemas(all);
                <$other as ToSchema>::schemas(all);
            }
        }
    };
}
pub(in crate::api) use either;

/// `IpAddr` on the wire.
#[derive(Debug)]
pub(in crate::api) enum IpAddress {}
schema!(IpAddress, "IpAddress", {
    let text = |format| {
        let schema = ObjectBuilder::new().schema_type(Type::String);
        schema.format(Some(SchemaFormat::KnownFormat(format)))
    };
    let both = AnyOfBuilder::new().item(text(KnownFormat::Ipv4)).item(text(KnownFormat::Ipv6));
    both.description(Some("An IPv4 or IPv6 address.")).examples(["0.0.0.0"]).into()
});

/// A moment of the calendar.
#[derive(Debug)]
pub(in crate::api) enum Rfc3339 {}
schema!(Rfc3339, "DateTime", {
    let schema = ObjectBuilder::new().schema_type(Type::String);
    let schema = schema.format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
    schema.description(Some("A moment, in RFC 3339.")).examples(["2026-01-01T00:15:00Z"]).into()
});

/// Permissions of a file.
#[derive(Debug)]
pub(in crate::api) enum Mode {}
schema!(Mode, "Mode", text("Permissions, in octal digits.", "^[0-7]{3,4}$", "0644"));

schema!(RuleId, "FirewallRuleId", uuid("A firewall rule.", "7d2f0c5e-1b8a-4f43-9c67-2e1a0b9d8c7f"));
schema!(
    RuleProtocol,
    "FirewallProtocol",
    one_of(
        "What a rule is about; `all`: TCP and UDP, and ICMP where the rule names no port.",
        &["tcp", "udp", "icmp", "all"]
    )
);
schema!(
    RuleAction,
    "FirewallAction",
    one_of(
        "What becomes of it. With a rate limit `accept` drops what is above it; `drop` and `reject` are only for what is above it.",
        &["accept", "drop", "reject"]
    )
);
schema!(Protocol, "Protocol", one_of("Of the transport layer.", &["tcp", "udp"]));
schema!(Action, "Action", one_of("What was done.", Action::NAMES));
schema!(Who, "ActorType", one_of("Who does something; `lightd`: of its own accord.", &Who::KINDS));
schema!(
    Way,
    "Way",
    one_of(
        "How a wish came in: `cli` is lightd's own command line, `lightd` lightd itself.",
        &Way::NAMES
    )
);
schema!(Permission, "Permission", one_of("What a token may allow.", Permission::NAMES));
schema!(
    QuotaBackend,
    "QuotaBackend",
    one_of("What holds a volume to its size.", &QuotaBackend::ALL.map(QuotaBackend::as_str))
);
schema!(
    ArchiveFormat,
    "ArchiveFormat",
    one_of("A kind of archive.", &ArchiveFormat::ALL.map(ArchiveFormat::as_str))
);
schema!(
    OperationKind,
    "OperationKind",
    one_of(
        "What is being done.",
        &["copy", "compress", "decompress", "delete", "pull", "snapshot", "restore"]
    )
);
schema!(
    OperationState,
    "OperationState",
    one_of(
        "Whether it goes on, or how it ended; `interrupted`: lightd ended before it did.",
        &["running", "done", "failed", "cancelled", "interrupted"]
    )
);

/// A set of names that the sources have as texts.
macro_rules! names {
    ($type:ident, $name:literal, $description:literal, $names:expr) => {
        #[derive(Debug)]
        pub(in crate::api) enum $type {}
        schema!($type, $name, one_of($description, $names));
    };
}

names!(ContainerState, "ContainerState", "What a container is doing.", crate::api::native::STATES);
names!(InstallState, "InstallState", "How its install stands.", &["installing", "ready", "failed"]);
names!(DesiredState, "DesiredState", "What it was last asked to be.", &["running", "offline"]);
names!(EntryKind, "EntryKind", "What an entry is.", &["file", "directory", "symlink", "other"]);
names!(Enforced, "Enforced", "Who holds a volume to its size.", &["kernel", "soft", "none"]);
names!(
    EndedBy,
    "EndedBy",
    "Who ended a run: the workload itself, the stop's signal or command, the kill after its grace, a kill, or the engine.",
    &["itself", "signal", "command", "grace", "kill", "engine"]
);
names!(MemoryCharged, "MemoryCharged", "Which memory is charged.", &["used", "reserved"]);
names!(UsageStep, "UsageStep", "How finely usage is asked for.", &["hourly", "daily", "monthly"]);

/// Money and prices.
#[derive(Debug)]
pub(in crate::api) enum Decimal {}
schema!(Decimal, "Decimal", text("A decimal number, exact.", "^[0-9]+([.][0-9]+)?$", "0.004900"));
names!(UploadStatus, "UploadStatus", "What became of a file.", &["created", "replaced", "failed"]);
names!(SearchBound, "SearchBound", "What ended a search.", &["limit", "entries", "depth", "time"]);
names!(
    ChecksumAlgorithm,
    "ChecksumAlgorithm",
    "How a checksum is computed.",
    &Algorithm::ALL.iter().map(|one| one.as_str()).collect::<Vec<_>>()
);

/// Bytes as they are.
#[derive(Debug)]
pub(in crate::api) enum Binary {}
schema!(Binary, "Binary", {
    let schema = ObjectBuilder::new().schema_type(Type::String);
    schema.format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary))).into()
});
names!(
    StateSignal,
    "StateSignal",
    "A state, as events name it; `exit` is the end of a run.",
    &[
        "installing",
        "ready",
        "failed",
        "starting",
        "running",
        "stopping",
        "stopped",
        "exit",
        "paused",
        "suspended",
        "deleting",
        "unknown"
    ]
);
names!(
    PanelState,
    "PanelState",
    "Whether the panel answers.",
    &["disabled", "unknown", "reachable", "unreachable"]
);
names!(
    ImportOutcome,
    "ImportOutcome",
    "`added` to the pool and marked, `marked` there, or `known`: kept from others already.",
    &["added", "marked", "known"]
);
