//! Error numbers as they travel ("Error values").

/// An NBD error number; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

impl Errno {
    /// Success.
    pub const OK: Self = Self(0);
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// Cannot allocate memory.
    pub const ENOMEM: Self = Self(12);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// No space left on device.
    pub const ENOSPC: Self = Self(28);
    /// Value too large.
    pub const EOVERFLOW: Self = Self(75);
    /// Operation not supported.
    pub const ENOTSUP: Self = Self(95);
    /// Server is shutting down.
    pub const ESHUTDOWN: Self = Self(108);

    /// The wire's number for a Linux errno; what the protocol does not know becomes EIO (a full
    /// quota ENOSPC, a read-only file system EPERM).
    pub fn from_os(errno: i32) -> Self {
        match errno {
            0 => Self::OK,
            1 | 13 | 30 => Self::EPERM,
            12 => Self::ENOMEM,
            22 => Self::EINVAL,
            27 | 28 | 122 => Self::ENOSPC,
            75 => Self::EOVERFLOW,
            95 => Self::ENOTSUP,
            108 => Self::ESHUTDOWN,
            _ => Self::EIO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn unknown_errors_become_eio_and_known_ones_stay() {
        for known in [Errno::EPERM, Errno::ENOSPC, Errno::EINVAL, Errno::ESHUTDOWN] {
            assert_eq!(Errno::from_os(known.0 as i32), known);
        }
        assert_eq!(Errno::from_os(30), Errno::EPERM);
        assert_eq!(Errno::from_os(4242), Errno::EIO);
    }
}
