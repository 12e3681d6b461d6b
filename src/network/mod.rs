//! What a container may reach, and by which ports it is reached.
//!
//! [`isolation`] keeps lightd's bridge and its firewall standing; [`firewall`] says what the rules are.

pub(crate) mod firewall;
pub(crate) mod isolation;

#[cfg(test)]
mod tests;
