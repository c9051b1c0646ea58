//! How a connection starts, before any frame: who is there, for which resource, and do both know the
//! secret? Sans-I/O; the same for the data and the control socket, which are paired by the
//! connection id the dialler chose.
//!
//! ```text
//! dialler → HELLO      magic, versions, features, resource, node ids, channel, connection id, nonce
//! acceptor → WELCOME   version, features, node id, nonce, proof("acceptor", transcript)
//!         or REFUSED   reason
//! dialler → PROOF      proof("dialler", transcript)
//! acceptor → READY     or REFUSED reason
//! ```
//! A proof is HMAC-SHA-256 with the shared secret over a label and everything said so far. The
//! labels differ, so neither side's proof can be reflected; both nonces are in the transcript, so
//! nothing can be replayed. The acceptor proves itself first: it holds the secret of a resource the
//! dialler named, and an acceptor that cannot prove it learns nothing from the dialler but names. A
//! dialler without the secret learns whether the resource exists here, and nothing else.
//!
//! Every packet is: magic `TWINBLK\0` (8), type u8, length u16 LE, body (postcard, at most
//! [`MAX_BODY`] bytes).

use crate::auth::{PROOF_LEN, prove, same_proof};
use crate::{VERSION_MAX, VERSION_MIN};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"TWINBLK\0";
const HEAD: usize = 11;
/// Longest body of a packet in bytes.
pub const MAX_BODY: usize = 4096;

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const PROOF: u8 = 3;
const READY: u8 = 4;
const REFUSED: u8 = 5;

/// Which of the two sockets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SocketRole {
    /// Writes, barriers, resync data, ordered messages.
    Data,
    /// Acks and pings.
    Control,
}

/// What the dialler says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// Oldest version it speaks.
    pub version_min: u16,
    /// Newest version it speaks.
    pub version_max: u16,
    /// Feature bits it has.
    pub features: u64,
    /// Resource wanted.
    pub resource: String,
    /// Its node id.
    pub node_id: u8,
    /// Its node name, for messages.
    pub node_name: String,
    /// Node id it wants to reach.
    pub wants_node: u8,
    /// Which socket this is.
    pub socket: SocketRole,
    /// Pairs the two sockets; random.
    pub connection_id: u64,
    /// Random.
    pub nonce: [u8; 32],
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Welcome {
    version: u16,
    features: u64,
    node_id: u8,
    nonce: [u8; 32],
    proof: [u8; PROOF_LEN],
}

/// The connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    /// What the dialler said (on the dialler's side: its own words).
    pub hello: PeerHello,
    /// Version agreed.
    pub version: u16,
    /// Features both have.
    pub features: u64,
    /// Bytes received beyond the hello.
    pub leftover: Vec<u8>,
}

/// What came of feeding bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloProgress {
    /// Goes on.
    NeedMore,
    /// Done: send what is in `out`, then frames follow.
    Done(Established),
    /// Over: send what is in `out`, then close.
    Failed(HelloError),
}

/// Why it failed, and whose fault it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not one of ours at all.
    #[error("whoever is there does not speak twinblk")]
    NotTwinblk,
    /// A packet that breaks the rules.
    #[error("the hello cannot be understood")]
    Malformed,
    /// No common version.
    #[error(
        "no common protocol version: here {VERSION_MIN} to {VERSION_MAX}, there {min} to {max}; \
         upgrade the older side"
    )]
    Version {
        /// Oldest there.
        min: u16,
        /// Newest there.
        max: u16,
    },
    /// The other side said no.
    #[error("refused by the peer: {0}")]
    RefusedByPeer(String),
    /// This side said no.
    #[error("refused: {0}")]
    RefusedHere(String),
    /// The other side does not know the secret.
    #[error(
        "the peer does not know the shared secret: compare shared-secret in the configuration of both nodes"
    )]
    Secret,
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(kind);
    bytes.extend_from_slice(&u16::try_from(body.len()).unwrap_or(0).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn refused(text: &str) -> Vec<u8> {
    let mut end = text.len().min(1000);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    packet(REFUSED, &text.as_bytes()[..end])
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, HelloError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(HelloError::Malformed),
    }
}

/// Collects packets from bytes.
#[derive(Debug, Default)]
struct Packets(Vec<u8>);

