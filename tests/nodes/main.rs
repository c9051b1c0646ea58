//! Stories of two real daemons: nodes die, cables are pulled, roles change, resyncs are interrupted.
//! Each is told nine times (`TWINBLK_ROUNDS`) with seeds that vary protocol, file system, depth and moment.

#[path = "../harness/mod.rs"]
mod harness;

mod both_killed;
mod commands;
mod daemon_end;
mod diskless;
mod fencing;
mod flood;
mod hook;
mod hook_fencing;
mod interrupted_resync;
mod judge;
mod keepalive;
mod large;
mod link_cut;
mod many_kills;
mod primary_killed;
mod resize;
mod roles;
mod secondary_killed;
mod split_brain;
mod split_brain_policy;
mod verify;
mod why;
