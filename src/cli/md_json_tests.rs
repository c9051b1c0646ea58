//! Metadata to JSON and back: nothing is lost, and nothing impossible is taken.

use super::*;
use proptest::prelude::*;

fn any_image() -> impl Strategy<Value = Image> {
    let words = prop::collection::vec(any::<u64>(), 16);
    let runs = prop::collection::vec((0u8..3, 0u64..2000, 1u64..300), 0..6);
    let blocks = prop::collection::vec((0usize..16, any::<u8>()), 0..4);
    let header = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>());
    let shape = (40u64..2000, 1u8..=3, any::<bool>(), 0u64..=100);
    (header, shape, words, runs, blocks).prop_map(|(header, shape, words, runs, blocks)| {
        let (disk, slots, external, agreed) = shape;
        let layout = if external {
            Layout::external(disk * 4096, None, 4096, slots)
        } else {
            Layout::internal(disk * 4096, 4096, slots)
        };
        let layout = layout.expect("large enough");
        let mut peers = [PeerSlot::default(); NodeId::MAX_NODES];
        for (i, peer) in peers.iter_mut().enumerate().skip(1).step_by(3) {
            *peer = PeerSlot {
                bitmap: words[i],
                last_incarnation: words[i - 1],
                flags: PeerFlags(words[i] as u32),
                slot: (i as u8 / 3 < slots).then_some(i as u8 / 3),
            };
        }
        let mut bitmaps: Vec<Bitmap> = (0..slots)
            .map(|_| Bitmap::new(layout.data_size, 4096))
            .collect();
        for (slot, first, count) in runs {
            if let Some(bitmap) = bitmaps.get_mut(usize::from(slot)) {
                bitmap.merge_run(first, count);
            }
        }
        let mut activity_log = vec![0; layout.activity_log_len as usize];
        for (block, byte) in blocks {
            activity_log[block * BLOCK + 7..(block + 1) * BLOCK].fill(byte);
        }
        let superblock = Superblock {
            sequence: header.0,
            device_uuid: header.1,
            resource: "r0-ä".into(),
            volume: VolumeId(header.2 as u16),
            node: NodeId(header.2 as u8 % 16),
            agreed_size: layout.data_size / 100 * agreed,
            block_size: if header.0 % 2 == 0 { 512 } else { 4096 },
            flags: MdFlags(header.3),
            current: header.2,
            peers,
            history: std::array::from_fn(|i| if i % 5 == 4 { 0 } else { words[i] }),
            toward: words[3],
            extent_size: 1 << 20,
            reign: words[2],
            layout,
        };
        Image {
            superblock,
            bitmaps,
            activity_log,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn json_loses_nothing(image in any_image()) {
        let text = serde_json::to_string(&Metadata::of(&image)).expect("JSON");
        let back: Metadata = serde_json::from_str(&text).expect("our own JSON");
        let back = back.to_image().expect("our own metadata");
        prop_assert_eq!(&back.superblock, &image.superblock);
        prop_assert_eq!(&back.activity_log, &image.activity_log);
        prop_assert_eq!(back.bitmaps.len(), image.bitmaps.len());
        for (a, b) in back.bitmaps.iter().zip(&image.bitmaps) {
            prop_assert_eq!(a.marked(), b.marked());
        }
    }
}

fn sample() -> Metadata {
    let layout = Layout::internal(1 << 20, 4096, 1).expect("large enough");
    let mut peers = [PeerSlot::default(); NodeId::MAX_NODES];
    peers[1].slot = Some(0);
    let mut bitmap = Bitmap::new(layout.data_size, 4096);
    bitmap.merge_run(3, 2);
    let activity_log = vec![0; layout.activity_log_len as usize];
    let image = Image {
        superblock: Superblock {
            sequence: 3,
            device_uuid: 7,
            resource: "r0".into(),
            volume: VolumeId(0),
            node: NodeId(0),
            agreed_size: 0,
            block_size: 512,
            flags: MdFlags::CONSISTENT,
            current: 16,
            peers,
            history: [0; HISTORY],
            toward: 0,
            extent_size: 4 << 20,
            reign: 0,
            layout,
        },
        bitmaps: vec![bitmap],
        activity_log,
    };
    Metadata::of(&image)
}

#[test]
fn every_field_that_makes_no_sense_is_named() {
    type Spoil = fn(&mut Metadata);
    let cases: [(&str, Spoil); 22] = [
        ("`format` is 2", |m| m.format = 2),
        ("placement", |m| m.placement = "both".into()),
        ("too small", |m| m.disk_size = 4096),
        ("data_size", |m| m.data_size -= 4096),
        ("bitmap granularity", |m| m.bitmap_block = 5),
        ("slots", |m| m.slots = 16),
        ("history_uuids", |m| {
            m.history_uuids = vec!["0".repeat(16); 17]
        }),
        ("`history_uuids`: \"12\"", |m| {
            m.history_uuids = vec!["12".into()]
        }),
        ("device_uuid", |m| m.device_uuid = "+00000000000000a".into()),
        ("flags", |m| m.flags = vec!["UP".into()]),
        ("resource", |m| m.resource = String::new()),
        ("resource", |m| m.resource = "x".repeat(65)),
        ("node id", |m| m.node_id = 16),
        ("agreed size", |m| m.agreed_size = 1 << 40),
        ("block size", |m| m.block_size = 513),
        ("node_id", |m| m.peers[0].node_id = 16),
        ("two peers", |m| m.peers.push(m.peers[0].clone())),
        ("bitmap slot", |m| m.peers[0].slot = Some(1)),
        ("bitmaps", |m| m.bitmaps.clear()),
        ("has 9 bits", |m| m.bitmaps[0].bits = 9),
        ("`set` says 9", |m| m.bitmaps[0].set = 9),
        ("beyond the end", |m| {
            m.activity_log.push(Hex {
                offset: 65_536,
                hex: "00".into(),
            })
        }),
    ];
    assert!(sample().to_image().is_ok());
    for (text, spoil) in cases {
        let mut metadata = sample();
        spoil(&mut metadata);
        let error = metadata.to_image().expect_err(text);
        assert!(error.contains(text), "{text}: {error}");
    }
    for run in [
        "",
        "3",
        "+",
        "3+",
        "-1+2",
        "200+100",
        "18446744073709551615+2",
    ] {
        let mut metadata = sample();
        metadata.bitmaps[0].runs = vec![run.into()];
        assert!(metadata.to_image().expect_err(run).contains("slot 0"));
    }
    for hex in ["0", "zz", "é"] {
        let mut metadata = sample();
        let hex = hex.to_owned();
        metadata.activity_log = vec![Hex { offset: 0, hex }];
        assert!(metadata.to_image().expect_err("no hex").contains("pairs"));
    }
}
