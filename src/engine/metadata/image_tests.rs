//! Metadata written to another place: the same is read back, and a power cut loses nothing.

use super::*;
use crate::ids::{NodeId, VolumeId};
use crate::metadata::search::{Trace, at_old_size, scan};
use crate::metadata::superblock::{MdFlags, PeerFlags, PeerSlot};
use crate::metadata::{BLOCK64, HISTORY};
use alloc::string::ToString;
use proptest::prelude::*;

/// A disk in memory that reads like a device.
pub(in crate::metadata) struct Mem(pub Vec<u8>);

impl ReadAt for Mem {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let at = usize::try_from(offset).expect("small");
        let end = at.saturating_add(buf.len());
        let from = self.0.get(at..end).ok_or(ReadError { errno: 5 })?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

impl Mem {
    pub(in crate::metadata) fn put(&mut self, offset: u64, data: &[u8]) {
        let at = usize::try_from(offset).expect("small");
        self.0[at..at + data.len()].copy_from_slice(data);
    }

    /// Carries out all steps.
    pub(in crate::metadata) fn write(&mut self, image: &Image) {
        let all = image.write(&mut |step| {
            if let Step::Write(at, data) = step {
                self.put(at, data);
            }
            Ok::<(), ()>(())
        });
        all.expect("memory");
    }
}

/// Metadata of a copy with a past.
pub(in crate::metadata) fn image(layout: Layout, sequence: u64, runs: &[(u64, u64)]) -> Image {
    let mut peers = [PeerSlot::default(); NodeId::MAX_NODES];
    for slot in 0..layout.slots {
        peers[usize::from(slot) + 1] = PeerSlot {
            bitmap: 0x1234_5678 + u64::from(slot) * 16,
            last_incarnation: 9,
            flags: PeerFlags::EXISTS,
            slot: Some(slot),
        };
    }
    let mut flags = MdFlags::CONSISTENT;
    flags.insert(MdFlags::WAS_UP_TO_DATE);
    let bitmaps = (0..layout.slots).map(|slot| {
        let mut bitmap = Bitmap::new(layout.data_size, layout.bitmap_block);
        for &(first, count) in runs {
            bitmap.merge_run(first + u64::from(slot), count);
        }
        bitmap
    });
    let bitmaps = bitmaps.collect();
    let mut activity_log = vec![0; layout.activity_log_len as usize];
    activity_log[BLOCK..2 * BLOCK].fill(0x77);
    let mut history = [0; HISTORY];
    history[..2].copy_from_slice(&[0xbeef_0000, 0xbeef_0010]);
    Image {
        superblock: Superblock {
            sequence,
            device_uuid: 7,
            resource: "r0".to_string(),
            volume: VolumeId(0),
            node: NodeId(0),
            agreed_size: layout.data_size / 2 / BLOCK64 * BLOCK64,
            block_size: 512,
            layout,
            flags,
            current: 0xcafe_0001,
            peers,
            history,
            toward: 0xf00d_0000,
            extent_size: 8192,
            reign: 0x1234,
        },
        bitmaps,
        activity_log,
    }
}

fn same_bits(a: &Image, b: &Image) -> bool {
    let marked = |i: &Image| i.bitmaps.iter().map(|b| b.marked()).collect::<Vec<_>>();
    marked(a) == marked(b)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn what_is_written_is_read(
        blocks in 40u64..3000, slots in 1u8..=3, ext: bool, sequence in 1u64..100,
        runs in prop::collection::vec((0u64..3000, 1u64..200), 0..5),
    ) {
        let size = blocks * BLOCK64;
        let (layout, placement) = if ext {
            (Layout::external(size, None, 4096, slots), Placement::External)
        } else {
            (Layout::internal(size, 4096, slots), Placement::Internal)
        };
        let layout = layout.expect("large enough");
        let image = image(layout.clone(), sequence, &runs);
        let meta = if ext { layout.metadata_len() } else { size };
        let mut mem = Mem(vec![0xa5; meta as usize]);
        mem.write(&image);
        let (back, warnings) = Image::read(&mut mem, meta, size, placement).expect("whole");
        prop_assert_eq!(warnings, Vec::<String>::new());
        prop_assert_eq!(&back.superblock, &image.superblock);
        prop_assert_eq!(&back.activity_log, &image.activity_log);
        prop_assert!(same_bits(&back, &image));
        // The data are not touched.
        if !ext {
            let data = usize::try_from(layout.data_size).expect("small");
            prop_assert!(mem.0[..data].iter().all(|&b| b == 0xa5));
        }
    }

    /// A cut after any step; of what was not flushed any part is on the disk, in any order.
    #[test]
    fn a_power_cut_while_moving_leaves_the_old_or_the_new(
        runs in prop::collection::vec((0u64..1000, 1u64..50), 1..4),
        grown in 20u64..400, chances in prop::collection::vec(any::<u8>(), 64),
    ) {
        let (was, now) = (4 << 20, (4 << 20) + (grown + 60) * BLOCK64);
        let old = image(Layout::internal(was, 4096, 2).expect("large enough"), 10, &runs);
        let moved = old.moved(now).expect("grown enough");
        let mut before = Mem(vec![0xa5; now as usize]);
        before.write(&old);
        let mut total = 0;
        let count = write_moved(&moved, &old.superblock.layout, &mut |_| {
            total += 1;
            Ok::<(), ()>(())
        });
        count.expect("counting");
        for cut in 0..=total {
            let mut stable = Mem(before.0.clone());
            let mut cached: Vec<(u64, Vec<u8>)> = Vec::new();
            let mut steps = 0;
            let _ = write_moved(&moved, &old.superblock.layout, &mut |step| {
                if steps == cut {
                    return Err(());
                }
                steps += 1;
                match step {
                    Step::Write(at, data) => cached.push((at, data.to_vec())),
                    Step::Flush => {
                        for (at, data) in cached.drain(..) {
                            stable.put(at, &data);
                        }
                    }
                }
                Ok(())
            });
            let mut dice = chances.iter().cycle().skip(cut);
            for (at, data) in &cached {
                for (i, sector) in data.chunks(512).enumerate() {
                    if dice.next().is_some_and(|d| d % 2 == 0) {
                        stable.put(at + i as u64 * 512, sector);
                    }
                }
            }
            let found = Image::read(&mut stable, now, now, Placement::Internal);
            match found {
                Ok((found, _)) => {
                    prop_assert!(same_bits(&found, &moved), "cut {}", cut);
                    prop_assert_eq!(&found.activity_log, &moved.activity_log);
                    prop_assert_eq!(found.superblock.current, old.superblock.current);
                    prop_assert_eq!(found.superblock.agreed_size, old.superblock.agreed_size);
                }
                Err(_) => {
                    let trace = scan(&mut stable, 0, now, &mut |t| matches!(t, Trace::Superblock(_)));
                    let Some(Trace::Superblock(sb)) = trace else {
                        panic!("cut {cut}: neither the old nor the new metadata are found");
                    };
                    prop_assert_eq!(&*sb, &old.superblock);
                    let (found, warnings) =
                        Image::read(&mut stable, was, was, Placement::Internal).expect("the old");
                    prop_assert_eq!(warnings, Vec::<String>::new());
                    prop_assert!(same_bits(&found, &old) && found.activity_log == old.activity_log);
                }
            }
            if cut == total {
                prop_assert!(at_old_size(&mut stable, was).is_err(), "the old ones are gone");
            }
        }
    }

    /// Over other metadata: at no moment are old superblocks found with new bitmaps.
    #[test]
    fn a_power_cut_while_overwriting_never_mixes(chances in prop::collection::vec(any::<u8>(), 64)) {
        let size = 4 << 20;
        let layout = Layout::internal(size, 4096, 2).expect("large enough");
        let (old, new) = (image(layout.clone(), 30, &[(1, 9)]), image(layout, 9, &[(40, 4)]));
        let mut before = Mem(vec![0xa5; size as usize]);
        before.write(&old);
        for cut in 0..20 {
            let (mut stable, mut cached, mut steps) = (Mem(before.0.clone()), Vec::new(), 0);
            let _ = new.write(&mut |step| {
                if steps == cut {
                    return Err(());
                }
                steps += 1;
                match step {
                    Step::Write(at, data) => cached.push((at, data.to_vec())),
                    Step::Flush => cached.drain(..).for_each(|(at, data)| stable.put(at, &data)),
                }
                Ok(())
            });
            let mut dice = chances.iter().cycle().skip(cut);
            for (at, data) in &cached {
                for (i, sector) in data.chunks(512).enumerate() {
                    if dice.next().is_some_and(|d| d % 2 == 0) {
                        stable.put(at + i as u64 * 512, sector);
                    }
                }
            }
            let Ok((found, _)) = Image::read(&mut stable, size, size, Placement::Internal) else {
                continue;
            };
            // The last but one copy says the same as the last, with another number.
            let which = if found.superblock.sequence >= 29 { &old } else { &new };
            prop_assert!(same_bits(&found, which), "cut {}: {:?}", cut, found.superblock.sequence);
        }
    }

    #[test]
    fn moving_keeps_the_bits_and_marks_the_rest(
        more in 100u64..70_000, agreed in 0u64..=900,
        runs in prop::collection::vec((0u64..900, 1u64..50), 0..4),
    ) {
        let was = 4 << 20;
        let mut old = image(Layout::internal(was, 4096, 2).expect("large enough"), 3, &runs);
        old.superblock.agreed_size = agreed * BLOCK64;
        let known = if agreed == 0 { old.superblock.layout.data_size / BLOCK64 } else { agreed };
        let moved = old.moved(was + more * BLOCK64).expect("grown enough");
        prop_assert!(moved.superblock.layout.data_size >= was, "nothing overlaps");
        prop_assert_eq!(moved.superblock.agreed_size, agreed * BLOCK64);
        prop_assert!(moved.superblock.sequence >= old.superblock.sequence + 2);
        for (new, old) in moved.bitmaps.iter().zip(&old.bitmaps) {
            let (end, marked) = (new.bits(), new.marked());
            let mut want: Vec<u64> = old.marked().into_iter().filter(|&b| b < known).collect();
            want.extend(known..end);
            prop_assert_eq!(marked, want);
        }
    }
}

#[test]
fn what_cannot_be_moved_and_why() {
    let layout = |size| Layout::internal(size, 4096, 2).expect("large enough");
    let old = image(layout(4 << 20), 3, &[]);
    let error = |size| old.moved(size).expect_err("refused");
    assert_eq!(error((4 << 20) + 100), MoveError::InPlace);
    assert!(matches!(error(3 << 20), MoveError::Shrunk { .. }));
    let MoveError::TooLittle { grown, needed } = error((4 << 20) + 8192) else {
        panic!("it overlaps");
    };
    assert_eq!(grown, 8192);
    assert!(old.moved(needed - 4096).is_err());
    assert!(
        old.moved(needed).is_ok(),
        "the size that is named is enough"
    );
    let external = Layout::external(4 << 20, None, 4096, 1).expect("large enough");
    let error = image(external, 3, &[]).moved(8 << 20);
    assert_eq!(error.expect_err("refused"), MoveError::External);
}
