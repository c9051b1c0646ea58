//! Numbers and times for people.

/// `512B`, `4.0KiB`, `123MiB`: three digits or so, one decimal below ten.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // What would be shown as 1024 of a unit is 1.0 of the next.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes}B")
    } else if value < 9.95 {
        format!("{value:.1}{}", UNITS[unit])
    } else {
        format!("{value:.0}{}", UNITS[unit])
    }
}

/// `00:01:10`; hours grow beyond two digits.
pub(crate) fn clock(seconds: u64) -> String {
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// `5s`, `3m 5s`, `2h 5m`, `3d 4h`: how long ago.
pub(crate) fn age(seconds: u64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{m}m {}s", seconds % 60),
        3600..86_400 => format!("{h}h {}m", m % 60),
        _ => format!("{d}d {}h", h % 24),
    }
}

/// `2026-11-21T03:22:11.123Z` of milliseconds since the Unix epoch.
pub(crate) fn timestamp(ms: u64) -> String {
    let (seconds, milli) = (ms / 1000, ms % 1000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Gregorian calendar from a day count, with years that begin in March.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{}.{milli:03}Z", clock(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0B"),
            (512, "512B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (10 << 10, "10KiB"),
            (123 << 20, "123MiB"),
            ((1 << 20) - 1, "1.0MiB"),
            (1 << 30, "1.0GiB"),
            (1536 << 20, "1.5GiB"),
            (u64::MAX, "16384PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times() {
        assert_eq!(clock(70), "00:01:10");
        assert_eq!(clock(360_000), "100:00:00");
        assert_eq!(age(59), "59s");
        assert_eq!(age(185), "3m 5s");
        assert_eq!(age(7500), "2h 5m");
        assert_eq!(age(273_600), "3d 4h");
    }

    #[test]
    fn timestamps_agree_with_date() {
        // Checked with `date -u -d @…`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_795_231_331, "2026-11-21T03:22:11.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(timestamp(seconds * 1000), text);
        }
        assert_eq!(timestamp(7), "1970-01-01T00:00:00.007Z");
    }
}
