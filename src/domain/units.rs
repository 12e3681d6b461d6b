//! Durations and sizes as people write them in requests and in the configuration.

use std::fmt;
use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes in one MB as the contract counts them.
pub(crate) const MIB: u64 = 1 << 20;

/// A length of time written with units: `30s`, `15m`, `1h30m`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

/// Why a text is no [`Span`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be a length of time with units, such as 30s, 15m, 1h30m or 7d")]
pub(crate) struct InvalidSpan;

impl Span {
    /// Reads sums of whole numbers with the units `d`, `h`, `m`, `s` and `ms`.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidSpan> {
        let known = ["d", "h", "m", "s", "ms"];
        let units = text.split(|c: char| c.is_ascii_digit()).filter(|unit| !unit.is_empty());
        let starts_with_digit = text.bytes().next().is_some_and(|b| b.is_ascii_digit());
        if !starts_with_digit || units.into_iter().any(|unit| !known.contains(&unit)) {
            return Err(InvalidSpan);
        }
        humantime::parse_duration(text).map(Self).map_err(|_| InvalidSpan)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time with units, such as \"30s\", \"15m\" or \"1h30m\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text).map_err(E::custom)
            }
        }

        from.deserialize_str(Text)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// In the units that are read, the largest first: months and years are of no certain length.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left_ms = self.0.as_millis();
        if left_ms == 0 {
            return f.write_str("0s");
        }
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
        for (unit, ms) in units {
            if left_ms >= ms {
                write!(f, "{}{unit}", left_ms / ms)?;
                left_ms %= ms;
            }
        }
        Ok(())
    }
}

/// A moment as the contract writes it: whole seconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct UnixSeconds(pub(crate) i64);

impl UnixSeconds {
    pub(crate) fn now() -> Self {
        Self(jiff::Timestamp::now().as_second())
    }

    pub(crate) fn from_ms(unix_ms: i64) -> Self {
        Self(unix_ms.div_euclid(1000))
    }
}

/// The time of day in milliseconds since 1970.
pub(crate) fn now_unix_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The time of day in nanoseconds since 1970, as the engine stamps its log.
pub(crate) fn now_unix_nanos() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_they_are_read() {
        for text in ["0s", "30s", "1h30m", "400d", "35d", "1d", "1d2h3m4s5ms"] {
            assert_eq!(Span::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn spans_read_as_the_contract_writes_them() {
        let seconds = |text| Span::parse(text).map(|span| span.0.as_secs());
        assert_eq!(seconds("30s"), Ok(30));
        assert_eq!(seconds("15m"), Ok(900));
        assert_eq!(seconds("1h30m"), Ok(5400));
        assert_eq!(seconds("7d"), Ok(604_800));
        for bad in
            ["", "90", "1 week", "1w", "-1s", "s", "1h30", "abc", "1s ", "99999999999999999999d"]
        {
            assert_eq!(Span::parse(bad), Err(InvalidSpan), "{bad:?}");
        }
        assert_eq!(serde_json::from_str::<Span>("\"4s\"").unwrap().0.as_secs(), 4);
        let refused = serde_json::from_str::<Span>("4").unwrap_err().to_string();
        assert!(refused.contains("expected a length of time with units"), "{refused}");
    }
}
