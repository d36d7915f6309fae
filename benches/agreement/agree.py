#!/usr/bin/env python3
"""Runs plans for real and simulates the same plans: how far apart are they?

    cargo build --release && python3 benches/agreement/agree.py [--program target/release/tandem] [--out DIR] [--only modeled|cpu] [--repeats N]

Each plan runs --repeats times; plans take turns, so that a slow minute does not hit one plan only. Two simulations of each:

- `own log`: each run is simulated with costs from its own iteration log, so that the speed of the machine during that run is no part of
  the difference. The median difference of a plan's runs counts against the aims: exit code 1 when one is over.
- `other plans`: costs come from the runs of all the other plans, so that what the steps of this plan cost is predicted as well. The median
  of the plan's runs is compared. A machine whose speed changes from minute to minute shows here; `spread` says by how much the
  throughput of the plan's runs differs.

The column `steps` compares the logs: the share of steps that hold as many prompt tokens and sequences in both. In the column `replay` the
simulation was given the times of a real run (when requests were sent, when each step began and ended), so that only decisions are left:
the share of steps, one by one, that hold what they held in the real run. `other` is the share of the cores that other processes had.
Prints a table and writes table.json and every run folder to --out. Runs that --out already holds are kept, so that a measurement may go on later.
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

# Name and knobs.
MODELED = ["ENGINE=modeled", "MODELED_STEP_US=8000", "MODELED_PREFILL_TOKEN_US=100", "MODELED_DECODE_SEQ_US=300", "OSL=64", "ISL=256"]
# A server of each phase: with a third, more steps than cores of a small machine want to run.
CPU = ["NCTX=1", "NGEN=1"]
PLANS = {
    "modeled": [
        ("one request", MODELED + ["CONCURRENCY=1", "MULTI_ROUND=24"]),
        ("as many as slots", MODELED + ["CONCURRENCY=8"]),
        ("more than slots", MODELED + ["CONCURRENCY=12"]),
        ("two decode servers", MODELED + ["CONCURRENCY=12", "NGEN=2"]),
        ("one prefill server", MODELED + ["CONCURRENCY=6", "NCTX=1"]),
        ("three prefill servers", MODELED + ["CONCURRENCY=8", "NCTX=3"]),
        ("long prompts in chunks", MODELED + ["CONCURRENCY=4", "ISL=700"]),
        ("slow prefill", MODELED + ["CONCURRENCY=8", "MODELED_PREFILL_TOKEN_US=400", "NCTX=1"]),
        ("in turn", MODELED + ["CONCURRENCY=10", "NGEN=2", "ROUTING=round-robin"]),
        ("stream interval 8", MODELED + ["CONCURRENCY=8", "STREAM_INTERVAL=8"]),
        ("small batches", MODELED + ["CONCURRENCY=8", "GEN_MAX_BATCH_SIZE=4"]),
        ("one prompt a step", MODELED + ["CONCURRENCY=8", "CTX_MAX_BATCH_SIZE=1", "NCTX=1"]),
        ("long outputs", MODELED + ["CONCURRENCY=6", "OSL=200", "ISL=64"]),
    ],
    "cpu": [
        ("one request, long output", CPU + ["CONCURRENCY=1", "ISL=128", "OSL=160", "MULTI_ROUND=30"]),
        ("two requests", CPU + ["CONCURRENCY=2", "ISL=256", "OSL=128", "MULTI_ROUND=24"]),
        ("short prompts", CPU + ["CONCURRENCY=3", "ISL=64", "OSL=200", "MULTI_ROUND=14"]),
        ("four requests", CPU + ["CONCURRENCY=4", "ISL=256", "OSL=128", "MULTI_ROUND=14"]),
        ("eight, long outputs", CPU + ["CONCURRENCY=8", "ISL=64", "OSL=160", "MULTI_ROUND=6"]),
        ("near balance", CPU + ["CONCURRENCY=3", "ISL=256", "OSL=64", "MULTI_ROUND=20"]),
        ("long outputs", CPU + ["CONCURRENCY=5", "ISL=160", "OSL=200", "MULTI_ROUND=8"]),
        ("six requests", CPU + ["CONCURRENCY=6", "ISL=128", "OSL=96", "MULTI_ROUND=14"]),
        ("more than slots", CPU + ["CONCURRENCY=6", "ISL=192", "OSL=96", "GEN_MAX_BATCH_SIZE=3", "MULTI_ROUND=12"]),
        ("small batches", CPU + ["CONCURRENCY=8", "ISL=256", "OSL=128", "GEN_MAX_BATCH_SIZE=4", "MULTI_ROUND=6"]),
        ("stream interval 8", CPU + ["CONCURRENCY=4", "ISL=192", "OSL=128", "STREAM_INTERVAL=8", "MULTI_ROUND=14"]),
        ("small chunks", CPU + ["CONCURRENCY=4", "ISL=256", "OSL=128", "CTX_MAX_NUM_TOKENS=128", "MULTI_ROUND=14"]),
        ("prefill is slower", CPU + ["CONCURRENCY=3", "ISL=256", "OSL=32", "MULTI_ROUND=30"]),
        ("prefill is much slower", CPU + ["CONCURRENCY=6", "ISL=256", "OSL=16", "MULTI_ROUND=20"]),
        ("long prompts in chunks", CPU + ["CONCURRENCY=3", "ISL=352", "OSL=24", "CTX_MAX_NUM_TOKENS=128", "MULTI_ROUND=20"]),
        ("prompts share steps", CPU + ["CONCURRENCY=6", "ISL=256", "OSL=32", "CTX_MAX_NUM_TOKENS=512", "CTX_MAX_BATCH_SIZE=4", "MULTI_ROUND=16"]),
    ],
}


def tandem(program, *args):
    done = subprocess.run([program, *args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"tandem {' '.join(args)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def words(knobs):
    return [word for knob in knobs for word in ("--set", knob)]


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


def simulate(program, sets, costs, folder):
    shutil.rmtree(folder, ignore_errors=True)
    tandem(program, "simulate", *sets, "--calibration", str(costs), "--out", str(folder))
    return figures(folder)


def apart(real, simulated):
    """Percent, by figure."""
    return {key: 100 * (simulated[key] / real[key] - 1) for key in AIMS}


def cells(off):
    """As text: the differences, each with a mark where it is over its aim."""
    return " ".join(f"{off[key]:+6.1f}{'*' if abs(off[key]) > aim else ' '}" for key, aim in AIMS.items())


def measure(program, out, plans, repeats):
    """Runs every plan `repeats` times: folders by plan."""
    folders = [[out / f"{i:02}-real-{r}" for r in range(repeats)] for i in range(len(plans))]
    for r in range(repeats):
        for (_, knobs), folder in zip(plans, (f[r] for f in folders)):
            if (folder / "host.json").exists():
                continue
            before = busy()
            shutil.rmtree(folder, ignore_errors=True)
            tandem(program, "run", *words(knobs), "--port", "0", "--out", str(folder))
            all_s, own_s, wall = (after - b for after, b in zip(busy(), before))
            host = {"other_percent": 100 * max(0, all_s - own_s) / wall / os.cpu_count()}
            (folder / "host.json").write_text(json.dumps(host) + "\n")
    return folders


def compare(program, out, i, plan, folders):
    """Of one plan: measured, and simulated in both ways."""
    name, knobs = plan
    costs, measured, own, steps = out / "costs", [figures(folder) for folder in folders[i]], [], []
    costs.mkdir(exist_ok=True)
    for r, folder in enumerate(folders[i]):
        log = costs / f"{i:02}-own-{r}.json"
        tandem(program, "calibrate", "--from-run", str(folder), "--out", str(log))
        simulated = out / f"{i:02}-simulated-{r}"
        own.append(apart(measured[r], simulate(program, words(knobs), log, simulated)))
        steps.append(alike(compositions(folder), compositions(simulated)))
    again = out / f"{i:02}-replayed"
    shutil.rmtree(again, ignore_errors=True)
    tandem(program, "simulate", "--replay", str(folders[i][0]), "--calibration", str(costs / f"{i:02}-own-0.json"), "--out", str(again))
    others = costs / f"{i:02}-others.json"
    tandem(program, "calibrate", "--from-run", *[str(f) for k, runs in enumerate(folders) if k != i for f in runs], "--out", str(others))
    predicted = simulate(program, words(knobs), others, out / f"{i:02}-predicted")
    middle = {key: statistics.median(m[key] for m in measured) for key in AIMS}
    rates = [m["output_throughput"] for m in measured]
    return {
        "plan": name,
        "knobs": knobs,
        "measured": measured,
        "own_log_off_percent": {key: statistics.median(off[key] for off in own) for key in AIMS},
        "own_log_off_percent_by_run": own,
        "other_plans_off_percent": apart(middle, predicted),
        "spread_percent": 100 * (max(rates) / min(rates) - 1),
        "steps_alike_percent": statistics.median(steps),
        "replayed_alike_percent": same(decided(folders[i][0]), decided(again)),
        "other_percent": statistics.median(json.loads((folder / "host.json").read_text())["other_percent"] for folder in folders[i]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/tandem")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", choices=sorted(PLANS))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    out = args.out or pathlib.Path(tempfile.mkdtemp(prefix="agreement-"))
    table, missed = {}, 0
    for engine, plans in PLANS.items():
        if args.only not in (None, engine):
            continue
        folders = measure(args.program, out / engine, plans, args.repeats)
        print(f"{engine}: percent off           own log (* over the aim)       other plans\n")
        print(f"{'plan':26} {'tok/s':>7} {'TPOT':>7} {'TTFT':>7}   {'tok/s':>7} {'TPOT':>7} {'TTFT':>7}  spread  steps replay other")
        table[engine] = []
        for i, plan in enumerate(plans):
            row = compare(args.program, out / engine, i, plan, folders)
            table[engine].append(row)
            print(
                f"{row['plan']:26} {cells(row['own_log_off_percent'])}   {cells(row['other_plans_off_percent'])}"
                f"  {row['spread_percent']:6.1f} {row['steps_alike_percent']:6.1f} {row['replayed_alike_percent']:6.1f} {row['other_percent']:5.1f}",
                flush=True,
            )
        for way in ("own_log_off_percent", "other_plans_off_percent"):
            offs = {key: [abs(row[way][key]) for row in table[engine]] for key in AIMS}
            over = sum(off > AIMS[key] for key, all_ in offs.items() for off in all_)
            missed += over if way == "own_log_off_percent" else 0
            halves = ", ".join(f"{key} {statistics.median(all_):.1f} (largest {max(all_):.1f})" for key, all_ in offs.items())
            print(f"{way[:-12].replace('_', ' ')}: {over} of {len(AIMS) * len(plans)} over the aims; median {halves}")
        print()
    (out / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"everything is in {out}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
