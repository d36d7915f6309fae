"""Writes the tables that Tandem's tests compare with: Python's float texts and numpy's statistics.

    python3 generate.py            # python_floats.tsv; needs nothing
    python3 generate.py --numpy    # numpy_stats.json too; needs numpy

Both are deterministic. Run it again only to extend them.
"""

import json
import random
import struct
import sys
from pathlib import Path

HERE = Path(__file__).parent
PERCENTILES = [1, 5, 10, 25, 50, 75, 90, 95, 99]


def floats():
    rng = random.Random(100)
    values = [0.0, -0.0, 1.0, -1.0, 24.0, 1e-5, 0.0001, 0.00011, 9.999e-5, 1e15, 1e16, 123456789012345680.0, 9999999999999998.0,
              5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 9007199254740993.0, 0.1, 0.1 + 0.2, 1 / 3, 100.0, 1e22, 1e23,
              0.125, 0.375, 0.625, 2.5, 0.005, 1.005, 2.675, 1080.255, 999.995, 999999.995, 1234567.891, -1234567.891, -0.001,
              360.35785749999997, 11.09384229238971, 1e100, 1e-100, 0.5, 1.5, 12345.0, 999.994999, 1000.0, 4.35, 0.015, 0.025]
    values += [rng.uniform(0, 1000) for _ in range(150)]
    values += [rng.randrange(10**12) * 1e-6 for _ in range(150)]
    values += [10 ** rng.uniform(-20, 20) for _ in range(150)]
    values += [rng.randrange(10**6) / 1000 for _ in range(100)]
    values += [rng.randrange(8 * 10**4) / 8 for _ in range(100)]
    return values


def write_floats():
    rows = []
    for v in floats():
        bits = struct.unpack(">Q", struct.pack(">d", v))[0]
        rows.append(f"{bits:016x}\t{v!r}\t{v:.2f}\t{v:,.2f}\n")
    (HERE / "python_floats.tsv").write_text("".join(rows))


def write_numpy():
    import numpy as np

    rng = random.Random(7)
    cases = []
    for n in [1, 2, 3, 5, 7, 8, 9, 16, 24, 100, 101, 127, 128, 129, 137, 256, 300, 1024]:
        for kind in ["ns", "rate", "ties"]:
            if kind == "ns":
                values = [rng.randrange(10**6, 10**11) for _ in range(n)]
            elif kind == "rate":
                values = [rng.uniform(0.5, 500) for _ in range(n)]
            else:
                values = [rng.choice([128, 129, 130]) for _ in range(n)]
            cases.append({
                "values": values,
                "avg": float(np.mean(values)), "std": float(np.std(values)),
                "min": float(np.min(values)), "max": float(np.max(values)),
                "percentiles": [float(np.percentile(values, p)) for p in PERCENTILES],
                "p999": float(np.percentile(values, 99.9)),
            })
    (HERE / "numpy_stats.json").write_text(json.dumps({"numpy": np.__version__, "cases": cases}, separators=(",", ":")) + "\n")


write_floats()
if "--numpy" in sys.argv:
    write_numpy()
