//! Fixed newstyle negotiation, server side.
//!
//! Limits: an option's payload is at most [`MAX_OPTION`] bytes (a longer one is skipped and refused
//! with ERR_TOO_BIG, up to [`MAX_SKIP`]); a client may send [`MAX_OPTIONS`] options.

use crate::constants::{IHAVEOPT, NBDMAGIC, handshake_flags};
use crate::export::Export;
use crate::option;

/// Longest option payload understood, bytes.
pub const MAX_OPTION: usize = 32 << 10;
/// Longest option payload skipped, bytes.
pub const MAX_SKIP: u32 = 1 << 20;
/// Options a client may send.
pub const MAX_OPTIONS: u32 = 1000;

/// Where exports come from.
pub trait Exports {
    /// The export with this name; the empty name asks for the default.
    fn lookup(&self, name: &str) -> Lookup;
    /// (name, description) of all exports, for LIST.
    fn list(&self) -> Vec<(String, String)>;
}

/// Answer to a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Here it is.
    Found(Export),
    /// No such export.
    Unknown,
    /// It exists and is not served now, for this reason.
    Refused {
        /// For the person in front of the client.
        policy_text: String,
    },
}

/// A context the client selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NegotiatedContext {
    /// Its number in replies.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The export chosen.
    pub export: Export,
    /// Structured replies were agreed.
    pub structured: bool,
    /// Contexts selected for this export.
    pub contexts: Vec<NegotiatedContext>,
    /// Bytes received beyond the negotiation.
    pub leftover: Vec<u8>,
    /// The client asked for the block sizes.
    pub block_size_negotiated: bool,
}

/// What came of feeding bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Goes on.
    NeedMore,
    /// Transmission begins.
    Done(Box<Session>),
    /// The client said ABORT: close once the answer is sent.
    Aborted,
    /// It cannot go on: close once the answer is sent.
    Failed(NegotiationError),
}

/// Why a negotiation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// The client does not speak fixed newstyle.
    #[error("the client does not speak fixed newstyle (flags {0:#x})")]
    Flags(u32),
    /// Not an option where one must be.
    #[error("not an NBD client (magic {0:#018x})")]
    Magic(u64),
    /// Too many options.
    #[error("more than {MAX_OPTIONS} options")]
    TooMany,
    /// An option too long to skip.
    #[error("an option of {0} bytes")]
    TooLong(u32),
    /// EXPORT_NAME cannot carry an error: the connection ends.
    #[error("{0}")]
    ExportName(String),
}

#[derive(Clone, Debug)]
enum State {
    Flags,
    Option,
    Skip { option: u32, left: usize },
    Over,
}

/// One client's negotiation.
#[derive(Clone, Debug)]
pub struct Negotiation {
    state: State,
    buffer: Vec<u8>,
    options: u32,
    pub(crate) no_zeroes: bool,
    pub(crate) structured: bool,
    /// Contexts selected, and for which export name.
    pub(crate) contexts: Option<(String, Vec<NegotiatedContext>)>,
}

impl Default for Negotiation {
    fn default() -> Self {
        Self::new()
    }
}

/// What handling an option leads to.
pub(crate) enum After {
    Continue,
    Done(Export, bool),
    Abort,
    Fail(NegotiationError),
}

impl Negotiation {
    /// A fresh one; send [`Self::greeting`] first.
    pub fn new() -> Self {
        Self {
            state: State::Flags,
            buffer: Vec::new(),
            options: 0,
            no_zeroes: false,
            structured: false,
            contexts: None,
        }
    }

    /// The server's first bytes.
    pub fn greeting(&self) -> Vec<u8> {
        let mut out = NBDMAGIC.to_be_bytes().to_vec();
        out.extend_from_slice(&IHAVEOPT.to_be_bytes());
        let flags = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        out.extend_from_slice(&flags.to_be_bytes());
        out
    }

    /// Takes bytes from the client; appends what to send to `out`, also when the result is an end.
    pub fn feed(&mut self, input: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Progress {
        self.buffer.extend_from_slice(input);
        loop {
            let end = match self.state {
                State::Flags => self.flags(),
                State::Option => self.option(exports, out),
                State::Skip { option, left } => self.skip(option, left, out),
                State::Over => return Progress::Aborted,
            };
            match end {
                Some(Progress::NeedMore) => continue,
                Some(over) => {
                    self.state = State::Over;
                    self.buffer.clear();
                    return over;
                }
                None => return Progress::NeedMore,
            }
        }
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(len);
        core::mem::replace(&mut self.buffer, rest)
    }

    fn flags(&mut self) -> Option<Progress> {
        let flags = u32::from_be_bytes(*self.buffer.first_chunk()?);
        self.take(4);
        let known = u32::from(handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES);
        if flags & u32::from(handshake_flags::FIXED_NEWSTYLE) == 0 || flags & !known != 0 {
            return Some(Progress::Failed(NegotiationError::Flags(flags)));
        }
        self.no_zeroes = flags & u32::from(handshake_flags::NO_ZEROES) != 0;
        self.state = State::Option;
        Some(Progress::NeedMore)
    }

    fn option(&mut self, exports: &dyn Exports, out: &mut Vec<u8>) -> Option<Progress> {
        let magic = u64::from_be_bytes(*self.buffer.first_chunk()?);
        if magic != IHAVEOPT {
            return Some(Progress::Failed(NegotiationError::Magic(magic)));
        }
        let header = *self.buffer.first_chunk::<16>()?;
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (option, len) = (number(8), number(12));
        if len > MAX_SKIP {
            return Some(Progress::Failed(NegotiationError::TooLong(len)));
        }
        let len = len as usize;
        if len > MAX_OPTION {
            self.take(16);
            self.state = State::Skip { option, left: len };
            return Some(Progress::NeedMore);
        }
        if self.buffer.len() < 16 + len {
            return None;
        }
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Some(Progress::Failed(NegotiationError::TooMany));
        }
        let payload = self.take(16 + len);
        Some(
            match option::handle(self, option, &payload[16..], exports, out) {
                After::Continue => Progress::NeedMore,
                After::Done(export, block_size_negotiated) => Progress::Done(Box::new(Session {
                    contexts: self.contexts_for(&export),
                    structured: self.structured,
                    leftover: core::mem::take(&mut self.buffer),
                    block_size_negotiated,
                    export,
                })),
                After::Abort => Progress::Aborted,
                After::Fail(error) => Progress::Failed(error),
            },
        )
    }

    fn skip(&mut self, option: u32, left: usize, out: &mut Vec<u8>) -> Option<Progress> {
        let step = left.min(self.buffer.len());
        self.take(step);
        if step < left {
            self.state = State::Skip {
                option,
                left: left - step,
            };
            return None;
        }
        self.state = State::Option;
        option::refuse(
            out,
            option,
            crate::constants::rep::ERR_TOO_BIG,
            "the option is too long",
        );
        Some(Progress::NeedMore)
    }

    /// Contexts count only if they were selected for the export that was entered.
    fn contexts_for(&mut self, export: &Export) -> Vec<NegotiatedContext> {
        match self.contexts.take() {
            Some((name, contexts)) if name == export.name || name.is_empty() => contexts,
            _ => Vec::new(),
        }
    }
}
