//! Base64: scripts and what they print on the line to a guest.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0, |w, n| w << 8 | u32::from(*chunk.get(n).unwrap_or(&0)));
        for digit in 0..4 {
            let value = word >> (18 - 6 * digit) & 63;
            let filled = digit <= chunk.len();
            text.push(if filled {
                DIGITS[value as usize].into()
            } else {
                '='
            });
        }
    }
    text
}

pub(crate) fn unbase64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut word, mut bits) = (0u32, 0);
    for letter in text.bytes().filter(|&b| b != b'=') {
        let value = DIGITS.iter().position(|&d| d == letter).expect("base64");
        word = (word << 6 | u32::try_from(value).expect("small")) & 0xff_ffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(word >> bits & 0xff).expect("a byte"));
        }
    }
    bytes
}

#[test]
fn what_goes_over_the_line_comes_out_as_it_was() {
    for len in 0..70u8 {
        let bytes: Vec<u8> = (0..len).map(|n| n.wrapping_mul(37) ^ len).collect();
        assert_eq!(unbase64(&base64(&bytes)), bytes);
    }
    assert_eq!(base64(b"twinblk"), "dHdpbmJsaw==");
}
