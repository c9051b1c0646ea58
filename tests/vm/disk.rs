//! A disk that loses power as disks do: it has a volatile cache.
//!
//! A guest sees it as `/dev/vda`, through QEMU's NBD client, which passes the guest's flushes on. What
//! was written and not flushed is read back as written, and is at risk: when the power is cut, each such
//! write is lost, kept, or torn (some of its sectors of 512 bytes are lost), as the seed has it. What was
//! flushed stays. The cache is bounded, as a disk's is: beyond [`CACHE`] bytes the oldest writes reach
//! the medium by themselves.
//!
//! The server is written from the NBD specification, apart from the library under test.

use crate::harness::seeds::Rng;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that may be in the cache.
pub(crate) const CACHE: usize = 8 << 20;
const SECTOR: usize = 512;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;
/// HAS_FLAGS, SEND_FLUSH, SEND_WRITE_ZEROES. No SEND_FUA: QEMU writes and flushes instead.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 6;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const MAX_REQUEST: u32 = 32 << 20;

/// See the module. Its threads end with the process.
#[derive(Debug)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
}

#[derive(Debug)]
struct State {
    /// What a read returns.
    now: Vec<u8>,
    /// What is left when the power is cut and nothing in the cache is lucky.
    medium: Vec<u8>,
    cache: VecDeque<Cached>,
    cached: usize,
    /// Counts power cuts; a connection from before the last one is dead.
    life: u64,
    flushes: u64,
}

#[derive(Debug)]
struct Cached {
    offset: usize,
    data: Vec<u8>,
}

/// What a power cut did to the writes in the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) lost: u32,
    pub(crate) torn: u32,
    pub(crate) kept: u32,
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.lost + self.torn + self.kept;
        write!(f, "{all} unflushed: {} lost, {} torn", self.lost, self.torn)
    }
}

impl Disk {
    /// An empty disk of `size` bytes, served at `socket`.
    pub(crate) fn new(socket: &Path, size: usize) -> Self {
        let state = State {
            now: vec![0; size],
            medium: vec![0; size],
            cache: VecDeque::new(),
            cached: 0,
            life: 0,
            flushes: 0,
        };
        let disk = Self {
            state: Arc::new(Mutex::new(state)),
            socket: socket.to_owned(),
        };
        let listener = UnixListener::bind(socket).expect("a socket in a fresh directory");
        let state = Arc::clone(&disk.state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                // A connection that breaks is a guest that died: nobody to tell.
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        disk
    }

    /// Where it is served.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Cuts the power. The machine that uses it must be dead already.
    pub(crate) fn cut(&self, rng: &mut Rng) -> Cut {
        self.state().cut(rng)
    }

    /// The first `size` bytes as a machine that reads them now sees them.
    pub(crate) fn content(&self, size: u64) -> Vec<u8> {
        self.state().now[..usize::try_from(size).expect("fits")].to_vec()
    }

    /// Bytes in the cache that a power cut may take, at this moment.
    pub(crate) fn at_risk(&self) -> usize {
        self.state().cached
    }

    /// Flushes that were asked of it, ever.
    pub(crate) fn flushes(&self) -> u64 {
        self.state().flushes
    }
}

impl State {
    fn write(&mut self, offset: usize, data: Vec<u8>) {
        self.now[offset..offset + data.len()].copy_from_slice(&data);
        self.cached += data.len();
        self.cache.push_back(Cached { offset, data });
        while self.cached > CACHE {
            self.settle_oldest();
        }
    }

    fn settle_oldest(&mut self) {
        if let Some(Cached { offset, data }) = self.cache.pop_front() {
            self.cached -= data.len();
            self.medium[offset..offset + data.len()].copy_from_slice(&data);
        }
    }

    fn flush(&mut self) {
        self.flushes += 1;
        while !self.cache.is_empty() {
            self.settle_oldest();
        }
    }

