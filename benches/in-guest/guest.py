"""A guest of tests/vm for measuring: its image, with what only the comparison needs packed behind it,
and the line over which scripts go in and their output comes out (see tests/vm/guest/agent)."""

import base64
import os
import pathlib
import re
import shutil
import socket
import subprocess

BOOT = 300
# Packages whose programs are wanted in the guest only: unpacked, not installed.
PACKAGES = {"drbd-utils": ["sbin/drbdsetup", "sbin/drbdmeta"], "mdadm": ["sbin/mdadm"]}
# Programs of their package that are there under some name or other (Debian moves them).
OLD_DRBD = ["drbdsetup-84", "drbdmeta-84"]
MODULES = ["md-mod.ko", "raid1.ko"]
PLUGIN = "nbdkit/plugins/nbdkit-memory-plugin.so"


def libraries(program):
    """What a program is linked with."""
    out = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return re.findall(r"/[^ )]+", out)


class Guest:
    """Boots when made, dies when stopped. `memory` in MiB."""

    def __init__(self, twinblk, series, directory, processors=2, memory=3072):
        self.dir = pathlib.Path(directory)
        here = pathlib.Path(__file__).resolve().parent
        image = subprocess.run(
            [here / "../../tests/vm/image", series, twinblk, "fio", "nbdkit"],
            stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        image = pathlib.Path(image)
        initrd = self.dir / "initrd"
        with open(initrd, "wb") as f:
            f.write((image / "initrd").read_bytes())
            f.write(self.more((image / "vmlinuz").resolve().parent))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.dir / "line"))
        listener.listen(1)
        listener.settimeout(BOOT)
        self.console = self.dir / "console"
        # Without SSE 4.2: QEMU computes its CRC instruction bit by bit, slower than a table does.
        self.qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "Nehalem,-sse4.2",
             "-smp", str(processors), "-m", str(memory), "-display", "none",
             "-kernel", image / "vmlinuz", "-initrd", initrd, "-append",
             "console=ttyS0 panic=-1 net.ifnames=0 twinblk.name=alpha twinblk.number=1 mitigations=off "
             "nokaslr noreplace-smp cryptomgr.notests no_timer_check lsm=lockdown",
             "-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console",
             "-device", "virtio-serial-pci", "-chardev", f"socket,id=line,path={self.dir}/line",
             "-device", "virtserialport,chardev=line,name=host",
             "-netdev", "user,id=host,restrict=on", "-device", "virtio-net-pci,netdev=host,romfile=",
             "-nodefaults", "-no-user-config", "-no-reboot"], stdin=subprocess.DEVNULL)
        connection, _ = listener.accept()
        connection.settimeout(BOOT)
        self.line = connection.makefile("rw")
        self.scripts = 0
        ready = self.line.readline().split()
        if ready[:1] != ["ready"]:
            raise SystemExit(f"the guest does not boot:\n{self.console.read_text(errors='replace')[-4000:]}")
        self.kernel = ready[1]
        connection.settimeout(900)

    def more(self, kernel):
        """An archive with programs, a plugin of nbdkit and modules the image lacks."""
        root = self.dir / "more"
        (root / "bin").mkdir(parents=True)

        def install(path, to):
            (root / to).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / to)
            for library in libraries(path):
                (root / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, root / library.lstrip("/"))

        for package in PACKAGES:
            subprocess.run(["apt-get", "-qq", "download", package], cwd=self.dir, check=True,
                           stderr=subprocess.DEVNULL)
            tree = self.dir / package
            subprocess.run(["dpkg", "-x", next(self.dir.glob(f"{package}_*.deb")), tree], check=True)
            for name in PACKAGES[package]:
                install(tree / name, f"bin/{pathlib.Path(name).name}")
            for name in OLD_DRBD:
                for found in tree.rglob(name):
                    if found.is_file():
                        install(found, f"bin/{name}")
        plugin = next(pathlib.Path("/usr/lib").rglob(PLUGIN))
        install(plugin, str(plugin).lstrip("/"))
        for module in MODULES:
            for found in kernel.rglob(module):
                shutil.copy(found, root / module)
        listing = subprocess.run(["find", "."], cwd=root, capture_output=True, check=True).stdout
        return subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root,
                              input=listing, capture_output=True, check=True).stdout

    def run(self, script):
        """Runs a script; answers its exit code and output."""
        self.scripts += 1
        text = base64.b64encode(script.encode()).decode()
        self.line.write(f"{self.scripts} {text}\n")
        self.line.flush()
        words = self.line.readline().split()
        if len(words) < 2:
            raise SystemExit(f"the guest has died:\n{self.console.read_text(errors='replace')[-4000:]}")
        output = base64.b64decode(words[2]).decode(errors="replace") if len(words) > 2 else ""
        return int(words[1]), output

    def ok(self, script):
        """Runs a script of which each command must succeed; answers what it printed."""
        code, output = self.run(f"set -e\nexport PATH=/bin\n{script}")
        if code:
            tail = self.run("dmesg | tail -15")[1]
            raise SystemExit(f"{script}\nfailed in the guest ({code}):\n{output}\n{tail}")
        return output

    def stop(self):
        self.qemu.kill()
        self.qemu.wait()
