//! What a container may reach, and by which ports it is reached.
//!
//! [`pool`] hands out the ports of this host, of which [`host`] tells what other processes have; [`isolation`] keeps lightd's bridge standing and containers
//! from the host, by the rules of [`isolation_rules`]; [`firewall`] keeps the rules that were asked for on
//! who reaches a container's ports. All rules go to the kernel through [`nft`], and [`ruleset`] tells when
//! somebody else has changed them.

pub(crate) mod firewall;
pub(crate) mod host;
pub(crate) mod isolation;
pub(crate) mod isolation_rules;
pub(crate) mod nft;
pub(crate) mod pool;
pub(crate) mod ruleset;

#[cfg(test)]
mod tests;
