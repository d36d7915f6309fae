"""Measures a running deployment with AIPerf from PyPI, unchanged, and checks what it exports.

    python3 aiperf_client.py BASE_URL MODEL [--tokenizer DIR] [--api-key KEY] --out DIR

Two small runs at concurrency 4 with 16 requests each, one streaming and one not. Checked in both: AIPerf ends well, counts
16 requests and no error, and sees exactly the asked output length (in the server's own count, since text of a byte-level
model need not be valid UTF-8 and so cannot be counted again). Exit code: 0 passed, 1 failed, 77 AIPerf could not be installed.

The tokenizer is a local directory, in which AIPerf needs a config.json with a known `model_type` beside tokenizer.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from client_env import ROOT, enter

enter("aiperf==0.13.0")

CONCURRENCY, N_REQUESTS, ISL, OSL = 4, 16, 200, 24
# Start-up of AIPerf alone is about ten seconds on two free cores.
RUN_TIMEOUT_S = 240
# Any value of these, "0" included, makes AIPerf take a local folder for the name of a repository.
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def command(args: argparse.Namespace, out: Path, streaming: bool) -> list:
    words = [str(Path(sys.executable).with_name("aiperf")), "profile", "--model", args.model, "--url", args.base_url]
    words += ["--endpoint-type", "chat", "--concurrency", str(CONCURRENCY), "--request-count", str(N_REQUESTS)]
    words += ["--warmup-request-count", "2", "--workers-max", "1", "--random-seed", "100"]
    words += ["--isl", str(ISL), "--isl-stddev", "0", "--osl", str(OSL), "--osl-stddev", "0"]
    words += ["--extra-inputs", f"min_tokens:{OSL}", "--extra-inputs", "ignore_eos:true"]
    words += ["--tokenizer", str(Path(args.tokenizer).resolve()), "--use-server-token-count"]
    words += ["--no-gpu-telemetry", "--no-server-metrics", "--ui", "none", "--artifact-dir", str(out)]
    words += ["--streaming"] if streaming else []
    words += ["--api-key", args.api_key] if args.api_key else []
    return words


def run(args: argparse.Namespace, streaming: bool) -> list:
    """One run; the complaints about it."""
    out = Path(args.out) / ("streaming" if streaming else "whole")
    out.mkdir(parents=True, exist_ok=True)
    env = {name: text for name, text in os.environ.items() if name not in OFFLINE_SWITCHES}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"}
    try:
        done = subprocess.run(command(args, out, streaming), env=env, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return [f"aiperf did not end within {RUN_TIMEOUT_S} s"]
    if done.returncode != 0:
        return [f"aiperf ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"]
    found = sorted(out.rglob("profile_export_aiperf.json"))
    if not found:
        return [f"aiperf wrote no profile_export_aiperf.json:\n{(done.stdout + done.stderr)[-3000:]}"]
    return complaints(json.loads(found[0].read_text(encoding="utf-8")), streaming)


def complaints(export: dict, streaming: bool) -> list:
    """What is not as asked in AIPerf's own export."""
    def value(tag: str, stat: str = "avg"):
        return (export.get(tag) or {}).get(stat)

    bad = []

    def expect(what: str, holds: bool, seen) -> None:
        print(f"  {what}: {seen} {'ok' if holds else 'FAILED'}", flush=True)
        if not holds:
            bad.append(f"{what}: {seen}")

    expect("requests", value("request_count") == N_REQUESTS, value("request_count"))
    expect("failed requests", not value("error_request_count"), value("error_request_count"))
    expect("error summary", not export.get("error_summary"), export.get("error_summary"))
    for stat in ("min", "max"):
        osl, isl = value("output_sequence_length", stat), value("input_sequence_length", stat)
        expect(f"output length, {stat}", osl == OSL, osl)
        # The server counts the chat template too, which is a few tokens; it can never count less than the text.
        expect(f"input length, {stat}", isl is not None and ISL <= isl <= ISL + 32, isl)
    for tag in ("time_to_first_token", "inter_token_latency"):
        expect(f"{tag} {'is' if streaming else 'is not'} measured", (value(tag) is not None) == streaming, value(tag))
    expect("throughput", (value("output_token_throughput") or 0) > 0, value("output_token_throughput"))
    return bad


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("model")
    parser.add_argument("--tokenizer", default=str(ROOT / "models" / "nano"))
    parser.add_argument("--api-key", default="")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    bad = []
    for streaming in (True, False):
        print(f"aiperf, {'streaming' if streaming else 'not streaming'}:", flush=True)
        bad += run(args, streaming)
    for complaint in bad:
        print(f"FAILED: {complaint}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
