#[path = "../harness/mod.rs"]
mod harness;
fn x() {}
