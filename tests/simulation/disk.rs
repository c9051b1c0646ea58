//! A disk with a volatile cache. Data are symbolic: each sector holds the stamp of the write it came
//! from. Metadata are real bytes, because the real metadata code reads them.
//!
//! A power cut keeps, loses or tears (at 512 bytes) every write that was not flushed, each for
//! itself, so also in another order than they were made.

use crate::rng::Rng;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
const META_SECTOR: usize = 512;

/// What a sector holds: 0, or [`stamp`].
pub type Stamp = u64;

/// The content that write `id` gives sector `sector`. Misplaced data are recognised by it.
pub fn stamp(id: u32, sector: usize) -> Stamp {
    (u64::from(id) << 24) | (sector as u64 & 0xff_ffff)
}

/// The write a sector's content came from, or `None` if it is not this sector's.
pub fn origin(stamp: Stamp, sector: usize) -> Option<u32> {
    match stamp {
        0 => Some(0),
        _ if stamp & 0xff_ffff == sector as u64 => u32::try_from(stamp >> 24).ok(),
        _ => None,
    }
}

#[derive(Debug, Clone)]
enum Cached {
    /// First sector, and the new content of those that still count.
    Data(usize, Vec<Option<Stamp>>),
    /// First metadata sector, bytes, and which sectors still count.
    Meta(usize, Vec<u8>, Vec<bool>),
}

/// The disk of a node: data, and metadata behind them or on a device of their own.
#[derive(Debug, Clone)]
pub struct Disk {
    now: Vec<Stamp>,
    stable: Vec<Stamp>,
    meta_now: Vec<u8>,
    meta_stable: Vec<u8>,
    /// Offset of the first byte of the metadata on their device.
    meta_base: u64,
    cache: Vec<Cached>,
}

/// How a write fares in a power cut.
#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Lost,
    Torn,
}

impl Disk {
    /// All zero. The metadata begin at `meta_base` of their device.
    pub fn new(data_bytes: u64, meta_bytes: u64, meta_base: u64) -> Self {
        let sectors = usize::try_from(data_bytes / SECTOR).expect("small");
        let meta = usize::try_from(meta_bytes).expect("small");
        Self {
            now: vec![0; sectors],
            stable: vec![0; sectors],
            meta_now: vec![0; meta],
            meta_stable: vec![0; meta],
            meta_base,
            cache: Vec::new(),
        }
    }

    /// Bytes of the device that holds the metadata.
    pub fn meta_size(&self) -> u64 {
        self.meta_base + self.meta_now.len() as u64
    }

    /// Bytes of the device that holds the data.
    pub fn disk_size(&self) -> u64 {
        self.meta_size().max(self.now.len() as u64 * SECTOR)
    }

    /// What is read now.
    pub fn data(&self) -> &[Stamp] {
        &self.now
    }

    /// By sector: what it may hold after a power cut.
    pub fn after_power_cut(&self) -> Vec<Vec<Stamp>> {
        let mut all: Vec<_> = self.stable.iter().map(|&value| vec![value]).collect();
        for cached in &self.cache {
            if let Cached::Data(first, content) = cached {
                for (i, value) in content.iter().enumerate() {
                    all[first + i].extend(value);
                }
            }
        }
        all
    }

    /// A sector changes by itself.
    pub fn rot(&mut self, sector: usize) {
        let other = self.now[sector] ^ 1 << 60;
        self.now[sector] = other;
        self.stable[sector] = other;
        self.forget_data(sector, 1);
    }

    /// Writes data.
    pub fn write(&mut self, first: usize, content: &[Stamp], fua: bool) {
        self.now[first..first + content.len()].copy_from_slice(content);
        if fua {
            self.stable[first..first + content.len()].copy_from_slice(content);
            self.forget_data(first, content.len());
        } else {
            let content = content.iter().copied().map(Some).collect();
            self.cache.push(Cached::Data(first, content));
        }
    }

    /// Reads metadata.
    pub fn read_meta(&self, offset: u64, buf: &mut [u8]) {
        let at = self.meta_at(offset);
        buf.copy_from_slice(&self.meta_now[at..at + buf.len()]);
    }

    /// Writes metadata.
    pub fn write_meta(&mut self, offset: u64, bytes: &[u8], fua: bool) {
        let at = self.meta_at(offset);
        self.meta_now[at..at + bytes.len()].copy_from_slice(bytes);
        let (first, count) = (at / META_SECTOR, bytes.len() / META_SECTOR);
        if fua {
            self.meta_stable[at..at + bytes.len()].copy_from_slice(bytes);
            self.forget_meta(first, count);
        } else {
            let meta = Cached::Meta(first, bytes.to_vec(), vec![true; count]);
            self.cache.push(meta);
        }
    }