    /// Writes are judged in their order, so an old write that stays never covers a newer one that stays.
    fn cut(&mut self, rng: &mut Rng) -> Cut {
        let mut cut = Cut::default();
        // Now and then a cut takes everything, now and then next to nothing.
        let luck = [0, 1, 5, 9][usize::try_from(rng.below(4)).expect("small")];
        for Cached { offset, data } in std::mem::take(&mut self.cache) {
            let torn = rng.below(4) == 0 && data.len() > SECTOR;
            let kept = rng.below(10) < luck;
            match (torn && luck > 0, kept) {
                (true, _) => cut.torn += 1,
                (false, true) => cut.kept += 1,
                (false, false) => cut.lost += 1,
            }
            for (at, sector) in data.chunks(SECTOR).enumerate() {
                let stays = if torn && luck > 0 {
                    rng.below(2) == 0
                } else {
                    kept
                };
                if stays {
                    let at = offset + at * SECTOR;
                    self.medium[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        self.cached = 0;
        self.now.copy_from_slice(&self.medium);
        self.life += 1;
        cut
    }
}

/// One connection, from negotiation to its end.
fn serve(mut stream: UnixStream, state: &Mutex<State>) -> Result<()> {
    let (size, life) = {
        let state = state.lock().expect("no holder panics");
        (state.now.len(), state.life)
    };
    negotiate(&mut stream, size as u64)?;
    loop {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        let number = |from: usize, to: usize| {
            head[from..to]
                .iter()
                .fold(0u64, |n, byte| n << 8 | u64::from(*byte))
        };
        if number(0, 4) != 0x2560_9513 {
            return Err(Error::new(ErrorKind::InvalidData, "not a request"));
        }
        let kind = u16::try_from(number(6, 8)).expect("two bytes");
        let len = usize::try_from(number(24, 28)).expect("fits");
        let offset = usize::try_from(number(16, 24)).expect("fits");
        let mut data = Vec::new();
        if kind == WRITE {
            if len > MAX_REQUEST as usize {
                return Err(Error::new(ErrorKind::InvalidData, "too long"));
            }
            data.resize(len, 0);
            stream.read_exact(&mut data)?;
        }
        if kind == DISC {
            return Ok(());
        }
        let inside = offset.checked_add(len).is_some_and(|end| end <= size);
        let mut answer = 0x6744_6698u32.to_be_bytes().to_vec();
        let mut payload: Vec<u8> = Vec::new();
        let mut locked = state.lock().expect("no holder panics");
        if locked.life != life {
            return Ok(());
        }
        let errno = match kind {
            FLUSH => {
                locked.flush();
                0
            }
            _ if !inside => EINVAL,
            READ if len <= MAX_REQUEST as usize => {
                payload.extend(&locked.now[offset..offset + len]);
                0
            }
            WRITE => {
                locked.write(offset, data);
                0
            }
            WRITE_ZEROES => {
                locked.write(offset, vec![0; len]);
                0
            }
            _ => EIO,
        };
        drop(locked);
        answer.extend(errno.to_be_bytes());
        answer.extend(&head[8..16]);
        answer.extend(payload);
        stream.write_all(&answer)?;
    }
}

/// Fixed newstyle; every name is the disk's; no structured replies.
fn negotiate(stream: &mut UnixStream, size: u64) -> Result<()> {
    const IHAVEOPT: &[u8; 8] = b"IHAVEOPT";
    const EXPORT_NAME: u32 = 1;
    const ABORT: u32 = 2;
    const INFO: u32 = 6;
    const GO: u32 = 7;
    const REP_ACK: u32 = 1;
    const REP_INFO: u32 = 3;
    const REP_UNSUPPORTED: u32 = 1 << 31 | 1;
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four"));
        let (option, len) = (word(8), word(12));
        if head[..8] != *IHAVEOPT || len > 4096 {
            return Err(Error::new(ErrorKind::InvalidData, "not an option"));
        }
        stream.read_exact(&mut vec![0; len as usize])?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
            bytes.extend(data);
            stream.write_all(&bytes)
        };
        let export = [&size.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat();
        match option {
            EXPORT_NAME => return stream.write_all(&export),
            ABORT => {
                reply(REP_ACK, &[])?;
                return Err(Error::new(ErrorKind::ConnectionAborted, "it left"));
            }
            INFO | GO => {
                reply(REP_INFO, &[&[0, 0][..], &export].concat())?;
                let block = [512u32, 4096, MAX_REQUEST].map(u32::to_be_bytes).concat();
                reply(REP_INFO, &[&[0, 3][..], &block].concat())?;
                reply(REP_ACK, &[])?;
                if option == GO {
                    return Ok(());
                }
            }
            _ => reply(REP_UNSUPPORTED, &[])?,
        }
    }
}
