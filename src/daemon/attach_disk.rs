//! `attach`: a disk that went out of use is opened anew while the resource is up.

use super::api::ORDER_TIME;
use super::running::{Running, lock};
use super::supervisor::{Supervisor, error};
use super::volumes;
use crate::api::ErrorBody;
use crate::driver::mailbox::ToLoop;
use std::sync::Arc;
use tokio::sync::oneshot;
use twinblk_engine::event::DiskState;
use twinblk_engine::ids::VolumeId;

impl Supervisor {
    /// `attach`.
    pub(crate) async fn attach(&self, name: &str) -> Result<String, ErrorBody> {
        let _one = self.changing.lock().await;
        let running = self.must_run(name)?;
        let status = running.status().await.map_err(|_| gone(name))?.status;
        if let Some(v) = status
            .volumes
            .iter()
            .find(|v| matches!(v.disk, DiskState::Failed | DiskState::Detaching))
        {
            let reason = format!(
                "operations on the old disk of {} have not ended yet ({})",
                v.volume, v.reason
            );
            let way_out = "try again when `twinblk status` shows Diskless; if the old disk never \
                           answers, it can be attached after a restart of the daemon";
            return Err(error("state", 11, reason, way_out));
        }
        let gone_disks: Vec<_> = status
            .volumes
            .iter()
            .filter(|v| v.disk == DiskState::Diskless)
            .map(|v| v.volume)
            .collect();
        if gone_disks.is_empty() {
            return Ok(format!("{name} has its disk already"));
        }
        let config = lock(&running.config).clone();
        let opened = volumes::open_some(&config, &gone_disks).await?;
        running.attaches_again(&gone_disks);
        for volume in opened {
            let (sender, receiver) = oneshot::channel();
            let message = ToLoop::Attach(Box::new(volume), sender);
            running.handle.send(message).map_err(|_| gone(name))?;
            if !receiver.await.map_err(|_| gone(name))? {
                let reason = "the old disk is still in use".to_string();
                return Err(error("state", 11, reason, "try again in a moment"));
            }
        }
        Ok(said(&running).await)
    }
}

/// A disk that failed is opened again by itself (`on-io-error = "pass-on"`). When somebody attaches it
/// meanwhile, this one comes to nothing.
pub(super) async fn again(running: Arc<Running>, volume: VolumeId) {
    let config = lock(&running.config).clone();
    // Who takes the resource down waits until the disk is not held by this any more.
    let _opening = running.opening.lock().await;
    if running.ended.borrow().is_some() {
        return;
    }
    let message = match volumes::open_some(&config, &[volume]).await {
        Ok(mut opened) => match opened.pop() {
            Some(opened) => {
                running.attaches_again(&[volume]);
                ToLoop::AttachAgain(Box::new(opened))
            }
            None => ToLoop::AttachFailed(volume, "it is not configured any more".to_string()),
        },
        Err(why) => ToLoop::AttachFailed(volume, why.reason),
    };
    // The resource may have ended.
    let _ = running.handle.send(message);
}

async fn said(running: &Running) -> String {
    let mut text = String::from("attached");
    if !running.attached(ORDER_TIME).await {
        text.push_str("; its metadata are still being read and written: see `twinblk status`");
    }
    text
}

fn gone(name: &str) -> ErrorBody {
    let reason = format!("{name} does not answer");
    error("other", 10, reason, "look at the daemon's log")
}
