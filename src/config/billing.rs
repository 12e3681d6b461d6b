//! What is charged for, and how long usage is known: as it is written, and what it means.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::validate::Check;
use crate::domain::units::Span;
use crate::domain::usage::cost::{MemoryBasis, Price, Rates};

const CURRENCY_MAX_CHARS: usize = 16;

/// As it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawBilling {
    pub(crate) rates: RawRates,
    /// Which memory is charged for.
    pub(crate) memory: MemoryBasis,
    pub(crate) keep_hourly: Span,
    pub(crate) keep_daily: Span,
}

/// Decimal numbers as texts: they are never rounded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawRates {
    pub(crate) currency: String,
    pub(crate) memory_gb_hour: String,
    pub(crate) vcpu_hour: String,
    pub(crate) storage_gb_hour: String,
    pub(crate) egress_gb: String,
}

impl Default for RawBilling {
    fn default() -> Self {
        let days = |days: u64| Span(Duration::from_secs(days * 24 * 3600));
        Self {
            rates: RawRates::default(),
            memory: MemoryBasis::Used,
            keep_hourly: days(35),
            keep_daily: days(400),
        }
    }
}

impl Default for RawRates {
    fn default() -> Self {
        let free = || "0".to_owned();
        Self {
            currency: "EUR".to_owned(),
            memory_gb_hour: free(),
            vcpu_hour: free(),
            storage_gb_hour: free(),
            egress_gb: free(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Billing {
    pub(crate) rates: Rates,
    pub(crate) keep_hourly: Duration,
    pub(crate) keep_daily: Duration,
}

pub(super) fn billing(raw: &RawBilling, check: &mut Check<'_>) -> Billing {
    let rates = &raw.rates;
    let chars = rates.currency.chars().count();
    if !(1..=CURRENCY_MAX_CHARS).contains(&chars) || rates.currency.contains(char::is_control) {
        let why = format!("must be 1 to {CURRENCY_MAX_CHARS} characters, such as EUR");
        check.say("billing.rates.currency", why);
    }
    let mut price = |name: &str, text: &str| {
        let price = Price::parse(text).ok_or_else(|| {
            "must be a decimal number in quotes with at most nine decimals, such as \"0.0049\""
                .to_owned()
        });
        check.or(&format!("billing.rates.{name}"), price, Price::default())
    };
    let rates = Rates {
        currency: rates.currency.clone(),
        memory_gb_hour: price("memory_gb_hour", &rates.memory_gb_hour),
        vcpu_hour: price("vcpu_hour", &rates.vcpu_hour),
        storage_gb_hour: price("storage_gb_hour", &rates.storage_gb_hour),
        egress_gb: price("egress_gb", &rates.egress_gb),
        memory_basis: raw.memory,
    };
    Billing {
        rates,
        keep_hourly: check.span("billing.keep_hourly", raw.keep_hourly.0, "1d", "3650d"),
        keep_daily: check.span("billing.keep_daily", raw.keep_daily.0, "31d", "3650d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_that_are_no_decimal_numbers_are_named() {
        let mut raw = RawBilling::default();
        raw.rates.memory_gb_hour = "0,5".to_owned();
        raw.rates.egress_gb = "-1".to_owned();
        raw.rates.currency = String::new();
        raw.keep_daily = Span(Duration::from_secs(60));
        let mut problems = Vec::new();
        let billing = billing(&raw, &mut Check::new(&mut problems));
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "billing.rates.currency",
                "billing.rates.memory_gb_hour",
                "billing.rates.egress_gb",
                "billing.keep_daily"
            ]
        );
        assert_eq!(billing.rates.vcpu_hour, Price::default());
    }
}
