//! Changes values in a configuration file and leaves the rest as it is written, order included.
//!
//! Called by the command line's verbs that set a secret. The file is replaced whole or not at all; a
//! daemon that runs sees the new one within a second. Whoever changes what he has read holds [`Turn`] from
//! the reading to the writing: of two at once the second would take back what the first has written.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::error::ConfigError;
use super::source::read_text;
use crate::util::atomic_file;

const TURN_COMES_WITHIN: Duration = Duration::from_secs(5);
const TURN_AGAIN: Duration = Duration::from_millis(10);

/// The right to change a configuration file, until dropped. A lock on its folder: the file itself is another
/// one after each change. The kernel takes it back from whoever dies.
#[derive(Debug)]
pub(crate) struct Turn(#[expect(dead_code, reason = "held open")] File);

impl Turn {
    /// Waits for it, blocking, a few seconds at most.
    pub(crate) fn wait(path: &Path) -> Result<Self, ConfigError> {
        Self::wait_for(path, TURN_COMES_WITHIN)
    }

    fn wait_for(path: &Path, within: Duration) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Write { path: path.to_owned(), source };
        // Of a link, the folder of what it leads to: that is what is replaced.
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let folder = real.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or_else(|| Path::new("."))).map_err(failed)?;
        let mut tries = within.as_millis() / TURN_AGAIN.as_millis();
        loop {
            match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(folder)),
                Err(Errno::WOULDBLOCK | Errno::INTR) if tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(TURN_AGAIN);
                }
                Err(Errno::WOULDBLOCK) => return Err(ConfigError::Held { path: path.to_owned() }),
                Err(error) => return Err(failed(io::Error::from(error))),
            }
        }
    }
}

/// Sets keys of a section: all at once, atomically, readable by the owner only. A link to the real
/// file stays a link.
pub(crate) fn set(path: &Path, section: &str, values: &[(&str, Value)]) -> Result<(), ConfigError> {
    let failed = |source| ConfigError::Write { path: path.to_owned(), source };
    let mut document: Node = serde_json::from_str(&read_text(path)?)
        .map_err(|source| ConfigError::NotJson { path: path.to_owned(), source })?;
    for (key, value) in values {
        let leaf = Node::Leaf(value.clone());
        let at = document.entry(section).and_then(|section| section.entry(key));
        at.map(|at| *at = leaf)
            .ok_or_else(|| failed(std::io::Error::other(format!("{section} is no object"))))?;
    }
    let mut text = serde_json::to_string_pretty(&document).map_err(|why| failed(why.into()))?;
    text.push('\n');
    let real = path.canonicalize().map_err(failed)?;
    atomic_file::write(&real, text.as_bytes(), 0o600).map_err(failed)
}

/// JSON whose objects keep the order in which their keys were written.
enum Node {
    Leaf(Value),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    /// The value of a key, made if it is missing; `None` where this is no object.
    fn entry(&mut self, key: &str) -> Option<&mut Node> {
        let Self::Object(entries) = self else { return None };
        let at = match entries.iter().position(|(name, _)| name == key) {
            Some(at) => at,
            None => {
                entries.push((key.to_owned(), Self::Object(Vec::new())));
                entries.len() - 1
            }
        };
        Some(&mut entries[at].1)
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Leaf(value) => value.serialize(to),
            Self::List(nodes) => nodes.serialize(to),
            Self::Object(entries) => {
                let mut map = to.serialize_map(Some(entries.len()))?;
                for (key, node) in entries {
                    map.serialize_entry(key, node)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }
    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = seq.next_element()? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_waited_for_and_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let first = Turn::wait(&path).unwrap();
        let second = Turn::wait_for(&path, TURN_AGAIN).unwrap_err();
        assert!(matches!(second, ConfigError::Held { .. }), "{second:?}");
        let (begins, begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                begins.send(()).unwrap();
                let began = tokio::time::Instant::now();
                Turn::wait(&path).map(|_turn| began.elapsed())
            });
            begun.recv().unwrap();
            let held = Turn::wait_for(&path, 3 * TURN_AGAIN).unwrap_err();
            assert!(matches!(held, ConfigError::Held { .. }), "{held:?}");
            drop(first);
            assert!(waits.join().unwrap().unwrap() >= 2 * TURN_AGAIN);
        });
    }
}
