"""Memory and wake-ups of daemons: one device of 1 TiB, idle and under load; many resources at once."""

import argparse
import collections
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time

PATIENCE = 120
TIB = 1 << 40


def wait_for(what, ready):
    """Waits until `ready()` holds."""
    until = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > until:
            raise SystemExit(f"{what}: not within {PATIENCE} s")
        time.sleep(0.05)


class Pair:
    """Two daemons on loopback with `count` resources of `size` bytes each, thin files in memory."""

    ports = iter(range(21000, 30000))

    def __init__(self, program, directory, count, size):
        self.program, self.dir, self.count = program, pathlib.Path(directory), count
        config = self.dir / "config"
        config.mkdir(parents=True)
        port = next(self.ports)
        for number in range(count):
            text = (f'[resource]\nname = "r{number}"\nprotocol = "C"\n'
                    f'shared-secret = "{"00" * 16}"\n')
            for i, node in enumerate(("alpha", "bravo")):
                disk = self.dir / f"{node}-{number}.img"
                with open(disk, "wb") as f:
                    f.truncate(size + (256 << 20 if size >= TIB else 16 << 20))
                text += (f'[node.{node}]\nid = {i}\naddress = "127.0.0.{i + 1}:{port}"\n'
                         f'disk = "{disk}"\nexport = "unix:{self.dir}/{node}-{number}.nbd"\n')
            path = config / f"r{number}.toml"
            path.write_text(text)
            path.chmod(0o600)
        self.daemons = []
        for node in ("alpha", "bravo"):
            self.run(node, "create-md", "all", "--config", config, "--node", node)
            log = open(self.dir / f"{node}.log", "ab")
            self.daemons.append(subprocess.Popen(
                [program, "daemon", "--config", config, "--state", self.dir / f"{node}.state",
                 "--node", node, "--control", self.dir / f"{node}.ctl"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "RUST_LOG": "warn"}))
            self.wait_socket(self.dir / f"{node}.ctl")
        start = time.monotonic()
        for node in ("alpha", "bravo"):
            self.run(node, "up", "all")
        self.run("alpha", "wait-connect", "all", "--timeout", PATIENCE)
        self.run("alpha", "new-current-uuid", "all", "--clear-bitmap")
        self.run("alpha", "primary", "all")
        self.run("alpha", "wait-sync", "all", "--timeout", PATIENCE)
        self.seconds = time.monotonic() - start

    def run(self, node, *args):
        subprocess.run([self.program, "--control", self.dir / f"{node}.ctl", *map(str, args)],
                       check=True, stdout=subprocess.DEVNULL)

    def wait_socket(self, path):
        def answers():
            with socket.socket(socket.AF_UNIX) as s:
                return s.connect_ex(str(path)) == 0
        wait_for(str(path), answers)

    def facts(self):
        """Resident MiB (files' pages excluded), threads and descriptors of each daemon."""
        out = []
        for daemon in self.daemons:
            status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
            def field(name, status=status):
                return int(re.search(rf"^{name}:\s+(\d+)", status, re.M).group(1))
            out.append({"resident MiB": round(field("VmRSS") / 1024, 1),
                        "anonymous MiB": round(field("RssAnon") / 1024, 1),
                        "threads": field("Threads"),
                        "descriptors": len(os.listdir(f"/proc/{daemon.pid}/fd"))})
        return out

    def fio(self, number, seconds):
        subprocess.run(
            ["fio", "--name=x", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=64",
             f"--uri=nbd+unix:///r{number}?socket={self.dir}/alpha-{number}.nbd", "--size=256m",
             "--time_based", f"--runtime={seconds}", "--norandommap", "--output-format=json"],
            check=True, stdout=subprocess.DEVNULL)

    def system_calls(self, seconds):
        """What each daemon calls within so many idle seconds: {daemon: {thread: {call: times}}}."""
        traces = []
        for daemon in self.daemons:
            path = self.dir / f"trace.{daemon.pid}"
            traces.append((path, subprocess.Popen(
                ["strace", "-f", "-o", path, "-p", str(daemon.pid)], stderr=subprocess.DEVNULL)))
        for daemon in self.daemons:
            for task in pathlib.Path(f"/proc/{daemon.pid}/task").iterdir():
                wait_for("strace", lambda t=task: "TracerPid:\t0\n" not in (t / "status").read_text())
        # What attaching itself makes visible does not count.
        time.sleep(1)
        skip = [path.stat().st_size for path, _ in traces]
        time.sleep(seconds)
        ends = [path.stat().st_size for path, _ in traces]
        for _, trace in traces:
            trace.send_signal(signal.SIGTERM)
            trace.wait()
        found = []
        for (path, _), daemon, begin, end in zip(traces, self.daemons, skip, ends):
            calls = collections.defaultdict(collections.Counter)
            for line in path.read_bytes()[begin:end].decode(errors="replace").splitlines():
                match = re.match(r"(\d+) +(?:<\.\.\. )?(\w+)", line)
                # A call that waits appears twice: where it begins and where it ends.
                if match and "<unfinished" not in line:
                    name = pathlib.Path(f"/proc/{daemon.pid}/task/{match[1]}/comm")
                    name = name.read_text().strip() if name.exists() else "ended"
                    calls[name][match[2]] += 1
            found.append({name: dict(c) for name, c in calls.items()})
        return found

    def stop(self):
        for daemon in self.daemons:
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            daemon.wait(PATIENCE)


