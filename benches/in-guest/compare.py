"""The same loads over each way of mirroring a block device in one guest; medians, ratios to DRBD."""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import tempfile

import guest

LOADS = {
    "4k randwrite QD1": "--rw=randwrite --bs=4k --iodepth=1",
    "4k randwrite QD16": "--rw=randwrite --bs=4k --iodepth=16",
    "4k randwrite QD64": "--rw=randwrite --bs=4k --iodepth=64",
    "4k randread QD16": "--rw=randread --bs=4k --iodepth=16",
    "1M seq write QD4": "--rw=write --bs=1M --iodepth=4",
}
MIB = 128


class Peer:
    """One way of mirroring: `up` leaves a device, `down` nothing."""

    device = "/dev/ram0"

    def __init__(self, machine):
        self.machine = machine

    def up(self):
        pass

    def down(self):
        pass

    def resync(self):
        """Seconds of a full resync of the idle device, or `None`."""
        return None


class Nbd(Peer):
    """The kernel's nbd client over nbdkit's memory plugin: one socket, no mirror."""

    device = "/dev/nbd1"

    def up(self):
        self.machine.ok(f"""
            rm -f /run/kit.sock; nbdkit -U /run/kit.sock -P /run/kit.pid memory {MIB}M
            nbd-client -unix /run/kit.sock /dev/nbd1 -b 4096 >/dev/null""")

    def down(self):
        self.machine.ok("nbd-client -d /dev/nbd1; kill $(cat /run/kit.pid); sleep 1")


class Raid(Nbd):
    """md-raid1 of a ramdisk and a device over nbd: what people built before DRBD."""

    device = "/dev/md0"

    def up(self):
        super().up()
        self.machine.ok("""
            insmod /md-mod.ko 2>/dev/null || true; insmod /raid1.ko 2>/dev/null || true
            mdadm --create /dev/md0 --level=1 --raid-devices=2 --assume-clean --bitmap=internal \
                --run /dev/ram2 /dev/nbd1 </dev/null >/dev/null 2>&1""")

    def down(self):
        self.machine.ok("mdadm --stop /dev/md0 2>/dev/null")
        super().down()


class Drbd(Peer):
    """Kernel DRBD 8.4: two minors of one kernel, connected over loopback."""

    device = "/dev/drbd0"
    protocol = "C"

    def up(self):
        tool = "$(command -v drbdsetup-84 || command -v drbdsetup)"
        meta = "$(command -v drbdmeta-84 || command -v drbdmeta)"
        script = "modprobe drbd; mkdir -p /var/lib/drbd /var/lock /var/run/drbd /run/drbd\n"
        script += f"s={tool}; m={meta}\n"
        for n in (0, 1):
            script += f"""
                yes yes | $m --force {n} v08 /dev/ram{3 + n} internal create-md >/dev/null 2>&1
                $s new-resource r{n}; $s new-minor r{n} {n} 0
                $s attach {n} /dev/ram{3 + n} /dev/ram{3 + n} internal
                $s connect r{n} ipv4:127.0.0.1:{7001 + n} ipv4:127.0.0.1:{7002 - n} \
                    --protocol={self.protocol}"""
        script += """
            until grep -q 'cs:Connected' /proc/drbd; do sleep 0.2; done
            $s new-current-uuid --clear-bitmap 0
            until grep ' 0:' /proc/drbd | grep -q UpToDate/UpToDate; do sleep 0.2; done
            $s primary 0"""
        self.machine.ok(script)

    def resync(self):
        out = self.machine.ok("""
            s=$(command -v drbdsetup-84 || command -v drbdsetup)
            read a _ </proc/uptime; $s invalidate 1
            until grep ' 0:' /proc/drbd | grep -q 'cs:Connected.*UpToDate/UpToDate'; do sleep 0.02; done
            read b _ </proc/uptime; echo $a $b""")
        begin, end = map(float, out.split()[-2:])
        return end - begin

    def down(self):
        self.machine.ok("""
            s=$(command -v drbdsetup-84 || command -v drbdsetup)
            $s secondary 0; for n in 0 1; do $s down r$n; done; rmmod drbd""")


class DrbdA(Drbd):
    protocol = "A"


