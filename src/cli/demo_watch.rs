//! The demo's hands and eyes: orders, looking at the state, telling.

use super::client::Client;
use super::demo_nbd::NbdClient;
use super::demo_nodes::Node;
use super::exit::{CliError, Code};
use super::status_text;
use crate::api::{Order, ResourceStatus};
use std::io::Write;
use std::time::{Duration, Instant};

/// How long any state may take to come.
const PATIENCE: Duration = Duration::from_secs(15);

/// Connected, and both copies the same.
pub(super) fn in_sync(r: &ResourceStatus) -> bool {
    let mine = r.volumes.iter().all(|v| v.disk == "UpToDate");
    let mut theirs = r.peers.iter().flat_map(|p| &p.volumes);
    let theirs = theirs
        .all(|v| v.replication == "Established" && v.peer_disk == "UpToDate" && v.out_of_sync == 0);
    mine && theirs && r.peers.iter().all(|p| p.connection == "Connected")
}

/// Waits until the state of r0 on a node is as wished.
pub(super) async fn until(
    node: &Node,
    what: &str,
    wished: impl Fn(&ResourceStatus) -> bool,
) -> Result<ResourceStatus, CliError> {
    let client: Client = node.client();
    let start = Instant::now();
    loop {
        let status = client.status("r0").await?;
        if wished(&status) {
            return Ok(status);
        }
        if start.elapsed() > PATIENCE {
            let text = status_text::resource(&status);
            let what = format!("{} is not {what} after {} s", node.name, PATIENCE.as_secs());
            return Err(CliError::new(Code::Timeout, what, text));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Gives an order as a person would.
pub(super) async fn order(
    node: &Node,
    verb: &str,
    shown: &str,
    order: Order,
) -> Result<(), CliError> {
    say(&format!("      {}$ twinblk {shown} r0", node.name));
    let client = node.client();
    if verb == "up" && client.status("r0").await?.up {
        return Ok(());
    }
    client.order("r0", verb, &order).await.map(|_| ())
}

/// A client on the node's export.
pub(super) async fn connect(node: &Node) -> Result<NbdClient, CliError> {
    NbdClient::connect(&node.export)
        .await
        .map_err(|e| io("a connection", &e))
}

/// Prints the state as `twinblk status` does.
pub(super) async fn show(node: &Node) -> Result<(), CliError> {
    say(&format!("      {}$ twinblk status r0", node.name));
    for line in status_text::resource(&node.client().status("r0").await?).lines() {
        say(&format!("      {line}"));
    }
    Ok(())
}

/// Tells the person.
pub(super) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// The demo failed.
pub(super) fn error(what: impl Into<String>) -> CliError {
    CliError::new(Code::Other, what, "")
}

/// Reading or writing failed.
pub(super) fn io(what: &str, e: &std::io::Error) -> CliError {
    error(format!("{what} failed: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake_daemon::resource;

    #[test]
    fn in_sync_means_all_of_it() {
        assert!(in_sync(&resource("r0")));
        let changes: [fn(&mut ResourceStatus); 5] = [
            |r| r.volumes[0].disk = "Inconsistent".into(),
            |r| r.peers[0].connection = "Connecting".into(),
            |r| r.peers[0].volumes[0].peer_disk = "Inconsistent".into(),
            |r| r.peers[0].volumes[0].replication = "SyncSource".into(),
            |r| r.peers[0].volumes[0].out_of_sync = 4096,
        ];
        for change in changes {
            let mut r = resource("r0");
            change(&mut r);
            assert!(!in_sync(&r));
        }
    }
}
