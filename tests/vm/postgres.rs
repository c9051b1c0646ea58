//! PostgreSQL on the device. Sessions commit numbered rows and say so on the console as soon as PostgreSQL
//! has confirmed them; others move money between accounts. The power of their machine is cut, unflushed
//! writes are lost, the other machine takes over. Invariants: PostgreSQL recovers there by itself; every
//! commit that was reported, in this round or before, is there, once and whole; not a cent is lost or
//! made; pg_amcheck finds nothing; afterwards both disks are equal.

use crate::attached::{self, DEVICE, promote};
use crate::harness::seeds::Rng;
use crate::harness::wait_for;
use crate::machine::Machine;
use crate::pair::{NAMES, Pair};
use crate::power_cut::number;
use std::collections::HashSet;
use std::time::Instant;

/// Power cuts, unless `TWINBLK_VM_PG_ROUNDS` says how many.
const ROUNDS: u64 = 1;
/// Sessions that commit numbered rows.
const SESSIONS: u64 = 3;
/// Numbers a session has for itself in a round.
const RANGE: u64 = 1_000_000;
/// Accounts, with 1000 each at first.
const ACCOUNTS: u64 = 400;

/// Commands in a guest: `as_pg PROGRAM...`, `sql WORDS`. Checkpoints come often, so that cuts meet them.
const TOOLS: &str = "bin=/usr/lib/postgresql/15/bin
    as_pg() { p=$1; shift; setpriv --reuid=postgres --regid=postgres --clear-groups $bin/$p \"$@\"; }
    sql() { as_pg psql -h /tmp -XqAt -v ON_ERROR_STOP=1 postgres \"$@\"; }
    cd /tmp
";

fn tool(script: &str) -> String {
    format!("{TOOLS}{script}")
}

fn start(machine: &mut Machine) {
    machine.ok(&tool(
        "as_pg pg_ctl -D /mnt/pg -l /tmp/pg.log -t 600 -w start -o \"-k /tmp -c listen_addresses= \
         -c shared_buffers=16MB -c checkpoint_timeout=30s -c max_wal_size=8MB -c min_wal_size=2MB\" \
         >/dev/null || { cat /tmp/pg.log; exit 1; }",
    ));
}

/// Lets the sessions run; their rows carry numbers from `round` on.
fn load(round: u64) -> String {
    let mut script = String::from(TOOLS);
    for session in 0..SESSIONS {
        let first = (round * SESSIONS + session) * RANGE;
        script += &format!(
            "(seq {first} {} | sed \"s/.*/insert into commits values (&, repeat(md5('&'), 1 + & % 40)) \
             returning 'safe ' || n || ' .';/\" | sql >/dev/console 2>/dev/null) &\n",
            first + RANGE - 1
        );
    }
    script
        + &format!(
            "cat >/tmp/transfer.sql <<'END'
\\set a random(1, {ACCOUNTS} - 1)
\\set b random(:a + 1, {ACCOUNTS})
\\set sum random(1, 100)
begin;
update accounts set money = money - :sum where n = :a;
update accounts set money = money + :sum where n = :b;
commit;
END
            (as_pg pgbench -h /tmp -n -c 2 -T 100000 -f /tmp/transfer.sql postgres >/dev/null 2>&1) &"
        )
}

/// What the consoles say is committed.
pub(crate) fn reported(pair: &Pair) -> HashSet<u64> {
    let mut numbers = HashSet::new();
    for machine in &pair.machines {
        for line in machine.console_text().lines() {
            if let [.., "safe", number, "."] = line.split_whitespace().collect::<Vec<_>>()[..] {
                numbers.extend(number.parse::<u64>());
            }
        }
    }
    numbers
}

/// PostgreSQL on this machine holds all that was `reported`; answers how many rows it has.
fn judge(machine: &mut Machine, reported: &HashSet<u64>) -> usize {
    let text = machine.ok(&tool("sql -c 'select n from commits'"));
    let there: HashSet<u64> = text.lines().map(|l| l.parse().expect("a number")).collect();
    assert_eq!(there.len(), text.lines().count(), "a row is there twice");
    let mut missing: Vec<_> = reported.difference(&there).collect();
    missing.sort();
    assert!(
        missing.is_empty(),
        "reported as committed and gone: {missing:?}"
    );
    let broken = "select count(*) from commits where t <> repeat(md5(n::text), (1 + n % 40)::int)";
    let sums = machine.ok(&tool(&format!(
        "sql -c \"{broken}\" -c 'select sum(money), count(*) from accounts'"
    )));
    assert_eq!(sums, format!("0\n{}|{ACCOUNTS}\n", ACCOUNTS * 1000));
    machine.ok(&tool(
        "as_pg pg_amcheck -h /tmp --install-missing --heapallindexed postgres",
    ));
    there.len()
}

#[test]
fn postgresql_recovers_on_the_other_machine_with_every_commit() {
    if !crate::long_form() {
        return;
    }
    let seed = number("TWINBLK_SEED", std::process::id().into());
    let rounds = number("TWINBLK_VM_PG_ROUNDS", ROUNDS);
    println!("seed {seed}; again: TWINBLK_SEED={seed} tests/vm/run postgres");
    let begin = Instant::now();
    let mut rng = Rng(seed ^ 0x9651);
    let mut pair = attached::pair(160 << 20);
    let size = pair.data_size();
    let alpha = &mut pair.machines[0];
    alpha.ok(&format!(
        "mkfs.ext4 -q {DEVICE}; mount {DEVICE} /mnt; cp -a /var/lib/postgresql/fresh /mnt/pg; sync"
    ));
    start(alpha);
    alpha.ok(&tool(&format!(
        "sql -c 'create table commits (n bigint primary key, t text)' \
             -c 'create table accounts (n int primary key, money int)' \
             -c 'insert into accounts select n, 1000 from generate_series(1, {ACCOUNTS}) n'"
    )));
    println!("{:4} s: a database on both", begin.elapsed().as_secs());
    let (mut old, mut rows) = (0, 0);
    for round in 0..rounds {
        pair.machines[old].ok(&load(round + 1));
        let wanted = reported(&pair).len() + 30 + rng.below(200) as usize;
        wait_for(
            "commits",
            || (reported(&pair).len() >= wanted).then_some(()),
            || format!("{} of {wanted} were reported", reported(&pair).len()),
        );
        let cut = pair.cut_with_loss(old, &mut rng);
        let safe = reported(&pair);
        let new = 1 - old;
        pair.wait_alone(new);
        let survivor = &mut pair.machines[new];
        promote(survivor);
        survivor.ok(&format!("mount {DEVICE} /mnt"));
        start(survivor);
        let recovered = survivor.ok("grep -c 'redo starts' /tmp/pg.log");
        assert_eq!(recovered.trim(), "1", "it had to recover");
        rows = judge(survivor, &safe);
        println!(
            "{:4} s: cut {}: {} after {} reported commits; {cut}; {rows} rows recovered on {}",
            begin.elapsed().as_secs(),
            round + 1,
            NAMES[old],
            safe.len(),
            NAMES[new],
        );
        pair.back(&[old]);
        pair.wait_in_sync();
        old = new;
    }
    pair.machines[old].ok(&tool(&format!(
        "as_pg pg_ctl -D /mnt/pg -m fast -t 600 -w stop >/dev/null; umount /mnt
         e2fsck -f -n {DEVICE}"
    )));
    pair.compare(size);
    let safe = reported(&pair).len();
    println!("{rounds} cuts, {safe} commits reported, none missing of {rows}; both disks equal");
    assert!(safe > 0, "nothing was at stake");
}