impl Packets {
    /// The next packet, whole: (type, bytes with head).
    fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>, HelloError> {
        let known = self.0.len().min(8);
        if self.0[..known] != MAGIC[..known] {
            return Err(HelloError::NotTwinblk);
        }
        if self.0.len() < HEAD {
            return Ok(None);
        }
        let len = usize::from(u16::from_le_bytes([self.0[9], self.0[10]]));
        if len > MAX_BODY {
            return Err(HelloError::Malformed);
        }
        if self.0.len() < HEAD + len {
            return Ok(None);
        }
        let rest = self.0.split_off(HEAD + len);
        let whole = core::mem::replace(&mut self.0, rest);
        Ok(Some((whole[8], whole)))
    }
}

fn refusal_text(whole: &[u8]) -> HelloError {
    HelloError::RefusedByPeer(String::from_utf8_lossy(&whole[HEAD..]).to_string())
}

/// The side that connects.
#[derive(Debug)]
pub struct Dialler {
    hello: PeerHello,
    secret: Vec<u8>,
    transcript: Vec<u8>,
    packets: Packets,
    agreed: Option<(u16, u64)>,
}

impl Dialler {
    /// `hello.version_min/max` are set here.
    pub fn new(mut hello: PeerHello, secret: &[u8]) -> Self {
        (hello.version_min, hello.version_max) = (VERSION_MIN, VERSION_MAX);
        Self {
            hello,
            secret: secret.to_vec(),
            transcript: Vec::new(),
            packets: Packets::default(),
            agreed: None,
        }
    }

    /// The first bytes to send.
    pub fn start(&mut self) -> Vec<u8> {
        let bytes = packet(HELLO, &encode(&self.hello));
        self.transcript.extend_from_slice(&bytes);
        bytes
    }

    /// Takes bytes from the acceptor.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> HelloProgress {
        self.packets.0.extend_from_slice(input);
        loop {
            match self.step(out) {
                Ok(Some(done)) => return HelloProgress::Done(done),
                Ok(None) => return HelloProgress::NeedMore,
                Err(None) => {}
                Err(Some(error)) => return HelloProgress::Failed(error),
            }
        }
    }

    /// `Err(None)`: a packet was used up, look for the next.
    fn step(&mut self, out: &mut Vec<u8>) -> Result<Option<Established>, Option<HelloError>> {
        let Some((kind, whole)) = self.packets.next().map_err(Some)? else {
            return Ok(None);
        };
        match (kind, self.agreed) {
            (REFUSED, _) => Err(Some(refusal_text(&whole))),
            (WELCOME, None) => {
                let welcome: Welcome = decode(&whole[HEAD..]).map_err(Some)?;
                let Some(agreed) = self.check_welcome(&welcome) else {
                    out.extend_from_slice(&refused("the shared secret differs"));
                    return Err(Some(HelloError::Secret));
                };
                if welcome.node_id != self.hello.wants_node {
                    let text = format!(
                        "node id {} answers where {} is expected",
                        welcome.node_id, self.hello.wants_node
                    );
                    out.extend_from_slice(&refused(&text));
                    return Err(Some(HelloError::RefusedHere(text)));
                }
                self.transcript.extend_from_slice(&whole);
                self.agreed = Some(agreed);
                let proof = prove(&self.secret, "dialler", &self.transcript);
                out.extend_from_slice(&packet(PROOF, &proof));
                Err(None)
            }
            (READY, Some((version, features))) => Ok(Some(Established {
                hello: self.hello.clone(),
                version,
                features,
                leftover: core::mem::take(&mut self.packets.0),
            })),
            _ => Err(Some(HelloError::Malformed)),
        }
    }

    fn check_welcome(&self, welcome: &Welcome) -> Option<(u16, u64)> {
        let said = acceptor_words(&self.transcript, welcome);
        let proof = prove(&self.secret, "acceptor", &said);
        same_proof(&proof, &welcome.proof).then_some((welcome.version, welcome.features))
    }
}

/// What the acceptor's proof covers: everything before it and its own words.
fn acceptor_words(transcript: &[u8], welcome: &Welcome) -> Vec<u8> {
    let mut said = transcript.to_vec();
    said.extend_from_slice(&welcome.version.to_le_bytes());
    said.extend_from_slice(&welcome.features.to_le_bytes());
    said.push(welcome.node_id);
    said.extend_from_slice(&welcome.nonce);
    said
}

/// As whom the acceptor answers.
#[derive(Clone, Debug)]
pub struct AcceptAs {
    /// Its node id.
    pub node_id: u8,
    /// Features it has.
    pub features: u64,
    /// The resource's secret.
    pub secret: Vec<u8>,
}

