//! Files in which a node keeps what it gives up in a split brain: every block that was
//! marked as changed on either node, and that the resync was about to overwrite, as it was. Written by the daemon before the first of them is overwritten, read by
//! `twinblk discarded`. The bytes are in `docs/formats.md`.
//!
//! Invariants:
//! * a file under its final name is whole and durable: it is written under another name, flushed, and then
//!   renamed onto nothing;
//! * nothing is believed that its checksum does not confirm, and a file that ends early is told from a
//!   whole one by its last record.

pub(crate) mod format;
pub(crate) mod read;
pub(crate) mod write;

#[cfg(test)]
mod tests;
