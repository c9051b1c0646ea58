//! Pacemaker and Corosync: the agent `ocf:twinblk:twinblk` below an address and a service.

use super::lan::Net;
use super::pair::Pair;
use super::store::Writer;

const COROSYNC: &str = "totem {
  version: 2
  cluster_name: twinblk
  transport: udpu
  crypto_cipher: none
  crypto_hash: none
}
nodelist {
  node {
    ring0_addr: 10.88.0.1
    name: alpha
    nodeid: 1
  }
  node {
    ring0_addr: 10.88.0.2
    name: bravo
    nodeid: 2
  }
}
quorum {
  provider: corosync_votequorum
  two_node: 1
  wait_for_all: 0
}
logging {
  to_stderr: no
  to_logfile: yes
  logfile: /var/log/corosync/corosync.log
  to_syslog: no
}
";

/// As in docs/cluster/pacemaker.md, with another service and without fencing.
const RESOURCES: &str = r#"property stonith-enabled=false
rsc_defaults resource-stickiness=100
primitive disk ocf:twinblk:twinblk \
  params resource=r0 start_command=/usr/local/sbin/twinblk-start \
  op start timeout=240s interval=0 \
  op stop timeout=100s interval=0 \
  op promote timeout=90s interval=0 \
  op demote timeout=90s interval=0 \
  op notify timeout=90s interval=0 \
  op monitor role=Master interval=2s timeout=20s \
  op monitor role=Slave interval=3s timeout=20s
primitive address ocf:heartbeat:IPaddr2 \
  params ip=10.88.0.100 cidr_netmask=24 nic=eth0 \
  op monitor interval=2s timeout=20s
primitive store ocf:heartbeat:anything \
  params binfile=/usr/local/sbin/store logfile=/var/log/store.log errlogfile=/var/log/store.log \
    pidfile=/run/store.pid \
  op monitor interval=2s timeout=20s
group site store address
ms disks disk \
  meta notify=true promoted-max=1 clone-max=2 clone-node-max=1 interleave=true
colocation site-with-primary inf: site disks:Master
order promote-then-site inf: disks:promote site:start
"#;

/// Starts Corosync and Pacemaker.
pub fn start_cluster(pair: &Pair, node: usize) {
    let machine = &pair.machines[node];
    machine.write("/etc/corosync/corosync.conf", COROSYNC, 0o644);
    machine.ok(
        "mkdir -p /var/log/pacemaker /var/log/corosync /var/log/crmsh && \
                chown hacluster:haclient /var/log/pacemaker",
    );
    machine.ok("corosync");
    crate::wait(
        "corosync to answer",
        || {
            machine
                .run("corosync-quorumtool -s")
                .stdout
                .windows(7)
                .any(|w| w == b"Quorate")
                .then_some(())
        },
        || machine.say("tail -n 50 /var/log/corosync/corosync.log"),
    );
    // One that has lost its corosync waits for it.
    if !machine.run("pidof pacemakerd").status.success() {
        machine.spawn("pacemakerd", "exec pacemakerd -f");
    }
}

/// A cluster that serves from one of the two.
pub fn serving() -> (Pair, Writer, usize) {
    serving_with("")
}

fn serving_with(configuration: &str) -> (Pair, Writer, usize) {
    let pair = Pair::with(configuration);
    pair.tell("the copies are in sync, Pacemaker starts");
    for node in 0..2 {
        start_cluster(&pair, node);
    }
    wait_online(&pair, 2);
    pair.tell("both nodes are online");
    pair.machines[0].write("/run/resources.crm", RESOURCES, 0o644);
    pair.machines[0].ok("crm --force configure load update /run/resources.crm 2>&1");
    let writer = Writer::start(&pair.lan);
    let node = pair.wait_serves(&[0, 1], &writer);
    (pair, writer, node)
}

fn wait_online(pair: &Pair, count: usize) {
    let online = |node: usize| {
        let nodes = pair.machines[node].say("crm_mon -1 --output-as=xml --include=none,nodes");
        nodes.matches("online=\"true\"").count()
    };
    crate::wait(
        "the nodes to be online",
        || {
            (0..2)
                .all(|n| !pair.machines[n].runs() || online(n) == count)
                .then_some(())
        },
        || pair.describe(),
    );
}

/// Both copies are the same again, one is Primary, and the cluster has nothing to complain about.
fn settled(pair: &Pair, writer: &Writer) -> usize {
    pair.wait_in_sync();
    let node = pair.wait_serves(&[0, 1], writer);
    pair.machines[node].say("crm_resource --cleanup");
    pair.wait_serves(&[0, 1], writer)
}

#[test]
fn failover_by_pacemaker() {
    let (mut pair, writer, mut node) = serving();

    pair.tell("standby");
    let name = pair.machines[node].name;
    pair.machines[node].ok(&format!(
        "crm_attribute --type nodes --node {name} --name standby --update on"
    ));
    let other = pair.wait_serves(&[1 - node], &writer);
    pair.machines[other].ok(&format!(
        "crm_attribute --type nodes --node {name} --name standby --delete"
    ));
    node = settled(&pair, &writer);

    let other = pair.machines[1 - node].name;
    pair.tell("move");
    pair.machines[node].ok(&format!(
        "crm_resource --resource site --move --node {other}"
    ));
    pair.wait_serves(&[1 - node], &writer);
    pair.machines[node].ok("crm_resource --resource site --clear");
    node = settled(&pair, &writer);

    pair.kill_daemon(node);
    // Its exports died with it; whoever the cluster chooses.
    node = settled(&pair, &writer);

    pair.cut(Net::Replication);
    let lost = |n: usize| {
        pair.status(n)
            .is_some_and(|s| s["peers"][0]["connection"] != "Connected")
    };
    crate::wait(
        "the peer to be lost",
        || lost(node).then_some(()),
        || pair.describe(),
    );
    assert_eq!(
        pair.wait_serves(&[node], &writer),
        node,
        "the Primary goes on"
    );
    pair.mend(Net::Replication);
    node = settled(&pair, &writer);

    pair.power_off(node);
    node = pair.wait_serves(&[1 - node], &writer);
    pair.power_on(1 - node);
    start_cluster(&pair, 1 - node);
    wait_online(&pair, 2);
    settled(&pair, &writer);
}

