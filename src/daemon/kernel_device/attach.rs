//! The device's connection: making a device, giving it a new connection, telling the kernel what changed.
//!
//! Invariants: the kernel gets a connection only when the loop has taken it, and a new one only when nothing
//! is left of the old one ([`link`]); a device that is not served by anybody is not left behind.

use super::link::{self, Link};
use super::netlink::Nbd;
use super::orders::ordered;
use super::trouble::Trouble;
use super::{Attached, KernelDevice, LINK_PATIENCE, State, Step, sysfs};
use crate::config::Device;
use crate::daemon::exports;
use crate::daemon::running::{Running, lock};
use crate::driver::mailbox::StatusReply;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use twinblk_engine::ids::VolumeId;
use userspace_nbd::export::{Export, TransmissionFlags};
use userspace_nbd::kernel::{Connect, Reconfigure, Timeouts};
use userspace_nbd::negotiation::Lookup;

/// Time between two attempts to give it a new one.
const LINK_RETRY: Duration = Duration::from_millis(20);

impl KernelDevice {
    fn timeouts(running: &Running) -> Timeouts {
        lock(&running.config).device_timeouts()
    }

    /// What the kernel's client is offered, or why nothing is.
    fn offer(&self, reply: &StatusReply) -> Result<Export, Trouble> {
        let offered = exports::look(&self.resource, reply, false);
        let volume = VolumeId(self.volume);
        let size = reply.status.volumes.iter().find(|v| v.volume == volume);
        match (offered, size) {
            (Lookup::Found(export), Some(v)) => Ok(Export {
                size: v.size,
                ..export
            }),
            (Lookup::Refused { policy_text }, _) => Err(Trouble::System {
                device: self.wanted.to_string(),
                what: policy_text,
            }),
            _ => Err(Trouble::System {
                device: self.wanted.to_string(),
                what: "the volume is not there".to_owned(),
            }),
        }
    }

    /// Makes the device.
    pub(super) async fn attach(&self, running: &Arc<Running>, reply: &StatusReply) -> Step {
        match self.try_attach(running, reply).await {
            Ok(attached) => {
                let index = attached.index;
                tracing::info!(resource = %self.resource, "/dev/nbd{index} is attached");
                self.name(index);
                (State::Attached(attached), Ok(()))
            }
            Err(trouble) => (State::Detached, Err(trouble)),
        }
    }

    async fn try_attach(
        &self,
        running: &Arc<Running>,
        reply: &StatusReply,
    ) -> Result<Attached, Trouble> {
        let export = self.offer(reply)?;
        let system = |what: rustix::io::Errno| Trouble::System {
            device: self.wanted.to_string(),
            what: what.to_string(),
        };
        let (ours, kernels) = link::pair().map_err(system)?;
        let (size, block_size) = (export.size, export.block_size.minimum);
        let timeouts = Self::timeouts(running);
        // It is served before it is there: whoever sees it first may read from it at once.
        let link = Link::serve(running, ours, self.volume, export, &self.wake).map_err(system)?;
        if link.is_taken(running).await != Some(true) {
            link.cut();
            return Err(Trouble::NotTaken(self.wanted));
        }
        let (wanted, backend) = (self.wanted, self.backend.clone());
        let made = ordered(move || {
            let index = match wanted {
                Device::Number(index) => Some(index),
                Device::Auto => None,
            };
            Nbd::open()?.connect(&Connect {
                index,
                size,
                block_size,
                flags: kernel_flags(),
                timeouts,
                backend: &backend,
                sockets: &[kernels.as_raw_fd()],
            })
        });
        match made.await {
            Ok(index) => {
                link.in_use(&self.wake);
                Ok(Attached {
                    index,
                    link,
                    size,
                    timeouts,
                    since: Instant::now(),
                    gone_noted: false,
                })
            }
            Err(error) => {
                link.cut();
                // It may have been made all the same, and nobody would serve it.
                if let Some(index) = sysfs::find(Path::new(sysfs::BLOCK), &self.backend) {
                    let ended = self.disconnect(index, None).await;
                    tracing::warn!(
                        resource = %self.resource,
                        "/dev/nbd{index} was made, with an error ({error:?}), and is ended again: \
                         {ended:?}"
                    );
                }
                let owner = |index| sysfs::owner(Path::new(sysfs::BLOCK), index);
                Err(Trouble::connecting(wanted, error, owner))
            }
        }
    }

