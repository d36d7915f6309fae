#!/usr/bin/env python3
"""Checks a run folder against its own records, independently of the program that wrote it.

    check_run.py RUN_FOLDER               recompute every figure from profile_export.jsonl and compare
    check_run.py --self-test RUN_FOLDER   corrupt copies of a good folder and see that each is noticed

Needs Python 3 and nothing else. Shares no code with Tandem: definitions are written down here a second time.
Long because it is every definition in one file, without helpers that a wrong figure could share.
Exit code 0: all agree; 1: differences, one a line; 2: usage.
"""

import csv
import hashlib
import io
import json
import math
import re
import shutil
import sys
import tempfile
from pathlib import Path

PERCENTILES = [1, 5, 10, 25, 50, 75, 90, 95, 99]
CSV_COLUMNS = ["avg", "min", "max", "p99", "p95", "p90", "p75", "p50", "p25", "p10", "p5", "p1"]
SUMMARY_LABELS = [
    ("Request Throughput (req/sec)", "request_throughput"),
    ("Output Token Throughput (tokens/sec)", "output_throughput"),
    ("Output Token Throughput per User (tps/user)", "output_throughput_per_user"),
    ("Output Token Throughput per GPU (tps/gpu)", "output_throughput_per_gpu"),
    ("Total Token Throughput per GPU (tokens/sec)", "total_throughput_per_gpu"),
    ("Average request latency (ms)", "request_latency"),
    ("Average time to first token [TTFT] (ms)", "ttft"),
    ("Average time per output token [TPOT] (ms)", "tpot"),
]
# GenAI-Perf's tags in the order of its JSON: tag, JSON unit, our metric, whether it has statistics.
GENAI_PERF = [
    ("request_throughput", "requests/sec", "request_throughput", False),
    ("request_latency", "ms", "request_latency", True),
    ("request_goodput", "requests/sec", "goodput", False),
    ("request_count", "count", "request_count", False),
    ("time_to_first_token", "ms", "ttft", True),
    ("time_to_second_token", "ms", "ttst", True),
    ("inter_token_latency", "ms", "tpot", True),
    ("output_token_throughput", "tokens/sec", "output_throughput", False),
    ("output_token_throughput_per_user", "tokens/sec/user", "output_throughput_per_user", True),
    ("output_sequence_length", "tokens", "osl", True),
    ("input_sequence_length", "tokens", "isl", True),
]
CSV_STATISTICS = ["time_to_first_token", "time_to_second_token", "request_latency", "inter_token_latency",
                  "output_token_throughput_per_user", "output_sequence_length", "input_sequence_length"]
CSV_STREAMING = CSV_STATISTICS[:2] + CSV_STATISTICS[3:5]
CSV_VALUES = [("output_token_throughput", "tokens/sec"), ("request_throughput", "per sec"),
              ("request_goodput", "per sec"), ("request_count", "count")]
CONSTANT_TELEMETRY = ["gpu_power_limit", "total_gpu_memory"]
OUTCOMES = {"ok", "connect_error", "send_error", "http_status", "sse_error", "truncated", "timeout", "no_progress",
            "cancelled", "bad_response"}


class Report:
    """Collects what does not agree."""

    def __init__(self):
        self.problems = []
        self.n_compared = 0

    def problem(self, where, what):
        self.problems.append(f"{where}: {what}")

    def same(self, where, found, expected):
        self.n_compared += 1
        if found != expected:
            self.problem(where, f"found {found!r}, expected {expected!r}")

    def close(self, where, found, expected, scale=0.0):
        """Equal up to the rounding of floating-point sums."""
        self.n_compared += 1
        both = is_number(found) and is_number(expected)
        if not (math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9 + 1e-9 * abs(scale)) if both else found == expected):
            self.problem(where, f"found {found!r}, expected {expected!r}")


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- reading -----------------------------------------------------------------------------------------------------


def refuse(name):
    raise ValueError(f"{name} is not JSON")


def parse_json(text):
    return json.loads(text, parse_constant=refuse)


def read_json(report, path):
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        report.problem(path, error)
        return None


def read_lines(report, path):
    values = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        report.problem(path, error)
        return values
    if lines[-1] != "":
        report.problem(path, "the last line does not end")
    for number, line in enumerate(lines[:-1], 1):
        try:
            values.append(parse_json(line))
        except ValueError as error:
            report.problem(f"{path}:{number}", error)
    return values


