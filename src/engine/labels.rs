//! The labels by which lightd knows its own things in the engine.

use std::collections::HashMap;

/// Which lightd an object belongs to; keeps several daemons on one engine apart. Set by this module
/// on everything it creates.
pub(crate) const NODE: &str = "lightd.node";
/// The container's id in the contract.
pub(crate) const CONTAINER: &str = "lightd.container";
/// [`ROLE_WORKLOAD`] or [`ROLE_INSTALL`].
pub(crate) const ROLE: &str = "lightd.role";
/// The number of the run the object was made for.
pub(crate) const RUN: &str = "lightd.run";
/// On images that lightd made, with the node's name. A key of its own: containers inherit the labels
/// of their image, and must not count as ours by that.
pub(crate) const IMAGE: &str = "lightd.image";

/// On images that lightd made, with the engine's id of the container each was made from.
pub(crate) const MADE_FROM: &str = "lightd.made-from";

pub(crate) const ROLE_WORKLOAD: &str = "workload";
pub(crate) const ROLE_INSTALL: &str = "install";

/// The labels that speak of a container and must not live on in an image made from it.
pub(super) const OF_CONTAINERS: [&str; 4] = [NODE, CONTAINER, ROLE, RUN];

/// An engine filter for objects that carry `key` with this node's name.
pub(super) fn filter(key: &str, node: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{key}={node}")])])
}