    fn meta_at(&self, offset: u64) -> usize {
        usize::try_from(offset - self.meta_base).expect("small")
    }

    /// A stable write supersedes what the cache holds of the same sectors.
    fn forget_data(&mut self, first: usize, count: usize) {
        for cached in &mut self.cache {
            if let Cached::Data(at, content) = cached {
                for (i, value) in content.iter_mut().enumerate() {
                    if (first..first + count).contains(&(*at + i)) {
                        *value = None;
                    }
                }
            }
        }
    }

    fn forget_meta(&mut self, first: usize, count: usize) {
        for cached in &mut self.cache {
            if let Cached::Meta(at, _, counts) = cached {
                for (i, value) in counts.iter_mut().enumerate() {
                    if (first..first + count).contains(&(*at + i)) {
                        *value = false;
                    }
                }
            }
        }
    }

    /// Metadata of another disk, stable.
    pub fn take_metadata_of(&mut self, other: &Self) {
        self.cache.retain(|c| matches!(c, Cached::Data(..)));
        self.meta_now.clone_from(&other.meta_now);
        self.meta_stable.clone_from(&other.meta_now);
    }

    /// All data written are stable.
    pub fn flush_data(&mut self) {
        self.cache.retain(|c| matches!(c, Cached::Meta(..)));
        self.stable.copy_from_slice(&self.now);
    }

    /// All metadata written are stable.
    pub fn flush_meta(&mut self) {
        self.cache.retain(|c| matches!(c, Cached::Data(..)));
        self.meta_stable.copy_from_slice(&self.meta_now);
    }

    /// Everything written is stable.
    pub fn flush(&mut self) {
        self.flush_data();
        self.flush_meta();
    }

    /// A flush that fails: some of what was written is stable, the rest never will be, and the next
    /// flush does not say so.
    pub fn fail_flush(&mut self, rng: &mut Rng) {
        self.settle_cache(rng);
    }

    /// The power is cut.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        self.settle_cache(rng);
        self.now.copy_from_slice(&self.stable);
        self.meta_now.copy_from_slice(&self.meta_stable);
    }

    fn settle_cache(&mut self, rng: &mut Rng) {
        for cached in core::mem::take(&mut self.cache) {
            let fate = rng.pick(&[Fate::Kept, Fate::Lost, Fate::Torn]);
            let mut keeps = || match fate {
                Fate::Kept => true,
                Fate::Lost => false,
                Fate::Torn => rng.per_mille(500),
            };
            match cached {
                Cached::Data(first, content) => {
                    for (i, value) in content.iter().enumerate() {
                        if keeps()
                            && let Some(value) = value
                        {
                            self.stable[first + i] = *value;
                        }
                    }
                }
                Cached::Meta(first, bytes, counts) => {
                    for (i, counts) in counts.iter().enumerate() {
                        if keeps() && *counts {
                            let from = i * META_SECTOR;
                            let to = (first + i) * META_SECTOR;
                            self.meta_stable[to..to + META_SECTOR]
                                .copy_from_slice(&bytes[from..from + META_SECTOR]);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_keeps_what_was_flushed_and_tears_the_rest() {
        let mut fates = [0; 3];
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = Disk::new(64 * SECTOR, 4096, 64 * SECTOR);
            disk.write(0, &[stamp(1, 0); 8], false);
            disk.flush();
            disk.write(0, &[stamp(2, 0); 8], false);
            disk.write(8, &[stamp(3, 8); 8], true);
            disk.power_cut(&mut rng);
            let kept = disk.data()[..8]
                .iter()
                .filter(|&&s| s == stamp(2, 0))
                .count();
            assert!(
                disk.data()[..8]
                    .iter()
                    .all(|&s| s == stamp(1, 0) || s == stamp(2, 0))
            );
            assert_eq!(disk.data()[8..16], [stamp(3, 8); 8], "stable at once");
            fates[match kept {
                8 => 0,
                0 => 1,
                _ => 2,
            }] += 1;
        }
        assert!(fates.iter().all(|&n| n > 20), "{fates:?}");
    }

    #[test]
    fn a_stable_write_is_not_undone_by_an_older_one_in_the_cache() {
        for seed in 0..50 {
            let mut disk = Disk::new(64 * SECTOR, 4096, 64 * SECTOR);
            disk.write(0, &[stamp(1, 0); 4], false);
            disk.write(1, &[stamp(2, 1); 2], true);
            disk.power_cut(&mut Rng::new(seed));
            assert_eq!(disk.data()[1..3], [stamp(2, 1); 2]);
        }
    }

    #[test]
    fn a_stamp_tells_write_and_place() {
        assert_eq!(origin(stamp(7, 5), 5), Some(7));
        assert_eq!(origin(stamp(7, 5), 6), None);
        assert_eq!(origin(0, 6), Some(0));
    }
}