def read_flat_yaml(report, path):
    """Top-level `key: integer` pairs; enough for deployment.yaml."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        report.problem(path, error)
        return {}
    return {key: int(value) for key, value in re.findall(r"^(\w+):\s*(\d+)\s*$", text, re.M)}


# --- one request -------------------------------------------------------------------------------------------------


class Request:
    """The facts of one line, and the metrics of one request from them. Times in integer nanoseconds."""

    def __init__(self, line):
        meta, facts = line["metadata"], line["record"]
        self.scheduled = meta["credit_issued_ns"]
        self.start = meta["request_start_ns"]
        self.end = meta["request_end_ns"]
        self.phase = meta["benchmark_phase"]
        self.outcome = facts["outcome"]
        self.offsets = facts["chunk_ns"]
        self.tokens = facts.get("chunk_tokens") or [None] * len(self.offsets)
        self.kinds = facts.get("chunk_kinds") or "c" * len(self.offsets)
        self.isl = facts["isl_server"] if facts["isl_client"] is None else facts["isl_client"]
        self.isl_seen = facts["isl_client"] if facts["isl_server"] is None else facts["isl_server"]
        self.osl = facts["osl_client"] if facts["osl_server"] is None else facts["osl_server"]
        self.kept = self.outcome == "ok" and len(self.offsets) > 0
        self.gaps = [b - a for a, b in zip(self.offsets, self.offsets[1:])]

    def first_of(self, kind):
        return next((t for t, k in zip(self.offsets, self.kinds) if k == kind), None)

    def tpot_ns(self):
        if len(self.offsets) < 2 or not self.osl or self.osl < 2:
            return None
        return round((self.offsets[-1] - self.offsets[0]) / (self.osl - 1))

    def values(self):
        """Metric name -> value in the shown unit, for metrics with one value a request; none where undefined."""
        first, last, tpot = self.offsets[0], self.offsets[-1], self.tpot_ns()
        ms = lambda ns: None if ns is None else ns / 1e6
        return {
            "request_latency": ms(last),
            "ttft": ms(first),
            "ttfr": ms(self.first_of("r")),
            "ttfo": ms(self.first_of("c")),
            "ttst": ms(self.gaps[0]) if self.gaps else None,
            "tpot": ms(tpot),
            "isl": self.isl,
            "osl": self.osl,
            "output_throughput_per_user": 1e9 / tpot if tpot else None,
            "prefill_throughput_per_user": self.isl / (first / 1e9) if first and self.isl is not None else None,
            "e2e_output_throughput": self.osl / (last / 1e9) if last and self.osl is not None else None,
            "send_lag": ms(max(self.start - self.scheduled, 0)),
            "effective_latency": ms(self.start + last - self.scheduled),
            "effective_ttft": ms(self.start + first - self.scheduled),
        }

    def token_gaps(self):
        """Gaps between tokens in ms: a chunk of n tokens counts n times a share of its gap."""
        if None in self.tokens:
            if self.osl != len(self.offsets):
                return []
            return [gap / 1e6 for gap in self.gaps]
        return [gap / n / 1e6 for gap, n in zip(self.gaps, self.tokens[1:]) for _ in range(n)]


STREAMING_ONLY = {"ttft", "ttfr", "ttfo", "ttst", "tpot", "itl", "icl", "output_throughput_per_user", "prefill_throughput_per_user",
                  "effective_ttft"}
LOWER_IS_BETTER = {"request_latency", "ttft", "ttfr", "ttfo", "ttst", "tpot", "send_lag", "effective_latency", "effective_ttft"}


# --- one load point ----------------------------------------------------------------------------------------------


def statistics(values):
    """numpy's defaults: linear interpolation, population deviation."""
    if not values:
        return None
    ordered, n = sorted(values), len(values)
    mean = math.fsum(values) / n

    def percentile(p):
        place = p / 100 * (n - 1)
        low = int(place)
        high = min(low + 1, n - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    stats = {f"p{p}": percentile(p) for p in PERCENTILES + [99.9]}
    stats.update(avg=mean, min=ordered[0], max=ordered[-1], count=n)
    stats["std"] = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n)
    return stats


def in_flight(requests, start, end):
    if end <= start:
        return None
    busy = sum(max(min(r.end, end) - max(r.start, start), 0) for r in requests)
    return busy / (end - start)


