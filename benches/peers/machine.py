"""What both comparisons say about where they ran, and how much other processes disturbed them.

Used by llama.py and frontend.py; prints nothing by itself.
"""

import os
import pathlib
import platform
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = pathlib.Path(os.environ.get("PEERS_DIR") or ROOT / "target/peers").resolve()
TICK = os.sysconf("SC_CLK_TCK")


def describe():
    """Lines on date, commit and machine, for the head of an output."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    names = [line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")]
    wide = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if f" {f}" in cpu]
    memory = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) / 2**20
    git = lambda *a: subprocess.run(["git", "-C", ROOT, *a], capture_output=True, text=True, check=True).stdout.strip()
    changed = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return [
        f"date     {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}",
        f"commit   {git('rev-parse', '--short=12', 'HEAD')}{changed}",
        f"machine  {len(names)} x {names[0]} ({' '.join(wide)}), {memory:.0f} GiB, {platform.system()} {platform.release()}",
        f"load     {pathlib.Path('/proc/loadavg').read_text().strip()} at the start; priority of what is measured: nice {os.nice(0)}",
    ]


def own_session():
    """Makes the script and all that it starts one scheduling group with its own priority.

    Linux weighs sessions before processes (autogroups), so `nice` alone would not hold against builds in other sessions.
    """
    if os.getsid(0) != os.getpid():
        if os.getpgrp() == os.getpid():
            return
        os.setsid()
    group = pathlib.Path("/proc/self/autogroup")
    if group.exists():
        group.write_text(str(os.nice(0)))


class Others:
    """Share of all cores that went to processes other than those measured, between start and `share`."""

    def __init__(self):
        self.since = time.monotonic()
        self.busy = self._busy()

    @staticmethod
    def _busy():
        user, nice, system, _idle, _wait, irq, softirq, steal = (int(x) for x in pathlib.Path("/proc/stat").read_text().split()[1:9])
        return (user + nice + system + irq + softirq + steal) / TICK

    def share(self, own_cpu_s):
        """`own_cpu_s`: CPU seconds of the measured processes in that time."""
        wall = time.monotonic() - self.since
        return max(0.0, self._busy() - self.busy - own_cpu_s) / (wall * os.cpu_count())
