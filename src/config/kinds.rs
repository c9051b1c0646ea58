//! Checks a written value against its option's row, and says in words what a row accepts.

use super::error::nearest;
use super::options::{Kind, OptionRow};
use super::parse;
use super::values::{Value, intern, parse_bytes, parse_time, show_bytes, show_time};
use std::time::Duration;
use toml::de::DeValue;

/// What is wrong with a value, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) help: String,
}

fn wrong<T>(message: String, help: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        message,
        help: help.into(),
    })
}

/// Reads the value of the option `row`.
pub(super) fn read(row: &OptionRow, written: &DeValue<'_>) -> Result<Value, Wrong> {
    let value = match (row.kind, written) {
        (Kind::Word { supported, later }, DeValue::String(word)) => {
            return read_word(row, word, supported, later);
        }
        (Kind::OnlyFalse | Kind::Flag, DeValue::Boolean(flag)) => Value::Flag(*flag),
        (
            Kind::Policy {
                supported,
                node,
                advice,
            },
            DeValue::String(word),
        ) => return read_policy(row, word, supported, node, advice),
        (Kind::Directory, DeValue::String(path)) => Value::Word(intern(path)),
        (Kind::Number { .. } | Kind::OneOf { .. }, DeValue::Integer(_)) => {
            Value::Number(whole(row, written)?)
        }
        (Kind::OneOf { .. } | Kind::Bytes { .. } | Kind::Rate { .. }, DeValue::String(text)) => {
            let bytes = parse_bytes(text).or_else(|e| wrong(e, accepts_help(row)))?;
            match row.kind {
                Kind::OneOf { .. } => Value::Number(bytes),
                _ => Value::Bytes(bytes),
            }
        }
        (Kind::Bytes { .. }, DeValue::Integer(_)) => Value::Bytes(whole(row, written)?),
        (Kind::Rate { .. }, DeValue::Integer(_)) => match whole(row, written)? {
            0 => Value::Bytes(0),
            n => {
                return wrong(
                    format!("`{}` needs a unit", row.name),
                    format!("DRBD counts KiB per second: its {n} is \"{n}K\" here"),
                );
            }
        },
        (Kind::Time { .. }, DeValue::Integer(_)) => {
            Value::Time(Duration::from_secs(whole(row, written)?))
        }
        (Kind::Time { .. }, DeValue::String(text)) => {
            Value::Time(parse_time(text).or_else(|e| wrong(e, accepts_help(row)))?)
        }
        (Kind::Time { .. }, DeValue::Float(number)) => {
            return wrong(
                format!(
                    "`{}` must be whole seconds or a string with a unit",
                    row.name
                ),
                match number.as_str().parse::<f64>() {
                    Ok(s) if s.is_finite() && s > 0.0 => {
                        format!("write \"{:.0}ms\"", s * 1000.0)
                    }
                    _ => accepts_help(row),
                },
            );
        }
        (_, other) => {
            let message = format!("`{}` cannot be {}", row.name, article(other.type_str()));
            return wrong(message, accepts_help(row));
        }
    };
    check(row, value)
}

/// A whole number from 0.
fn whole(row: &OptionRow, written: &DeValue<'_>) -> Result<u64, Wrong> {
    let number = written
        .as_integer()
        .and_then(|i| u64::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok());
    match number {
        Some(number) => Ok(number),
        None => wrong(format!("`{}` is out of range", row.name), accepts_help(row)),
    }
}

fn read_word(
    row: &OptionRow,
    word: &str,
    supported: &'static [&'static str],
    later: &'static [&'static str],
) -> Result<Value, Wrong> {
    if let Some(word) = supported.iter().find(|w| **w == word) {
        return Ok(Value::Word(word));
    }
    if later.contains(&word) {
        return wrong(
            format!(
                "`{}` = \"{word}\" is not supported by this version",
                row.name
            ),
            accepts_help(row),
        );
    }
    let help = match nearest(word, supported.iter().chain(later).copied()) {
        Some(word) => format!("did you mean \"{word}\"? {}", accepts_help(row)),
        None => accepts_help(row),
    };
    wrong(format!("`{}` cannot be \"{word}\"", row.name), help)
}

fn read_policy(
    row: &OptionRow,
    word: &str,
    supported: &'static [&'static str],
    node: Option<&'static str>,
    advice: &[(&str, &str)],
) -> Result<Value, Wrong> {
    if let Some((_, help)) = advice.iter().find(|(name, _)| *name == word) {
        return wrong(format!("`{}` cannot be \"{word}\" here", row.name), *help);
    }
    let named = node.and_then(|prefix| word.strip_prefix(prefix));
    if named.is_some_and(|name| parse::name(name).is_ok()) {
        // Whether there is such a node shows when the whole file is read.
        return Ok(Value::Word(intern(word)));
    }
    read_word(row, word, supported, &[])
}

