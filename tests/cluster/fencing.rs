//! The handlers crm-fence-peer and crm-unfence-peer, called as twinblk calls them, in a real cluster.

use super::pacemaker::{serving, start_cluster};
use super::pair::Pair;

/// What twinblk would say of a peer it has lost.
const LOST: &str =
    "TWINBLK_DISK_STATE=UpToDate TWINBLK_CONNECTION=Connecting TWINBLK_PEER_DISK_STATE=DUnknown";

/// Calls the handler on a node against the other; returns its exit code and what it said.
fn fence(pair: &Pair, node: usize, environment: &str, options: &str) -> (i32, String) {
    let [me, peer] = [node, 1 - node].map(|n| pair.machines[n].name);
    let output = pair.machines[node].run(&format!(
        "export TWINBLK_RESOURCE=r0 TWINBLK_NODE={me} TWINBLK_PEER={peer} {environment}; \
         exec /usr/libexec/twinblk/crm-fence-peer {options}"
    ));
    let (out, err) = crate::harness::node::texts(&output);
    (output.status.code().expect("a code"), out + &err)
}

fn expect(pair: &Pair, node: usize, environment: &str, options: &str, code: i32) {
    let (found, text) = fence(pair, node, environment, options);
    assert_eq!(
        found,
        code,
        "{environment} {options}: {text}\n{}",
        pair.describe()
    );
    pair.tell(text.trim());
}

fn unfence(pair: &Pair, node: usize) {
    pair.machines[node].ok("TWINBLK_RESOURCE=r0 /usr/libexec/twinblk/crm-unfence-peer");
    assert!(!has_constraint(pair, node));
}

fn has_constraint(pair: &Pair, node: usize) -> bool {
    let text = pair.machines[node].ok("cibadmin --query --scope constraints");
    text.contains("id=\"twinblk-fence-r0-disks\"")
}

#[test]
fn the_handlers_of_pacemaker_tell_the_truth() {
    let (mut pair, writer, node) = serving();
    let other = 1 - node;
    let primary = format!("TWINBLK_ROLE=Primary {LOST}");

    // Nothing to fence, nothing to fence with.
    expect(
        &pair,
        node,
        "TWINBLK_ROLE=Primary TWINBLK_DISK_STATE=UpToDate TWINBLK_CONNECTION=Connected \
                         TWINBLK_PEER_DISK_STATE=UpToDate",
        "",
        1,
    );
    expect(&pair, node, &format!("{primary} TWINBLK_PEER=carol"), "", 1);
    expect(
        &pair,
        node,
        &format!("{primary} TWINBLK_RESOURCE=nosuch"),
        "",
        1,
    );
    expect(
        &pair,
        node,
        &format!("{primary} TWINBLK_DISK_STATE=Inconsistent"),
        "",
        5,
    );
    assert!(!has_constraint(&pair, node));
    // The cluster knows better than one who has lost sight of it.
    expect(
        &pair,
        other,
        &format!("TWINBLK_ROLE=Secondary {LOST}"),
        "",
        6,
    );
    assert!(!has_constraint(&pair, node));

    // Both try at once: one succeeds.
    let codes = std::thread::scope(|scope| {
        let calls = [0, 1].map(|n| {
            scope.spawn({
                let (pair, primary) = (&pair, &primary);
                move || fence(pair, n, primary, "").0
            })
        });
        let mut codes = calls.map(|c| c.join().expect("it ends"));
        codes.sort_unstable();
        codes
    });
    assert_eq!(codes, [1, 4], "{}", pair.describe());
    unfence(&pair, other);
    unfence(&pair, other);

    // Placed, it keeps the peer from being promoted; taken away, it does not.
    expect(&pair, node, &primary, "", 4);
    expect(&pair, node, &primary, "", 4);
    let name = pair.machines[node].name;
    pair.machines[node].ok(&format!(
        "crm_attribute --type nodes --node {name} --name standby --update on"
    ));
    pair.machines[other].ok("crm_resource --wait --timeout 120");
    assert_eq!(pair.primaries(), [0; 0], "{}", pair.describe());
    unfence(&pair, other);
    pair.wait_serves(&[other], &writer);
    pair.machines[other].ok(&format!(
        "crm_attribute --type nodes --node {name} --name standby --delete"
    ));
    pair.wait_in_sync();

    // The peer is gone, and nobody has made sure of it; then somebody has.
    pair.power_off(node);
    pair.wait_serves(&[other], &writer);
    expect(&pair, other, &primary, "", 5);
    assert!(has_constraint(&pair, other));
    pair.machines[other].ok(
        "crm --force configure primitive power stonith:null params hostlist=\"alpha bravo\" && \
         crm --force configure property stonith-enabled=true",
    );
    crate::wait(
        "the fencing device to run",
        || {
            pair.machines[other]
                .say("crm_resource -r power --locate")
                .contains("running on")
                .then_some(())
        },
        || pair.describe(),
    );
    expect(&pair, other, &primary, "--stonith", 7);
    expect(&pair, other, &primary, "", 7);
    unfence(&pair, other);

    // Nobody to ask: the copy that comes back has no cluster yet.
    pair.power_on(node);
    let begin = std::time::Instant::now();
    expect(&pair, node, &primary, "--timeout 5", 1);
    println!(
        "without a cluster it took {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    start_cluster(&pair, node);
    pair.wait_in_sync();
    pair.wait_serves(&[other], &writer);
}
