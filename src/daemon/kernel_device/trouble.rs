//! Why there is no kernel device, in words that say what to do.

use super::holders::{self, Holder};
use super::netlink::NetlinkError;
use crate::api::ErrorBody;
use crate::config::Device;
use crate::daemon::supervisor::error;
use rustix::io::Errno;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The module is not there.
    NoDriver(Device),
    /// The module is there, and cannot be reached from here.
    OtherNamespace(Device),
    /// The process may not.
    NotPermitted(Device),
    /// Somebody else has it.
    Taken { index: u32, by: String },
    /// The kernel does not make one of this number.
    NoSuchDevice { index: u32, errno: Errno },
    /// What it served before is still there, and somebody holds it.
    StillHeld {
        index: u32,
        why: String,
        holders: Vec<Holder>,
    },
    /// The kernel goes on with a connection that should be gone.
    OldLinkLives { index: u32 },
    /// The resource's loop does not take the kernel's connection, or gives it up at once.
    NotServed { index: u32 },
    /// The same, before there is a device.
    NotTaken(Device),
    /// The device was ended behind our back.
    Gone { index: u32 },
    /// Something else.
    System { device: String, what: String },
}

impl Trouble {
    /// What it means when the kernel refuses to make `device`. `owner` tells who has one.
    pub(super) fn connecting(
        device: Device,
        error: NetlinkError,
        owner: impl FnOnce(u32) -> String,
    ) -> Self {
        match (error, device) {
            (NetlinkError::Refused(Errno::PERM), _) => Self::NotPermitted(device),
            (NetlinkError::Refused(Errno::BUSY), Device::Number(index)) => Self::Taken {
                index,
                by: owner(index),
            },
            (
                NetlinkError::Refused(errno @ (Errno::INVAL | Errno::NOENT | Errno::NXIO)),
                Device::Number(index),
            ) => Self::NoSuchDevice { index, errno },
            (other, device) => Self::other(device, other),
        }
    }

    /// What it means when an order for a device that is there fails.
    pub(super) fn of_order(index: u32, error: NetlinkError) -> Self {
        let device = Device::Number(index);
        match error {
            NetlinkError::Refused(Errno::PERM) => Self::NotPermitted(device),
            // "Not configured", or served by somebody else.
            NetlinkError::Refused(Errno::INVAL) => Self::Gone { index },
            other => Self::other(device, other),
        }
    }

    fn other(device: Device, error: NetlinkError) -> Self {
        let what = match error {
            NetlinkError::NoDriver => return Self::NoDriver(device),
            NetlinkError::OtherNamespace => return Self::OtherNamespace(device),
            NetlinkError::Silent => "the kernel does not answer".to_owned(),
            NetlinkError::Refused(errno) | NetlinkError::System(errno) => errno.to_string(),
        };
        Self::System {
            device: shown(device),
            what,
        }
    }