def main():
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--twinblk", required=True, help="the program")
    parse.add_argument("--seconds", type=int, default=60, help="how long to watch an idle pair")
    parse.add_argument("--resources", type=int, default=100, help="how many in one daemon")
    parse.add_argument("--out", default="target/idle", help="where the results go")
    args = parse.parse_args()
    program = pathlib.Path(args.twinblk).resolve()
    rows, results = [], {}

    def row(what, facts):
        results[what] = facts
        for node, f in zip(("Primary", "Secondary"), facts):
            rows.append(f"| {what} | {node} | {f['resident MiB']} | {f['anonymous MiB']} "
                        f"| {f['threads']} | {f['descriptors']} |")

    with tempfile.TemporaryDirectory(prefix="twinblk-idle-", dir="/dev/shm") as directory:
        directory = pathlib.Path(directory)
        pair = Pair(program, directory / "large", 1, TIB)
        try:
            row("1 TiB, idle", pair.facts())
            calls = results["system calls, idle"] = pair.system_calls(args.seconds)
            pair.fio(0, 5)
            row("1 TiB, after 5 s of 4k writes, 64 at once", pair.facts())
            pair.fio(0, 15)
            row("1 TiB, after 15 s more", pair.facts())
        finally:
            pair.stop()
        many = {}
        for count in (1, args.resources):
            pair = Pair(program, directory / f"many{count}", count, 64 << 20)
            try:
                many[count] = pair.facts()
                row(f"{count} × 64 MiB, idle ({pair.seconds:.1f} s to bring up)", many[count])
                if count > 1:
                    results["system calls, many"] = pair.system_calls(min(args.seconds, 20))
            finally:
                pair.stop()
    more = args.resources - 1
    each = [(b["resident MiB"] - a["resident MiB"]) / more for a, b in zip(many[1], many[args.resources])]
    results["MiB per resource"] = each
    lines = ["| what | daemon | resident MiB | of it anonymous | threads | descriptors |",
             "|---|---|---|---|---|---|", *rows, "",
             f"Each further resource costs {each[0]:.2f} MiB on the Primary, {each[1]:.2f} on the "
             "Secondary.", "", f"System calls of an idle pair in {args.seconds} s:", ""]
    for node, threads in zip(("Primary", "Secondary"), calls):
        for thread, c in threads.items():
            what = ", ".join(f"{n} × {name}" for name, n in sorted(c.items()))
            lines.append(f"* {node}, {thread}: {what}")
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1))
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
