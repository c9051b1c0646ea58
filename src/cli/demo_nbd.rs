//! A very small NBD client for the demo: one connection, one request at a time.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

const NBD_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;

/// Longer than any answer takes on a healthy machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// A connection to an export.
#[derive(Debug)]
pub(super) struct NbdClient {
    stream: UnixStream,
    next: u64,
    /// Bytes of the export.
    pub(super) size: u64,
}

impl NbdClient {
    /// Connects to the default export behind a unix socket.
    pub(super) async fn connect(path: &Path) -> Result<Self> {
        patiently(async {
            let mut stream = UnixStream::connect(path).await?;
            let size = negotiate(&mut stream).await?;
            Ok(Self {
                stream,
                next: 1,
                size,
            })
        })
        .await
    }

    /// Reads into `data`.
    pub(super) async fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.request(CMD_READ, offset, data.len(), &[]).await?;
        patiently(async { self.stream.read_exact(data).await.map(|_| ()) }).await
    }

    /// Writes `data`; returns when the write is complete.
    pub(super) async fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.request(CMD_WRITE, offset, data.len(), data).await
    }

    /// Makes everything that was written stable.
    pub(super) async fn flush(&mut self) -> Result<()> {
        self.request(CMD_FLUSH, 0, 0, &[]).await
    }

    /// Says goodbye.
    pub(super) async fn close(mut self) {
        let header = header(CMD_DISC, self.next, 0, 0);
        let _ = self.stream.write_all(&header).await;
        let _ = self.stream.shutdown().await;
    }

    /// Sends a request and waits for the reply's header.
    async fn request(&mut self, kind: u16, offset: u64, len: usize, data: &[u8]) -> Result<()> {
        let handle = self.next;
        self.next += 1;
        let len = u32::try_from(len).map_err(|_| wrong("a request larger than 4 GiB"))?;
        patiently(async {
            let mut bytes = header(kind, handle, offset, len);
            bytes.extend_from_slice(data);
            self.stream.write_all(&bytes).await?;
            let magic = self.stream.read_u32().await?;
            let error = self.stream.read_u32().await?;
            let answered = self.stream.read_u64().await?;
            if magic != REPLY_MAGIC || answered != handle {
                return Err(wrong("a reply that is none"));
            }
            match i32::try_from(error) {
                Ok(0) => Ok(()),
                Ok(errno) => Err(Error::from_raw_os_error(errno)),
                Err(_) => Err(wrong("an impossible error number")),
            }
        })
        .await
    }
}

/// A request's header.
fn header(kind: u16, handle: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28 + len as usize);
    bytes.extend(REQUEST_MAGIC.to_be_bytes());
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(handle.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Fixed newstyle negotiation with NBD_OPT_GO; returns the export's size.
async fn negotiate(stream: &mut UnixStream) -> Result<u64> {
    if stream.read_u64().await? != NBD_MAGIC || stream.read_u64().await? != OPTION_MAGIC {
        return Err(wrong("no NBD server"));
    }
    let flags = stream.read_u16().await?;
    // Fixed newstyle, and no zeroes if the server can do without.
    stream.write_u32(u32::from(flags & 3)).await?;
    let mut go = Vec::new();
    go.extend(OPTION_MAGIC.to_be_bytes());
    go.extend(OPT_GO.to_be_bytes());
    // Length of the data: an empty name (the default export) and no information asked for.
    go.extend(6u32.to_be_bytes());
    go.extend([0; 6]);
    stream.write_all(&go).await?;
    let mut size = None;
    loop {
        if stream.read_u64().await? != OPTION_REPLY_MAGIC || stream.read_u32().await? != OPT_GO {
            return Err(wrong("an answer that is none"));
        }
        let kind = stream.read_u32().await?;
        let mut data = vec![0; stream.read_u32().await?.min(1 << 16) as usize];
        stream.read_exact(&mut data).await?;
        match kind {
            REP_ACK => return size.ok_or_else(|| wrong("an export without a size")),
            REP_INFO if data.len() >= 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&data[2..10]);
                size = Some(u64::from_be_bytes(bytes));
            }
            kind if kind & REP_ERROR != 0 => {
                let text = String::from_utf8_lossy(&data);
                return Err(Error::new(ErrorKind::PermissionDenied, text.into_owned()));
            }
            _ => {}
        }
    }
}

fn wrong(what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidData,
        format!("the NBD server sent {what}"),
    )
}

async fn patiently<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::TimedOut,
            "the NBD server does not answer",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// A server with one export of 64 KiB in memory; refuses with a text when told so.
    async fn serve(listener: UnixListener, refuse: bool) -> Result<()> {
        let (mut s, _) = listener.accept().await?;
        s.write_u64(NBD_MAGIC).await?;
        s.write_u64(OPTION_MAGIC).await?;
        s.write_u16(3).await?;
        assert_eq!(s.read_u32().await?, 3);
        let mut go = [0; 22];
        s.read_exact(&mut go).await?;
        let answer = |kind: u32, data: &[u8]| {
            let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            bytes.extend(OPT_GO.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes
        };
        if refuse {
            return s
                .write_all(&answer(REP_ERROR | 2, b"this node is Secondary"))
                .await;
        }
        let mut info = vec![0, 0];
        info.extend(65_536u64.to_be_bytes());
        info.extend([0, 1]);
        s.write_all(&answer(REP_INFO, &[0, 3, 1, 2, 3, 4])).await?;
        s.write_all(&answer(REP_INFO, &info)).await?;
        s.write_all(&answer(REP_ACK, &[])).await?;
        let mut memory = vec![0u8; 65_536];
        loop {
            assert_eq!(s.read_u32().await?, REQUEST_MAGIC);
            s.read_u16().await?;
            let kind = s.read_u16().await?;
            let (handle, offset) = (s.read_u64().await?, s.read_u64().await? as usize);
            let len = s.read_u32().await? as usize;
            let fits = offset + len <= memory.len();
            if kind == CMD_WRITE && fits {
                s.read_exact(&mut memory[offset..offset + len]).await?;
            }
            if kind == CMD_DISC {
                return Ok(());
            }
            s.write_u32(REPLY_MAGIC).await?;
            s.write_u32(if fits { 0 } else { 22 }).await?;
            s.write_u64(handle).await?;
            if kind == CMD_READ && fits {
                s.write_all(&memory[offset..offset + len]).await?;
            }
        }
    }

    #[tokio::test]
    async fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = tokio::spawn(serve(UnixListener::bind(&path).unwrap(), false));
        let mut client = NbdClient::connect(&path).await.unwrap();
        assert_eq!(client.size, 65_536);
        client.write(4096, &[7; 512]).await.unwrap();
        client.flush().await.unwrap();
        let mut data = [0; 1024];
        client.read(3584, &mut data).await.unwrap();
        assert_eq!((data[511], data[512]), (0, 7));
        let error = client.read(65_536, &mut data).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(22));
        client.close().await;
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = tokio::spawn(serve(UnixListener::bind(&path).unwrap(), true));
        let error = NbdClient::connect(&path).await.unwrap_err();
        assert_eq!(error.to_string(), "this node is Secondary");
        server.await.unwrap().unwrap();
    }
}
