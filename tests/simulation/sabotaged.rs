//! It can fail: every deliberate mistake must be noticed, by a story that is about it or within a
//! bounded number of random seeds. Either counts only if it passes without the mistake: what is wrong
//! anyway proves nothing.

use crate::campaign::Campaign;
use crate::plan::Plan;
use crate::run::run;
use crate::{scenarios_fencing, scenarios_survivors, scenarios_three};
use std::panic::catch_unwind;
use std::process::ExitCode;
use twinblk_engine::sabotage::{MARK, Mistake, choose};

/// Makes every mistake in turn that so many nodes can notice; two when not given. `only`: that one.
pub fn all(seeds: u64, jobs: usize, nodes: Option<usize>, only: Option<&str>) -> ExitCode {
    println!("{MARK}");
    let nodes = nodes.unwrap_or(2);
    let mistakes: &[Mistake] = if nodes == 2 {
        &Mistake::ALL
    } else {
        &Mistake::OF_MANY
    };
    let (mut noticed, mut unnoticed) = (0, 0);
    for &mistake in mistakes {
        if only.is_some_and(|only| only != format!("{mistake:?}")) {
            continue;
        }
        match notice(mistake, seeds, jobs, nodes) {
            Some(by) => {
                noticed += 1;
                println!("{mistake:?}: noticed by {by}");
            }
            None => {
                unnoticed += 1;
                println!("{mistake:?}: NOT NOTICED in {seeds} seeds");
            }
        }
    }
    println!(
        "test result: {}. {noticed} passed; {unnoticed} failed",
        if unnoticed == 0 { "ok" } else { "FAILED" },
    );
    if unnoticed == 0 && noticed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A story about a mistake that random seeds come to only once in thousands.
fn story_about(mistake: Mistake) -> Option<(&'static str, fn())> {
    use scenarios_fencing as fencing;
    use scenarios_survivors as survivors;
    use scenarios_three as three;
    Some(match mistake {
        Mistake::ReleaseExtentAtAck => (
            "what left the log before both lost power",
            survivors::what_left_the_log_is_on_the_peer,
        ),
        Mistake::DemoteWithoutBitmap => (
            "what a demoted Primary wrote alone",
            survivors::what_a_demoted_primary_wrote_alone_stays_marked,
        ),
        Mistake::FlushAlone => (
            "what was flushed before both lost power",
            survivors::what_was_flushed_is_on_the_survivor,
        ),
        Mistake::RelyOnUntoldGeneration => (
            "a generation that was told and never received",
            three::a_generation_that_was_told_and_never_received_is_not_taken_for_granted,
        ),
        Mistake::ForgetUnsettled => (
            "secondaries that lack different writes",
            survivors::secondaries_that_lack_different_writes_come_to_be_the_same,
        ),
        Mistake::SurvivorWithoutDoubt => (
            "a survivor that has not met the others",
            survivors::a_survivor_is_not_promoted_before_it_met_the_others,
        ),
        Mistake::GrantTwice => (
            "a word that is not used yet",
            survivors::a_word_that_is_not_used_yet_is_not_given_again,
        ),
        Mistake::BehindForEver => (
            "a peer that a third node brought up to date",
            three::a_peer_that_a_third_node_brought_up_to_date_is_left_behind_by_a_new_generation,
        ),
        Mistake::ThawUnfenced => (
            "a handler that has failed",
            fencing::io_stays_frozen_when_the_handler_has_failed,
        ),
        Mistake::KeepOutdatedMark => (
            "a peer that is current again",
            fencing::a_peer_that_is_current_again_is_not_harmless,
        ),
        Mistake::FenceForSlept => (
            "a copy that has slept",
            fencing::nobody_is_fenced_for_a_copy_that_has_slept,
        ),
        Mistake::CurrentUntilOverwritten => (
            "a copy that was found older",
            fencing::a_copy_that_was_found_older_does_not_lead,
        ),
        _ => return None,
    })
}

/// A seed that has noticed this mistake, tried first: from seed 1 on it takes a thousand and more. When plans
/// change it may not any more; then the others are tried.
fn seed_that_noticed(mistake: Mistake) -> Option<u64> {
    Some(match mistake {
        Mistake::InvertCrashedPrimary => 501,
        Mistake::BitsBeforeStable => 1603,
        Mistake::ServeUnconfirmed => 701,
        Mistake::ServeOtherGeneration => 960,
        Mistake::ForgetOvertaken => 1593,
        _ => return None,
    })
}

/// The invariant that this seed breaks with the mistake, if it breaks none without it.
fn breaks(mistake: Mistake, seed: u64, nodes: usize) -> Option<String> {
    let plan = Plan::new(seed).on(nodes);
    choose(Some(mistake));
    let with = run(&plan, false);
    choose(None);
    let invariant = with.violation.as_ref()?.invariant;
    let without = run(&plan, false).violation;
    without
        .is_none()
        .then(|| format!("{invariant} with seed {seed}"))
}

/// What notices a mistake: its story, or an invariant with the first seed that breaks it with the mistake
/// and none without it.
fn notice(mistake: Mistake, seeds: u64, jobs: usize, nodes: usize) -> Option<String> {
    if let Some((story, tell)) = story_about(mistake) {
        choose(Some(mistake));
        let told = catch_unwind(tell);
        choose(None);
        match told {
            Err(_) if catch_unwind(tell).is_err() => {
                println!("{mistake:?}: the story of {story} fails without it, too");
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map_or("", String::as_str);
                return Some(format!("the story of {story}, which {text}"));
            }
            Ok(()) => println!("{mistake:?}: the story of {story} does not notice it"),
        }
    }
    if let Some(invariant) =
        seed_that_noticed(mistake).and_then(|seed| breaks(mistake, seed, nodes))
    {
        return Some(invariant);
    }
    let mut next = 1;
    while next <= seeds {
        choose(Some(mistake));
        let report = Campaign {
            seeds: next..seeds + 1,
            jobs,
            time: None,
            first: true,
            talks: false,
            nodes: Some(nodes),
        }
        .run();
        choose(None);
        for failed in &report.failures {
            let seed = failed.plan.seed;
            if run(&Plan::new(seed).on(nodes), false).violation.is_none() {
                let invariant = failed.violation.as_ref()?.invariant;
                return Some(format!("{invariant} with seed {seed}"));
            }
            println!("{mistake:?}: seed {seed} fails without it, too");
        }
        // Seeds are given out in order, and every one that was is in the report.
        next += report.runs.max(1);
    }
    None
}
