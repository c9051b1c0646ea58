//! What the stories of keepalived, ucarp and Heartbeat share: the service as a command, the settings of the
//! scripts that start it, and the stories themselves, which are the same for each.

use super::lan::Net;
use super::pair::Pair;
use super::store::Writer;

/// Starts, stops and looks at the service.
const SERVICE: &str = "#!/bin/sh
alive() { kill -0 \"$(cat /run/store.pid 2>/dev/null)\" 2>/dev/null && ss -ltn | grep -q ':8080 '; }
case $1 in
start)
    alive && exit 0
    setsid -f sh -c 'echo $$ >/run/store.pid; exec /usr/local/sbin/store >>/var/log/store.log 2>&1' </dev/null >/dev/null 2>&1
    for look in $(seq 100); do alive && exit 0; sleep 0.1; done
    exit 1
    ;;
stop)
    pid=$(cat /run/store.pid 2>/dev/null) || exit 0
    kill \"$pid\" 2>/dev/null
    for look in $(seq 100); do kill -0 \"$pid\" 2>/dev/null || exit 0; sleep 0.1; done
    exit 1
    ;;
status) if alive; then echo running; else echo stopped; exit 3; fi ;;
esac
";

const SETTINGS: &str = "START='/usr/local/sbin/service start'
STOP='/usr/local/sbin/service stop'
CHECK='/usr/local/sbin/service status'
";

/// A pair in sync with the service installed and `start` called for each machine.
pub fn serving(start: impl Fn(&Pair, usize)) -> (Pair, Writer, usize) {
    serving_with("", start)
}

fn serving_with(configuration: &str, start: impl Fn(&Pair, usize)) -> (Pair, Writer, usize) {
    let pair = Pair::with(configuration);
    for machine in &pair.machines {
        machine.write("/usr/local/sbin/service", SERVICE, 0o755);
        machine.write("/etc/twinblk/cluster/r0.conf", SETTINGS, 0o600);
    }
    pair.tell("the copies are in sync, the address daemons start");
    for node in 0..2 {
        start(&pair, node);
    }
    let writer = Writer::start(&pair.lan);
    let node = pair.wait_serves(&[0, 1], &writer);
    (pair, writer, node)
}

/// Both copies are the same again, and one serves.
pub fn settled(pair: &Pair, writer: &Writer) -> usize {
    pair.wait_in_sync();
    pair.wait_serves(&[0, 1], writer)
}

/// The daemon dies, the machine dies and comes back: address and Primary stay together.
pub fn daemon_and_machine_die(
    pair: &mut Pair,
    writer: &Writer,
    mut node: usize,
    start: impl Fn(&Pair, usize),
) -> usize {
    pair.kill_daemon(node);
    node = settled(pair, writer);
    pair.power_off(node);
    node = pair.wait_serves(&[1 - node], writer);
    pair.power_on(1 - node);
    start(pair, 1 - node);
    pair.wait_in_sync();
    // Who serves goes on: none of the configurations takes it back.
    assert_eq!(pair.wait_serves(&[node], writer), node);
    node
}

/// The address daemons do not hear each other, twinblk's two do: the peer's word keeps the second one from
/// becoming Primary, and the first goes on.
pub fn address_link_cut(pair: &Pair, writer: &Writer, node: usize) {
    pair.cut(Net::Public);
    // The other one tries, and is refused.
    let other = &pair.machines[1 - node];
    crate::wait(
        "the other node to be told to take over",
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
    pair.mend(Net::Public);
    settled(pair, writer);
}

/// No link at all, and no fencing: both become Primary, which nothing but fencing could prevent. When the
/// links are back the split brain is found, told, and resolved by an order.
pub fn both_links_cut(pair: &Pair, writer: Writer) {
    pair.cut(Net::Replication);
    pair.cut(Net::Public);
    crate::wait(
        "both to be Primary",
        || (pair.primaries().len() == 2).then_some(()),
        || pair.describe(),
    );
    // A client on each side has written something.
    drop(writer);
    for machine in &pair.machines {
        let name = machine.name;
        machine.write("/run/one-write", ONE_WRITE, 0o755);
        crate::wait(
            "a write on each side",
            || {
                machine
                    .run(&format!("/run/one-write {name}"))
                    .status
                    .success()
                    .then_some(())
            },
            || pair.describe(),
        );
    }
    pair.mend(Net::Replication);
    let told = |node: usize| {
        let text = pair.machines[node].say("twinblk why r0");
        text.to_lowercase().contains("split brain") || text.contains("split-brain")
    };
    crate::wait(
        "the split brain to be told",
        || (told(0) && told(1)).then_some(()),
        || pair.describe(),
    );
    pair.tell("the split brain is told on both nodes");
}

/// No link at all, and a fencing that can make sure of nothing: the Primary's I/O waits, and nobody else
/// becomes Primary. When a link is back it goes on, and nothing is lost.
pub fn both_links_cut_with_fencing(start: impl Fn(&Pair, usize)) {
    let configuration = "fencing = \"resource-and-stonith\"\n[handlers]\nfence-peer = \"exit 1\"\n";
    let (pair, writer, node) = serving_with(configuration, start);
    let other = &pair.machines[1 - node];
    other.ok("rm -f /run/twinblk/hook-r0");
    pair.cut(Net::Replication);
    pair.cut(Net::Public);
    crate::wait(
        "the other node to be told to take over",
        || {
            other
                .run("grep -q ' up$' /run/twinblk/hook-r0")
                .status
                .success()
                .then_some(())
        },
        || pair.describe(),
    );
    let suspended = || {
        let text = pair.machines[node].say("twinblk status r0");
        text.contains("suspended")
    };
    crate::wait(
        "I/O to wait",
        || suspended().then_some(()),
        || pair.describe(),
    );
    let other_tried = "tail -n 50 /var/log/twinblk.log | grep -q 'fence-peer'";
    crate::wait(
        "the other node to ask for fencing",
        || other.run(other_tried).status.success().then_some(()),
        || pair.describe(),
    );
    for _ in 0..20 {
        assert_eq!(pair.primaries(), [node], "{}", pair.describe());
    }
    pair.mend(Net::Replication);
    pair.mend(Net::Public);
    settled(&pair, &writer);
}

const ONE_WRITE: &str = "#!/usr/bin/python3
import socket, sys
with socket.create_connection(('127.0.0.1', 8080), 3) as s:
    s.sendall(b'put 100 %s\\n' % sys.argv[1].encode())
    sys.exit(s.makefile().readline() != 'ok\\n')
";