def meets(request, slos):
    values = request.values()
    for name, limit in slos.items():
        value = values.get(name)
        if value is None or (value > limit if name in LOWER_IS_BETTER else value < limit):
            return False
    return True


def figures(requests, warmup, load, n_gpus, energy_j=None):
    """Metric name -> number, or statistics, as Tandem must have computed them."""
    kept = [r for r in requests if r.kept]
    found = {"request_count": len(kept), "error_count": len(requests) - len(kept)}
    per_request = [r.values() for r in kept]
    for name in per_request[0] if kept else []:
        found[name] = statistics([v[name] for v in per_request if v[name] is not None])
    found["itl"] = statistics([gap for r in kept for gap in r.token_gaps()])
    found["icl"] = statistics([gap / 1e6 for r in kept for gap in r.gaps])

    if requests:
        found["error_rate"] = 100 * found["error_count"] / len(requests)
        first, last_start = min(r.start for r in requests), max(r.start for r in requests)
        found["effective_concurrency"] = in_flight(requests + warmup, first, max(r.end for r in requests))
        if load["concurrency"] is not None and len(requests) >= 2 * load["concurrency"]:
            found["steady_concurrency"] = in_flight(requests + warmup, first, last_start)
    duration = None
    if kept:
        duration = (max(r.start + r.offsets[-1] for r in kept) - min(r.start for r in kept)) / 1e9
    if duration:
        rates(found, kept, duration, n_gpus)
    if duration and energy_j is not None:
        osl = found["output_throughput"] * duration if found.get("output_throughput") is not None else None
        total = found["total_throughput"] * duration if found.get("total_throughput") is not None else None
        found |= {"gpu_energy": energy_j, "gpu_power": energy_j / duration, "energy_per_request": energy_j / len(kept)}
        found["energy_per_output_token"] = energy_j / osl if osl else None
        found["output_tokens_per_joule"] = osl / energy_j if osl is not None and energy_j > 0 else None
        found["total_tokens_per_joule"] = total / energy_j if total is not None and energy_j > 0 else None
    if load["slos"]:
        good = sum(meets(r, load["slos"]) for r in kept)
        found["good_fraction"] = 100 * good / len(requests) if requests else None
        found["goodput"] = good / duration if duration else None
    for name, lengths, asked in [("isl_mismatch", [r.isl_seen for r in kept], load["isl"]), ("osl_mismatch", [r.osl for r in kept], load["osl"])]:
        known = [length for length in lengths if length is not None]
        if asked is not None and known:
            found[name] = sum(length != asked for length in known)
    return {name: value for name, value in found.items() if value is not None and (load["streaming"] or name not in STREAMING_ONLY)}


def rates(found, kept, duration, n_gpus):
    total = lambda counts: None if None in counts else sum(counts)
    isl, osl = total([r.isl for r in kept]), total([r.osl for r in kept])
    found["benchmark_duration"] = duration
    found["request_throughput"] = len(kept) / duration
    found["output_throughput"] = osl / duration if osl is not None else None
    found["input_throughput"] = isl / duration if isl is not None else None
    both = None if isl is None or osl is None else (isl + osl) / duration
    found["total_throughput"] = both
    if n_gpus:
        found["output_throughput_per_gpu"] = osl / duration / n_gpus if osl is not None else None
        found["total_throughput_per_gpu"] = both / n_gpus if both is not None else None


def verdict(requests, warmup, load, found):
    """Code of each reason -> its verdict."""
    kept = [r for r in requests if r.kept]
    reasons = {}
    if not kept:
        reasons["no_result"] = "invalid"
    if len(requests) < load["n_requests"]:
        reasons["incomplete"] = "invalid"
    failed = len(requests) - len(kept)
    if failed:
        reasons["failed_requests"] = "invalid" if failed > 0.01 * len(requests) else "suspect"
    if any(r.outcome != "ok" for r in warmup):
        reasons["failed_warmup"] = "suspect"
    if any(r.osl is None for r in kept):
        reasons["no_token_counts"] = "suspect"
    for code, lengths, asked, mild, far in [("osl_mismatch", [r.osl for r in kept], load["osl"], "suspect", "invalid"),
                                            ("isl_mismatch", [r.isl_seen for r in kept], load["isl"], "valid", "suspect")]:
        known = [length for length in lengths if length is not None]
        if asked is not None and any(length != asked for length in known):
            reasons[code] = far if abs(sum(known) / len(known) - asked) > 0.01 * asked else mild
    if load["concurrency"] is not None and found.get("steady_concurrency", math.inf) < 0.97 * load["concurrency"]:
        reasons["low_concurrency"] = "suspect"
    return reasons


