//! The network of a pair: a namespace for clients with two switches in it, one for everything and one for
//! replication, and a namespace for each machine with a port on both (eth0, eth1).

use crate::harness::tools;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

/// The floating address.
pub const FLOATING: &str = "10.88.0.100";

/// See the module. Gone when dropped.
#[derive(Debug)]
pub struct Lan {
    clients: String,
    pub nodes: [String; 2],
}

/// Which of the two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// Clients, address daemons, cluster managers.
    Public,
    /// twinblk's.
    Replication,
}

fn ip(args: &[&str]) {
    tools::run(Command::new("ip").args(args));
}

impl Lan {
    pub fn new(number: u32) -> Self {
        let pid = std::process::id();
        let name = |part: &str| format!("tc{pid}-{number}{part}");
        let lan = Self {
            clients: name("c"),
            nodes: [name("a"), name("b")],
        };
        let c = &lan.clients;
        ip(&["netns", "add", c]);
        ip(&["-n", c, "link", "set", "lo", "up"]);
        for net in ["0", "1"] {
            let bridge = format!("br{net}");
            ip(&["-n", c, "link", "add", &bridge, "type", "bridge"]);
            ip(&["-n", c, "link", "set", &bridge, "up"]);
        }
        ip(&["-n", c, "address", "add", "10.88.0.254/24", "dev", "br0"]);
        for (side, space) in lan.nodes.iter().enumerate() {
            ip(&["netns", "add", space]);
            for (net, subnet) in [("0", "10.88.0"), ("1", "10.99.0")] {
                let (port, bridge) = (format!("p{net}{side}"), format!("br{net}"));
                let eth = format!("eth{net}");
                ip(&[
                    "link", "add", &eth, "netns", space, "type", "veth", "peer", "name", &port,
                    "netns", c,
                ]);
                ip(&["-n", c, "link", "set", &port, "master", &bridge, "up"]);
                let address = format!("{subnet}.{}/24", side + 1);
                ip(&["-n", space, "address", "add", &address, "dev", &eth]);
                ip(&["-n", space, "link", "set", &eth, "up"]);
            }
            ip(&["-n", space, "link", "set", "lo", "up"]);
        }
        lan
    }

    /// The two machines do not hear each other any more; clients hear both. Nobody loses a carrier.
    pub fn cut(&self, net: Net) {
        self.isolate(net, "on");
    }

    pub fn mend(&self, net: Net) {
        self.isolate(net, "off");
    }

    fn isolate(&self, net: Net, how: &str) {
        for side in 0..2 {
            let port = format!("p{}{side}", u8::from(net == Net::Replication));
            tools::run(Command::new("bridge").args([
                "-n",
                &self.clients,
                "link",
                "set",
                "dev",
                &port,
                "isolated",
                how,
            ]));
        }
    }

    /// A machine without power is silent: nothing in its name answers any more.
    pub fn power(&self, node: usize, on: bool) {
        for net in ["0", "1"] {
            let eth = format!("eth{net}");
            let how = if on { "up" } else { "down" };
            ip(&["-n", &self.nodes[node], "link", "set", &eth, how]);
        }
        if !on {
            // What daemons have put on it is gone with the machine.
            let space = &self.nodes[node];
            let address = format!("{FLOATING}/24");
            for address in [address.as_str(), "10.88.0.100/32"] {
                let args = ["-n", space, "address", "del", address, "dev", "eth0"];
                tools::try_run(Command::new("ip").args(args));
            }
        }
    }

    /// The machine has the floating address.
    pub fn has_address(&self, node: usize) -> bool {
        let space = &self.nodes[node];
        let shown = tools::run(Command::new("ip").args(["-n", space, "-o", "address", "show"]));
        shown.contains(&format!(" {FLOATING}/"))
    }

    /// A client goes to the floating address.
    pub fn connect(&self, port: u16) -> std::io::Result<TcpStream> {
        let space = std::fs::File::open(format!("/run/netns/{}", self.clients))?;
        let thread = std::thread::spawn(move || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&space),
                Some(LinkNameSpaceType::Network),
            )?;
            let address = format!("{FLOATING}:{port}").parse().expect("an address");
            TcpStream::connect_timeout(&address, Duration::from_secs(1))
        });
        thread.join().expect("the thread")
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for space in self.nodes.iter().chain([&self.clients]) {
            let _ = Command::new("ip").args(["netns", "delete", space]).status();
        }
    }
}
