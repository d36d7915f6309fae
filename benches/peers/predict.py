#!/usr/bin/env python3
"""Predicts measured rows with Tandem, AIConfigurator and AISimulate: errors and time per point, side by side.

    benches/peers/install-predict.sh
    python3 benches/peers/predict.py --rows rows.csv --raw predict.jsonl [--limit N] [--program target/release/tandem]

Rows are disaggregated DeepSeek-R1 configurations with known engine knobs and no drafts, one per configuration and concurrency, in the
layout that `tandem evaluate` reads. Tandem predicts each row with constants fitted without its configuration (`tandem calibrate
--unseen`): the others never saw these rows, so neither may Tandem. They are asked for the same layout as they were shipped: their tables
are of kernels, not of these rows. AIConfigurator gets the batch that the load brings, AISimulate simulates five requests per unit of
concurrency at the mean lengths. A row that one refuses counts as refused, and errors are also given on the rows that all predict. A peer
that is not installed is a line that says so.
"""

import argparse
import csv
import json
import math
import pathlib
import select
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


def lengths(row):
    """Mean prompt and output tokens of the row's distribution."""
    mean = 0.9 if row["length_dist"].startswith("uniform[0.8") else 1.0
    return round(mean * number(row, "isl")), round(mean * number(row, "osl"))


def limit_of_rank(row, prefix, name, ranks, otherwise):
    """A limit of one attention rank: TensorRT-LLM states it so, SGLang that of all ranks together."""
    return max(1, round(number(row, f"{prefix}_{name}", otherwise) / (1 if row["framework"].endswith("trt") else ranks)))


def asked(row):
    """What both peers call by the same name."""
    return {
        "model": MODELS["fp4" if "4" in row["precision"] else "fp8"],
        "system": SYSTEMS[row["hardware"]],
        "backend": "sglang" if row["framework"].endswith("sglang") else "trtllm",
    }


def ask_aiconfigurator(row):
    prefill, decode = side(row, "ctx"), side(row, "gen")
    isl, osl = lengths(row)
    n_gen = int(number(row, "n_gen"))
    ranks = n_gen * decode["attention_dp_size"]
    batch = number(row, "concurrency") / ranks
    common = asked(row)
    return {
        "model_path": common["model"],
        "system_name": common["system"],
        "backend_name": common["backend"],
        "mode": "disagg",
        "isl": isl,
        "osl": osl,
        "kvcache_quant_mode": "fp8",
        **{f"prefill_{k}": v for k, v in prefill.items()},
        **{f"decode_{k}": v for k, v in decode.items()},
        "prefill_batch_size": 1,
        "prefill_num_workers": int(number(row, "n_ctx")),
        "decode_batch_size": max(1, round(min(batch, limit_of_rank(row, "gen", "max_batch_size", decode["attention_dp_size"], batch)))),
        "decode_num_workers": n_gen,
    }


def ask_aisimulate(row):
    isl, osl = lengths(row)
    concurrency = int(number(row, "concurrency"))
    common = asked(row)

    def worker(prefix, replicas, tokens, memory):
        s = side(row, prefix)
        ranks = s["attention_dp_size"]
        parallelism = {"replicas": replicas, "tensor": s["tp_size"], "attention_data": ranks, "moe_tensor": s["moe_tp_size"], "moe_expert": s["moe_ep_size"]}
        scheduler = {
            "max_batched_tokens": limit_of_rank(row, prefix, "max_num_tokens", ranks, tokens * ranks),
            "max_sequences": limit_of_rank(row, prefix, "max_batch_size", ranks, 1024 * ranks),
        }
        capacity = {"memory_fraction": number(row, f"{prefix}_gpu_memory_fraction", memory)}
        return {"parallelism": parallelism, "scheduler": scheduler, "kv_cache": {"prefix_caching": False, "capacity": capacity}}

    n_ctx, n_gen = int(number(row, "n_ctx")), int(number(row, "n_gen"))
    return {
        "traffic": {
            "source": {"type": "synthetic", "input_tokens": isl, "output_tokens": osl},
            "load": {"type": "concurrency", "concurrency": concurrency},
            "stop": {"requests": 5 * concurrency},
        },
        "engine": {
            "mode": "disaggregated",
            "model": common["model"],
            "hardware": common["system"],
            "backend": common["backend"],
            "fallback_policy": "allow",
            "kvcache_quant_mode": "fp8",
            "kv_transfer": {"bandwidth_gb_per_second": 100},
            "workers": {"prefill": worker("ctx", n_ctx, 16384, 0.8), "decode": worker("gen", n_gen, 2048, 0.85)},
        },
        "gpus": n_ctx * int(number(row, "ctx_world_size")) + n_gen * int(number(row, "gen_world_size")),
    }


# What runs in a peer's own interpreter: `load` imports it, `answer` asks it. One JSON line in, one out.
CHILD = """
import json, sys, time
began = time.time()
out = sys.stdout
sys.stdout = sys.stderr
{load}
print(json.dumps({{"start_s": time.time() - began, "version": version}}), file=out, flush=True)
for line in sys.stdin:
    began = time.time()
    try:
        answer = ask(json.loads(line))
    except Exception as error:
        answer = {{"refused": f"{{type(error).__name__}}: {{error}}".replace(sys.prefix, "")[:300]}}
    print(json.dumps(answer | {{"seconds": time.time() - began}}), file=out, flush=True)
"""