# --- comparing files ---------------------------------------------------------------------------------------------


def compare_statistics(report, where, found, expected, names):
    scale = max(abs(expected["max"]), abs(expected["min"]))
    for name in names:
        report.close(f"{where}.{name}", found.get(name), expected[name], scale)


def check_summary(report, where, summary, expected):
    report.same(f"{where}: metrics", sorted(summary), sorted(expected))
    for name in set(summary) & set(expected):
        entry, value = summary[name], expected[name]
        if not isinstance(entry.get("unit"), str):
            report.problem(f"{where}.{name}", "no unit")
        if isinstance(value, dict):
            compare_statistics(report, f"{where}.{name}", entry, value, list(value))
        else:
            report.same(f"{where}.{name}: keys", sorted(entry), ["avg", "unit"])
            report.close(f"{where}.{name}", entry.get("avg"), value)


def check_genai_json(report, path, document, expected, load):
    tags = []
    for tag, unit, name, has_statistics in GENAI_PERF:
        if tag == "time_to_first_token" and not load["streaming"]:
            name = "request_latency"
        if name not in expected:
            continue
        tags.append(tag)
        entry = document.get(tag, {})
        stats = ["avg"] + [f"p{p}" for p in PERCENTILES] + ["min", "max", "std"] if has_statistics else ["avg"]
        report.same(f"{path}: {tag}: keys", list(entry), ["unit"] + stats)
        report.same(f"{path}: {tag}.unit", entry.get("unit"), unit)
        if has_statistics:
            compare_statistics(report, f"{path}: {tag}", entry, expected[name], stats)
        else:
            report.close(f"{path}: {tag}.avg", entry.get("avg"), expected[name])
    telemetry = ["telemetry_stats"] if "telemetry_stats" in document else []
    report.same(f"{path}: keys", list(document), tags + telemetry + ["input_config"])
    config = document.get("input_config", {})
    asked = {"streaming": config.get("endpoint", {}).get("streaming"), "n_requests": config.get("perf_analyzer", {}).get("measurement", {}).get("num"),
             "isl": config.get("input", {}).get("synthetic_tokens", {}).get("mean"), "osl": config.get("input", {}).get("output_tokens", {}).get("mean")}
    for key, value in asked.items():
        report.same(f"{path}: input_config: {key}", value, load[key])


def grouped(value):
    return f"{value:,.2f}" if is_number(value) else "N/A"


def expected_csv(document, load):
    """The CSV that belongs to the JSON, which is checked on its own."""
    title = lambda tag, unit: f"{tag.replace('_', ' ').title()} ({unit})"
    units = {tag: unit for tag, unit, _, _ in GENAI_PERF}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["Metric"] + CSV_COLUMNS)
    for tag in CSV_STATISTICS:
        if load["streaming"] or tag not in CSV_STREAMING:
            entry = document.get(tag, {})
            writer.writerow([title(tag, units[tag])] + [grouped(entry.get(column)) for column in CSV_COLUMNS])
    writer.writerow([])
    writer.writerow(["Metric", "Value"])
    for tag, unit in CSV_VALUES:
        if tag != "request_goodput" or load["slos"]:
            writer.writerow([title(tag, unit), grouped(document.get(tag, {}).get("avg"))])
    write_telemetry(writer, document.get("telemetry_stats"))
    return text.getvalue()


def write_telemetry(writer, telemetry):
    if not telemetry:
        return
    title = lambda tag, unit: " ".join(w.upper() if w == "gpu" else w.capitalize() for w in tag.split("_")) + f" ({unit})"
    rows = [(tag, title(tag, entry["unit"]), gpu, stats) for tag, entry in telemetry.items() for gpu, stats in entry.items() if gpu != "unit"]
    writer.writerow([])
    writer.writerow(["Metric", "GPU"] + CSV_COLUMNS)
    for tag, name, gpu, stats in rows:
        if tag not in CONSTANT_TELEMETRY:
            writer.writerow([name, gpu] + [grouped(stats.get(column)) for column in CSV_COLUMNS])
    writer.writerow([])
    writer.writerow(["Metric", "GPU", "Value"])
    for tag, name, gpu, stats in rows:
        if tag in CONSTANT_TELEMETRY:
            writer.writerow([name, gpu, f"{stats['avg']:.2f}"])


