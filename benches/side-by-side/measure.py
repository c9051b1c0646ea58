"""The same load over each server in turn, several rounds in alternating order; medians and spread."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import plot
import servers

LOADS = {
    # name: (fio's options, what is counted)
    "4k randwrite QD1": ["--rw=randwrite", "--bs=4k", "--iodepth=1"],
    "4k randwrite QD16": ["--rw=randwrite", "--bs=4k", "--iodepth=16"],
    "4k randwrite QD64": ["--rw=randwrite", "--bs=4k", "--iodepth=64"],
    "4k randread QD1": ["--rw=randread", "--bs=4k", "--iodepth=1"],
    "4k randread QD64": ["--rw=randread", "--bs=4k", "--iodepth=64"],
    "1M seq write QD8": ["--rw=write", "--bs=1M", "--iodepth=8"],
    "4k write+flush QD1": ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
}


def fio(server, options, seconds, ramp):
    """Runs fio; answers operations and bytes per second, mean latency and CPU of the server."""
    before, counted = server.cpu(), server.calls()
    started = time.monotonic()
    done = subprocess.run(
        ["fio", "--name=x", "--ioengine=nbd", f"--uri={server.uri}", f"--size={server.size}",
         "--time_based", f"--runtime={seconds}", f"--ramp_time={ramp}", "--randrepeat=0",
         "--norandommap", "--output-format=json", *options],
        capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"fio over {server.dir.name} failed:\n{done.stdout}{done.stderr}\n{server.log()}")
    elapsed = time.monotonic() - started
    cpu = server.cpu() - before
    calls = None
    if counted:
        now = server.calls()
        calls = (now[0] - counted[0]) / max(now[1] - counted[1], 1)
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    side = job["read"] if "read" in options[0] else job["write"]
    iops = side["iops"]
    return {
        "iops": iops,
        "MiB/s": side["bw_bytes"] / (1 << 20),
        "mean us": side["lat_ns"]["mean"] / 1000,
        "p99 us": side["clat_ns"].get("percentile", {}).get("99.000000", 0) / 1000,
        # Over the whole run of fio, as is the CPU: the ramp is part of both.
        "cpu us per io": cpu * 1e6 / max(iops * elapsed, 1),
        "client cpu us per io": (job["usr_cpu"] + job["sys_cpu"]) * 1e4 / max(iops, 1),
        "system calls per io": calls,
    }


def round_trip():
    """Mean time of a TCP round trip over loopback, in microseconds."""
    server = subprocess.Popen(["sockperf", "server", "--tcp", "-p", "29999", "-i", "127.0.0.1"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(50):
            out = subprocess.run(["sockperf", "ping-pong", "--tcp", "-p", "29999", "-i",
                                  "127.0.0.1", "-t", "2", "--full-rtt"],
                                 capture_output=True, text=True, check=False).stdout
            for line in out.splitlines():
                if "avg-rtt=" in line:
                    return float(line.split("avg-rtt=")[1].split()[0])
            time.sleep(0.1)
    finally:
        server.kill()
        server.wait()
    return None


def nbdcopy(directory, size):
    """Bytes per second of nbdcopy from one nbdkit to another over TCP: what a full copy costs."""
    source, target = directory / "source", directory / "target"
    source.write_bytes(b"\x5a" * size)
    target.write_bytes(b"")
    with open(target, "r+b") as f:
        f.truncate(size)
    ports = [next(servers.Twinblk.ports) for _ in range(2)]
    kits = [subprocess.Popen(["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "file", str(path)])
            for port, path in zip(ports, (source, target))]
    try:
        time.sleep(0.5)
        start = time.monotonic()
        subprocess.run(["nbdcopy", f"nbd://127.0.0.1:{ports[0]}", f"nbd://127.0.0.1:{ports[1]}"],
                       check=True)
        return size / (time.monotonic() - start)
    finally:
        for kit in kits:
            kit.terminate()
            kit.wait()
        source.unlink()
        target.unlink()


def versions():
    """Of what is measured and what measures, and of the processor."""
    def first(*argv):
        out = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        return out.splitlines()[0] if out else "?"
    model = next((line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text()
                  .splitlines() if line.startswith("model name")), platform.machine())
    return {"cpu": model, "programs": ", ".join([
        first(servers.Twinblk.program, "--version"), first("fio", "--version"),
        first("nbdkit", "--version"), first("qemu-storage-daemon", "--version")])}


def stolen():
    """Seconds the hypervisor took from this machine's processors, over all."""
    fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def middle(values):
    return statistics.median(values) if values else None


