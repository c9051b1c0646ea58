//! A directory with two nodes, alpha and bravo, and the configuration they share. Gone when dropped.

use super::content::{Blocks, Sparse};
use super::link::Cable;
use super::load::History;
use super::nbd::Client;
use super::node::Node;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

const MIB: u64 = 1 << 20;

/// How a stage is built.
#[derive(Debug, Clone)]
pub struct Plan {
    pub protocol: &'static str,
    /// Bytes of alpha's and bravo's disk files.
    pub sizes: [u64; 2],
    /// On tmpfs (inline disk engine) rather than on the disk (io_uring).
    pub tmpfs: bool,
    /// Each node in a network namespace of its own.
    pub namespaces: bool,
    /// Lines of the `[net]` section.
    pub net: String,
    /// Other sections.
    pub more: String,
    /// Export over TCP as well.
    pub tcp_export: bool,
    /// Metadata in files of their own.
    pub external_meta: bool,
}

impl Plan {
    pub fn new(protocol: &'static str) -> Self {
        Self {
            protocol,
            sizes: [32 * MIB; 2],
            tmpfs: false,
            namespaces: false,
            net: "connect-int = 1\n".into(),
            more: String::new(),
            tcp_export: false,
            external_meta: false,
        }
    }

    /// Protocol and file system vary with the seed.
    pub fn seeded(seed: u64) -> Self {
        let mut plan = Self::new(super::seeds::protocol(seed));
        plan.tmpfs = seed.is_multiple_of(2);
        plan
    }
}

/// See the module.
#[derive(Debug)]
pub struct Stage {
    pub nodes: [Node; 2],
    pub plan: Plan,
    pub cable: Option<Cable>,
    addresses: [String; 2],
    tcp_port: u16,
    directory: tempfile::TempDir,
}

fn meta_of(node: &Node) -> PathBuf {
    node.disk.with_extension("md")
}

impl Stage {
    /// Files and configuration; nothing runs yet, no metadata are written.
    pub fn new(plan: Plan) -> Self {
        static STAGES: AtomicU32 = AtomicU32::new(0);
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let parent = if plan.tmpfs {
            PathBuf::from("/dev/shm")
        } else {
            std::env::temp_dir()
        };
        let directory = tempfile::Builder::new()
            .prefix("twinblk-test-")
            .tempdir_in(parent)
            .expect("a directory");
        let cable = plan.namespaces.then(|| Cable::new(number));
        // Every stage has addresses of its own, so that stages run side by side.
        let addresses = match &cable {
            Some(cable) => cable.addresses.clone(),
            None => [1, 2].map(|host| {
                let pid = std::process::id() % 250 + 1;
                format!("127.{pid}.{}.{host}", number % 250)
            }),
        };
        let nodes = ["alpha", "bravo"].map(|name| {
            let space = cable.as_ref().map(|c| c.space(name).to_owned());
            Node::new(name, directory.path(), space)
        });
        let stage = Self {
            nodes,
            plan,
            cable,
            addresses,
            tcp_port: 10_809,
            directory,
        };
        for (node, size) in stage.nodes.iter().zip(stage.plan.sizes) {
            let file = std::fs::File::create(&node.disk).expect("a disk file");
            file.set_len(size).expect("its size");
            if stage.plan.external_meta {
                let file = std::fs::File::create(meta_of(node)).expect("a metadata file");
                file.set_len(2 * MIB).expect("its size");
            }
        }
        std::fs::create_dir(stage.config_dir()).expect("a directory");
        stage.configure(&stage.config_text());
        stage
    }

    /// Both nodes run and are connected; their disks were just created.
    fn connected(plan: Plan) -> Self {
        let mut stage = Self::new(plan);
        for node in &mut stage.nodes {
            node.ok(&["create-md", "r0"]);
            node.start();
            node.ok(&["up", "r0"]);
        }
        stage.nodes[0].ok(&["wait-connect", "r0", "--timeout", "60"]);
        stage
    }

    /// Both nodes run, alpha is Primary, both disks are UpToDate and equal (by a full sync).
    pub fn in_sync(plan: Plan) -> Self {
        let stage = Self::connected(plan);
        stage.nodes[0].ok(&["primary", "--force", "r0"]);
        stage.wait_in_sync();
        stage
    }

    /// Both nodes run, nothing was copied: two disks without data are declared equal. Nobody is Primary.
    pub fn declared_equal(plan: Plan) -> Self {
        let stage = Self::connected(plan);
        stage.nodes[0].ok(&["new-current-uuid", "r0", "--clear-bitmap"]);
        stage.wait_in_sync();
        stage
    }

