//! Replies ("Simple reply message", "Structured reply chunk message"). Data are never copied here:
//! the header of a read is encoded, the caller sends the data behind it.

use crate::constants::{
    MAX_STRING, REPLY_FLAG_DONE, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, reply_type,
};
use crate::error::Errno;

/// Bytes of a simple reply header.
pub const SIMPLE_REPLY_LEN: usize = 16;

/// A simple reply, for everything but structured reads.
pub fn simple_reply(cookie: u64, errno: Errno) -> [u8; SIMPLE_REPLY_LEN] {
    let mut b = [0; SIMPLE_REPLY_LEN];
    b[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    b[4..8].copy_from_slice(&errno.0.to_be_bytes());
    b[8..16].copy_from_slice(&cookie.to_be_bytes());
    b
}

pub(crate) fn chunk(out: &mut Vec<u8>, kind: u16, done: bool, cookie: u64, len: u32) {
    out.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&if done { REPLY_FLAG_DONE } else { 0 }.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// Success without data.
pub fn done(out: &mut Vec<u8>, structured: bool, cookie: u64) {
    if structured {
        chunk(out, reply_type::NONE, true, cookie, 0);
    } else {
        out.extend_from_slice(&simple_reply(cookie, Errno::OK));
    }
}

/// Header of a read's answer; `len` bytes of data follow. With structured replies one chunk with
/// everything, which also satisfies DF.
pub fn read_header(out: &mut Vec<u8>, structured: bool, cookie: u64, offset: u64, len: u32) {
    if structured {
        chunk(out, reply_type::OFFSET_DATA, true, cookie, len + 8);
        out.extend_from_slice(&offset.to_be_bytes());
    } else {
        out.extend_from_slice(&simple_reply(cookie, Errno::OK));
    }
}

/// A hole in a structured read's answer.
pub fn read_hole(out: &mut Vec<u8>, cookie: u64, offset: u64, len: u32, last: bool) {
    chunk(out, reply_type::OFFSET_HOLE, last, cookie, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// An error; with structured replies the text reaches the client.
pub fn error(out: &mut Vec<u8>, structured: bool, cookie: u64, errno: Errno, text: &str) {
    if !structured {
        return out.extend_from_slice(&simple_reply(cookie, errno));
    }
    let mut end = text.len().min(MAX_STRING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text.as_bytes()[..end];
    let len = u16::try_from(text.len()).unwrap_or(0);
    chunk(out, reply_type::ERROR, true, cookie, u32::from(len) + 6);
    out.extend_from_slice(&errno.0.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text);
}
