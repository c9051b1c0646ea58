//! Orders to the kernel, and looks at it, that may wait: each has an end, and none waits in the daemon's
//! only thread.

use super::claimant::Claimant;
use super::holders::{self, Holder};
use super::netlink::{Nbd, NetlinkError};
use super::sysfs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a device that was ended may be looked at by somebody (udev) before it counts as held.
const LAST_CLOSE: Duration = Duration::from_secs(2);
/// How long the kernel may take for an order, and a look at who holds a device.
pub(super) const ORDER_TIME: Duration = Duration::from_secs(20);
/// Time between two looks whether it is gone.
const LOOK: Duration = Duration::from_millis(20);

/// Ends a device with this backend, and gives the claim on it back. Answers whether it is gone: it stays,
/// without being of use, until the last who has it open closes it.
pub(super) fn disconnect(
    index: u32,
    backend: &str,
    claim: Option<Claimant>,
) -> Result<bool, NetlinkError> {
    // Whatever has the number otherwise is somebody else's.
    let is_ours = || sysfs::backend(Path::new(sysfs::BLOCK), index).as_deref() == Some(backend);
    if !is_ours() {
        return Ok(true);
    }
    let mut nbd = Nbd::open()?;
    nbd.disconnect(index)?;
    drop(claim);
    let began = Instant::now();
    while nbd.is_connected(index)? && is_ours() {
        if began.elapsed() > LAST_CLOSE {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}

/// Has the kernel carry an order out, which may wait for what the kernel waits for.
pub(super) async fn ordered<T: Send + 'static>(
    order: impl FnOnce() -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, NetlinkError> {
    match tokio::time::timeout(ORDER_TIME, blocking(order)).await {
        Ok(result) => result,
        Err(_) => Err(NetlinkError::Silent),
    }
}

/// Who holds a device.
pub(super) async fn holders_of(index: u32) -> Vec<Holder> {
    let found = tokio::time::timeout(ORDER_TIME, blocking(move || holders::find(index)));
    found.await.unwrap_or_else(|_| vec![Holder::NotFoundOut])
}

/// Runs what may wait in a thread that may.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
