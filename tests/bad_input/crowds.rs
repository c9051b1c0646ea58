//! Many connections that say nothing or nonsense: those who belong here get in all the same, and the
//! log stays readable.

use super::strangers::bravo_alone;
use crate::harness::nbd::{Client, EnterError};
use crate::harness::stage::{Plan, Stage};
use crate::harness::wait_for;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Several times as many as are let in at once.
const CROWD: usize = 200;

fn silent(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_nonblocking(true).expect("a flag");
    stream
}

fn is_open(mut stream: &TcpStream) -> bool {
    matches!(stream.read(&mut [0; 64]), Err(e) if e.kind() == ErrorKind::WouldBlock)
}

/// Connections that say nothing; whichever is closed is made again. Ends when dropped.
struct Crowd {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    fn around(address: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let mut crowd: Vec<TcpStream> = (0..CROWD).map(|_| silent(&address)).collect();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                for stream in &mut crowd {
                    if !is_open(stream) {
                        *stream = silent(&address);
                    }
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let thread = Some(thread);
        Self { stop, thread }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_silent_crowd_on_the_peers_port_keeps_no_peer_out() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[0].ok(&["disconnect", "r0"]);
    stage.nodes[1].wait("apart", |s| s["peers"][0]["connection"] != "Connected");
    let crowd = Crowd::around(stage.address(1));
    stage.nodes[0].ok(&["connect", "r0"]);
    // alpha dials, as the node with the lower id.
    stage.wait_in_sync();
    drop(crowd);
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

#[test]
fn who_says_nothing_is_closed_before_one_that_has_begun() {
    let stage = bravo_alone();
    let mut begun = silent(&stage.address(1));
    begun.write_all(b"TWINBLK\0").expect("sent");
    let nothing = silent(&stage.address(1));
    wait_for(
        "the silent one to be closed",
        || (!is_open(&nothing)).then_some(()),
        || stage.nodes[1].log_text(),
    );
    assert!(is_open(&begun), "a slow peer has its time");
    wait_for(
        "the other one to be closed as well",
        || (!is_open(&begun)).then_some(()),
        || stage.nodes[1].log_text(),
    );
}

#[test]
fn nonsense_is_logged_once_in_a_while() {
    let mut stage = bravo_alone();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(stage.address(1)).expect("bravo listens");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        let _ = stream.read_to_end(&mut Vec::new());
    }
    stage.nodes[1].terminate();
    let log = std::fs::read_to_string(&stage.nodes[1].log).expect("the log");
    let lines = log
        .lines()
        .filter(|line| line.contains("does not speak twinblk"));
    let count = lines.count();
    assert!(count > 0 && count < 20, "{count} lines\n{log}");
}

#[test]
fn a_silent_crowd_on_the_export_keeps_no_client_out() {
    let mut plan = Plan::new("C");
    plan.tcp_export = true;
    let mut stage = Stage::in_sync(plan);
    // More than would be through with their time, one full house after the other, while the client
    // waits.
    let enough = 280;
    let address = stage.tcp_export(0);
    let crowd: Vec<TcpStream> = (0..enough / 2).map(|_| silent(&address)).collect();
    let export = &stage.nodes[0].export;
    let other: Vec<_> = (0..enough / 2)
        .map(|_| UnixStream::connect(export).expect("it listens"))
        .collect();
    Client::unix(export).expect("it gets in").disconnect();
    Client::tcp(&address).expect("it gets in").disconnect();
    drop((crowd, other));
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

/// The daemon may open as many files as the system lets it.
#[test]
fn the_limit_of_open_files_is_raised() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let mut limit: Rlimit = getrlimit(Resource::Nofile);
    let most = limit.maximum.expect("a number");
    limit.current = Some(most - 1);
    setrlimit(Resource::Nofile, limit).expect("less is always allowed");
    let stage = bravo_alone();
    let path = format!("/proc/{}/limits", stage.nodes[1].pid());
    let text = std::fs::read_to_string(path).expect("limits");
    let line = text.lines().find(|l| l.starts_with("Max open files"));
    let words: Vec<_> = line.expect("the line").split_whitespace().collect();
    assert_eq!(words[3], most.to_string(), "{text}");
}

#[test]
fn one_connection_too_many_is_refused_in_words() {
    const MOST: usize = 256;
    let mut stage = Stage::in_sync(Plan::new("C"));
    let export = stage.nodes[0].export.clone();
    let mut clients: Vec<_> = (0..MOST)
        .map(|_| Client::unix(&export).expect("there is room"))
        .collect();
    match Client::unix(&export) {
        Err(EnterError::Refused(e)) => {
            let text = e.to_string();
            assert!(text.contains("256 connections"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let log = stage.nodes[0].log_text();
    assert!(log.contains("256 connections"), "{log}");
    clients.pop().expect("many").disconnect();
    stage.nodes[0].wait("there is room again", |s| {
        s["driver"]["nbd_connections"] == MOST - 1
    });
    Client::unix(&export).expect("it gets in").disconnect();
    drop(clients);
    stage.nodes[0].wait("nobody holds it", |s| {
        s["open_clients"] == serde_json::json!([])
    });
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}
