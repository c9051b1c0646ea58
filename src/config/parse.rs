//! The small languages inside strings: names, addresses, exports, paths.

use super::types::{Address, DEFAULT_PORT, Device, Export, MetaDisk};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What is wrong, and the way out.
pub(super) type Wrong = (String, String);

fn wrong<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, Wrong> {
    Err((message.into(), help.into()))
}

/// Longest path of a unix socket the kernel takes.
const SUN_PATH_MAX: usize = 107;

/// Highest number of an nbd device: with its partitions it has to fit into 20 bits.
const MAX_NBD: u32 = 32_767;

/// Port NBD servers have by custom.
const NBD_PORT: u16 = 10809;

/// A resource's or node's name.
pub(crate) fn name(text: &str) -> Result<String, Wrong> {
    let ok = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(ok) || text.starts_with(['.', '-']) {
        return wrong(
            format!("`{text}` cannot be a name"),
            "a name has 1 to 64 letters, digits, `-`, `_` or `.` and begins with a letter or digit",
        );
    }
    if text == "all" {
        return wrong(
            "`all` cannot be a name",
            "on the command line it means every resource",
        );
    }
    Ok(text.to_owned())
}

/// `HOST`, `HOST:PORT`, `[V6]:PORT`.
pub(super) fn address(text: &str) -> Result<Address, Wrong> {
    let help = "write it as \"10.0.0.1:7789\", \"[fd00::1]:7789\" or \"alpha.example:7789\"";
    let (host, port) = if let Ok(address) = text.parse::<Ipv6Addr>() {
        (address.to_string(), None)
    } else if let Some(rest) = text.strip_prefix('[') {
        match rest.split_once(']') {
            Some((host, "")) => (host.to_owned(), None),
            Some((host, rest)) if rest.starts_with(':') => (host.to_owned(), Some(&rest[1..])),
            _ => return wrong(format!("`{text}` is not an address"), help),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (text.to_owned(), None),
        }
    };
    let port = match port.map(str::parse::<u16>) {
        None => DEFAULT_PORT,
        Some(Ok(port)) if port != 0 => port,
        Some(_) => {
            return wrong(
                format!("`{text}` has no valid port"),
                "a port is 1 to 65535",
            );
        }
    };
    let host_char = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => wrong(
            format!("peers cannot reach `{text}`"),
            "write the address of the network card that leads to the peers",
        ),
        Ok(_) => Ok(Address { host, port }),
        // Names made of digits and dots are mistyped IPv4 addresses.
        Err(_)
            if !host.is_empty()
                && host.chars().all(host_char)
                && host.chars().any(|c| c.is_ascii_alphabetic()) =>
        {
            Ok(Address { host, port })
        }
        Err(_) => wrong(format!("`{text}` is not an address"), help),
    }
}

/// `unix:PATH` or `tcp:IP:PORT`.
pub(super) fn export(text: &str) -> Result<Export, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = absolute("export", path)?;
        let length = path.as_os_str().len();
        if length > SUN_PATH_MAX {
            return wrong(
                format!("the path of the socket is too long: {length} bytes"),
                format!("the kernel takes up to {SUN_PATH_MAX}: choose a shorter directory"),
            );
        }
        return Ok(Export::Unix(path));
    }
    if let Some(address) = text.strip_prefix("tcp:") {
        let parsed = address.parse::<SocketAddr>().or_else(|_| {
            address
                .parse::<IpAddr>()
                .map(|ip| SocketAddr::new(ip, NBD_PORT))
        });
        return match parsed {
            Ok(address) if address.port() != 0 => Ok(Export::Tcp(address)),
            _ => wrong(
                format!("`{text}` is not an IP address and a port"),
                "write it as \"tcp:10.0.0.1:10809\" or \"tcp:[fd00::1]:10809\"",
            ),
        };
    }
    let guess = if text.starts_with('/') { "unix" } else { "tcp" };
    wrong(
        format!("`{text}` does not say what kind of export it is"),
        format!("write \"{guess}:{text}\"; exports are \"unix:/PATH\" and \"tcp:IP:PORT\""),
    )
}

