//! The negotiation against the crate's own client, in pieces of every size, and against garbage.

use proptest::prelude::*;
use userspace_nbd::client::{ClientError, ClientNegotiation};
use userspace_nbd::constants::{IHAVEOPT, opt, rep};
use userspace_nbd::export::{BlockSize, Export, TransmissionFlags};
use userspace_nbd::negotiation::{Exports, Lookup, MAX_OPTION, Negotiation, Progress};

struct Two;

fn export() -> Export {
    Export {
        name: "r0".into(),
        description: "a disk".into(),
        size: 1 << 30,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
        block_size: BlockSize {
            minimum: 512,
            preferred: 4096,
            maximum: 4 << 20,
        },
        meta_contexts: vec!["base:allocation".into(), "x:dirty".into()],
    }
}

impl Exports for Two {
    fn lookup(&self, name: &str) -> Lookup {
        match name {
            "" | "r0" => Lookup::Found(export()),
            "r1" => Lookup::Refused {
                policy_text: "r1 is Secondary on bravo".into(),
            },
            _ => Lookup::Unknown,
        }
    }

    fn list(&self) -> Vec<(String, String)> {
        vec![("r0".into(), "a disk".into()), ("r1".into(), String::new())]
    }
}

/// Both sides talk in pieces of `step` bytes.
fn talk(name: &str, step: usize) -> (Progress, Result<u64, ClientError>) {
    let mut server = Negotiation::new();
    let mut client = ClientNegotiation::new(name);
    let mut to_client = server.greeting();
    let mut to_server = Vec::new();
    let mut progress = Progress::NeedMore;
    loop {
        for piece in std::mem::take(&mut to_client).chunks(step) {
            match client.feed(piece, &mut to_server) {
                Ok(Some(info)) => return (progress, Ok(info.size)),
                Ok(None) => {}
                Err(e) => return (progress, Err(e)),
            }
        }
        assert!(
            !to_server.is_empty(),
            "one side always has something to say"
        );
        for piece in std::mem::take(&mut to_server).chunks(step) {
            progress = server.feed(piece, &Two, &mut to_client);
        }
    }
}

#[test]
fn go_enters_and_refusals_carry_their_words() {
    for step in [1, 3, 7, 64, 4096] {
        let (server, client) = talk("r0", step);
        assert_eq!(client, Ok(1 << 30));
        let Progress::Done(session) = server else {
            panic!("{server:?}")
        };
        assert!(session.block_size_negotiated && !session.structured);
        let refused = |kind, text: &str| {
            Err(ClientError::Refused {
                kind,
                text: text.into(),
            })
        };
        assert_eq!(
            talk("r1", step).1,
            refused(rep::ERR_POLICY, "r1 is Secondary on bravo")
        );
        let unknown = refused(rep::ERR_UNKNOWN, "no export is called \"nope\"");
        assert_eq!(talk("nope", step).1, unknown);
    }
}

fn option(number: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn set_context(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut p = (name.len() as u32).to_be_bytes().to_vec();
    p.extend_from_slice(name.as_bytes());
    p.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for q in queries {
        p.extend_from_slice(&(q.len() as u32).to_be_bytes());
        p.extend_from_slice(q.as_bytes());
    }
    option(opt::SET_META_CONTEXT, &p)
}

fn feed_all(parts: &[Vec<u8>]) -> (Vec<u32>, Progress) {
    let mut server = Negotiation::new();
    let mut out = Vec::new();
    let mut input = 3u32.to_be_bytes().to_vec();
    parts.iter().for_each(|p| input.extend_from_slice(p));
    let progress = server.feed(&input, &Two, &mut out);
    let mut kinds = Vec::new();
    let mut rest = &out[..];
    while rest.len() >= 20 && rest[..8] == [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9] {
        kinds.push(u32::from_be_bytes([rest[12], rest[13], rest[14], rest[15]]));
        let len = u32::from_be_bytes([rest[16], rest[17], rest[18], rest[19]]) as usize;
        rest = &rest[20 + len..];
    }
    (kinds, progress)
}

#[test]
fn contexts_need_structured_replies_and_bind_to_the_export_entered() {
    let go = option(opt::GO, &[0, 0, 0, 2, b'r', b'0', 0, 0]);
    let structured = option(opt::STRUCTURED_REPLY, &[]);
    let set = set_context("r0", &["base:allocation", "unknown:x"]);
    let (kinds, progress) = feed_all(&[set.clone(), structured.clone(), set, go.clone()]);
    assert_eq!(
        kinds[..4],
        [rep::ERR_INVALID, rep::ACK, rep::META_CONTEXT, rep::ACK]
    );
    let Progress::Done(session) = progress else {
        panic!("{progress:?}")
    };
    assert!(session.structured);
    let names: Vec<&str> = session.contexts.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["base:allocation"]);
    let elsewhere = set_context("r1", &["base:allocation"]);
    let (kinds, progress) = feed_all(&[structured, elsewhere, go]);
    assert_eq!(kinds[1], rep::ERR_POLICY);
    let Progress::Done(session) = progress else {
        panic!("{progress:?}")
    };
    assert!(session.contexts.is_empty());
}

#[test]
fn odd_options_are_answered_and_the_connection_goes_on() {
    let (kinds, progress) = feed_all(&[
        option(99, b"what"),
        option(opt::STARTTLS, &[]),
        option(opt::GO, b"\0\0\0\x09short"),
        option(opt::STRUCTURED_REPLY, b"x"),
        option(77, &vec![0; MAX_OPTION + 1]),
        option(opt::LIST, &[]),
        option(opt::ABORT, &[]),
    ]);
    let want = [
        rep::ERR_UNSUP,
        rep::ERR_UNSUP,
        rep::ERR_INVALID,
        rep::ERR_INVALID,
        rep::ERR_TOO_BIG,
        rep::SERVER,
        rep::SERVER,
        rep::ACK,
        rep::ACK,
    ];
    assert_eq!(kinds, want);
    assert_eq!(progress, Progress::Aborted);
}

#[test]
fn bytes_beyond_the_negotiation_are_kept() {
    let mut extra = option(opt::EXPORT_NAME, b"r0");
    extra.extend_from_slice(b"first request");
    let (_, progress) = feed_all(&[extra]);
    let Progress::Done(session) = progress else {
        panic!("{progress:?}")
    };
    assert_eq!(session.leftover, b"first request");
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000), valid: bool) {
        let mut server = Negotiation::new();
        let mut out = Vec::new();
        if valid {
            server.feed(&3u32.to_be_bytes(), &Two, &mut out);
            server.feed(&IHAVEOPT.to_be_bytes(), &Two, &mut out);
        }
        for piece in bytes.chunks(13) {
            server.feed(piece, &Two, &mut out);
        }
        prop_assert!(out.len() < 1 << 20);
    }
}
