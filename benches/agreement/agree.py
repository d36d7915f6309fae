#!/usr/bin/env python3
"""Runs plans for real and simulates the same plans: how far apart are they?

    cargo build --release && python3 benches/agreement/agree.py [--program target/release/tandem] [--out DIR] [--only modeled|cpu]
        [--repeats N] [--keep N] [--cores LIST]

Each engine is calibrated on the runs marked so, of the CPU engine on plans of their own, and every plan is simulated. Plans take turns,
so that a slow minute does not hit one plan only. Wants a machine that does nothing else: the share of the cores that other processes had
is in the column `other`. A virtual machine is slowed by its neighbours as well: during each run a fixed piece of work is timed on each
core 20 times a second (column `yard`, microseconds, by the time that the core gave to it), and of each plan's --repeats runs the --keep
with the fastest yardstick count, whatever they measured; their median is compared. --cores pins everything that runs to these cores
(`taskset`). Runs that --out already holds are kept, so that a measurement may go on later. Prints a table and writes table.json and
every run folder to --out. The column `steps` compares the logs: the share of steps that hold as many prompt tokens and sequences in both.
In the column `replay` the simulation was given the times of a real run (when requests were sent, when each step began and ended), so that
only decisions are left: the share of steps, one by one, that hold what they held in the real run.
Differences beyond the aims are marked; exit code 1 when there are any.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

AIMS = {"output_throughput": 5.0, "tpot": 5.0, "ttft": 10.0}

# Name, knobs, whether the calibration sees it.
MODELED = ["ENGINE=modeled", "MODELED_STEP_US=8000", "MODELED_PREFILL_TOKEN_US=100", "MODELED_DECODE_SEQ_US=300", "OSL=64", "ISL=256"]
# A server of each phase: with a third, more steps than cores of a small machine want to run.
CPU = ["NCTX=1", "NGEN=1"]
PLANS = {
    "modeled": [
        ("one request", MODELED + ["CONCURRENCY=1"], True),
        ("as many as slots", MODELED + ["CONCURRENCY=8"], True),
        ("more than slots", MODELED + ["CONCURRENCY=12"], True),
        ("two decode servers", MODELED + ["CONCURRENCY=12", "NGEN=2"], False),
        ("one prefill server", MODELED + ["CONCURRENCY=6", "NCTX=1"], False),
        ("three prefill servers", MODELED + ["CONCURRENCY=8", "NCTX=3"], False),
        ("long prompts in chunks", MODELED + ["CONCURRENCY=4", "ISL=700"], False),
        ("slow prefill", MODELED + ["CONCURRENCY=8", "MODELED_PREFILL_TOKEN_US=400", "NCTX=1"], False),
        ("in turn", MODELED + ["CONCURRENCY=10", "NGEN=2", "ROUTING=round-robin"], False),
        ("stream interval 8", MODELED + ["CONCURRENCY=8", "STREAM_INTERVAL=8"], False),
        ("small batches", MODELED + ["CONCURRENCY=8", "GEN_MAX_BATCH_SIZE=4"], False),
        ("one prompt a step", MODELED + ["CONCURRENCY=8", "CTX_MAX_BATCH_SIZE=1", "NCTX=1"], False),
        ("long outputs", MODELED + ["CONCURRENCY=6", "OSL=200", "ISL=64"], False),
    ],
    "cpu": [
        ("one request, long output", CPU + ["CONCURRENCY=1", "ISL=128", "OSL=160", "MULTI_ROUND=30"], False),
        ("two requests", CPU + ["CONCURRENCY=2", "ISL=256", "OSL=128", "MULTI_ROUND=24"], False),
        ("short prompts", CPU + ["CONCURRENCY=3", "ISL=64", "OSL=200", "MULTI_ROUND=14"], False),
        ("four requests", CPU + ["CONCURRENCY=4", "ISL=256", "OSL=128", "MULTI_ROUND=14"], False),
        ("long outputs", CPU + ["CONCURRENCY=5", "ISL=160", "OSL=200", "MULTI_ROUND=8"], False),
        ("six requests", CPU + ["CONCURRENCY=6", "ISL=128", "OSL=96", "MULTI_ROUND=14"], False),
        ("more than slots", CPU + ["CONCURRENCY=6", "ISL=192", "OSL=96", "GEN_MAX_BATCH_SIZE=3", "MULTI_ROUND=12"], False),
        ("small batches", CPU + ["CONCURRENCY=8", "ISL=256", "OSL=128", "GEN_MAX_BATCH_SIZE=4", "MULTI_ROUND=6"], False),
        ("stream interval 8", CPU + ["CONCURRENCY=4", "ISL=192", "OSL=128", "STREAM_INTERVAL=8", "MULTI_ROUND=14"], False),
        ("small chunks", CPU + ["CONCURRENCY=4", "ISL=256", "OSL=128", "CTX_MAX_NUM_TOKENS=128", "MULTI_ROUND=14"], False),
        ("prefill is slower", CPU + ["CONCURRENCY=3", "ISL=256", "OSL=32", "MULTI_ROUND=30"], False),
        ("prefill is much slower", CPU + ["CONCURRENCY=6", "ISL=256", "OSL=16", "MULTI_ROUND=20"], False),
        ("long prompts in chunks", CPU + ["CONCURRENCY=3", "ISL=352", "OSL=24", "CTX_MAX_NUM_TOKENS=128", "MULTI_ROUND=20"], False),
        ("prompts share steps", CPU + ["CONCURRENCY=6", "ISL=256", "OSL=32", "CTX_MAX_NUM_TOKENS=512", "CTX_MAX_BATCH_SIZE=4", "MULTI_ROUND=16"], False),
        # For the calibration only: they visit each batch size with short and long contexts, and the sizes of prefill steps.
        ("", CPU + ["CONCURRENCY=1", "ISL=256", "OSL=64", "MULTI_ROUND=40"], True),
        ("", CPU + ["CONCURRENCY=8", "ISL=256", "OSL=128", "MULTI_ROUND=6"], True),
        ("", CPU + ["CONCURRENCY=8", "ISL=144", "OSL=96", "MULTI_ROUND=8"], True),
        ("", CPU + ["CONCURRENCY=3", "ISL=160", "OSL=160", "MULTI_ROUND=12"], True),
        ("", CPU + ["CONCURRENCY=5", "ISL=128", "OSL=128", "MULTI_ROUND=8"], True),
        ("", CPU + ["CONCURRENCY=4", "ISL=384", "OSL=32", "CTX_MAX_NUM_TOKENS=128", "MULTI_ROUND=12"], True),
        ("", CPU + ["CONCURRENCY=5", "ISL=256", "OSL=48", "CTX_MAX_NUM_TOKENS=512", "CTX_MAX_BATCH_SIZE=4", "MULTI_ROUND=10"], True),
        ("", CPU + ["CONCURRENCY=1", "ISL=64", "OSL=200", "MULTI_ROUND=24"], True),
        ("", CPU + ["CONCURRENCY=2", "ISL=320", "OSL=64", "MULTI_ROUND=24"], True),
        ("", CPU + ["CONCURRENCY=4", "ISL=240", "OSL=96", "MULTI_ROUND=14"], True),
    ],
}


def tandem(command, *args):
    done = subprocess.run([*command, *args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"tandem {' '.join(args)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def figures(folder):
    summary = json.loads((folder / "result.json").read_text())["summary"]
    value = lambda name, stat: summary[name].get(stat)
    return {"output_throughput": value("output_throughput", "avg"), "tpot": value("tpot", "avg"), "ttft": value("ttft", "p50")}


def busy():
    """Seconds that all cores have been busy, and those of this process's ended children."""
    ticks = [int(n) for n in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    own = os.times()
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK"), own.children_user + own.children_system, own.elapsed


class Yardstick(threading.Thread):
    """Times a fixed piece of work on one core now and then, by the time that the core gave to it: how fast the host lets the core be."""

    def __init__(self, core):
        super().__init__(daemon=True)
        self.core, self.times = core, []

    def run(self):
        os.sched_setaffinity(0, {self.core})  # Of this thread.
        work = bytes(256 << 10)
        while True:
            begin = time.thread_time_ns()
            hashlib.blake2b(work).digest()
            self.times.append(time.thread_time_ns() - begin)
            time.sleep(0.05)


def yards(yardsticks, since):
    """Mean time of the fixed work since then, microseconds, over all cores."""
    return statistics.fmean(statistics.fmean(y.times[n:] or [0]) for y, n in zip(yardsticks, since)) / 1e3


def quietest(folders, keep):
    """The runs during which the host was fastest, whatever they measured."""
    return sorted(folders, key=lambda folder: json.loads((folder / "host.json").read_text())["yardstick_us"])[:keep]


def compositions(folder):
    """How many steps held how many prompt tokens and sequences, by phase."""
    counts = collections.Counter()
    for phase in ("prefill", "decode"):
        for line in (folder / "logs" / f"{phase}.log").read_text().splitlines():
            found = re.search(r"'num_ctx_tokens': (\d+), 'num_generation_tokens': (\d+)", line)
            if found:
                counts[phase, *found.groups()] += 1
    return counts


def decided(folder):
    """What each numbered step of each phase held."""
    steps = {}
    for phase in ("prefill", "decode"):
        for line in (folder / "logs" / f"{phase}.log").read_text().splitlines():
            found = re.search(r"iter = (\d+), .*'num_ctx_tokens': (\d+), 'num_generation_tokens': (\d+)", line)
            if found:
                steps[phase, found[1]] = found.groups()[1:]
    return steps


def same(real, replayed):
    """Share of the replayed steps that hold what the real ones held, percent."""
    return 100 * sum(real.get(step) == held for step, held in replayed.items()) / max(len(replayed), 1)


def alike(a, b):
    """Share of steps that both have, percent of the longer list."""
    return 100 * sum((a & b).values()) / max(sum(a.values()), sum(b.values()), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/tandem")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", choices=sorted(PLANS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--cores", help="for example 0,1")
    args = parser.parse_args()
    command = [args.program]
    if args.cores:
        command = [shutil.which("taskset") or sys.exit("--cores needs taskset"), "--cpu-list", args.cores, args.program]
    out = args.out or pathlib.Path(tempfile.mkdtemp(prefix="agreement-"))
    rows, missed = [], 0
    yardsticks = [Yardstick(core) for core in sorted(os.sched_getaffinity(0))]
    for yardstick in yardsticks:
        yardstick.start()
    for engine, plans in PLANS.items():
        if args.only not in (None, engine):
            continue
        sets = [[word for knob in knobs for word in ("--set", knob)] for _, knobs, _ in plans]
        real = [[out / engine / f"{i:02}-real-{r}" for r in range(args.repeats)] for i in range(len(plans))]
        for r in range(args.repeats):
            for i in range(len(plans)):
                if (real[i][r] / "host.json").exists():
                    continue
                before, since = busy(), [len(y.times) for y in yardsticks]
                shutil.rmtree(real[i][r], ignore_errors=True)
                tandem(command, "run", *sets[i], "--port", "0", "--out", str(real[i][r]))
                all_s, own_s, wall = (after - b for after, b in zip(busy(), before))
                host = {"other_percent": 100 * max(0, all_s - own_s) / wall / os.cpu_count(), "yardstick_us": yards(yardsticks, since)}
                (real[i][r] / "host.json").write_text(json.dumps(host) + "\n")
        real = [quietest(folders, args.keep) for folders in real]
        costs = out / engine / "costs.json"
        seen = [str(folder) for i, plan in enumerate(plans) if plan[2] for folder in real[i]]
        print(tandem(command, "calibrate", "--from-run", *seen, "--out", str(costs)))
        print(
            f"{engine:8} {'plan':24} {'tokens/s':>9} {'sim':>9} {'%':>6}  {'TPOT ms':>8} {'sim':>8} {'%':>6}  {'TTFT ms':>8} {'sim':>8} {'%':>6}"
            f"  {'steps':>5} {'replay':>6} {'other':>5} {'yard':>5}"
        )
        for i, (name, _, calibrated) in enumerate(plans):
            if not name:
                continue
            host = [json.loads((folder / "host.json").read_text()) for folder in real[i]]
            other, yardstick = (statistics.median(h[key] for h in host) for key in ("other_percent", "yardstick_us"))
            simulated = out / engine / f"{i:02}-simulated"
            tandem(command, "simulate", *sets[i], "--calibration", str(costs), "--out", str(simulated))
            measured = [figures(folder) for folder in real[i]]
            a, b = {key: statistics.median(m[key] for m in measured) for key in AIMS}, figures(simulated)
            spread = {key: 100 * (max(m[key] for m in measured) / min(m[key] for m in measured) - 1) for key in AIMS}
            steps = statistics.median(alike(compositions(folder), compositions(simulated)) for folder in real[i])
            again = out / engine / f"{i:02}-replayed"
            tandem(command, "simulate", "--replay", str(real[i][0]), "--calibration", str(costs), "--out", str(again))
            replayed = same(decided(real[i][0]), decided(again))
            off = {key: 100 * (b[key] / a[key] - 1) for key in AIMS}
            bad = [key for key, aim in AIMS.items() if abs(off[key]) > aim]
            missed += len(bad)
            rows.append(
                {"engine": engine, "plan": name, "calibrated": calibrated, "measured": a, "spread_percent": spread, "simulated": b}
                | {"off_percent": off, "steps_alike_percent": steps, "replayed_alike_percent": replayed, "other_percent": other, "yardstick_us": yardstick}
            )
            cells = "  ".join(f"{a[k]:{w}.{d}f} {b[k]:{w}.{d}f} {off[k]:+6.1f}" for k, w, d in [("output_throughput", 9, 1), ("tpot", 8, 3), ("ttft", 8, 2)])
            print(
                f"{'fitted' if calibrated else '':8} {name:24} {cells}  {steps:5.1f} {replayed:6.2f} {other:5.1f} {yardstick:5.0f}"
                f"  {'over: ' + ', '.join(bad) if bad else ''}",
                flush=True,
            )
    (out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{missed} of {len(rows) * len(AIMS)} figures are over their aims; everything is in {out}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
