//! Who did what, from where: what the audit log holds, as values.
//!
//! An [`Act`] is made where somebody's wish is known and is written by `store::Tx::record` in the
//! transaction that makes the change. The list of [`Action`]s is closed, and its names are part of the
//! API. Details are small, bounded here, and never hold a secret: paths, names, numbers, no contents, no
//! environment, no command lines unless the operator wants those.

use serde_json::{Map, Value};

use super::access::{Permission, TokenId};
use super::client::ClientAddress;
use super::ids::{ContainerId, VolumeId};
use super::lifecycle::Command;

/// The longest text in an act's details; what is longer is cut.
const TEXT_MAX_BYTES: usize = 1024;
/// How many items of a list are named; the act's count says how many there were.
pub(crate) const ITEMS_MAX: usize = 20;

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// lightd of its own accord: a restart after a crash, a start at boot, a limit that was reached.
    Lightd,
    /// The holder of the node's own token.
    Node,
    /// The holder of an issued token. The prefix is what is still known of one that is gone.
    Token { id: TokenId, prefix: String },
    /// Anyone, on a node whose authorization is switched off.
    Anonymous,
}

impl Who {
    pub(crate) const KINDS: [&str; 4] = ["lightd", "node", "token", "anonymous"];

    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Lightd => "lightd",
            Self::Node => "node",
            Self::Token { .. } => "token",
            Self::Anonymous => "anonymous",
        }
    }
}

/// How the wish came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Rest,
    WebSocket,
    /// lightd's own command line, which says so itself.
    Cli,
    /// It did not come in: lightd's own.
    Lightd,
}

impl Way {
    pub(crate) const NAMES: [&str; 4] = ["rest", "websocket", "cli", "lightd"];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::WebSocket => "websocket",
            Self::Cli => "cli",
            Self::Lightd => "lightd",
        }
    }
}

/// Who acts, and from where. Travels with a wish to whoever carries it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Actor {
    pub(crate) who: Who,
    pub(crate) way: Way,
    pub(crate) address: Option<ClientAddress>,
    /// Of the request, as its answer and its log line have it.
    pub(crate) request_id: Option<String>,
}

impl Actor {
    pub(crate) fn lightd() -> Self {
        Self { who: Who::Lightd, way: Way::Lightd, address: None, request_id: None }
    }
}

