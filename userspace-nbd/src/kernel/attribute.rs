//! Netlink attributes: length, type, value, padded to four bytes; values in the machine's own byte
//! order.

/// The type says that the value is a list of attributes.
const NESTED: u16 = 1 << 15;
/// Bits of a type that are no type.
const FLAGS: u16 = 3 << 14;
/// Length and type.
const HEADER: usize = 4;

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // All that is put here is short; what is not would be cut by the receiver, not overrun.
    let len = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
    out.extend(len.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    pad(out);
}

pub(super) fn put_u32(out: &mut Vec<u8>, kind: u16, value: u32) {
    put(out, kind, &value.to_ne_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, kind: u16, value: u64) {
    put(out, kind, &value.to_ne_bytes());
}

/// With the zero byte at its end; what follows a zero byte of its own is left out.
pub(super) fn put_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    let text = text.split('\0').next().unwrap_or_default();
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    put(out, kind, &value);
}

pub(super) fn put_nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(out, kind | NESTED, &inner);
}

/// Attributes one after the other; ends at the first that cannot be one.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        let value = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & !FLAGS, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of a kind.
    pub(super) fn find(bytes: &'a [u8], kind: u16) -> Option<&'a [u8]> {
        Attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
    }

    pub(super) fn find_u32(bytes: &'a [u8], kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(
            Self::find(bytes, kind)?.try_into().ok()?,
        ))
    }

    pub(super) fn find_u16(bytes: &'a [u8], kind: u16) -> Option<u16> {
        Some(u16::from_ne_bytes(
            Self::find(bytes, kind)?.try_into().ok()?,
        ))
    }

    /// A text, without the zero byte at its end.
    pub(super) fn find_text(bytes: &'a [u8], kind: u16) -> Option<&'a [u8]> {
        let value = Self::find(bytes, kind)?;
        value.split(|b| *b == 0).next()
    }
}
