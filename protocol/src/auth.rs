//! Proof of the shared secret: HMAC-SHA-256 over a label and the transcript.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of a proof.
pub const PROOF_LEN: usize = 32;

/// The proof of `secret` for what `label` said in `transcript`. An empty secret is a valid key: it
/// proves nothing but that both sides agree to have none.
pub fn prove(secret: &[u8], label: &str, transcript: &[u8]) -> [u8; PROOF_LEN] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length is a key for HMAC");
    mac.update(b"twinblk 1 ");
    mac.update(label.as_bytes());
    mac.update(&[0]);
    mac.update(transcript);
    mac.finalize().into_bytes().into()
}

/// Compares two proofs in constant time.
pub fn same_proof(expected: &[u8; PROOF_LEN], got: &[u8]) -> bool {
    got.len() == PROOF_LEN
        && expected
            .iter()
            .zip(got)
            .fold(0, |diff, (a, b)| diff | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_secret_and_transcript_all_count() {
        let proof = prove(b"secret", "dialler", b"words");
        assert!(same_proof(&proof, &prove(b"secret", "dialler", b"words")));
        for other in [
            prove(b"secrets", "dialler", b"words"),
            prove(b"secret", "acceptor", b"words"),
            prove(b"secret", "dialler", b"word"),
        ] {
            assert!(!same_proof(&proof, &other));
        }
        assert!(!same_proof(&proof, &proof[..31]));
    }
}