macro_rules! actions {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)+) => {
        /// What was done. The list is closed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Action {
            $($(#[doc = $doc])* $variant,)+
        }

        impl Action {
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];
            pub(crate) const NAMES: &[&str] = &[$($name,)+];

            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

actions! {
    /// Stored, and its install begun.
    ContainerCreate = "container.create",
    /// `fields`: the names of those that changed; never their values.
    ContainerUpdate = "container.update",
    ContainerStart = "container.start",
    ContainerStop = "container.stop",
    ContainerRestart = "container.restart",
    ContainerKill = "container.kill",
    ContainerPause = "container.pause",
    ContainerResume = "container.resume",
    ContainerSuspend = "container.suspend",
    ContainerUnsuspend = "container.unsuspend",
    ContainerReinstall = "container.reinstall",
    ContainerRebind = "container.rebind",
    /// Asked for; `container.deleted` follows when it is gone.
    ContainerDelete = "container.delete",
    ContainerInstalled = "container.installed",
    ContainerInstallFailed = "container.install_failed",
    /// A run that came to nothing, with why.
    ContainerStartFailed = "container.start_failed",
    /// A run ended, as somebody wanted or by itself without a failure.
    ContainerExited = "container.exited",
    /// A run ended by itself with a failure.
    ContainerCrashed = "container.crashed",
    /// It crashed too often and stays down.
    ContainerGaveUp = "container.gave_up",
    /// A suspension is in force.
    ContainerSuspended = "container.suspended",
    /// The ports from before were put back.
    ContainerRebindFailed = "container.rebind_failed",
    ContainerDeleted = "container.deleted",
    /// A line for the workload's standard input. Its text only with `audit.commands`.
    ConsoleCommand = "console.command",
    /// A process beside the workload. Its arguments only with `audit.commands`.
    Exec = "exec",
    VolumeCreate = "volume.create",
    VolumeResize = "volume.resize",
    VolumeDelete = "volume.delete",
    FilesWrite = "files.write",
    FilesMakeFolder = "files.make_folder",
    FilesRename = "files.rename",
    FilesCopy = "files.copy",
    FilesChmod = "files.chmod",
    FilesDelete = "files.delete",
    FilesPull = "files.pull",
    ArchiveCompress = "archive.compress",
    ArchiveDecompress = "archive.decompress",
    SnapshotTake = "snapshot.take",
    SnapshotRestore = "snapshot.restore",
    SnapshotDelete = "snapshot.delete",
    OperationCancel = "operation.cancel",
    /// Work in the background ended without being done: `state` says how.
    OperationFailed = "operation.failed",
    PortAdd = "port.add",
    PortMark = "port.mark",
    PortDelete = "port.delete",
    /// What containers publish that lightd does not manage was taken into the pool.
    PortImport = "port.import",
    /// Handed out, and kept for a time.
    PortAllocate = "port.allocate",
    /// What was handed out is kept for longer.
    PortRenew = "port.renew",
    /// What was handed out was given back before its time.
    PortRelease = "port.release",
    FirewallAddRule = "firewall.add_rule",
    FirewallToggleRule = "firewall.toggle_rule",
    FirewallDeleteRule = "firewall.delete_rule",
    /// The protection from floods was set.
    FirewallProtect = "firewall.protect",
    FirewallAttach = "firewall.attach",
    FirewallDetach = "firewall.detach",
    /// All of it was deleted.
    FirewallCleanup = "firewall.cleanup",
    /// A change that the kernel did not take was taken back.
    FirewallUndone = "firewall.undone",
    TokenIssue = "token.issue",
    TokenRevoke = "token.revoke",
    /// The node's own token is another one.
    TokenReset = "token.reset",
    ConfigReload = "config.reload",
    OutboxRetry = "outbox.retry",
    OutboxDrop = "outbox.drop",
}

impl Action {
    /// The actions with this name, or of the family that this is the name of: `files`, `container`.
    pub(crate) fn named(text: &str) -> Vec<Self> {
        let is_meant = |action: &Self| {
            let name = action.as_str();
            name == text || name.split_once('.').is_some_and(|(family, _)| family == text)
        };
        Self::ALL.iter().copied().filter(is_meant).collect()
    }

    /// What somebody must be allowed to read who is told of it without sight of the whole node.
    pub(crate) fn told_with(self) -> Permission {
        let name = self.as_str();
        match name.split_once('.').map_or(name, |(family, _)| family) {
            "container" => Permission::ContainersRead,
            "console" | "exec" => Permission::ConsoleRead,
            "volume" | "files" | "archive" | "operation" => Permission::FilesRead,
            "snapshot" => Permission::SnapshotsRead,
            "port" | "firewall" => Permission::NetworkRead,
            _ => Permission::Node,
        }
    }

    /// What a wish to a container's owner is called; `None`: of lightd's own making, and part of
    /// something that is recorded.
    pub(crate) fn of_command(command: Command) -> Option<Self> {
        Some(match command {
            Command::Start => Self::ContainerStart,
            Command::Stop => Self::ContainerStop,
            Command::Restart => Self::ContainerRestart,
            Command::Kill => Self::ContainerKill,
            Command::Pause => Self::ContainerPause,
            Command::Resume => Self::ContainerResume,
            Command::Reinstall => Self::ContainerReinstall,
            Command::Rebind => Self::ContainerRebind,
            Command::Suspend => Self::ContainerSuspend,
            Command::Unsuspend => Self::ContainerUnsuspend,
            Command::Delete => Self::ContainerDelete,
            Command::Freeze | Command::Thaw => return None,
        })
    }
}

/// One thing that somebody did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Act {
    pub(crate) actor: Actor,
    pub(crate) action: Action,
    /// Where it is left out and a volume is named, the store adds the one container that uses it.
    pub(crate) container: Option<ContainerId>,
    pub(crate) volume: Option<VolumeId>,
    /// How many things it was done to.
    pub(crate) count: u64,
    pub(crate) details: Map<String, Value>,
}

impl Act {
    pub(crate) fn new(actor: Actor, action: Action) -> Self {
        Self { actor, action, container: None, volume: None, count: 1, details: Map::new() }
    }

    pub(crate) fn on(self, container: &ContainerId) -> Self {
        Self { container: Some(container.clone()), ..self }
    }

    pub(crate) fn in_volume(self, volume: VolumeId) -> Self {
        Self { volume: Some(volume), ..self }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(text) => Value::String(cut(text)),
            other => other,
        };
        self.details.insert(name.to_owned(), value);
        self
    }

    /// As [`Act::with`], of what may not be there.
    pub(crate) fn with_some(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// A list, of which the first items are named.
    pub(crate) fn listing<T: ToString>(
        self,
        name: &str,
        items: impl IntoIterator<Item = T>,
    ) -> Self {
        let named = items.into_iter().take(ITEMS_MAX).map(|item| cut(item.to_string()));
        self.with(name, named.collect::<Vec<_>>())
    }

    /// What it was done to, by name: the first of them, and how many there are.
    pub(crate) fn each<T: ToString>(self, name: &str, items: impl IntoIterator<Item = T>) -> Self {
        let mut items = items.into_iter();
        let mut count = 0;
        let act = self.listing(name, items.by_ref().inspect(|_| count += 1));
        let count = count + items.count() as u64;
        Self { count, ..act }
    }

    /// Whether the same by the same within a short time is counted on one row: what an uploader or a
    /// console does many times a second. A command whose text is kept has a row of its own.
    pub(crate) fn is_counted(&self) -> bool {
        match self.action {
            Action::FilesWrite | Action::FilesMakeFolder | Action::FilesDelete => true,
            Action::ConsoleCommand => self.details.is_empty(),
            _ => false,
        }
    }

    /// Counts what was done again on the details of the first time. Lists are added to while they are
    /// short; all else is as it was the first time.
    pub(crate) fn count_on(&self, first: &mut Map<String, Value>) {
        for (name, value) in &self.details {
            if let (Some(Value::Array(known)), Value::Array(more)) = (first.get_mut(name), value) {
                let room = ITEMS_MAX.saturating_sub(known.len());
                known.extend(more.iter().take(room).cloned());
            }
        }
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_MAX_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_has_a_name_of_its_own_that_is_documented() {
        let readme = include_str!("../../README.md");
        let mut names = std::collections::BTreeSet::new();
        for action in Action::ALL {
            let name = action.as_str();
            assert!(names.insert(name), "{name} twice");
            assert_eq!(Action::named(name), [*action]);
            assert!(readme.contains(&format!("`{name}`")), "{name} is not in the README");
        }
    }

    #[test]
    fn actions_are_named_alone_or_by_family() {
        assert_eq!(Action::named("exec"), [Action::Exec]);
        assert_eq!(Action::named("snapshot.take"), [Action::SnapshotTake]);
        let ports = Action::named("port");
        assert_eq!(ports.len(), 7);
        for nothing in ["", ".", "files.", "file", "Files"] {
            assert_eq!(Action::named(nothing), [], "{nothing:?}");
        }
    }

    #[test]
    fn details_are_bounded() {
        let act = Act::new(Actor::lightd(), Action::FilesDelete)
            .with("error", "ä".repeat(10_000))
            .each("paths", (0..1000).map(|n| format!("{n}{}", "x".repeat(5000))));
        assert_eq!(act.count, 1000);
        assert_eq!(act.details["paths"].as_array().unwrap().len(), ITEMS_MAX);
        let mut first = act.details.clone();
        act.count_on(&mut first);
        assert_eq!(first["paths"].as_array().unwrap().len(), ITEMS_MAX);
        assert!(serde_json::to_string(&first).unwrap().len() < 64 << 10);
    }

    #[test]
    fn what_is_done_again_is_added_to_the_lists_of_the_first_time() {
        let write = |path: &str| {
            Act::new(Actor::lightd(), Action::FilesWrite).each("paths", [path]).with("size", 1)
        };
        let mut first = write("a").details;
        write("b").count_on(&mut first);
        assert_eq!(Value::Object(first), serde_json::json!({"paths": ["a", "b"], "size": 1}));
    }
}
