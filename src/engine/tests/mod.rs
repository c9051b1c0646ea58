//! Scenarios on two real engines with simulated disks, links and time: every story of the design's
//! decision table from first bring-up to split brain, each under many seeds that choose the order in
//! which completions and frames arrive.

mod beside;
mod comes_back;
mod disk;
mod disk_errors;
mod diskless;
mod explained;
mod fencing;
mod fencing_orders;
mod lineage;
mod pair;
mod pass_on;
mod random;
mod resize;
mod scenarios;
mod split_brain;
mod suspend;
mod verify;
