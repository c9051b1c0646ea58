//! Verdicts in words on the metadata of a disk, for `dump-md`.

use super::layout::{Layout, Placement};
use super::open::{OpenError, ReadAt, Recovered, open};
use super::superblock::{MdFlags, Superblock};
use super::{BLOCK, BLOCK64};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Something is wrong (otherwise: for information).
    pub wrong: bool,
    /// What, in words.
    pub text: String,
}

/// Looks at everything; finds out as much as possible even when parts are damaged.
pub fn check(
    dev: &mut dyn ReadAt,
    meta_size: u64,
    disk_size: u64,
    placement: Placement,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if meta_size < 2 * BLOCK64 {
        let text = format!("the device has {meta_size} bytes: too small for any metadata");
        return alloc::vec![Finding { wrong: true, text }];
    }
    for (i, at) in Layout::superblocks(placement, meta_size)
        .into_iter()
        .enumerate()
    {
        let mut block = [0u8; BLOCK];
        let verdict = match dev.read_at(at, &mut block) {
            Err(e) => Err(e.to_string()),
            Ok(()) => Superblock::decode(&block).map_err(|e| e.to_string()),
        };
        findings.push(match verdict {
            Ok(sb) => Finding {
                wrong: false,
                text: format!("superblock {i}: good, sequence {}", sb.sequence),
            },
            Err(e) => Finding {
                wrong: true,
                text: format!("superblock {i}: {e}"),
            },
        });
    }
    match open(dev, meta_size, disk_size, placement) {
        Ok(recovered) => {
            findings.push(log_finding(&recovered));
            let text = |w| Finding {
                wrong: true,
                text: w,
            };
            findings.extend(recovered.warnings.into_iter().map(text));
            for (slot, bitmap) in recovered.bitmaps.iter().enumerate() {
                findings.push(Finding {
                    wrong: false,
                    text: format!(
                        "bitmap {slot}: {} of {} bits set",
                        bitmap.count_set(),
                        bitmap.bits()
                    ),
                });
            }
        }
        Err(OpenError::BothDamaged(..)) => {}
        Err(e) => findings.push(Finding {
            wrong: true,
            text: e.to_string(),
        }),
    }
    findings
}

/// Runs of extents that are named.
const NAMED: usize = 16;

/// The activity log in words. It matters only to a node that is Primary, or went down as one.
fn log_finding(recovered: &Recovered) -> Finding {
    let primary = recovered
        .superblock
        .flags
        .contains(MdFlags::PRIMARY_INDICATOR);
    let size = u64::from(recovered.superblock.extent_size);
    let extents = match &recovered.log {
        Ok(extents) => extents,
        Err(error) if primary => {
            let text = format!("activity log: {error}; after a crash every block counts");
            return Finding { wrong: true, text };
        }
        Err(_) => {
            let text = "activity log: empty".to_string();
            return Finding { wrong: false, text };
        }
    };
    let mut text = format!(
        "activity log: {} extent(s) of {size} bytes{}",
        extents.len(),
        if primary {
            ", which would be marked after a crash"
        } else {
            " of the last time this node was Primary; they mean nothing now"
        }
    );
    if primary && !extents.is_empty() {
        text.push_str(": ");
        for (i, run) in runs(extents).enumerate() {
            if i == NAMED {
                text.push_str(", …");
                break;
            }
            if i > 0 {
                text.push_str(", ");
            }
            text.push_str(&match run {
                (first, last) if first == last => format!("{first}"),
                (first, last) => format!("{first}-{last}"),
            });
        }
    }
    Finding { wrong: false, text }
}

/// Runs of consecutive numbers: (first, last).
fn runs(extents: &[u32]) -> impl Iterator<Item = (u32, u32)> + '_ {
    extents
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| (run[0], run[run.len() - 1]))
}