LOAD_AICONFIGURATOR = """
from importlib.metadata import version as installed
from aiconfigurator.cli.api import cli_estimate
from aiconfigurator_core.sdk.perf_database import get_latest_database_version
version = installed("aiconfigurator")
latest = {}

def ask(question):
    # Without a version it reads those of all tables again for each question, which takes seconds.
    key = question["system_name"], question["backend_name"]
    if key not in latest:
        latest[key] = get_latest_database_version(*key)
    r = cli_estimate(**question, backend_version=latest[key])
    return {"tpot_ms": r.tpot, "ttft_ms_median": r.ttft, "out_tps_per_gpu": r.raw.get("tokens/s/gpu")}
"""

# Where its tables have no attention kernel with FP8 values, it is asked again with BF16, and the answer says so.
LOAD_AISIMULATE = """
from aisimulate import CorePredictionConfig, EngineReplayRunnerFactory, __version__ as version
from aisimulate.predict import run_prediction
factory = EngineReplayRunnerFactory()

def predict(question):
    return run_prediction(CorePredictionConfig.model_validate(question), stack="engine", runner_factory=factory).summary

def ask(question):
    gpus = question.pop("gpus")
    note = {}
    try:
        s = predict(question)
    except Exception as error:
        if "fmha_quant" not in str(error):
            raise
        question["engine"]["fmha_quant_mode"] = "bfloat16"
        note = {"note": "attention in BF16: no FP8 data"}
        s = predict(question)
    return {"tpot_ms": s["median_tpot_ms"], "ttft_ms_median": s["median_ttft_ms"], "ttft_ms_p99": s["p99_ttft_ms"],
            "out_tps_per_gpu": s["output_throughput_tok_s"] / gpus} | note
"""


class Peer:
    """A peer in its own interpreter; a question that takes too long counts as refused."""

    def __init__(self, name, python, load, ask, limit_s):
        self.name, self.ask, self.limit_s = name, ask, limit_s
        self.command = [str(python), "-c", CHILD.format(load=load)]
        self.child = None
        if not pathlib.Path(python).exists():
            self.missing = "not installed: no interpreter of its own (install-predict.sh makes it)"
            return
        self.missing = self.start()

    def start(self):
        """Starts it; the reason if it does not come up."""
        log = tempfile.TemporaryFile("w+")
        self.child = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.child.stdout.readline()
        if not line:
            self.child.wait()
            log.seek(0)
            return f"not installed: {(log.read().strip().splitlines() or ['it ended without a word'])[-1]}"
        self.hello = json.loads(line)
        return None

    def answer(self, row):
        self.child.stdin.write(json.dumps(self.ask(row)) + "\n")
        self.child.stdin.flush()
        if select.select([self.child.stdout], [], [], self.limit_s)[0]:
            line = self.child.stdout.readline()
            if line:
                return json.loads(line)
            reason = "its process died"
        else:
            reason = f"no answer in {self.limit_s} s"
        self.child.kill()
        self.child.wait()
        self.start()
        return {"refused": reason, "seconds": float(self.limit_s)}

    def answers(self, rows):
        if self.missing:
            return None
        found = []
        for row in rows:
            found.append(self.answer(row))
            print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        self.child.stdin.close()
        self.child.wait()
        return found


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
        cells.append(f"{statistics.mean(off):8.1f} {statistics.median(off):6.1f} {len(off):4}" if off else f"{'-':>20}")
    seconds = statistics.median(a["seconds"] for a in answers)
    print(f"{name:32} {len(rows):4} {sum('refused' in a for a in answers):8} {'  '.join(cells)}  {seconds:10.4f}")


def main():
    from machine import PEERS, describe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--raw", type=pathlib.Path, required=True)
    parser.add_argument("--limit", type=int, help="every so many rows only, so that this many are left")
    parser.add_argument("--limit-s", type=int, default=90, help="seconds after which a peer's row counts as refused")
    parser.add_argument("--program", default="target/release/tandem")
    parser.add_argument("--aiconfigurator", default=PEERS / "predict/bin/python", help="the interpreter that has aiconfigurator")
    parser.add_argument("--aisimulate", default=PEERS / "aisimulate/bin/python", help="the interpreter that has aisimulate")
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
    peers = [
        Peer("AIConfigurator", args.aiconfigurator, LOAD_AICONFIGURATOR, ask_aiconfigurator, args.limit_s),
        Peer("AISimulate", args.aisimulate, LOAD_AISIMULATE, ask_aisimulate, args.limit_s),
    ]
    for peer in peers:
        print(f"{peer.name:15} {peer.missing or 'version {version}, starts in {start_s:.1f} s'.format(**peer.hello)}")
    columns = {"Tandem, out of fold": tandem(args.program, args.rows, rows)}
    columns |= {peer.name: found for peer in peers if (found := peer.answers(rows)) is not None}
    with args.raw.open("w") as raw:
        for i, row in enumerate(rows):
            measured = {k: number(row, k) for k in ("tpot_ms_median", "out_tps_per_gpu", "ttft_ms_median")}
            answers = {name.split(",")[0].lower(): found[i] for name, found in columns.items()}
            raw.write(json.dumps({"id": row["id"], "measured": measured} | answers) + "\n")
    print("each metric: mean and median absolute error in percent, rows; seconds a point: median")
    print(f"{'':32} {'rows':>4} {'refused':>8} {'  '.join(f'{name:>20}' for name in METRICS.values())}  {'s a point':>10}")
    for name, found in columns.items():
        show(name, found, rows)
    everyone = [i for i in range(len(rows)) if not any("refused" in found[i] for found in columns.values())]
    if everyone and len(everyone) < len(rows):
        print("rows that all of them predict")
        for name, found in columns.items():
            show(name, [found[i] for i in everyone], [rows[i] for i in everyone])


if __name__ == "__main__":
    main()
