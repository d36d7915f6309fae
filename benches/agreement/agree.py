#!/usr/bin/env python3
"""Runs plans for real and simulates the same plans: how far apart are they?

    cargo build --release && python3 benches/agreement/agree.py [--program target/release/tandem] [--out DIR] [--only modeled|cpu]
        [--repeats N] [--cores LIST]

Each engine is calibrated on the runs marked so (three plans), and simulated on all; the others are predictions of runs that the
calibration has not seen. Of each plan the median of --repeats runs counts; plans take turns, so that a slow minute does not hit one
plan only. --cores pins everything that runs to these cores (`taskset`). Wants a machine that does nothing else: the share of the cores
that other processes had during the runs of a plan is in the column `other`. Prints a table and writes table.json and every run folder to
--out. The column `steps` compares the logs: the share of steps that hold as many prompt tokens and sequences in both. Differences beyond
the aims are marked; exit code 1 when there are any.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

AIMS = {"output_throughput": 5.0, "tpot": 5.0, "ttft": 10.0}

# Name, knobs, whether the calibration sees it.
MODELED = ["ENGINE=modeled", "MODELED_STEP_US=8000", "MODELED_PREFILL_TOKEN_US=100", "MODELED_DECODE_SEQ_US=300", "OSL=64", "ISL=256"]
CPU = ["OSL=64", "ISL=256"]
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
        ("one request", CPU + ["CONCURRENCY=1", "NCTX=1"], True),
        ("four requests", CPU + ["CONCURRENCY=4", "NCTX=1"], False),
        ("eight requests", CPU + ["CONCURRENCY=8", "NCTX=1"], True),
        ("two requests", CPU + ["CONCURRENCY=2", "NCTX=1"], False),
        ("three requests", CPU + ["CONCURRENCY=3", "NCTX=1"], False),
        ("six requests", CPU + ["CONCURRENCY=6", "NCTX=1"], False),
        ("more than slots", CPU + ["CONCURRENCY=12", "NCTX=1"], False),
        ("small batches", CPU + ["CONCURRENCY=8", "NCTX=1", "GEN_MAX_BATCH_SIZE=4"], False),
        ("one prompt a step", CPU + ["CONCURRENCY=6", "NCTX=1", "CTX_MAX_BATCH_SIZE=1"], False),
        ("small chunks", CPU + ["CONCURRENCY=4", "NCTX=1", "CTX_MAX_NUM_TOKENS=128"], True),
        ("longer outputs", CPU + ["CONCURRENCY=6", "NCTX=1", "OSL=128"], False),
        ("shorter prompts", CPU + ["CONCURRENCY=6", "NCTX=1", "ISL=128"], False),
        ("stream interval 8", CPU + ["CONCURRENCY=4", "NCTX=1", "STREAM_INTERVAL=8"], False),
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


def compositions(folder):
    """How many steps held how many prompt tokens and sequences, by phase."""
    counts = collections.Counter()
    for phase in ("prefill", "decode"):
        for line in (folder / "logs" / f"{phase}.log").read_text().splitlines():
            found = re.search(r"'num_ctx_tokens': (\d+), 'num_generation_tokens': (\d+)", line)
            if found:
                counts[phase, *found.groups()] += 1
    return counts


def alike(a, b):
    """Share of steps that both have, percent of the longer list."""
    return 100 * sum((a & b).values()) / max(sum(a.values()), sum(b.values()), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/tandem")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", choices=sorted(PLANS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", help="for example 0,1")
    args = parser.parse_args()
    command = [args.program]
    if args.cores:
        command = [shutil.which("taskset") or sys.exit("--cores needs taskset"), "--cpu-list", args.cores, args.program]
    out = args.out or pathlib.Path(tempfile.mkdtemp(prefix="agreement-"))
    rows, missed = [], 0
    for engine, plans in PLANS.items():
        if args.only not in (None, engine):
            continue
        sets = [[word for knob in knobs for word in ("--set", knob)] for _, knobs, _ in plans]
        real = [[out / engine / f"{i:02}-real-{r}" for r in range(args.repeats)] for i in range(len(plans))]
        other = [[] for _ in plans]
        for r in range(args.repeats):
            for i in range(len(plans)):
                before = busy()
                tandem(command, "run", *sets[i], "--port", "0", "--out", str(real[i][r]))
                all_s, own_s, wall = (after - b for after, b in zip(busy(), before))
                other[i].append(100 * max(0, all_s - own_s) / wall / os.cpu_count())
        costs = out / engine / "costs.json"
        seen = [str(folder) for i, plan in enumerate(plans) if plan[2] for folder in real[i]]
        print(tandem(command, "calibrate", "--from-run", *seen, "--out", str(costs)))
        print(
            f"{engine:8} {'plan':24} {'tokens/s':>9} {'sim':>9} {'%':>6}  {'TPOT ms':>8} {'sim':>8} {'%':>6}  {'TTFT ms':>8} {'sim':>8} {'%':>6}"
            f"  {'steps':>5} {'other':>5}"
        )
        for i, (name, _, calibrated) in enumerate(plans):
            simulated = out / engine / f"{i:02}-simulated"
            tandem(command, "simulate", *sets[i], "--calibration", str(costs), "--out", str(simulated))
            measured = [figures(folder) for folder in real[i]]
            a, b = {key: statistics.median(m[key] for m in measured) for key in AIMS}, figures(simulated)
            spread = {key: 100 * (max(m[key] for m in measured) / min(m[key] for m in measured) - 1) for key in AIMS}
            steps = statistics.median(alike(compositions(folder), compositions(simulated)) for folder in real[i])
            off = {key: 100 * (b[key] / a[key] - 1) for key in AIMS}
            bad = [key for key, aim in AIMS.items() if abs(off[key]) > aim]
            missed += len(bad)
            rows.append(
                {"engine": engine, "plan": name, "calibrated": calibrated, "measured": a, "spread_percent": spread, "simulated": b}
                | {"off_percent": off, "steps_alike_percent": steps, "other_percent": other[i]}
            )
            cells = "  ".join(f"{a[k]:{w}.{d}f} {b[k]:{w}.{d}f} {off[k]:+6.1f}" for k, w, d in [("output_throughput", 9, 1), ("tpot", 8, 3), ("ttft", 8, 2)])
            print(
                f"{'fitted' if calibrated else '':8} {name:24} {cells}  {steps:5.1f} {statistics.median(other[i]):5.1f}"
                f"  {'over: ' + ', '.join(bad) if bad else ''}",
                flush=True,
            )
    (out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{missed} of {len(rows) * len(AIMS)} figures are over their aims; everything is in {out}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
