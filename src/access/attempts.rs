//! Slows down who guesses the node's token.
//!
//! Each address (a /64 of IPv6) may be wrong a number of times at once and so often a minute; what comes
//! after that is refused unseen. So that nobody who shares an address with an attacker, behind one proxy
//! say, is locked out with him: an address that the node's token was good from is remembered for a day, over
//! restarts of lightd too, and whoever asks from there is compared with it always (a new one too, when it has
//! been changed). Issued tokens are not a matter of guessing: they have 256 random bits, and are looked up
//! whatever the address has done.
//!
//! What was spent is lost at a restart, which gives an attacker one more burst. Bounded: when too many
//! addresses fail at once, those that come last share one budget.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::settings::AttemptLimit;
use crate::domain::client::ClientAddress;
use crate::domain::units::UnixSeconds;
use tokio::time::Instant;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Addresses whose failures are counted apart.
const COUNTED_MAX: usize = 16_384;
/// How often those whose budget is whole again are looked for, which takes a look at all.
const TIDIED_EVERY: Duration = Duration::from_secs(1);
/// The budget of all that come when there is no room for one of their own.
const SHARED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// Addresses that are remembered for a good token; a node has one panel, and a few people.
pub(super) const HOMES_MAX: usize = 1024;
pub(super) const HOME_FOR_S: i64 = 24 * 3600;
/// How exact the stored time of a home is; each request would be a write otherwise.
const NOTED_EVERY_S: i64 = 600;

#[derive(Debug, Default)]
pub(super) struct Attempts {
    failures: Mutex<Option<Failures>>,
    /// Where the node's token was good from, and when last.
    homes: Mutex<HashMap<IpAddr, Home>>,
}

#[derive(Clone, Copy, Debug)]
struct Home {
    seen_at: UnixSeconds,
    noted_at: UnixSeconds,
}

#[derive(Debug)]
struct Failures {
    limit: AttemptLimit,
    budgets: DefaultKeyedRateLimiter<IpAddr>,
    tidied_at: Option<Instant>,
}

impl Attempts {
    /// Takes one from the address's budget; if that is used up, says when there will be one again.
    pub(super) fn spend(&self, from: ClientAddress, limit: AttemptLimit) -> Result<(), Duration> {
        let mut held = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = match &mut *held {
            Some(failures) if failures.limit == limit => failures,
            stale => stale.insert(Failures::new(limit)),
        };
        let key = failures.key_of(from, Instant::now());
        let now = DefaultClock::default().now();
        failures.budgets.check_key(&key).map_err(|not_until| not_until.wait_time_from(now))
    }

    /// Whether the node's token was good from there lately.
    pub(super) fn is_home(&self, from: ClientAddress, now: UnixSeconds) -> bool {
        let homes = self.homes();
        homes.get(&from.network()).is_some_and(|home| now.0 - home.seen_at.0 < HOME_FOR_S)
    }

    /// Remembers where the node's token was good from; true when that is to be stored.
    pub(super) fn welcome(&self, from: ClientAddress, now: UnixSeconds) -> bool {
        let mut homes = self.homes();
        if homes.len() >= HOMES_MAX && !homes.contains_key(&from.network()) {
            let oldest = homes.iter().min_by_key(|(_, home)| home.seen_at).map(|(key, _)| *key);
            oldest.map(|key| homes.remove(&key));
        }
        let never = UnixSeconds(i64::MIN);
        let home = homes.entry(from.network()).or_insert(Home { seen_at: now, noted_at: never });
        home.seen_at = now;
        let is_due = now.0.saturating_sub(home.noted_at.0) >= NOTED_EVERY_S;
        if is_due {
            home.noted_at = now;
        }
        is_due
    }

    /// Remembers what an earlier process has stored.
    pub(super) fn restore(&self, homes: Vec<(IpAddr, UnixSeconds)>) {
        let home = |(network, at)| (network, Home { seen_at: at, noted_at: at });
        self.homes().extend(homes.into_iter().map(home));
    }

    fn homes(&self) -> MutexGuard<'_, HashMap<IpAddr, Home>> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failures {
    fn new(limit: AttemptLimit) -> Self {
        let quota = Quota::per_minute(limit.per_minute).allow_burst(limit.burst);
        Self { limit, budgets: RateLimiter::keyed(quota), tidied_at: None }
    }