def check_line_metrics(report, where, line, request, streaming):
    """The metrics of a line must follow from its own facts."""
    metrics = line["metrics"]
    if not request.kept:
        report.same(f"{where}: metrics of a failed request", metrics, {})
        if request.outcome != "ok" and "error" not in line:
            report.problem(where, "a failed request without an error")
        return
    if "error" in line:
        report.problem(where, "an error on a request that succeeded")
    tags = {tag: name for tag, _, name, has_statistics in GENAI_PERF if has_statistics}
    tags.update(time_to_first_output_token="ttfo", prefill_throughput_per_user="prefill_throughput_per_user",
                e2e_output_token_throughput="e2e_output_throughput", effective_latency="effective_latency")
    values = request.values()
    expected = {tag: values[name] for tag, name in tags.items() if values[name] is not None and (streaming or name not in STREAMING_ONLY)}
    if streaming and request.gaps:
        expected["inter_chunk_latency"] = [gap / 1e6 for gap in request.gaps]
    report.same(f"{where}: metrics", sorted(metrics), sorted(expected))
    for tag in set(metrics) & set(expected):
        found, wanted = metrics[tag]["value"], expected[tag]
        if isinstance(wanted, list):
            report.same(f"{where}: {tag}: length", len(found), len(wanted))
            for i, (a, b) in enumerate(zip(found, wanted)):
                report.close(f"{where}: {tag}[{i}]", a, b)
        else:
            report.close(f"{where}: {tag}", found, wanted)


def read_requests(report, path, phase, streaming):
    requests = []
    for number, line in enumerate(read_lines(report, path), 1):
        where = f"{path}:{number}"
        try:
            request = Request(line)
            check_line_metrics(report, where, line, request, streaming)
        except (KeyError, TypeError, IndexError) as error:
            report.problem(where, f"not a record: {error!r}")
            continue
        report.same(f"{where}: benchmark_phase", request.phase, phase)
        if request.outcome not in OUTCOMES:
            report.problem(where, f"unknown outcome {request.outcome!r}")
        if request.offsets != sorted(request.offsets) or request.end < request.start:
            report.problem(where, "time runs backwards")
        requests.append(request)
    return requests


def check_point(report, folder, point, n_gpus):
    """Checks one load point; returns its figures."""
    directory, load = folder / point["directory"], point["load"]
    requests = read_requests(report, directory / "profile_export.jsonl", "profiling", load["streaming"])
    warmup_path = directory / "profile_export_warmup.jsonl"
    warmup = read_requests(report, warmup_path, "warmup", load["streaming"]) if warmup_path.exists() else []
    energy = (point.get("telemetry") or {}).get("energy") or {}
    found = figures(requests, warmup, load, n_gpus, energy.get("total_j"))

    where = f"{folder / 'result.json'}: {point['directory']}"
    check_summary(report, where, point["summary"], found)
    outcomes = {}
    for request in requests:
        outcomes[request.outcome] = outcomes.get(request.outcome, 0) + 1
    report.same(f"{where}: outcomes", point["outcomes"], outcomes)
    reasons = verdict(requests, warmup, load, found)
    listed = {reason["code"]: reason["verdict"] for reason in point["validity_reasons"]}
    report.same(f"{where}: validity_reasons", {code: listed.get(code) for code in reasons}, reasons)
    report.same(f"{where}: validity", point["validity"], worst(listed.values()))

    path = directory / "profile_export_genai_perf.json"
    document = read_json(report, path)
    if document is not None:
        check_genai_json(report, path, document, found, load)
        csv_path = directory / "profile_export_genai_perf.csv"
        text = csv_path.read_bytes().decode("utf-8") if csv_path.exists() else ""
        for number, (ours, wanted) in enumerate(zip(text.split("\n"), expected_csv(document, load).split("\n")), 1):
            report.same(f"{csv_path}:{number}", ours, wanted)
        report.same(f"{csv_path}: length", len(text), len(expected_csv(document, load)))
    return found


def worst(verdicts):
    return max(verdicts, key=["valid", "suspect", "invalid"].index, default="valid")


# Lines that are there when GPUs were sampled.
ENERGY_LABELS = [
    ("Average GPU power (W)", "gpu_power"),
    ("Energy per output token (J)", "energy_per_output_token"),
    ("Output tokens per second per watt (tps/W)", "output_tokens_per_joule"),
]


