//! Tests of whole loops: real engine, real files, real sockets.

mod client;
mod kit;
mod open;
mod pair;
mod single;