    /// What happened and why.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::NoDriver(device) => format!(
                "{} cannot be attached: the kernel's nbd driver is not loaded",
                shown(*device)
            ),
            Self::OtherNamespace(device) => format!(
                "{} cannot be attached: the kernel's nbd driver is loaded, but takes orders only in \
                 the first network namespace, and the daemon runs in another",
                shown(*device)
            ),
            Self::NotPermitted(device) => format!(
                "{} cannot be attached: only an administrator (CAP_SYS_ADMIN) may",
                shown(*device)
            ),
            Self::Taken { index, by } => format!("/dev/nbd{index} is taken: by {by}"),
            Self::NoSuchDevice { index, errno } => {
                format!("the kernel does not make /dev/nbd{index}: {errno}")
            }
            Self::StillHeld {
                index,
                why,
                holders,
            } => format!(
                "/dev/nbd{index} is still held from before ({}), and its holders must not go on: \
                 {why}",
                holders::in_words(holders)
            ),
            Self::OldLinkLives { index } => format!(
                "the kernel does not let go of the connection /dev/nbd{index} had before, so it \
                 takes no new one"
            ),
            Self::NotServed { index } => format!(
                "the connection of /dev/nbd{index} ends as soon as it has begun: the resource \
                 changes its role, or stops, or does not answer"
            ),
            Self::NotTaken(device) => format!(
                "{} is not attached: the resource changes its role, or stops, or does not answer",
                shown(*device)
            ),
            Self::Gone { index } => format!(
                "/dev/nbd{index} was detached by somebody else; who had it open gets I/O errors"
            ),
            Self::System { device, what } => format!("{device} cannot be attached: {what}"),
        }
    }

    /// What to do.
    pub(super) fn way_out(&self) -> String {
        match self {
            Self::NoDriver(device) => {
                let more = match device {
                    Device::Number(n) if *n > 15 => format!(" nbds_max={}", n + 1),
                    _ => " nbds_max=16".to_owned(),
                };
                format!(
                    "run `modprobe nbd{more}`, and have it loaded at boot (a line `nbd` in \
                     /etc/modules-load.d/nbd.conf); the device is then attached by itself"
                )
            }
            Self::OtherNamespace(_) => "run the daemon in the network namespace of process 1 (no \
                `ip netns exec`, no `PrivateNetwork=`, no container with a network of its own), or \
                remove `device` from its node in the file and use the export's socket"
                .to_owned(),
            Self::NotPermitted(_) => "run the daemon as root, or remove `device` from its node in \
                the file and use the export's socket"
                .to_owned(),
            Self::Taken { index, .. } => format!(
                "detach it there (such as `nbd-client -d /dev/nbd{index}`), then it is attached by \
                 itself; or choose another `device`, or \"auto\""
            ),
            Self::NoSuchDevice { index, .. } => format!(
                "load the driver with more devices (`modprobe -r nbd; modprobe nbd nbds_max={}`), \
                 or choose another `device`, or \"auto\"",
                index + 1
            ),
            Self::StillHeld { holders, .. } => {
                let ways: Vec<String> = holders.iter().map(Holder::way_out).collect();
                format!(
                    "{}; then the device is attached anew by itself",
                    ways.join(", ")
                )
            }
            Self::OldLinkLives { .. } => "find the process that holds the other end, such as an \
                older daemon that has not ended, and end it"
                .to_owned(),
            Self::NotServed { .. } | Self::NotTaken(_) => {
                "it is tried again by itself; look at `twinblk status`".to_owned()
            }
            Self::Gone { .. } => {
                "unmount what is mounted there; then it is attached anew by itself".to_owned()
            }
            Self::System { .. } => "look at the kernel's log (`dmesg`)".to_owned(),
        }
    }

    /// As an answer to an order that promoted the node all the same.
    pub(super) fn after_promotion(&self, node: &str) -> ErrorBody {
        let reason = format!(
            "{node} is Primary now and serves its sockets, but has no kernel device: {}",
            self.reason()
        );
        error("device", 10, reason, &self.way_out())
    }

    /// In one sentence.
    pub(super) fn text(&self) -> String {
        format!("{}; {}", self.reason(), self.way_out())
    }
}

fn shown(device: Device) -> String {
    match device {
        Device::Number(index) => format!("/dev/nbd{index}"),
        Device::Auto => "a kernel device".to_owned(),
    }
}

/// A refusal because somebody holds the device.
pub(super) fn in_use(index: u32, holders: &[Holder]) -> ErrorBody {
    let ways: Vec<String> = holders.iter().map(Holder::way_out).collect();
    error(
        "in-use",
        12,
        format!("/dev/nbd{index} is in use: {}", holders::in_words(holders)),
        &format!("{}, then try again", ways.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trouble_names_its_way_out() {
        let device = Device::Number(20);
        let nobody = |_| unreachable!("nobody has it");
        let refused = |errno| NetlinkError::Refused(errno);
        let text = Trouble::connecting(device, NetlinkError::NoDriver, nobody).text();
        assert!(text.contains("modprobe nbd nbds_max=21"), "{text}");
        let text = Trouble::connecting(Device::Auto, NetlinkError::NoDriver, nobody).text();
        assert!(text.contains("modprobe nbd"), "{text}");
        let text = Trouble::connecting(device, NetlinkError::OtherNamespace, nobody).text();
        assert!(text.contains("namespace"), "{text}");
        assert!(!text.contains("modprobe"), "{text}");
        let text = Trouble::connecting(device, refused(Errno::PERM), nobody).text();
        assert!(text.contains("root"), "{text}");
        let owner = |_| "process 812 (nbd-client)".to_owned();
        let text = Trouble::connecting(device, refused(Errno::BUSY), owner).text();
        assert!(text.contains("812 (nbd-client)"), "{text}");
        assert!(text.contains("nbd-client -d /dev/nbd20"), "{text}");
        let text = Trouble::connecting(device, refused(Errno::INVAL), nobody).text();
        assert!(text.contains("nbds_max=21"), "{text}");
        let text = Trouble::of_order(3, refused(Errno::INVAL)).text();
        assert!(text.contains("/dev/nbd3 was detached"), "{text}");
        let text = Trouble::of_order(3, refused(Errno::NOMEM)).text();
        assert!(text.contains("memory") && text.contains("dmesg"), "{text}");
        let held = in_use(0, &[Holder::Mount("/srv".into())]);
        assert_eq!((held.exit_code, held.kind.as_str()), (12, "in-use"));
        assert!(held.reason.contains("/srv") && held.way_out.contains("umount /srv"));
    }
}
