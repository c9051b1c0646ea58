//! A simulation of everything around the engine, from one seed: disks with volatile caches, links
//! that delay, lose and deceive, clocks that jump, processes that end between two steps, clients, and
//! people. The engine and the metadata code are the real ones.
//!
//! [`world`] is the loop; [`carry_out`] does what engines want; [`links`] is the network; [`clients`],
//! [`admin`] and [`operator`] are those who use it, [`chaos`] what disturbs it; [`oracle`] knows what
//! each copy may hold; [`invariants`] are the promises; [`run`] is one run from its [`plan`],
//! [`campaign`] many of them, [`coverage`] what they must have met, [`reduce`] makes a failing one
//! short. Its tests tell named stories (`story`).

#![forbid(unsafe_code)]

pub mod admin;
pub mod attach;
pub mod campaign;
mod carry_out;
mod chaos;
pub mod clients;
pub mod coverage;
pub mod disk;
pub mod failover;
mod handlers;
mod invariants;
pub mod kept;
mod links;
pub mod net;
pub mod node;
mod operator;
pub mod oracle;
pub mod plan;
mod policies;
pub mod reduce;
pub mod rng;
pub mod run;
#[cfg(sabotage)]
pub mod sabotaged;
mod saving;
#[cfg(test)]
mod scenarios;
// A build with mistakes tells only those stories that notice one.
#[cfg(any(test, sabotage))]
mod scenarios_fencing;
#[cfg(test)]
mod scenarios_orders;
#[cfg(test)]
mod scenarios_resync;
#[cfg(test)]
mod scenarios_split_brain;
#[cfg(any(test, sabotage))]
#[cfg_attr(sabotage, allow(dead_code))]
mod scenarios_survivors;
#[cfg(any(test, sabotage))]
#[cfg_attr(sabotage, allow(dead_code))]
mod scenarios_three;
#[cfg(any(test, sabotage))]
#[cfg_attr(sabotage, allow(dead_code))]
mod story;
mod told;
pub mod trace;
pub mod world;
