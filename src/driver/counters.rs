//! What the loop counts, and its part of `status`.

use super::disk::Core;
use super::mailbox::DriverStatus;
use super::turn::VolumeIo;

/// Counters of a loop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Client requests answered.
    pub(crate) requests: u64,
    /// NBD connections being served.
    pub(crate) connections: u64,
}

/// The driver's facts for `status`.
pub(crate) fn driver_status(counters: Counters, core: &Core, volumes: &[VolumeIo]) -> DriverStatus {
    DriverStatus {
        disks: volumes.iter().map(|v| (v.volume, v.note.clone())).collect(),
        buffers_used: core.pool.used(),
        buffers_total: core.pool.total(),
        buffers_registered: core.ring.registered.clone(),
        nbd_connections: counters.connections,
        enters: core.ring.enters,
        calls: core.ring.calls,
        yields: core.ring.yields,
        requests: counters.requests,
    }
}
