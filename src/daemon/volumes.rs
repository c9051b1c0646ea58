//! Opening the disks of a resource, in a thread that may wait.

use super::supervisor::error;
use crate::api::ErrorBody;
use crate::{config, driver};
use twinblk_engine::ids::{NodeId, VolumeId};

/// Opens all volumes this node has of a resource.
pub(crate) async fn open(
    config: &config::Resource,
) -> Result<Vec<driver::OpenedVolume>, ErrorBody> {
    let all = config.me.volumes.iter().map(|v| VolumeId(v.number));
    open_some(config, &all.collect::<Vec<_>>()).await
}

/// Opens these volumes.
pub(crate) async fn open_some(
    config: &config::Resource,
    wanted: &[VolumeId],
) -> Result<Vec<driver::OpenedVolume>, ErrorBody> {
    let mut opened = Vec::new();
    let volumes = config.me.volumes.iter();
    for volume in volumes.filter(|v| wanted.contains(&VolumeId(v.number))) {
        let spec = driver::VolumeSpec {
            volume: VolumeId(volume.number),
            disk: volume.disk.clone(),
            meta: match &volume.meta {
                config::MetaDisk::Internal => driver::MetaDisk::Internal,
                config::MetaDisk::External(path) => driver::MetaDisk::External(path.clone()),
            },
            resource: config.name.clone(),
            node: NodeId(config.me.id),
            block_size: config.block_size(),
        };
        let result = tokio::task::spawn_blocking(move || driver::open_volume(spec)).await;
        match result {
            Ok(Ok(volume)) => opened.push(volume),
            Ok(Err(e)) => {
                use driver::OpenVolumeError as E;
                let (kind, code) = match e {
                    E::InUse { .. } => ("in-use", 12),
                    E::Metadata { .. } => ("metadata", 22),
                    _ => ("no-disk", 16),
                };
                return Err(error(kind, code, e.to_string(), ""));
            }
            Err(e) => {
                return Err(error(
                    "other",
                    10,
                    format!("opening the disk failed: {e}"),
                    "",
                ));
            }
        }
    }
    Ok(opened)
}