def check_perf_summary(report, path, points, found):
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        report.problem(path, error)
        return
    expected = []
    for point, values in zip(points, found):
        if expected:
            expected.append("")
        for reason in point["validity_reasons"]:
            if reason["verdict"] == "invalid" or reason["code"] == "failed_requests":
                expected.append(f"{reason['verdict'].upper()}: {reason['message']}")
        title = f" (concurrency {point['load']['concurrency']})" if len(points) > 1 else ""
        expected += ["=" * 60, f"PERFORMANCE OVERVIEW{title}", "=" * 60]
        for label, name in SUMMARY_LABELS:
            value = values.get(name)
            value = value["avg"] if isinstance(value, dict) else value
            expected.append((f"{label:<46}: ", value))
        for label, name in ENERGY_LABELS:
            if name in point["summary"]:
                expected.append(f"{label:<46}: {point['summary'][name]['avg']:.4f}")
    expected.append("")
    report.same(f"{path}: lines", len(lines), len(expected))
    for number, (line, wanted) in enumerate(zip(lines, expected), 1):
        where = f"{path}:{number}"
        if isinstance(wanted, str):
            report.same(where, line, wanted)
            continue
        label, value = wanted
        report.same(f"{where}: label", line[:len(label)], label)
        text = line[len(label):]
        if value is None or not re.fullmatch(r"-?\d+\.\d\d", text):
            report.same(where, text, "N/A" if value is None else f"{value:.2f}")
        elif abs(float(text) - value) > 0.005 + 1e-9 * abs(value):
            report.problem(where, f"found {text}, expected {value:.2f}")


def has_plan(result):
    """Whether there was a deployment of ours; the load generator alone has none."""
    return bool(result.get("plan_hash"))


def check_files(report, folder, deployment, result):
    names = ["result.json", "perf_summary.txt"]
    if has_plan(result):
        names += ["plan.json", "events.jsonl", "configs/deployment.yaml", "configs/prefill.yaml", "configs/decode.yaml", "configs/machines.txt"]
    if has_plan(result) and result.get("kind") != "simulated":
        names += ["logs/output_server.log", "logs/bench.log", "logs/prefill.log", "logs/decode.log"]
        for phase in ["prefill", "decode"]:
            names += [f"logs/output_{phase}_{i + 1}.log" for i in range(deployment.get(f"num_{phase}_servers", 0))]
    for point in result.get("points", []):
        names += [f"{point['directory']}/{name}" for name in
                  ["profile_export_genai_perf.json", "profile_export_genai_perf.csv", "profile_export.jsonl", "inputs.json"]]
    for name in names:
        if not (folder / name).is_file():
            report.problem(folder / name, "missing")
    for path in sorted(folder.rglob("*.json")):
        read_json(report, path)
    for path in sorted(folder.rglob("*.jsonl")):
        read_lines(report, path)
    machines = folder / "configs/machines.txt"
    if machines.is_file() and not machines.read_text(encoding="utf-8").strip():
        report.problem(machines, "names no machine")
    listed = sorted(point["directory"] for point in result.get("points", []))
    there = sorted(path.name for path in folder.glob("*-openai-chat-*") if path.is_dir())
    report.same(f"{folder}: directories of load points", there, listed)


def check_result(report, folder, result, deployment, plan):
    where, points = folder / "result.json", result["points"]
    report.same(f"{where}: schema_version", result["schema_version"], 1)
    report.same(f"{where}: validity", result["validity"], worst(reason["verdict"] for reason in result["validity_reasons"]))
    report.same(f"{where}: validity is that of the worst point or worse", worst([result["validity"]] + [p["validity"] for p in points]), result["validity"])
    if has_plan(result):
        report.same(f"{where}: n_gpus", result["n_gpus"], deployment.get("total_gpus"))
        report.same(f"{where}: plan_hash", result["plan_hash"], hash_of_plan(folder / "plan.json"))
    outcomes = {}
    for name, n in (item for point in points for item in point["outcomes"].items()):
        outcomes[name] = outcomes.get(name, 0) + n
    report.same(f"{where}: outcomes", result["outcomes"], outcomes)
    chosen = result["summary_point"]
    report.same(f"{where}: summary", result["summary"], points[chosen]["summary"] if points else {})
    asked = plan.get("load", {}) if isinstance(plan, dict) else {}
    for point, planned in zip(points, asked.get("points", [])):
        for key in ["concurrency", "n_requests"]:
            report.same(f"{where}: {point['directory']}: {key} as planned", point["load"][key], planned[key])
        for key in ["isl", "osl", "streaming"]:
            report.same(f"{where}: {point['directory']}: {key} as planned", point["load"][key], asked[key])