/// Checks a value of the right kind against the row's range.
pub(super) fn check(row: &OptionRow, value: Value) -> Result<Value, Wrong> {
    let fits = match (row.kind, value) {
        (Kind::Word { supported, .. }, Value::Word(word)) => supported.contains(&word),
        (
            Kind::Policy {
                supported, node, ..
            },
            Value::Word(word),
        ) => supported.contains(&word) || node.is_some_and(|prefix| word.starts_with(prefix)),
        (Kind::Directory, Value::Word(path)) => path.is_empty() || path.starts_with('/'),
        (Kind::OnlyFalse, Value::Flag(flag)) => {
            if flag {
                return wrong(
                    format!("`{} = true` is not supported by this version", row.name),
                    "one node at a time can be Primary (why: docs/decisions/0014-one-primary.md): remove the line",
                );
            }
            true
        }
        (Kind::Flag, Value::Flag(_)) => true,
        (Kind::Number { min, max, .. }, Value::Number(n)) => (min..=max).contains(&n),
        (Kind::OneOf { values, .. }, Value::Number(n)) => values.contains(&n),
        (Kind::Bytes { min, max }, Value::Bytes(n)) => (min..=max).contains(&n),
        (Kind::Rate { min, max }, Value::Bytes(n)) => n == 0 || (min..=max).contains(&n),
        (Kind::Time { min, max }, Value::Time(t)) => (min..=max).contains(&t),
        _ => false,
    };
    if fits {
        return Ok(value);
    }
    wrong(
        format!("`{}` cannot be {value}", row.name),
        accepts_help(row),
    )
}

fn accepts_help(row: &OptionRow) -> String {
    format!("it accepts {}\n`{}`: {}", accepts(row), row.name, row.help)
}

/// In words, what the option accepts; also a column of the documentation.
pub(super) fn accepts(row: &OptionRow) -> String {
    match row.kind {
        Kind::Word { supported, .. } => supported
            .iter()
            .map(|w| format!("\"{w}\""))
            .collect::<Vec<_>>()
            .join(", "),
        Kind::Policy {
            supported, node, ..
        } => {
            let node = node.map(|prefix| format!("\"{prefix}NAME\""));
            let words = supported.iter().map(|w| format!("\"{w}\""));
            words.chain(node).collect::<Vec<_>>().join(", ")
        }
        Kind::Directory => "the absolute path of a directory, or \"\"".to_owned(),
        Kind::OnlyFalse => "false".to_owned(),
        Kind::Flag => "true or false".to_owned(),
        Kind::Number { min, max, unit: "" } => format!("{min} to {max}"),
        Kind::Number { min, max, unit } => format!("{min} to {max} {unit}"),
        Kind::OneOf { values, unit } => {
            let values: Vec<String> = values.iter().map(u64::to_string).collect();
            format!("{} {unit}", values.join(" or "))
        }
        Kind::Bytes { min, max } => {
            format!(
                "a size from \"{}\" to \"{}\"",
                show_bytes(min),
                show_bytes(max)
            )
        }
        Kind::Rate { min, max } => {
            format!(
                "0, or \"{}\" to \"{}\" per second",
                show_bytes(min),
                show_bytes(max)
            )
        }
        Kind::Time { min, max } => {
            format!(
                "a duration from \"{}\" to \"{}\"",
                show_time(min),
                show_time(max)
            )
        }
    }
}

/// `a string`, `an integer`.
pub(super) fn article(noun: &str) -> String {
    let an = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if an { "an" } else { "a" })
}

#[cfg(test)]
mod tests {
    use super::super::options::{Key, OPTIONS};
    use super::*;

    fn try_value(key: Key, text: &str) -> Result<Value, String> {
        let value = DeValue::parse(text).expect("TOML");
        read(&OPTIONS[key as usize], value.get_ref())
            .map_err(|w| format!("{}; {}", w.message, w.help))
    }