    fn key_of(&mut self, from: ClientAddress, now: Instant) -> IpAddr {
        let is_due = |at: Instant| now.saturating_duration_since(at) >= TIDIED_EVERY;
        if self.budgets.len() >= COUNTED_MAX && self.tidied_at.is_none_or(is_due) {
            // Whose budget is whole again need not be known.
            self.budgets.retain_recent();
            self.tidied_at = Some(now);
        }
        if self.budgets.len() >= COUNTED_MAX { SHARED } else { from.network() }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::store::testing::NOW;

    fn limit(burst: u32) -> AttemptLimit {
        AttemptLimit {
            burst: NonZeroU32::new(burst).unwrap(),
            per_minute: NonZeroU32::new(1).unwrap(),
        }
    }

    fn address(number: u32) -> ClientAddress {
        ClientAddress::new(std::net::Ipv4Addr::from_bits(number).into())
    }

    #[test]
    fn an_address_may_be_wrong_so_often_and_others_do_not_pay_for_it() {
        let attempts = Attempts::default();
        for _ in 0..5 {
            assert_eq!(attempts.spend(address(1), limit(5)), Ok(()));
        }
        let wait = attempts.spend(address(1), limit(5)).unwrap_err();
        assert!((1..=60).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(attempts.spend(address(2), limit(5)), Ok(()));
        let of_net = |text: &str| ClientAddress::parse(text).unwrap();
        for n in 0..5 {
            assert_eq!(attempts.spend(of_net(&format!("2001:db8::{n}")), limit(5)), Ok(()));
        }
        assert!(attempts.spend(of_net("2001:db8::ffff"), limit(5)).is_err(), "one /64 is one");
        assert_eq!(attempts.spend(address(1), limit(6)), Ok(()), "another limit counts anew");
    }

    #[test]
    fn memory_is_bounded_however_many_addresses_fail() {
        let attempts = Attempts::default();
        let all = u32::try_from(COUNTED_MAX).unwrap();
        for number in 0..all {
            assert_eq!(attempts.spend(address(number), limit(2)), Ok(()));
        }
        let late: Vec<bool> = (all..all + 10)
            .map(|number| attempts.spend(address(number), limit(2)).is_ok())
            .collect();
        assert_eq!(late.iter().filter(|is_ok| **is_ok).count(), 2, "they share one budget");
        for number in 0..u32::try_from(HOMES_MAX).unwrap() + 10 {
            assert!(attempts.welcome(address(number), NOW));
        }
        assert_eq!(attempts.homes().len(), HOMES_MAX);
    }

    #[test]
    fn while_there_is_no_room_all_are_looked_at_once_a_second_and_no_more() {
        let mut failures = Failures::new(limit(2));
        let all = u32::try_from(COUNTED_MAX).unwrap();
        for number in 0..all {
            failures.budgets.check_key(&address(number).network()).unwrap();
        }
        let now = Instant::now();
        for (after_ms, looked_at_ms) in [(0, 0), (1, 0), (999, 0), (1000, 1000), (1500, 1000)] {
            let at = |ms| now + Duration::from_millis(ms);
            assert_eq!(failures.key_of(address(all), at(after_ms)), SHARED);
            assert_eq!(failures.tidied_at, Some(at(looked_at_ms)), "{after_ms}");
        }
    }

    #[test]
    fn a_home_is_one_for_a_day_after_the_last_visit() {
        let attempts = Attempts::default();
        let mut now = NOW;
        for _ in 0..2 {
            attempts.welcome(address(1), now);
            now.0 += HOME_FOR_S - 1;
            assert!(attempts.is_home(address(1), now));
            assert!(!attempts.is_home(address(2), now));
        }
        now.0 += 1;
        assert!(!attempts.is_home(address(1), now));
    }

    #[test]
    fn a_home_is_stored_now_and_then() {
        let attempts = Attempts::default();
        let stored = |seconds| attempts.welcome(address(1), UnixSeconds(NOW.0 + seconds));
        let every = NOTED_EVERY_S;
        assert_eq!(
            [0, 1, every - 1, every, every + 1].map(stored),
            [true, false, false, true, false]
        );
    }
}
