//! What a container may reach, and by which ports it is reached.
//!
//! [`pool`] hands out the ports of this host, of which [`host`] tells what other processes have;
//! [`isolation`] keeps lightd's bridge and its firewall standing; [`firewall`] says what the rules are.

pub(crate) mod firewall;
pub(crate) mod host;
pub(crate) mod isolation;
pub(crate) mod pool;

#[cfg(test)]
mod tests;
