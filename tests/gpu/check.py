"""Judges what tests/gpu/telemetry.sh left: prints each figure beside what it must agree with, exits 1 on a contradiction.

    check.py OUT

Shares no code with Tandem: it reads telemetry.jsonl, result.json and nvidia-smi's own log.
"""

import csv
import json
import sys
from pathlib import Path

OUT = Path(sys.argv[1])
problems = []


def check(what, is_true, detail):
    print(f"{'ok  ' if is_true else 'BAD '} {what}: {detail}")
    if not is_true:
        problems.append(what)


def integral(points):
    return sum((b[1] + a[1]) / 2 * (b[0] - a[0]) for a, b in zip(points, points[1:]))


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


samples = []
for line in (OUT / "run/telemetry.jsonl").read_text().splitlines():
    entry = json.loads(line)
    if entry["kind"] == "gpu":
        samples.append((entry["at_ns"] / 1e9, entry["values"]))
burn = json.loads((OUT / "burn.json").read_text())
began, ended = burn["began_ns"] / 1e9, burn["ended_ns"] / 1e9
series = lambda name: [(at, values[name]) for at, values in samples if name in values]
power, instant, energy, temperature = map(series, ["power_w", "power_instant_w", "energy_j", "temperature_c"])
gaps = sorted(b[0] - a[0] for a, b in zip(samples, samples[1:]))
print(f"{len(samples)} samples, every {mean(gaps) * 1e3:.1f} ms, at most {gaps[-1] * 1e3:.1f} ms; quantities: {sorted({k for _, v in samples for k in v})}")

distinct = [energy[0]] + [b for a, b in zip(energy, energy[1:]) if b[1] != a[1]]
steps = [b[0] - a[0] for a, b in zip(distinct, distinct[1:])]
print(f"the energy counter changes every {mean(steps) * 1e3:.0f} ms")

idle = [w for at, w in power if at < began - 0.5]
busy = [w for at, w in power if began + 3 < at < ended - 0.5]
check("power rises under load", mean(busy) > 2 * mean(idle), f"{mean(idle):.1f} W idle, {mean(busy):.1f} W burning")
hot = [c for at, c in temperature if began + 10 < at < ended]
check("temperature rises under load", mean(hot) > mean(c for at, c in temperature if at < began), f"{mean(c for at, c in temperature if at < began):.1f} C, then {mean(hot):.1f} C, at most {max(c for _, c in temperature):.0f} C")

inside = lambda points: [(at, value) for at, value in points if began + 3 < at < ended - 1]
counted = inside(energy)[-1][1] - inside(energy)[0][1]
span = lambda points: [p for p in points if inside(energy)[0][0] <= p[0] <= inside(energy)[-1][0]]
for name, points in [("power_w", power), ("power_instant_w", instant)]:
    if points:
        joules = integral(span(points))
        check(f"counter against integrated {name} while burning", abs(joules / counted - 1) < 0.05, f"{counted:.0f} J counted, {joules:.0f} J integrated ({100 * (joules / counted - 1):+.2f} %)")

result = json.loads((OUT / "run/result.json").read_text())
point = result["points"][0]
used = point["telemetry"]["energy"]
check("roles", set(used["roles"]) <= {"prefill", "decode", "prefill+decode"} and used["gpus"], json.dumps(used["roles"]))
whole = used["gpus"][0]
check("whole window: counter against integral", abs(whole["integrated_power_j"] / whole["energy_j"] - 1) < 0.05, f"{whole['energy_j']:.1f} J, {whole['integrated_power_j']:.1f} J, mean {used['mean_power_w']:.1f} W over {used['duration_s']:.2f} s")
summary = point["summary"]
for name in ["gpu_energy", "gpu_power", "energy_per_output_token", "output_tokens_per_joule"]:
    print(f"     {name}: {summary[name]['avg']:.4f} {summary[name]['unit']}")

FIELDS = ["power_w", "power_instant_w", "temperature_c", "memory_temperature_c", "sm_clock_mhz", "gpu_utilization_percent"]
rows = []
with open(OUT / "nvidia-smi.csv", encoding="utf-8") as file:
    for row in csv.reader(file):
        try:
            rows.append(dict(zip(FIELDS, map(float, row[1:]), strict=True)))
        except ValueError:
            continue
check("nvidia-smi wrote readings", len(rows) > 100, f"{len(rows)} rows {(OUT / 'nvidia-smi.err').read_text()[:200]}")
if rows:
    upper = lambda values: sorted(values)[int(len(values) * 0.75)]
    for name, largest in [("power_w", 0.1), ("power_instant_w", 0.1), ("temperature_c", 0.06), ("memory_temperature_c", 0.06), ("sm_clock_mhz", 0.05), ("gpu_utilization_percent", 0.05)]:
        ours, theirs = upper([v for _, v in series(name)]), upper([r[name] for r in rows])
        check(f"{name} as nvidia-smi shows it", abs(ours / theirs - 1) <= largest, f"upper quartile {ours:.1f}, nvidia-smi {theirs:.1f}")

genai = json.loads(next((OUT / "run").glob("*/profile_export_genai_perf.json")).read_text())
stats = genai["telemetry_stats"]
print("telemetry_stats of GenAI-Perf's JSON:", ", ".join(f"{tag} {entry['0']['avg']:.4g} {entry['unit']}" for tag, entry in stats.items() if "0" in entry))
check("energy in GenAI-Perf's JSON is what was used", abs(stats["energy_consumption"]["0"]["avg"] * 1e6 / whole["energy_j"] - 1) < 1e-6, f"{stats['energy_consumption']['0']['avg'] * 1e6:.1f} J")
sys.exit(1 if problems else 0)
