"""How cost grows: connections, resources, sizes; and what a resync under load costs the application.
Two daemons of twinblk, protocol C, files in tmpfs, everything on the processors of this machine. Each row
is compared with its own first figure in the same run."""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

import servers

GIB = 1 << 30


class Many(servers.Twinblk):
    """Several resources, served by one pair of daemons."""

    count = 1

    def start(self):
        names = [f"r{i}" for i in range(self.count)]
        for name in names:
            self.configure(name, max(64 << 20, self.size >> 10))
        for node in ("alpha", "bravo"):
            self.daemon(node, names)
        self.began = time.monotonic()
        for node in ("alpha", "bravo"):
            for name in names:
                self.run(node, "up", name)
        for name in names:
            self.run("alpha", "wait-connect", name, "--timeout", servers.PATIENCE)
            self.run("alpha", "new-current-uuid", "--clear-bitmap", name)
            self.run("alpha", "primary", name)
        self.took = time.monotonic() - self.began
        self.uris = [f"nbd+unix:///{n}?socket={self.export(n)}" for n in names]

    def memory(self):
        """MiB resident of the Primary's daemon."""
        text = pathlib.Path(f"/proc/{self.children[0].pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


def fio(uris, seconds, *options):
    """Operations per second of all jobs together, mean latency in us, and of flushes."""
    argv = ["fio", "--ioengine=nbd", "--time_based", f"--runtime={seconds}", "--ramp_time=1",
            "--randrepeat=0", "--norandommap", "--group_reporting", "--output-format=json", *options]
    for number, uri in enumerate(uris):
        argv += [f"--name=j{number}", f"--uri={uri}"]
    out = subprocess.run(argv, capture_output=True, text=True, check=False)
    if out.returncode != 0:
        raise SystemExit(out.stdout + out.stderr)
    jobs = json.loads(out.stdout[out.stdout.index("{"):])["jobs"]
    side = "read" if "--rw=randread" in options else "write"
    return {
        "iops": sum(j[side]["iops"] for j in jobs),
        "mean us": statistics.mean(j[side]["lat_ns"]["mean"] for j in jobs) / 1000,
        "flush us": statistics.mean(j["sync"]["lat_ns"]["mean"] for j in jobs) / 1000,
    }


def with_server(directory, size, count, use):
    make = type("Server", (Many,), {"count": count})
    server = make(directory / f"{count}-{size >> 20}", size)
    try:
        return use(server)
    finally:
        server.stop()
        shutil.rmtree(server.dir)


def connections(directory, seconds):
    rows = []

    def use(server):
        for count in (1, 2, 4, 8):
            got = fio(server.uris * count, seconds, "--rw=randwrite", "--bs=4k", "--iodepth=8",
                      f"--size={GIB >> 1}")
            rows.append((f"{count} connection(s), 8 writes under way on each", got["iops"]))
    with_server(directory, GIB >> 1, 1, use)
    return rows


def resources(directory, seconds):
    rows = []
    for count in (1, 4, 16):
        def use(server):
            got = fio(server.uris, seconds, "--rw=randwrite", "--bs=4k",
                      f"--iodepth={max(64 // len(server.uris), 1)}", f"--size={64 << 20}")
            rows.append((f"{count} resource(s), 64 writes under way in all", got["iops"]))
        with_server(directory, 64 << 20, count, use)
    return rows


def sizes(directory, seconds):
    rows = []
    for size in (GIB, 64 * GIB, 1024 * GIB, 16384 * GIB):
        def use(server):
            near = fio(server.uris, seconds, "--rw=randwrite", "--bs=4k", "--iodepth=16",
                       f"--size={GIB >> 1}")
            far = fio(server.uris, seconds, "--rw=randwrite", "--bs=4k", "--iodepth=16",
                      f"--size={size}")
            rows.append((size >> 30, server.took, server.memory(), near["iops"], far["iops"]))
        with_server(directory, size, 1, use)
    return rows


# What an application may do while all is resynced, and how it is said to fio.
LOADS = [
    ("4k writes, 1 at once", ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("4k writes, 16 at once", ["--rw=randwrite", "--bs=4k", "--iodepth=16"]),
    ("4k writes, 64 at once", ["--rw=randwrite", "--bs=4k", "--iodepth=64"]),
    ("1M writes, 8 at once", ["--rw=write", "--bs=1M", "--iodepth=8"]),
    ("4k reads, 16 at once", ["--rw=randread", "--bs=4k", "--iodepth=16"]),
]
# Seconds within which a resync or verify of everything has to begin, and to end.
PATIENCE = 300


def under_way(server):
    """Whether the copies are not at rest, and how many requests have been answered so far."""
    status = server.status()
    volume = status["peers"][0]["volumes"][0]
    rests = volume["replication"] == "Established" and volume["out_of_sync"] == 0
    return not rests, status["driver"]["requests"]


def until(server, wanted, pause):
    """Waits until something is under way, or nothing is; answers the time and the requests by then. Asks
    every `pause` seconds, a process each time."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found, requests = under_way(server)
        if found == wanted:
            return time.monotonic(), requests
        time.sleep(pause)
    raise SystemExit("nothing begins" if wanted else "no end within " + str(PATIENCE) + " s")


def transfer(server, begin, pause):
    """How long what `begin` starts takes, and the requests answered per second meanwhile."""
    server.run(*begin)
    until(server, True, 0.05)
    # A resync begins anew with a connection; what counts is when it goes.
    limit = time.monotonic() + PATIENCE
    while server.status()["peers"][0]["connection"] != "Connected":
        if time.monotonic() > limit:
            raise SystemExit(f"no connection within {PATIENCE} s")
        time.sleep(0.01)
    start, first = time.monotonic(), under_way(server)[1]
    # Beside an application every question is felt.
    end, last = until(server, False, pause)
    return end - start, (last - first) / (end - start)


def beside(server, seconds, begin, load):
    """Requests per second of one application that never stops, before, during and after what `begin`
    starts, and how long that took. The daemon's counters say so, not the application."""
    argv = ["fio", "--ioengine=nbd", "--time_based", "--runtime=3600", "--randrepeat=0", "--norandommap",
            f"--size={server.size}", "--name=j", f"--uri={server.uris[0]}", *load]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as application:
        try:
            def alone():
                time.sleep(1)
                start, first = time.monotonic(), under_way(server)[1]
                time.sleep(seconds)
                return (under_way(server)[1] - first) / (time.monotonic() - start)
            before = alone()
            took, during = transfer(server, begin, 0.5)
            after = alone()
            if application.poll() is not None:
                raise SystemExit("fio has ended before its time")
            return {"before": before, "during": during, "after": after, "took": took}
        finally:
            application.terminate()


def under_load(directory, seconds):
    """What an application keeps beside a resync of everything, and beside a verify; and write + flush
    against its parts."""
    def use(server):
        server.path = None
        # Every block is written once: holes would be resynced as such.
        fill = ["--rw=write", "--bs=1M", "--iodepth=8", f"--size={server.size}"]
        subprocess.run(["fio", "--ioengine=nbd", "--name=fill", f"--uri={server.uris[0]}", *fill],
                       check=True, stdout=subprocess.DEVNULL)
        one = ["--rw=randwrite", "--bs=4k", "--iodepth=1", f"--size={server.size}"]
        single = fio(server.uris, seconds, *one)
        both = fio(server.uris, seconds, *one, "--fsync=1")
        resync, verify = ("bravo", "invalidate", "r0"), ("alpha", "verify", "r0")
        alone = [(what, transfer(server, begin, 0.1)[0]) for what, begin in (("resync", resync), ("verify", verify))]
        rows = [(f"resync beside {name}", beside(server, seconds, resync, load)) for name, load in LOADS]
        name, load = LOADS[1]
        rows.append((f"verify beside {name}", beside(server, seconds, verify, load)))
        return {
            "alone": alone, "rows": rows, "write us": single["mean us"], "flush us": both["flush us"],
            "write and flush us": 1e6 / both["iops"],
        }
    return with_server(directory, 4 * GIB, 1, use)


def main():
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--twinblk", required=True, help="the program")
    parse.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parse.add_argument("--rounds", type=int, default=2)
    parse.add_argument("--only", action="append",
                       choices=["connections", "resources", "sizes", "load"])
    args = parse.parse_args()
    servers.Twinblk.program = pathlib.Path(args.twinblk).resolve()
    wanted = args.only or ["connections", "resources", "sizes", "load"]
    with tempfile.TemporaryDirectory(prefix="twinblk-bench-", dir="/dev/shm") as directory:
        for number in range(args.rounds):
            place = pathlib.Path(directory) / str(number)
            place.mkdir()
            for what, measure in (("connections", connections), ("resources", resources)):
                if what in wanted:
                    rows = measure(place, args.seconds)
                    for text, iops in rows:
                        print(f"{number} {text}: {iops:,.0f} iops, x{iops / rows[0][1]:.2f}", flush=True)
            if "sizes" in wanted:
                rows = sizes(place, args.seconds)
                for size, took, memory, near, far in rows:
                    print(f"{number} {size:,} GiB: up and Primary in {took:.1f} s, {memory:.0f} MiB; "
                          f"within 512 MiB {near:,.0f} iops x{near / rows[0][3]:.2f}, everywhere "
                          f"{far:,.0f} iops x{far / rows[0][4]:.2f}", flush=True)
            if "load" in wanted:
                got = under_load(place, args.seconds)
                parts = got["write us"] + got["flush us"]
                for name, took in got["alone"]:
                    print(f"{number} {name} alone: {took:.1f} s", flush=True)
                for name, row in got["rows"]:
                    print(f"{number} {name}: {row['took']:.1f} s; application before {row['before']:,.0f}, "
                          f"during {row['during']:,.0f} (x{row['during'] / row['before']:.2f}), "
                          f"after {row['after']:,.0f} iops", flush=True)
                print(f"{number} write {got['write us']:.0f} us, flush {got['flush us']:.0f} us, both "
                      f"{got['write and flush us']:.0f} us (x{got['write and flush us'] / parts:.2f} of "
                      "the parts)", flush=True)


if __name__ == "__main__":
    main()
