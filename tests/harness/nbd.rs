//! An NBD client that keeps many requests in flight, on a unix or TCP socket. Negotiation is the
//! library's; the transmission phase is written here from the specification, so that a mistake of the
//! library's server side does not cancel itself out. Simple replies only.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use userspace_nbd::client::{ClientError, ClientNegotiation, ExportInfo};

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const FUA: u16 = 1;

/// A socket.
pub trait Socket: Read + Write + Send + std::fmt::Debug {
    fn limit(&self, time: Option<Duration>);
}

impl Socket for UnixStream {
    fn limit(&self, time: Option<Duration>) {
        self.set_read_timeout(time).expect("a time limit");
        self.set_write_timeout(time).expect("a time limit");
    }
}

impl Socket for TcpStream {
    fn limit(&self, time: Option<Duration>) {
        self.set_read_timeout(time).expect("a time limit");
        self.set_write_timeout(time).expect("a time limit");
    }
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    pub socket: Box<dyn Socket>,
    pub info: ExportInfo,
}

/// Why a client did not get in.
#[derive(Debug)]
pub enum EnterError {
    Io(Error),
    Refused(ClientError),
}

impl Client {
    pub fn unix(path: &Path) -> std::result::Result<Self, EnterError> {
        Self::enter(Box::new(UnixStream::connect(path).map_err(EnterError::Io)?))
    }

    pub fn tcp(address: &str) -> std::result::Result<Self, EnterError> {
        Self::enter(Box::new(
            TcpStream::connect(address).map_err(EnterError::Io)?,
        ))
    }

    fn enter(mut socket: Box<dyn Socket>) -> std::result::Result<Self, EnterError> {
        socket.limit(Some(super::PATIENCE));
        let mut negotiation = ClientNegotiation::new("r0");
        let mut bytes = [0; 1];
        loop {
            socket.read_exact(&mut bytes).map_err(EnterError::Io)?;
            let mut out = Vec::new();
            let step = negotiation
                .feed(&bytes, &mut out)
                .map_err(EnterError::Refused)?;
            socket.write_all(&out).map_err(EnterError::Io)?;
            if let Some(info) = step {
                return Ok(Self { socket, info });
            }
        }
    }

    /// Sends a request; the answer comes later, with the same cookie.
    pub fn send(
        &mut self,
        kind: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<()> {
        self.socket
            .write_all(&request(kind, flags, cookie, offset, len, data))
    }

    /// The next answer: cookie and error number. The data of a read are still to come.
    pub fn receive(&mut self) -> Result<(u64, u32)> {
        let mut head = [0; 16];
        self.socket.read_exact(&mut head)?;
        userspace_nbd::client::parse_simple_reply(&head)
            .ok_or_else(|| Error::new(ErrorKind::InvalidData, "not a reply"))
    }

    fn call(&mut self, kind: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> Result<()> {
        self.send(kind, flags, 7, offset, len, data)?;
        match self.receive()? {
            (7, 0) => Ok(()),
            (7, errno) => Err(Error::from_raw_os_error(
                errno.try_into().expect("an errno"),
            )),
            (other, _) => panic!("answer to request {other} which was not sent"),
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.call(WRITE, 0, offset, data.len().try_into().expect("fits"), data)
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.call(READ, 0, offset, len.try_into().expect("fits"), &[])?;
        let mut data = vec![0; len];
        self.socket.read_exact(&mut data)?;
        Ok(data)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.call(FLUSH, 0, 0, 0, &[])
    }

    pub fn zero(&mut self, offset: u64, len: u32) -> Result<()> {
        self.call(WRITE_ZEROES, 0, offset, len, &[])
    }

    /// Everything the export holds.
    pub fn read_all(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while (all.len() as u64) < self.info.size {
            let len = (self.info.size - all.len() as u64).min(1 << 20);
            all.extend(self.read(all.len() as u64, len as usize)?);
        }
        Ok(all)
    }

    /// Says goodbye and waits until the server has closed.
    pub fn disconnect(mut self) {
        let _ = self.send(DISC, 0, 0, 0, 0, &[]);
        let mut rest = Vec::new();
        let _ = self.socket.read_to_end(&mut rest);
        assert!(rest.is_empty(), "nothing comes after DISC");
    }
}

/// A request's bytes.
pub fn request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28 + data.len());
    bytes.extend(0x2560_9513u32.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    bytes
}
