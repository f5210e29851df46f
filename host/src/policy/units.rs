//! Sizes, times and rates: exact, or refused.
//!
//! | form | means |
//! |---|---|
//! | `"32 MiB"` | a whole number, one space, and B, KiB, MiB or GiB (powers of 1024) |
//! | `"50 ms"` | a whole number, one space, and ms, s or m |
//! | `"200/s"` | a whole number, and s, m or h: so many in each second, minute or hour |
//! | `"64 KiB/s"` | a size, and s, m or h: so many bytes in each second, minute or hour |
//!
//! There is one way to write each. A fraction could be rounded two ways, `MB` has two meanings, and a
//! value with a stray space was not what the operator meant to write; all of them are refused.

use std::{num::NonZeroU32, time::Duration};

use super::{
    error::Broken,
    limits::{self, Rate},
};

const BYTE_UNITS: &[(&str, u64)] = &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
const TIME_UNITS_MS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000)];
const RATE_UNITS_S: &[(&str, u64)] = &[("s", 1), ("m", 60), ("h", 3_600)];

/// Most events that a rate may allow in its time. Governor counts in nanoseconds; this stays far from its edges.
const MAX_RATE_COUNT: u64 = 1_000_000;

/// A size such as `32 MiB`, in bytes.
///
/// # Errors
/// The rule that the text breaks, with an example.
pub(super) fn bytes(text: &str, example: &str) -> Result<u64, Broken> {
    quantity(text, ' ', BYTE_UNITS, example).map(|(_, bytes)| bytes)
}

/// A time such as `50 ms`.
///
/// # Errors
/// The rule that the text breaks, with an example.
pub(super) fn duration(text: &str, example: &str) -> Result<Duration, Broken> {
    quantity(text, ' ', TIME_UNITS_MS, example).map(|(_, ms)| Duration::from_millis(ms))
}

/// A time as the file has it.
pub fn shown_time(time: Duration) -> String {
    let ms = time.as_millis();
    if ms.is_multiple_of(1_000) { format!("{} s", ms / 1_000) } else { format!("{ms} ms") }
}

/// A size as the file has it: in the largest unit that shows it whole.
pub fn shown_bytes(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes != 0 && bytes.is_multiple_of(*factor);
    let (unit, factor) = BYTE_UNITS.iter().rev().find(fits).unwrap_or(&BYTE_UNITS[0]);
    format!("{} {unit}", bytes / factor)
}

/// The time of a rate as the file has it.
pub(super) fn shown_per(per: Duration) -> &'static str {
    RATE_UNITS_S.iter().find(|(_, seconds)| *seconds == per.as_secs()).map_or("?", |(unit, _)| unit)
}

/// A rate such as `200/s`.
///
/// # Errors
/// The rule that the text breaks, with an example.
pub(super) fn rate(text: &str) -> Result<Rate, Broken> {
    let example = "\"200/s\"";
    let (number, total) = quantity(text, '/', RATE_UNITS_S, example)?;
    let count = u32::try_from(number).ok().filter(|_| number <= MAX_RATE_COUNT).and_then(NonZeroU32::new);
    let count = count.ok_or_else(|| Broken::new("a rate counts 1 to 1000000 events").write(example))?;
    // The number is at least 1 here, so the factor comes back exactly.
    Ok(Rate { count, per: Duration::from_secs(total / number) })
}

/// A rate of bytes such as `64 KiB/s`.
///
/// # Errors
/// The rule that the text breaks, with an example.
pub(super) fn byte_rate(text: &str) -> Result<Rate, Broken> {
    let example = "\"64 KiB/s\"";
    let Some((size, unit)) = text.split_once('/') else {
        let rule = format!("a size, then \"/\", then {}", names(RATE_UNITS_S));
        return Err(Broken::new(rule).write(example));
    };
    let Some((_, seconds)) = RATE_UNITS_S.iter().find(|(name, _)| *name == unit) else {
        return Err(Broken::new(format!("the unit {unit:?} is not one of {}", names(RATE_UNITS_S))).write(example));
    };
    let (_, bytes) = quantity(size, ' ', BYTE_UNITS, example)?;
    let count = u32::try_from(bytes).ok().filter(|_| limits::LOG.contains(&bytes)).and_then(NonZeroU32::new);
    let (least, most) = (shown_bytes(*limits::LOG.start()), shown_bytes(*limits::LOG.end()));
    let count = count.ok_or_else(|| Broken::new(format!("{least} to {most} in that time")).write(example))?;
    Ok(Rate { count, per: Duration::from_secs(*seconds) })
}

/// The number before the separator, and it times the unit's factor.
fn quantity(text: &str, separator: char, units: &[(&str, u64)], example: &str) -> Result<(u64, u64), Broken> {
    let names = names(units);
    let Some((number, unit)) = text.split_once(separator) else {
        let rule = format!("a whole number, then \"{separator}\", then {names}");
        return Err(Broken::new(rule).write(respaced(text, separator, units).unwrap_or(example.to_owned())));
    };
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let rule = format!("the unit {unit:?} is not one of {names}");
        return Err(Broken::new(rule).write(respaced(text, separator, units).unwrap_or(example.to_owned())));
    };
    let number = whole(number).map_err(|rule| Broken::new(rule).write(example))?;
    let total = number.checked_mul(*factor).ok_or_else(|| Broken::new("too large").write(example))?;
    Ok((number, total))
}

