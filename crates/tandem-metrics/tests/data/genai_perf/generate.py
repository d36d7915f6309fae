"""Lets GenAI-Perf itself write the files that Tandem's golden tests compare with.

    pip install numpy rich pyyaml pandas orjson tqdm pillow soundfile && pip install --no-deps genai-perf==0.0.16
    python3 generate.py

For each case it invents requests (seeded), puts them into perf_analyzer's raw format, runs GenAI-Perf's own parser and
exporters on that with a tokenizer that counts words, and keeps: `<case>.requests.json` (what a Tandem test builds its
records from), `<case>.json` and `<case>.csv` (what GenAI-Perf wrote).
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from genai_perf.config.input.config_command import ConfigCommand
from genai_perf.inputs.input_constants import Subcommand
from genai_perf.export_data.csv_exporter import CsvExporter
from genai_perf.export_data.exporter_config import ExporterConfig
from genai_perf.export_data.json_exporter import JsonExporter
from genai_perf.metrics import TelemetryMetrics, TelemetryStatistics
from genai_perf.profile_data_parser.llm_profile_data_parser import LLMProfileDataParser

HERE = Path(__file__).parent


class Words:
    """A tokenizer for which a token is a word; it drops a first '!' as GenAI-Perf expects of it."""

    def encode(self, text, **_):
        return text.split()

    def __call__(self, texts, **_):
        return {"input_ids": [["!"] + t[1:].split() for t in texts]}


def invent(case, rng):
    requests = []
    start = 1_795_488_137_000_000_000
    for i in range(case["n"]):
        start += rng.randrange(0, case["spread_ns"])
        n_chunks = 1 if not case["streaming"] else case["chunks"](i, rng)
        at = start + rng.randrange(*case["ttft_ns"])
        chunks = []
        for j in range(n_chunks):
            chunks.append([at - start, 1 if case["streaming"] else case["osl"]])
            at += rng.randrange(*case["gap_ns"])
        requests.append({"start": start, "chunks": chunks, "isl": case["isl"] + (rng.randrange(3) if case["vary_isl"] else 0)})
    return requests


def event(tokens, streaming):
    text = "w " * tokens
    if streaming:
        chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
        return f"data: {json.dumps(chunk)}\n\n"
    return json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": {"content": text}}]})


def raw(case, requests):
    out = []
    for r in requests:
        payload = {"model": "m", "messages": [{"role": "user", "content": "w " * r["isl"]}], "stream": case["streaming"]}
        stamps = [r["start"] + c[0] for c in r["chunks"]]
        outputs = [{"response": event(c[1], case["streaming"])} for c in r["chunks"]]
        if case["streaming"]:
            stamps.append(stamps[-1] + 1000)
            outputs.append({"response": "data: [DONE]\n\n"})
        out.append({"timestamp": r["start"], "request_inputs": {"payload": json.dumps(payload)},
                    "response_timestamps": stamps, "response_outputs": outputs})
    experiment = {"experiment": {"mode": "concurrency", "value": 4}, "requests": out, "window_boundaries": []}
    return {"experiments": [experiment], "version": "0.0.0", "service_kind": "openai", "endpoint": "v1/chat/completions"}


def configure(case):
    config = ConfigCommand({
        "model_names": ["deepseek-r1-dynamo"],
        "endpoint": {"custom": "v1/chat/completions", "type": "chat", "streaming": case["streaming"],
                     "url": "127.0.0.1:9000", "server_metrics_urls": ["http://127.0.0.1:9400/metrics"]},
        "perf_analyzer": {"stimulus": {"concurrency": 4}, "measurement": {"mode": "request_count", "num": case["n"]},
                          "warmup_request_count": 8},
        "input": {"extra": {"max_tokens": case["osl"], "min_tokens": case["osl"], "ignore_eos": True},
                  **({"goodput": case["goodput"]} if case["goodput"] else {}),
                  "num_dataset_entries": case["n"], "random_seed": 100,
                  "output_tokens": {"mean": case["osl"]}, "synthetic_tokens": {"mean": case["isl"]}},
        "output": {"artifact_directory": "out", "profile_export_file": "profile_export.json"},
        "tokenizer": {"name": "tok"},
    })
    config.subcommand = Subcommand.PROFILE
    return config


def telemetry(rng):
    series = {"gpu_power_usage": (400, 700), "gpu_power_limit": (700, 701), "total_gpu_memory": (81559, 81560),
              "gpu_memory_used": (60000, 60100), "gpu_clock_sm": (1980, 1981), "gpu_memory_temperature": (60, 80),
              "pcie_transmit_throughput": (10**9, 2 * 10**9), "sm_utilization": (0, 1)}
    return {name: {str(gpu): [lo + rng.random() * (hi - lo) for _ in range(20)] for gpu in range(2)} for name, (lo, hi) in series.items()}


def run(name, case):
    rng = random.Random(name)
    requests = invent(case, rng)
    series = telemetry(rng) if case["telemetry"] else {}
    kept = {"streaming": case["streaming"], "isl": case["isl"], "osl": case["osl"], "goodput": case["goodput"],
            "requests": requests, "telemetry": series}
    (HERE / f"{name}.requests.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "raw.json").write_text(json.dumps(raw(case, requests)))
        parser = LLMProfileDataParser(folder / "raw.json", Words(), goodput_constraints=case["goodput"])
        stats = parser.get_statistics("concurrency", "4")
        stats.scale_data()
        gpu = TelemetryStatistics(TelemetryMetrics(**series))
        gpu.scale_data()
        config = ExporterConfig(
            stats=stats.stats_dict, metrics=stats.metrics, config=configure(case), extra_inputs={}, session_stats={},
            telemetry_stats=gpu.stats_dict,
            perf_analyzer_config=SimpleNamespace(get_artifact_directory=lambda: folder))
        JsonExporter(config).export()
        CsvExporter(config).export()
        for kind in ["json", "csv"]:
            (HERE / f"{name}.{kind}").write_bytes((folder / f"profile_export_genai_perf.{kind}").read_bytes())


BASE = dict(n=24, streaming=True, isl=128, osl=32, vary_isl=False, spread_ns=100_000_000, ttft_ns=(50_000_000, 56_000_000),
            gap_ns=(9_000_000, 11_000_001), chunks=lambda i, rng: 32, goodput={}, telemetry=False)
CASES = {
    "streaming": BASE | dict(goodput={"time_to_first_token": 52.0, "inter_token_latency": 20.0}, telemetry=True),
    "non_streaming": BASE | dict(streaming=False),
    "slow": BASE | dict(n=150, ttft_ns=(10**9, 4 * 10**9), gap_ns=(10**6, 2 * 10**9), vary_isl=True, isl=8150, osl=6,
                        chunks=lambda i, rng: rng.randrange(1, 7)),
    "one_token": BASE | dict(n=3, osl=1, chunks=lambda i, rng: 1),
}

for name, case in CASES.items():
    if len(sys.argv) < 2 or name in sys.argv[1:]:
        run(name, case)
