//! Options of TCP sockets: how a partner that died without a word is noticed.

use rustix::net::sockopt;
use std::os::fd::AsFd;
use std::time::Duration;

/// Silence before the kernel asks whether the other side is still there.
const IDLE: Duration = Duration::from_secs(30);
/// Time between two such questions.
const INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered questions until the connection counts as dead.
const COUNT: u32 = 3;
/// How long an answer may lie in the send queue without the client taking anything.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);

/// For an NBD client. A client whose machine died would hold the export for ever: the node could not
/// become Secondary, and the buffers of the client's requests would stay taken.
pub(crate) fn prepare_client(socket: &impl AsFd) {
    let result = keep_alive(socket).and_then(|()| {
        // While data are under way the kernel asks nothing; then this limit counts.
        let limit = u32::try_from(CLIENT_PATIENCE.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, limit)
    });
    told(result);
}

/// For a peer, whichever side dialled. There is no TCP_USER_TIMEOUT: the peers ping each other, and
/// `ping-timeout`, `timeout` and `ko-count` decide when one is given up. The kernel's questions only
/// end what a loop does not look at, such as a socket whose sibling never came.
pub(crate) fn prepare_peer(socket: &impl AsFd) {
    told(keep_alive(socket).and_then(|()| sockopt::set_tcp_nodelay(socket, true)));
}

fn keep_alive(socket: &impl AsFd) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, IDLE)?;
    sockopt::set_tcp_keepintvl(socket, INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, COUNT)
}

/// The connection works without them as well.
fn told(result: rustix::io::Result<()>) {
    if let Err(e) = result {
        tracing::debug!("a socket option was refused: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_partner_is_noticed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let connect = || std::net::TcpStream::connect(listener.local_addr().expect("an address"));
        let (client, peer) = (
            connect().expect("it listens"),
            connect().expect("it listens"),
        );
        prepare_client(&client);
        prepare_peer(&peer);
        for socket in [&client, &peer] {
            assert_eq!(sockopt::socket_keepalive(socket), Ok(true));
            assert_eq!(sockopt::tcp_keepidle(socket), Ok(IDLE));
            assert_eq!(sockopt::tcp_keepintvl(socket), Ok(INTERVAL));
            assert_eq!(sockopt::tcp_keepcnt(socket), Ok(COUNT));
        }
        assert_eq!(sockopt::tcp_user_timeout(&client), Ok(60_000));
        assert_eq!(sockopt::tcp_nodelay(&peer), Ok(true));
    }
}