/// `/dev/nbdN` or `auto`.
pub(super) fn device(text: &str) -> Result<Device, Wrong> {
    if text == "auto" {
        return Ok(Device::Auto);
    }
    let number = text.strip_prefix("/dev/nbd").unwrap_or_default();
    match number.parse::<u32>() {
        // Written as the kernel writes it: no sign, no zero in front.
        Ok(n) if n <= MAX_NBD && n.to_string() == number => Ok(Device::Number(n)),
        _ => wrong(
            format!("`{text}` is not a device of the kernel's nbd driver"),
            "write \"/dev/nbd0\" (up to /dev/nbd32767), or \"auto\" for a free one; \
             /dev/twinblk/RESOURCE leads to it in any case",
        ),
    }
}

/// `internal` or a path.
pub(super) fn meta_disk(text: &str) -> Result<MetaDisk, Wrong> {
    match text {
        "internal" => Ok(MetaDisk::Internal),
        path if path.starts_with('/') => Ok(MetaDisk::External(PathBuf::from(path))),
        _ => wrong(
            format!("`meta-disk` cannot be `{text}`"),
            "it is \"internal\" or the absolute path of a file or device of its own",
        ),
    }
}

/// An absolute path.
pub(super) fn absolute(key: &str, text: &str) -> Result<PathBuf, Wrong> {
    let path = Path::new(text);
    if path.is_absolute() && path.file_name().is_some() {
        return Ok(path.to_owned());
    }
    wrong(
        format!("`{key}` must be an absolute path, not `{text}`"),
        "begin it with `/`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["r0", "alpha", "web-1.example", "A_b"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        for bad in ["", "all", "a b", "a/b", "..", "-x", "ä", &"x".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        for (text, shown) in [
            ("127.0.0.1:7790", "127.0.0.1:7790"),
            ("10.0.0.1", "10.0.0.1:7789"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("fd00::1", "[fd00::1]:7789"),
            ("[fd00::1]", "[fd00::1]:7789"),
            ("alpha.example:1", "alpha.example:1"),
        ] {
            assert_eq!(address(text).map(|a| a.to_string()).as_deref(), Ok(shown));
        }
        for bad in [
            "",
            ":7789",
            "10.0.0:1",
            "10.0.0.1:0",
            "a:70000",
            "a:b",
            "0.0.0.0:1",
            "a b:1",
            "[x",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn exports() {
        for (text, shown) in [
            ("unix:/run/r0.sock", "unix:/run/r0.sock"),
            ("tcp:127.0.0.1:10810", "tcp:127.0.0.1:10810"),
            ("tcp:127.0.0.1", "tcp:127.0.0.1:10809"),
            ("tcp:[::1]:1", "tcp:[::1]:1"),
        ] {
            assert_eq!(export(text).map(|e| e.to_string()).as_deref(), Ok(shown));
        }
        for bad in [
            "unix:r0.sock",
            "unix:",
            "tcp:localhost:1",
            "tcp:1.2.3.4:0",
            "udp:1.2.3.4:5",
        ] {
            assert!(export(bad).is_err(), "{bad}");
        }
        assert!(export(&format!("unix:/{}", "x".repeat(107))).is_err());
        assert!(export(&format!("unix:/{}", "x".repeat(106))).is_ok());
        assert!(
            export("/run/r0.sock")
                .unwrap_err()
                .1
                .contains("unix:/run/r0.sock")
        );
    }

    #[test]
    fn places_of_metadata() {
        assert_eq!(meta_disk("internal"), Ok(MetaDisk::Internal));
        assert_eq!(
            meta_disk("/dev/x"),
            Ok(MetaDisk::External(PathBuf::from("/dev/x")))
        );
        assert!(meta_disk("intern").is_err());
        assert!(absolute("disk", "a/b").is_err());
        assert!(absolute("disk", "/").is_err());
    }
}
