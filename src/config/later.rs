//! Options of DRBD that this version does not have, so that a file that uses one gets an honest
//! answer instead of "unknown key".

/// Section, name, and what to know; empty when there is nothing to say but "not yet".
static LATER: &[(&str, &str, &str)] = &[
    ("net", "shared-secret", "here it belongs in [resource]"),
    ("net", "protocol", "here it belongs in [resource]"),
    (
        "net",
        "cram-hmac-alg",
        "peers always prove the secret with HMAC-SHA-256: remove the line",
    ),
    (
        "net",
        "data-integrity-alg",
        "every payload carries a CRC32C: remove the line",
    ),
    (
        "net",
        "use-rle",
        "the bitmap is always sent run-length coded: remove the line",
    ),
    (
        "net",
        "tcp-cork",
        "frames of one turn always leave in one send: remove the line",
    ),
    ("net", "max-buffers", "see `buffer-size` in [options]"),
    ("net", "rcvbuf-size", ""),
    ("net", "socket-check-timeout", ""),
    ("net", "always-asbp", ""),
    (
        "net",
        "on-congestion",
        "a full send queue makes clients wait: remove the line",
    ),
    ("net", "congestion-fill", ""),
    ("net", "congestion-extents", ""),
    ("net", "csums-alg", ""),
    ("net", "csums-after-crash-only", ""),
    (
        "net",
        "verify-alg",
        "verify always compares by SHA-256: remove the line",
    ),
    ("net", "transport", ""),
    ("net", "tls", ""),
    ("net", "allow-remote-read", ""),
    ("net", "load-balance-paths", ""),
    ("disk", "size", ""),
    ("disk", "al-updates", ""),
    ("disk", "al-stripes", ""),
    ("disk", "al-stripe-size", ""),
    (
        "disk",
        "disk-barrier",
        "flushes are always sent to the disk: remove the line",
    ),
    (
        "disk",
        "disk-flushes",
        "flushes are always sent to the disk: remove the line",
    ),
    (
        "disk",
        "disk-drain",
        "flushes are always sent to the disk: remove the line",
    ),
    (
        "disk",
        "md-flushes",
        "metadata are always flushed: remove the line",
    ),
    ("disk", "disk-timeout", ""),
    ("disk", "read-balancing", ""),
    ("disk", "resync-after", ""),
    ("disk", "c-plan-ahead", ""),
    ("disk", "c-delay-target", ""),
    ("disk", "c-fill-target", ""),
    ("disk", "c-min-rate", ""),
    (
        "disk",
        "rs-discard-granularity",
        "zeroes are always sent as ranges: remove the line",
    ),
    (
        "disk",
        "discard-zeroes-if-aligned",
        "discards always read back as zeroes: remove the line",
    ),
    (
        "options",
        "auto-promote-timeout",
        "a promotion by a client has 20 seconds: remove the line",
    ),
    ("options", "cpu-mask", ""),
    ("options", "on-no-quorum", ""),
    ("options", "on-suspended-primary-outdated", ""),
    ("options", "quorum", ""),
    ("options", "quorum-minimum-redundancy", ""),
    ("options", "twopc-timeout", ""),
    ("options", "peer-ack-window", ""),
    ("options", "peer-ack-delay", ""),
    ("handlers", "before-resync-source", ""),
    ("handlers", "quorum-lost", ""),
    (
        "startup",
        "wfc-timeout",
        "see `twinblk wait-connect --timeout`",
    ),
    (
        "startup",
        "degr-wfc-timeout",
        "see `twinblk wait-connect --timeout`",
    ),
    (
        "startup",
        "outdated-wfc-timeout",
        "see `twinblk wait-connect --timeout`",
    ),
];

/// The names of a section's options that do not exist yet.
pub(super) fn in_section(section: &str) -> impl Iterator<Item = &'static str> {
    LATER
        .iter()
        .filter(move |(s, _, _)| *s == section)
        .map(|(_, name, _)| *name)
}

/// What to know of an option that does not exist yet, whatever section it was written in.
pub(super) fn find(section: &str, name: &str) -> Option<&'static str> {
    let mut rows = LATER.iter().filter(|(_, n, _)| *n == name);
    let first = rows.next()?;
    Some(
        rows.find(|(s, _, _)| *s == section)
            .map_or(first.2, |row| row.2),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options;

    #[test]
    fn nothing_is_both_there_and_not_there() {
        for &(section, name, _) in LATER {
            let row = options::by_name(name).filter(|row| row.section.name() == section);
            assert!(row.is_none(), "{section} {name}");
        }
    }

    #[test]
    fn found_by_section_and_name() {
        assert_eq!(find("handlers", "quorum-lost"), Some(""));
        assert!(find("net", "cram-hmac-alg").unwrap().contains("HMAC"));
        assert_eq!(find("net", "colour"), None);
        assert!(in_section("startup").any(|n| n == "wfc-timeout"));
    }
}
