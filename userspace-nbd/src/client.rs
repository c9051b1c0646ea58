//! The client's side, as far as small tools and tests need it: enter one export with GO.

use crate::constants::{IHAVEOPT, NBDMAGIC, REP_MAGIC, SIMPLE_REPLY_MAGIC, info, opt, rep};
use crate::export::{BlockSize, TransmissionFlags};

/// What the server said of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Bytes.
    pub size: u64,
    /// Flags.
    pub flags: TransmissionFlags,
    /// Constraints, if told.
    pub block_size: Option<BlockSize>,
}

/// Why the client could not enter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Not an NBD server of this kind.
    #[error("not a fixed newstyle NBD server")]
    NotNbd,
    /// The server said no.
    #[error("the server refused: {text}")]
    Refused {
        /// Number of the refusal.
        kind: u32,
        /// Its words.
        text: String,
    },
}

/// Bytes to send and what came of bytes received.
#[derive(Debug)]
pub struct ClientNegotiation {
    name: String,
    greeted: bool,
    buffer: Vec<u8>,
    found: Option<ExportInfo>,
}

impl ClientNegotiation {
    /// Wants to enter the export `name`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_string(),
            greeted: false,
            buffer: Vec::new(),
            found: None,
        }
    }

    /// Takes bytes from the server, appends bytes to send to `out`. `Ok(Some)`: transmission may
    /// begin.
    pub fn feed(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<ExportInfo>, ClientError> {
        self.buffer.extend_from_slice(input);
        if !self.greeted {
            let Some(head) = self.buffer.first_chunk::<18>() else {
                return Ok(None);
            };
            let magic = [NBDMAGIC.to_be_bytes(), IHAVEOPT.to_be_bytes()].concat();
            if head[..16] != magic[..] || head[17] & 1 == 0 {
                return Err(ClientError::NotNbd);
            }
            self.buffer.drain(..18);
            self.greeted = true;
            out.extend_from_slice(&3u32.to_be_bytes());
            out.extend_from_slice(&IHAVEOPT.to_be_bytes());
            out.extend_from_slice(&opt::GO.to_be_bytes());
            let name = self.name.as_bytes();
            let name_len = u32::try_from(name.len()).unwrap_or(0);
            out.extend_from_slice(&(name_len + 8).to_be_bytes());
            out.extend_from_slice(&name_len.to_be_bytes());
            out.extend_from_slice(name);
            out.extend_from_slice(&1u16.to_be_bytes());
            out.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        }
        self.replies()
    }

    fn replies(&mut self) -> Result<Option<ExportInfo>, ClientError> {
        loop {
            let Some(head) = self.buffer.first_chunk::<20>() else {
                return Ok(None);
            };
            if head[..8] != REP_MAGIC.to_be_bytes() {
                return Err(ClientError::NotNbd);
            }
            let kind = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
            let len = u32::from_be_bytes([head[16], head[17], head[18], head[19]]) as usize;
            if len > 1 << 20 {
                return Err(ClientError::NotNbd);
            }
            if self.buffer.len() < 20 + len {
                return Ok(None);
            }
            let payload: Vec<u8> = self.buffer.drain(..20 + len).skip(20).collect();
            match kind {
                rep::INFO => self.info(&payload),
                rep::ACK => return self.found.map(Some).ok_or(ClientError::NotNbd),
                kind => {
                    let text = String::from_utf8_lossy(&payload).into_owned();
                    return Err(ClientError::Refused { kind, text });
                }
            }
        }
    }

    fn info(&mut self, p: &[u8]) {
        let u16_at = |at: usize| Some(u16::from_be_bytes(*p.get(at..)?.first_chunk()?));
        let u32_at = |at: usize| Some(u32::from_be_bytes(*p.get(at..)?.first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_be_bytes(*p.get(at..)?.first_chunk()?));
        match u16_at(0) {
            Some(info::EXPORT) => {
                if let (Some(size), Some(flags)) = (u64_at(2), u16_at(10)) {
                    let flags = TransmissionFlags(flags);
                    self.found = Some(ExportInfo {
                        size,
                        flags,
                        block_size: None,
                    });
                }
            }
            Some(info::BLOCK_SIZE) => {
                if let (Some(minimum), Some(preferred), Some(maximum), Some(found)) =
                    (u32_at(2), u32_at(6), u32_at(10), self.found.as_mut())
                {
                    found.block_size = Some(BlockSize {
                        minimum,
                        preferred,
                        maximum,
                    });
                }
            }
            _ => {}
        }
    }
}

/// Decodes a simple reply: (cookie, error number).
pub fn parse_simple_reply(b: &[u8; 16]) -> Option<(u64, u32)> {
    let u32_at = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    if u32_at(0) != SIMPLE_REPLY_MAGIC {
        return None;
    }
    Some((
        u64::from(u32_at(8)) << 32 | u64::from(u32_at(12)),
        u32_at(4),
    ))
}