/// The side that is connected to.
#[derive(Debug)]
pub struct Acceptor {
    nonce: [u8; 32],
    transcript: Vec<u8>,
    packets: Packets,
    greeted: Option<(PeerHello, Vec<u8>, u16, u64)>,
    dialler: Option<PeerHello>,
}

impl Acceptor {
    /// `nonce`: random.
    pub fn new(nonce: [u8; 32]) -> Self {
        Self {
            nonce,
            transcript: Vec::new(),
            packets: Packets::default(),
            greeted: None,
            dialler: None,
        }
    }

    /// Who says to dial, once said, for messages about a failure: nothing of it is proved.
    pub fn dialler(&self) -> Option<&PeerHello> {
        self.dialler.as_ref()
    }

    /// Takes bytes from the dialler. `choose` answers as whom to accept it, or why not.
    pub fn feed(
        &mut self,
        input: &[u8],
        choose: &dyn Fn(&PeerHello) -> Result<AcceptAs, String>,
        out: &mut Vec<u8>,
    ) -> HelloProgress {
        self.packets.0.extend_from_slice(input);
        loop {
            match self.step(choose, out) {
                Ok(Some(done)) => return HelloProgress::Done(done),
                Ok(None) => return HelloProgress::NeedMore,
                Err(None) => {}
                Err(Some(error)) => return HelloProgress::Failed(error),
            }
        }
    }

