"""Tandem's serving path beside NVIDIA Dynamo's: frontend, one prefill and one decode worker whose engines compute nothing.

Usage: benches/peers/install-dynamo.sh && python3 benches/peers/frontend.py [--rounds N] [--concurrency 1,64,512] [--raw FILE]

Both run as processes on this machine, with the same tokenizer and the same load generator (`tandem load`, streaming,
prompts of 740 tokens, outputs of 64), in turn and in alternating order; the tables hold medians over the rounds. Two
regimes: `burst` (engines that take no time: what the serving path can do) and `paced` (engines that take the same time on
both sides, one request at a time: what the serving path adds). If Dynamo is not installed or does not start, its rows say so.

Definitions: a chunk is a streamed event with content; chunks/s, requests/s and tokens/s are over the measured requests, from
the first send to the last chunk; TTFT is the client's. CPU is user + system time of all server processes, over all requests
of the load run (warm-up included), for each chunk and each request of them. TTFT overhead is mean TTFT less the engines' own time.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from machine import PEERS, ROOT, TICK, Others, describe, own_session

ISL, OSL = 740, 64
MODEL = PEERS / "r1"
PYTHON = PEERS / "dynamo-venv/bin/python"
READY_S = 90
# Measured requests of each concurrency.
REQUESTS = {1: 200, 64: 2000, 512: 4096}
PACED_REQUESTS = 20

# The paced engines: the mocker's own time for 740 prompt tokens (4.209989e-7 T^2 + 1.518344e-2 T + 16.50142 ms) and the decode
# step that it also waits for before the first token (5.74 ms); Tandem's prefill answers the first token itself, so its engine
# gets the mocker's step and the rest over the prompt's tokens.
STEP_MS = 5.74
MOCKER_PREFILL_MS = 4.209989e-7 * ISL**2 + 1.518344e-2 * ISL + 16.50142
PACED_MS = {"tandem": MOCKER_PREFILL_MS, "dynamo": MOCKER_PREFILL_MS + STEP_MS}


class Failed(Exception):
    """Why a side did not run."""


def tree(pid):
    """The process and all that descend from it."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(pids):
    """User and system time of processes and of their ended children."""
    total = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += sum(int(x) for x in fields[11:15])
    return total / TICK


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """Processes that serve, in a folder of their own; stopped and removed by `stop`."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="peers-"))
        self.processes = []

    def spawn(self, name, command, env=None, **how):
        log = open(self.folder / f"{name}.log", "wb")
        process = subprocess.Popen([str(c) for c in command], stderr=log, env={**os.environ, **(env or {})}, cwd=self.folder, process_group=0, **{"stdout": log, **how})
        self.processes.append((name, process))
        return process

    def pids(self):
        return [pid for _, process in self.processes for pid in tree(process.pid)]

    def failure(self, what):
        tails = [f"{name}: {(self.folder / f'{name}.log').read_text(errors='replace')[-400:].strip()}" for name, _ in self.processes]
        self.stop()
        return Failed(f"{what}; " + " | ".join(tails).replace("\n", " / "))

    def stop(self):
        for _, process in self.processes:
            process.send_signal(signal.SIGTERM)
        for _, process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Tandem(Server):
    name = "tandem"

    def __init__(self, program, paced):
        super().__init__()
        own_ms = PACED_MS["tandem"] if paced else 0
        knobs = {
            "ENGINE": "modeled", "TOKENIZER": MODEL, "DEVICE_MEMORY": "900GiB", "ISL": 1024, "OSL": 128, "NCTX": 1, "NGEN": 1,
            "CTX_MAX_NUM_TOKENS": 8192, "CTX_MAX_BATCH_SIZE": 1024, "GEN_MAX_BATCH_SIZE": 1024, "GEN_MAX_NUM_TOKENS": 1024,
            "MODELED_STEP_US": STEP_MS * 1e3 if paced else 0, "MODELED_DECODE_SEQ_US": 0,
            "MODELED_PREFILL_TOKEN_US": (own_ms - STEP_MS) * 1e3 / ISL if paced else 0,
        }  # fmt: skip
        command = [program, "run", "--serve-only", "--model", MODEL, "--load-format", "dummy", "--out", self.folder / "run", "--port", 0]
        command += [word for k, v in knobs.items() for word in ("--set", f"{k}={v}")]
        launcher = self.spawn("tandem", command, stdout=subprocess.PIPE)
        line = launcher.stdout.readline()
        if not line:
            raise self.failure("did not start")
        self.url, self.model = (json.loads(line)[k] for k in ("url", "model"))


class Dynamo(Server):
    name = "dynamo"
    preload = {}

    def __init__(self, _program, paced):
        super().__init__()
        if not PYTHON.exists():
            raise self.failure("not installed, see install-dynamo.sh")
        local = {k: "127.0.0.1" for k in ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_HTTP_RPC_HOST")}
        env = {
            **local, "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(self.folder / "kv"), "HF_HUB_OFFLINE": "1",
            "DYN_SELF_HOST_METADATA": "0", "DYN_LOG": "warn",
        }  # fmt: skip
        port, self.model = free_port(), "deepseek-r1"
        self.url = f"http://127.0.0.1:{port}"
        module = [PYTHON, "-m"]
        self.spawn("frontend", [*module, "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", port], {**env, **self.preload})
        # Blocks of 64 tokens for 512 requests; a speed-up of 0 would mean 1.
        sizes = ["--num-gpu-blocks-override", 16384, "--max-num-seqs", 1024, "--kv-bytes-per-token", 70272, "--speedup-ratio", "1" if paced else "1e5"]
        for mode in ("prefill", "decode"):
            command = [*module, "dynamo.mocker", "--model-path", MODEL, "--model-name", self.model, "--disaggregation-mode", mode, *sizes]
            self.spawn(mode, command, env)
        end = time.monotonic() + READY_S
        while not self._ready():
            ended = [name for name, process in self.processes if process.poll() is not None]
            if ended or time.monotonic() > end:
                raise self.failure(f"{', '.join(ended)} ended" if ended else f"not ready in {READY_S} s")
            time.sleep(0.5)

    def _ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/v1/models/{self.model}/ready", timeout=5) as answer:
                return json.load(answer)["ready"]
        except OSError:
            return False


class DynamoNodelay(Dynamo):
    """Dynamo with TCP_NODELAY set on its HTTP connections from outside: see nodelay.c."""

    name = "dynamo+nodelay"

    def __init__(self, program, paced):
        library = PEERS / "nodelay.so"
        if not library.exists():
            subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, ROOT / "benches/peers/nodelay.c", "-ldl"], check=True)
        self.preload = {"LD_PRELOAD": str(library)}
        super().__init__(program, paced)


def percentile(values, q):
    """Linear interpolation between order statistics."""
    values = sorted(values)
    at = (len(values) - 1) * q
    low = int(at)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (at - low)


def drive(server, program, concurrency, n_requests):
    """One load run against a server: its figures."""
    out = server.folder / f"load-{concurrency}-{n_requests}"
    command = [program, "load", "--url", server.url, "--model", server.model, "--tokenizer", MODEL, "--concurrency", concurrency]
    command += ["--requests", n_requests, "--isl", ISL, "--osl", OSL, "--request-timeout", 60, "--out", out]
    # Dynamo refuses this field since 1.3; every side gets the same bodies.
    command += ["--extra-inputs", '{"nvext":null}']
    pids = server.pids()
    before, others = cpu_seconds(pids), Others()
    usage = lambda: sum(os.times()[2:4])
    client = usage()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    client = usage() - client
    cpu = cpu_seconds(pids) - before
    share = others.share(cpu + client)
    if done.returncode != 0:
        raise Failed(f"tandem load ended with {done.returncode}: {(done.stdout + done.stderr)[-600:]}")
    lines = [json.loads(line) for path in out.rglob("profile_export.jsonl") for line in path.read_text().splitlines()]
    kept = [x for x in lines if x["metadata"]["benchmark_phase"] == "profiling" and "error" not in x]
    seconds = (max(x["metadata"]["request_end_ns"] for x in kept) - min(x["metadata"]["request_start_ns"] for x in kept)) / 1e9
    ttft = [x["record"]["chunk_ns"][0] / 1e6 for x in kept]
    n_chunks = sum(len(x["record"]["chunk_ns"]) for x in kept)
    n_all = sum(len(x["record"]["chunk_ns"]) for x in lines)
    return {
        "requests": len(kept), "failed": len(lines) - len([x for x in lines if "error" not in x]), "isl_server": statistics.mean(x["record"]["isl_server"] for x in kept),
        "requests_s": len(kept) / seconds, "chunks_s": n_chunks / seconds, "tokens_s": sum(x["record"]["osl_server"] for x in kept) / seconds,
        "chunks_request": n_chunks / len(kept), "ttft_mean_ms": statistics.mean(ttft), "ttft_p50_ms": percentile(ttft, 0.5), "ttft_p99_ms": percentile(ttft, 0.99),
        "cpu_us_chunk": cpu * 1e6 / n_all, "cpu_ms_request": cpu * 1e3 / len(lines), "client_cpu_ms_request": client * 1e3 / len(lines),
        "rss_mib": sum(int(pathlib.Path(f"/proc/{p}/statm").read_text().split()[1]) for p in pids) * 4096 / 2**20, "others": share,
    }  # fmt: skip


COLUMNS = [
    ("requests_s", "req/s", "{:.0f}"), ("chunks_s", "chunks/s", "{:.0f}"), ("tokens_s", "tokens/s", "{:.0f}"), ("chunks_request", "chunks/req", "{:.1f}"),
    ("ttft_mean_ms", "TTFT mean", "{:.2f}"), ("ttft_p50_ms", "p50", "{:.2f}"), ("ttft_p99_ms", "p99 ms", "{:.2f}"), ("cpu_us_chunk", "CPU us/chunk", "{:.1f}"), ("cpu_ms_request", "ms/req", "{:.2f}"),
    ("client_cpu_ms_request", "client ms/req", "{:.2f}"), ("rss_mib", "RSS MiB", "{:.0f}"), ("failed", "failed", "{:.0f}"), ("others", "others' CPU", "{:.2f}"),
]  # fmt: skip


def measure(sides, program, points, paced, args):
    """All rounds of one regime: figures by side and concurrency, and why a side did not run."""
    samples, missing = {}, {}
    for n in range(args.rounds):
        for side in sides if n % 2 == 0 else sides[::-1]:
            if side.name in missing:
                continue
            try:
                server = side(program, paced)
            except Failed as reason:
                missing[side.name] = str(reason)
                continue
            try:
                for concurrency, n_requests in points:
                    figures = drive(server, program, concurrency, n_requests)
                    samples.setdefault((side.name, concurrency), []).append(figures)
                    if args.raw:
                        with open(args.raw, "a") as raw:
                            raw.write(json.dumps({"at": time.time(), "side": side.name, "paced": paced, "round": n, "concurrency": concurrency, **figures}) + "\n")
            except Failed as reason:
                missing[side.name] = str(reason)
            finally:
                server.stop()
    return samples, missing


def table(samples, missing, sides, points, extra=None):
    print(f"{'':5}{'':16}" + "".join(f"{title:>14}" for _, title, _ in COLUMNS) + (f"{extra[0]:>22}" if extra else ""))
    for concurrency, _ in points:
        for side in sides:
            runs = samples.get((side.name, concurrency))
            row = "   not run" if not runs else "".join(f"{form.format(statistics.median(r[key] for r in runs)):>14}" for key, _, form in COLUMNS)
            if runs and extra:
                row += f"{extra[1](side, statistics.median(r['ttft_mean_ms'] for r in runs)):>22.2f}"
            print(f"{concurrency:<5}{side.name:16}{row}")
    for name, reason in missing.items():
        print(f"{name} not run: {reason}")


def versions():
    shown = [f"tandem   {subprocess.run(['rustc', '--version'], capture_output=True, text=True).stdout.strip()}, release"]
    if PYTHON.exists():
        code = "from importlib.metadata import version as v; import sys; print(v('ai-dynamo'), 'with ai-dynamo-runtime', v('ai-dynamo-runtime'), 'on Python', sys.version.split()[0])"
        shown.append(f"dynamo   {subprocess.run([PYTHON, '-c', code], capture_output=True, text=True).stdout.strip()}")
    return shown


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", default="1,64,512")
    parser.add_argument("--raw", help="append every single measurement as a JSON line")
    args = parser.parse_args()
    own_session()
    command = ["cargo", "build", "-q", "--release", "-p", "tandem", "--message-format=json"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    program = [m["executable"] for m in map(json.loads, built.splitlines()) if m.get("executable")][-1]
    if not (MODEL / "tokenizer.json").exists():
        sys.exit("no tokenizer in target/peers: run install-dynamo.sh")
    print("\n".join([*describe(), *versions()]), flush=True)
    sides = [Tandem, Dynamo, DynamoNodelay]

    points = [(c, REQUESTS.get(c, 20 * c)) for c in map(int, args.concurrency.split(","))]
    print(f"\nburst: engines take no time, ISL {ISL}, OSL {OSL}; median of {args.rounds} rounds", flush=True)
    table(*measure(sides, program, points, False, args), sides, points)

    points = [(1, PACED_REQUESTS)]
    print(f"\npaced: a first token takes the engines {PACED_MS['tandem']:.2f} ms (Tandem) and {PACED_MS['dynamo']:.2f} ms (mocker), a step {STEP_MS} ms", flush=True)
    overhead = ("TTFT less engines' ms", lambda side, ttft: ttft - PACED_MS["tandem" if side is Tandem else "dynamo"])
    table(*measure(sides, program, points, True, args), sides, points, overhead)


if __name__ == "__main__":
    main()