def table(results, base):
    """Rows of a Markdown table: median, spread, and the ratio to `base`."""
    peers = list(results)
    lines = ["| load | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
    measured = [load for load in LOADS if any(load in r for r in results.values())]
    for load in measured:
        cells = []
        unit = "MiB/s" if load.startswith("1M") else "iops"
        reference = middle([r[unit] for r in results[base].get(load, [])]) if base in results else None
        for peer in peers:
            values = [r[unit] for r in results[peer].get(load, [])]
            if not values:
                cells.append("–")
                continue
            value = middle(values)
            spread = (max(values) - min(values)) / value * 100 if value else 0
            ratio = f" ×{value / reference:.2f}" if reference else ""
            cells.append(f"{value:,.0f} ±{spread / 2:.0f}%{ratio}")
        lines.append(f"| {load} ({unit}) | " + " | ".join(cells) + " |")
    for what, words, digits in (
            ("cpu us per io", "CPU µs per I/O, all servers", 1),
            ("client cpu us per io", "CPU µs per I/O, client", 1),
            ("system calls per io", "system calls per I/O, all servers, as they count them", 2)):
        for load in measured:
            cells = []
            for peer in peers:
                values = [r[what] for r in results[peer].get(load, []) if r[what] is not None]
                cells.append(f"{middle(values):.{digits}f}" if values else "–")
            lines.append(f"| {load}: {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--twinblk", required=True, help="the program")
    parse.add_argument("--quick", action="store_true", help="one round of one second each")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parse.add_argument("--size", type=int, default=512, help="MiB of the device")
    parse.add_argument("--only", action="append", help="a peer; may be repeated")
    parse.add_argument("--load", action="append", help="a load; may be repeated")
    parse.add_argument("--out", default="target/side-by-side", help="where the results go")
    args = parse.parse_args()
    rounds, seconds = (1, 1) if args.quick else (args.rounds, args.seconds)
    size = args.size << 20
    servers.Twinblk.program = pathlib.Path(args.twinblk).resolve()
    peers = {n: c for n, c in servers.PEERS.items() if not args.only or n in args.only}
    loads = {n: o for n, o in LOADS.items() if not args.load or n in args.load}
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    results = {name: {} for name in peers}
    rates = {"resync": [], "nbdcopy": []}
    trips = []
    began, lost = time.monotonic(), stolen()
    with tempfile.TemporaryDirectory(prefix="twinblk-bench-", dir="/dev/shm") as directory:
        directory = pathlib.Path(directory)
        for number in range(rounds):
            trips.append(round_trip())
            # Alternating order: whatever drifts hits everybody alike.
            order = list(peers.items())
            if number % 2:
                order.reverse()
            for name, make in order:
                server = make(directory / f"{number}-{name.replace(' ', '-').replace(',', '')}", size)
                try:
                    for load, options in loads.items():
                        got = fio(server, options, seconds, 0 if args.quick else 1)
                        results[name].setdefault(load, []).append(got)
                        print(f"{number} {name:24} {load:20} {got['iops']:>10,.0f} iops "
                              f"{got['MiB/s']:>8,.0f} MiB/s {got['mean us']:>9.1f} us", flush=True)
                    if name == "twinblk C":
                        rates["resync"].append(size / server.resync())
                finally:
                    server.stop()
                    shutil.rmtree(server.dir)
            rates["nbdcopy"].append(nbdcopy(directory, size))
    about = {
        "date": datetime.date.today().isoformat(),
        **versions(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "rounds": rounds, "seconds": seconds, "size_mib": args.size,
        "stolen_percent": round(100 * (stolen() - lost) / (time.monotonic() - began)
                                / os.cpu_count(), 1),
        "tcp_round_trip_us": middle([t for t in trips if t]),
        "resync_mib_s": middle(rates["resync"]) and middle(rates["resync"]) / (1 << 20),
        "nbdcopy_mib_s": middle(rates["nbdcopy"]) and middle(rates["nbdcopy"]) / (1 << 20),
    }
    (out / "results.json").write_text(json.dumps({"about": about, "results": results}, indent=1))
    text = table(results, "nbdkit (no mirror)")
    notes = "\n".join(f"* {k}: {v}" for k, v in about.items())
    (out / "table.md").write_text(f"{text}\n\n{notes}\n")
    (out / "plot.svg").write_text(plot.svg(results, loads, about))
    print(f"\n{text}\n\n{notes}\n\nwritten to {out}/")


if __name__ == "__main__":
    main()
