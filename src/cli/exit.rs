//! Exit codes and errors of the command line. The codes are part of the interface: scripts rest on
//! them, so they never change their meaning. Documented in `docs/commands.md`.

use crate::api::ErrorBody;
use std::fmt;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Done.
    Ok = 0,
    /// The command line makes no sense.
    Usage = 1,
    /// `--timeout` has passed.
    Timeout = 5,
    /// No such resource, resource not up, or an error without a code of its own.
    Other = 10,
    /// The state does not allow it.
    State = 11,
    /// Somebody holds the device.
    InUse = 12,
    /// The peer said no.
    PeerRefused = 13,
    /// No disk is attached.
    NoDisk = 16,
    /// There are no up-to-date data to work with.
    NoUpToDateData = 17,
    /// The disk is worse than Outdated.
    LowerThanOutdated = 18,
    /// No daemon answers.
    NoDaemon = 20,
    /// The configuration is wrong.
    Config = 21,
    /// The metadata are missing, damaged or not ours.
    Metadata = 22,
}

/// Name, number, meaning: the table of `docs/commands.md`.
#[cfg(test)]
pub(super) const TABLE: [(Code, &str); 13] = [
    (Code::Ok, "done"),
    (Code::Usage, "the command line makes no sense"),
    (Code::Timeout, "the time given with `--timeout` has passed"),
    (
        Code::Other,
        "no such resource, resource not up, or an error without a code of its own",
    ),
    (Code::State, "the state does not allow it"),
    (
        Code::InUse,
        "somebody holds the export, the disk or the metadata",
    ),
    (Code::PeerRefused, "the peer refused"),
    (Code::NoDisk, "no disk is attached"),
    (
        Code::NoUpToDateData,
        "there are no up-to-date data to work with",
    ),
    (
        Code::LowerThanOutdated,
        "`outdate`: the disk is worse than Outdated already",
    ),
    (Code::NoDaemon, "no daemon answers"),
    (Code::Config, "the configuration is wrong"),
    (
        Code::Metadata,
        "the metadata are missing, damaged or in the way",
    ),
];

/// What happened and why, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    /// Becomes the exit code.
    pub(crate) code: u8,
    /// What happened and why.
    pub(crate) what: String,
    /// What to do next; may be empty.
    pub(crate) next: String,
}

impl CliError {
    /// An error with a way out.
    pub(crate) fn new(code: Code, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            code: code as u8,
            what: what.into(),
            next: next.into(),
        }
    }

    /// The same with other words in front: "r0: …".
    pub(crate) fn about(mut self, subject: &str) -> Self {
        if !self.what.starts_with(subject) {
            self.what = format!("{subject}: {}", self.what);
        }
        self
    }
}

impl From<ErrorBody> for CliError {
    fn from(body: ErrorBody) -> Self {
        // A refusal never ends with success, whatever the daemon says.
        let code = match body.exit_code {
            0 => Code::of_kind(&body.kind) as u8,
            code => code,
        };
        Self {
            code,
            what: body.reason,
            next: body.way_out,
        }
    }
}

impl Code {
    /// The code for a kind of refusal ([`ErrorBody::kind`]).
    fn of_kind(kind: &str) -> Self {
        match kind {
            "timeout" => Self::Timeout,
            "state" => Self::State,
            "in-use" => Self::InUse,
            "peer-refused" => Self::PeerRefused,
            "no-disk" => Self::NoDisk,
            "no-up-to-date-data" => Self::NoUpToDateData,
            "lower-than-outdated" => Self::LowerThanOutdated,
            "config" => Self::Config,
            "metadata" => Self::Metadata,
            _ => Self::Other,
        }
    }
}

impl From<crate::config::ConfigErrors> for CliError {
    fn from(errors: crate::config::ConfigErrors) -> Self {
        Self::new(Code::Config, errors.to_string(), "")
    }
}

/// Several lines of text are set apart; one line follows the program's name.
impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what.trim_end();
        if what.contains('\n') {
            write!(f, "{what}")?;
        } else {
            write!(f, "twinblk: {what}")?;
        }
        for line in self.next.lines() {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_table_of_exit_codes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md");
        let page = std::fs::read_to_string(path).expect("docs/commands.md");
        for (code, meaning) in TABLE {
            let row = format!("| {} | {meaning} |", code as u8);
            assert!(page.contains(&row), "docs/commands.md lacks: {row}");
        }
    }

    #[test]
    fn an_error_says_what_and_what_next() {
        let error = CliError::new(Code::State, "refused", "do this\nthen that").about("r0");
        assert_eq!(
            error.to_string(),
            "twinblk: r0: refused\n  do this\n  then that"
        );
        assert_eq!(error.clone().about("r0"), error);
        let many = CliError::new(Code::Config, "a:1:1: x\n  1 | y", "");
        assert_eq!(many.to_string(), "a:1:1: x\n  1 | y");
    }

    #[test]
    fn a_refusal_is_never_success() {
        let code = |kind: &str, exit_code| {
            let body = ErrorBody {
                kind: kind.into(),
                reason: "no".into(),
                way_out: String::new(),
                exit_code,
            };
            CliError::from(body).code
        };
        assert_eq!(code("other", 0), 10);
        assert_eq!(code("peer-refused", 0), 13);
        assert_eq!(code("state", 0), 11);
        assert_eq!(code("state", 17), 17);
    }
}
