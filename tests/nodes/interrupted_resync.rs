//! A resync is interrupted, by the death of either side or of the link, and goes on where it was.
//! Invariants: while it runs the target refuses to be promoted; afterwards only what is left is copied,
//! never everything again; both disks end up equal.

use crate::harness::load::{History, Load, wait_for_writes};
use crate::harness::nbd::Client;
use crate::harness::seeds::{Rng, each_seed};
use crate::harness::stage::{Plan, Stage};
use crate::harness::wait_for;
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn resync(status: &Value) -> &Value {
    &status["peers"][0]["volumes"][0]["resync"]
}

#[test]
fn an_interrupted_resync_goes_on() {
    each_seed(|seed| {
        let mut rng = Rng(seed ^ 0x1e5);
        let mut plan = Plan::seeded(seed);
        plan.sizes = [64 * MIB; 2];
        plan.namespaces = seed % 4 == 3;
        if plan.namespaces {
            plan.net = super::link_cut::IMPATIENT.into();
        }
        let mut stage = Stage::in_sync(plan);
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        stage.nodes[1].kill();

        // 24 MiB are missed, all over the disk; then the resync is made slow enough to be caught.
        let mut client = Client::unix(&stage.nodes[0].export).expect("alpha serves");
        let mut bytes = vec![0; MIB as usize];
        for n in 0..24 {
            rng.fill(&mut bytes);
            client.write(n * 2 * MIB, &bytes).expect("writes");
        }
        let text = stage.config_text() + "\n[disk]\nc-max-rate = \"8M\"\n";
        stage.configure(&text);
        stage.nodes[0].ok(&["adjust", "r0"]);
        stage.nodes[1].start();
        let begun = stage.nodes[0].wait("a resync", |s| {
            let run = resync(s);
            run["left"]
                .as_u64()
                .is_some_and(|left| left + 4 * MIB <= run["total"].as_u64().unwrap())
        });
        let total = resync(&begun)["total"].as_u64().unwrap();
        // The target writes down now and then how far it is.
        wait_for(
            "a checkpoint",
            || {
                let text = stage.nodes[1].ok(&["dump-md", "r0", "--json"]);
                let md: Value = serde_json::from_str(&text).expect("JSON");
                let bits = md[0]["metadata"]["peers"][0]["bits_set"]
                    .as_u64()
                    .expect("bits");
                (bits > 0 && bits * 4096 + 2 * MIB <= total).then_some(())
            },
            || stage.nodes[1].log_text(),
        );
        assert!(
            (24 * MIB..32 * MIB).contains(&total),
            "what was missed: {begun:#}"
        );
        let refusal = stage.nodes[1].refused(17, &["primary", "r0"]);
        assert!(refusal.contains("Inconsistent"), "{refusal}");

        let events = stage.nodes[0].events();
        // Its own first line: from here on nothing is missed.
        events.wait("the listener", |e| e["kind"] == "role");
        let way = if stage.plan.namespaces { 3 } else { seed % 4 };
        let mut expected = client.read_all().expect("reads");
        match way {
            0 => {
                stage.nodes[1].kill();
                stage.nodes[1].start();
            }
            1 => {
                stage.nodes[1].terminate();
                stage.nodes[1].start();
            }
            2 => {
                stage.nodes[0].ok(&["disconnect", "r0"]);
                stage.nodes[0].ok(&["connect", "r0"]);
                stage.nodes[1].ok(&["connect", "r0"]);
            }
            _ => {
                let cable = stage.cable.as_ref().unwrap();
                cable.cut();
                for node in &stage.nodes {
                    node.wait("lost", |s| s["peers"][0]["connection"] != "Connected");
                }
                cable.mend();
            }
        }
        events.wait("the interruption", |e| {
            e["kind"] == "replication" && e["to"] == "Off"
        });
        // From its event: the resync itself may be over before anybody looks.
        let again = events.wait("the resync goes on", |e| {
            let text = e["cause"].as_str().unwrap_or_default();
            e["kind"] == "incident" && text.contains("begins as SyncSource")
        });
        let left: u64 = again["cause"]
            .as_str()
            .and_then(|text| text.split(": ").nth(1)?.split(' ').next()?.parse().ok())
            .expect("how much is out of sync");
        assert!(
            left < total,
            "it goes on where it was: {left} of {total}, way {way}"
        );
        let text = stage.config_text();
        stage.configure(&text);
        stage.nodes[0].ok(&["adjust", "r0"]);
        client.disconnect();
        stage.wait_in_sync();
        // The source dies in the end: the target has all it needs.
        let equal = stage.stop_and_compare();
        expected.truncate(equal.len());
        assert!(equal == expected);
        drop(history);
    });
}

/// The source of a resync dies under load: the target must not serve, and must say why.
#[test]
fn a_half_synced_node_is_no_substitute() {
    each_seed(|seed| {
        let mut rng = Rng(seed ^ 0x1e6);
        let mut stage = Stage::in_sync(Plan::seeded(seed));
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        stage.nodes[1].kill();
        let load = Load::start(&stage.nodes[0].export, &history, seed, 16);
        wait_for_writes(&history, 300 + rng.below(200) as usize);
        let text = stage.config_text() + "\n[disk]\nc-max-rate = \"1M\"\n";
        stage.configure(&text);
        stage.nodes[0].ok(&["adjust", "r0"]);
        stage.nodes[1].start();
        stage.nodes[0].wait("a resync", |s| resync(s).is_object());
        wait_for_writes(&history, 20 + rng.below(50) as usize);
        stage.nodes[0].kill();
        load.broken();
        let bravo = &stage.nodes[1];
        bravo.wait("alone", |s| s["peers"][0]["connection"] != "Connected");
        assert_eq!(bravo.status()["volumes"][0]["disk"], "Inconsistent");
        let refusal = bravo.refused(17, &["primary", "r0"]);
        assert!(refusal.contains("Inconsistent"), "{refusal}");
        assert!(Client::unix(&bravo.export).is_err(), "it serves nobody");
        stage.configure(&stage.config_text());
        stage.nodes[0].start();
        stage.wait_in_sync();
        let content = stage.stop_and_compare();
        history.lock().unwrap().judge_blocks(&content);
    });
}
