//! Bytes to frame headers, resuming at any byte. The payload stays with the caller, which knows in
//! which buffer it belongs.

use crate::frame::{FrameError, HEADER_LEN, Header};

/// Collects the 64 bytes of a header.
#[derive(Debug)]
pub struct HeaderAssembler {
    bytes: [u8; HEADER_LEN],
    len: usize,
}

impl Default for HeaderAssembler {
    fn default() -> Self {
        Self {
            bytes: [0; HEADER_LEN],
            len: 0,
        }
    }
}

impl HeaderAssembler {
    /// Takes bytes; answers a header once it is whole, and the bytes not used. The caller takes
    /// `payload_len` bytes from there before the next header.
    pub fn push<'a>(&mut self, input: &'a [u8]) -> Result<(Option<Header>, &'a [u8]), FrameError> {
        let step = input.len().min(HEADER_LEN - self.len);
        self.bytes[self.len..self.len + step].copy_from_slice(&input[..step]);
        self.len += step;
        if self.len < HEADER_LEN {
            return Ok((None, &input[step..]));
        }
        self.len = 0;
        Ok((Some(Header::decode(&self.bytes)?), &input[step..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Kind;

    #[test]
    fn headers_come_out_whole_from_pieces_of_any_size() {
        let mut ping = Header::new(Kind::Ping);
        ping.seq = 7;
        let stream = [ping.encode(), Header::new(Kind::Pong).encode()].concat();
        for step in 1..130 {
            let mut assembler = HeaderAssembler::default();
            let mut kinds = vec![];
            for mut piece in stream.chunks(step) {
                while !piece.is_empty() {
                    let (header, rest) = assembler.push(piece).expect("valid");
                    kinds.extend(header.map(|h| h.kind));
                    piece = rest;
                }
            }
            assert_eq!(kinds, [Kind::Ping, Kind::Pong], "step {step}");
        }
    }
}
