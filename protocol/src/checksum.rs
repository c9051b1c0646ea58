//! CRC32C (Castagnoli). The only place that calls the `crc32c` crate; without `std` a table does it,
//! which also is the tests' second opinion.

const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ POLYNOMIAL
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// The table version.
pub fn crc32c_table(crc: u32, bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!crc, |crc, &b| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ b)])
}

/// CRC32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// Continues a CRC32C over more bytes.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(feature = "std")]
    {
        crc32c::crc32c_append(crc, bytes)
    }
    #[cfg(not(feature = "std"))]
    {
        crc32c_table(crc, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values_and_both_versions_agree() {
        assert_eq!(
            crc32c(b"123456789"),
            0xe306_9283,
            "the check value of RFC 3720's polynomial"
        );
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i * 7 + i / 13) as u8).collect();
        for len in [0, 1, 3, 64, 4096, 5000] {
            assert_eq!(crc32c(&bytes[..len]), crc32c_table(0, &bytes[..len]));
            let half = crc32c(&bytes[..len / 2]);
            assert_eq!(
                crc32c_append(half, &bytes[len / 2..len]),
                crc32c(&bytes[..len])
            );
        }
    }
}
