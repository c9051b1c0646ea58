//! Two nodes that lose each other under `resource-and-stonith`: who may go on, and when not even the
//! handler's word helps.

use crate::handlers::Agent;
use crate::plan::{MS, Plan, SECOND};
use crate::story::{ALL, PRIMARY, all_seeds, tell};
use crate::world::World;
use twinblk_engine::event::{DiskState, ReplState, Role};
use twinblk_engine::fencing::Fencing;
use twinblk_engine::suspend::Reason;

fn each(agent: Agent, story: impl Fn(&mut World)) {
    each_in(agent, |_| (), story);
}

fn each_in(agent: Agent, adapted: impl Fn(&mut Plan), story: impl Fn(&mut World)) {
    let fenced = |plan: &mut Plan| {
        plan.fence.fencing = Fencing::ResourceAndStonith;
        plan.fence.agent = agent;
        plan.fence.handlers = true;
        adapted(plan);
    };
    tell(2, &ALL, fenced, |w| {
        w.in_step();
        w.write_and_wait(0, 0, 8);
        w.wait("in step", World::has_converged);
        story(w);
    });
}

impl World {
    fn is_frozen(&self, n: usize) -> bool {
        self.told_by(n).suspended_for.has(Reason::Fencing)
    }

    fn lose_each_other(&mut self) {
        self.part(0, 1, true);
        self.notices(0, 1);
        self.notices(1, 0);
    }

    fn meet_and_are_the_same(&mut self) {
        self.join(0, 1);
        self.heals_by_itself();
        let contents = self.contents();
        assert!(contents[0] == contents[1], "{}", self.picture());
    }
}

/// What a Primary answered after its handler has failed, the other would lack when it fences this one.
#[cfg_attr(test, test)]
pub(crate) fn io_stays_frozen_when_the_handler_has_failed() {
    each(Agent::Power, |w| {
        w.handlers.breaks_on = Some(0);
        w.lose_each_other();
        w.wait("the handler has failed", |w| {
            w.told_of(0, 1).not_fenced.is_some() || !w.is_frozen(0)
        });
        w.write(0, 16, 8);
        w.after_a_while(SECOND);
        w.ordered(1, PRIMARY).expect("the other is switched off");
        w.handlers.breaks_on = None;
        w.write_and_wait(1, 32, 8);
        w.wait("it is on again", |w| w.runs(0));
        w.meet_and_are_the_same();
    });
}

/// A peer that was Outdated and has been brought up to date may lead: who was once told that it is harmless
/// does not go on without it for that.
#[cfg_attr(test, test)]
pub(crate) fn a_peer_that_is_current_again_is_not_harmless() {
    each(Agent::Power, |w| {
        w.lose_each_other();
        w.wait("it is fenced", |w| !w.is_frozen(0));
        w.write_and_wait(0, 16, 8);
        w.meet_and_are_the_same();
        w.demote(0);
        w.promoted_in_time(1);
        w.lose_each_other();
        w.wait("the first is fenced", |w| !w.is_frozen(1));
        w.write_and_wait(1, 32, 8);
        w.wait("it is on again", |w| {
            w.runs(0) && w.disk_of(0) > DiskState::Inconsistent
        });
        let answer = w.ordered(0, PRIMARY);
        assert!(answer.is_err() && w.runs(1), "{}", w.picture());
        w.meet_and_are_the_same();
    });
}

/// Whoever was switched off and is on again does not know what the other has done since. Nobody is switched
/// off for such a copy.
#[cfg_attr(test, test)]
pub(crate) fn nobody_is_fenced_for_a_copy_that_has_slept() {
    each(Agent::Power, |w| {
        w.lose_each_other();
        w.wait("it is fenced", |w| !w.is_frozen(0));
        w.write_and_wait(0, 16, 8);
        w.wait("it is on again", |w| {
            w.runs(1) && w.disk_of(1) > DiskState::Inconsistent
        });
        assert_eq!(w.disk_of(1), DiskState::Consistent, "{}", w.picture());
        let answer = w.ordered(1, PRIMARY);
        assert!(answer.is_err() && w.runs(0), "{}", w.picture());
        assert_eq!(w.nodes[0].role, Role::Primary);
        w.meet_and_are_the_same();
    });
}

/// Both have found that the second copy is the older one, so the first answers its clients again. They part
/// before the second is told what to overwrite: it may not lead any more.
#[cfg_attr(test, test)]
pub(crate) fn a_copy_that_was_found_older_does_not_lead() {
    let came_to_it = std::cell::Cell::new(0);
    // Long enough to part them between two messages.
    let far = |plan: &mut Plan| plan.link_delay = 10 * MS;
    each_in(Agent::Power, far, |w| {
        w.handlers.breaks_on = Some(0);
        w.part(0, 1, false);
        // On the first disk only.
        let tag = w.write(0, 16, 8);
        w.lose_each_other();
        w.wait("the handler has failed", |w| {
            w.told_of(0, 1).not_fenced.is_some()
        });
        let open = |w: &World| w.clients.requests.contains_key(&tag);
        let waits = open(w);
        w.join(0, 1);
        w.wait("the second is the target", |w| {
            w.told_of(1, 0).volumes[0].replication == ReplState::WFBitMapT
        });
        // The second still reaches the first.
        w.wire(0, 1).blocked[0] = true;
        w.after_a_while(40 * MS);
        came_to_it.set(came_to_it.get() + u32::from(waits && !open(w)));
        w.lose_each_other();
        let answer = w.ordered(1, PRIMARY);
        assert!(answer.is_err() && w.runs(0), "{}", w.picture());
        w.handlers.breaks_on = None;
        w.meet_and_are_the_same();
    });
    assert!(came_to_it.get() > 50 || !all_seeds(), "{came_to_it:?}");
}
