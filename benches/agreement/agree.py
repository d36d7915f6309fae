#!/usr/bin/env python3
"""Runs plans for real and simulates the same plans: how far apart are they?

    cargo build --release && python3 benches/agreement/agree.py [--program target/release/tandem] [--out DIR] [--only modeled|cpu]

Each engine is calibrated on the runs marked so (three of them), and simulated on all; the others are predictions of runs that the
calibration has not seen. Wants a machine that does nothing else. Prints a table and writes table.json and every run folder to --out.
Differences beyond the aims are marked; exit code 1 when there are any.
"""

import argparse
import json
import pathlib
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
        ("four requests", CPU + ["CONCURRENCY=4", "NCTX=1"], True),
        ("eight requests", CPU + ["CONCURRENCY=8", "NCTX=1"], True),
        ("two requests", CPU + ["CONCURRENCY=2", "NCTX=1"], False),
        ("three requests", CPU + ["CONCURRENCY=3", "NCTX=1"], False),
        ("six requests", CPU + ["CONCURRENCY=6", "NCTX=1"], False),
        ("more than slots", CPU + ["CONCURRENCY=12", "NCTX=1"], False),
        ("small batches", CPU + ["CONCURRENCY=8", "NCTX=1", "GEN_MAX_BATCH_SIZE=4"], False),
        ("one prompt a step", CPU + ["CONCURRENCY=6", "NCTX=1", "CTX_MAX_BATCH_SIZE=1"], False),
        ("small chunks", CPU + ["CONCURRENCY=4", "NCTX=1", "CTX_MAX_NUM_TOKENS=128"], False),
        ("longer outputs", CPU + ["CONCURRENCY=6", "NCTX=1", "OSL=128"], False),
        ("shorter prompts", CPU + ["CONCURRENCY=6", "NCTX=1", "ISL=128"], False),
        ("stream interval 8", CPU + ["CONCURRENCY=4", "NCTX=1", "STREAM_INTERVAL=8"], False),
    ],
}


def tandem(program, *args):
    done = subprocess.run([program, *args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"tandem {' '.join(args)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def figures(folder):
    summary = json.loads((folder / "result.json").read_text())["summary"]
    value = lambda name, stat: summary[name].get(stat)
    return {"output_throughput": value("output_throughput", "avg"), "tpot": value("tpot", "avg"), "ttft": value("ttft", "p50")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/tandem")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", choices=sorted(PLANS))
    args = parser.parse_args()
    out = args.out or pathlib.Path(tempfile.mkdtemp(prefix="agreement-"))
    rows, missed = [], 0
    for engine, plans in PLANS.items():
        if args.only not in (None, engine):
            continue
        runs = []
        for i, (name, knobs, seen) in enumerate(plans):
            sets = [word for knob in knobs for word in ("--set", knob)]
            real = out / engine / f"{i:02}-real"
            tandem(args.program, "run", *sets, "--port", "0", "--out", str(real))
            runs.append((name, sets, seen, real))
        costs = out / engine / "costs.json"
        print(tandem(args.program, "calibrate", "--from-run", *[str(r[3]) for r in runs if r[2]], "--out", str(costs)))
        print(f"{engine:8} {'plan':24} {'tokens/s':>9} {'sim':>9} {'%':>6}  {'TPOT ms':>8} {'sim':>8} {'%':>6}  {'TTFT ms':>8} {'sim':>8} {'%':>6}")
        for i, (name, sets, seen, real) in enumerate(runs):
            simulated = out / engine / f"{i:02}-simulated"
            tandem(args.program, "simulate", *sets, "--calibration", str(costs), "--out", str(simulated))
            a, b = figures(real), figures(simulated)
            off = {key: 100 * (b[key] / a[key] - 1) for key in AIMS}
            bad = [key for key, aim in AIMS.items() if abs(off[key]) > aim]
            missed += len(bad)
            rows.append({"engine": engine, "plan": name, "calibrated": seen, "measured": a, "simulated": b, "off_percent": off})
            cells = "  ".join(f"{a[k]:{w}.{d}f} {b[k]:{w}.{d}f} {off[k]:+6.1f}" for k, w, d in [("output_throughput", 9, 1), ("tpot", 8, 3), ("ttft", 8, 2)])
            print(f"{'fitted' if seen else '':8} {name:24} {cells}  {'over: ' + ', '.join(bad) if bad else ''}", flush=True)
    (out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{missed} of {len(rows) * len(AIMS)} figures are over their aims; everything is in {out}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
