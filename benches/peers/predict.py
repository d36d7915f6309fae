#!/usr/bin/env python3
"""Predicts measured rows with Tandem and with AIConfigurator: errors and time per point, side by side.

    benches/peers/install-predict.sh
    python3 benches/peers/predict.py --rows rows.csv --raw predict.jsonl [--limit N] [--program target/release/tandem]

Rows are disaggregated DeepSeek-R1 configurations with known engine knobs and no drafts, one per configuration and concurrency, in the
layout that `tandem evaluate` reads. Tandem predicts each row with constants fitted without its configuration (`tandem calibrate
--unseen`): the other side never saw these rows, so neither may Tandem. AIConfigurator is asked for the same layout and the batch that
the load brings, as it was shipped: its tables are of kernels, not of these rows. A row that it refuses counts as refused, and errors are
also given on the rows that both predict. AISimulate is not asked: its wheels are nightly ones with an interface of their own.
"""

import argparse
import csv
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

METRICS = {"tpot_ms": "TPOT", "out_tps_per_gpu": "tokens/s/GPU", "ttft_ms_median": "TTFT median"}
SYSTEMS = {"h100": "h100_sxm", "h200": "h200_sxm", "b200": "b200_sxm", "gb200": "gb200", "b300": "b300_sxm", "gb300": "gb300"}
MODELS = {"fp4": "nvidia/DeepSeek-V3.1-NVFP4", "fp8": "deepseek-ai/DeepSeek-V3"}


def number(row, name, otherwise=None):
    try:
        return float(row[name])
    except ValueError:
        return otherwise


def usable(row):
    needed = ("n_ctx", "ctx_world_size", "n_gen", "gen_world_size", "concurrency", "tpot_ms_median", "out_tps_per_gpu")
    return (
        row["kind"].startswith("disagg")
        and row["knob_match"].startswith("exact")
        and row["gen_mtp_size"] in ("0", "0.0")
        and row["hardware"] in SYSTEMS
        and all(number(row, name) for name in needed)
    )


