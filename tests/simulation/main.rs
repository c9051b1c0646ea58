//! Runs simulations from the command line.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use twinblk_simulation::campaign::{Campaign, Report};
use twinblk_simulation::plan::Plan;
use twinblk_simulation::reduce::reduce;
use twinblk_simulation::run::{Outcome, run};

/// Real engines over simulated disks, links and people.
#[derive(Parser)]
#[command(name = "simulate")]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Threads; all cores when not given.
    #[arg(long, global = true)]
    jobs: Option<usize>,
    /// Nodes, 2 to 4; as each seed says when not given.
    #[arg(long, global = true, value_parser = clap::value_parser!(u8).range(2..=4))]
    nodes: Option<u8>,
}

#[derive(Subcommand)]
enum What {
    /// Runs these seeds.
    Seeds {
        /// FROM..TO, without TO.
        range: String,
        /// Also print how often everything occurred.
        #[arg(long)]
        coverage: bool,
        /// Fail if something the model can reach did not occur.
        #[arg(long)]
        all_must_occur: bool,
    },
    /// Runs fresh seeds for a while.
    Soak {
        /// Minutes.
        minutes: u64,
        /// The first seed; a fresh one when not given.
        #[arg(long)]
        from: Option<u64>,
    },
    /// Repeats one seed with full logging.
    Replay {
        /// The seed.
        seed: u64,
        /// Leave out disturbances with these numbers.
        #[arg(long, value_delimiter = ',')]
        without: Vec<u64>,
        /// No more than so many disturbances.
        #[arg(long)]
        most: Option<u64>,
        /// Clients.
        #[arg(long)]
        clients: Option<usize>,
        /// Requests of a client under way.
        #[arg(long)]
        depth: Option<usize>,
        /// Milliseconds of disturbances.
        #[arg(long)]
        duration: Option<u64>,
        /// No orders of the administrator.
        #[arg(long)]
        no_orders: bool,
        /// The administrator is careful.
        #[arg(long)]
        careful: bool,
    },
    /// Makes every deliberate mistake and demands that each is noticed (only in a build with
    /// `--cfg sabotage`).
    #[cfg(sabotage)]
    Sabotage {
        /// Seeds each mistake is given.
        #[arg(default_value_t = 3000)]
        seeds: u64,
        /// Only this mistake.
        #[arg(long)]
        only: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A panic in a run is a broken promise like any other; its text is in the outcome.
    std::panic::set_hook(Box::new(|_| {}));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.unwrap_or(cores);
    let nodes = arguments.nodes.map(usize::from);
    match arguments.what {
        What::Seeds {
            range,
            coverage,
            all_must_occur,
        } => {
            let Some(seeds) = parse(&range) else {
                eprintln!("simulate: \"{range}\" is no range of seeds; write for example 1..1000");
                return ExitCode::from(2);
            };
            let campaign = Campaign {
                seeds,
                jobs,
                time: None,
                first: false,
                talks: true,
                nodes,
            };
            let start = Instant::now();
            let report = campaign.run();
            if coverage {
                print!("{}", report.coverage());
            }
            let missing = if all_must_occur {
                report.missing()
            } else {
                Vec::new()
            };
            for what in &missing {
                println!("never occurred: {what}");
            }
            let good = told(&report, start.elapsed());
            if good && missing.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        What::Soak { minutes, from } => {
            let from = from.unwrap_or_else(fresh);
            println!("seeds from {from}");
            let campaign = Campaign {
                seeds: from..u64::MAX,
                jobs,
                time: Some(Duration::from_secs(minutes * 60)),
                first: false,
                talks: true,
                nodes,
            };
            let start = Instant::now();
            let report = campaign.run();
            print!("{}", report.coverage());
            if told(&report, start.elapsed()) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        What::Replay {
            seed,
            without,
            most,
            clients,
            depth,
            duration,
            no_orders,
            careful,
        } => {
            let mut plan = Plan::new(seed);
            if let Some(nodes) = nodes {
                plan = plan.on(nodes);
            }
            plan.without = without;
            plan.most = most.unwrap_or(plan.most);
            plan.clients = clients.unwrap_or(plan.clients);
            plan.depth = depth.unwrap_or(plan.depth);
            plan.duration = duration.map_or(plan.duration, |ms| ms * 1_000_000);
            if no_orders {
                plan.order_every = 0;
            }
            plan.careless &= !careful;
            println!("{plan:#?}");
            let outcome = run(&plan, true);
            show(&outcome);
            if outcome.violation.is_some() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            }
        }
        #[cfg(sabotage)]
        What::Sabotage { seeds, only } => {
            twinblk_simulation::sabotaged::all(seeds, jobs, nodes, only.as_deref())
        }
    }
}

/// A seed nobody has chosen.
fn fresh() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |t| t.as_secs() * 1_000_000)
}

fn parse(range: &str) -> Option<std::ops::Range<u64>> {
    let (from, to) = range.split_once("..")?;
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (from < to).then_some(from..to)
}

/// Prints what came of it; true if nothing was broken.
fn told(report: &Report, elapsed: Duration) -> bool {
    for failed in report.failures.iter().take(20) {
        if let Some(violation) = &failed.violation {
            let seed = failed.plan.seed;
            println!("seed {seed}: {}: {}", violation.invariant, violation.text);
        }
    }
    if let Some(failed) = report.failures.first() {
        let (plan, outcome) = reduce(failed);
        show(&outcome);
        println!(
            "the shortest run found; to repeat it:\n  {}",
            command(&plan, &failed.plan)
        );
    }
    for text in report.impossible.iter().take(20) {
        println!("{text}");
    }
    println!("{}", report.summary(elapsed));
    report.failures.is_empty() && report.impossible.is_empty()
}

/// How to repeat a reduced run.
fn command(plan: &Plan, full: &Plan) -> String {
    let mut text = format!(
        "cargo run --release -p twinblk-simulation -- replay {} --nodes {} --clients {} --depth {} \
         --duration {}",
        plan.seed,
        plan.nodes,
        plan.clients,
        plan.depth,
        plan.duration / 1_000_000
    );
    if plan.most != u64::MAX {
        text.push_str(&format!(" --most {}", plan.most));
    }
    if !plan.without.is_empty() {
        let numbers: Vec<String> = plan.without.iter().map(u64::to_string).collect();
        text.push_str(&format!(" --without {}", numbers.join(",")));
    }
    if plan.order_every == 0 && full.order_every != 0 {
        text.push_str(" --no-orders");
    }
    if full.careless && !plan.careless {
        text.push_str(" --careful");
    }
    text
}

fn show(outcome: &Outcome) {
    for line in &outcome.lines {
        println!("{line}");
    }
    print!("{}", outcome.picture);
    if let Some(violation) = &outcome.violation {
        println!("{}: {}", violation.invariant, violation.text);
    }
    println!(
        "{} steps, {} requests served, hash {:016x}",
        outcome.steps, outcome.served, outcome.hash
    );
}
