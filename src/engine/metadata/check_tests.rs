//! The checker finds what is wrong, and nothing where nothing is.

use super::super::image::tests::{Mem, image};
use super::super::image::{Image, Step};
use super::*;
use crate::ids::VolumeId;
use crate::metadata::create::{CreateParams, create};
use alloc::vec;
use proptest::prelude::*;

const SIZE: u64 = 4 << 20;

fn layout() -> Layout {
    Layout::internal(SIZE, 4096, 2).expect("large enough")
}

fn good_image() -> Image {
    image(layout(), 9, &[(3, 4)])
}

fn disk(image: &Image) -> Mem {
    let mut mem = Mem(vec![0xa5; SIZE as usize]);
    mem.write(image);
    mem
}

fn wrongs(mem: &mut Mem) -> Vec<String> {
    check(mem, SIZE, SIZE, Placement::Internal)
        .into_iter()
        .filter(|f| f.wrong)
        .map(|f| f.text)
        .collect()
}

#[test]
fn fresh_and_used_metadata_are_good() {
    assert_eq!(wrongs(&mut disk(&good_image())), Vec::<String>::new());
    let mut mem = Mem(vec![0xa5; SIZE as usize]);
    let params = CreateParams {
        layout: layout(),
        resource: "r0",
        volume: VolumeId(0),
        node: NodeId(0),
        peers: &[NodeId(1)],
        device_uuid: 7,
        block_size: 512,
        extent_size: 4 << 20,
    };
    create(params, &mut |at, data: &[u8]| {
        mem.put(at, data);
        Ok::<(), ()>(())
    })
    .expect("memory");
    assert_eq!(wrongs(&mut mem), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Any single damaged byte of a superblock or a bitmap page is found, and its block is named.
    #[test]
    fn any_damaged_byte_is_found(superblock: bool, which in 0u64..2, byte in 0u64..4096, bit in 0u8..8) {
        let mut mem = disk(&good_image());
        let l = layout();
        let at = if superblock {
            l.superblock_offsets[which as usize]
        } else {
            l.bitmap_page_offset(which as u8, 0)
        } + byte;
        mem.0[at as usize] ^= 1 << bit;
        let wrong = wrongs(&mut mem);
        prop_assert_eq!(wrong.len(), 1, "{:?}", wrong);
        let name = if superblock { "superblock" } else { "of bitmap" };
        let name = alloc::format!("{name} {which}");
        prop_assert!(wrong[0].contains(&name), "{:?}", wrong);
    }
}

/// Each contradiction by itself is found, and only it.
#[test]
fn contradictions_are_found() {
    type Spoil = fn(&mut Superblock);
    let cases: [(&str, Spoil); 9] = [
        ("not consistent", |s| s.flags.remove(MdFlags::CONSISTENT)),
        ("never synchronised", |s| s.current = 4),
        ("does not know", |s| s.flags.0 |= 1 << 20),
        ("does not know", |s| s.peers[1].flags.0 |= 1 << 9),
        ("names one twice", |s| s.history[1] = s.history[0] | 1),
        ("has a gap", |s| s.history[3] = 0x10),
        ("names the current one", |s| s.history[0] = s.current & !1),
        ("shares bitmap 0", |s| s.peers[2].slot = Some(0)),
        ("has no bitmap", |s| s.peers[2].slot = None),
    ];
    for (text, spoil) in cases {
        let mut image = good_image();
        spoil(&mut image.superblock);
        let wrong = wrongs(&mut disk(&image));
        assert!(
            wrong.len() == 1 && wrong[0].contains(text),
            "{text}: {wrong:?}"
        );
    }
}

#[test]
fn copies_that_do_not_belong_together_are_found() {
    // A lost write: copy 0 stayed two commits behind.
    let mut mem = disk(&good_image());
    let mut older = good_image().superblock;
    older.sequence = 6;
    mem.put(layout().superblock_offsets[0], &older.encode()[..]);
    let wrong = wrongs(&mut mem);
    assert!(
        wrong.len() == 1 && wrong[0].contains("lost a write"),
        "{wrong:?}"
    );
    // Each in the other's place.
    let mut mem = disk(&good_image());
    older.sequence = 8;
    let newer = good_image().superblock;
    mem.put(layout().superblock_offsets[1], &older.encode()[..]);
    mem.put(layout().superblock_offsets[0], &newer.encode()[..]);
    assert_eq!(wrongs(&mut mem).len(), 2, "{:?}", wrongs(&mut mem));
    // Of another life of this disk.
    let mut mem = disk(&good_image());
    older.device_uuid += 1;
    mem.put(layout().superblock_offsets[0], &older.encode()[..]);
    let wrong = wrongs(&mut mem);
    assert!(
        wrong.len() == 1 && wrong[0].contains("different metadata"),
        "{wrong:?}"
    );
}

/// A power cut while metadata are written leaves nothing but half-written blocks.
#[test]
fn blocks_marked_for_a_peer_in_step_are_told_and_not_wrong() {
    let mut image = good_image();
    image.superblock.peers[1].bitmap = 0;
    let mut mem = disk(&image);
    assert_eq!(wrongs(&mut mem), Vec::<String>::new());
    let told = |mem: &mut Mem| {
        check(mem, SIZE, SIZE, Placement::Internal)
            .iter()
            .any(|f| f.text.contains("reconciled at the next connect"))
    };
    assert!(told(&mut mem));
    // Beyond the agreed size bits mean nothing.
    image.superblock.agreed_size = 3 * 4096;
    assert!(!told(&mut disk(&image)));
}

#[test]
fn peers_are_compared_with_the_configuration() {
    let sb = good_image().superblock;
    let found = check_configured(&sb, &[NodeId(1), NodeId(2)]);
    assert_eq!(found, Vec::new());
    let found = check_configured(&sb, &[NodeId(1), NodeId(7)]);
    assert!(
        found[0].wrong && found[0].text.contains("node id 7"),
        "{found:?}"
    );
    assert!(
        !found[1].wrong && found[1].text.contains("node id 2"),
        "{found:?}"
    );
}

#[test]
fn external_metadata_that_were_cut_or_whose_disk_grew() {
    let layout = Layout::external(SIZE, None, 4096, 2).expect("large enough");
    let image = image(layout.clone(), 9, &[]);
    let mut mem = Mem(vec![0; layout.metadata_len() as usize]);
    let all = image.write(&mut |step| {
        if let Step::Write(at, data) = step {
            mem.put(at, data);
        }
        Ok::<(), ()>(())
    });
    all.expect("memory");
    let len = layout.metadata_len();
    let found = check(&mut mem, len, SIZE + (1 << 20), Placement::External);
    assert!(found.iter().all(|f| !f.wrong), "{found:?}");
    assert!(
        found
            .iter()
            .any(|f| f.text.contains("grown by 1048576 bytes"))
    );
    mem.0.truncate((len - 4096) as usize);
    let found = check(&mut mem, len - 4096, SIZE, Placement::External);
    let cut = |f: &&Finding| f.wrong && f.text.contains("meta-disk");
    assert!(found.iter().any(|f| cut(&f)), "{found:?}");
    let found = check(&mut mem, len, SIZE / 2, Placement::External);
    assert!(
        found.iter().any(|f| f.wrong && f.text.contains("shrunk")),
        "{found:?}"
    );
}
