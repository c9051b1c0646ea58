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
    looked(move || holders::find(index)).await
}

/// What a look for holders found; one without an end has found somebody.
async fn looked(look: impl FnOnce() -> Vec<Holder> + Send + 'static) -> Vec<Holder> {
    let found = tokio::time::timeout(ORDER_TIME, blocking(look)).await;
    found.unwrap_or_else(|_| vec![Holder::NotFoundOut])
}

/// Runs what may wait in a thread that may.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Waits until the kernel does something, which it does when the test has seen enough.
    fn stuck() -> (mpsc::Sender<()>, impl FnOnce()) {
        let (sender, receiver) = mpsc::channel();
        (sender, move || {
            let _ = receiver.recv();
        })
    }

    async fn after_its_time<T>(work: impl Future<Output = T>) -> T {
        let clock = async {
            // It waits before the time passes.
            tokio::task::yield_now().await;
            tokio::time::advance(ORDER_TIME + Duration::from_millis(1)).await;
        };
        tokio::join!(work, clock).0
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_the_kernel_does_not_finish_ends_as_unanswered() {
        let (enough, wait) = stuck();
        let order = ordered(move || {
            wait();
            Ok(())
        });
        let answer: Result<(), NetlinkError> = after_its_time(order).await;
        assert_eq!(answer, Err(NetlinkError::Silent));
        drop(enough);
        assert_eq!(ordered(|| Ok(7)).await, Ok(7), "others go on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_for_holders_without_an_end_has_found_somebody() {
        let (enough, wait) = stuck();
        let look = looked(move || {
            wait();
            Vec::new()
        });
        assert_eq!(after_its_time(look).await, [Holder::NotFoundOut]);
        drop(enough);
        assert_eq!(looked(Vec::new).await, []);
    }
}
