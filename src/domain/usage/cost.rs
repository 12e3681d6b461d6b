//! What usage comes to, in whole millionths of the currency: money is never a floating-point number.
//!
//! Prices have up to nine decimals. A quantity times its price is computed exactly and rounded once, half
//! up, to the millionth that is shown; a total is the sum of what is shown beside it.

use std::fmt;

use serde::{Serialize, Serializer};

use super::Usage;

const NANOS: u64 = 1_000_000_000;
const MICROS: u128 = 1_000_000;
const NANOS_PER_MICRO: u128 = 1000;
/// Of whole units: no price is higher, so that no sum overflows.
const PRICE_MAX: u64 = 1_000_000_000;
const KIB_PER_GB: u128 = 1 << 20;
const SECONDS_PER_HOUR: u128 = 3600;
const BYTES_PER_GB: u128 = 1 << 30;
const CPU_US_PER_HOUR: u128 = 3_600_000_000;

/// A price in billionths of the currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Price(u64);

impl Price {
    /// Reads a decimal number: `0.0049`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 9 {
            return None;
        }
        let whole: u64 = whole.parse().ok().filter(|whole| *whole <= PRICE_MAX)?;
        let nanos: u64 = format!("{decimals:0<9}").parse().ok()?;
        Some(Self(whole * NANOS + nanos))
    }
}

/// As it is written, without needless zeros.
impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nanos) = (self.0 / NANOS, self.0 % NANOS);
        if nanos == 0 {
            return write!(f, "{whole}");
        }
        let decimals = format!("{nanos:09}");
        write!(f, "{whole}.{}", decimals.trim_end_matches('0'))
    }
}

impl Serialize for Price {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Millionths of the currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Money(u128);

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / MICROS, self.0 % MICROS)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Which memory is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MemoryBasis {
    /// What was in use.
    #[default]
    Used,
    /// The limit, as long as it runs.
    Reserved,
}

/// What the operator charges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) currency: String,
    pub(crate) memory_gb_hour: Price,
    pub(crate) vcpu_hour: Price,
    pub(crate) storage_gb_hour: Price,
    pub(crate) egress_gb: Price,
    pub(crate) memory_basis: MemoryBasis,
}

/// What usage comes to, by what was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) memory: Money,
    pub(crate) vcpu: Money,
    pub(crate) storage: Money,
    pub(crate) egress: Money,
}

impl Cost {
    pub(crate) fn total(&self) -> Money {
        Money(self.memory.0 + self.vcpu.0 + self.storage.0 + self.egress.0)
    }
}

impl Rates {
    pub(crate) fn cost(&self, usage: &Usage) -> Cost {
        let memory_kib_s = match self.memory_basis {
            MemoryBasis::Used => usage.memory_kib_s,
            MemoryBasis::Reserved => usage.reserved_kib_s,
        };
        let gb_hour = KIB_PER_GB * SECONDS_PER_HOUR;
        Cost {
            memory: priced(memory_kib_s, self.memory_gb_hour, gb_hour),
            vcpu: priced(usage.cpu_us, self.vcpu_hour, CPU_US_PER_HOUR),
            storage: priced(usage.storage_kib_s, self.storage_gb_hour, gb_hour),
            egress: priced(usage.egress_bytes, self.egress_gb, BYTES_PER_GB),
        }
    }
}

/// `quantity` of which `unit` has this price. At most 2^64 times 2^60, so there is no overflow.
fn priced(quantity: u64, price: Price, unit: u128) -> Money {
    let unit = unit * NANOS_PER_MICRO;
    Money((u128::from(quantity) * u128::from(price.0) + unit / 2) / unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rates(memory: &str, vcpu: &str, storage: &str, egress: &str) -> Rates {
        let price = |text| Price::parse(text).unwrap();
        Rates {
            currency: "EUR".to_owned(),
            memory_gb_hour: price(memory),
            vcpu_hour: price(vcpu),
            storage_gb_hour: price(storage),
            egress_gb: price(egress),
            memory_basis: MemoryBasis::Used,
        }
    }

    #[test]
    fn prices_are_read_and_written_exactly() {
        for (text, written) in
            [("0", "0"), ("0.0049", "0.0049"), ("12.50", "12.5"), ("0.000000001", "0.000000001")]
        {
            assert_eq!(Price::parse(text).unwrap().to_string(), written);
        }
        for bad in ["", ".5", "1.", "-1", "+1", "1e3", "1,5", "0.0000000001", "1000000001", " 1"] {
            assert_eq!(Price::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_hour_of_each_costs_its_price_and_the_total_is_their_sum() {
        let rates = rates("0.005", "0.01", "0.0001", "0.02");
        let hour = Usage {
            cpu_us: 2 * 3_600_000_000,
            memory_kib_s: 3600 << 20,
            reserved_kib_s: (7 * 3600) << 20,
            storage_kib_s: (10 * 3600) << 20,
            egress_bytes: 3 << 29,
            ..Usage::default()
        };
        let cost = rates.cost(&hour);
        let shown = [cost.memory, cost.vcpu, cost.storage, cost.egress, cost.total()];
        assert_eq!(
            shown.map(|money| money.to_string()),
            ["0.005000", "0.020000", "0.001000", "0.030000", "0.056000"]
        );
        let reserved = Rates { memory_basis: MemoryBasis::Reserved, ..rates };
        assert_eq!(reserved.cost(&hour).memory.to_string(), "0.035000");
    }

    #[test]
    fn half_a_millionth_is_rounded_up_and_the_largest_bill_fits() {
        let price = Price::parse("0.000001").unwrap();
        let of = |bytes| priced(bytes, price, BYTES_PER_GB).to_string();
        assert_eq!(of((1 << 29) - 1), "0.000000");
        assert_eq!(of(1 << 29), "0.000001");
        let most = Price(PRICE_MAX * NANOS);
        assert!(priced(u64::MAX, most, 1) > Money(0));
    }

    proptest! {
        /// Rounding aside, it does not matter how a time is cut.
        #[test]
        fn parts_cost_what_the_whole_does(a in 0_u64..1 << 50, b in 0_u64..1 << 50, nanos in 0_u64..NANOS) {
            let price = |quantity| priced(quantity, Price(nanos), KIB_PER_GB * SECONDS_PER_HOUR).0;
            prop_assert!(price(a + b).abs_diff(price(a) + price(b)) <= 1);
            prop_assert!(price(a + b) >= price(a));
        }

        #[test]
        fn what_is_written_is_read_again(nanos in 0..PRICE_MAX * NANOS) {
            prop_assert_eq!(Price::parse(&Price(nanos).to_string()), Some(Price(nanos)));
        }
    }
}
