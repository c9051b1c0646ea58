//! Two network namespaces and a cable (veth) between them. Needs root.

use std::process::Command;

/// See the module. Namespaces and cable go when it is dropped.
#[derive(Debug)]
pub struct Cable {
    spaces: [String; 2],
    pub addresses: [String; 2],
}

impl Cable {
    pub fn new(number: u32) -> Self {
        let pid = std::process::id();
        let spaces = ["a", "b"].map(|side| format!("tb{pid}-{number}{side}"));
        let addresses = [1, 2].map(|host| format!("10.77.{}.{host}", number % 250));
        let cable = Self { spaces, addresses };
        for space in &cable.spaces {
            ip(&["netns", "add", space]);
            ip(&["-n", space, "link", "set", "lo", "up"]);
        }
        let [a, b] = &cable.spaces;
        ip(&[
            "link", "add", "eth0", "netns", a, "type", "veth", "peer", "name", "eth0", "netns", b,
        ]);
        for (space, address) in cable.spaces.iter().zip(&cable.addresses) {
            let address = format!("{address}/24");
            ip(&["-n", space, "address", "add", &address, "dev", "eth0"]);
            ip(&["-n", space, "link", "set", "eth0", "up"]);
        }
        cable
    }

    /// The namespace of a node.
    pub fn space(&self, node: &str) -> &str {
        &self.spaces[usize::from(node == "bravo")]
    }

    /// Pulls the cable: packets vanish, no connection is told.
    pub fn cut(&self) {
        for space in &self.spaces {
            ip(&["-n", space, "link", "set", "eth0", "down"]);
        }
    }

    /// Puts it back.
    pub fn mend(&self) {
        for space in &self.spaces {
            ip(&["-n", space, "link", "set", "eth0", "up"]);
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for space in &self.spaces {
            let _ = Command::new("ip").args(["netns", "delete", space]).status();
        }
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip")
        .args(args)
        .output()
        .expect("these tests need the program `ip` (package iproute2); tests/run installs it");
    assert!(
        output.status.success(),
        "ip {}: {}(network namespaces need root)",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}