    #[test]
    fn durations_are_seconds_or_have_a_unit() {
        assert_eq!(
            try_value(Key::PingInt, "10"),
            Ok(Value::Time(Duration::from_secs(10)))
        );
        let half = Ok(Value::Time(Duration::from_millis(500)));
        assert_eq!(try_value(Key::PingTimeout, "\"500ms\""), half);
        let refusal = try_value(Key::PingTimeout, "0.5").unwrap_err();
        assert!(refusal.contains("write \"500ms\""), "{refusal}");
        let refusal = try_value(Key::PingInt, "500").unwrap_err();
        assert!(refusal.contains("from \"1s\" to \"2m\""), "{refusal}");
        for bad in ["0", "-3", "true", "\"soon\"", "nan", "[3]"] {
            assert!(try_value(Key::PingInt, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_need_a_unit_because_drbds_differs() {
        assert_eq!(try_value(Key::CMaxRate, "0"), Ok(Value::Bytes(0)));
        assert_eq!(
            try_value(Key::CMaxRate, "\"100M\""),
            Ok(Value::Bytes(100 << 20))
        );
        let refusal = try_value(Key::CMaxRate, "102400").unwrap_err();
        assert!(refusal.contains("\"102400K\""), "{refusal}");
        assert!(try_value(Key::CMaxRate, "\"1K\"").is_err());
    }

    #[test]
    fn sizes_and_counts_have_ranges() {
        assert_eq!(
            try_value(Key::BufferSize, "33554432"),
            Ok(Value::Bytes(32 << 20))
        );
        assert_eq!(
            try_value(Key::BufferSize, "\"32M\""),
            Ok(Value::Bytes(32 << 20))
        );
        assert!(try_value(Key::BufferSize, "\"31M\"").is_err());
        assert!(try_value(Key::BufferSize, "\"2G\"").is_err());
        assert_eq!(try_value(Key::BlockSize, "4096"), Ok(Value::Number(4096)));
        assert_eq!(try_value(Key::BlockSize, "\"4K\""), Ok(Value::Number(4096)));
        let refusal = try_value(Key::BlockSize, "1024").unwrap_err();
        assert!(refusal.contains("512 or 4096 bytes"), "{refusal}");
        assert_eq!(try_value(Key::MaxEpochSize, "0x10"), Ok(Value::Number(16)));
        assert!(try_value(Key::MaxEpochSize, "0").is_err());
        assert!(try_value(Key::KoCount, "99999999999999999999").is_err());
    }

    #[test]
    fn words_of_drbd_are_refused_as_not_yet_and_slips_are_corrected() {
        assert_eq!(try_value(Key::Protocol, "\"A\""), Ok(Value::Word("A")));
        assert!(try_value(Key::Protocol, "\"D\"").is_err());
        let refusal = try_value(Key::AfterSb0Pri, "\"disconect\"").unwrap_err();
        assert!(
            refusal.contains("did you mean \"disconnect\"?"),
            "{refusal}"
        );
    }

    #[test]
    fn policies_name_a_node_where_drbd_says_local_and_remote() {
        let good = Ok(Value::Word("discard-node-bravo"));
        assert_eq!(try_value(Key::AfterSb0Pri, "\"discard-node-bravo\""), good);
        assert!(try_value(Key::AfterSb0Pri, "\"discard-zero-changes\"").is_ok());
        for bad in ["discard-local", "discard-remote"] {
            let refusal = try_value(Key::AfterSb0Pri, &format!("\"{bad}\"")).unwrap_err();
            assert!(refusal.contains("discard-node-NAME"), "{refusal}");
        }
        for bad in ["discard-node-", "discard-node-a b", "discard-node"] {
            assert!(try_value(Key::AfterSb0Pri, &format!("\"{bad}\"")).is_err());
        }
        assert!(try_value(Key::AfterSb1Pri, "\"discard-node-bravo\"").is_err());
        let refusal = try_value(Key::RrConflict, "\"auto-discard\"").unwrap_err();
        assert!(refusal.contains("remove the line"), "{refusal}");
    }

    #[test]
    fn a_directory_is_absolute_or_none() {
        for good in ["", "/var/lib/twinblk/saved"] {
            let value = try_value(Key::SaveDiscardedDir, &format!("\"{good}\""));
            assert_eq!(value, Ok(Value::Word(good)));
        }
        assert!(try_value(Key::SaveDiscardedDir, "\"saved\"").is_err());
    }

    #[test]
    fn two_primaries_are_refused() {
        assert_eq!(
            try_value(Key::AllowTwoPrimaries, "false"),
            Ok(Value::Flag(false))
        );
        let refusal = try_value(Key::AllowTwoPrimaries, "true").unwrap_err();
        assert!(
            refusal.contains("not supported by this version"),
            "{refusal}"
        );
    }
}
