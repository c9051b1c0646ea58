//! The files of unix sockets: whose they are, and that they go with their daemon.

use std::path::{Path, PathBuf};

/// The file of a socket that this daemon bound. It is removed when this is dropped, however the daemon
/// ends, so that nobody takes a dead daemon for one that does not answer.
#[derive(Debug)]
pub(crate) struct SocketFile(pub(super) PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes the socket file a dead daemon left. Only a refused connection proves that it is dead: a
/// living one may be busy, or not talk to this user. In doubt the error says what is there.
pub(crate) async fn remove_stale(path: &Path) -> Result<(), String> {
    use std::io::ErrorKind;
    use std::os::unix::fs::FileTypeExt;
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(format!("{shown}: {e}")),
        Ok(m) if !m.file_type().is_socket() => {
            return Err(format!(
                "{shown} is there and is no socket; move it away, or choose another path"
            ));
        }
        Ok(_) => {}
    }
    match tokio::net::UnixStream::connect(path).await {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|e| {
                format!("{shown}, the socket of a program that is gone, cannot be removed: {e}")
            })
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(format!(
            "another program listens on {shown}; stop it, or choose another path"
        )),
        Err(e) => Err(format!(
            "{shown} may be the socket of a living program ({e}); stop that program, or remove the \
             file if there is none"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

    #[tokio::test]
    async fn only_what_nobody_listens_on_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        remove_stale(&path).await.expect("nothing is there");
        // Nobody any more.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("it is free"));
        remove_stale(&path).await.expect("it is dead");
        assert!(!path.exists());
        // A daemon that is too busy to accept.
        let address = SocketAddrUnix::new(&path).expect("an address");
        let busy = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        bind(&busy, &address).expect("it is free");
        listen(&busy, 0).expect("it listens");
        let text = remove_stale(&path).await.expect_err("it lives");
        assert!(text.contains("another program"), "{text}");
        // That question took the only place there was.
        let text = remove_stale(&path).await.expect_err("it lives");
        assert!(text.contains("living program"), "{text}");
        assert!(path.exists());
        // Something else altogether.
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").expect("a file");
        let text = remove_stale(&file).await.expect_err("no socket");
        assert!(text.contains("no socket"), "{text}");
        assert!(file.exists());
    }
}