def hash_of_plan(path):
    """SHA-256 of the plan without the blanks between its tokens."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    compact = re.sub(r'("(?:[^"\\]|\\.)*")|\s+', lambda match: match.group(1) or "", text)
    return hashlib.sha256(compact.encode("utf-8")).hexdigest()


def check_inputs(report, folder, points):
    for point in points:
        path = folder / point["directory"] / "inputs.json"
        document = read_json(report, path) if path.is_file() else None
        entries = document.get("data") if isinstance(document, dict) else None
        if not entries or not all(isinstance(payload, dict) for entry in entries for payload in entry.get("payload", [None])):
            report.problem(path, "holds no requests")


def check(folder):
    report = Report()
    result = read_json(report, folder / "result.json")
    if not isinstance(result, dict):
        report.problem(folder / "result.json", "holds no object")
        return report
    deployment = read_flat_yaml(report, folder / "configs/deployment.yaml") if has_plan(result) else {"total_gpus": result.get("n_gpus")}
    plan = read_json(report, folder / "plan.json") if has_plan(result) else {}
    check_files(report, folder, deployment, result)
    try:
        check_result(report, folder, result, deployment, plan)
        found = [check_point(report, folder, point, deployment.get("total_gpus")) for point in result["points"]]
        check_perf_summary(report, folder / "perf_summary.txt", result["points"], found)
        check_inputs(report, folder, result["points"])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        report.problem(folder / "result.json", f"not as documented: {error!r}")
    report.problems = list(dict.fromkeys(report.problems))
    return report


# --- self-test ---------------------------------------------------------------------------------------------------


def edit_json(path, change):
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")


def edit_line(path, change):
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    document = json.loads(lines[0])
    change(document)
    path.write_text(json.dumps(document) + "\n" + "".join(lines[1:]), encoding="utf-8")


def edit_text(path, pattern, replacement):
    text = path.read_bytes().decode("utf-8")
    changed = re.sub(pattern, replacement, text, count=1)
    assert changed != text, f"{path}: the self-test found nothing to corrupt with {pattern!r}"
    path.write_bytes(changed.encode("utf-8"))


def scale(entry, key, factor):
    entry[key] *= factor


def next_digit(match):
    return match.group(1) + str((int(match.group(2)) + 1) % 10)


def corruptions(directory, planned):
    """Name -> what it does to a copy of the folder; some need a deployment of ours."""
    lines, genai = f"{directory}/profile_export.jsonl", f"{directory}/profile_export_genai_perf"

    def later_chunk(line):
        line["record"]["chunk_ns"][-1] += 1_000_000

    def later_start(line):
        line["metadata"]["request_start_ns"] += 1_000

    def one_token_more(line):
        key = "osl_client" if line["record"]["osl_server"] is None else "osl_server"
        line["record"][key] += 1

    cases = {
        "a last chunk one millisecond later": lambda f: edit_line(f / lines, later_chunk),
        "a token more": lambda f: edit_line(f / lines, one_token_more),
        "a start one microsecond later": lambda f: edit_line(f / lines, later_start),
        "another outcome": lambda f: edit_line(f / lines, lambda line: line["record"].update(outcome="timeout")),
        "a request that was never made": lambda f: edit_text(f / lines, r"\A(.*\n)", r"\1\1"),
        "a dropped request": lambda f: edit_text(f / lines, r"\A.*\n", ""),
        "a torn last line": lambda f: edit_text(f / lines, r"\}\n\Z", ""),
        "another mean latency in the JSON": lambda f: edit_json(f / f"{genai}.json", lambda d: scale(d["request_latency"], "avg", 1.000001)),
        "another p99 in the JSON": lambda f: edit_json(f / f"{genai}.json", lambda d: scale(d["request_latency"], "p99", 1.000001)),
        "another throughput in the JSON": lambda f: edit_json(f / f"{genai}.json", lambda d: scale(d["request_throughput"], "avg", 0.999999)),
        "a missing metric in the JSON": lambda f: edit_json(f / f"{genai}.json", lambda d: d.pop("request_latency")),
        "another unit in the JSON": lambda f: edit_json(f / f"{genai}.json", lambda d: d["request_latency"].update(unit="s")),
        "NaN in the JSON": lambda f: edit_json(f / f"{genai}.json", lambda d: d["request_latency"].update(avg=math.nan)),
        "another number of requests asked": lambda f: edit_json(f / f"{genai}.json", lambda d: d["input_config"]["perf_analyzer"]["measurement"].update(num=1)),
        "another digit in the CSV": lambda f: edit_text(f / f"{genai}.csv", r"(Request Latency \(ms\),\"?\d)(\d)", next_digit),
        "unix line ends in the CSV": lambda f: edit_text(f / f"{genai}.csv", r"\r\n", "\n"),
        "a lost row in the CSV": lambda f: edit_text(f / f"{genai}.csv", r"Request Count.*\r\n", ""),
        "another digit in perf_summary.txt": lambda f: edit_text(f / "perf_summary.txt", r"(latency \(ms\)\s+: \d*)(\d)", next_digit),
        "a lost line in perf_summary.txt": lambda f: edit_text(f / "perf_summary.txt", r"Total Token.*\n", ""),
        "another label in perf_summary.txt": lambda f: edit_text(f / "perf_summary.txt", r"Request Throughput", "Requests Throughput"),
        "another figure in result.json": lambda f: edit_json(f / "result.json", lambda d: scale(d["points"][0]["summary"]["output_throughput"], "avg", 1.000001)),
        "another summary than the point's": lambda f: edit_json(f / "result.json", lambda d: scale(d["summary"]["output_throughput"], "avg", 2)),
        "another verdict": lambda f: edit_json(f / "result.json", lambda d: d.update(validity="suspect" if d["validity"] == "valid" else "valid")),
        "hidden failures": lambda f: edit_json(f / "result.json", lambda d: d["points"][0].update(outcomes={"ok": 1})),
        "another number of GPUs": lambda f: edit_text(f / "configs/deployment.yaml", r"total_gpus: (\d+)", r"total_gpus: 1\1"),
        "another plan": lambda f: edit_text(f / "plan.json", r"\d", "9876"),
        "a broken plan": lambda f: edit_text(f / "plan.json", r"\{", "["),
        "a broken event": lambda f: (f / "events.jsonl").write_text("{\n"),
        "no requests in inputs.json": lambda f: edit_json(f / directory / "inputs.json", lambda d: d.update(data=[])),
    }
    required = ["plan.json", "events.jsonl", "perf_summary.txt", "configs/decode.yaml", "configs/machines.txt", f"{genai}.csv", f"{genai}.json",
                lines, f"{directory}/inputs.json", "result.json", "configs/deployment.yaml"]
    if not planned:
        return {name: corrupt for name, corrupt in cases.items() if not re.search("plan|event|GPU", name)}
    cases.update({f"no {name}": lambda f, name=name: (f / name).unlink() for name in required})
    return cases


def self_test(folder):
    """Number of corruptions that went unnoticed, or none if the folder is not good to begin with."""
    report = check(folder)
    if report.problems:
        print("\n".join(report.problems))
        print(f"self-test: {folder} itself does not pass")
        return None
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    cases, missed = corruptions(result["points"][0]["directory"], has_plan(result)), []
    if has_plan(result) and result.get("kind") != "simulated":
        cases["no logs/bench.log"] = lambda f: (f / "logs/bench.log").unlink()
        cases["no logs/output_prefill_1.log"] = lambda f: (f / "logs/output_prefill_1.log").unlink()
    for name, corrupt in cases.items():
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "run"
            shutil.copytree(folder, copy)
            corrupt(copy)
            if not check(copy).problems:
                missed.append(name)
    for name in missed:
        print(f"self-test: not noticed: {name}")
    print(f"self-test: {len(cases) - len(missed)} of {len(cases)} corruptions noticed")
    return len(missed)


def main(arguments):
    testing = "--self-test" in arguments
    folders = [argument for argument in arguments if argument != "--self-test"]
    if len(folders) != 1 or folders[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(folders[0])
    if testing:
        return 0 if self_test(folder) == 0 else 1
    report = check(folder)
    for problem in report.problems:
        print(problem)
    print(f"{folder}: {len(report.problems)} differences, {report.n_compared} values compared")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
