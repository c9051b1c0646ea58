//! Values of options: their syntax in the files and how they are printed. Durations are a whole
//! number of seconds or a string with a unit; sizes a whole number of bytes or a string with a unit.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A value of an option, of the kind its row in the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// One of a few words.
    Word(&'static str),
    /// yes or no.
    Flag(bool),
    /// A count.
    Number(u64),
    /// Bytes, or bytes per second.
    Bytes(u64),
    /// A duration.
    Time(Duration),
}

/// As TOML.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) if word.contains(['"', '\\']) || word.contains(char::is_control) => {
                write!(f, "{}", toml::Value::String((*word).to_owned()))
            }
            Self::Word(word) => write!(f, "\"{word}\""),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bytes(0) => write!(f, "0"),
            Self::Bytes(bytes) => write!(f, "\"{}\"", show_bytes(*bytes)),
            Self::Time(time) => write!(f, "\"{}\"", show_time(*time)),
        }
    }
}

/// A word that no table holds: a name or a path that was written in a file. They are few in the life
/// of a daemon, and each is kept once.
pub(crate) fn intern(text: &str) -> &'static str {
    static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(word) = words.get(text) {
        return word;
    }
    let word: &'static str = Box::leak(text.into());
    words.insert(word);
    word
}

const SIZE_UNITS: [(&str, u64); 4] = [
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
];

/// `4M`, `512`: the largest unit that divides it.
pub(crate) fn show_bytes(bytes: u64) -> String {
    for (unit, factor) in SIZE_UNITS.iter().rev() {
        if bytes != 0 && bytes.is_multiple_of(*factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    bytes.to_string()
}

/// `3s`, `500ms`, `2m`.
pub(crate) fn show_time(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        0 => "0s".to_owned(),
        ms if !ms.is_multiple_of(1000) => format!("{ms}ms"),
        ms if !ms.is_multiple_of(60_000) => format!("{}s", ms / 1000),
        ms => format!("{}m", ms / 60_000),
    }
}

/// Reads `16M`, `4k`, `4KiB`, `4096`; units are powers of 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("`{text}` is not a size: write a whole number and K, M, G or T, such as \"16M\"")
    };
    let (digits, unit) = split_unit(text).ok_or_else(wrong)?;
    let unit = unit.to_ascii_uppercase();
    let unit = unit
        .strip_suffix("IB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit);
    let factor = match unit {
        "" => 1,
        unit => {
            SIZE_UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(wrong)?
                .1
        }
    };
    digits
        .checked_mul(factor)
        .ok_or_else(|| format!("`{text}` is larger than any disk"))
}

/// Reads `3s`, `500ms`, `2m`, `10` (seconds).
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("`{text}` is not a duration: write whole seconds, or \"500ms\", \"3s\", \"2m\"");
    let (digits, unit) = split_unit(text).ok_or_else(wrong)?;
    let ms = match unit {
        "ms" => digits,
        "s" | "" => digits.checked_mul(1000).ok_or_else(wrong)?,
        "m" | "min" => digits.checked_mul(60_000).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    Ok(Duration::from_millis(ms))
}

/// Digits, then letters; white space around and between them does not matter.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4 KiB", 4096),
            ("16M", 16 << 20),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5M", "4X", "4KK", "99999999999T"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("3", 3000),
            ("3s", 3000),
            ("500ms", 500),
            ("2m", 120_000),
            ("0", 0),
        ] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "1.5s", "-3s", "3h", "99999999999999999999"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        for bytes in [0, 1, 512, 4096, 5000, 16 << 20, 3 << 30, 1 << 40] {
            assert_eq!(parse_bytes(&show_bytes(bytes)), Ok(bytes));
        }
        for ms in [0, 1, 100, 500, 1000, 3000, 60_000, 61_000, 120_000] {
            let time = Duration::from_millis(ms);
            assert_eq!(parse_time(&show_time(time)), Ok(time));
        }
    }

    #[test]
    fn printed_as_toml() {
        assert_eq!(Value::Word("C").to_string(), "\"C\"");
        assert_eq!(Value::Bytes(32 << 20).to_string(), "\"32M\"");
        assert_eq!(Value::Bytes(0).to_string(), "0");
        assert_eq!(
            Value::Time(Duration::from_millis(1500)).to_string(),
            "\"1500ms\""
        );
        assert_eq!(Value::Flag(false).to_string(), "false");
        assert_eq!(Value::Number(7).to_string(), "7");
    }
}
