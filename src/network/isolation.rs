//! The bridge that all of lightd's containers are on, and the firewall around it.
//!
//! [`Isolation::ensure`] makes both stand, in that order reversed: the rules first, so that no container
//! is on the bridge without them. Called at boot, when the engine is back, and every few minutes (a
//! reload of the host's firewall takes all tables away). Where it fails, [`Isolation::status`] says why
//! and how to mend it, and nothing may be started: isolation fails closed.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use tokio::sync::watch;

use super::isolation_rules::{self, HostService, Rules, WithinBridge};
use super::nft::{self, NftError, Standing};
use crate::engine::{BridgeSpec, Engine, EngineError};
use crate::util::chain::Chain;

/// A lightd that was killed may have left the engine in the middle of making the very same bridge; until
/// that is through, the engine refuses a second one.
const BRIDGE_TRIES: u32 = 8;
const BRIDGE_AGAIN: Duration = Duration::from_millis(250);

/// Whether lightd sets rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firewall {
    Nftables,
    /// The operator keeps containers from the host and the private networks by other means.
    Off,
}

#[derive(Clone, Debug)]
pub(crate) struct IsolationOptions {
    /// The name of network, interface and firewall tables alike; see [`check_bridge_name`].
    pub(crate) bridge: String,
    /// The pool that containers' addresses are from. The bridge takes its first /20, or all of a
    /// smaller one; the rest is kept closed for networks to come.
    pub(crate) subnets: Ipv4Net,
    pub(crate) exceptions: Exceptions,
    pub(crate) firewall: Firewall,
}

/// What containers may reach beside the internet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exceptions {
    pub(crate) host: Vec<HostService>,
    pub(crate) private: Vec<IpNet>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum IsolationError {
    #[error("{bridge:?} is no name for the containers' bridge: {why}")]
    BridgeName { bridge: String, why: &'static str },
    #[error("cannot set the firewall rules of the containers' bridge")]
    Firewall(#[source] NftError),
    #[error(
        "nothing keeps containers on one bridge from each other: the kernel filters no bridged frames by \
         nftables, and /proc/sys/net/bridge/bridge-nf-call-iptables is not 1 (modprobe br_netfilter, \
         then set it to 1)"
    )]
    WithinBridge,
    #[error("cannot set up the containers' bridge")]
    Bridge(#[source] EngineError),
}

impl IsolationError {
    /// Whether only the engine is away.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self, Self::Bridge(error) if error.is_away())
    }
}

/// Whether containers may be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IsolationStatus {
    NotYet,
    Ready,
    Failed { why: String },
}

/// The keeper of the containers' bridge.
#[derive(Debug)]
pub(crate) struct Isolation {
    engine: Engine,
    options: IsolationOptions,
    exceptions: Mutex<Exceptions>,
    /// Two at once would both make the bridge.
    ensuring: tokio::sync::Mutex<()>,
    status: watch::Sender<IsolationStatus>,
    /// What the kernel was last seen to understand.
    within_bridge: Mutex<WithinBridge>,
    /// The rules as they stood when they were last set.
    standing: Mutex<Option<Standing>>,
}

impl Isolation {
    pub(crate) fn new(engine: Engine, options: IsolationOptions) -> Self {
        Self {
            engine,
            exceptions: Mutex::new(options.exceptions.clone()),
            ensuring: tokio::sync::Mutex::default(),
            options,
            status: watch::Sender::new(IsolationStatus::NotYet),
            within_bridge: Mutex::new(WithinBridge::ByBridge),
            standing: Mutex::default(),
        }
    }

    pub(crate) fn status(&self) -> watch::Receiver<IsolationStatus> {
        self.status.subscribe()
    }

    /// Other exceptions, from the next [`Isolation::ensure`] on.
    pub(crate) fn set_exceptions(&self, exceptions: Exceptions) {
        *self.exceptions.lock().unwrap_or_else(PoisonError::into_inner) = exceptions;
    }