    /// The Primary is gone under load: `node` takes over, and what it serves is judged: its disk
    /// has the writes in their order, under B and C every confirmed one.
    pub fn takes_over(&self, node: usize, history: &Mutex<History>) {
        let node = &self.nodes[node];
        node.wait("the peer is lost", |s| {
            s["peers"][0]["connection"] != "Connected"
        });
        node.ok(&["primary", "r0"]);
        let mut client = Client::unix(&node.export).expect("the survivor serves");
        let (size, confirmed) = (client.info.size, self.plan.protocol != "A");
        let mut history = history.lock().unwrap();
        if size <= 64 * MIB {
            let content = client.read_all().expect("reads");
            history.judge_order(&content, confirmed);
        } else {
            // From the disk itself, where holes cost nothing.
            history.judge_order(&Sparse::read(&node.disk, size), confirmed);
        }
        client.disconnect();
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn config_dir(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    /// Writes the shared configuration file.
    pub fn configure(&self, text: &str) {
        std::fs::write(self.config_dir().join("r0.toml"), text).expect("a configuration file");
    }

    pub fn address(&self, node: usize) -> String {
        format!("{}:7789", self.addresses[node])
    }

    pub fn tcp_export(&self, node: usize) -> String {
        format!("{}:{}", self.addresses[node], self.tcp_port)
    }

    pub fn config_text(&self) -> String {
        let mut text = format!(
            "[resource]\nname = \"r0\"\nprotocol = \"{}\"\nshared-secret = \"swordfish\"\n",
            self.plan.protocol
        );
        for (id, node) in self.nodes.iter().enumerate() {
            let mut export = format!("\"unix:{}\"", node.export.display());
            if self.plan.tcp_export {
                write!(export, ", \"tcp:{}\"", self.tcp_export(id)).expect("a string grows");
            }
            let meta = match self.plan.external_meta {
                true => meta_of(node).display().to_string(),
                false => "internal".to_owned(),
            };
            write!(
                text,
                "\n[node.{}]\nid = {id}\naddress = \"{}\"\ndisk = \"{}\"\nmeta-disk = \"{meta}\"\n\
                 export = [{export}]\n",
                node.name,
                self.address(id),
                node.disk.display(),
            )
            .expect("a string grows");
        }
        write!(text, "\n[net]\n{}\n{}", self.plan.net, self.plan.more).expect("a string grows");
        text
    }

    /// Waits until both copies are the same, on both nodes' word.
    pub fn wait_in_sync(&self) {
        for node in &self.nodes {
            node.wait("both UpToDate", |s| {
                let peer = &s["peers"][0]["volumes"][0];
                s["volumes"][0]["disk"] == "UpToDate"
                    && peer["peer_disk"] == "UpToDate"
                    && peer["replication"] == "Established"
                    && peer["out_of_sync"] == 0
            });
        }
    }

    /// Stops both nodes in order and compares what their disks hold, byte for byte. Returns the data.
    pub fn stop_and_compare(&mut self) -> Vec<u8> {
        let size = self.size_of_both();
        for node in &mut self.nodes {
            node.ok(&["down", "r0", "--force"]);
            node.terminate();
        }
        self.compare(size);
        self.nodes[0].disk_content(size)
    }

    /// Nobody writes: waits until both have everything, and compares what their disks hold while they
    /// run. Returns the data.
    pub fn compare_quiet(&self) -> Sparse {
        self.wait_in_sync();
        for node in &self.nodes {
            node.wait("everything to be stable on the peer", |s| {
                s["peers"][0]["transfer_log"] == 0
            });
        }
        self.compare(self.size_of_both())
    }

    fn size_of_both(&self) -> u64 {
        let size = self.nodes[0].data_size();
        assert_eq!(size, self.nodes[1].data_size(), "both have the same size");
        size
    }

    fn compare(&self, size: u64) -> Sparse {
        let [alpha, bravo] = [0, 1].map(|n| Sparse::read(&self.nodes[n].disk, size));
        if let Some(block) = alpha.difference(&bravo) {
            panic!(
                "the disks differ in block {block}: alpha {:?} bravo {:?}\n{}\n{}",
                &alpha.block(block)[..16],
                &bravo.block(block)[..16],
                self.nodes[0].log_text(),
                self.nodes[1].log_text()
            );
        }
        alpha
    }
}