fn whole(text: &str) -> Result<u64, &'static str> {
    if text.starts_with('-') {
        return Err("negative");
    }
    if text.contains(['.', ',']) {
        return Err("not a whole number; take a smaller unit");
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("not a whole number in decimal digits");
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err("a number with leading zeros");
    }
    text.parse().map_err(|_| "too large")
}

/// The text with the spacing and the unit's spelling put right, as TOML, if that is all it takes.
fn respaced(text: &str, separator: char, units: &[(&str, u64)]) -> Option<String> {
    let packed: String = text.chars().filter(|c| !c.is_whitespace() && *c != separator).collect();
    let end = packed.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = packed.split_at(end);
    let number = whole(number).ok()?;
    // `MB`, `mb` and `M` become `MiB`, the unit that the writer most likely had in mind.
    let letter = unit.chars().next()?;
    let (unit, _) = units
        .iter()
        .find(|(name, _)| *name == unit)
        .or_else(|| units.iter().find(|(name, _)| name.len() == 3 && name.starts_with(letter.to_ascii_uppercase())))?;
    Some(format!("\"{number}{separator}{unit}\""))
}

fn names(units: &[(&str, u64)]) -> String {
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    let (last, first) = names.split_last().expect("the tables of units have rows");
    format!("{} or {last}", first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        for (text, expected) in [
            ("0 B", 0),
            ("1 B", 1),
            ("32 MiB", 32 << 20),
            ("1 GiB", 1 << 30),
            ("18446744073709551615 B", u64::MAX),
            ("17179869183 GiB", 17_179_869_183 << 30),
        ] {
            assert_eq!(bytes(text, "\"32 MiB\""), Ok(expected), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_not_exact_are_refused() {
        for text in [
            "",
            " ",
            "32",
            "32MiB",
            "32  MiB",
            " 32 MiB",
            "32 MiB ",
            "32\tMiB",
            "32 MB",
            "32 mib",
            "32 M",
            "1.5 MiB",
            "1,5 MiB",
            "-1 MiB",
            "+1 MiB",
            "1e3 B",
            "0x20 MiB",
            "1_000 B",
            "032 MiB",
            "MiB",
            " MiB",
            "٣٢ MiB",
            "18446744073709551616 B",
            "17179869184 GiB",
            "99999999999999999999999 B",
            "32\u{a0}MiB",
        ] {
            assert!(bytes(text, "\"32 MiB\"").is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_near_miss_is_shown_as_it_should_be() {
        for (text, expected) in [
            ("32 MB", "\"32 MiB\""),
            ("32MiB", "\"32 MiB\""),
            ("32 mb", "\"32 MiB\""),
            ("64 KB ", "\"64 KiB\""),
            ("10 MiB ", "\"10 MiB\""),
        ] {
            let broken = format!("{:?}", bytes(text, "\"32 MiB\"").expect_err(text));
            assert!(broken.contains(&format!("{:?}", format!("write for example {expected}"))), "{text}: {broken}");
        }
    }

    #[test]
    fn times_are_exact_or_refused() {
        let duration = |text| duration(text, "\"50 ms\"");
        assert_eq!(duration("50 ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("30 s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5 m"), Ok(Duration::from_secs(300)));
        for text in ["50ms", "50", "0.5 s", "-1 s", "5 min", "5 M", "1 h", "18446744073709551615 m", "s", "50 ms "] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn rates_of_bytes_are_exact_or_refused() {
        for (text, count, seconds) in [("1 KiB/s", 1 << 10, 1), ("16 MiB/m", 16 << 20, 60), ("65536 B/h", 65_536, 3600)]
        {
            let rate = byte_rate(text).expect(text);
            assert_eq!((rate.count.get(), rate.per), (count, Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "64 KiB", "64KiB/s", "64 KB/s", "64 KiB/d", "64 KiB/ s", "1023 B/s", "16777217 B/s", "1/s", "-1 KiB/s"]
        {
            assert!(byte_rate(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn rates_are_exact_or_refused() {
        for (text, count, seconds) in
            [("200/s", 200, 1), ("1000/m", 1000, 60), ("5/h", 5, 3600), ("1000000/s", 1_000_000, 1)]
        {
            let rate = rate(text).expect(text);
            assert_eq!((rate.count.get(), rate.per), (count, Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "0/s",
            "1000001/s",
            "200",
            "200 /s",
            "200/ s",
            "200 per s",
            "2.5/s",
            "-1/s",
            "200/d",
            "/s",
            "200/",
            "1/s/s",
            "4294967296/s",
        ] {
            assert!(rate(text).is_err(), "{text:?}");
        }
    }
}