    fn step(
        &mut self,
        choose: &dyn Fn(&PeerHello) -> Result<AcceptAs, String>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Established>, Option<HelloError>> {
        let Some((kind, whole)) = self.packets.next().map_err(Some)? else {
            return Ok(None);
        };
        match (kind, self.greeted.take()) {
            (HELLO, None) => {
                // A newer version may say more behind what this one knows.
                let (hello, _): (PeerHello, _) = postcard::take_from_bytes(&whole[HEAD..])
                    .map_err(|_| Some(HelloError::Malformed))?;
                self.dialler = Some(hello.clone());
                let (min, max) = (hello.version_min, hello.version_max);
                let version = max.min(VERSION_MAX);
                if version < min.max(VERSION_MIN) {
                    let error = HelloError::Version { min, max };
                    let text = format!(
                        "no common protocol version: this node speaks {VERSION_MIN} to \
                         {VERSION_MAX}, yours {min} to {max}; upgrade the older side"
                    );
                    out.extend_from_slice(&refused(&text));
                    return Err(Some(error));
                }
                let accept = match choose(&hello) {
                    Ok(accept) => accept,
                    Err(text) => {
                        out.extend_from_slice(&refused(&text));
                        return Err(Some(HelloError::RefusedHere(text)));
                    }
                };
                self.transcript.extend_from_slice(&whole);
                let features = accept.features & hello.features;
                let mut welcome = Welcome {
                    version,
                    features,
                    node_id: accept.node_id,
                    nonce: self.nonce,
                    proof: [0; PROOF_LEN],
                };
                let said = acceptor_words(&self.transcript, &welcome);
                welcome.proof = prove(&accept.secret, "acceptor", &said);
                let bytes = packet(WELCOME, &encode(&welcome));
                self.transcript.extend_from_slice(&bytes);
                out.extend_from_slice(&bytes);
                self.greeted = Some((hello, accept.secret, version, features));
                Err(None)
            }
            (PROOF, Some((hello, secret, version, features))) => {
                let expected = prove(&secret, "dialler", &self.transcript);
                if !same_proof(&expected, &whole[HEAD..]) {
                    out.extend_from_slice(&refused("the shared secret differs"));
                    return Err(Some(HelloError::Secret));
                }
                out.extend_from_slice(&packet(READY, &[]));
                let leftover = core::mem::take(&mut self.packets.0);
                Ok(Some(Established {
                    hello,
                    version,
                    features,
                    leftover,
                }))
            }
            (REFUSED, _) => Err(Some(refusal_text(&whole))),
            _ => Err(Some(HelloError::Malformed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> PeerHello {
        PeerHello {
            version_min: 0,
            version_max: 0,
            features: 7,
            resource: "r0".into(),
            node_id: 0,
            node_name: "alpha".into(),
            wants_node: 1,
            socket: SocketRole::Data,
            connection_id: 99,
            nonce: [1; 32],
        }
    }

    fn accept(secret: &'static [u8], node: u8) -> impl Fn(&PeerHello) -> Result<AcceptAs, String> {
        move |h| match h.resource.as_str() {
            "r0" => Ok(AcceptAs {
                node_id: node,
                features: 5,
                secret: secret.to_vec(),
            }),
            other => Err(format!("no resource {other} here")),
        }
    }

    /// Runs both sides in pieces; answers (dialler, acceptor).
    fn run(
        mut d: Dialler,
        choose: &dyn Fn(&PeerHello) -> Result<AcceptAs, String>,
        step: usize,
    ) -> (HelloProgress, HelloProgress) {
        let mut a = Acceptor::new([2; 32]);
        let (mut to_a, mut to_d) = (d.start(), Vec::new());
        let (mut pd, mut pa) = (HelloProgress::NeedMore, HelloProgress::NeedMore);
        while !to_a.is_empty() || !to_d.is_empty() {
            for piece in core::mem::take(&mut to_a).chunks(step) {
                if pa == HelloProgress::NeedMore {
                    pa = a.feed(piece, choose, &mut to_d);
                }
            }
            for piece in core::mem::take(&mut to_d).chunks(step) {
                if pd == HelloProgress::NeedMore {
                    pd = d.feed(piece, &mut to_a);
                }
            }
        }
        (pd, pa)
    }

    #[test]
    fn both_agree_when_both_know_the_secret() {
        for step in [1, 5, 4096] {
            let (d, a) = run(Dialler::new(hello(), b"s"), &accept(b"s", 1), step);
            let HelloProgress::Done(d) = d else {
                panic!("{d:?}")
            };
            let HelloProgress::Done(a) = a else {
                panic!("{a:?}")
            };
            assert_eq!((d.version, d.features), (VERSION_MAX, 5));
            assert_eq!(a.hello.connection_id, 99);
        }
    }

    #[test]
    fn every_failure_is_told_to_both_sides() {
        let (d, a) = run(Dialler::new(hello(), b"s"), &accept(b"x", 1), 7);
        assert_eq!(d, HelloProgress::Failed(HelloError::Secret));
        let HelloProgress::Failed(HelloError::RefusedByPeer(text)) = a else {
            panic!("{a:?}")
        };
        assert!(text.contains("secret"), "{text}");

        let other = PeerHello {
            resource: "r9".into(),
            ..hello()
        };
        let (d, a) = run(Dialler::new(other, b"s"), &accept(b"s", 1), 7);
        let HelloProgress::Failed(HelloError::RefusedByPeer(text)) = d else {
            panic!("{d:?}")
        };
        assert_eq!(text, "no resource r9 here");
        assert!(matches!(
            a,
            HelloProgress::Failed(HelloError::RefusedHere(_))
        ));

        let (d, _) = run(Dialler::new(hello(), b"s"), &accept(b"s", 4), 7);
        assert!(
            matches!(d, HelloProgress::Failed(HelloError::RefusedHere(_))),
            "wrong node"
        );

        let mut newer = Dialler::new(hello(), b"s");
        (newer.hello.version_min, newer.hello.version_max) = (50, 60);
        let (d, a) = run(newer, &accept(b"s", 1), 7);
        let HelloProgress::Failed(HelloError::RefusedByPeer(text)) = d else {
            panic!("{d:?}")
        };
        assert!(
            text.contains("50 to 60") && text.contains("upgrade"),
            "{text}"
        );
        assert_eq!(
            a,
            HelloProgress::Failed(HelloError::Version { min: 50, max: 60 })
        );
    }

    #[test]
    fn an_acceptor_that_reflects_or_guesses_fails() {
        // Without the secret an acceptor can only guess; and a dialler without it is found out too.
        let mut a = Acceptor::new([2; 32]);
        let mut d = Dialler::new(hello(), b"right");
        let mut out = Vec::new();
        a.feed(&d.start(), &accept(b"right", 1), &mut out);
        let guess = packet(PROOF, &[0; PROOF_LEN]);
        let progress = a.feed(&guess, &accept(b"right", 1), &mut out);
        assert_eq!(progress, HelloProgress::Failed(HelloError::Secret));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), ours: bool) {
            let mut bytes = bytes;
            if ours {
                bytes.splice(0..0, MAGIC.iter().copied());
            }
            let mut out = Vec::new();
            let _ = Acceptor::new([0; 32]).feed(&bytes, &accept(b"s", 1), &mut out);
            let _ = Dialler::new(hello(), b"s").feed(&bytes, &mut out);
        }
    }
}