/// Corosync is killed on the Primary's node: Pacemaker ends there and leaves running what runs. The other
/// node thinks it dead and tries; the peer's word stands against it.
#[test]
fn pacemaker_loses_corosync_and_the_primary_goes_on() {
    if !crate::all() {
        return;
    }
    let (pair, writer, node) = serving();
    pair.tell("kill -9 of corosync");
    pair.machines[node].ok("kill -9 $(pidof corosync)");
    let other = &pair.machines[1 - node];
    crate::wait(
        "the other node to try",
        || {
            other
                .run("grep -q ' up$' /run/twinblk/hook-r0")
                .status
                .success()
                .then_some(())
        },
        || pair.describe(),
    );
    for _ in 0..20 {
        assert_eq!(pair.primaries(), [node], "{}", pair.describe());
    }
    assert_eq!(pair.wait_serves(&[node], &writer), node);
    pair.tell("corosync comes back");
    start_cluster(&pair, node);
    wait_online(&pair, 2);
    settled(&pair, &writer);
}

#[test]
fn pacemaker_without_any_link_and_without_fencing() {
    if crate::all() {
        let (pair, writer, _) = serving();
        super::addresses::both_links_cut(&pair, writer);
    }
}

/// Who was left behind and knows it is not promoted, though nobody else is there.
#[test]
fn pacemaker_does_not_promote_a_stale_copy_that_is_alone() {
    if !crate::all() {
        return;
    }
    let (mut pair, writer, node) = serving();
    pair.machines[node].ok("twinblk disconnect r0");
    pair.wait_serves(&[node], &writer);
    pair.power_off(node);
    let other = 1 - node;
    wait_online(&pair, 1);
    pair.machines[other].ok("crm_resource --wait --timeout 120");
    assert_eq!(pair.primaries(), [0; 0], "{}", pair.describe());
    assert!(!pair.lan.has_address(other));
    assert_eq!(
        pair.machines[other].ok("twinblk hook r0 score").trim(),
        "none"
    );
    pair.tell("the stale copy is not promoted");
    pair.power_on(node);
    start_cluster(&pair, node);
    wait_online(&pair, 2);
    // Whoever it is then, for the other is brought up to date at once.
    settled(&pair, &writer);
}

const FENCING: &str = "fencing = \"resource-and-stonith\"
[handlers]
fence-peer = \"/usr/libexec/twinblk/crm-fence-peer\"
unfence-peer = \"/usr/libexec/twinblk/crm-unfence-peer\"
";

/// With fencing: whatever is cut, there is one Primary; the constraint comes and goes by itself.
#[test]
fn pacemaker_with_fencing_never_has_two_primaries() {
    if !crate::all() || !crate::fencing() {
        return;
    }
    let (mut pair, writer, node) = serving_with(FENCING);
    let other = 1 - node;
    let constrained = |node: usize| {
        let text = pair.machines[node].say("cibadmin --query --scope constraints");
        text.contains("twinblk-fence-r0-disks")
    };
    pair.cut(Net::Replication);
    crate::wait(
        "the constraint",
        || constrained(node).then_some(()),
        || pair.describe(),
    );
    pair.wait_serves(&[node], &writer);
    pair.mend(Net::Replication);
    pair.wait_in_sync();
    crate::wait(
        "no constraint",
        || (!constrained(node)).then_some(()),
        || pair.describe(),
    );
    pair.wait_serves(&[node], &writer);

    // Neither node can tell whether the other lives; the one that is Primary goes on.
    pair.machines[other].ok("rm -f /run/twinblk/hook-r0");
    pair.cut(Net::Replication);
    pair.cut(Net::Public);
    let attempt = "grep -q ' up$' /run/twinblk/hook-r0";
    crate::wait(
        "the other node to try",
        || {
            pair.machines[other]
                .run(attempt)
                .status
                .success()
                .then_some(())
        },
        || pair.describe(),
    );
    crate::wait(
        "the other node to be refused",
        || {
            pair.machines[other]
                .run("grep -q 'exit 5\\|exit 1' /var/log/twinblk.log")
                .status
                .success()
                .then_some(())
        },
        || pair.describe(),
    );
    for _ in 0..20 {
        assert_eq!(pair.primaries(), [node], "{}", pair.describe());
    }
    pair.mend(Net::Replication);
    pair.mend(Net::Public);
    wait_online(&pair, 2);
    let node = settled(&pair, &writer);

    // Fenced off by the cluster: then the other takes over.
    pair.machines[node].ok(
        "crm --force configure primitive power stonith:null params hostlist=\"alpha bravo\" && \
         crm --force configure property stonith-enabled=true",
    );
    crate::wait(
        "the fencing device to run",
        || {
            pair.machines[node]
                .say("crm_resource -r power --locate")
                .contains("running on")
                .then_some(())
        },
        || pair.describe(),
    );
    pair.power_off(node);
    pair.wait_serves(&[1 - node], &writer);
    pair.power_on(node);
    start_cluster(&pair, node);
    wait_online(&pair, 2);
    settled(&pair, &writer);
}
