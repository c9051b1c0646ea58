"""What is measured: each class starts one way of serving a block device, mirrored or not, and tells
where a client finds it and which processes do the work."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time

PATIENCE = 60


def wait_for(what, ready):
    """Waits until `ready()` holds."""
    until = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > until:
            raise SystemExit(f"{what}: not within {PATIENCE} s")
        time.sleep(0.02)


class Server:
    """Base: processes that are started and ended together."""

    def __init__(self, directory, size):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir()
        self.size = size
        self.children = []
        self.start()

    def spawn(self, *argv, **more):
        log = open(self.dir / "log", "ab")
        child = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL,
                                 stdout=log, stderr=log, **more)
        self.children.append(child)
        return child

    def file(self, name):
        """A file of the device's size, fully written: nobody measures allocation."""
        path = self.dir / name
        with open(path, "wb") as f:
            block = os.urandom(1 << 20)
            for _ in range(self.size >> 20):
                f.write(block)
        return path

    def log(self):
        return (self.dir / "log").read_text(errors="replace")

    def cpu(self):
        """CPU seconds all its processes have used, threads of the kernel on their behalf included."""
        tick = os.sysconf("SC_CLK_TCK")
        total = 0
        for child in self.children:
            fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / tick

    def calls(self):
        """System calls for I/O all its processes have counted, and requests answered, if they count."""
        return None

    def stop(self):
        for child in reversed(self.children):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self.children:
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def wait_socket(self, path):
        def answers():
            with socket.socket(socket.AF_UNIX) as s:
                try:
                    s.connect(str(path))
                    return True
                except OSError:
                    return False
        wait_for(f"{self.dir.name}: {path}\n", answers)


class Nbdkit(Server):
    """nbdkit serving a file: no mirror, the ceiling."""

    def start(self):
        disk = self.file("disk")
        self.path = self.dir / "nbd"
        self.spawn("nbdkit", "-f", "-U", self.path, "file", disk)
        self.wait_socket(self.path)
        self.uri = f"nbd+unix:///?socket={self.path}"


class Twinblk(Server):
    """Two twinblk daemons on loopback, or one that never had its peer."""

    program = None
    protocol = "C"
    alone = False
    # Lines of the section `options`.
    options = ""
    ports = iter(range(20000, 30000))

    def start(self):
        self.configure("r0", 64 << 20)
        nodes = ("alpha",) if self.alone else ("alpha", "bravo")
        for node in nodes:
            self.daemon(node, ["r0"])
        for node in nodes:
            self.run(node, "up", "r0")
        self.run("alpha", "primary", "--force", "r0")
        if not self.alone:
            self.run("alpha", "wait-sync", "r0", "--timeout", PATIENCE)
        self.path = self.export("r0")
        self.uri = f"nbd+unix:///r0?socket={self.path}"

    def export(self, name, node="alpha"):
        return self.dir / f"{node}-{name}.nbd"

    def configure(self, name, room):
        """Both nodes' configuration and empty disks of a resource; `room` for metadata, in bytes."""
        port = next(self.ports)
        text = (f'[resource]\nname = "{name}"\nprotocol = "{self.protocol}"\n'
                f'shared-secret = "{"00" * 16}"\n[options]\n{self.options}\n')
        for i, node in enumerate(("alpha", "bravo")):
            disk = self.dir / f"{node}-{name}.img"
            with open(disk, "wb") as f:
                f.truncate(self.size + room)
            text += (f'[node.{node}]\nid = {i}\naddress = "127.0.0.{i + 1}:{port}"\n'
                     f'disk = "{disk}"\nexport = "unix:{self.export(name, node)}"\n')
        config = self.dir / "config" / f"{name}.toml"
        config.parent.mkdir(exist_ok=True)
        config.write_text(text)
        config.chmod(0o600)

    def daemon(self, node, names):
        """A node's daemon, with fresh metadata on its disks."""
        for name in names:
            self.run(node, "create-md", name, "--config", self.dir / "config", "--node", node)
        self.spawn(self.program, "daemon", "--config", self.dir / "config", "--state",
                   self.dir / f"{node}.state", "--node", node, "--control",
                   self.dir / f"{node}.ctl", env={**os.environ, "RUST_LOG": "warn"})
        self.wait_socket(self.dir / f"{node}.ctl")

    def run(self, node, *args):
        subprocess.run([str(self.program), "--control", str(self.dir / f"{node}.ctl"),
                        *map(str, args)], check=True, stdout=subprocess.DEVNULL)

    def status(self, node="alpha"):
        out = subprocess.run([str(self.program), "--control", str(self.dir / f"{node}.ctl"),
                              "status", "r0", "--json"], check=True, capture_output=True)
        return json.loads(out.stdout)[0]

    def calls(self):
        nodes = ("alpha",) if self.alone else ("alpha", "bravo")
        drivers = [self.status(node)["driver"] for node in nodes]
        return sum(d["enters"] + d["calls"] + d["yields"] for d in drivers), drivers[0]["requests"]

    def resync(self):
        """Seconds of a full resync of everything that was written."""
        self.run("bravo", "invalidate", "r0")
        start = time.monotonic()
        self.run("alpha", "wait-sync", "r0", "--timeout", 600)
        return time.monotonic() - start


