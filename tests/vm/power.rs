//! The power of a machine, and a switch for it that the machines of a pair can reach: a fencing device for
//! their cluster, which kills a machine that runs as dead as one that is switched off.
//!
//! Each machine has a line to the switch, on which `guest/fence_switch` asks: `NUMBER off NAME` or `NUMBER
//! status NAME`. The answer `NUMBER off` is only given when QEMU has ended.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard};

/// The power of one machine; clones are the same machine's.
#[derive(Debug, Clone)]
pub(crate) struct Power {
    name: &'static str,
    /// Where its line to the switch ends.
    socket: PathBuf,
    /// Killed and reaped under the lock, so that its number is never another process's.
    qemu: Arc<Mutex<Option<Child>>>,
}

impl Power {
    /// Off; its files are in `directory`.
    pub(crate) fn new(name: &'static str, directory: &Path) -> Self {
        Self {
            name,
            socket: directory.join(format!("{name}.power")),
            qemu: Arc::default(),
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn qemu(&self) -> MutexGuard<'_, Option<Child>> {
        self.qemu.lock().expect("no holder panics")
    }

    /// This process is the machine from now on.
    pub(crate) fn on(&self, qemu: Child) {
        *self.qemu() = Some(qemu);
    }

    pub(crate) fn is_on(&self) -> bool {
        let mut qemu = self.qemu();
        qemu.as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The number of QEMU's process, 0 when it is off.
    pub(crate) fn pid(&self) -> u32 {
        self.qemu().as_ref().map_or(0, Child::id)
    }

    /// Off when this returns: the processor has stopped between two instructions.
    pub(crate) fn off(&self) {
        let mut qemu = self.qemu();
        if let Some(mut child) = qemu.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What was switched off, by whom: pairs of names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Switched(Arc<Mutex<Vec<(&'static str, &'static str)>>>);

impl Switched {
    pub(crate) fn list(&self) -> Vec<(&'static str, &'static str)> {
        self.0.lock().expect("no holder panics").clone()
    }
}

/// Answers on the lines of these machines. Its threads end with the process.
pub(crate) fn switch(machines: [Power; 2]) -> Switched {
    let switched = Switched::default();
    for asks in &machines {
        let listener = UnixListener::bind(&asks.socket).expect("a socket in a fresh directory");
        let (asks, machines, switched) = (asks.name, machines.clone(), switched.clone());
        std::thread::spawn(move || {
            // A line that breaks belongs to a machine that is off.
            for stream in listener.incoming().flatten() {
                let (machines, switched) = (machines.clone(), switched.clone());
                std::thread::spawn(move || serve(asks, &stream, &machines, &switched));
            }
        });
    }
    switched
}

fn serve(asks: &'static str, stream: &UnixStream, machines: &[Power], switched: &Switched) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            [number, verb, name] => {
                let machine = machines.iter().find(|m| m.name == name);
                let state = match (verb, machine) {
                    ("off", Some(machine)) => {
                        machine.off();
                        let mut list = switched.0.lock().expect("no holder panics");
                        list.push((asks, machine.name));
                        "off"
                    }
                    ("status", Some(machine)) if machine.is_on() => "on",
                    ("status", Some(_)) => "off",
                    _ => "unknown",
                };
                format!("{number} {state}\n")
            }
            // The rest of something that was broken off.
            _ => continue,
        };
        let mut stream = stream;
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