def side(row, prefix):
    """Attention-DP size, TP size and EP size of one server."""
    world = int(number(row, f"{prefix}_world_size"))
    data_parallel = row[f"{prefix}_attn_dp"].lower() in ("true", "1", "1.0")
    ep = world if data_parallel else int(number(row, f"{prefix}_ep", 1))
    return {"attention_dp_size": world if data_parallel else 1, "tp_size": 1 if data_parallel else world, "moe_ep_size": ep, "moe_tp_size": world // ep}


def question(row):
    """What AIConfigurator is asked for a row; lengths are the means of the row's distribution."""
    mean = 0.9 if row["length_dist"].startswith("uniform[0.8") else 1.0
    prefill, decode = side(row, "ctx"), side(row, "gen")
    n_gen = int(number(row, "n_gen"))
    ranks = n_gen * decode["attention_dp_size"]
    per_rank_limits = row["framework"].endswith("trt")
    limit = number(row, "gen_max_batch_size", math.inf) / (1 if per_rank_limits else decode["attention_dp_size"])
    return {
        "model_path": MODELS["fp4" if "4" in row["precision"] else "fp8"],
        "system_name": SYSTEMS[row["hardware"]],
        "backend_name": "sglang" if row["framework"].endswith("sglang") else "trtllm",
        "mode": "disagg",
        "isl": round(mean * number(row, "isl")),
        "osl": round(mean * number(row, "osl")),
        "kvcache_quant_mode": "fp8",
        **{f"prefill_{k}": v for k, v in prefill.items()},
        **{f"decode_{k}": v for k, v in decode.items()},
        "prefill_batch_size": 1,
        "prefill_num_workers": int(number(row, "n_ctx")),
        "decode_batch_size": max(1, round(min(number(row, "concurrency") / ranks, limit))),
        "decode_num_workers": n_gen,
    }


CHILD = """
import json, sys, time
began = time.time()
from aiconfigurator.cli.api import cli_estimate
out = sys.stdout
sys.stdout = sys.stderr
print(json.dumps({"start_s": time.time() - began}), file=out, flush=True)
for line in sys.stdin:
    began = time.time()
    try:
        r = cli_estimate(**json.loads(line))
        answer = {"tpot_ms": r.tpot, "ttft_ms_median": r.ttft, "out_tps_per_gpu": r.raw.get("tokens/s/gpu")}
    except Exception as error:
        answer = {"refused": f"{type(error).__name__}: {error}"[:200]}
    print(json.dumps(answer | {"seconds": time.time() - began}), file=out, flush=True)
"""


def aiconfigurator(python, rows):
    child = subprocess.Popen([python, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    start = json.loads(child.stdout.readline())["start_s"]
    answers = []
    for row in rows:
        child.stdin.write(json.dumps(question(row)) + "\n")
        child.stdin.flush()
        answers.append(json.loads(child.stdout.readline()))
        print(".", end="", file=sys.stderr, flush=True)
    child.stdin.close()
    child.wait()
    print(file=sys.stderr)
    return start, answers


def tandem(program, table, rows):
    with tempfile.TemporaryDirectory() as folder:
        unseen = pathlib.Path(folder) / "unseen.json"
        command = [program, "calibrate", "--rows", table, "--assignments", "1", "--unseen", unseen, "--out", pathlib.Path(folder) / "constants.json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        predicted = {row["id"]: row["predicted"] for row in json.loads(unseen.read_text())["rows"]}
        chosen = pathlib.Path(folder) / "rows.csv"
        with chosen.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        began = time.monotonic()
        subprocess.run([program, "evaluate", "--rows", chosen, "--json"], check=True, stdout=subprocess.DEVNULL)
        each = (time.monotonic() - began) / len(rows)
    return [predicted[row["id"]] | {"seconds": each} for row in rows]


def errors(answers, rows, metric, column):
    pairs = [(answer.get(metric), number(row, column)) for answer, row in zip(answers, rows)]
    return [100 * abs(p / m - 1) for p, m in pairs if p and m]


def show(name, answers, rows):
    columns = {"tpot_ms": "tpot_ms_median", "out_tps_per_gpu": "out_tps_per_gpu", "ttft_ms_median": "ttft_ms_median"}
    cells = []
    for metric, column in columns.items():
        off = errors(answers, rows, metric, column)
        cells.append(f"{statistics.mean(off):8.1f} {statistics.median(off):6.1f} {len(off):4}" if off else " " * 20)
    seconds = statistics.median(a["seconds"] for a in answers)
    print(f"{name:28} {len(rows):4} {sum('refused' in a for a in answers):8} {'  '.join(cells)}  {seconds:10.4f}")


def main():
    from machine import PEERS, describe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--raw", type=pathlib.Path, required=True)
    parser.add_argument("--limit", type=int, help="every so many rows only, so that this many are left")
    parser.add_argument("--program", default="target/release/tandem")
    parser.add_argument("--python", default=PEERS / "predict/bin/python", help="the interpreter that has aiconfigurator")
    args = parser.parse_args()
    with open(args.rows, newline="") as file:
        distinct = {}
        for row in filter(usable, csv.DictReader(file)):
            key = tuple(v for k, v in row.items() if k.startswith(("ctx_", "gen_", "n_")) or k in ("hardware", "framework", "precision", "isl", "osl", "concurrency"))
            distinct.setdefault(key, row)
        rows = list(distinct.values())
    if args.limit and args.limit < len(rows):
        rows = [rows[i * len(rows) // args.limit] for i in range(args.limit)]
    print("\n".join(describe()))
    ours = tandem(args.program, args.rows, rows)
    start, theirs = aiconfigurator(str(args.python), rows)
    with args.raw.open("w") as raw:
        for row, a, b in zip(rows, ours, theirs):
            measured = {k: number(row, k) for k in ("tpot_ms_median", "out_tps_per_gpu", "ttft_ms_median")}
            raw.write(json.dumps({"id": row["id"], "measured": measured, "tandem": a, "aiconfigurator": b}) + "\n")
    print(f"AIConfigurator starts in {start:.1f} s; each metric: mean and median absolute error in percent, rows; seconds a point: median")
    print(f"{'':28} {'rows':>4} {'refused':>8} {'  '.join(f'{name:>20}' for name in METRICS.values())}  {'s a point':>10}")
    show("Tandem, out of fold", ours, rows)
    show("AIConfigurator", theirs, rows)
    both = [i for i, b in enumerate(theirs) if "refused" not in b]
    if both and len(both) < len(rows):
        show("Tandem, rows of both", [ours[i] for i in both], [rows[i] for i in both])


if __name__ == "__main__":
    main()