    /// Gives a device a new connection in place of one that has ended.
    pub(super) async fn relink(
        &self,
        index: u32,
        running: &Arc<Running>,
        reply: &StatusReply,
    ) -> Result<Attached, Trouble> {
        let export = self.offer(reply)?;
        let timeouts = Self::timeouts(running);
        let began = Instant::now();
        loop {
            let system = |what: rustix::io::Errno| Trouble::System {
                device: format!("/dev/nbd{index}"),
                what: what.to_string(),
            };
            let (ours, kernels) = link::pair().map_err(system)?;
            let backend = self.backend.clone();
            let done = ordered(move || {
                Nbd::open()?.reconfigure(&Reconfigure {
                    index,
                    backend: &backend,
                    // Since Linux 6.9 a new size waits for the requests under way, and those for
                    // this connection.
                    size: None,
                    timeouts: Some(timeouts),
                    sockets: &[kernels.as_raw_fd()],
                })
                // Here our hold of the kernel's end goes.
            });
            done.await.map_err(|e| Trouble::of_order(index, e))?;
            if !link::is_hung_up(&ours) {
                let link =
                    Link::serve(running, ours, self.volume, export, &self.wake).map_err(system)?;
                // The kernel has it: a loop that does not answer yet has it in its mailbox.
                if link.is_taken(running).await == Some(false) {
                    return Err(Trouble::NotServed { index });
                }
                link.in_use(&self.wake);
                // For the size.
                self.wake();
                return Ok(Attached {
                    index,
                    link,
                    size: 0,
                    timeouts,
                    since: Instant::now(),
                    gone_noted: false,
                });
            }
            // The kernel has not noticed yet that the old connection is dead, and dropped this one.
            if began.elapsed() > LINK_PATIENCE {
                return Err(Trouble::OldLinkLives { index });
            }
            tokio::time::sleep(LINK_RETRY).await;
        }
    }

    /// All is well; the kernel learns what has changed.
    pub(super) async fn keep(
        &self,
        attached: Attached,
        running: &Arc<Running>,
        reply: &StatusReply,
    ) -> Step {
        let (index, timeouts) = (attached.index, Self::timeouts(running));
        let size = match self.offer(reply) {
            Ok(export) => export.size,
            Err(_) => attached.size,
        };
        if (size, timeouts) == (attached.size, attached.timeouts) {
            return (State::Attached(attached), Ok(()));
        }
        let new_size = (size != attached.size).then_some(size);
        match self.order_change(index, new_size, timeouts).await {
            Ok(()) => {
                if new_size.is_some() && attached.size != 0 {
                    tracing::info!(resource = %self.resource, "/dev/nbd{index} has {size} bytes now");
                }
                let attached = Attached {
                    size,
                    timeouts,
                    ..attached
                };
                (State::Attached(attached), Ok(()))
            }
            Err(trouble @ Trouble::Gone { .. }) => {
                attached.link.cut();
                (self.given_up(index, &trouble.reason()), Err(trouble))
            }
            Err(trouble) => (State::Attached(attached), Err(trouble)),
        }
    }

    pub(super) async fn order_change(
        &self,
        index: u32,
        size: Option<u64>,
        timeouts: Timeouts,
    ) -> Result<(), Trouble> {
        let backend = self.backend.clone();
        let done = ordered(move || {
            Nbd::open()?.reconfigure(&Reconfigure {
                index,
                backend: &backend,
                size,
                timeouts: Some(timeouts),
                sockets: &[],
            })
        });
        done.await.map_err(|e| Trouble::of_order(index, e))
    }
}

/// What the kernel's client is told of the export: flags it does not know it ignores. CAN_MULTI_CONN is
/// true, and yet there is one connection.
fn kernel_flags() -> TransmissionFlags {
    TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::CAN_MULTI_CONN
}