class Twinblk(Peer):
    """Two daemons, connected over loopback; the Primary's volume as /dev/nbd0."""

    device = "/dev/nbd0"
    protocol = "C"

    def up(self):
        text = f'[resource]\nname = "r0"\nprotocol = "{self.protocol}"\nshared-secret = "swordfish"\n'
        for n, node in enumerate(("alpha", "bravo")):
            text += (f'[node.{node}]\nid = {n}\naddress = "127.0.0.{n + 1}:7789"\n'
                     f'disk = "/dev/ram{5 + n}"\nmeta-disk = "internal"\n'
                     f'export = "unix:/run/{node}.nbd"\n')
            text += 'device = "/dev/nbd0"\n' if n == 0 else ""
        script = f"mkdir -p /run/config; cat >/run/config/r0.toml <<'END'\n{text}END\n"
        script += "chmod 600 /run/config/r0.toml\n"
        for n, node in enumerate(("alpha", "bravo")):
            script += f"""
                dd if=/dev/zero of=/dev/ram{5 + n} bs=1M count={MIB} 2>/dev/null || true
                twinblk create-md r0 --config /run/config --node {node} >/dev/null
                RUST_LOG=warn setsid twinblk daemon --config /run/config --state /run/{node}.state \
                    --node {node} --control /run/{node}.ctl >/dev/console 2>&1 &
                echo $! >/run/{node}.pid
                until twinblk --control /run/{node}.ctl status >/dev/null 2>&1; do sleep 0.1; done
                twinblk --control /run/{node}.ctl up r0"""
        script += """
            export TWINBLK_CONTROL=/run/alpha.ctl
            twinblk wait-connect r0 --timeout 60; twinblk new-current-uuid --clear-bitmap r0
            twinblk wait-sync r0 --timeout 60; twinblk primary r0
            until [ -e /sys/block/nbd0/pid ]; do sleep 0.1; done"""
        self.machine.ok(script)

    def resync(self):
        out = self.machine.ok("""
            read a _ </proc/uptime
            twinblk --control /run/bravo.ctl invalidate r0
            twinblk --control /run/alpha.ctl wait-sync r0 --timeout 300
            read b _ </proc/uptime; echo $a $b""")
        begin, end = map(float, out.split()[-2:])
        return end - begin

    def down(self):
        self.machine.ok("""
            twinblk --control /run/alpha.ctl secondary r0 || true
            for n in alpha bravo; do
                kill $(cat /run/$n.pid); while [ -e /proc/$(cat /run/$n.pid)/exe ]; do sleep 0.1; done
            done; rm -rf /run/*.state /run/config""")


class TwinblkA(Twinblk):
    protocol = "A"


PEERS = {
    "DRBD 8.4, C": Drbd, "twinblk, C": Twinblk,
    "DRBD 8.4, A": DrbdA, "twinblk, A": TwinblkA,
    "md-raid1 over nbd": Raid, "kernel nbd, no mirror": Nbd, "ramdisk": Peer,
}


def fio(machine, device, options, seconds):
    """Operations and MiB per second."""
    out = machine.ok(
        f"fio --name=x --filename={device} --ioengine=libaio --direct=1 --clocksource=clock_gettime "
        f"--size=100M --time_based --ramp_time=1 --runtime={seconds} --norandommap --randrepeat=0 "
        f"--output-format=json {options}")
    job = json.loads(out[out.index("{"):])["jobs"][0]
    side = job["read"] if "read" in options else job["write"]
    return {"iops": side["iops"], "MiB/s": side["bw_bytes"] / (1 << 20)}


def middle(values):
    return statistics.median(values) if values else None


def table(results):
    lines = ["| load | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for load in [*LOADS, "resync"]:
        unit = "MiB/s" if load.startswith(("1M", "resync")) else "iops"
        cells = []
        for peer in results:
            value = middle([r[unit] for r in results[peer].get(load, [])])
            base = "DRBD 8.4, A" if peer.endswith(" A") else "DRBD 8.4, C"
            reference = middle([r[unit] for r in results.get(base, {}).get(load, [])])
            if value is None:
                cells.append("–")
            else:
                cells.append(f"{value:,.0f}" + (f" ×{value / reference:.2f}" if reference else ""))
        lines.append(f"| {load} ({unit}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--twinblk", required=True, help="the program")
    parse.add_argument("--kernel", default="6.1", help="series of the guest's kernel: 6.1, 6.12")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parse.add_argument("--quick", action="store_true", help="one round of two seconds each")
    parse.add_argument("--only", action="append", help="a peer; may be repeated")
    parse.add_argument("--out", default="target/in-guest", help="where the results go")
    args = parse.parse_args()
    rounds, seconds = (1, 2) if args.quick else (args.rounds, args.seconds)
    peers = {n: c for n, c in PEERS.items() if not args.only or n in args.only}
    results = {name: {} for name in peers}
    calm = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="twinblk-guest-") as directory:
        machine = guest.Guest(pathlib.Path(args.twinblk).resolve(), args.kernel, directory)
        try:
            machine.ok(f"modprobe brd rd_nr=8 rd_size={MIB * 1024}; modprobe nbd nbds_max=4\n"
                       "for n in 0 1 2 3 4 5 6; do "
                       f"dd if=/dev/zero of=/dev/ram$n bs=1M count={MIB} 2>/dev/null || true; done")
            for number in range(rounds):
                # Alternating order: whatever drifts hits everybody alike.
                order = list(peers.items())
                if number % 2:
                    order.reverse()
                for name, make in order:
                    peer = make(machine)
                    peer.up()
                    for load, options in LOADS.items():
                        got = fio(machine, peer.device, options, seconds)
                        results[name].setdefault(load, []).append(got)
                        print(f"{number} {name:22} {load:18} {got['iops']:>9,.0f} iops "
                              f"{got['MiB/s']:>7,.0f} MiB/s", flush=True)
                    took = peer.resync()
                    if took:
                        results[name].setdefault("resync", []).append({"MiB/s": MIB / took})
                        print(f"{number} {name:22} resync {MIB / took:,.0f} MiB/s", flush=True)
                    peer.down()
                calm.append(os.getloadavg()[0])
        finally:
            machine.stop()
    about = {"date": datetime.date.today().isoformat(), "kernel": machine.kernel, "rounds": rounds,
             "seconds": seconds, "size_mib": MIB, "load average of the host": calm}
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps({"about": about, "results": results}, indent=1))
    text = table(results) + "\n\n" + "\n".join(f"* {k}: {v}" for k, v in about.items()) + "\n"
    (out / "table.md").write_text(text)
    print(f"\n{text}\nwritten to {out}/")


if __name__ == "__main__":
    main()
