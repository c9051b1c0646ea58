//! Tests of whole loops: real engine, real files, real sockets.

mod client;
mod counting;
mod kit;
mod open;
mod pair;
mod single;
mod steady;