    /// Whether somebody has taken the rules away or changed them since they were set.
    pub(crate) async fn is_disturbed(&self) -> bool {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(standing) = standing else { return false };
        match standing.holds().await {
            Ok(holds) => !holds,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the rules of the containers' bridge cannot be looked at");
                false
            }
        }
    }

    /// Makes rules and bridge stand. May be repeated at any time; what stands already is kept.
    pub(crate) async fn ensure(&self) -> Result<(), IsolationError> {
        let _one_at_a_time = self.ensuring.lock().await;
        let ensured = self.ensure_both().await;
        let status = match &ensured {
            Ok(()) => IsolationStatus::Ready,
            // An engine that is away says nothing of the isolation: a start that waits for the engine
            // must not fail on what the engine's absence has left here.
            Err(error) if error.is_away() => return ensured,
            Err(error) => IsolationStatus::Failed { why: Chain(error).to_string() },
        };
        self.status.send_if_modified(|present| {
            let is_news = *present != status;
            *present = status;
            is_news
        });
        ensured
    }

    async fn ensure_both(&self) -> Result<(), IsolationError> {
        let bridge = &self.options.bridge;
        check_bridge_name(bridge)
            .map_err(|why| IsolationError::BridgeName { bridge: bridge.clone(), why })?;
        match self.options.firewall {
            Firewall::Nftables => self.ensure_rules().await?,
            Firewall::Off => self.remove_rules().await,
        }
        let spec = BridgeSpec {
            name: bridge.clone(),
            bridge_name: bridge.clone(),
            subnet: first_subnet(self.options.subnets),
            icc: false,
        };
        let mut tries = 1;
        loop {
            match self.engine.ensure_bridge(&spec).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_away() || tries == BRIDGE_TRIES => {
                    return Err(IsolationError::Bridge(error));
                }
                Err(_) => tokio::time::sleep(BRIDGE_AGAIN).await,
            }
            tries += 1;
        }
    }

    async fn ensure_rules(&self) -> Result<(), IsolationError> {
        let mut rules = self.rules().await?;
        loop {
            let refused = match nft::apply(&isolation_rules::render(&rules)).await {
                Ok(()) => break,
                Err(error @ NftError::Refused { .. }) => error,
                Err(error) => return Err(IsolationError::Firewall(error)),
            };
            rules.within_bridge = match rules.within_bridge {
                WithinBridge::ByBridge => WithinBridge::ByAddress,
                WithinBridge::ByAddress if bridged_packets_are_filtered() => {
                    WithinBridge::AsPackets
                }
                WithinBridge::ByAddress => return Err(IsolationError::WithinBridge),
                WithinBridge::AsPackets => return Err(IsolationError::Firewall(refused)),
            };
        }
        *self.within_bridge.lock().unwrap_or_else(PoisonError::into_inner) = rules.within_bridge;
        self.note_standing(rules.within_bridge).await;
        Ok(())
    }

    async fn note_standing(&self, within_bridge: WithinBridge) {
        let families: &[&str] = match within_bridge {
            WithinBridge::ByBridge | WithinBridge::ByAddress => &["inet", "bridge"],
            WithinBridge::AsPackets => &["inet"],
        };
        let bridge = &self.options.bridge;
        let tables = families.iter().map(|family| format!("{family} {bridge}")).collect();
        // What cannot be read back is set again every few minutes all the same.
        let standing = Standing::note(tables).await.ok();
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    async fn rules(&self) -> Result<Rules, IsolationError> {
        let options = &self.options;
        let exceptions = self.exceptions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let used = self.engine.subnets_in_use().await.map_err(IsolationError::Bridge)?;
        let mut container_subnets: Vec<IpNet> = used.into_iter().map(|used| used.subnet).collect();
        container_subnets.push(IpNet::V4(options.subnets));
        Ok(Rules {
            bridge: options.bridge.clone(),
            subnet: first_subnet(options.subnets),
            container_subnets,
            allow_host: exceptions.host,
            allow_private: exceptions.private,
            name_servers: name_servers().await,
            within_bridge: *self.within_bridge.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }

    /// Rules of a time when the firewall was on must not stay behind.
    async fn remove_rules(&self) {
        for transaction in isolation_rules::render_removals(&self.options.bridge) {
            match nft::apply(&transaction).await {
                Ok(()) | Err(NftError::Missing | NftError::Refused { .. }) => {}
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "cannot remove lightd's firewall rules");
                }
            }
        }
    }
}

/// The name goes into rules and to the kernel: `[a-z][a-z0-9]{0,14}`, and no word of nft's language.
pub(crate) fn check_bridge_name(name: &str) -> Result<(), &'static str> {
    const WHY: &str =
        "it must be 2 to 15 characters of a-z and 0-9, begin with a letter and hold a digit";
    let begins_well = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let is_plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    // A digit is what keeps it from being a word such as `drop`; the few that have one are named.
    let has_digit = name.bytes().any(|b| b.is_ascii_digit());
    let is_word = ["ip6", "sha1", "sha256", "icmpv6", "docker0", "eth0"].contains(&name);
    if begins_well && is_plain && has_digit && !is_word && (2..=15).contains(&name.len()) {
        Ok(())
    } else {
        Err(WHY)
    }
}

fn first_subnet(pool: Ipv4Net) -> Ipv4Net {
    const BRIDGE_PREFIX: u8 = 20;
    let prefix = pool.prefix_len().max(BRIDGE_PREFIX);
    Ipv4Net::new(pool.network(), prefix).unwrap_or(pool)
}

/// Whether packets between two ports of a bridge pass the host's forward chain.
fn bridged_packets_are_filtered() -> bool {
    std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables")
        .is_ok_and(|text| text.trim() == "1")
}

/// Where the engine's resolver for containers asks: it reads the first file, and the second where the
/// first names nothing but the host's own stub. It asks from inside the container's network.
async fn name_servers() -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for file in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        // A host without the file has no name servers in it.
        let text = tokio::fs::read_to_string(file).await.unwrap_or_default();
        servers.extend(parse_name_servers(&text));
    }
    servers.sort_unstable();
    servers.dedup();
    servers.truncate(16);
    servers
}

fn parse_name_servers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        // A stub on the host's loopback is asked by the engine itself.
        .filter(|server| !server.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_takes_the_first_part_of_the_pool() {
        let of = |pool: &str| first_subnet(pool.parse().expect("a subnet")).to_string();
        assert_eq!(of("10.86.0.0/16"), "10.86.0.0/20");
        assert_eq!(of("10.86.77.0/24"), "10.86.77.0/24");
        assert_eq!(of("10.86.77.9/16"), "10.86.0.0/20");
    }

    #[test]
    fn names_that_are_words_of_the_language_or_no_interface_names_are_refused() {
        for good in ["lightd0", "lt1f3a9", "br0"] {
            assert_eq!(check_bridge_name(good), Ok(()), "{good}");
        }
        for bad in
            ["", "drop", "bridge", "ip6", "0a", "a0; flush ruleset", "Lightd0", "a234567890123456"]
        {
            assert!(check_bridge_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn name_servers_are_read_without_the_hosts_stub() {
        let text = "# comment\nnameserver 127.0.0.53\nnameserver 10.0.0.2\n nameserver\tfd00::1\nsearch x\n";
        let found: Vec<String> = parse_name_servers(text).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["10.0.0.2", "fd00::1"]);
    }
}
