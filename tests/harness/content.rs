//! What a disk holds, block by block; the holes of a thin file cost neither memory nor time.

use super::load::BLOCK;
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Something that consists of blocks.
pub trait Blocks {
    fn block(&self, number: u64) -> &[u8];
}

impl Blocks for [u8] {
    fn block(&self, number: u64) -> &[u8] {
        let at = usize::try_from(number).expect("fits") * BLOCK;
        &self[at..at + BLOCK]
    }
}

impl Blocks for Vec<u8> {
    fn block(&self, number: u64) -> &[u8] {
        self[..].block(number)
    }
}

/// The beginning of a thin file.
#[derive(Debug)]
pub struct Sparse {
    data: Vec<u8>,
    /// For each block, how many are in `data` before it; or it is in a hole.
    places: Vec<Option<u32>>,
}

impl Blocks for Sparse {
    fn block(&self, number: u64) -> &[u8] {
        match self.places[usize::try_from(number).expect("fits")] {
            Some(place) => self.data.block(place.into()),
            None => &[0; BLOCK],
        }
    }
}

impl Sparse {
    /// Reads `size` bytes, a multiple of the block.
    pub fn read(path: &Path, size: u64) -> Self {
        let file = File::open(path).expect("the disk");
        assert!(file.metadata().expect("its size").len() >= size);
        let block = BLOCK as u64;
        let mut content = Self {
            data: Vec::new(),
            places: vec![None; usize::try_from(size / block).expect("fits")],
        };
        let mut end = 0;
        while let Ok(start) = seek(&file, SeekFrom::Data(end)) {
            let start = start / block * block;
            if start >= size {
                break;
            }
            end = seek(&file, SeekFrom::Hole(start)).expect("an end");
            end = end.next_multiple_of(block).min(size);
            let known = content.data.len();
            content.data.resize(known + (end - start) as usize, 0);
            file.read_exact_at(&mut content.data[known..], start)
                .expect("long enough");
            for (place, number) in (known / BLOCK..).zip(start / block..end / block) {
                content.places[number as usize] = Some(u32::try_from(place).expect("small"));
            }
        }
        content
    }

    pub fn blocks(&self) -> u64 {
        self.places.len() as u64
    }

    /// The first block that is another one.
    pub fn difference(&self, other: &Self) -> Option<u64> {
        assert_eq!(self.blocks(), other.blocks());
        (0..self.blocks()).find(|&n| self.block(n) != other.block(n))
    }
}
