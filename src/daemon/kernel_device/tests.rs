//! What orders answer, with a loop that the test plays and without a kernel.

use super::*;
use crate::daemon::fake_loop::{FakeLoop, Kit};

/// A device of r0 that no kernel has.
fn device() -> (Kit, FakeLoop, Arc<Running>, Arc<KernelDevice>) {
    let kit = Kit::new();
    let fake = kit.up("r0");
    let running = kit.supervisor.running("r0").expect("it is up");
    let mut config = (*lock(&running.config)).clone();
    config.me.volumes[0].device = Some(Device::Number(31_999));
    let state = &kit.supervisor.state;
    let device = KernelDevice::of(&config, state, |_| (1, false)).expect("it has one");
    (kit, fake, running, device)
}

#[tokio::test(start_paused = true)]
async fn a_promotion_without_a_device_says_so_when_the_loop_is_silent() {
    let (_kit, _silent, running, device) = device();
    let error = device.after_promotion(&running).await.expect_err("none");
    assert_eq!((error.kind.as_str(), error.exit_code), ("device", 10));
    assert!(error.reason.contains("alpha is Primary"), "{error:?}");
    assert!(error.reason.contains("does not answer"), "{error:?}");
    assert!(error.way_out.contains("by itself"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_promotion_that_another_order_overtook_says_so() {
    let (_kit, _fake, running, device) = device();
    let _released = device.hold_back();
    let error = device.after_promotion(&running).await.expect_err("none");
    assert_eq!(error.exit_code, 10, "{error:?}");
}