class TwinblkA(Twinblk):
    protocol = "A"


class TwinblkB(Twinblk):
    protocol = "B"


class TwinblkAlone(Twinblk):
    alone = True


class TwinblkSleeps(Twinblk):
    options = "poll-us = 0"


class Qemu(Server):
    """qemu-storage-daemon over a local file and a second one as the peer."""

    tcp = False

    def start(self):
        local, remote = self.file("local"), self.file("remote")
        self.path = self.dir / "nbd"
        if self.tcp:
            port = next(Twinblk.ports)
            listen = f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}"
            server = f"server.type=inet,server.host=127.0.0.1,server.port={port}"
        else:
            listen = f"addr.type=unix,addr.path={self.dir}/peer"
            server = f"server.type=unix,server.path={self.dir}/peer"
        self.spawn("qemu-storage-daemon",
                   "--blockdev", f"driver=file,node-name=f,filename={remote}",
                   "--nbd-server", listen,
                   "--export", "type=nbd,id=e,node-name=f,name=r0,writable=on")
        if self.tcp:
            def answers():
                with socket.socket() as s:
                    return s.connect_ex(("127.0.0.1", port)) == 0
            wait_for("QEMU's peer", answers)
        else:
            self.wait_socket(self.dir / "peer")
        self.front(local, server)
        self.wait_socket(self.path)
        self.uri = f"nbd+unix:///r0?socket={self.path}"
        self.ready()

    def ready(self):
        pass


class Quorum(Qemu):
    """Both children are written, the first one is read."""

    def front(self, local, server):
        self.spawn("qemu-storage-daemon",
                   "--blockdev", f"driver=file,node-name=a,filename={local}",
                   "--blockdev", f"driver=nbd,node-name=b,{server},export=r0",
                   "--blockdev", "driver=quorum,node-name=q,vote-threshold=1,read-pattern=fifo,"
                                 "children.0=a,children.1=b",
                   "--nbd-server", f"addr.type=unix,addr.path={self.path}",
                   "--export", "type=nbd,id=e,node-name=q,name=r0,writable=on")


class QuorumTcp(Quorum):
    tcp = True


class Mirror(Qemu):
    """A running mirror job that copies each write before it is answered."""

    def front(self, local, server):
        self.qmp = self.dir / "qmp"
        self.spawn("qemu-storage-daemon",
                   "--blockdev", f"driver=file,node-name=a,filename={local}",
                   "--blockdev", f"driver=nbd,node-name=b,{server},export=r0",
                   "--chardev", f"socket,id=c,path={self.qmp},server=on,wait=off",
                   "--monitor", "chardev=c",
                   "--nbd-server", f"addr.type=unix,addr.path={self.path}",
                   "--export", "type=nbd,id=e,node-name=a,name=r0,writable=on")

    def ready(self):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.qmp))
            stream = s.makefile("rw")

            def say(**command):
                stream.write(json.dumps(command) + "\n")
                stream.flush()

            say(execute="qmp_capabilities")
            say(execute="blockdev-mirror", arguments={
                "job-id": "m", "device": "a", "target": "b", "sync": "full",
                "copy-mode": "write-blocking"})
            s.settimeout(PATIENCE)
            for line in stream:
                message = json.loads(line)
                if "error" in message:
                    raise SystemExit(f"QEMU's mirror: {message}")
                if message.get("event") == "BLOCK_JOB_READY":
                    return


PEERS = {
    "twinblk C": Twinblk,
    "twinblk C, poll-us 0": TwinblkSleeps,
    "twinblk B": TwinblkB,
    "twinblk A": TwinblkA,
    "twinblk, no peer": TwinblkAlone,
    "nbdkit (no mirror)": Nbdkit,
    "QEMU quorum, unix link": Quorum,
    "QEMU quorum, TCP link": QuorumTcp,
    "QEMU mirror, unix link": Mirror,
}
