//! Metadata that are not where they belong are found, and nothing else is taken for them.

use super::super::image::tests::{Mem, image};
use super::super::layout::Layout;
use super::super::open::open;
use super::*;
use alloc::string::{String, ToString};

const SIZE: u64 = 4 << 20;

fn disk() -> Mem {
    let mut mem = Mem(vec![0xa5; SIZE as usize]);
    mem.write(&image(
        Layout::internal(SIZE, 4096, 2).expect("large enough"),
        8,
        &[(5, 3)],
    ));
    mem
}

fn error(mem: &mut Mem) -> OpenError {
    let size = mem.0.len() as u64;
    open(mem, size, size, Placement::Internal).expect_err("not at the end")
}

#[test]
fn a_disk_that_has_grown_says_so() {
    for more in [4096, 12_288, 1 << 20, 9 << 20] {
        let mut mem = disk();
        mem.0.resize((SIZE + more) as usize, 0);
        let found = error(&mut mem);
        let want = OpenError::Grown {
            resource: "r0".into(),
            was: SIZE,
            now: SIZE + more,
        };
        assert_eq!(found, want);
        assert!(found_text(&found).contains("twinblk move-md r0"));
    }
}

fn found_text(error: &OpenError) -> String {
    error.to_string()
}

#[test]
fn metadata_copied_from_a_smaller_disk_are_not_this_disks() {
    let mut mem = Mem(vec![0xa5; 2 * SIZE as usize]);
    let end = disk().0;
    mem.put(2 * SIZE - 8192, &end[end.len() - 8192..]);
    assert!(matches!(error(&mut mem), OpenError::NotItsOwn { .. }));
}

#[test]
fn one_damaged_copy_does_not_hide_the_other_nor_its_age() {
    for copy in 0..2 {
        let mut mem = disk();
        let at = SIZE - 8192 + copy * 4096;
        mem.put(at + 100, &[0xff; 8]);
        mem.0.resize(5 << 20, 0);
        assert!(matches!(error(&mut mem), OpenError::Grown { .. }));
    }
    // The newer one is taken, whichever is met first.
    let mut mem = disk();
    mem.0.resize(5 << 20, 0);
    let Some(Trace::Superblock(found)) = nearby(&mut mem, 5 << 20, 2 << 20) else {
        panic!("found");
    };
    assert_eq!(found.sequence, 8);
}

/// The disk of another pair, kept as a file on this one, shall not be taken for this one's metadata.
#[test]
fn a_copy_of_a_disk_within_the_data_is_no_metadata() {
    let inner = disk();
    let mut mem = Mem(vec![0; 12 << 20]);
    mem.put(1 << 20, &inner.0);
    let any = scan(&mut mem, 0, 12 << 20, &mut |t| {
        matches!(t, Trace::Superblock(_))
    });
    assert_eq!(any, None);
    // Nor when somebody names the place.
    let end = (1 << 20) + SIZE;
    assert_eq!(at_old_size(&mut mem, end), Err(OpenError::NoMetadata));
}

#[test]
fn what_is_cut_off_or_overwritten_is_told_apart() {
    let mut mem = disk();
    mem.0.truncate((SIZE - (72 << 10)) as usize);
    assert!(matches!(error(&mut mem), OpenError::CutOff { .. }));
    let mut mem = disk();
    mem.put(SIZE - 8192, &[0; 8192]);
    assert_eq!(error(&mut mem), OpenError::Overwritten);
    let mut mem = disk();
    mem.0.truncate((SIZE / 2) as usize);
    assert_eq!(error(&mut mem), OpenError::NoMetadata);
}

#[test]
fn round_sizes_far_away_are_tried() {
    /// Nothing but a few blocks.
    struct Sparse(u64, Mem);
    impl ReadAt for Sparse {
        fn read_at(
            &mut self,
            offset: u64,
            buf: &mut [u8],
        ) -> Result<(), super::super::open::ReadError> {
            if offset >= self.0 && offset < self.0 + self.1.0.len() as u64 {
                return self.1.read_at(offset - self.0, buf);
            }
            buf.fill(0);
            Ok(())
        }
    }
    let was = 100u64 << 30;
    let layout = Layout::internal(was, 4096, 1).expect("large enough");
    let mut end = Mem(vec![0; 8192]);
    let mut sb = image(
        Layout::internal(SIZE, 4096, 1).expect("large enough"),
        8,
        &[],
    )
    .superblock;
    sb.layout = layout;
    sb.agreed_size = 0;
    end.put(0, &sb.encode()[..]);
    let mut disk = Sparse(was - 8192, end);
    let found = nearby(&mut disk, 110 << 30, 1 << 20);
    assert_eq!(found, Some(Trace::Superblock(Box::new(sb))));
}

/// A block that cannot be read hides nothing but itself.
#[test]
fn bad_blocks_are_passed_over() {
    struct Bad(Mem, u64);
    impl ReadAt for Bad {
        fn read_at(
            &mut self,
            offset: u64,
            buf: &mut [u8],
        ) -> Result<(), super::super::open::ReadError> {
            if offset <= self.1 && self.1 < offset + buf.len() as u64 {
                return Err(super::super::open::ReadError { errno: 5 });
            }
            self.0.read_at(offset, buf)
        }
    }
    let mut mem = disk();
    mem.0.resize(5 << 20, 0);
    let mut bad = Bad(mem, SIZE - (16 << 10));
    assert!(matches!(
        nearby(&mut bad, 5 << 20, 2 << 20),
        Some(Trace::Superblock(_))
    ));
}
