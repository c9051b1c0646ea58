//! A partner whose machine dies says nothing. The kernel asks after it on every TCP connection, so that
//! no dead client holds an export for ever.

use crate::harness::nbd::Client;
use crate::harness::stage::{Plan, Stage};
use crate::harness::{tools, wait_for};
use std::process::Command;

/// Waits until every connection from (`src`) or to (`dst`) an address has the kernel's timer for
/// questions: `ss` shows it while nothing is under way.
fn all_are_watched(way: &str, address: &str, count: usize) {
    let lines = std::cell::RefCell::new(String::new());
    wait_for(
        &format!("{count} watched connections, {way} {address}"),
        || {
            let mut ss = Command::new("ss");
            ss.args(["-tnoH", "state", "established", way, address]);
            lines.replace(tools::run(&mut ss));
            let lines = lines.borrow();
            let watched = lines.lines().filter(|l| l.contains("timer:(keepalive"));
            (lines.lines().count() == count && watched.count() == count).then_some(())
        },
        || lines.borrow().clone(),
    );
}

#[test]
fn every_connection_is_watched() {
    let mut plan = Plan::new("C");
    plan.tcp_export = true;
    // Few pings: between them nothing is under way.
    plan.net = "connect-int = 1\nping-int = 20\n".into();
    let mut stage = Stage::in_sync(plan);
    let client = Client::tcp(&stage.tcp_export(0)).expect("alpha serves");
    all_are_watched("src", &stage.tcp_export(0), 1);
    // alpha dialled, bravo accepted; two sockets each.
    all_are_watched("src", &stage.address(1), 2);
    all_are_watched("dst", &stage.address(1), 2);
    client.disconnect();
    stage.stop_and_compare();
}
