//! Messages to the kernel's client, byte for byte, and what is made of its answers. The bytes are written
//! down from the layout of netlink, not made by the code under test.
#![cfg(target_endian = "little")]

use proptest::prelude::*;
use std::time::Duration;
use userspace_nbd::export::TransmissionFlags;
use userspace_nbd::kernel::{
    Answer, Connect, DeviceStatus, Family, Message, Reconfigure, Timeouts, connect, disconnect,
    find_family, parse, reconfigure, status,
};

/// Bytes from hex digits; white space does not matter.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).expect("a hex digit") as u8)
        .collect();
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}

const TIMEOUTS: Timeouts = Timeouts {
    request: Duration::from_secs(30),
    dead: Duration::from_millis(179_001),
};

#[test]
fn the_family_is_asked_for_by_name() {
    let wanted = "1c000000 1000 0500 07000000 00000000  03 01 0000
        0800 0200 6e626400";
    assert_eq!(find_family(7), hex(wanted));
}

#[test]
fn a_device_is_made() {
    let flags = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::CAN_MULTI_CONN;
    let device = Connect {
        index: Some(3),
        size: 0x1_0000_0000,
        block_size: 512,
        flags,
        timeouts: TIMEOUTS,
        backend: "abcde",
        sockets: &[9, 10],
    };
    let wanted = "80000000 2000 0500 01000000 00000000  01 01 0000
        0800 0100 03000000
        0c00 0200 0000000001000000
        0c00 0300 0002000000000000
        0c00 0500 0501000000000000
        0c00 0400 1e00000000000000
        0c00 0800 b400000000000000
        0a00 0a00 61626364 65000000
        1c00 0780 0c00 0180 0800 0100 09000000 0c00 0180 0800 0100 0a000000";
    let bytes = connect(0x20, 1, &device);
    assert_eq!(bytes, hex(wanted));
    // Any free one: no index at all.
    let any = connect(
        0x20,
        1,
        &Connect {
            index: None,
            ..device
        },
    );
    assert_eq!(any[20..], bytes[28..]);
}

#[test]
fn a_change_names_only_what_changes() {
    let mut change = Reconfigure {
        index: 3,
        backend: "a",
        size: Some(4096),
        timeouts: None,
        sockets: &[],
    };
    let head = "0500 01000000 00000000  03 01 0000 0800 0100 03000000 0600 0a00 61000000";
    let wanted = format!("30000000 2000 {head} 0c00 0200 0010000000000000");
    assert_eq!(reconfigure(0x20, 1, &change), hex(&wanted));
    change.size = None;
    change.sockets = &[5];
    let wanted = format!("34000000 2000 {head} 1000 0780 0c00 0180 0800 0100 05000000");
    assert_eq!(reconfigure(0x20, 1, &change), hex(&wanted));
    change.sockets = &[];
    change.timeouts = Some(TIMEOUTS);
    let wanted =
        format!("3c000000 2000 {head} 0c00 0400 1e00000000000000 0c00 0800 b400000000000000");
    assert_eq!(reconfigure(0x20, 1, &change), hex(&wanted));
}

#[test]
fn the_end_of_a_device_and_questions() {
    let wanted = "1c000000 2000 0500 02000000 00000000  02 01 0000 0800 0100 03000000";
    assert_eq!(disconnect(0x20, 2, 3), hex(wanted));
    let wanted = "1c000000 2000 0500 02000000 00000000  05 01 0000 0800 0100 03000000";
    assert_eq!(status(0x20, 2, Some(3)), hex(wanted));
    let wanted = "14000000 2000 0500 02000000 00000000  05 01 0000";
    assert_eq!(status(0x20, 2, None), hex(wanted));
}

#[test]
fn a_zero_byte_in_a_name_does_not_reach_the_kernel() {
    let change = |backend| Reconfigure {
        index: 3,
        backend,
        size: None,
        timeouts: None,
        sockets: &[],
    };
    assert_eq!(
        reconfigure(0x20, 1, &change("a\0b")),
        reconfigure(0x20, 1, &change("a"))
    );
}

fn answer(sequence: u32, message: Message) -> Answer {
    Answer { sequence, message }
}

#[test]
fn answers_are_understood() {
    // The family, its id, its groups; then the acknowledgement, in the same datagram.
    let bytes = "58000000 1000 0000 07000000 00000000  01 02 0000
        0800 0200 6e626400
        0600 0100 21000000
        0800 0300 01000000
        2800 0780 2400 0180  0800 0200 05000000  1100 0100 6e62645f6d635f67726f757000000000
                  0400 0000
        24000000 0200 0001 07000000 00000000 00000000 1c000000 1000 0500 07000000 00000000";
    let family = Family {
        id: 0x21,
        group: Some(5),
    };
    let mut bytes = hex(bytes);
    // Lengths are the test's own sum.
    let first = bytes.len() - 36;
    bytes[0] = u8::try_from(first).expect("short");
    assert_eq!(
        parse(&bytes, 0),
        Ok(vec![
            answer(7, Message::Family(family)),
            answer(7, Message::Done(0))
        ])
    );
    let connected = hex("1c000000 2100 0000 02000000 00000000  01 01 0000 0800 0100 0c000000");
    assert_eq!(
        parse(&connected, 0x21),
        Ok(vec![answer(2, Message::Connected { index: 12 })])
    );
    // The same of a family that is not ours.
    assert_eq!(parse(&connected, 0), Ok(vec![answer(2, Message::Other)]));
    let refused = hex("24000000 0200 0000 02000000 00000000 f0ffffff
        1c000000 2100 0500 02000000 00000000");
    assert_eq!(
        parse(&refused, 0x21),
        Ok(vec![answer(2, Message::Done(16))])
    );
    let dead = hex("1c000000 2100 0000 00000000 00000000  04 01 0000 0800 0100 0c000000");
    assert_eq!(
        parse(&dead, 0x21),
        Ok(vec![answer(0, Message::LinkDead { index: 12 })])
    );
    let devices = hex("44000000 2100 0000 02000000 00000000  05 01 0000
        3000 0980
        1400 0180 0800 0100 00000000 0500 0200 01000000
        1400 0180 0800 0100 01000000 0500 0200 00000000
        0400 0000");
    let line = |index, connected| DeviceStatus { index, connected };
    assert_eq!(
        parse(&devices, 0x21),
        Ok(vec![answer(
            2,
            Message::Status(vec![line(0, true), line(1, false)])
        )])
    );
}

#[test]
fn half_an_answer_is_none() {
    let whole = hex("1c000000 2100 0000 02000000 00000000  01 01 0000 0800 0100 0c000000");
    for len in 1..whole.len() {
        assert!(parse(&whole[..len], 0x21).is_err(), "{len} bytes");
    }
    // A length that does not move on.
    assert!(parse(&[0; 16], 0x21).is_err());
}

proptest! {
    #[test]
    fn garbage_is_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), family: u16) {
        let _ = parse(&bytes, family);
        let mut framed = bytes;
        if framed.len() >= 20 {
            let len = u32::try_from(framed.len()).expect("short");
            framed[..4].copy_from_slice(&len.to_ne_bytes());
            framed[4..6].copy_from_slice(&family.to_ne_bytes());
            let _ = parse(&framed, family);
        }
    }
}
