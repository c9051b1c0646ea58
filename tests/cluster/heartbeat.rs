//! Heartbeat with haresources: `twinblkdisk`, and the watch beside it.

use super::addresses::{
    address_link_cut, both_links_cut, both_links_cut_with_fencing, daemon_and_machine_die, serving,
};
use super::pair::Pair;

const HA_CF: &str = "logfile /var/log/ha.log
keepalive 1
warntime 3
deadtime 6
initdead 12
udpport 694
ucast eth0 10.88.0.1
ucast eth0 10.88.0.2
auto_failback off
crm no
node alpha
node bravo
";

const SHELLFUNCS: &str = "[ ! -r /usr/libexec/twinblk/heartbeat-shellfuncs ] || . /usr/libexec/twinblk/heartbeat-shellfuncs";

fn start(pair: &Pair, node: usize) {
    let machine = &pair.machines[node];
    machine.write("/etc/ha.d/ha.cf", HA_CF, 0o644);
    machine.write("/etc/ha.d/authkeys", "auth 1\n1 sha1 swordfish\n", 0o600);
    machine.write(
        "/etc/ha.d/haresources",
        "alpha twinblkdisk::r0 service IPaddr2::10.88.0.100/24/eth0\n",
        0o644,
    );
    machine.write(
        "/etc/default/twinblkdisk",
        "TWINBLK_START_COMMAND=twinblk-start\n",
        0o644,
    );
    // As docs/cluster/heartbeat.md says; a machine that comes back has it.
    machine.ok(&format!(
        "grep -q heartbeat-shellfuncs /etc/ha.d/shellfuncs || echo '{SHELLFUNCS}' >>/etc/ha.d/shellfuncs"
    ));
    machine.ok("ln -sf /usr/local/sbin/service /etc/ha.d/resource.d/service");
    machine.ok(
        "mkdir -p /var/run/heartbeat/ccm /var/run/heartbeat/dopd /var/lib/heartbeat && \
                chown -R hacluster:haclient /var/run/heartbeat",
    );
    machine.spawn("heartbeat", "exec /usr/libexec/heartbeat/heartbeat");
    machine.spawn(
        "watch",
        "TWINBLK_GRACE=20 TWINBLK_CHECK='/usr/local/sbin/service status' \
         exec /usr/libexec/twinblk/watch r0 /usr/share/heartbeat/hb_standby",
    );
}

/// When the other node dies, two of Heartbeat's scripts tell it something at the same moment. With its own
/// function their lines mix, and the list is not started.
#[test]
fn messages_to_heartbeat_stay_whole() {
    let guide = include_str!("../../docs/cluster/heartbeat.md");
    assert!(guide.contains(SHELLFUNCS));
    // What /bin/sh is on the distributions.
    for shell in ["dash", "bash"] {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/heartbeat/shellfuncs");
        let text = format!(
            "HA_FIFO={}/fifo; . /etc/ha.d/shellfuncs; . {ours}
             mkfifo $HA_FIFO; exec 3<>$HA_FIFO
             send() {{ for i in $(seq 200); do ha_clustermsg <<-!MSG
\t\tt=$1
\t\tnumber=$1$i
\t\t!MSG
             done; }}
             send a & first=$!; send b & wait $! $first
             timeout 60 head -n 1600 <&3",
            dir.path().display()
        );
        let out = std::process::Command::new(shell)
            .args(["-c", &text])
            .env("HA_DIR", "/etc/ha.d")
            .output()
            .expect(shell);
        let heard = String::from_utf8_lossy(&out.stdout);
        let lines: Vec<&str> = heard.lines().collect();
        let told = String::from_utf8_lossy(&out.stderr);
        assert_eq!(lines.len(), 1600, "{shell}: {told}");
        let (mut a, mut b) = (1.., 1..);
        for message in lines.chunks(4) {
            let (name, number) = match message[1] {
                "t=a" => ("a", a.next()),
                _ => ("b", b.next()),
            };
            let number = number.expect("no end");
            let whole = [
                ">>>",
                &format!("t={name}"),
                &format!("number={name}{number}"),
                "<<<",
            ];
            assert_eq!(message, whole, "{shell}: {told}");
        }
    }
}

#[test]
fn failover_by_heartbeat() {
    let (mut pair, writer, node) = serving(start);
    let node = daemon_and_machine_die(&mut pair, &writer, node, start);
    if crate::all() {
        address_link_cut(&pair, &writer, node);
    }
}

#[test]
fn heartbeat_without_any_link_and_without_fencing() {
    if crate::all() {
        let (pair, writer, _) = serving(start);
        both_links_cut(&pair, writer);
    }
}

#[test]
fn heartbeat_without_any_link_and_with_fencing() {
    if crate::all() && crate::fencing() {
        both_links_cut_with_fencing(start);
    }
}
