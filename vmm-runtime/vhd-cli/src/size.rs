//! Sizes as people write them.

use std::str::FromStr;

/// A number of bytes, read from `10GiB`, `10G`, `1.5 GiB` or `10737418240`.
///
/// The units are those of 1024. `GB` is refused: to some it is 10^9 bytes, to
/// others 2^30; and so is `Gb`, which may be bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("expected a number with a unit, such as 10GiB")]
    NoNumber,
    #[error(
        "'{unit}' means different things to different people: write {number}{clear} for units of 1024, or the number of bytes"
    )]
    Ambiguous {
        unit: String,
        number: String,
        clear: String,
    },
    #[error("unknown unit '{0}': expected KiB, MiB, GiB or TiB (or K, M, G, T)")]
    UnknownUnit(String),
    #[error("not a whole number of bytes")]
    Fraction,
    #[error("too large")]
    TooLarge,
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let text = text.trim();
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = unit.trim_start();
        let shift = shift(number, unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
            return Err(SizeError::NoNumber);
        }
        let whole: u128 = whole.parse().map_err(|_| SizeError::TooLarge)?;
        let digits = fraction.trim_end_matches('0');
        // 10^18 fits many times.
        if digits.len() > 18 {
            return Err(SizeError::Fraction);
        }
        let scale = 10u128.pow(digits.len() as u32);
        let part: u128 = match digits {
            "" => 0,
            digits => digits.parse().map_err(|_| SizeError::NoNumber)?,
        };
        let part = part << shift;
        if !part.is_multiple_of(scale) {
            return Err(SizeError::Fraction);
        }
        let bytes = whole
            .checked_mul(1 << shift)
            .and_then(|bytes| bytes.checked_add(part / scale))
            .ok_or(SizeError::TooLarge)?;
        u64::try_from(bytes)
            .map(Size)
            .map_err(|_| SizeError::TooLarge)
    }
}

/// By how many bits the unit multiplies.
fn shift(number: &str, unit: &str) -> Result<u32, SizeError> {
    const UNITS: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    if unit.is_empty() {
        return Ok(0);
    }
    for (letter, shift) in UNITS {
        let Some(rest) = strip_letter(unit, letter) else {
            continue;
        };
        return match rest {
            "" | "iB" | "ib" | "IB" => Ok(shift),
            "B" | "b" => Err(SizeError::Ambiguous {
                unit: unit.to_owned(),
                number: number.to_owned(),
                clear: format!("{letter}iB"),
            }),
            _ => Err(SizeError::UnknownUnit(unit.to_owned())),
        };
    }
    Err(SizeError::UnknownUnit(unit.to_owned()))
}

fn strip_letter<'a>(unit: &'a str, letter: &str) -> Option<&'a str> {
    unit.strip_prefix(letter)
        .or_else(|| unit.strip_prefix(letter.to_ascii_lowercase().as_str()))
}

/// A number of bytes for people: `10 GiB`, `1.5 GiB`, `512 bytes`.
pub(crate) fn human(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        let one = 1u64 << shift;
        if bytes < one {
            continue;
        }
        if bytes.is_multiple_of(one) {
            return format!("{} {unit}", bytes / one);
        }
        // Rounded down: what is not full is not called full.
        let tenths = u128::from(bytes) * 10 / u128::from(one);
        return format!("{}.{} {unit}", tenths / 10, tenths % 10);
    }
    format!("{bytes} bytes")
}

/// As [`human`], with the exact number.
pub(crate) fn exact(bytes: u64) -> String {
    match human(bytes) {
        text if text.ends_with("bytes") => text,
        text => format!("{text} ({bytes} bytes)"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, bytes) in [
            ("0", 0),
            ("10737418240", 10 << 30),
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("10gib", 10 << 30),
            ("512K", 512 << 10),
            ("3MiB", 3 << 20),
            ("2T", 2 << 40),
            ("1.5GiB", 3 << 29),
            ("0.25K", 256),
            ("1.50M", 3 << 19),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for (text, clear) in [
            ("10Gb", "10GiB"),
            ("10GB", "10GiB"),
            ("1.5 kb", "1.5KiB"),
            ("7TB", "7TiB"),
        ] {
            let message = text.parse::<Size>().unwrap_err().to_string();
            assert!(
                message.contains(&format!("write {clear} ")),
                "{text}: {message}"
            );
        }
    }

    #[test]
    fn other_things_are_no_sizes() {
        let unknown = |unit: &str| SizeError::UnknownUnit(unit.to_owned());
        for (text, error) in [
            ("", SizeError::NoNumber),
            ("GiB", SizeError::NoNumber),
            (".5G", SizeError::NoNumber),
            ("5.G", SizeError::NoNumber),
            ("1.2.3G", SizeError::NoNumber),
            ("-1", unknown("-1")),
            ("10X", unknown("X")),
            ("10GiBs", unknown("GiBs")),
            ("10B", unknown("B")),
            ("1.5", SizeError::Fraction),
            ("0.0001K", SizeError::Fraction),
            ("0.0000000000000000001T", SizeError::Fraction),
            ("16777216T", SizeError::TooLarge),
            (
                "99999999999999999999999999999999999999999",
                SizeError::TooLarge,
            ),
        ] {
            assert_eq!(text.parse::<Size>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_not(text in ".{0,40}") {
            let _ = text.parse::<Size>();
        }

        #[test]
        fn any_number_of_units_is_read(
            number in 0u64..1 << 26,
            (unit, shift) in prop::sample::select(vec![("", 0), ("K", 10), ("MiB", 20), ("g", 30), ("tib", 40)]),
        ) {
            let expected = u64::try_from(u128::from(number) << shift)
                .map(Size)
                .map_err(|_| SizeError::TooLarge);
            prop_assert_eq!(format!("{number}{unit}").parse(), expected);
        }

        #[test]
        fn thousandths_are_read_as_far_as_they_are_whole_bytes(thousandths in 0u64..1_000_000_000) {
            let (whole, part) = (thousandths / 1000, thousandths % 1000);
            let expected = match u128::from(thousandths) << 30 {
                bytes if bytes.is_multiple_of(1000) => Ok(Size((bytes / 1000) as u64)),
                _ => Err(SizeError::Fraction),
            };
            prop_assert_eq!(format!("{whole}.{part:03}GiB").parse(), expected);
        }
    }

    #[test]
    fn sizes_are_written_for_people() {
        assert_eq!(human(0), "0 bytes");
        assert_eq!(human(512), "512 bytes");
        assert_eq!(human(10 << 30), "10 GiB");
        assert_eq!(human((3 << 29) + 1), "1.5 GiB");
        assert_eq!(human((1 << 30) - 1), "1023.9 MiB");
        assert_eq!(human(2040 << 30), "1.9 TiB");
        assert_eq!(human(u64::MAX), "16777215.9 TiB");
        assert_eq!(exact(512), "512 bytes");
        assert_eq!(exact(1 << 20), "1 MiB (1048576 bytes)");
    }
}
